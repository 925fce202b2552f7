// What the programs that train levels are told in common, and the phases of a recipe that follow from it: how long they
// are is the program's, what arms, one cosine and one path a step make of them is the same for all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/sparse/budget.hpp>
#include <strata/train/recipe.hpp>

#include "levels.hpp"

namespace examples {

/// How a program divides a run between phases.
struct PhaseShares {
  double dense = 0.5;  ///< of all epochs
  double prune = 0.2;  ///< of the others
  double tune = 0.2;   ///< of the others, if there are levels below the top one; what is left is for fixed masks
};

/// With one cosine over all phases, whatever the program.
inline constexpr PhaseShares one_cosine_shares{.dense = 0.2, .prune = 0.375, .tune = 0.125};

struct RunOptions {
  std::string arm = "joint";  ///< dense, joint, bottom-up or single
  std::string levels = paper_levels;
  std::optional<int> single_level;  ///< of the single arm; the top one if not given
  double epochs = 60;
  double dense_epochs = 0;  ///< 0: the program's share
  double distillation = 0.5;
  bool one_cosine = false;
  bool in_turn = false;
  std::vector<double> level_dropout;
  int paths = 0;
  bool switches = false;
  std::uint64_t seed = 1;
  bool bfloat16 = false;
  std::string out;
  std::string report;
  bool resume = false;
  std::string dense_from;
  double stop_after = 0;
};

/// Stretches the phases of `recipe`, planned for joint steps with all their paths, for steps with one, to as many
/// passes. The bottom-up arm, which tunes nothing, trains on its masks in that time.
inline void use_one_path_a_step(strata::train::Recipe& recipe) {
  using Kind = strata::train::Phase::Kind;
  strata::train::Recipe one = recipe;
  one.paths_in_turn = true;
  const auto longer = [&](Kind kind) {
    return strata::train::passes_per_step(recipe, kind) / strata::train::passes_per_step(one, kind);
  };
  one.prune_epochs *= longer(Kind::prune);
  one.fixed_epochs *= longer(Kind::fixed);
  one.tune_epochs *= longer(Kind::tune);
  if (one.arm == strata::train::Arm::freeze_and_grow) {
    one.fixed_epochs += std::exchange(one.tune_epochs, 0);
    one.paths_in_turn = false;
  }
  recipe = std::move(one);
}

/// Of all phases together.
[[nodiscard]] inline double epochs_in_all(const strata::train::Recipe& recipe) {
  return recipe.dense_epochs + recipe.prune_epochs + recipe.fixed_epochs + recipe.tune_epochs;
}

/// Which level of --levels level `level` of the run is.
[[nodiscard]] inline int level_of_budgets(const RunOptions& options, int level) {
  if (options.arm != "single") return level;
  return options.single_level.value_or(static_cast<int>(parse_levels(options.levels).size()) - 1);
}

/// Epochs of a run's levels: as many as were asked for, or more if its steps cost less than joint ones.
[[nodiscard]] inline double epochs_of_levels(const RunOptions& options, const strata::train::Recipe& recipe) {
  return options.in_turn || options.arm == "bottom-up" ? epochs_in_all(recipe) : options.epochs;
}

/// Sets seed, precision, arm, levels, paths, distillation and the epochs of all phases of `recipe`. The dense and the
/// joint arm take --epochs in all, the single arm too; the bottom-up arm, and the joint one with --in-turn, as many
/// passes as a joint run of that length. With one cosine distillation becomes one from the top level, so that there is
/// none with one level. `shares.tune` 0: the top level is not tuned, with one cosine neither. `dropout`: of the
/// network, for --level-dropout. Raises: options that do not fit the arm or each other.
inline void plan_run(strata::train::Recipe& recipe, const RunOptions& options, const PhaseShares& shares,
                     double dropout = 0) {
  const auto only_for = [&](bool given, const char* option, bool fits, const char* expected) {
    if (given && !fits) strata::raise(strata::Error(option, expected, "--arm " + options.arm));
  };
  const bool joint = options.arm == "joint";
  const bool single = options.arm == "single";
  const bool dense_only = options.arm == "dense";
  std::vector<strata::LevelBudget> budgets = parse_levels(options.levels);
  only_for(options.in_turn, "--in-turn", joint, "--arm joint");
  only_for(options.one_cosine, "--one-cosine", options.arm != "bottom-up", "--arm joint or single");
  only_for(!options.level_dropout.empty(), "--level-dropout", !dense_only, "an arm with levels");
  only_for(options.single_level.has_value(), "--single-level", single, "--arm single");
  if (joint && budgets.size() > 2 && options.paths == 0)
    strata::raise(strata::Error("--paths", "at least 1 with more than two levels, to train those in between", "0"));
  if (options.dense_epochs > options.epochs)
    strata::raise(strata::Error("--dense-epochs", "at most --epochs", std::to_string(options.dense_epochs)));

  recipe.seed = options.seed;
  recipe.bfloat16 = options.bfloat16;
  recipe.distillation = options.distillation;
  recipe.random_paths = recipe.tune_paths = options.paths;
  recipe.dense_epochs = options.epochs;
  recipe.prune_epochs = recipe.fixed_epochs = recipe.tune_epochs = 0;
  recipe.levels.clear();
  if (!dense_only) {
    recipe.dropout_factors = dropout_factors(options.level_dropout, dropout, budgets.size());
    if (single) {
      const auto level = static_cast<std::size_t>(level_of_budgets(options, 0));
      if (level >= budgets.size())
        strata::raise(
            strata::Error("--single-level", "a level below " + std::to_string(budgets.size()), std::to_string(level)));
      budgets = {budgets[level]};
      if (!recipe.dropout_factors.empty()) recipe.dropout_factors = {recipe.dropout_factors[level]};
    }
    recipe.levels = std::move(budgets);
    if (options.arm == "bottom-up") recipe.arm = strata::train::Arm::freeze_and_grow;
    const PhaseShares& used = options.one_cosine ? one_cosine_shares : shares;
    const double dense = options.dense_epochs > 0 ? options.dense_epochs : used.dense * options.epochs;
    const double sparse = options.epochs - dense;
    recipe.dense_epochs = dense;
    recipe.prune_epochs = used.prune * sparse;
    recipe.tune_epochs = recipe.levels.size() > 1 && shares.tune > 0 ? used.tune * sparse : 0;
    recipe.fixed_epochs = sparse - recipe.prune_epochs - recipe.tune_epochs;
    if (options.one_cosine) {
      recipe.one_cosine = true;
      recipe.in_place_distillation = std::exchange(recipe.distillation, 0);
    }
    if (options.in_turn || options.arm == "bottom-up") use_one_path_a_step(recipe);
  }
  if (options.switches && recipe.levels.size() < 2)
    strata::raise(strata::Error("--switches", "an arm with levels to switch between",
                                "--arm " + options.arm + ", " + std::to_string(recipe.levels.size()) + " levels"));
}

}  // namespace examples
