// How the networks of the GAT experiment are trained: the dense one, nested levels by either arm, and the choice of the
// epoch on validation nodes. What is printed and stored is the programs' business.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/executor.hpp>
#include <strata/sparse/budget.hpp>
#include <strata/train/fit.hpp>
#include <strata/train/node_classification.hpp>

#include "network.hpp"

namespace gat {

using TrainingNet = GraphAttentionNet<strata::train::Training<float>>;
using Task = strata::train::NodeClassification<float>;

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

 private:
  Score score_;
  std::vector<strata::train::Parameter<float>::Array> values_;
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

using Progress = std::function<void(const std::string& phase, std::int64_t step, std::int64_t steps)>;

/// Runs `recipe` on `network`; every phase ends with the epoch that was best on validation nodes. Phases that choose
/// masks have no epochs to choose from.
inline void run_recipe(TrainingNet& network, Task& task, const strata::train::LabelledGraph& data,
                       const strata::train::Recipe& recipe, strata::Executor& executor, const Progress& progress) {
  strata::train::Trainer<TrainingNet, Task> trainer(network, task, recipe, executor);
  strata::train::Context<float> context(executor);
  std::vector<int> all;
  for (int level = 0; level < trainer.levels(); ++level) all.push_back(level);
  Best best;
  while (!trainer.done()) {
    const std::string phase = trainer.phase_name();
    std::vector<int> levels;
    if (phase == "dense" || phase == "train levels") levels = all;
    if (phase == "tune top level") levels = {all.back()};
    if (phase.starts_with("retrain level ")) levels = {std::stoi(phase.substr(14))};
    trainer.step();
    if (!levels.empty()) best.offer(network, score_of(network, task, data, levels, context));
    if (trainer.phase_name() != phase) {
      best.restore(network);
      if (trainer.phase_name() == "tune top level")  // tuning may turn out to be worse than none
        best.offer(network, score_of(network, task, data, {all.back()}, context));
    }
    if (progress) progress(phase, trainer.steps_done(), trainer.steps());
  }
}

/// A dense network trained for `epochs`, at its best epoch.
[[nodiscard]] inline TrainingNet train_dense(const strata::train::LabelledGraph& data, const Settings& settings,
                                             std::uint64_t seed, std::int64_t epochs, strata::Executor& executor,
                                             const Progress& progress) {
  TrainingNet network({.features = data.input.features.features(), .classes = data.classes});
  strata::train::initialise(network, seed);
  Task task(data, {.steps_per_epoch = epochs_per_unit});
  strata::train::Recipe recipe = base_recipe(settings, seed);
  recipe.dense_epochs = static_cast<double>(epochs) / epochs_per_unit;
  run_recipe(network, task, data, recipe, executor, progress);
  return network;
}

/// Nested levels from the dense network `teacher`. Raises: budgets that cannot be met.
[[nodiscard]] inline TrainingNet train_levels(const TrainingNet& teacher, const strata::train::LabelledGraph& data,
                                              const Settings& settings, strata::train::Arm arm,
                                              const std::vector<strata::LevelBudget>& budgets, std::uint64_t seed,
                                              strata::Executor& executor, const Progress& progress) {
  const auto count = static_cast<double>(budgets.size());
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
  if (arm == strata::train::Arm::freeze_and_grow) {
    // As many passes as the joint arm, whose steps each run several paths.
    const double paths = count > 1 ? 2.0 + settings.random_paths : 1.0;
    recipe.prune_epochs *= paths;
    recipe.fixed_epochs = recipe.fixed_epochs * paths + recipe.tune_epochs;
  }
  recipe.levels = budgets;
  TrainingNet network = teacher;
  run_recipe(network, task, data, recipe, executor, progress);
  (void)strata::check_within(strata::train::count_layers<float>(network, static_cast<int>(budgets.size())), budgets)
      .value();
  return network;
}

}  // namespace gat
