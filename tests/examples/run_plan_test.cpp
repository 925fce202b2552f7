// What the training programs make of their options: phases of every arm, and options that do not fit each other.
#include "support/run_plan.hpp"

#include <cmath>
#include <cstddef>
#include <string>

#include "support/catch.hpp"

namespace {

namespace train = strata::train;

constexpr examples::PhaseShares shares{.dense = 0.5, .prune = 0.2, .tune = 0.3};

bool close(double a, double b) {
  return std::abs(a - b) < 1e-9;
}

/// A plan, and what `edit` made of the options before it.
template <class Edit>
train::Recipe plan(const char* arm, const Edit& edit) {
  examples::RunOptions options;
  options.arm = arm;
  options.epochs = 40;
  edit(options);
  train::Recipe recipe;
  examples::plan_run(recipe, options, shares, 0.5);
  return recipe;
}

train::Recipe plan(const char* arm) {
  return plan(arm, [](examples::RunOptions&) {});
}

/// The option that the plan was refused for.
template <class Edit>
std::string refused(const char* arm, const Edit& edit) {
  try {
    (void)plan(arm, edit);
  } catch (const strata::Error& error) {
    return error.where();
  }
  return "nothing";
}

}  // namespace

TEST_CASE("every arm has its phases, in epochs of one budget of passes") {
  const train::Recipe dense = plan("dense");
  CHECK(dense.levels.empty());
  CHECK(dense.dense_epochs == 40);
  CHECK(examples::epochs_in_all(dense) == 40);

  const train::Recipe joint = plan("joint");
  REQUIRE(joint.levels.size() == 2);
  CHECK(joint.dense_epochs == 20);
  CHECK(close(joint.prune_epochs, 4));
  CHECK(close(joint.tune_epochs, 6));
  CHECK(examples::epochs_in_all(joint) == 40);

  const train::Recipe single = plan("single", [](examples::RunOptions& o) { o.single_level = 0; });
  REQUIRE(single.levels.size() == 1);
  CHECK(single.levels[0].weights == joint.levels[0].weights);
  CHECK(single.tune_epochs == 0);
  CHECK(close(single.fixed_epochs, 16));
  CHECK(plan("single").levels[0].weights == joint.levels[1].weights);

  // Two paths and the teacher in a joint step, one and the teacher in one of the others.
  using Kind = train::Phase::Kind;
  const train::Recipe turns = plan("joint", [](examples::RunOptions& o) { o.in_turn = true; });
  CHECK(turns.paths_in_turn);
  CHECK(turns.dense_epochs == 20);
  CHECK(close(turns.fixed_epochs * train::passes_per_step(turns, Kind::fixed),
              joint.fixed_epochs * train::passes_per_step(joint, Kind::fixed)));
  const train::Recipe bottom_up = plan("bottom-up");
  CHECK(bottom_up.arm == train::Arm::freeze_and_grow);
  CHECK(bottom_up.dense_epochs == 20);
  CHECK(bottom_up.tune_epochs == 0);
  CHECK(close(bottom_up.prune_epochs, turns.prune_epochs));
  CHECK(close(bottom_up.fixed_epochs, turns.fixed_epochs + turns.tune_epochs));

  examples::RunOptions options;
  options.epochs = 40;
  CHECK(examples::epochs_of_levels(options, joint) == 40);
  options.arm = "bottom-up";
  CHECK(examples::epochs_of_levels(options, bottom_up) > 50);
}

TEST_CASE("a plan has the seed, paths, precision, distillation and dropout that it was asked for") {
  const train::Recipe recipe = plan("joint", [](examples::RunOptions& o) {
    o.seed = 7;
    o.bfloat16 = true;
    o.paths = 2;
    o.distillation = 0.25;
    o.dense_epochs = 10;
    o.level_dropout = {0.1, 0.5};
    o.switches = true;
  });
  CHECK(recipe.seed == 7);
  CHECK(recipe.bfloat16);
  CHECK(recipe.random_paths == 2);
  CHECK(recipe.tune_paths == 2);
  CHECK(recipe.distillation == 0.25);
  CHECK(recipe.dense_epochs == 10);
  REQUIRE(recipe.dropout_factors.size() == 2);
  CHECK(close(recipe.dropout_factors[0], 0.2));
  CHECK(close(recipe.dropout_factors[1], 1));
}

TEST_CASE("options that do not fit their arm or each other are refused by name") {
  using Options = examples::RunOptions;
  CHECK(refused("dense", [](Options& o) { o.in_turn = true; }) == "--in-turn");
  CHECK(refused("bottom-up", [](Options& o) { o.in_turn = true; }) == "--in-turn");
  CHECK(refused("dense", [](Options& o) { o.level_dropout = {0.1, 0.1}; }) == "--level-dropout");
  CHECK(refused("joint", [](Options& o) { o.level_dropout = {0.1}; }) == "--level-dropout");
  CHECK(refused("joint", [](Options& o) { o.single_level = 1; }) == "--single-level");
  CHECK(refused("single", [](Options& o) { o.single_level = 2; }) == "--single-level");
  CHECK(refused("joint", [](Options& o) { o.levels = "0.1:0.1,0.2:0.2,0.3:0.3"; }) == "--paths");
  CHECK(refused("joint", [](Options& o) { o.dense_epochs = 41; }) == "--dense-epochs");
  CHECK(refused("bottom-up", [](Options& o) { o.one_cosine = true; }) == "--one-cosine");
  for (const char* arm : {"dense", "single"})
    CHECK(refused(arm, [](Options& o) { o.switches = true; }) == "--switches");
}

TEST_CASE("one cosine leaves the epochs in all as they were asked for") {
  for (const char* arm : {"joint", "single"}) {
    const bool single = arm == std::string("single");
    const train::Recipe recipe = plan(arm, [](examples::RunOptions& o) {
      o.one_cosine = true;
      o.distillation = 0.75;
    });
    CHECK(recipe.one_cosine);
    CHECK(examples::epochs_in_all(recipe) == 40);
    CHECK(recipe.dense_epochs == 8);
    CHECK(recipe.prune_epochs == 12);
    CHECK(recipe.tune_epochs == (single ? 0 : 4));
    CHECK(recipe.distillation == 0);
    CHECK(recipe.in_place_distillation == 0.75);
  }
  // A program that leaves tuning out does so here too.
  examples::RunOptions options;
  options.one_cosine = true;
  train::Recipe recipe;
  examples::plan_run(recipe, options, {.dense = 0.5, .prune = 0.2, .tune = 0});
  CHECK(recipe.tune_epochs == 0);
  CHECK(examples::epochs_in_all(recipe) == options.epochs);
}

TEST_CASE("steps with one path get as many passes as the joint steps with all that they replace") {
  for (const auto arm : {strata::train::Arm::joint, strata::train::Arm::freeze_and_grow})
    for (const double distillation : {0.0, 0.5}) {
      strata::train::Recipe recipe;
      recipe.arm = arm;
      recipe.levels.assign(2, {0.5, 0.5});
      recipe.distillation = distillation;
      recipe.random_paths = 2;
      recipe.tune_paths = 1;
      recipe.prune_epochs = 3;
      recipe.fixed_epochs = 5;
      recipe.tune_epochs = 2;
      const double teacher = distillation > 0 ? 1.0 / 3 : 0;
      const double all_paths = (3 + 5) * (4 + teacher) + 2 * (2 + teacher);
      examples::use_one_path_a_step(recipe);
      const double epochs = recipe.prune_epochs + recipe.fixed_epochs + recipe.tune_epochs;
      CHECK(std::abs(epochs * (1 + teacher) - all_paths) < 1e-9);
      CHECK((recipe.tune_epochs > 0) == (arm == strata::train::Arm::joint));
      CHECK(recipe.paths_in_turn == (arm == strata::train::Arm::joint));
    }
}
