// Makes a model file with nested levels from a PyTorch state_dict.
#include "convert.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include <strata/strata.hpp>

#include "../support/levels.hpp"
#include "../support/table.hpp"

namespace {

using strata::index_t;
using strata::Level;
namespace train = strata::train;

struct Options {
  std::string input;
  std::string output;
  std::string network = "resnet50";
  index_t size = 0;
  std::string levels = examples::paper_levels;
  double floor = 0.01;
  double ends_floor = 0.05;
  std::string pictures;
  std::size_t picture_count = 256;
  std::string labels;
  std::vector<double> mean;
  std::vector<double> deviation;
  int threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
};

/// The lines of the file, which become the metadata that programs show classes by.
std::string read_labels(const std::string& path, index_t classes) {
  std::ifstream file(path);
  if (!file) strata::raise(strata::Error(path, "a readable file", "none"));
  std::string text;
  std::string line;
  index_t count = 0;
  while (std::getline(file, line)) {
    if (line.ends_with('\r')) line.pop_back();
    if (line.empty())
      strata::raise(strata::Error(path + ":" + std::to_string(count + 1), "the name of a class", "an empty line"));
    text += (count++ == 0 ? "" : "\n") + line;
  }
  if (count != classes)
    strata::raise(strata::Error(path, std::to_string(classes) + " lines, one a class", std::to_string(count)));
  return text;
}

void run(const Options& options) {
  const auto budgets = examples::parse_levels(options.levels);
  const auto levels = static_cast<int>(budgets.size());
  const resnet::Stem stem = resnet::config_named(options.network, 1, {1, 1, 1}).value().stem;
  const index_t size = options.size > 0 ? options.size : (stem == resnet::Stem::photograph ? 224 : 32);
  const strata::Archive state_dict = train::read_state_dict(options.input).value();
  auto loaded = resnet::network_from(state_dict, options.network, size, size);
  if (!loaded) strata::raise(loaded.error().within(options.input));
  resnet::TrainingNet& network = loaded.value();
  const strata::Shape shape = network.input_shape();

  examples::Preparation preparation;
  preparation.shorter_side = size == 224 ? 256 : size;
  if (!options.mean.empty()) preparation.mean = options.mean;
  if (!options.deviation.empty()) preparation.deviation = options.deviation;
  std::map<std::string, std::string> metadata;
  preparation.store(metadata);
  const auto require_one_a_channel = [&](const char* option, const std::vector<double>& numbers) {
    if (numbers.empty() || static_cast<strata::index_t>(numbers.size()) == shape.channels) return;
    strata::raise(strata::Error({option}, {shape.channels, " numbers, one a channel"}, {numbers.size()}));
  };
  require_one_a_channel("--mean", options.mean);
  require_one_a_channel("--deviation", options.deviation);
  (void)examples::Preparation::from(metadata, shape.channels).value();
  if (!options.labels.empty()) metadata["labels"] = read_labels(options.labels, network.config().classes);
  std::vector<std::vector<float>> pictures;
  if (!options.pictures.empty())
    for (const auto& path : resnet::pictures_below(options.pictures, options.picture_count).value())
      pictures.push_back(preparation(examples::read_picture(path, shape.channels).value(), shape));

  (void)resnet::prune(network, budgets, options.floor, options.ends_floor).value();
  if (!pictures.empty()) {
    strata::ThreadPool pool(options.threads);
    resnet::recalibrate(network, levels, pictures, pool);
  } else {
    std::fprintf(
        stderr,
        "resnet_convert: no --pictures: every level keeps the checkpoint's batch-norm statistics, which pruned "
        "weights do not fit\n");
  }
  strata::Archive archive = strata::to_archive(network, levels);
  archive.metadata().insert(metadata.begin(), metadata.end());
  (void)strata::add_self_check<resnet::ResNet>(archive).value();
  (void)strata::io::write_model(archive, options.output).value();

  const auto counts = train::count_layers<float>(network, levels);
  (void)strata::check_within(counts, budgets).value();
  examples::Table table({"level", "weights", "share", "FLOPs"});
  for (int level = levels - 1; level >= 0; --level) {
    const auto count = strata::count_level(counts, Level{level});
    table.add({std::to_string(level), std::to_string(count.weights), examples::percent(count.weight_share(), 2),
               examples::percent(count.flop_share(), 2)});
  }
  std::printf("%s%s: %s, %td classes, pictures of %td x %td\n", table.text().c_str(), options.output.c_str(),
              options.network.c_str(), network.config().classes, shape.height, shape.width);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{
      "Prunes a ResNet from a PyTorch state_dict (safetensors, dense or sparse) to nested levels, by magnitude and "
      "without training."};
  app.add_option("input", options.input, "state_dict as safetensors, F32, F64, F16 or BF16")->required();
  app.add_option("output", options.output, "model file to write")->required();
  app.add_option(
         "--network", options.network,
         "resnet18, 34, 50, 101, 152; resnet20, 32, 44, 56, 110; resnet18-small, resnet50-small, resnet50-halving")
      ->capture_default_str();
  app.add_option("--size", options.size, "height and width of pictures (224, or 32 behind a stem for small ones)")
      ->check(CLI::Range(1, 4096));
  app.add_option("--levels", options.levels, "weights:flops of each level as fractions, sparsest first")
      ->capture_default_str();
  app.add_option("--floor", options.floor, "least density of every layer")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--ends-floor", options.ends_floor, "least density of the first convolution and the classifier")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--pictures", options.pictures,
                 "directory of JPEG and PNG files on which the batch-norm statistics of every level are recomputed");
  app.add_option("--picture-count", options.picture_count, "pictures to take from there")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--labels", options.labels, "text file with the name of a class on each line, kept in the model file");
  app.add_option("--mean", options.mean, "of each channel, subtracted from pixel / 255 (ImageNet's)");
  app.add_option("--deviation", options.deviation, "of each channel, what is divided by (ImageNet's)");
  app.add_option("--threads", options.threads, "for --pictures")->check(CLI::Range(1, 256))->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "resnet_convert: %s\n", error.what());
    return 1;
  }
  return 0;
}
