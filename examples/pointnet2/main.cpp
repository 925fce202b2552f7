// Trains PointNet++ with nested levels, or one of the baselines it is judged by, on shapes13 or on Fashion-MNIST as 2-D
// point clouds, and reports every model's accuracy, weights and FLOPs.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <strata/strata.hpp>
#include <strata/train/fit.hpp>
#include <strata/train/transitions.hpp>

#include "../support/command.hpp"
#include "../support/idx.hpp"
#include "../support/levels.hpp"
#include "../support/rows.hpp"
#include "../support/run_options.hpp"
#include "../support/table.hpp"
#include "../support/training_run.hpp"
#include "judge.hpp"
#include "network.hpp"
#include "task.hpp"

namespace {

using strata::index_t;
using strata::Level;
namespace train = strata::train;
using TrainingNet = pointnet2::PointNet2<train::Training<float>>;
using pointnet2::Model;
using Config = TrainingNet::Config;

/// Epochs of the phases: 45 % dense; of the rest three elevenths on pruning, eight of 55 on tuning.
constexpr examples::PhaseShares shares{.dense = 0.45, .prune = 3.0 / 11, .tune = 8.0 / 55};

struct Options : examples::RunOptions {
  std::string set = "shapes13";
  std::string data;
  std::string judge = "validation";
  index_t limit = 0;
  index_t batch = 16;
  double rate = 1e-3;
  double decay = 0.01;
  int threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  index_t points = 0;
  double dropout = Config().dropout;
  index_t width = 64;
  index_t centroids1 = 0;
  index_t centroids2 = 0;
  index_t samples1 = 0;
  index_t samples2 = 0;
  bool multi_scale = false;
};

/// What one run learns from and is judged by.
struct Parts {
  pointnet2::Clouds train, judge;
};

Parts read_parts(const Options& options) {
  pointnet2::CloudSplit split;
  const index_t points = options.points;
  if (options.set == "shapes13") {
    split = std::move(pointnet2::read_shapes(options.data)).value();
    if (points > split.train.points)
      strata::raise(strata::Error("--points", "at most " + std::to_string(split.train.points), std::to_string(points)));
    if (points < split.train.points) split = {split.train.first_points(points), split.test.first_points(points)};
  } else {
    const std::string directory = options.data.empty() ? "/usr/share/datasets/fashion-mnist" : options.data;
    const auto pictures = std::move(examples::read_mnist_directory(directory)).value();
    // The draw of the ink is part of the data, not of the run: all seeds learn from the same clouds.
    split = {pointnet2::ink_clouds(pictures.train, points, 1), pointnet2::ink_clouds(pictures.test, points, 2)};
  }
  Parts parts;
  if (options.judge == "test") {
    parts = {std::move(split.train), std::move(split.test)};
  } else {
    auto [kept, held] = pointnet2::hold_back(split.train, options.set == "shapes13" ? 5 : 6);
    parts = {std::move(kept), std::move(held)};
  }
  if (parts.judge.size() == 0)
    strata::raise(strata::Error("--judge " + options.judge, "at least one cloud to judge by", "none"));
  if (options.limit > 0 && options.limit < parts.train.size()) {
    std::vector<std::uint32_t> some = train::shuffled(parts.train.size(), 20222, 0);
    some.resize(static_cast<std::size_t>(options.limit));
    parts.train = parts.train.select(some);
  }
  return parts;
}

Config config_for(const Options& options, const pointnet2::Clouds& clouds) {
  Config config;
  config.dimensions = clouds.dimensions;
  config.points = clouds.points;
  config.classes = clouds.classes;
  config.width = options.width;
  config.dropout = options.dropout;
  config.multi_scale = options.multi_scale;
  if (clouds.dimensions == 2) {  // a picture's ink fills an area: fewer centroids cover it
    config.centroids1 = 128;
    config.centroids2 = 32;
    config.samples1 = 16;
    config.samples2 = 32;
  }
  for (const auto& [given, target] :
       {std::pair(options.centroids1, &config.centroids1), std::pair(options.centroids2, &config.centroids2),
        std::pair(options.samples1, &config.samples1), std::pair(options.samples2, &config.samples2)})
    if (given > 0) *target = given;
  return config;
}

train::Recipe recipe_for(const Options& options) {
  train::Recipe recipe;
  recipe.batch = options.batch;
  recipe.adamw = true;
  recipe.decay = options.decay;
  recipe.dense_rate = options.rate;
  recipe.sparse_rate = options.rate;
  recipe.tune_rate = options.rate / 3;
  recipe.warm_up_epochs = options.epochs / 40;
  recipe.temperature = 3;
  examples::plan_run(recipe, options, shares, options.dropout);
  if (recipe.levels.empty()) return recipe;
  // Layers that one ranking over all weights would starve: those that see the coordinates alone, and the classifier.
  recipe.floor = 0.02;
  recipe.floors = {{"fc3.weight", 0.3}};
  const std::string scale = options.multi_scale ? "conv_blocks." : "mlp_convs.";
  for (int branch = 0; branch < (options.multi_scale ? 3 : 1); ++branch)
    recipe.floors.emplace_back("sa1." + scale + (options.multi_scale ? std::to_string(branch) + "." : "") + "0.weight",
                               0.5);
  return recipe;
}

/// A model file with statistics for drops to a lower level in mid-run, loaded again.
Model save(const TrainingNet& network, int levels, const train::Recipe& recipe, pointnet2::CloudTask<float>& task,
           strata::Executor& executor, const std::string& path) {
  strata::Archive archive = strata::to_archive(network, levels);
  if (levels > 1)
    train::calibrate_transitions(network, task, archive, executor,
                                 {.batches = recipe.recalibration_batches, .batch = recipe.batch});
  (void)strata::add_self_check<pointnet2::PointNet2>(archive).value();
  (void)strata::io::write_model(archive, path).value();
  return strata::load<pointnet2::PointNet2>(path, {.self_check = true});
}

void write_text(const std::string& path, const std::string& text) {
  (void)strata::io::write_atomically(path, {std::as_bytes(std::span(text))}).value();
}

int run(const Options& options, const std::string& command) {
  const train::Recipe recipe = recipe_for(options);
  examples::check_report(options.report);
  const Parts parts = read_parts(options);
  const Config config = config_for(options, parts.train);
  std::filesystem::create_directories(options.out);
  pointnet2::TaskOptions task_options;
  task_options.smoothing = 0.1;
  task_options.least_batch = std::min<index_t>(task_options.least_batch, options.batch);
  if (options.set != "shapes13") {
    task_options.variation = {.least_scale = 0.9F, .most_scale = 1.1F, .shift = 0.05F, .drop = 0.5, .mirror = true};
  }
  pointnet2::CloudTask<float> task(parts.train, task_options);
  TrainingNet network(config);
  train::initialise(network, options.seed);
  strata::ThreadPool pool(options.threads);
  train::Trainer<TrainingNet, pointnet2::CloudTask<float>> trainer(network, task, recipe, pool);
  const auto trained = examples::run_training(
      trainer, options.batch,
      {.checkpoint = options.out + "/checkpoint.safetensors",
       .resume = options.resume,
       .dense_from = options.dense_from,
       .checkpoint_seconds = 30,
       .stop_after = options.stop_after,
       .steps_per_epoch = std::max<std::int64_t>(1, strata::ceil_div(task.size(), options.batch))});
  if (!trained.finished) return examples::unfinished;

  const auto counts = train::count_layers<float>(network, trainer.levels());
  if (!recipe.levels.empty()) (void)strata::check_within(counts, recipe.levels).value();
  const std::string model_path = options.out + "/model.safetensors";
  const Model model = save(network, trainer.levels(), recipe, task, pool, model_path);

  examples::Table table({"model", "accuracy", "weights", "FLOPs", "KiB"});
  nlohmann::json rows = nlohmann::json::array();
  // `name` is "dense" or a level's; paths that drop, whose cost lies between those of their levels, have no `count`.
  const auto add = [&](const nlohmann::json& name, double share, double epochs, double seconds,
                       const std::optional<strata::LevelCount>& count, index_t bytes) {
    nlohmann::json row = {{"network", options.multi_scale ? "PointNet++ MSG" : "PointNet++ SSG"},
                          {"data", options.set},
                          {"part", options.judge},
                          {"clouds", parts.judge.size()},
                          {"seed", options.seed},
                          {"arm", options.arm},
                          {"level", name},
                          {"accuracy", share},
                          {"weights", nullptr},
                          {"flops", nullptr},
                          {"epochs", epochs},
                          {"seconds", seconds},
                          {"command", command}};
    std::vector<std::string> cells = {name == "dense" ? "dense" : "level " + examples::level_text(row),
                                      examples::percent(share, 2)};
    // Told at once: many paths take longer to judge than a terminal should be silent.
    std::fprintf(stderr, "judged: %s, %s\n", cells[0].c_str(), cells[1].c_str());
    if (count) {
      row["weights"] = count->weight_share();
      row["flops"] = count->flop_share();
      cells.push_back(examples::percent(count->weight_share(), 2));
      cells.push_back(examples::percent(count->flop_share(), 2));
      cells.push_back(examples::fixed(static_cast<double>(bytes) / 1024, 0));
    }
    table.add(std::move(cells));
    rows.push_back(std::move(row));
  };
  const auto add_level = [&](const Model& judged, Level level, const nlohmann::json& name,
                             const strata::LevelCount& count, double epochs, double seconds) {
    add(name, pointnet2::accuracy(judged, parts.judge, level, options.threads), epochs, seconds, count,
        judged.bytes(level));
  };
  const strata::LevelCount whole{.weights = 1, .flops = 1, .total_weights = 1, .total_flops = 1};
  if (recipe.levels.empty()) {
    add_level(model, Level{0}, "dense", whole, options.epochs, trained.seconds);
  } else {
    // The dense model that a sparse arm starts from had fewer epochs than the dense arm: its row says so.
    const std::string dense_path = options.out + "/dense.safetensors";
    add_level(save(*trainer.dense(), 1, recipe, task, pool, dense_path), Level{0}, "dense", whole, recipe.dense_epochs,
              trained.dense_seconds);
    const auto stored = examples::stored_counts(model, counts, model_path);
    const double level_epochs = examples::epochs_of_levels(options, recipe);
    for (int level = model.levels() - 1; level >= 0; --level)
      add_level(model, Level{level}, examples::level_of_budgets(options, level),
                stored[static_cast<std::size_t>(level)], level_epochs, trained.seconds);
    std::vector<std::string> stages;
    if (options.switches) stages = strata::Session<Model>(model, {}).stages();
    for (int from = model.levels() - 1; from > 0; --from)
      for (int to = from - 1; to >= 0; --to)
        for (std::size_t stage = 1; stage < stages.size(); ++stage)
          add(std::to_string(from) + ">" + std::to_string(to) + " at " + stages[stage],
              pointnet2::accuracy_with_switch(model, parts.judge, Level{from}, Level{to}, static_cast<int>(stage),
                                              options.threads),
              level_epochs, trained.seconds, {}, 0);
  }
  std::printf("%s\n%.0f seconds of training; accuracy on %lld clouds (%s). Model: %s\n", table.text().c_str(),
              trained.seconds, static_cast<long long>(parts.judge.size()), options.judge.c_str(), model_path.c_str());
  if (!options.report.empty()) write_text(options.report, rows.dump(2) + "\n");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{
      "Trains PointNet++ with nested sparse levels on point clouds. Ends with 3 if --stop-after or a signal cut the "
      "run short."};
  app.add_option("--set", options.set, "shapes13 or fashion (Fashion-MNIST as 2-D points)")
      ->check(CLI::IsMember({"shapes13", "fashion"}))
      ->capture_default_str();
  app.add_option("--data", options.data, "directory of the data; needed for shapes13");
  app.add_option("--judge", options.judge, "validation: a part held back from training; test: the test files")
      ->check(CLI::IsMember({"validation", "test"}))
      ->capture_default_str();
  options.out = "pointnet2-out";
  examples::add_run_options(app, options, shares);
  app.add_option("--limit", options.limit, "training clouds at most; 0: all")->check(CLI::NonNegativeNumber);
  app.add_option("--batch", options.batch, "clouds a step")->check(CLI::Range(1, 4096))->capture_default_str();
  app.add_option("--rate", options.rate, "learning rate of AdamW")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--decay", options.decay, "weight decay of AdamW")->check(CLI::NonNegativeNumber);
  app.add_option("--threads", options.threads, "for training and judging")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option("--points", options.points, "points a cloud (default: 1024, and 256 for fashion)")
      ->check(CLI::Range(1, 65536));
  app.add_option("--dropout", options.dropout, "between the fully connected layers")
      ->check(CLI::Range(0.0, 0.99))
      ->capture_default_str();
  app.add_option("--width", options.width, "channels of the first perceptron")->check(CLI::Range(2, 1024));
  app.add_option("--centroids1", options.centroids1, "of the first abstraction")->check(CLI::Range(1, 65536));
  app.add_option("--centroids2", options.centroids2, "of the second")->check(CLI::Range(1, 65536));
  app.add_option("--samples1", options.samples1, "of a group of the first abstraction")->check(CLI::Range(1, 65536));
  app.add_option("--samples2", options.samples2, "of the second")->check(CLI::Range(1, 65536));
  app.add_flag("--multi-scale", options.multi_scale, "multi-scale grouping");
  CLI11_PARSE(app, argc, argv);
  if (options.points == 0) options.points = options.set == "shapes13" ? 1024 : 256;
  const std::string command = examples::command_of("pointnet2", argc, argv);
  try {
    return run(options, command);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "pointnet2: %s\n", error.what());
    return 1;
  }
}
