// Writes the seed files of model_file_fuzz into the directory given: a valid model, its prefix and damaged ones.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <strata/io/model_file.hpp>

#include "io/file_bytes.hpp"
#include "support/small_net.hpp"

namespace {

using nlohmann::json;

std::string file_of(const strata::Archive& archive) {
  const test::Directory directory;
  const std::string path = directory.file("model.safetensors");
  (void)strata::io::write_model(archive, path).value();
  return test::contents(path);
}

/// A model whose weights are dense.
strata::Archive dense_archive() {
  const strata::Archive sparse = test::small_archive();
  strata::Archive archive;
  archive.set_levels(1);
  archive.metadata() = sparse.metadata();
  for (const char* name : {"bn.scale.0", "bn.bias.0", "fc.bias"}) archive.add_view(*sparse.find(name));
  for (const auto& owner : sparse.owners()) archive.keep(owner);
  const std::vector<float> values(72, 0.5F);
  archive.add<float>("conv.weight", {8, 1, 3, 3}, 0, values);
  archive.add<float>("fc.weight", {5, 8}, 0, std::span<const float>(values).first(40));
  return archive;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s directory\n", argv[0]);
    return 2;
  }
  const std::string directory = std::string(argv[1]) + "/";
  const auto write = [&](const char* name, const std::string& bytes) { test::write(directory + name, bytes); };
  const std::string model = file_of(test::small_archive());
  const auto edited = [&](const char* name, const std::function<void(json&)>& edit) {
    write(name, test::with_header(model, edit));
  };
  auto checked = test::small_archive();
  (void)strata::add_self_check<test::SmallNet>(checked).value();

  write("model", model);
  write("self_check", file_of(checked));
  write("dense", file_of(dense_archive()));
  const std::string end = test::header_of(model)["__metadata__"]["strata.stratum_end.0"];
  write("level_0", model.substr(0, 8 + test::header_length(model) + std::stoull(end)));
  write("cut_in_data", model.substr(0, model.size() - 5));
  write("cut_in_header", model.substr(0, 200));
  write("header_only", model.substr(0, 8 + test::header_length(model)));
  write("header_length_0", test::assembled("", ""));
  write("header_length_huge", std::string(7, '\0') + '\x80' + model.substr(8, 64));
  write("header_deep", test::assembled("{\"a\":" + std::string(500, '['), ""));
  write("empty_object", test::assembled("{}", ""));
  write("misaligned", test::assembled(model.substr(8, test::header_length(model)) + " ",
                                      model.substr(8 + test::header_length(model))));
  edited("config_0", [](json& h) { h["__metadata__"]["config.width"] = "0"; });
  edited("config_huge", [](json& h) { h["__metadata__"]["config.width"] = "9223372036854775807"; });
  edited("levels_17", [](json& h) {
    h["__metadata__"]["strata.levels"] = "17";
    for (int s = 2; s < 17; ++s)
      h["__metadata__"]["strata.stratum_end." + std::to_string(s)] = h["__metadata__"]["strata.stratum_end.1"];
  });
  edited("stratum_end_0", [](json& h) { h["__metadata__"]["strata.stratum_end.0"] = "0"; });
  edited("overlap", [](json& h) { h["bn.scale.1"]["data_offsets"] = h["bn.scale.0"]["data_offsets"]; });
  edited("swapped", [](json& h) { std::swap(h["bn.scale.0"]["data_offsets"], h["bn.scale.1"]["data_offsets"]); });
  edited("shape_overflow", [](json& h) { h["fc.bias"]["shape"] = {1ULL << 62, 4, 0}; });
  edited("dtype", [](json& h) { h["fc.bias"]["dtype"] = "I32"; });
  edited("renamed", [](json& h) {
    h["fc.bais"] = h["fc.bias"];
    h.erase("fc.bias");
  });
  write("column_beyond", test::with_data<std::uint8_t>(model, "conv.weight.indices.1", [](auto& i) { i.back() = 9; }));
  write("lengths", test::with_data<std::uint8_t>(model, "conv.weight.lengths.0", [](auto& lengths) {
          std::fill(lengths.begin(), lengths.end(), std::uint8_t{255});
        }));
  write("block_width", test::with_data<std::int64_t>(model, "conv.weight.shape", [](auto& shape) { shape[2] = 255; }));
  return 0;
}
