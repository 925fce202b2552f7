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
#include "../support/table.hpp"
#include "../support/training_run.hpp"
#include "network.hpp"

namespace {

using strata::index_t;
using strata::Level;
namespace train = strata::train;
using TrainingNet = resnet::ResNet<train::Training<float>>;
using Model = strata::Model<resnet::ResNet>;

struct Options {
  std::string network = "resnet20";
  std::string dataset = "cifar10";
  std::string data;
  std::string data_name;  ///< in rows; empty: what `name_of_data` makes of the others
  std::string arm = "joint";
  int level = -1;
  double epochs = 60;
  double rate = 0.1;
  double sparse_rate = 0.05;
  double decay = 5e-4;
  double smoothing = 0;
  index_t hole = 0;
  index_t level_hole = -1;  ///< below 0: `hole`
  double distillation = 0.8;
  bool one_cosine = false;
  double temperature = 3;
  int paths = 1;
  bool in_turn = false;
  std::vector<std::string> without;
  double floor = 0.02;
  double stem_floor = 0.5;
  double classifier_floor = 0.3;
  index_t batch = 128;
  std::uint64_t seed = 1;
  bool bfloat16 = false;
  index_t validation = 0;
  int threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  std::string levels = examples::paper_levels;
  std::string out = "resnet-out";
  std::string report;
  std::string dense_from;
  bool switches = false;
  bool resume = false;
  double stop_after = 0;
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

/// Half of the epochs are dense. The others: joint prunes for a tenth, trains the levels for three tenths, tunes the
/// top level for a tenth. The bottom-up arm and joint steps with one path get as many forward-backward passes, in the
/// same shares of pruning and training. `dense` trains on for all epochs.
train::Recipe recipe_for(const Options& options, const std::vector<strata::LevelBudget>& budgets) {
  train::Recipe recipe;
  recipe.levels = budgets;
  recipe.batch = options.batch;
  recipe.seed = options.seed;
  recipe.bfloat16 = options.bfloat16;
  recipe.dense_rate = options.rate;
  recipe.sparse_rate = options.sparse_rate;
  recipe.decay = options.decay;
  recipe.distillation = options.distillation;
  recipe.temperature = options.temperature;
  recipe.random_paths = recipe.tune_paths = options.paths;
  const auto with = [&](const char* part) { return std::ranges::find(options.without, part) == options.without.end(); };
  if (with("floors")) {
    recipe.floor = options.floor;
    recipe.floors = {{"conv1.weight", options.stem_floor}, {"fc.weight", options.classifier_floor}};
  }
  if (!with("recalibration")) recipe.recalibration_batches = 0;
  const double e = options.epochs;
  recipe.warm_up_epochs = std::min(1.0, e / 10);
  if (budgets.empty()) {
    recipe.dense_epochs = e;
    return recipe;
  }
  recipe.dense_epochs = e / 2;
  recipe.prune_epochs = e / 10;
  recipe.fixed_epochs = e * 3 / 10;
  recipe.tune_epochs = e / 10;
  if (budgets.size() == 1 || !with("freezing")) {  // no top level to tune
    recipe.fixed_epochs += recipe.tune_epochs;
    recipe.tune_epochs = 0;
  }
  if (options.arm == "bottom-up") recipe.arm = train::Arm::freeze_and_grow;
  if (options.arm == "bottom-up" || options.in_turn) examples::use_one_path_a_step(recipe);
  if (options.one_cosine) examples::use_one_cosine(recipe, e, e / 5);
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

/// One run of one recipe under the file name `name`; its rows, or none if it was stopped. `first_level`: what the
/// recipe's level 0 is called.
std::vector<Row> run_recipe(const Options& options, const examples::NamedSplit& data,
                            const std::vector<strata::LevelBudget>& budgets, const std::string& name, int first_level) {
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
  const train::Recipe recipe = recipe_for(options, budgets);
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
  judged.add({"dense", dense_accuracy, 1, 1, budgets.empty() ? epochs : recipe.dense_epochs,
              budgets.empty() ? done.seconds : done.dense_seconds});
  if (budgets.empty()) return judged.rows;
  const auto counts = train::count_layers<float>(network, trainer.levels());
  (void)strata::check_within(counts, recipe.levels).value();
  const std::string path = options.out + "/" + name + ".safetensors";
  const Model model = save(network, trainer.levels(), data, task, pool, path);
  const auto stored = examples::stored_counts(model, counts, path);
  for (int level = model.levels() - 1; level >= 0; --level) {
    const auto& count = stored[static_cast<std::size_t>(level)];
    judged.add({std::to_string(first_level + level),
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
  const auto budgets = examples::parse_levels(options.levels);
  if (options.level >= 0 && options.arm != "single")
    strata::raise(strata::Error("--level", "--arm single", "--arm " + options.arm));
  if (options.level >= static_cast<int>(budgets.size()))
    strata::raise(
        strata::Error("--level", "a level below " + std::to_string(budgets.size()), std::to_string(options.level)));
  if (!options.without.empty() && options.arm != "joint")
    strata::raise(strata::Error("--without", "--arm joint", "--arm " + options.arm));
  if (options.in_turn && options.arm != "joint")
    strata::raise(strata::Error("--in-turn", "--arm joint", "--arm " + options.arm));
  if (options.switches && options.arm != "joint" && options.arm != "bottom-up")
    strata::raise(strata::Error("--switches", "an arm with levels to switch between", "--arm " + options.arm));
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
    for (int level = static_cast<int>(budgets.size()) - 1; level >= 0; --level) {
      if (options.level >= 0 && level != options.level) continue;
      Options of_level = options;
      if (options.stop_after > 0) {
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
        of_level.stop_after = std::max(options.stop_after - taken.count(), 1e-3);
      }
      const auto found = run_recipe(of_level, data, {budgets[static_cast<std::size_t>(level)]},
                                    "single-" + std::to_string(level), level);
      if (found.empty()) return examples::unfinished;
      rows.insert(rows.end(), found.begin() + 1, found.end());  // without the dense model on the way there
    }
  } else {
    rows = run_recipe(options, data, options.arm == "dense" ? std::vector<strata::LevelBudget>() : budgets, options.arm,
                      0);
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
  app.add_option("--arm", options.arm, "joint, bottom-up, single (a model of its own for each level) or dense")
      ->check(CLI::IsMember({"joint", "bottom-up", "single", "dense"}))
      ->capture_default_str();
  app.add_option("--level", options.level, "single: this level only")->check(CLI::Range(0, strata::max_levels - 1));
  app.add_option("--epochs", options.epochs, "in all; half of them dense")
      ->check(CLI::Range(0.01, 10000.0))
      ->capture_default_str();
  app.add_option("--rate", options.rate, "learning rate of the dense phase")->capture_default_str();
  auto* const one_cosine = app.add_flag("--one-cosine", options.one_cosine, examples::one_cosine_help);
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
  app.add_option("--distillation", options.distillation, "share of the loss that comes from the dense model")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--temperature", options.temperature, "of distillation")->capture_default_str();
  app.add_option("--paths", options.paths, "joint: paths with a random switch of level in every step")
      ->check(CLI::Range(0, 16))
      ->capture_default_str();
  app.add_flag("--in-turn", options.in_turn, examples::in_turn_help)->excludes(one_cosine);
  app.add_option("--without", options.without,
                 "parts of the recipe to leave out, for ablations: tuning of the top level around frozen ones, whose "
                 "time goes to training all; means of statistics over batches at the end; least densities")
      ->delimiter(',')
      ->check(CLI::IsMember({"freezing", "recalibration", "floors"}));
  app.add_option("--floor", options.floor, "least density of every layer")->capture_default_str();
  app.add_option("--stem-floor", options.stem_floor, "of the first convolution")->capture_default_str();
  app.add_option("--classifier-floor", options.classifier_floor, "of the classifier")->capture_default_str();
  app.add_option("--batch", options.batch)->check(CLI::Range(1, 65536))->capture_default_str();
  app.add_option("--levels", options.levels, "weights:flops of each level as fractions, sparsest first")
      ->capture_default_str();
  app.add_option("--seed", options.seed, "of weights, batches and variations")->capture_default_str();
  app.add_option("--validation", options.validation, "training pictures to hold back and judge by instead of the test")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  app.add_option("--threads", options.threads)->check(CLI::Range(1, 256))->capture_default_str();
  app.add_flag("--bfloat16", options.bfloat16, examples::bfloat16_help);
  app.add_option("--out", options.out, "directory for models and checkpoints")->capture_default_str();
  app.add_option("--report", options.report, "file for the table as JSON");
  app.add_option("--dense-from", options.dense_from,
                 "checkpoint of another arm of the same seed: its dense model is taken instead of training it again");
  app.add_flag("--switches", options.switches, "judge paths that drop to a lower level at each stage as well");
  app.add_flag("--resume", options.resume, "go on from the checkpoint in --out");
  app.add_option("--stop-after", options.stop_after, "seconds after which the run saves itself and ends; 0: never")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
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
