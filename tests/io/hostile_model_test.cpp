// Model files made to do harm: every damage is an error that names a layer, an array or a metadata key, or it leaves a
// model that runs. Bytes lie in allocations of exactly their size, so that the address sanitizer sees overreads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <strata/io/model_file.hpp>

#include "io/file_bytes.hpp"
#include "support/catch.hpp"
#include "support/small_net.hpp"

namespace {

using nlohmann::json;
using strata::Level;
using test::SmallModel;

const std::string accepted = "accepted";

std::string file_of(const strata::Archive& archive) {
  const test::Directory directory;
  const std::string path = directory.file("model.safetensors");
  (void)strata::io::write_model(archive, path).value();
  return test::contents(path);
}

/// A saved model of two levels with a self-check.
const std::string& model_file() {
  static const std::string file = [] {
    auto archive = test::small_archive();
    (void)strata::add_self_check<test::SmallNet>(archive).value();
    return file_of(archive);
  }();
  return file;
}

std::string level_0_prefix(const std::string& file) {
  const std::string end = test::header_of(file)["__metadata__"]["strata.stratum_end.0"];
  return file.substr(0, 8 + test::header_length(file) + std::stoull(end));
}

strata::Result<SmallModel> model_of(const std::string& bytes) {
  const auto copy = test::exact_copy(bytes);
  const auto archive = strata::io::parse_model({copy.get(), bytes.size()}, copy);
  if (!archive) return archive.error();
  return SmallModel::from_archive(archive.value());
}

/// The outputs of all levels one after the other.
std::vector<float> outputs(const SmallModel& model) {
  strata::Session<SmallModel> session(model);
  std::vector<float> input(session.input().size());
  for (std::size_t i = 0; i < input.size(); ++i) input[i] = static_cast<float>(i % 7) - 3.0F;
  std::vector<float> result;
  for (int level = 0; level < model.levels(); ++level) {
    const auto output = session.run(input, Level{level});
    result.insert(result.end(), output.begin(), output.end());
  }
  return result;
}

/// Where the error is, or "accepted" after every level has run.
std::string refused(const std::string& bytes) {
  const auto model = model_of(bytes);
  if (!model) return model.error().where();
  return outputs(model.value()).empty() ? "no output" : accepted;
}

std::string refused(const std::function<void(json&)>& edit) {
  return refused(test::with_header(model_file(), edit));
}

std::string refused_metadata(const std::string& key, const json& value) {
  return refused([&](json& header) { header["__metadata__"][key] = value; });
}

template <class T>
std::string refused_data(const std::string& name, const std::function<void(std::vector<T>&)>& edit) {
  return refused(test::with_data<T>(model_file(), name, edit));
}

/// The model's archive without `left_out`.
strata::Archive archive_without(std::string_view left_out) {
  const strata::Archive whole = test::small_archive();
  strata::Archive archive;
  archive.set_levels(whole.levels());
  archive.metadata() = whole.metadata();
  for (const auto& view : whole.arrays())
    if (view.name != left_out) archive.add_view(view);
  for (const auto& owner : whole.owners()) archive.keep(owner);
  return archive;
}

bool names_an_array(const std::string& where) {
  return where != "__metadata__" && test::header_of(model_file()).contains(where);
}

/// `file` with the array `name` described by the raw JSON `text`.
std::string with_entry(const std::string& file, const std::string& name, const std::string& text) {
  return test::with_text(test::with_header(file, [&](json& header) { header[name] = "here"; }), "\"here\"", text);
}

}  // namespace

TEST_CASE("a model cut at any length is an error, or the smaller model at a stratum's end") {
  const std::string& file = model_file();
  const std::size_t smaller = level_0_prefix(file).size();
  const std::size_t header_end = 8 + test::header_length(file);
  int loaded = 0;
  for (std::size_t size = 0; size < file.size(); ++size) {
    INFO(size);
    const std::string where = refused(file.substr(0, size));
    if (size == smaller) {
      CHECK(where == accepted);
      ++loaded;
    } else {
      CHECK(where == (size < header_end ? "header" : "data"));
    }
  }
  CHECK(loaded == 1);
  CHECK(refused(file) == accepted);
}

TEST_CASE("each changed byte of the header is an error that says where, or a model that runs") {
  const std::string& file = model_file();
  int loaded = 0;
  for (const int mask : {0x01, 0x10, 0x80})
    for (std::size_t at = 0; at < 8 + test::header_length(file); ++at) {
      std::string changed = file;
      changed[at] = static_cast<char>(changed[at] ^ mask);
      INFO("byte " << at << " mask " << mask);
      const std::string where = refused(changed);
      CHECK_FALSE(where.empty());
      if (where == accepted) ++loaded;
    }
  CHECK(loaded > 0);  // the spaces at the end, the names of the padding
}

TEST_CASE("header lengths that do not fit are errors of the header") {
  std::string file = model_file();
  const std::uint64_t length = test::header_length(file);
  for (const std::uint64_t wrong : {std::uint64_t{0}, std::uint64_t{1}, length - 64, length + 64,
                                    std::uint64_t{file.size() - 7}, std::uint64_t{file.size()}, std::uint64_t{1} << 32,
                                    std::uint64_t{1} << 63, ~std::uint64_t{0} - 7, ~std::uint64_t{0}}) {
    std::memcpy(file.data(), &wrong, 8);
    INFO(wrong);
    CHECK(refused(file) == "header");
  }
}

TEST_CASE("data that a longer header moves off its alignment is refused, wherever it still is aligned it is read") {
  const std::string& file = model_file();
  const std::string header = file.substr(8, test::header_length(file));
  const std::string data = file.substr(8 + header.size());
  for (std::size_t spaces = 1; spaces <= 64; ++spaces) {
    INFO(spaces);
    const std::string where = refused(test::assembled(header + std::string(spaces, ' '), data));
    if (spaces % 8 == 0) {
      CHECK(where == accepted);
    } else {
      CHECK(names_an_array(where));
    }
  }
}

TEST_CASE("arrays whose places are out of range, overlap or leave holes are errors that name an array") {
  const json header = test::header_of(model_file());
  for (const std::string name : {"conv.weight.indices.0", "fc.weight.values.1", "bn.bias.1", "conv.weight.shape"}) {
    const json old = header[name]["data_offsets"];
    const auto begin = old[0].get<std::uint64_t>();
    const auto end = old[1].get<std::uint64_t>();
    const std::uint64_t far = std::uint64_t{1} << 63;
    const std::vector<std::pair<std::uint64_t, std::uint64_t>> places = {
        {begin + 8, end + 8},
        {begin - 8, end - 8},
        {begin + 64, end + 64},
        {end, begin},
        {begin, end + 8},
        {begin, end - 4},
        {begin, begin},
        {0, end - begin},
        {far, far + end - begin},
        {end - begin, 0},
        {~std::uint64_t{0}, end - begin - 1},
        {begin + 1, end + 1},
        {model_file().size(), model_file().size() + end - begin}};
    for (const auto& place : places) {
      INFO(name << " " << place.first << " " << place.second);
      if (place.first == begin && place.second == end) continue;
      const std::string where = refused([&](json& h) { h[name]["data_offsets"] = {place.first, place.second}; });
      CHECK(names_an_array(where));
    }
    for (const json& offsets : {json(nullptr), json("0"), json::array(), json{1}, json{0, 1, 2}, json{0.5, 1},
                                json{-1, 1}, json{"0", "1"}, json{json::array(), 1}, json{true, 1}}) {
      INFO(name << " " << offsets);
      CHECK(refused([&](json& h) { h[name]["data_offsets"] = offsets; }) == name);
    }
  }
}

TEST_CASE("arrays of two levels that changed places leave a prefix that lacks a parameter") {
  const std::string swapped = test::with_header(
      model_file(), [](json& h) { std::swap(h["bn.scale.0"]["data_offsets"], h["bn.scale.1"]["data_offsets"]); });
  CHECK_FALSE(refused(swapped).empty());
  CHECK(refused(level_0_prefix(swapped)) == "bn.scale.0");
}

TEST_CASE("shapes that are no shapes or whose product leaves the integers are errors that name the array") {
  const std::string name = "conv.weight.values.1";
  const json old = test::header_of(model_file())[name];
  const auto described = [&](const std::string& shape, const std::string& offsets) {
    return refused(
        with_entry(model_file(), name, R"({"dtype":"F32","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}"));
  };
  CHECK(described(old["shape"].dump(), old["data_offsets"].dump()) == accepted);
  const std::string begin = old["data_offsets"][0].dump();
  for (const std::string& offsets : {old["data_offsets"].dump(), "[" + begin + "," + begin + "]"})
    for (const char* shape : {"[]",
                              "[0]",
                              "[-1]",
                              "[-0]",
                              "[18.0]",
                              "[1e1]",
                              "[\"18\"]",
                              "[null]",
                              "[[18]]",
                              "18",
                              "{}",
                              "null",
                              "[9223372036854775807]",
                              "[9223372036854775808]",
                              "[18446744073709551615]",
                              "[18446744073709551616]",
                              "[4611686018427387904]",
                              "[2147483648,2147483648,4]",
                              "[4294967296,4294967296]",
                              "[0,9223372036854775808]",
                              "[0,4611686018427387904,4611686018427387904]",
                              "[4611686018427387904,4,0]",
                              "[3037000500,3037000500,0,3037000500]",
                              "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,18]"}) {
      INFO(shape << " " << offsets);
      const std::string where = described(shape, offsets);
      CHECK(names_an_array(where));
    }
  for (const char* shape : {"[1e999]", "[NaN]", "[-Infinity]", "[18,]", "[018]", "[0x12]"}) {
    INFO(shape);
    CHECK(described(shape, old["data_offsets"].dump()) == "header");
  }
}

TEST_CASE("arrays of another type than the layer's are errors that name them") {
  const strata::Archive whole = test::small_archive();
  for (const auto& view : whole.arrays()) {
    for (const auto& [type, size] : std::vector<std::pair<const char*, strata::index_t>>{
             {"U8", 1}, {"U16", 2}, {"U32", 4}, {"I32", 4}, {"F32", 4}, {"I64", 8}, {"F64", 8}}) {
      if (type == strata::name_of(view.type)) continue;
      INFO(view.name << " " << type);
      const auto bytes = static_cast<strata::index_t>(view.bytes.size());
      CHECK(refused([&, type = type, size = size](json& h) {
              h[view.name]["dtype"] = type;
              h[view.name]["shape"] = {bytes / size};
              if (bytes % size != 0) h[view.name]["shape"] = view.shape;
            }) == view.name);
    }
    for (const json& type : {json("F16"), json("f32"), json(""), json(5), json(nullptr), json::array()}) {
      INFO(view.name << " " << type);
      CHECK(refused([&](json& h) { h[view.name]["dtype"] = type; }) == view.name);
    }
  }
}

TEST_CASE("columns beyond the block, repeated or out of order are errors that name the layer") {
  using U8 = std::vector<std::uint8_t>;
  using U16 = std::vector<std::uint16_t>;
  for (const std::string stratum : {"0", "1"}) {
    const std::string conv = "conv.weight.indices." + stratum;
    const std::string fc = "fc.weight.indices." + stratum;
    for (const int column : {9, 10, 127, 128, 254, 255}) {
      INFO(column);
      CHECK(refused_data<std::uint8_t>(conv, [&](U8& i) {
              i.back() = static_cast<std::uint8_t>(column);
            }).starts_with("conv.weight"));
    }
    for (const int column : {8, 9, 255, 256, 32768, 65535}) {
      INFO(column);
      CHECK(refused_data<std::uint16_t>(fc, [&](U16& i) {
              i.back() = static_cast<std::uint16_t>(column);
            }).starts_with("fc.weight"));
    }
    CHECK(refused_data<std::uint8_t>(conv, [](U8& i) { i[1] = i[0]; }).starts_with("conv.weight"));
    CHECK(refused_data<std::uint16_t>(fc, [](U16& i) { std::swap(i[0], i[1]); }).starts_with("fc.weight"));
  }
  // Row 0 of the convolution: columns 0, 4, 8 at level 0, columns 1, 5 at level 1.
  const auto conv = SmallModel::from_archive(test::small_archive()).value();
  const auto& matrix = conv.network().conv.weights().sparse();
  std::size_t at = 0;  // of row 0 in stratum 1
  for (strata::index_t position = 0; matrix.row_at(0, position) != 0; ++position)
    at += matrix.stratum(1).lengths[static_cast<std::size_t>(position)];
  CHECK(refused_data<std::uint8_t>("conv.weight.indices.1", [&](U8& i) { i[at + 1] = 8; }).starts_with("conv.weight"));
  CHECK(refused_data<std::uint8_t>("conv.weight.indices.1", [&](U8& i) { i[at + 1] = 7; }) == accepted);
}

TEST_CASE("row lengths that do not add up or reach into other rows are errors that name the layer") {
  const auto edited = [](const auto& change) {
    std::vector<std::string> places;
    for (const std::string stratum : {"0", "1"}) {
      places.push_back(
          refused_data<std::uint8_t>("conv.weight.lengths." + stratum, [&](auto& lengths) { change(lengths); }));
      places.push_back(
          refused_data<std::uint16_t>("fc.weight.lengths." + stratum, [&](auto& lengths) { change(lengths); }));
    }
    return places[0].starts_with("conv.weight") && places[1].starts_with("fc.weight") &&
           places[2].starts_with("conv.weight") && places[3].starts_with("fc.weight");
  };
  CHECK(edited([](auto& lengths) { ++lengths.back(); }));
  CHECK(edited([](auto& lengths) { --lengths.back(); }));
  CHECK(edited([](auto& lengths) { std::fill(lengths.begin(), lengths.end(), std::uint8_t{0}); }));
  CHECK(edited([](auto& lengths) { std::fill(lengths.begin(), lengths.end(), static_cast<std::uint8_t>(~0U)); }));
  CHECK(edited([]<class T>(std::vector<T>& lengths) {
    std::fill(lengths.begin(), lengths.end(), std::numeric_limits<T>::max());
  }));
  CHECK(edited([]<class T>(std::vector<T>& lengths) {  // the sum holds, the rows do not
    T sum{0};
    for (T& length : lengths) sum = static_cast<T>(sum + std::exchange(length, T{0}));
    lengths[0] = sum;
  }));
}

TEST_CASE("an order of rows that is not one is an error that names the layer") {
  using U8 = std::vector<std::uint8_t>;
  for (const std::string layer : {"conv.weight", "fc.weight"}) {
    CHECK(refused_data<std::uint8_t>(layer + ".order", [](U8& order) { order[1] = order[0]; }).starts_with(layer));
    CHECK(refused_data<std::uint8_t>(layer + ".order", [](U8& order) { order[0] = 8; }).starts_with(layer));
    CHECK(refused_data<std::uint8_t>(layer + ".order", [](U8& order) { order.back() = 255; }).starts_with(layer));
  }
}

TEST_CASE("matrix shapes other than the layer's and impossible block widths are errors that name the layer") {
  using I64 = std::vector<std::int64_t>;
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  for (const std::string layer : {"conv.weight", "fc.weight"})
    for (const std::size_t at : {0U, 1U, 2U, 3U})
      for (const std::int64_t value : {std::int64_t{0}, std::int64_t{-1}, std::int64_t{1}, std::int64_t{1} << 32, most,
                                       most - 1, -most - 1, std::int64_t{65536}}) {
        if (at == 3 && value == 1) continue;  // groups of one row are not in order

        INFO(layer << " " << at << " " << value);
        CHECK(refused_data<std::int64_t>(layer + ".shape", [&](I64& shape) { shape[at] = value; }).starts_with(layer));
      }
}

TEST_CASE("whatever block width a file has, the outputs are the same or it is refused") {
  const auto expected = outputs(model_of(model_file()).value());
  const auto reference = SmallModel::from_archive(test::small_archive()).value();
  for (const strata::index_t width : {1, 2, 3, 4, 5, 7, 8, 9, 10, 64, 144, 254, 255}) {
    strata::Archive archive = archive_without("");
    strata::Archive changed;
    changed.set_levels(2);
    changed.metadata() = archive.metadata();
    for (const auto& view : archive.arrays())
      if (!view.name.starts_with("conv.weight.")) changed.add_view(view);
    const auto& old = reference.network().conv.weights().sparse();
    const auto level_0 = old.to_dense(Level{0});
    const auto level_1 = old.to_dense(Level{1});
    std::vector<std::uint8_t> strata(level_1.size(), strata::StratumMap::absent);
    for (std::size_t i = 0; i < strata.size(); ++i)
      strata[i] = level_0[i] != 0.0F ? 0 : (level_1[i] != 0.0F ? 1 : strata::StratumMap::absent);
    strata::ParameterSink(changed).leveled_csr(
        "conv.weight", strata::LeveledCsr<float, std::uint8_t>::from_dense(
                           level_1, strata::StratumMap::from_strata(8, 9, 2, strata).value(), width));
    INFO(width);
    const auto model = model_of(file_of(changed));
    REQUIRE(model.ok());
    const auto found = outputs(model.value());
    REQUIRE(found.size() == expected.size());
    for (std::size_t i = 0; i < found.size(); ++i) CHECK(std::abs(found[i] - expected[i]) < 1e-4F);
  }
}

TEST_CASE("weights and scales that are not finite are weights and scales") {
  for (const float value : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN(),
                            std::numeric_limits<float>::denorm_min(), -std::numeric_limits<float>::max()})
    for (const char* name : {"conv.weight.values.0", "fc.weight.values.1", "bn.scale.1", "fc.bias"}) {
      INFO(name << " " << value);
      CHECK(refused_data<float>(name, [&](auto& values) { std::fill(values.begin(), values.end(), value); }) ==
            accepted);
    }
}

TEST_CASE("each parameter that is missing or renamed is an error that names its layer") {
  const strata::Archive whole = test::small_archive();
  for (const auto& view : whole.arrays()) {
    INFO(view.name);
    const std::string where = refused(file_of(archive_without(view.name)));
    // Without its shape a matrix would be dense.
    CHECK(where == (view.name.ends_with(".shape") ? view.name.substr(0, view.name.size() - 6) : view.name));
    const std::string renamed = refused([&](json& h) {
      h["x." + view.name] = h[view.name];
      h.erase(view.name);
    });
    CHECK(renamed == where);
  }
}

TEST_CASE("each parameter that nobody asked for is an error that names it") {
  const std::vector<float> values(72, 0.5F);
  for (const char* name :
       {"conv.weight", "conv.bias", "bn.scale.2", "bn.scale.00", "conv.weight.values.2", "fc.scale.0",
        "conv.weight.shape.0", "Conv.weight", "", "self_check", " fc.bias", "strata."}) {
    strata::Archive archive = archive_without("");
    archive.add<float>(name, {8, 1, 3, 3}, 1, values);
    INFO(name);
    CHECK(refused(file_of(archive)) == name);
  }
}

TEST_CASE("another network's parameters or config are errors that name a layer, an array or a key") {
  strata::Archive other;
  other.set_levels(2);
  other.metadata() = test::small_archive().metadata();
  const std::vector<float> values(16, 0.5F);
  other.add<float>("layer1.0.conv1.weight", {16}, 0, values);
  other.add<float>("layer1.0.conv1.bias", {16}, 1, values);
  CHECK(refused(file_of(other)) == "conv.weight");
  strata::Archive empty;
  empty.metadata() = other.metadata();
  CHECK(refused(file_of(empty)) == "conv.weight");
  for (const char* name : {"Small", "", "small ", "smal", "small2"})
    CHECK(refused_metadata("architecture", name) == "architecture");
  CHECK(refused([](json& h) { h["__metadata__"].erase("architecture"); }) == "metadata");
  CHECK(refused_metadata("architecture", std::string("small\0", 6)) == "architecture");
  for (const char* width :
       {"", " 8", "8 ", "+8", "0x8", "8.0", "8e0", "eight", "99999999999999999999", "-9223372036854775809", "nan"}) {
    INFO(width);
    CHECK(refused_metadata("config.width", width) == "metadata config.width");
  }
  CHECK(refused([](json& h) { h["__metadata__"].erase("config.width"); }) == "metadata config.width");
  CHECK(refused_metadata("config.depth", "3") == "metadata config.depth");
  CHECK(refused_metadata("config.", "3") == "metadata config.");
  CHECK(refused_metadata("config.width", 8) == "__metadata__.config.width");
  for (const char* width : {"1", "7", "16", "4294967296", "68719476736"}) {
    INFO(width);
    CHECK(refused_metadata("config.width", width).starts_with("conv.weight"));
  }
}

TEST_CASE("a config that describes no layer is an error value, not an exception") {
  for (const char* width : {"0", "-1", "-9223372036854775808", "1099511627776", "9223372036854775807"}) {
    INFO(width);
    CHECK(refused_metadata("config.width", width).starts_with("config: "));
  }
}

TEST_CASE("matrix and parameters that fit a config of their own are judged by the network") {
  // The shape in the file agrees with a huge config; what is stored does not.
  const std::string huge =
      test::with_header(model_file(), [](json& h) { h["__metadata__"]["config.width"] = "68719476736"; });
  for (const std::int64_t block : {1, 9, 255}) {
    INFO(block);
    const std::string where = refused(test::with_data<std::int64_t>(huge, "conv.weight.shape", [&](auto& shape) {
      shape[0] = 68719476736;
      shape[2] = block;
    }));
    CHECK(where.starts_with("conv.weight"));
  }
}

TEST_CASE("format versions and numbers of levels that are not known are errors that name the key") {
  const std::string version = "strata.format_version";
  for (const char* text : {"", "0", "1.0", " 1", "01", "1 ", "10", "-1", "one"})
    CHECK(refused_metadata(version, text) == "metadata " + version);
  CHECK(refused_metadata(version, 1) == "__metadata__." + version);
  CHECK(refused([&](json& h) { h["__metadata__"].erase(version); }) == "metadata " + version);
  CHECK(refused([&](json& h) { h.erase("__metadata__"); }) == "metadata " + version);
  const std::string levels = "strata.levels";
  for (const char* text : {"", "0", "256", "-1", "two", "1.5", " 2", "2 ", "18446744073709551616", "4294967298"}) {
    INFO(text);
    CHECK(refused_metadata(levels, text) == "metadata " + levels);
  }
  CHECK(refused_metadata(levels, 2) == "__metadata__." + levels);
  CHECK(refused([&](json& h) { h["__metadata__"].erase(levels); }) == "metadata " + levels);
  CHECK(refused_metadata(levels, "1") == "metadata strata.stratum_end.0");
  CHECK(refused_metadata(levels, "3") == "metadata strata.stratum_end.2");
  CHECK(refused_metadata(levels, "16") == "metadata strata.stratum_end.2");
  CHECK(refused_metadata(levels, "17") == "metadata " + levels);
  for (const int more : {3, 16, 17, 255}) {  // up to 16 levels the next matrix is missing, beyond they are too many
    INFO(more);
    CHECK(refused([&](json& h) {
            json& metadata = h["__metadata__"];
            metadata[levels] = std::to_string(more);
            for (int s = 2; s < more; ++s)
              metadata["strata.stratum_end." + std::to_string(s)] = metadata["strata.stratum_end.1"];
          }) == (more > 16 ? "metadata " + levels : "conv.weight.values.2"));
  }
}

TEST_CASE("ends of strata that are not ascending ends of arrays are errors that name the key") {
  const json metadata = test::header_of(model_file())["__metadata__"];
  for (const std::string stratum : {"0", "1"}) {
    const std::string key = "strata.stratum_end." + stratum;
    const auto end = std::stoull(metadata[key].get<std::string>());
    for (const std::string& text :
         {std::string(), std::string("-1"), std::string("1e3"), std::string("0x40"), std::to_string(end + 1),
          std::to_string(end - 1), std::string("18446744073709551615"), std::string("18446744073709551616"),
          std::string("9223372036854775808"), " " + std::to_string(end), std::to_string(end) + ".0"}) {
      INFO(key << " " << text);
      CHECK(refused_metadata(key, text) == "metadata " + key);
    }
    CHECK(refused([&](json& h) { h["__metadata__"].erase(key); }) == "metadata " + key);
    CHECK(refused_metadata(key, end) == "__metadata__." + key);
  }
  CHECK(refused_metadata("strata.stratum_end.1", "0") == "metadata strata.stratum_end.1");
  // An end that is some array's: the whole file may pass, the prefix of that length lacks parameters.
  const strata::Archive whole = test::small_archive();
  for (const auto& view : whole.arrays()) {
    const json offsets = test::header_of(model_file())[view.name]["data_offsets"];
    const std::string changed = test::with_header(
        model_file(), [&](json& h) { h["__metadata__"]["strata.stratum_end.0"] = offsets[1].dump(); });
    INFO(view.name);
    CHECK_FALSE(refused(changed).empty());
    // After the bias, the last parameter of level 0, comes only the self-check.
    if (view.stratum == 0) CHECK((refused(level_0_prefix(changed)) == accepted) == (view.name == "fc.bias"));
  }
  const std::string nothing =
      test::with_header(model_file(), [](json& h) { h["__metadata__"]["strata.stratum_end.0"] = "0"; });
  CHECK(refused(level_0_prefix(nothing)) == "conv.weight");
}

TEST_CASE("errors of files name the file and the array") {
  const test::Directory directory;
  const std::string path = directory.file("model.safetensors");
  const auto where = [&](const std::string& bytes, bool self_check = false) {
    test::write(path, bytes);
    const auto model = strata::try_load<test::SmallNet>(path, {.self_check = self_check});
    return model ? accepted : model.error().where();
  };
  CHECK(where(model_file(), true) == accepted);
  CHECK(where("") == path + ": header");
  CHECK(where(model_file().substr(0, model_file().size() - 1)) == path + ": data");
  CHECK(where(file_of(archive_without("fc.bias"))) == path + ": fc.bias");
  CHECK(where(test::with_data<std::uint16_t>(model_file(), "fc.weight.indices.0", [](auto& i) {
          i[0] = 8;
        })).starts_with(path + ": fc.weight: stratum 0 row 0"));
  test::write(path, model_file().substr(0, 100));
  CHECK(strata::io::prefix_bytes(path, Level{0}).error().where() == path + ": header");
  CHECK(strata::io::write_truncated(path, Level{0}, directory.file("x")).error().where() == path + ": header");
  test::write(path, model_file());
  for (const int level : {-1, 2, std::numeric_limits<int>::max(), std::numeric_limits<int>::min()}) {
    CHECK(strata::io::prefix_bytes(path, Level{level}).error().where() == path);
    CHECK(strata::io::write_truncated(path, Level{level}, directory.file("x")).error().where() == path);
  }
  CHECK(directory.files() == 1);
}

TEST_CASE("self-checks that are damaged are errors that name them") {
  const auto where = [](const std::string& bytes) {
    const auto copy = test::exact_copy(bytes);
    const auto archive = strata::io::parse_model({copy.get(), bytes.size()}, copy).value();
    const auto status = strata::run_self_check(SmallModel::from_archive(archive).value(), archive);
    return status ? accepted : status.error().where();
  };
  const auto with_header = [&](const std::function<void(json&)>& edit) {
    return where(test::with_header(model_file(), edit));
  };
  const auto with_output = [&](float value) {
    return where(test::with_data<float>(model_file(), "self_check.output.1", [&](auto& v) { v[2] = value; }));
  };
  CHECK(where(model_file()) == accepted);
  CHECK(where(file_of(test::small_archive())) == "self_check.input");
  for (const std::string name : {"self_check.input", "self_check.output.0", "self_check.output.1"}) {
    CHECK(with_header([&](json& h) { h[name]["dtype"] = "U32"; }) == name);
    CHECK(with_header([&](json& h) {
            h["self_check.else"] = h[name];
            h.erase(name);
          }) == name);
    CHECK(with_header([&](json& h) {  // fewer elements than the model has
            h[name]["dtype"] = "U8";
            h[name]["shape"][0] = h[name]["shape"][0].get<int>() * 4;
          }) == name);
  }
  CHECK(with_output(1e9F).starts_with("self-check of level 1"));
  CHECK(with_output(std::numeric_limits<float>::quiet_NaN()) == "self-check of level 1, output 2");
  CHECK(where(test::with_data<float>(model_file(), "self_check.input", [](auto& values) {
          std::fill(values.begin(), values.end(), std::numeric_limits<float>::quiet_NaN());
        })).starts_with("self-check of level 0"));
}

TEST_CASE("a stored output that is infinite does not make every other output right") {
  const std::string bytes = test::with_data<float>(model_file(), "self_check.output.1", [](auto& values) {
    values = {std::numeric_limits<float>::infinity(), 1e9F, 1e9F, 1e9F, 1e9F};
  });
  const auto copy = test::exact_copy(bytes);
  const auto archive = strata::io::parse_model({copy.get(), bytes.size()}, copy).value();
  CHECK_FALSE(strata::run_self_check(SmallModel::from_archive(archive).value(), archive).ok());
}

TEST_CASE("an archive that cannot be read back is refused when it is written") {
  const test::Directory directory;
  const auto written = [&](const char* name, std::vector<strata::index_t> shape) {
    strata::Archive archive = archive_without("");
    const std::vector<float> one = {1.0F};
    archive.add<float>(name, std::move(shape), 0, one);
    return strata::io::write_model(archive, directory.file("model.safetensors")).ok();
  };
  CHECK(written("good", {1}));
  CHECK_FALSE(written("two", {2}));
  CHECK_FALSE(written("negative", {-1}));
  CHECK_FALSE(written("\xff", {1}));
}
