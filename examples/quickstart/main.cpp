// The quick start: trains nested levels on Fashion-MNIST, saves them, loads them again, runs every level and the dense
// model on the test pictures and prints what came of it.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>

#include <strata/strata.hpp>
#include <strata/train/classification.hpp>
#include <strata/train/fit.hpp>
#include <strata/train/transitions.hpp>

#include "../support/accuracy.hpp"
#include "../support/idx.hpp"
#include "../support/levels.hpp"
#include "../support/plot.hpp"
#include "../support/progress.hpp"
#include "../support/table.hpp"
#include "network.hpp"

namespace {

using strata::index_t;
using strata::Level;
namespace train = strata::train;
using Clock = std::chrono::steady_clock;
using TrainingNet = quickstart::FashionNet<train::Training<float>>;
using Model = strata::Model<quickstart::FashionNet>;

struct Options {
  std::string data = "/usr/share/datasets/fashion-mnist";
  double epochs = 8;
  std::uint64_t seed = 1;
  int threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  std::string levels = examples::paper_levels;
  std::string out = "quickstart-out";
  std::string report;
  bool resume = false;
};

/// What the table says about one model.
struct Row {
  std::string name;
  double accuracy = 0;
  double weights = 1;
  double flops = 1;
  double bytes = 0;
  double latency = 0;  ///< seconds a picture, median at batch 1 on one thread
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// The rates and shares of time were chosen on 10,000 pictures held back from the training set.
train::Recipe recipe_for(const Options& options) {
  train::Recipe recipe;
  recipe.levels = examples::parse_levels(options.levels);
  recipe.seed = options.seed;
  recipe.dense_epochs = options.epochs;
  recipe.warm_up_epochs = options.epochs / 8;
  recipe.prune_epochs = options.epochs / 4;
  recipe.fixed_epochs = options.epochs * 3 / 4;
  recipe.tune_epochs = options.epochs / 8;
  recipe.decay = 1e-3;
  recipe.distillation = 0.8;
  recipe.temperature = 3;
  recipe.random_paths = recipe.levels.size() > 2 ? 1 : 0;
  // A layer that one ranking over all weights would starve: the first convolution, and the classifier.
  recipe.floor = 0.02;
  recipe.floors = {{"conv1.weight", 0.5}, {"fc.weight", 0.3}};
  return recipe;
}

/// Median seconds a picture for every level of `levels` and, last, the dense model; one thread, batch 1, in turns.
std::vector<double> latencies(const Model& levels, const Model& dense, const train::Dataset& data) {
  strata::Session<Model> nested(levels);
  strata::Session<Model> whole(dense);
  const auto count = static_cast<std::size_t>(levels.levels());
  std::vector<std::vector<double>> times(count + 1);
  std::vector<float> picture;
  std::vector<std::uint8_t> label;
  for (std::uint32_t i = 0; i < 2000; ++i) {
    const auto index = static_cast<std::uint32_t>(i % static_cast<std::uint32_t>(data.size()));
    data.batch(&index, 1, picture, label);
    for (std::size_t m = 0; m <= count; ++m) {
      const auto start = Clock::now();
      if (m < count) {
        nested.run(picture, Level{static_cast<int>(m)});
      } else {
        whole.run(picture, Level{0});
      }
      times[m].push_back(seconds_since(start));
    }
  }
  std::vector<double> medians;
  for (auto& list : times) {
    const auto middle = list.begin() + static_cast<std::ptrdiff_t>(list.size() / 2);
    std::nth_element(list.begin(), middle, list.end());
    medians.push_back(*middle);
  }
  return medians;
}

nlohmann::json json_of(const Row& row) {
  return {{"accuracy", row.accuracy},
          {"weights", row.weights},
          {"flops", row.flops},
          {"bytes", row.bytes},
          {"latency_us", row.latency * 1e6}};
}

void run(const Options& options) {
  const auto start = Clock::now();
  auto split = examples::read_mnist_directory(options.data);
  if (!split) {
    std::fprintf(stderr,
                 "%s\nFashion-MNIST is Debian's package dataset-fashion-mnist (apt-get install dataset-fashion-mnist); "
                 "--data DIR takes any\ndirectory with the four idx files train-images-idx3-ubyte, "
                 "train-labels-idx1-ubyte, t10k-images-idx3-ubyte and\nt10k-labels-idx1-ubyte, gzipped or not.\n",
                 split.error().what());
    std::exit(2);
  }
  const train::Dataset& training = split.value().train;
  const train::Dataset& test = split.value().test;
  if (training.shape != strata::Shape{1, 28, 28})
    strata::raise(strata::Error(options.data, "pictures of 28 x 28",
                                std::to_string(training.shape.height) + " x " + std::to_string(training.shape.width)));
  std::filesystem::create_directories(options.out);
  const std::string model_path = options.out + "/fashion.safetensors";
  const std::string dense_path = options.out + "/fashion-dense.safetensors";

  const train::Recipe recipe = recipe_for(options);
  train::Classification<float> task(training, {.variation = {.flip = true}});
  TrainingNet network({});
  train::initialise(network, options.seed);
  strata::ThreadPool pool(options.threads);
  const auto report = train::fit(network, task, recipe, pool,
                                 {.progress = examples::ProgressLine(),
                                  .checkpoint = options.out + "/checkpoint.safetensors",
                                  .resume = options.resume});
  const auto counts = train::count_layers<float>(network, report.levels);
  (void)strata::check_within(counts, recipe.levels).value();
  // With statistics for switches of level in mid-run, which runs with a deadline make.
  strata::Archive archive = strata::to_archive(network, report.levels);
  train::calibrate_transitions(network, task, archive, pool);
  (void)strata::add_self_check<quickstart::FashionNet>(archive).value();
  (void)strata::io::write_model(archive, model_path).value();
  strata::save(*report.dense, 1, dense_path);

  const auto model = strata::load<quickstart::FashionNet>(model_path, {.self_check = true});
  const auto dense = strata::load<quickstart::FashionNet>(dense_path, {.self_check = true});
  const auto times = latencies(model, dense, test);
  std::vector<Row> rows;
  rows.push_back({"dense", examples::accuracy(dense, test, Level{0}, options.threads), 1, 1,
                  static_cast<double>(dense.bytes(Level{0})), times.back()});
  for (int level = model.levels() - 1; level >= 0; --level) {
    const auto count = strata::count_level(counts, Level{level});
    if (count.weights != model.nnz(Level{level}))
      strata::raise(strata::Error(model_path + ": level " + std::to_string(level),
                                  std::to_string(count.weights) + " weights, as trained",
                                  std::to_string(model.nnz(Level{level}))));
    rows.push_back({"level " + std::to_string(level), examples::accuracy(model, test, Level{level}, options.threads),
                    count.weight_share(), count.flop_share(), static_cast<double>(model.bytes(Level{level})),
                    times[static_cast<std::size_t>(level)]});
  }

  examples::Table table({"model", "accuracy", "weights", "FLOPs", "KiB", "us/picture", "speed-up"});
  examples::Plot plot;
  plot.title = "Fashion-MNIST: one set of weights, nested levels";
  plot.x_label = "latency, microseconds a picture (batch 1, one thread)";
  plot.y_label = "accuracy, %";
  plot.x_logarithmic = true;
  plot.series.resize(1);
  nlohmann::json json = {{"levels", nlohmann::json::array()}};
  for (const Row& row : rows) {
    table.add({row.name, examples::percent(row.accuracy, 2), examples::percent(row.weights, 2),
               examples::percent(row.flops, 2), examples::fixed(row.bytes / 1024, 0),
               examples::fixed(row.latency * 1e6, 1), examples::fixed(rows.front().latency / row.latency, 2) + "x"});
    plot.series.front().points.push_back({row.latency * 1e6, 100 * row.accuracy, row.name, 0});
  }
  json["dense"] = json_of(rows.front());
  for (std::size_t r = rows.size() - 1; r > 0; --r) {
    json["levels"].push_back(json_of(rows[r]));
    json["levels"].back()["level"] = static_cast<int>(rows.size() - 1 - r);
  }
  json["seed"] = options.seed;
  json["seconds"] = seconds_since(start);
  (void)examples::write_svg(plot, options.out + "/accuracy.svg").value();
  if (!options.report.empty()) {
    const std::string text = json.dump(2) + "\n";
    (void)strata::io::write_atomically(options.report, {std::as_bytes(std::span(text))}).value();
  }
  std::printf("%s\n%.0f seconds in all. Model: %s, plot: %s/accuracy.svg\n", table.text().c_str(), seconds_since(start),
              model_path.c_str(), options.out.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{"Trains nested sparse levels of a small network on Fashion-MNIST and compares them with the dense one."};
  app.add_option("--data", options.data, "directory with the four idx files, gzipped or not")->capture_default_str();
  app.add_option("--epochs", options.epochs, "epochs of the dense phase; the others follow in proportion")
      ->check(CLI::Range(0.01, 1000.0))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "of weights, batches and variations")->capture_default_str();
  app.add_option("--threads", options.threads, "for training")->check(CLI::Range(1, 256))->capture_default_str();
  app.add_option("--levels", options.levels, "weights:flops of each level as fractions, sparsest first")
      ->capture_default_str();
  app.add_option("--out", options.out, "directory for the models, the checkpoint and the plot")->capture_default_str();
  app.add_option("--report", options.report, "file for the table as JSON");
  app.add_flag("--resume", options.resume, "go on from the checkpoint in --out");
  CLI11_PARSE(app, argc, argv);
  try {
    run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "quickstart: %s\n", error.what());
    return 1;
  }
  return 0;
}
