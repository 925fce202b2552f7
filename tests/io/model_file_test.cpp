// Model files: round trips, prefixes, and every kind of damage as a clear error.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include <strata/io/model_file.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/small_net.hpp"

namespace {

using strata::Level;

/// A directory of its own, removed at the end.
struct Directory {
  std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("strata_model_file_test" + std::to_string(::getpid()));
  Directory() { std::filesystem::create_directories(path); }
  ~Directory() { std::filesystem::remove_all(path); }
  [[nodiscard]] std::string file(const char* name) const { return (path / name).string(); }
};

std::string contents(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

void write(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string saved(const Directory& directory) {
  auto archive = test::small_archive();
  REQUIRE(strata::add_self_check<test::SmallNet>(archive).ok());
  const std::string path = directory.file("model.safetensors");
  REQUIRE(strata::io::write_model(archive, path).ok());
  return path;
}

std::vector<float> outputs(const strata::Model<test::SmallNet>& model, Level level) {
  strata::Session<strata::Model<test::SmallNet>> session(model);
  std::vector<float> input(81);
  for (std::size_t i = 0; i < input.size(); ++i) input[i] = static_cast<float>(i) / 81.0F;
  const auto output = session.run(input, level);
  return {output.begin(), output.end()};
}

strata::Result<strata::Archive> parse(const std::string& bytes) {
  const auto copy = std::make_shared<std::vector<std::byte>>(bytes.size());
  std::copy_n(reinterpret_cast<const std::byte*>(bytes.data()), bytes.size(), copy->begin());
  return strata::io::parse_model(*copy, copy);
}

/// The model file with `edit` applied to its header.
std::string with_header(const std::string& file, const std::function<void(nlohmann::json&)>& edit) {
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  const std::string data = file.substr(8 + length);
  nlohmann::json header = nlohmann::json::parse(file.substr(8, length));
  edit(header);
  std::string text = header.dump();
  while ((8 + text.size()) % 64 != 0) text += ' ';
  length = text.size();
  std::string result(8, '\0');
  std::memcpy(result.data(), &length, 8);
  return result + text + data;
}

}  // namespace

TEST_CASE("a model file gives back the same model, aligned, and its self-check passes") {
  const Directory directory;
  const std::string path = saved(directory);
  const auto original = test::SmallModel::from_archive(test::small_archive()).value();
  const auto loaded = strata::load<test::SmallNet>(path, {.self_check = true});
  CHECK(loaded.levels() == 2);
  CHECK(loaded.metadata().at("architecture") == test::SmallModel::Network::architecture);
  for (int level : {0, 1}) CHECK(outputs(loaded, Level{level}) == outputs(original, Level{level}));
  const auto archive = strata::io::read_model(path).value();
  for (const auto& view : archive.arrays())
    CHECK(reinterpret_cast<std::uintptr_t>(view.bytes.data()) % strata::io::file_alignment == 0);
}

TEST_CASE("the level-0 prefix of the file is the smaller model, bit for bit") {
  const Directory directory;
  const std::string path = saved(directory);
  const auto whole = strata::load<test::SmallNet>(path);
  const auto bytes = strata::io::prefix_bytes(path, Level{0}).value();
  const std::string file = contents(path);
  REQUIRE(bytes < file.size());
  write(directory.file("prefix.safetensors"), file.substr(0, bytes));
  const auto prefix = strata::load<test::SmallNet>(directory.file("prefix.safetensors"), {.self_check = true});
  CHECK(prefix.levels() == 1);
  CHECK(outputs(prefix, Level{0}) == outputs(whole, Level{0}));
  REQUIRE(strata::io::write_truncated(path, Level{0}, directory.file("small.safetensors")).ok());
  const auto small = strata::load<test::SmallNet>(directory.file("small.safetensors"), {.self_check = true});
  CHECK(small.levels() == 1);
  CHECK(outputs(small, Level{0}) == outputs(whole, Level{0}));
  CHECK_FALSE(strata::io::write_truncated(path, Level{2}, directory.file("none.safetensors")).ok());
}

TEST_CASE("a prefix has the levels that it holds and no others") {
  const Directory directory;
  const std::string path = saved(directory);
  const auto bytes = strata::io::prefix_bytes(path, Level{0}).value();
  CHECK(strata::io::prefix_bytes(path, Level{1}).value() == contents(path).size());
  CHECK(strata::io::prefix_bytes(path, Level{2}).error().where() == path);
  CHECK_FALSE(strata::io::prefix_bytes(path, Level{-1}).ok());
  const std::string prefix = directory.file("prefix.safetensors");
  write(prefix, contents(path).substr(0, bytes));
  CHECK(strata::io::prefix_bytes(prefix, Level{0}).value() == bytes);
  const auto beyond = strata::io::prefix_bytes(prefix, Level{1});
  REQUIRE_FALSE(beyond.ok());
  CHECK(beyond.error().where() == prefix);
  CHECK(beyond.error().expected() == "a level below 1");
}

TEST_CASE("what could not be read back is refused before anything is written") {
  const Directory directory;
  const std::string path = directory.file("model.safetensors");
  const std::vector<float> one = {1};
  const auto refused = [&](const std::function<void(strata::Archive&)>& edit) {
    strata::Archive archive;
    archive.add<float>("x", {1}, 0, one);
    archive.metadata()["note"] = "caf\xc3\xa9";
    edit(archive);
    write(path, "old");
    const auto status = strata::io::write_model(archive, path);
    if (status) {
      const auto again = strata::io::read_model(path).value();
      CHECK(again.metadata() == archive.metadata());
      CHECK(again.levels() == archive.levels());
      return std::string("accepted");
    }
    CHECK(contents(path) == "old");
    CHECK(status.error().where().starts_with(path));
    return status.error().where().substr(path.size()) + "|" + status.error().expected();
  };
  CHECK(refused([](auto&) {}) == "accepted");
  CHECK(refused([](auto& a) { a.set_levels(16); }) == "accepted");
  CHECK(refused([](auto& a) { a.set_levels(17); }) == "|1 to 16 levels");
  for (const int levels : {0, -1}) {
    strata::Archive empty;
    empty.set_levels(levels);
    CHECK(strata::io::write_model(empty, path).error().expected() == "1 to 16 levels");
  }
  CHECK(refused([&](auto& a) { a.template add<float>("y", std::vector<strata::index_t>(16, 1), 0, one); }) ==
        "accepted");
  CHECK(refused([&](auto& a) { a.template add<float>("y", std::vector<strata::index_t>(17, 1), 0, one); }) ==
        ": y|at most 16 extents");
  for (const auto& shape : {std::vector<strata::index_t>{1LL << 40, 1LL << 40, 0}, {0, 1LL << 63}, {1LL << 62, 0}})
    CHECK(refused([&](auto& a) { a.template add<float>("y", shape, 0, {}); }) ==
          ": y|as many bytes as its shape tells");
  CHECK(refused([](auto& a) { a.template add<float>("y", {0, 1LL << 62}, 0, {}); }) == "accepted");
  CHECK(refused([](auto& a) { a.metadata()["\xfe"] = "1"; }) == "|metadata keys in UTF-8");
  CHECK(refused([](auto& a) { a.metadata()["note"] = "caf\xe9"; }) == ": metadata note|text in UTF-8");
  CHECK(refused([](auto& a) { a.metadata()["strata.mine"] = "1"; }) ==
        ": metadata strata.mine|a key without leading strata.");
  CHECK(refused([](auto& a) { a.metadata()["stratagem"] = "1"; }) == "accepted");
  CHECK(refused([](auto& a) { a.metadata()["labels"] = std::string(strata::io::max_header_bytes, 'x'); }) ==
        "|names and metadata of at most 100000000 bytes");
}

TEST_CASE("a file at an address that its arrays are not aligned to is an error that names one") {
  const Directory directory;
  const std::string file = contents(saved(directory));
  const std::shared_ptr<std::byte[]> memory(new std::byte[file.size() + 16]);  // aligned to 16
  for (const std::size_t offset : {1U, 2U, 3U, 4U, 5U, 6U, 7U, 8U}) {
    INFO(offset);
    std::copy_n(reinterpret_cast<const std::byte*>(file.data()), file.size(), memory.get() + offset);
    const auto archive = strata::io::parse_model({memory.get() + offset, file.size()}, memory);
    REQUIRE(archive.ok() == (offset % 8 == 0));
    if (!archive) CHECK(archive.error().expected().starts_with("memory aligned to its elements"));
  }
}

TEST_CASE("a file cut anywhere but at a level's end is refused") {
  const Directory directory;
  const std::string path = saved(directory);
  const std::string file = contents(path);
  const auto end = strata::io::prefix_bytes(path, Level{0}).value();
  for (std::size_t size = 0; size < file.size(); ++size) {
    INFO(size);
    CHECK(parse(file.substr(0, size)).ok() == (size == end));
  }
  CHECK_FALSE(parse(file + "x").ok());
}

TEST_CASE("changed bytes never crash") {
  const Directory directory;
  const std::string file = contents(saved(directory));
  std::mt19937 random(5);
  int accepted = 0;
  for (int i = 0; i < 4000; ++i) {
    std::string changed = file;
    for (int n = 0; n < 1 + i % 3; ++n)
      changed[i % 2 == 0 ? random() % changed.size() : random() % 2000] = static_cast<char>(random());
    auto archive = parse(changed);
    if (archive && strata::Model<test::SmallNet>::from_archive(archive.value()).ok()) ++accepted;
  }
  CHECK(accepted > 0);  // a changed weight is still a weight
}

TEST_CASE("damaged headers are errors that say what was expected") {
  const Directory directory;
  const std::string file = contents(saved(directory));
  const auto refused = [&](const std::function<void(nlohmann::json&)>& edit) {
    const auto archive = parse(with_header(file, edit));
    if (!archive) return archive.error().where();
    const auto model = strata::Model<test::SmallNet>::from_archive(archive.value());
    return model ? std::string("accepted") : model.error().where();
  };
  const std::string values = "conv.weight.values.0";
  CHECK(refused([](nlohmann::json&) {}) == "accepted");
  CHECK(refused([&](nlohmann::json& h) { h[values]["data_offsets"] = {0, 1ULL << 40}; }) == values);
  CHECK(refused([&](nlohmann::json& h) { h[values]["data_offsets"][0] = -4; }) == values);
  CHECK(refused([&](nlohmann::json& h) { h[values]["shape"] = {1.5}; }) == values);
  CHECK(refused([&](nlohmann::json& h) { h[values]["shape"] = {-1}; }) == values);
  CHECK(refused([&](nlohmann::json& h) { h[values]["shape"] = {1ULL << 40, 1ULL << 40}; }) == values);
  CHECK(refused([&](nlohmann::json& h) { h[values]["dtype"] = "BF16"; }) == values);
  CHECK(refused([&](nlohmann::json& h) { h[values]["dtype"] = "U32"; }) == values);
  CHECK(refused([&](nlohmann::json& h) { h.erase(values); }) != "accepted");
  CHECK(refused([&](nlohmann::json& h) {  // two arrays at one place
          h["extra"] = h[values];
        }) != "accepted");
  CHECK(refused([](nlohmann::json& h) {
          h["extra"] = {{"dtype", "F32"}, {"shape", {0}}, {"data_offsets", {0, 0}}};
        }) == "extra");
  CHECK(refused([](nlohmann::json& h) { h["__metadata__"]["strata.format_version"] = "2"; }) ==
        "metadata strata.format_version");
  CHECK(refused([](nlohmann::json& h) { h["__metadata__"]["strata.levels"] = "1e999"; }) == "metadata strata.levels");
  CHECK(refused([](nlohmann::json& h) { h["__metadata__"]["strata.stratum_end.0"] = "1"; }) != "accepted");
  CHECK(refused([](nlohmann::json& h) { h["__metadata__"]["architecture"] = "other"; }) == "architecture");
  CHECK(refused([](nlohmann::json& h) { h["__metadata__"]["config.width"] = "9"; }) != "accepted");
  std::string long_header = file;
  long_header[5] = 1;
  CHECK_FALSE(parse(long_header).ok());
  std::string infinite = file;
  infinite.replace(infinite.find("\"shape\":["), 13, "\"shape\":[1e999");
  CHECK_FALSE(parse(infinite).ok());
}

TEST_CASE("columns beyond the layer and unsorted columns are errors that name the layer") {
  const Directory directory;
  auto archive = strata::io::read_model(saved(directory)).value();
  const auto damaged = [&](std::uint8_t first, std::uint8_t second) {
    strata::Archive copy;
    copy.set_levels(2);
    copy.metadata() = archive.metadata();
    for (const auto& view : archive.arrays()) {
      if (view.name == "conv.weight.indices.0") {
        const auto old = view.as<std::uint8_t>();
        std::vector<std::uint8_t> indices(old.begin(), old.end());
        indices[0] = first;
        indices[1] = second;
        copy.add<std::uint8_t>(view.name, view.shape, 0, indices);
      } else {
        copy.add_view(view);
      }
    }
    return strata::Model<test::SmallNet>::from_archive(copy).error().where();
  };
  CHECK(damaged(200, 201).starts_with("conv.weight"));
  CHECK(damaged(3, 2).starts_with("conv.weight"));
}

TEST_CASE("a model that was read rather than mapped outlives its file") {
  const Directory directory;
  const std::string path = saved(directory);
  const auto mapped = strata::load<test::SmallNet>(path);
  const auto model = strata::load<test::SmallNet>(path, {.self_check = true, .mapped = false});
  CHECK(model.fingerprint() == mapped.fingerprint());
  CHECK_THROWS_AS(model.release_above(Level{0}), strata::Error);
  strata::Session session(model);
  const std::vector<float> image(81, 0.5F);
  const auto before = session.run(image, Level{1});
  const std::vector<float> kept(before.begin(), before.end());
  std::filesystem::resize_file(path, 0);
  const auto after = session.run(image, Level{1});
  CHECK(std::equal(kept.begin(), kept.end(), after.begin(), after.end()));
  CHECK_FALSE(strata::try_load<test::SmallNet>(path, {.mapped = false}).ok());
}

TEST_CASE("memory that cannot be had for a file is an error that names it") {
  const Directory directory;
  const std::string path = saved(directory);
  const FailingAllocations failing(std::filesystem::file_size(path));
  CHECK(strata::try_load<test::SmallNet>(path, {.mapped = false}).error().where().starts_with(path));
}

TEST_CASE("an interrupted save leaves the old file whole") {
  const Directory directory;
  const std::string path = saved(directory);
  const std::string before = contents(path);
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1000, 1000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    ::_exit(strata::io::write_model(test::small_archive(), path).ok() ? 1 : 0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK(status == 0);
  CHECK(contents(path) == before);
  CHECK(std::distance(std::filesystem::directory_iterator(directory.path), std::filesystem::directory_iterator()) == 1);
  CHECK_FALSE(strata::try_load<test::SmallNet>(directory.file("missing")).ok());
}
