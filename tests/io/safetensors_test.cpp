// The safetensors format: what is written, what is read back, and everything that has to be refused.
#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <strata/io/safetensors.hpp>

#include "io/file_bytes.hpp"
#include "support/catch.hpp"

namespace {

strata::Result<strata::io::SafetensorsContents> parse(const std::string& bytes, bool allow_prefix = false) {
  const auto copy = test::exact_copy(bytes);
  return strata::io::parse_safetensors({copy.get(), bytes.size()}, copy, allow_prefix);
}

/// A file with this header, padded so that data starts 64-byte aligned, and `size` bytes of data.
std::string file_with(std::string header, std::size_t size) {
  while ((8 + header.size()) % 64 != 0) header += ' ';
  return test::assembled(header, std::string(size, '\1'));
}

/// Where the error is, or "accepted".
std::string refused(const std::string& header, std::size_t size) {
  const auto result = parse(file_with(header, size));
  return result ? "accepted" : result.error().where();
}

std::string entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

strata::Archive some_arrays() {
  strata::Archive archive;
  archive.metadata()["note"] = "\xc3\xa4 \"quoted\" \n";
  const std::vector<float> floats = {1.5F, -2.0F, std::numeric_limits<float>::infinity()};
  const std::vector<std::uint8_t> bytes = {7, 8, 9, 10, 11};
  const std::vector<std::int64_t> wide = {-1, 1LL << 40};
  archive.add<std::uint8_t>("bytes", {5}, 0, bytes);
  archive.add<float>("floats", {3, 1}, 0, floats);
  archive.add<double>("empty", {0, 4}, 0, {});
  archive.add<std::int64_t>("wide", {2}, 0, wide);
  archive.add<float>("scalar", {}, 0, std::span<const float>(floats).first(1));
  return archive;
}

struct LaidOut {
  std::string file;
  std::vector<std::uint64_t> ends;
};

/// The file of `archive`; arrays whose number is in `sections` start a section.
LaidOut laid_out(const strata::Archive& archive, const std::set<std::size_t>& sections = {}) {
  std::vector<const strata::ArrayView*> arrays;
  std::vector<bool> new_section;
  for (const auto& view : archive.arrays()) {
    new_section.push_back(sections.contains(arrays.size()));
    arrays.push_back(&view);
  }
  const strata::io::ArrayPlaces places = strata::io::place_arrays(arrays, new_section);
  std::map<std::string, std::string> metadata = archive.metadata();
  metadata["count"] = std::to_string(places.ends.size());
  const auto image = strata::io::lay_out_safetensors(arrays, places, metadata);
  LaidOut result{{}, places.ends};
  for (const auto& piece : image->pieces) result.file.append(reinterpret_cast<const char*>(piece.data()), piece.size());
  return result;
}

}  // namespace

TEST_CASE("arrays come back from a file as they were, aligned") {
  const strata::Archive before = some_arrays();
  const auto contents = parse(laid_out(before).file).value();
  const strata::Archive& after = contents.archive;
  CHECK(after.metadata().at("note") == before.metadata().at("note"));
  CHECK(after.metadata().at("count") == "5");
  REQUIRE(after.arrays().size() == before.arrays().size());
  for (const auto& a : before.arrays()) {
    INFO(a.name);
    REQUIRE(after.find(a.name) != nullptr);
    const auto& b = *after.find(a.name);
    CHECK(b.type == a.type);
    CHECK(b.shape == a.shape);
    CHECK(b.stratum == 0);
    CHECK(std::equal(b.bytes.begin(), b.bytes.end(), a.bytes.begin(), a.bytes.end()));
  }
  CHECK(contents.data_start % strata::io::file_alignment == 0);
}

TEST_CASE("arrays of a file are 64-byte aligned and in the order of their places") {
  const LaidOut image = laid_out(some_arrays());
  const auto contents = parse(image.file).value();
  std::vector<std::uint64_t> ends = image.ends;
  std::sort(ends.begin(), ends.end());
  CHECK(contents.array_ends == ends);
  CHECK(contents.data_start + contents.data_bytes == image.file.size());
  for (std::size_t i = 0; i < ends.size(); ++i)
    CHECK((contents.array_ends[i] - contents.archive.arrays()[i].bytes.size()) % strata::io::file_alignment == 0);
}

TEST_CASE("a section never ends where the next one starts") {
  strata::Archive archive;
  const std::vector<std::uint8_t> full(strata::io::file_alignment, 1);
  archive.add<std::uint8_t>("a", {64}, 0, full);
  archive.add<std::uint8_t>("b", {0}, 0, {});
  archive.add<std::uint8_t>("c", {64}, 0, full);
  CHECK(laid_out(archive).ends == std::vector<std::uint64_t>{64, 64, 128});
  const LaidOut image = laid_out(archive, {1, 2});
  CHECK(image.ends == std::vector<std::uint64_t>{64, 128, 256});
  CHECK(parse(image.file).value().archive.arrays().size() == 3);
}

TEST_CASE("a file without arrays comes back") {
  const auto contents = parse(laid_out({}).file).value();
  CHECK(contents.archive.arrays().empty());
  CHECK(contents.data_bytes == 0);
}

TEST_CASE("views keep what they view alive") {
  const auto owner = test::exact_copy(laid_out(some_arrays()).file);
  const auto size = laid_out(some_arrays()).file.size();
  const auto contents = strata::io::parse_safetensors({owner.get(), size}, owner).value();
  CHECK(owner.use_count() == 2);
}

TEST_CASE("files of other tools are read: any order, any padding, no metadata") {
  const std::string b = entry(R"("F32")", "[2]", "[0,8]");
  const std::string a = entry(R"("U8")", "[3]", "[8,11]");
  const auto contents = parse(file_with("{\"b\":" + b + ",\"a\":" + a + "}", 11)).value();
  REQUIRE(contents.archive.arrays().size() == 2);
  CHECK(contents.archive.arrays()[0].name == "b");
  CHECK(contents.archive.arrays()[1].bytes.size() == 3);
  CHECK(refused("{}", 0) == "accepted");
  CHECK(refused("{\"a\":" + entry(R"("F64")", "[]", "[0,8]") + "}", 8) == "accepted");
}

TEST_CASE("headers that are no safetensors header are refused") {
  CHECK(parse("").error().where() == "header");
  CHECK(parse("1234567").error().where() == "header");
  CHECK(parse(test::assembled("", "")).error().where() == "header");
  for (const char* text :
       {"[]", "null", " {}", "{", "{}}", "{\"a\"}", "{\"a\":1,}", "{\"\xff\":1}", "{\"\\ud800\":1}", "{} x", "{'a':1}",
        "{\"a\":NaN}", "{\"a\":1e999}", "{\"a\":-1e999}", "{\"a\":Infinity}", "{\"a\":01}"}) {
    INFO(text);
    CHECK(refused(text, 0) == "header");
  }
  CHECK(refused("{\"a\":" + std::string(100'000, '['), 0) == "header");
  std::string nested;
  for (int i = 0; i < 100'000; ++i) nested += "{\"a\":";
  CHECK(refused(nested, 0) == "header");
  const std::string a = entry(R"("U8")", "[1]", "[0,1]");
  CHECK(refused("{\"a\":" + a + ",\"a\":" + a + "}", 1) == "header");
  CHECK(refused(R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1) == "header");
}

TEST_CASE("a header longer than the file or the format's limit is refused") {
  std::string file = file_with("{}", 0);
  for (const std::uint64_t length :
       {std::uint64_t{57}, std::uint64_t{1} << 32, ~std::uint64_t{0}, ~std::uint64_t{0} - 7, std::uint64_t{1} << 63}) {
    std::memcpy(file.data(), &length, 8);
    const auto result = parse(file);
    REQUIRE_FALSE(result.ok());
    CHECK(result.error().found() == std::to_string(length));
  }
}

TEST_CASE("array descriptions that do not hold are refused with the array's name") {
  const auto one = [](const std::string& value, std::size_t size) { return refused("{\"a\":" + value + "}", size); };
  CHECK(one(entry(R"("F32")", "[2]", "[0,8]"), 8) == "accepted");
  for (const char* dtype : {R"("F16")", R"("BF16")", R"("BOOL")", R"("f32")", R"("")", "5", "null"}) {
    INFO(dtype);
    CHECK(one(entry(dtype, "[2]", "[0,8]"), 8) == "a");
  }
  for (const char* shape :
       {"[-2]", "[2.0]", "[2e0]", "[-0]", "[\"2\"]", "[null]", "2", "{}", "[3]", "[]", "[2,2]",
        "[4294967296,4294967296,4294967296,4294967296]", "[18446744073709551615]", "[18446744073709551616]",
        "[4611686018427387905,4]", "[4611686018427387904]", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,2]"}) {
    INFO(shape);
    CHECK(one(entry(R"("F32")", shape, "[0,8]"), 8) == "a");
  }
  for (const char* offsets : {"[8,0]", "[0,-8]", "[-8,0]", "[0]", "[0,8,16]", "[0,9]", "[0.0,8]", "8", "[null,8]",
                              "[18446744073709551608,0]", "[18446744073709551615,7]", "[8,16]", "[1,9]"}) {
    INFO(offsets);
    CHECK(one(entry(R"("F32")", "[2]", offsets), 8) == "a");
  }
  CHECK(one("{}", 0) == "a");
  CHECK(one("[]", 0) == "a");
  CHECK(one(R"({"dtype":"U8","shape":[1]})", 1) == "a");
  CHECK(one(R"({"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":1})", 1) == "a");
  CHECK(refused(R"({"__metadata__":[]})", 0) == "__metadata__");
  CHECK(refused(R"({"__metadata__":{"k":1}})", 0) == "__metadata__.k");
}

TEST_CASE("arrays that overlap, leave holes, or do not fill the file are refused") {
  const auto two = [](const char* first, const char* second, std::size_t size) {
    return refused("{\"a\":" + entry(R"("U8")", "[4]", first) + ",\"b\":" + entry(R"("U8")", "[4]", second) + "}",
                   size);
  };
  CHECK(two("[0,4]", "[4,8]", 8) == "accepted");
  CHECK(two("[4,8]", "[0,4]", 8) == "accepted");
  CHECK(two("[0,4]", "[0,4]", 4) == "b");
  CHECK(two("[0,4]", "[2,6]", 6) == "b");
  CHECK(two("[0,4]", "[5,9]", 9) == "b");
  CHECK(two("[1,5]", "[5,9]", 9) == "a");
  CHECK(two("[0,4]", "[4,8]", 7) == "data");
  CHECK(two("[0,4]", "[4,8]", 9) == "data");
  CHECK(refused("{}", 1) == "data");
  // An empty array inside another one's data.
  CHECK(refused("{\"a\":" + entry(R"("U8")", "[4]", "[0,4]") + ",\"b\":" + entry(R"("U8")", "[0]", "[2,2]") + "}", 4) ==
        "b");
}

TEST_CASE("data that is not aligned to its elements is refused") {
  CHECK(refused("{\"a\":" + entry(R"("U8")", "[1]", "[0,1]") + ",\"b\":" + entry(R"("F32")", "[1]", "[1,5]") + "}",
                5) == "b");
  const std::string header = "{\"a\":" + entry(R"("F64")", "[1]", "[0,8]") + "}";
  std::string odd = header;
  while ((8 + odd.size()) % 8 != 4) odd += ' ';
  CHECK(parse(test::assembled(odd, std::string(8, '\0'))).error().where() == "a");
}

TEST_CASE("data that lies in memory off its elements is refused, empty arrays and bytes lie anywhere") {
  const std::vector<std::pair<std::string, std::size_t>> types = {{R"("U8")", 1},  {R"("U16")", 2}, {R"("I32")", 4},
                                                                  {R"("F32")", 4}, {R"("I64")", 8}, {R"("F64")", 8}};
  for (const auto& [type, size] : types)
    for (const bool empty : {false, true}) {
      const std::string end = empty ? "0" : std::to_string(size);
      const std::string file =
          file_with("{\"a\":" + entry(type, empty ? "[0]" : "[1]", "[0," + end + "]") + "}", empty ? 0 : size);
      const std::shared_ptr<std::byte[]> memory(new std::byte[file.size() + 16]);  // aligned to 16
      for (std::size_t offset = 0; offset <= 8; ++offset) {
        INFO(type << (empty ? ", empty" : "") << " at " << offset);
        std::copy_n(reinterpret_cast<const std::byte*>(file.data()), file.size(), memory.get() + offset);
        const auto result = strata::io::parse_safetensors({memory.get() + offset, file.size()}, memory);
        REQUIRE(result.ok() == (empty || offset % size == 0));
        if (!result) CHECK(result.error().where() == "a");
        if (!result) CHECK(result.error().found() == std::to_string(offset % size) + " bytes beyond such an address");
      }
    }
}

TEST_CASE("only a reader that asks for it takes a file cut after an array") {
  const std::string header =
      "{\"a\":" + entry(R"("U8")", "[4]", "[0,4]") + ",\"b\":" + entry(R"("U8")", "[4]", "[4,8]") + "}";
  for (std::size_t size = 0; size < 8; ++size) {
    INFO(size);
    CHECK_FALSE(parse(file_with(header, size)).ok());
    const auto prefix = parse(file_with(header, size), true);
    REQUIRE(prefix.ok() == (size % 4 == 0));
    if (prefix) CHECK(prefix.value().archive.arrays().size() == size / 4);
  }
}

TEST_CASE("every cut and every changed byte of a file is an error or an archive, never a crash") {
  const std::string file = laid_out(some_arrays()).file;
  for (std::size_t size = 0; size < file.size(); ++size) CHECK_FALSE(parse(file.substr(0, size)).ok());
  CHECK_FALSE(parse(file + '\0').ok());
  std::mt19937 random(11);
  int accepted = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string changed = file;
    for (int n = 0; n < 1 + i % 4; ++n) {
      char& byte = changed[random() % changed.size()];
      byte = i % 2 == 0 ? static_cast<char>(random()) : static_cast<char>(byte ^ (1 << (random() % 8)));
    }
    if (parse(changed, i % 3 == 0).ok()) ++accepted;
  }
  CHECK(accepted > 0);  // a changed number is still a number
}
