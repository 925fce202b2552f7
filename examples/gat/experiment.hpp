// The GAT experiment: how its networks are trained (the dense one, nested levels by either arm, the choice of the epoch
// on validation nodes), how a run is stopped and gone on with, and the rows that arms and seeds give. Options of the
// command line and tables are the program's business.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <strata/core/archive.hpp>
#include <strata/core/error.hpp>
#include <strata/core/executor.hpp>
#include <strata/io/model_file.hpp>
#include <strata/runtime/graph_session.hpp>
#include <strata/runtime/thread_pool.hpp>
#include <strata/sparse/budget.hpp>
#include <strata/train/fit.hpp>
#include <strata/train/node_classification.hpp>

#include "../support/progress.hpp"
#include "../support/rows.hpp"
#include "../support/training_run.hpp"
#include "graph_text.hpp"
#include "network.hpp"

namespace gat {

using TrainingNet = GraphAttentionNet<strata::train::Training<float>>;
using Task = strata::train::NodeClassification<float>;
using Trainer = strata::train::Trainer<TrainingNet, Task>;

/// Lengths in passes over the graph (epochs), rates, and what the ablation leaves out.
struct Settings {
  std::int64_t dense_epochs = 200;  ///< of the teacher
  std::int64_t prune_epochs = 100;
  std::int64_t fixed_epochs = 200;
  std::int64_t tune_epochs = 50;
  double rate = 0.005;
  double sparse_rate = 0.01;
  double tune_rate = 0.002;
  double decay = 5e-4;
  double distillation = 0.7;
  double temperature = 1;
  int random_paths = 1;
  double weight_floor = 0.4;     ///< least density of conv2.lin.weight
  double attention_floor = 0.3;  ///< least density of the attention vectors
  double penalty = 5e-3;         ///< of ADMM
};

/// Weights of one level and the multiply-adds that a run of it does with them, and the same of the whole network.
struct Cost {
  std::int64_t weights = 0;
  std::int64_t total_weights = 0;
  std::int64_t multiply_adds = 0;  ///< with a weight: the products of a run that involve one
  std::int64_t total_multiply_adds = 0;

  [[nodiscard]] double weight_share() const {
    return static_cast<double>(weights) / static_cast<double>(total_weights);
  }
  [[nodiscard]] double executed_share() const {
    return static_cast<double>(multiply_adds) / static_cast<double>(total_multiply_adds);
  }
};

/// What a run of `level` on `input` multiplies: a weight of the first layer meets the nodes that have its feature,
/// every other weight all nodes. The whole network is counted in the same way, so sparse features lower both sides.
[[nodiscard]] inline Cost cost_of(TrainingNet& network, const strata::GraphInput& input, strata::Level level) {
  Cost cost;
  const auto starts = input.features.feature_offsets();
  for (const auto* parameter : strata::train::parameters<float>(network)) {
    if (parameter->shape.size() < 2) continue;
    const bool by_feature = parameter == &network.conv1.weight();
    const strata::index_t columns = parameter->shape[1];
    for (strata::index_t i = 0; i < parameter->value.size(); ++i) {
      const auto column = static_cast<std::size_t>(i % columns);
      const std::int64_t uses = by_feature ? starts[column + 1] - starts[column] : input.graph.nodes();
      ++cost.total_weights;
      cost.total_multiply_adds += uses;
      if (!parameter->contains(i, level)) continue;
      ++cost.weights;
      cost.multiply_adds += uses;
    }
  }
  return cost;
}

/// Accuracy and loss on validation nodes; better is more accuracy, then less loss.
struct Score {
  double accuracy = -1;
  double loss = 0;
  [[nodiscard]] bool better_than(const Score& other) const {
    return accuracy != other.accuracy ? accuracy > other.accuracy : loss < other.loss;
  }
};

/// The mean score of `levels`.
[[nodiscard]] inline Score score_of(const TrainingNet& network, const Task& task,
                                    const strata::train::LabelledGraph& data, const std::vector<int>& levels,
                                    strata::train::Context<float>& context) {
  Score score{0, 0};
  context.training = false;
  for (const int level : levels) {
    context.begin(strata::Level{level});
    const auto logits = task.run(network, context);
    score.accuracy += task.accuracy(logits, data.val) / static_cast<double>(levels.size());
    score.loss += task.cross_entropy(logits, data.val, 0) / static_cast<double>(levels.size());
  }
  return score;
}

/// The best values so far of a network whose structure stays.
class Best {
 public:
  void offer(TrainingNet& network, const Score& score) {
    if (!score.better_than(score_)) return;
    score_ = score;
    values_.clear();
    for (const auto* parameter : strata::train::parameters<float>(network)) values_.push_back(parameter->value);
  }
  /// Puts the values back and forgets them.
  void restore(TrainingNet& network) {
    const auto all = strata::train::parameters<float>(network);
    for (std::size_t p = 0; p < values_.size(); ++p) all[p]->value = values_[p];
    *this = Best();
  }

  void store(strata::Archive& archive) const {
    const std::array<double, 2> score = {score_.accuracy, score_.loss};
    archive.add<double>("gat.best", {2}, 0, score);
    for (std::size_t p = 0; p < values_.size(); ++p)
      archive.add<float>("gat.best." + std::to_string(p), {values_[p].size()}, 0,
                         std::span(values_[p].data(), static_cast<std::size_t>(values_[p].size())));
  }
  /// What was stored when `network` had the structure that it has. Errors, with nothing changed: arrays missing or of
  /// another size.
  [[nodiscard]] strata::Status load(const strata::Archive& archive, TrainingNet& network) {
    const strata::ArrayView* const score = archive.find("gat.best");
    if (score == nullptr || score->type != strata::DataType::f64 || score->size() != 2)
      return strata::Error("checkpoint gat.best", "2 numbers", score == nullptr ? "none" : "others");
    Best found;
    found.score_ = {score->as<double>()[0], score->as<double>()[1]};
    if (found.score_.better_than(Score())) {  // else nothing was offered
      for (const auto* parameter : strata::train::parameters<float>(network)) {
        const std::string name = "gat.best." + std::to_string(found.values_.size());
        const strata::ArrayView* const view = archive.find(name);
        if (view == nullptr || view->type != strata::DataType::f32 || view->size() != parameter->value.size())
          return strata::Error("checkpoint " + name, std::to_string(parameter->value.size()) + " entries",
                               view == nullptr ? "none" : std::to_string(view->size()));
        found.values_.emplace_back(Eigen::Map<const Array>(view->as<float>().data(), view->size()));
      }
    }
    *this = std::move(found);
    return strata::success();
  }

 private:
  using Array = strata::train::Parameter<float>::Array;

  Score score_;
  std::vector<Array> values_;
};

inline constexpr std::int64_t epochs_per_unit = 10;  ///< passes over the graph in an epoch of `Recipe`

[[nodiscard]] inline strata::train::Recipe base_recipe(const Settings& settings, std::uint64_t seed) {
  strata::train::Recipe recipe;
  recipe.batch = 1;
  recipe.seed = seed;
  recipe.warm_up_epochs = 0;
  recipe.dense_epochs = 0;
  recipe.dense_rate = settings.rate;
  recipe.adamw = true;
  recipe.coupled_decay = true;
  recipe.decay = settings.decay;
  recipe.masks_per_epoch = 1;
  recipe.recalibration_batches = 0;
  return recipe;
}

/// How a run is watched, where it saves itself, and what it goes on from.
struct RunOptions {
  std::function<void(const strata::train::Progress&)> progress = {};  ///< called after every step
  std::function<bool()> stop = {};               ///< asked after every step whether the run has to save itself and end
  std::string name = {};                         ///< of what is trained; its checkpoint bears it
  std::string checkpoint = {};                   ///< file that the run is saved to; empty: none
  double checkpoint_seconds = 30;                ///< between two saves
  const strata::Archive* resume_from = nullptr;  ///< what a run of that name saved
};

/// How far a run came.
struct RunResult {
  bool finished = false;
  std::int64_t epochs = 0;  ///< passes over the graph that the whole run has
  double seconds = 0;       ///< of training, those before the checkpoint included, without suspended time
};

/// A run's name in a checkpoint; empty if that is none of this experiment.
[[nodiscard]] inline std::string run_name(const strata::Archive& checkpoint) {
  const auto found = checkpoint.metadata().find("gat.run");
  return found == checkpoint.metadata().end() ? std::string() : found->second;
}

/// All that a run needs to go on after a whole step, the choice of its epoch included.
[[nodiscard]] inline strata::Archive state_of(Trainer& trainer, const Best& best,
                                              const strata::train::LabelledGraph& data, const std::string& name,
                                              double seconds) {
  strata::Archive archive = trainer.state();
  best.store(archive);
  // The trainer does not know the nodes that the choice is made on.
  archive.add<strata::GraphIndex>("gat.validation", {static_cast<strata::index_t>(data.val.size())}, 0, data.val);
  archive.metadata()["gat.run"] = name;
  archive.metadata()["seconds"] = std::to_string(seconds);
  return archive;
}

/// The seconds until then. Errors: a checkpoint of another run or with other validation nodes, arrays missing or of
/// another size.
[[nodiscard]] inline strata::Result<double> restore_state(const strata::Archive& archive, Trainer& trainer, Best& best,
                                                          TrainingNet& network,
                                                          const strata::train::LabelledGraph& data) {
  if (strata::Status status = trainer.restore(archive); !status) return status.error();
  const strata::ArrayView* const nodes = archive.find("gat.validation");
  const bool same = nodes != nullptr && nodes->type == strata::data_type_of<strata::GraphIndex>() &&
                    std::ranges::equal(nodes->as<strata::GraphIndex>(), data.val);
  if (!same)
    return strata::Error("checkpoint gat.validation", "the validation nodes of this graph",
                         nodes == nullptr ? "none" : "others");
  if (strata::Status status = best.load(archive, network); !status) return status.error();
  double seconds = 0;
  if (const auto found = archive.metadata().find("seconds"); found != archive.metadata().end())
    std::from_chars(found->second.data(), found->second.data() + found->second.size(), seconds);
  return seconds;
}

/// Runs `recipe` on `network`; every phase ends with the epoch that was best on validation nodes. Phases that choose
/// masks have no epochs to choose from. A run that is stopped and gone on with gives the bits of one that is not.
/// Raises: a checkpoint of another run, or one that cannot be written.
[[nodiscard]] inline RunResult run_recipe(TrainingNet& network, Task& task, const strata::train::LabelledGraph& data,
                                          const strata::train::Recipe& recipe, strata::Executor& executor,
                                          const RunOptions& options) {
  using Clock = std::chrono::steady_clock;
  examples::StepClock clock;
  Trainer trainer(network, task, recipe, executor);
  strata::train::Context<float> context(executor);
  std::vector<int> all;
  for (int level = 0; level < trainer.levels(); ++level) all.push_back(level);
  Best best;
  double before = 0;
  if (options.resume_from != nullptr) {
    const auto restored = restore_state(*options.resume_from, trainer, best, network, data);
    if (!restored) strata::raise(restored.error().within(options.checkpoint));
    before = restored.value();
  }
  const std::int64_t first = trainer.steps_done();
  auto saved = Clock::now();
  double passes = 0;
  bool stop = false;
  while (!trainer.done() && !stop) {
    strata::train::Progress progress;
    progress.phase = trainer.phase_name();
    std::vector<int> levels;
    if (progress.phase == "dense" || progress.phase == "train levels") levels = all;
    if (progress.phase == "tune top level") levels = {all.back()};
    if (progress.phase.starts_with("retrain level ")) levels = {std::stoi(progress.phase.substr(14))};
    passes += trainer.passes_of_step();
    progress.loss = trainer.step();
    if (!levels.empty()) best.offer(network, score_of(network, task, data, levels, context));
    if (trainer.phase_name() != progress.phase) {
      best.restore(network);
      if (trainer.phase_name() == "tune top level")  // tuning may turn out to be worse than none
        best.offer(network, score_of(network, task, data, {all.back()}, context));
    }
    clock.step();
    if (options.progress) {
      progress.step = trainer.steps_done();
      progress.steps = trainer.steps();
      progress.seconds = clock.seconds();
      progress.seconds_left = progress.seconds / passes * trainer.passes_left();
      progress.samples_per_second = static_cast<double>(progress.step - first) / progress.seconds;
      options.progress(progress);
    }
    // Whatever a step leads to is done by now, so that the next one may be another process's.
    stop = options.stop && options.stop();
    const std::chrono::duration<double> unsaved = Clock::now() - saved;
    if (!options.checkpoint.empty() && (stop || trainer.done() || unsaved.count() >= options.checkpoint_seconds)) {
      (void)strata::io::write_model(state_of(trainer, best, data, options.name, before + clock.seconds()),
                                    options.checkpoint)
          .value();
      saved = Clock::now();
    }
  }
  return {trainer.done(), trainer.steps(), before + clock.seconds()};
}

/// A network and the run that trained it; if that was stopped, the network is what it was then.
struct Trained {
  TrainingNet network;
  RunResult run;
};

/// A dense network trained for `epochs`, at its best epoch.
[[nodiscard]] inline Trained train_dense(const strata::train::LabelledGraph& data, const Settings& settings,
                                         std::uint64_t seed, std::int64_t epochs, strata::Executor& executor,
                                         const RunOptions& options) {
  TrainingNet network({.features = data.input.features.features(), .classes = data.classes});
  strata::train::initialise(network, seed);
  Task task(data, {.steps_per_epoch = epochs_per_unit});
  strata::train::Recipe recipe = base_recipe(settings, seed);
  recipe.dense_epochs = static_cast<double>(epochs) / epochs_per_unit;
  const RunResult run = run_recipe(network, task, data, recipe, executor, options);
  return {std::move(network), run};
}

/// Nested levels from the dense network `teacher`. Raises: budgets that cannot be met.
[[nodiscard]] inline Trained train_levels(const TrainingNet& teacher, const strata::train::LabelledGraph& data,
                                          const Settings& settings, strata::train::Arm arm,
                                          const std::vector<strata::LevelBudget>& budgets, std::uint64_t seed,
                                          strata::Executor& executor, const RunOptions& options) {
  Task task(data, {.steps_per_epoch = epochs_per_unit});
  strata::train::Recipe recipe = base_recipe(settings, seed);
  recipe.arm = arm;
  recipe.sparse_rate = settings.sparse_rate;
  recipe.tune_rate = settings.tune_rate;
  recipe.prune_epochs = static_cast<double>(settings.prune_epochs) / epochs_per_unit;
  recipe.fixed_epochs = static_cast<double>(settings.fixed_epochs) / epochs_per_unit;
  recipe.tune_epochs = static_cast<double>(settings.tune_epochs) / epochs_per_unit;
  recipe.distillation = settings.distillation;
  recipe.temperature = settings.temperature;
  recipe.random_paths = settings.random_paths;
  recipe.penalty = settings.penalty;
  recipe.floors = {{"conv2.lin.weight", settings.weight_floor},
                   {"conv1.att_src", settings.attention_floor},
                   {"conv1.att_dst", settings.attention_floor},
                   {"conv2.att_src", settings.attention_floor},
                   {"conv2.att_dst", settings.attention_floor}};
  if (budgets.size() == 1) {  // no top level to tune
    recipe.fixed_epochs += recipe.tune_epochs;
    recipe.tune_epochs = 0;
  }
  if (arm == strata::train::Arm::freeze_and_grow) {
    // As many passes as the joint arm. Its steps run the teacher forwards, both ends and the random paths; a bottom-up
    // step the teacher and one path, as a step of tuning does.
    const double teacher_share = settings.distillation > 0 ? 1.0 / 3 : 0;
    const double paths = budgets.size() > 1 ? 2.0 + settings.random_paths : 1.0;
    const double factor = (paths + teacher_share) / (1 + teacher_share);
    recipe.prune_epochs *= factor;
    recipe.fixed_epochs = recipe.fixed_epochs * factor + recipe.tune_epochs;
  }
  recipe.levels = budgets;
  TrainingNet network = teacher;
  const RunResult run = run_recipe(network, task, data, recipe, executor, options);
  if (run.finished)
    (void)strata::check_within(strata::train::count_layers<float>(network, static_cast<int>(budgets.size())), budgets)
        .value();
  return {std::move(network), run};
}

inline constexpr const char* cora = "examples/gat/data";  ///< directory of the graph that is there

struct ExperimentOptions {
  std::string data = cora;
  std::vector<std::string> arms = {"dense", "joint", "bottom-up", "single"};
  std::int64_t seeds = 20;
  std::int64_t first_seed = 1;
  int threads = 1;
  bool test = false;            ///< measure the test nodes too
  std::string report = {};      ///< file of rows; empty: none
  std::string models = {};      ///< directory for the trained models; empty: none
  bool table_only = false;      ///< nothing will be trained
  std::string checkpoint = {};  ///< file that the run under way is saved to; empty: none, and signals do what they did
  bool resume = false;          ///< go on from the checkpoint if it is there
  std::function<void(const strata::train::Progress&)> progress = {};  ///< empty: lines on stderr
  Settings settings = {};
};

/// What an arm trains: one network for each list of budgets.
struct Arm {
  strata::train::Arm kind = strata::train::Arm::joint;
  std::vector<std::vector<strata::LevelBudget>> networks;
  Settings settings;
  std::vector<int> level_names = {};  ///< what the only level of each network is called, where it is not its number
};

/// Errors: an arm of that name does not exist.
[[nodiscard]] inline Arm arm_of(const std::string& name, const Settings& settings) {
  using Budgets = std::vector<strata::LevelBudget>;
  const Budgets two_levels = {{0.0538, 0.0447}, {0.1338, 0.1497}};
  const Budgets four_levels = {{0.025, 0.025}, {0.0538, 0.0447}, {0.1338, 0.1497}, {0.40, 0.40}};
  Arm arm{strata::train::Arm::joint, {two_levels}, settings};
  if (name == "joint") return arm;
  if (name == "bottom-up") {
    arm.kind = strata::train::Arm::freeze_and_grow;
  } else if (name == "single") {
    arm.networks = {{two_levels[1]}, {two_levels[0]}};
    arm.level_names = {1, 0};
  } else if (name == "four-levels") {
    arm.networks = {four_levels};
  } else if (name == "no-distillation") {
    arm.settings.distillation = 0;
  } else if (name == "no-paths") {  // top and bottom level only, no path between them
    arm.settings.random_paths = 0;
  } else if (name == "no-freezing") {  // the time of tuning goes to training all levels together
    arm.settings.fixed_epochs += arm.settings.tune_epochs;
    arm.settings.tune_epochs = 0;
  } else if (name == "no-floors") {  // one ranking over all layers
    arm.settings.weight_floor = arm.settings.attention_floor = 0;
  } else {
    strata::raise(strata::Error("--arms",
                                "dense, joint, bottom-up, single, four-levels, no-distillation, no-paths, no-freezing "
                                "or no-floors",
                                "\"" + name + "\""));
  }
  return arm;
}

/// Arms and seeds one after the other, each with its rows. A seed's teacher, dense network and each network of an arm
/// is a run of its own, by whose name a checkpoint says whose it is.
class Experiment {
 public:
  /// Raises, before any training: a graph or report that cannot be read, rows of other runs, an arm that does not
  /// exist, a report or checkpoint that could not be written, a checkpoint that is none of this experiment.
  Experiment(ExperimentOptions options, std::string command)
      : options_(std::move(options)),
        command_(std::move(command)),
        data_name_(options_.data == cora ? "cora" : examples::data_name(options_.data)),
        data_(std::move(read_graph(options_.data)).value()),
        pool_(options_.threads) {
    if (!options_.table_only) {
      examples::check_report(options_.report);
      open_checkpoint();
    }
    if (!options_.report.empty()) rows_ = std::move(examples::read_rows(options_.report)).value();
    if (!options_.table_only) check_rows();
    for (const std::string& name : options_.arms)
      if (name != "dense") (void)arm_of(name, options_.settings);
    if (!options_.models.empty()) std::filesystem::create_directories(options_.models);
  }

  /// Trains and measures all that has no rows. With a checkpoint an interrupt or a signal to end stops the run under
  /// way, which saves itself after its step; false then.
  [[nodiscard]] bool run() {
    if (!options_.checkpoint.empty()) watching_.emplace();
    const bool finished = run_seeds();
    watching_.reset();
    return finished;
  }

  [[nodiscard]] const nlohmann::json& rows() const noexcept { return rows_; }

 private:
  using Model = strata::Model<GraphAttentionNet>;

  void open_checkpoint() {
    if (options_.checkpoint.empty()) {
      if (options_.resume) strata::raise(strata::Error("--resume", "--checkpoint with a file to go on from", "none"));
      return;
    }
    strata::train::check_checkpoint_path(options_.checkpoint, options_.resume);
    std::error_code unknown;  // such as a directory that may not be searched: the error is that of reading
    if (!options_.resume || (!std::filesystem::exists(options_.checkpoint, unknown) && !unknown)) return;
    // Read, not mapped: other runs may replace the file before the one that it is of comes.
    held_ = strata::io::read_model(options_.checkpoint, false).value();
    if (run_name(*held_).empty())
      strata::raise(strata::Error(options_.checkpoint, "a checkpoint of the GAT experiment", "another file"));
  }

  [[nodiscard]] bool stopped() const noexcept { return watching_ && watching_->stop_requested(); }

  /// The command that gives the rows of one run.
  [[nodiscard]] std::string command_of(const std::string& arm, std::int64_t seed) const {
    return command_ + " --arms " + arm + " --first-seed " + std::to_string(seed) + " --seeds 1";
  }

  /// Raises: rows of another graph or with other epochs, which do not belong in one table.
  void check_rows() const {
    for (const auto& row : rows_) {
      const auto expected = command_of(row.at("arm"), row.at("seed"));
      const auto command = row.value("command", "");
      if (row.at("data") != data_name_ || !(command + " ").starts_with(expected + " "))
        strata::raise(strata::Error(options_.report, "rows on " + data_name_ + " such as that of \"" + expected + "\"",
                                    "\"" + command + "\" on " + row.at("data").get<std::string>()));
    }
  }

  /// Whether there are the rows of the network with that level; those of a network are added all together.
  [[nodiscard]] bool has_rows(const std::string& arm, std::int64_t seed, const nlohmann::json& level) const {
    return std::any_of(rows_.begin(), rows_.end(), [&](const auto& row) {
      return row.at("arm").template get<std::string>() == arm && row.at("seed").template get<std::int64_t>() == seed &&
             row.at("level") == level && (!options_.test || row.at("accuracy").is_number());
    });
  }

  [[nodiscard]] bool run_seeds() {
    for (std::int64_t seed = options_.first_seed; seed < options_.first_seed + options_.seeds; ++seed) {
      std::optional<Trained> teacher;
      for (const std::string& name : options_.arms)
        if (!(name == "dense" ? run_dense(seed) : run_levels(name, seed, teacher))) return false;
    }
    return true;
  }

  /// Carries out the run of that name, as `train` does with its options: from the checkpoint if that is this run's,
  /// else from the beginning. `saved` false: leaves the checkpoint as it is.
  template <class Train>
  [[nodiscard]] Trained carry_out(const std::string& name, bool saved, const Train& train) {
    RunOptions run;
    run.name = name;
    run.stop = [this] { return stopped(); };
    run.progress = options_.progress;
    if (!run.progress) {
      std::fprintf(stderr, "%s\n", name.c_str());
      run.progress = examples::ProgressLine();
    }
    if (saved) run.checkpoint = options_.checkpoint;
    if (held_ && run_name(*held_) == name) run.resume_from = &*held_;
    Trained trained = train(run);
    if (run.resume_from != nullptr) held_.reset();
    return trained;
  }

  /// As many epochs as the joint arm has in all. False if it was stopped, as below.
  [[nodiscard]] bool run_dense(std::int64_t seed) {
    if (has_rows("dense", seed, "dense")) return true;
    if (stopped()) return false;
    const auto& s = options_.settings;
    const std::int64_t epochs = s.dense_epochs + s.prune_epochs + s.fixed_epochs + s.tune_epochs;
    Trained trained = carry_out("seed " + std::to_string(seed) + ", dense", true, [&](const RunOptions& run) {
      return train_dense(data_, s, static_cast<std::uint64_t>(seed), epochs, pool_, run);
    });
    if (!trained.run.finished) return false;
    add_rows("dense", seed, trained.network, 1, {}, trained.run.epochs, trained.run.seconds);
    return true;
  }

  [[nodiscard]] bool train_teacher(std::int64_t seed, std::optional<Trained>& teacher) {
    const std::string prefix = "seed " + std::to_string(seed) + ", ";
    const std::string name = prefix + "teacher";
    // The checkpoint of a network that this teacher is needed for is worth more than the teacher's.
    const bool awaited = held_ && run_name(*held_).starts_with(prefix) && run_name(*held_) != name;
    teacher = carry_out(name, !awaited, [&](const RunOptions& run) {
      return train_dense(data_, options_.settings, static_cast<std::uint64_t>(seed), options_.settings.dense_epochs,
                         pool_, run);
    });
    return teacher->run.finished;
  }

  [[nodiscard]] bool run_levels(const std::string& name, std::int64_t seed, std::optional<Trained>& teacher) {
    const Arm arm = arm_of(name, options_.settings);
    for (std::size_t n = 0; n < arm.networks.size(); ++n) {
      const int levels = static_cast<int>(arm.networks[n].size());
      const std::vector<int> names =
          arm.level_names.empty() ? std::vector<int>() : std::vector<int>{arm.level_names[n]};
      if (has_rows(name, seed, names.empty() ? levels - 1 : names.front())) continue;
      if (stopped()) return false;
      if (!teacher && !train_teacher(seed, teacher)) return false;
      if (stopped()) return false;
      const std::string run_of = "seed " + std::to_string(seed) + ", " + name +
                                 (names.empty() ? "" : ", level " + std::to_string(names.front()));
      Trained trained = carry_out(run_of, true, [&](const RunOptions& run) {
        return train_levels(teacher->network, data_, arm.settings, arm.kind, arm.networks[n],
                            static_cast<std::uint64_t>(seed), pool_, run);
      });
      if (!trained.run.finished) return false;
      add_rows(name, seed, trained.network, levels, names, arm.settings.dense_epochs + trained.run.epochs,
               teacher->run.seconds + trained.run.seconds);
    }
    return true;
  }

  /// Share of `nodes` whose largest logit is that of their label.
  [[nodiscard]] double accuracy(std::span<const float> logits, const std::vector<strata::GraphIndex>& nodes) const {
    std::size_t correct = 0;
    for (const auto node : nodes) {
      const auto row = logits.begin() + static_cast<std::ptrdiff_t>(node) * data_.classes;
      const auto largest = std::max_element(row, row + data_.classes) - row;
      correct += largest == data_.labels[static_cast<std::size_t>(node)] ? 1U : 0U;
    }
    return static_cast<double>(correct) / static_cast<double>(nodes.size());
  }

  /// What a stage hook needs to lower the level once.
  [[nodiscard]] static strata::Level drop_to(void* object, std::string_view /*stage*/,
                                             strata::Level /*level*/) noexcept {
    return *static_cast<strata::Level*>(object);
  }

  /// Measures every level, and every path that drops between the two layers, of the stored network as inference runs
  /// it, and writes the report.
  void add_rows(const std::string& arm, std::int64_t seed, TrainingNet& network, int levels,
                const std::vector<int>& names, std::int64_t epochs, double seconds) {
    using strata::Level;
    strata::Archive archive = strata::to_archive(network, levels);
    (void)strata::add_self_check<GraphAttentionNet>(archive).value();
    if (!options_.models.empty()) {
      std::string file = options_.models + "/" + arm;
      if (!names.empty()) file += "-" + std::to_string(names.front());
      (void)strata::io::write_model(archive, file + "-seed" + std::to_string(seed) + ".safetensors").value();
    }
    strata::GraphSession<Model> session(std::move(Model::from_archive(archive)).value(), data_.input,
                                        {.threads = 1, .executor = &pool_});
    for (int level = levels - 1; level >= 0; --level)
      for (int to = level; to >= 0; --to) {
        Level lowered{to};
        session.context().set_stage_hook(drop_to, &lowered);
        const auto logits = session.run(Level{level});
        session.context().set_stage_hook(nullptr, nullptr);
        const auto cost = cost_of(network, data_.input, Level{level});
        nlohmann::json row = {{"network", "gat"}, {"data", data_name_}, {"seed", seed}, {"arm", arm}};
        if (arm == "dense") {
          row["level"] = "dense";
        } else if (to != level) {
          row["level"] = std::to_string(level) + ">" + std::to_string(to);
        } else {
          row["level"] = names.empty() ? level : names.front();
        }
        row["validation"] = accuracy(logits, data_.val);
        row["accuracy"] = options_.test ? nlohmann::json(accuracy(logits, data_.test)) : nlohmann::json();
        const auto counts = strata::train::count_layers<float>(network, levels);
        const auto count = strata::count_level(counts, Level{level});
        row["weights"] = count.weight_share();
        row["flops"] = count.flop_share();
        row["executed"] = cost.executed_share();
        row["epochs"] = epochs;
        row["seconds"] = std::round(seconds * 10) / 10;
        row["command"] = command_of(arm, seed) + (options_.test ? " --test" : "");
        if (to != level)  // a path's cost lies between those of its levels
          row["weights"] = row["flops"] = row["executed"] = nullptr;
        // One that was measured before, without the test nodes, gives way.
        examples::add_row(rows_, std::move(row));
      }
    if (!options_.report.empty()) (void)examples::write_rows(rows_, options_.report).value();
  }

  ExperimentOptions options_;
  std::string command_;
  std::string data_name_;  ///< of its directory
  strata::train::LabelledGraph data_;
  strata::ThreadPool pool_;
  nlohmann::json rows_ = nlohmann::json::array();
  std::optional<strata::Archive> held_;  ///< the checkpoint to go on from, until its run comes
  std::optional<examples::WatchSignals> watching_;
};

}  // namespace gat
