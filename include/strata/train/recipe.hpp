// How nested levels are trained: which arm, how long each phase takes, rates and losses. A plain description that
// `train/fit.hpp` carries out.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/sparse/budget.hpp>
#include <strata/train/schedule.hpp>

namespace strata::train {

/// The two ways to nested levels.
enum class Arm : std::uint8_t {
  /// Dense; then all levels are pruned together, step by step, and trained together on fixed masks with distillation
  /// from the dense model (sandwich rule: arXiv 1903.05134); then the top level is tuned around the frozen rest.
  joint,
  /// Dense; then level by level from the sparsest: ADMM towards the level's budget, hard pruning, training of what was
  /// added; lower levels are frozen (arXiv 2112.10930, US20220076095A1).
  freeze_and_grow
};

/// A training run. Rates are those of the optimiser; epochs may be fractions.
struct Recipe {
  std::vector<LevelBudget> levels = {};  ///< sparsest first; empty: dense training only
  Arm arm = Arm::joint;

  index_t batch = 128;
  std::uint64_t seed = 1;  ///< of batches, variations, dropout and paths; `initialise` draws the weights
  bool bfloat16 = false;   ///< see `Context::bfloat16`; in all phases, not in evaluation

  double dense_epochs = 8;
  double dense_rate = 0.1;
  double warm_up_epochs = 1;  ///< of the dense phase
  /// Rates of all phases lie on one cosine from `dense_rate` to 0 instead of one cosine each; `sparse_rate` and
  /// `tune_rate` are not used. The dense model is not trained to its end then, and makes a poor teacher.
  bool one_cosine = false;

  double sparse_rate = 0.05;    ///< while pruning, and at the start of training on fixed masks
  double prune_epochs = 3;      ///< joint: gradual pruning; freeze_and_grow: ADMM, shared out between the levels
  double fixed_epochs = 6;      ///< joint: all levels on fixed masks; freeze_and_grow: shared out between the levels
  double tune_epochs = 1;       ///< joint: the top level around the frozen levels below
  double tune_rate = 0.01;      ///< at the start of tuning
  index_t masks_per_epoch = 8;  ///< how often masks (joint) or projections (ADMM) are chosen anew while pruning

  int random_paths = 1;  ///< joint: paths per step beside top and bottom level, dropping a level at a random stage
  /// joint: paths per step beside the top level while it is tuned, dropping from it at a random stage. Without them it
  /// moves away from the levels below, and a switch to one of those costs accuracy.
  int tune_paths = 0;
  /// joint: a step runs one of its paths, each in its turn, instead of all of them, and follows its loss instead of the
  /// mean of all. It costs as much less, so that the same passes make more steps.
  bool paths_in_turn = false;
  double distillation = 0.5;  ///< share of distillation from the dense model in the loss of levels, in [0, 1]
  /// Share of distillation from the step's path at the top level in the loss of its other paths, in [0, 1]; 0: those
  /// learn from what the top level learns from (in-place distillation: arXiv 1903.05134).
  double in_place_distillation = 0;
  double temperature = 2;  ///< of distillation
  /// What the layers' dropout rates are multiplied with while a level trains, by level, in [0, 1]; empty: 1. A sparse
  /// level fits its data less closely than the dense model for which a rate was chosen.
  std::vector<double> dropout_factors = {};
  double penalty = 5e-3;  ///< ADMM: rho, the pull towards the projection

  bool adamw = false;          ///< AdamW instead of SGD with Nesterov momentum
  bool coupled_decay = false;  ///< with `adamw`: the decay is part of the gradient, as in PyTorch's Adam
  double momentum = 0.9;
  double decay = 5e-4;  ///< weight decay
  /// Largest norm of all gradients together, those of weights that a phase leaves alone too, to which longer ones are
  /// scaled down; 0: none.
  double clip = 0;

  double floor = 0;                                         ///< least density of every prunable layer at every level
  std::vector<std::pair<std::string, double>> floors = {};  ///< exceptions by the name of the weight, "conv1.weight"

  index_t recalibration_batches = 20;  ///< for batch-norm statistics per level at the end; 0: keep the running ones

  /// Calls `f(name, number)` for every number of the recipe.
  template <class F>
  void visit(F&& f) const {
    f("arm", static_cast<double>(arm));
    f("batch", static_cast<double>(batch));
    f("seed", static_cast<double>(seed));
    if (bfloat16) f("bfloat16", 1.0);
    f("dense_epochs", dense_epochs);
    f("dense_rate", dense_rate);
    f("warm_up_epochs", warm_up_epochs);
    if (one_cosine) f("one_cosine", 1.0);
    f("sparse_rate", sparse_rate);
    f("prune_epochs", prune_epochs);
    f("fixed_epochs", fixed_epochs);
    f("tune_epochs", tune_epochs);
    f("tune_rate", tune_rate);
    f("masks_per_epoch", static_cast<double>(masks_per_epoch));
    f("random_paths", random_paths);
    if (tune_paths != 0) f("tune_paths", tune_paths);  // only then, so that older checkpoints stay valid
    if (paths_in_turn) f("paths_in_turn", 1.0);
    f("distillation", distillation);
    if (in_place_distillation != 0) f("in_place_distillation", in_place_distillation);
    f("temperature", temperature);
    f("penalty", penalty);
    for (std::size_t level = 0; level < dropout_factors.size(); ++level)
      f("dropout_factors." + std::to_string(level), dropout_factors[level]);
    f("adamw", adamw ? 1.0 : 0.0);
    if (coupled_decay) f("coupled_decay", 1.0);  // only then, so that older checkpoints stay valid
    f("momentum", momentum);
    f("decay", decay);
    if (clip != 0) f("clip", clip);
    f("floor", floor);
    for (const auto& [name, density] : floors) f("floors." + name, density);
    f("recalibration_batches", static_cast<double>(recalibration_batches));
    for (std::size_t level = 0; level < levels.size(); ++level) {
      f("levels." + std::to_string(level) + ".weights", levels[level].weights);
      f("levels." + std::to_string(level) + ".flops", levels[level].flops);
    }
  }

  /// Whether the dense phase is the same whatever the value of the number that `visit`, or a task's fingerprint, calls
  /// `name`; tasks begin such names with "level_".
  [[nodiscard]] static bool concerns_levels_only(std::string_view name) {
    constexpr std::string_view names[] = {
        "arm",         "sparse_rate",           "prune_epochs",          "fixed_epochs", "tune_epochs", "tune_rate",
        "floor",       "masks_per_epoch",       "random_paths",          "tune_paths",   "penalty",     "distillation",
        "temperature", "recalibration_batches", "in_place_distillation", "paths_in_turn"};
    return name.starts_with("floors.") || name.starts_with("levels.") || name.starts_with("dropout_factors.") ||
           name.starts_with("level_") || std::find(std::begin(names), std::end(names), name) != std::end(names);
  }

  /// Errors: numbers out of range or not finite (names the option), bad budgets.
  [[nodiscard]] Status check() const {
    constexpr double most_epochs = 1e9;
    std::optional<Error> error;
    visit([&](const std::string& name, double value) {
      if (error) return;
      if (!std::isfinite(value) || value < 0) error = Error("recipe." + name, "a finite number, not negative", value);
      if (name.ends_with("_epochs") && value > most_epochs) error = Error("recipe." + name, "at most 1e9", value);
    });
    if (error) return *error;
    if (batch < 1) return Error("recipe.batch", "at least 1", std::to_string(batch));
    if (masks_per_epoch < 1) return Error("recipe.masks_per_epoch", "at least 1", std::to_string(masks_per_epoch));
    if (distillation > 1) return Error("recipe.distillation", "0 to 1", std::to_string(distillation));
    if (in_place_distillation > 1)
      return Error("recipe.in_place_distillation", "0 to 1", std::to_string(in_place_distillation));
    if (in_place_distillation > 0 && paths_in_turn)
      return Error("recipe.in_place_distillation", "0 with paths in turn: a step has only one",
                   std::to_string(in_place_distillation));
    if (momentum >= 1) return Error("recipe.momentum", "below 1", std::to_string(momentum));
    if (!(temperature > 0)) return Error("recipe.temperature", "above 0", std::to_string(temperature));
    if (floor > 1) return Error("recipe.floor", "0 to 1", std::to_string(floor));
    for (const auto& [name, density] : floors)
      if (density > 1) return Error("recipe.floors." + name, "0 to 1", std::to_string(density));
    if (!dropout_factors.empty() && dropout_factors.size() != levels.size())
      return Error("recipe.dropout_factors", std::to_string(levels.size()) + ", one for each level",
                   std::to_string(dropout_factors.size()));
    for (const double factor : dropout_factors)
      if (factor > 1) return Error("recipe.dropout_factors", "0 to 1", std::to_string(factor));
    if (levels.size() > 2 && arm == Arm::joint && random_paths < 1)
      return Error("recipe.random_paths", "at least 1 with more than two levels", std::to_string(random_paths));
    return levels.empty() ? success() : check_budgets(levels);
  }
};

/// A stretch of a run in which the same weights are trained in the same way.
struct Phase {
  enum class Kind : std::uint8_t { dense, prune, fixed, tune, admm, retrain };

  Kind kind = Kind::dense;
  int level = 0;  ///< admm, retrain: the level that is made; tune: the top level
  std::int64_t steps = 0;
  Schedule schedule;

  [[nodiscard]] std::string name() const {
    switch (kind) {
      case Kind::dense:
        return "dense";
      case Kind::prune:
        return "prune";
      case Kind::fixed:
        return "train levels";
      case Kind::tune:
        return "tune top level";
      case Kind::admm:
        return "ADMM, level " + std::to_string(level);
      case Kind::retrain:
        return "retrain level " + std::to_string(level);
    }
    return "";
  }
};

/// Forward-backward passes of a step in a phase of `kind`; the teacher's, forwards only, is a third of one.
/// `switching`: the network has stages at which a path may drop a level.
[[nodiscard]] inline double passes_per_step(const Recipe& recipe, Phase::Kind kind, bool switching = true) {
  const double teacher = kind == Phase::Kind::dense || recipe.distillation == 0 ? 0 : 1.0 / 3;
  const bool joint = kind == Phase::Kind::prune || kind == Phase::Kind::fixed;
  if (recipe.paths_in_turn || (!joint && kind != Phase::Kind::tune)) return 1 + teacher;
  if (kind == Phase::Kind::tune) return 1 + teacher + (switching ? recipe.tune_paths : 0);
  return teacher + (recipe.levels.size() > 1 ? 2 + recipe.random_paths : 1);
}

/// The phases of `recipe` for `steps_per_epoch` steps an epoch; phases without steps are left out.
[[nodiscard]] inline std::vector<Phase> phases_of(const Recipe& recipe, std::int64_t steps_per_epoch) {
  std::vector<Phase> phases;
  const auto steps = [&](double epochs) {
    return static_cast<std::int64_t>(std::llround(epochs * static_cast<double>(steps_per_epoch)));
  };
  double epochs_so_far = 0;
  std::int64_t steps_so_far = 0;
  const auto add = [&](Phase::Kind kind, int level, double epochs, Schedule schedule) {
    epochs_so_far += epochs;
    // Of recipes with as many epochs in all, the steps in all are the same too if one cosine lies over them.
    schedule.steps = recipe.one_cosine ? steps(epochs_so_far) - steps_so_far : steps(epochs);
    steps_so_far += schedule.steps;
    if (schedule.steps > 0) phases.push_back({kind, level, schedule.steps, schedule});
  };
  using Shape = Schedule::Shape;
  const std::int64_t warm_up = steps(std::min(recipe.warm_up_epochs, recipe.dense_epochs));
  add(Phase::Kind::dense, 0, recipe.dense_epochs, {.rate = recipe.dense_rate, .warm_up = warm_up});
  const auto count = static_cast<int>(recipe.levels.size());
  if (count == 0) return phases;
  const Schedule constant{.shape = Shape::constant, .rate = recipe.sparse_rate};
  const Schedule falling{.rate = recipe.sparse_rate};
  if (recipe.arm == Arm::joint) {
    // Masks are chosen at the phase's last step, so it has to have one.
    add(Phase::Kind::prune, 0, std::max(recipe.prune_epochs, 1.0 / static_cast<double>(steps_per_epoch)), constant);
    add(Phase::Kind::fixed, 0, recipe.fixed_epochs, falling);
    if (count > 1) add(Phase::Kind::tune, count - 1, recipe.tune_epochs, {.rate = recipe.tune_rate});
  } else {
    for (int level = 0; level < count; ++level) {
      add(Phase::Kind::admm, level, std::max(recipe.prune_epochs / count, 1.0 / static_cast<double>(steps_per_epoch)),
          constant);
      add(Phase::Kind::retrain, level, recipe.fixed_epochs / count, falling);
    }
  }
  if (recipe.one_cosine) {
    Schedule whole{.rate = recipe.dense_rate, .warm_up = warm_up, .steps = 0};
    for (const Phase& phase : phases) whole.steps += phase.steps;
    for (Phase& phase : phases) {
      phase.schedule = whole;
      whole.first += phase.steps;
    }
  }
  return phases;
}

}  // namespace strata::train
