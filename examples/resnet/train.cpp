// Trains a ResNet with nested levels on CIFAR-10, Fashion-MNIST or folders of pictures and reports what every level
// reaches.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <strata/strata.hpp>
#include <strata/train/classification.hpp>
#include <strata/train/fit.hpp>
#include <strata/train/transitions.hpp>

#include "../support/accuracy.hpp"
#include "../support/cifar.hpp"
#include "../support/command.hpp"
#include "../support/idx.hpp"
#include "../support/levels.hpp"
#include "../support/picture.hpp"
#include "../support/rows.hpp"
#include "../support/run_options.hpp"
#include "../support/table.hpp"
#include "../support/training_run.hpp"
#include "network.hpp"

namespace {

using strata::index_t;
using strata::Level;
namespace train = strata::train;
using TrainingNet = resnet::ResNet<train::Training<float>>;
using Model = strata::Model<resnet::ResNet>;

struct Options : examples::RunOptions {
  std::string network = "resnet20";
  std::string dataset = "cifar10";
  std::string data;
  std::string data_name;  ///< in rows; empty: what `name_of_data` makes of the others
  double rate = 0.1;
  double sparse_rate = 0.05;
  double decay = 5e-4;
  double smoothing = 0;
  index_t hole = 0;
  index_t level_hole = -1;  ///< below 0: `hole`
  double temperature = 3;
  std::vector<std::string> without;
  double floor = 0.02;
  double stem_floor = 0.5;
  double classifier_floor = 0.3;
  index_t batch = 128;
  index_t validation = 0;
  int threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  double checkpoint_seconds = 300;
  std::string command;
};

/// What a report says about one model.
struct Row {
  std::string level;  ///< "dense", a number, or "1>0 at layer2.0" for a path that drops there
  double accuracy = 0;
  double weights = 1;
  double flops = 1;
  double epochs = 0;
  double seconds = 0;
};

train::Dataset select(const train::Dataset& data, std::span<const std::uint32_t> indices) {
  train::Dataset part{data.shape, data.classes, {}, {}, data.mean, data.deviation};
  const auto size = static_cast<std::ptrdiff_t>(data.shape.size());
  for (const std::uint32_t i : indices) {
    const auto first = data.pixels.begin() + static_cast<std::ptrdiff_t>(i) * size;
    part.pixels.insert(part.pixels.end(), first, first + size);
    part.labels.push_back(data.labels[i]);
  }
  return part;
}

/// The pictures to learn from and to judge by: with --validation the latter are held back from the training pictures,
/// the same ones whatever the seed.
examples::NamedSplit read_data(const Options& options) {
  examples::NamedSplit named;
  if (options.dataset == "cifar10") {
    if (options.data.empty()) strata::raise(strata::Error("--data", "the directory of CIFAR-10", "none"));
    named = examples::read_cifar(options.data).value();
  } else {
    named.split =
        examples::read_mnist_directory(options.data.empty() ? "/usr/share/datasets/fashion-mnist" : options.data)
            .value();
    named.names = {"T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot"};
  }
  if (options.validation > 0) {
    const train::Dataset whole = std::move(named.split.train);
    if (options.validation >= whole.size())
      strata::raise(strata::Error("--validation", "fewer than the " + std::to_string(whole.size()) + " pictures",
                                  std::to_string(options.validation)));
    const auto order = train::shuffled(whole.size(), 20211210, 0);
    const auto held = static_cast<std::size_t>(options.validation);
    named.split.test = select(whole, std::span(order).first(held));
    named.split.train = select(whole, std::span(order).subspan(held));
  }
  return named;
}

/// What rows call the data, so that those of two data sets are not taken for one: without --data-name, folders are
/// CIFAR-10 if their classes are called as its are, else they are called like their directory.
std::string name_of_data(const Options& options, const std::vector<std::string>& classes) {
  if (!options.data_name.empty()) return options.data_name;
  if (options.dataset != "cifar10" || examples::is_cifar10(classes)) return options.dataset;
  return examples::data_name(options.data);
}

/// Epochs of the phases: half dense; of the others a fifth for pruning, a fifth for tuning.
constexpr examples::PhaseShares shares{.dense = 0.5, .prune = 0.2, .tune = 0.2};

train::Recipe recipe_for(const Options& options) {
  train::Recipe recipe;
  recipe.batch = options.batch;
  recipe.dense_rate = options.rate;
  recipe.sparse_rate = options.sparse_rate;
  recipe.decay = options.decay;
  recipe.temperature = options.temperature;
  recipe.warm_up_epochs = std::min(1.0, options.epochs / 10);
  const auto with = [&](const char* part) { return std::ranges::find(options.without, part) == options.without.end(); };
  if (with("floors")) {
    recipe.floor = options.floor;
    recipe.floors = {{"conv1.weight", options.stem_floor}, {"fc.weight", options.classifier_floor}};
  }
  if (!with("recalibration")) recipe.recalibration_batches = 0;
  examples::PhaseShares used = shares;
  if (!with("freezing")) used.tune = 0;
  examples::plan_run(recipe, options, used);
  return recipe;
}

/// A model file with statistics for switches of level and what programs need to know about pictures and classes, loaded
/// again.
Model save(const TrainingNet& network, int levels, const examples::NamedSplit& data, train::Classification<float>& task,
           strata::Executor& executor, const std::string& path) {
  strata::Archive archive = strata::to_archive(network, levels);
  if (levels > 1) train::calibrate_transitions(network, task, archive, executor);
  examples::Preparation preparation;
  const train::Dataset& dataset = data.split.train;
  preparation.shorter_side = std::min(dataset.shape.height, dataset.shape.width);
  preparation.mean.assign(static_cast<std::size_t>(dataset.shape.channels), dataset.mean);
  preparation.deviation.assign(static_cast<std::size_t>(dataset.shape.channels), dataset.deviation);
  preparation.store(archive.metadata());
  std::string& labels = archive.metadata()["labels"];
  for (const std::string& name : data.names) labels += (labels.empty() ? "" : "\n") + name;
  (void)strata::add_self_check<resnet::ResNet>(archive).value();
  (void)strata::io::write_model(archive, path).value();
  return strata::load<resnet::ResNet>(path, {.self_check = true});
}

/// Rows as they become known. Each is told on stderr: many paths take longer to judge than a terminal should be silent.
class Judged {
 public:
  void add(Row row) {
    const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    rows.push_back(std::move(row));
    const Row& last = rows.back();
    std::fprintf(stderr, "judged: %s%s, %.2f %% (%.0f s", last.level == "dense" ? "" : "level ", last.level.c_str(),
                 100 * last.accuracy, seconds);
    if (expected > rows.size()) std::fprintf(stderr, ", %zu to go", expected - rows.size());
    std::fprintf(stderr, ")\n");
  }

  std::vector<Row> rows;
  std::size_t expected = 0;  ///< rows in the end

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
};

/// One run of one recipe under the file name `name`; its rows, or none if it was stopped.
std::vector<Row> run_recipe(const Options& options, const examples::NamedSplit& data, const std::string& name) {
  const train::Recipe recipe = recipe_for(options);
  const bool dense_only = recipe.levels.empty();
  const train::Dataset& training = data.split.train;
  const train::Variation variation{.shift = options.dataset == "cifar10" ? 4 : 2, .flip = true, .hole = options.hole};
  train::Variation for_levels = variation;
  if (options.level_hole >= 0) for_levels.hole = options.level_hole;
  train::Classification<float> task(
      training, {.variation = variation, .level_variation = for_levels, .smoothing = options.smoothing});
  const auto config = resnet::config_named(options.network, training.classes, training.shape).value();
  TrainingNet network(config);
  train::initialise(network, options.seed);
  strata::ThreadPool pool(options.threads);
  train::Trainer<TrainingNet, train::Classification<float>> trainer(network, task, recipe, pool);
  const auto done = examples::run_training(trainer, recipe.batch,
                                           {.checkpoint = options.out + "/" + name + ".checkpoint",
                                            .resume = options.resume,
                                            .dense_from = options.dense_from,
                                            .checkpoint_seconds = options.checkpoint_seconds,
                                            .stop_after = options.stop_after,
                                            .steps_per_epoch = strata::ceil_div(training.size(), recipe.batch)});
  if (!done.finished) return {};

  const auto epochs =
      static_cast<double>(trainer.steps()) / static_cast<double>(strata::ceil_div(training.size(), recipe.batch));
  Judged judged;
  const TrainingNet& dense_network = trainer.dense() != nullptr ? *trainer.dense() : network;
  const Model dense = save(dense_network, 1, data, task, pool, options.out + "/" + name + "-dense.safetensors");
  const double dense_accuracy = examples::accuracy(dense, data.split.test, Level{0}, options.threads);
  judged.add({"dense", dense_accuracy, 1, 1, dense_only ? epochs : recipe.dense_epochs,
              dense_only ? done.seconds : done.dense_seconds});
  if (dense_only) return judged.rows;
  const auto counts = train::count_layers<float>(network, trainer.levels());
  (void)strata::check_within(counts, recipe.levels).value();
  const std::string path = options.out + "/" + name + ".safetensors";
  const Model model = save(network, trainer.levels(), data, task, pool, path);
  const auto stored = examples::stored_counts(model, counts, path);
  for (int level = model.levels() - 1; level >= 0; --level) {
    const auto& count = stored[static_cast<std::size_t>(level)];
    judged.add({std::to_string(examples::level_of_budgets(options, level)),
                examples::accuracy(model, data.split.test, Level{level}, options.threads), count.weight_share(),
                count.flop_share(), epochs, done.seconds});
  }
  if (!options.switches) return judged.rows;
  const auto stages = strata::Session<Model>(model, {}).stages();
  const auto levels = static_cast<std::size_t>(model.levels());
  judged.expected = judged.rows.size() + levels * (levels - 1) / 2 * (stages.size() - 1);
  for (int from = model.levels() - 1; from > 0; --from)
    for (int to = from - 1; to >= 0; --to)
      for (std::size_t stage = 1; stage < stages.size(); ++stage)
        judged.add({std::to_string(from) + ">" + std::to_string(to) + " at " + stages[stage],
                    examples::accuracy_with_switch(model, data.split.test, Level{from}, Level{to},
                                                   static_cast<int>(stage), options.threads),
                    0, 0, epochs, done.seconds});
  return judged.rows;
}

int run(const Options& options) {
  if (!options.without.empty() && options.arm != "joint")
    strata::raise(strata::Error("--without", "--arm joint", "--arm " + options.arm));
  (void)recipe_for(options);  // refuses what does not fit before data is read
  examples::check_report(options.report);
  const examples::NamedSplit data = read_data(options);
  const std::string data_name = name_of_data(options, data.names);
  const std::string pictures = data_name + " (" + std::to_string(data.split.train.size()) +
                               " pictures to learn from, " + std::to_string(data.split.test.size()) + " to judge by)";
  std::fprintf(stderr, "%s\n", pictures.c_str());
  std::filesystem::create_directories(options.out);

  std::vector<Row> rows;
  if (options.arm == "single") {
    const auto start = std::chrono::steady_clock::now();
    for (int level = static_cast<int>(examples::parse_levels(options.levels).size()) - 1; level >= 0; --level) {
      if (options.single_level.value_or(level) != level) continue;
      Options of_level = options;
      of_level.single_level = level;
      if (options.stop_after > 0) {
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
        of_level.stop_after = std::max(options.stop_after - taken.count(), 1e-3);
      }
      const auto found = run_recipe(of_level, data, "single-" + std::to_string(level));
      if (found.empty()) return examples::unfinished;
      rows.insert(rows.end(), found.begin() + 1, found.end());  // without the dense model on the way there
    }
  } else {
    rows = run_recipe(options, data, options.arm);
    if (rows.empty()) return examples::unfinished;
  }

  examples::Table table({"model", "accuracy", "weights", "FLOPs", "epochs", "seconds"});
  nlohmann::json report = nlohmann::json::array();
  for (const Row& row : rows) {
    table.add({row.level == "dense" ? row.level : "level " + row.level, examples::percent(row.accuracy, 2),
               row.weights > 0 ? examples::percent(row.weights, 2) : "",
               row.flops > 0 ? examples::percent(row.flops, 2) : "", examples::fixed(row.epochs, 1),
               examples::fixed(row.seconds, 0)});
    report.push_back({{"network", options.network},
                      {"data", data_name},
                      {"split", options.validation > 0 ? "validation" : "test"},
                      {"seed", options.seed},
                      {"arm", options.arm},
                      {"level", row.level},
                      {"accuracy", row.accuracy},
                      {"weights", row.weights},
                      {"flops", row.flops},
                      {"epochs", row.epochs},
                      {"seconds", row.seconds},
                      {"command", options.command}});
    if (row.weights == 0)  // a path's cost lies between those of its levels
      report.back()["weights"] = report.back()["flops"] = nullptr;
    else if (row.level != "dense")
      report.back()["level"] = std::stoi(row.level);
  }
  std::printf("%s%s on %s, %s arm, seed %llu, judged on the %s pictures\n", table.text().c_str(),
              options.network.c_str(), pictures.c_str(), options.arm.c_str(),
              static_cast<unsigned long long>(options.seed), options.validation > 0 ? "validation" : "test");
  if (!options.report.empty()) {
    const std::string text = report.dump(2) + "\n";
    (void)strata::io::write_atomically(options.report, {std::as_bytes(std::span(text))}).value();
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  options.command = examples::command_of("resnet_train", argc, argv);
  CLI::App app{
      "Trains a ResNet with nested sparse levels on CIFAR-10, Fashion-MNIST or folders of pictures and judges every "
      "level."};
  app.add_option("--network", options.network, "resnet20, resnet56, resnet50-small, ...")->capture_default_str();
  app.add_option("--dataset", options.dataset, "what lies in --data, folders of pictures being read as cifar10")
      ->check(CLI::IsMember({"cifar10", "fashion-mnist"}))
      ->capture_default_str();
  app.add_option("--data", options.data,
                 "directory: CIFAR-10's binary batches or train/ and test/ with a folder of pictures per class; or "
                 "Fashion-MNIST's idx files");
  app.add_option("--data-name", options.data_name,
                 "what rows call the data; default: --dataset, or the last name of --data if it is read as cifar10 and "
                 "its classes are not called as CIFAR-10's ten are");
  options.out = "resnet-out";
  options.distillation = 0.8;
  options.paths = 1;
  auto* const one_cosine =
      examples::add_run_options(app, options, shares,
                                {.single_level = "--single-level,--level",
                                 .whose_single_level = "single: this level only, not all of them one after the other",
                                 .dropout = false});
  app.add_option("--rate", options.rate, "learning rate of the dense phase")->capture_default_str();
  app.add_option("--sparse-rate", options.sparse_rate, "learning rate of the levels")
      ->excludes(one_cosine)
      ->capture_default_str();
  app.add_option("--decay", options.decay, "weight decay")->capture_default_str();
  app.add_option("--smoothing", options.smoothing, "of labels")->check(CLI::Range(0.0, 0.99))->capture_default_str();
  app.add_option("--hole", options.hole, "side of a square that is blanked in every training picture, in pixels")
      ->check(CLI::Range(0, 1 << 16))
      ->capture_default_str();
  app.add_option("--level-hole", options.level_hole, "the same while levels train; default: --hole")
      ->check(CLI::Range(0, 1 << 16));
  app.add_option("--temperature", options.temperature, "of distillation")->capture_default_str();
  app.add_option("--without", options.without,
                 "parts of the recipe to leave out, for ablations: tuning of the top level around frozen ones, whose "
                 "time goes to training all; means of statistics over batches at the end; least densities")
      ->delimiter(',')
      ->check(CLI::IsMember({"freezing", "recalibration", "floors"}));
  app.add_option("--floor", options.floor, "least density of every layer")->capture_default_str();
  app.add_option("--stem-floor", options.stem_floor, "of the first convolution")->capture_default_str();
  app.add_option("--classifier-floor", options.classifier_floor, "of the classifier")->capture_default_str();
  app.add_option("--batch", options.batch)->check(CLI::Range(1, 65536))->capture_default_str();
  app.add_option("--validation", options.validation, "training pictures to hold back and judge by instead of the test")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  app.add_option("--threads", options.threads)->check(CLI::Range(1, 256))->capture_default_str();
  app.add_option("--checkpoint-seconds", options.checkpoint_seconds, "between two saves")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    return run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "resnet_train: %s\n", error.what());
    return 1;
  }
}
