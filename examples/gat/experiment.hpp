// How the networks of the GAT experiment are trained: the dense one, nested levels by either arm, and the choice of the
// epoch on validation nodes; and how a run is stopped and gone on with. Which runs there are is in arms.hpp.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <strata/core/archive.hpp>
#include <strata/core/error.hpp>
#include <strata/core/executor.hpp>
#include <strata/io/model_file.hpp>
#include <strata/sparse/budget.hpp>
#include <strata/train/fit.hpp>
#include <strata/train/node_classification.hpp>

#include "../support/run_plan.hpp"
#include "../support/training_run.hpp"
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

/// How an arm makes levels of a dense network.
[[nodiscard]] inline strata::train::Recipe level_recipe(const Settings& settings, strata::train::Arm arm,
                                                        const std::vector<strata::LevelBudget>& budgets,
                                                        std::uint64_t seed) {
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
  recipe.levels = budgets;
  if (arm == strata::train::Arm::freeze_and_grow) examples::use_one_path_a_step(recipe);
  return recipe;
}

/// Passes over the graph that making those levels takes.
[[nodiscard]] inline std::int64_t epochs_of(const strata::train::Recipe& recipe) {
  std::int64_t steps = 0;
  for (const auto& phase : strata::train::phases_of(recipe, epochs_per_unit)) steps += phase.steps;
  return steps;
}

/// Nested levels from the dense network `teacher`. Raises: budgets that cannot be met.
[[nodiscard]] inline Trained train_levels(const TrainingNet& teacher, const strata::train::LabelledGraph& data,
                                          const Settings& settings, strata::train::Arm arm,
                                          const std::vector<strata::LevelBudget>& budgets, std::uint64_t seed,
                                          strata::Executor& executor, const RunOptions& options) {
  Task task(data, {.steps_per_epoch = epochs_per_unit});
  const strata::train::Recipe recipe = level_recipe(settings, arm, budgets, seed);
  TrainingNet network = teacher;
  const RunResult run = run_recipe(network, task, data, recipe, executor, options);
  if (run.finished)
    (void)strata::check_within(strata::train::count_layers<float>(network, static_cast<int>(budgets.size())), budgets)
        .value();
  return {std::move(network), run};
}

}  // namespace gat
