// Long training runs of the examples: what their time is when they are suspended, stopped and go on.
#include "support/training_run.hpp"

#include <chrono>
#include <cmath>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <random>
#include <span>
#include <string>
#include <thread>

#include <strata/core/executor.hpp>
#include <strata/train/classification.hpp>

#include "support/catch.hpp"
#include "support/small_net.hpp"

namespace {

using strata::index_t;
namespace train = strata::train;
using Net = test::SmallNet<train::Training<float>>;

train::Dataset noise(index_t count) {
  std::mt19937 random(3);
  train::Dataset data{{1, 9, 9}, 5, {}, {}, 0.5, 0.25};
  for (index_t i = 0; i < count; ++i) {
    data.labels.push_back(static_cast<std::uint8_t>(random() % 5));
    for (index_t p = 0; p < 81; ++p) data.pixels.push_back(static_cast<std::uint8_t>(random() % 256));
  }
  return data;
}

/// Whose `number`-th batch takes `seconds` longer, because the process was suspended if `suspended`.
struct SlowTask : train::Classification<float> {
  using Classification::Classification;

  void load(std::span<const std::uint32_t> indices, std::uint64_t seed = 0) {
    if (++batches == number) {
      std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
      if (suspended) std::raise(SIGCONT);
    }
    Classification::load(indices, seed);
  }

  int batches = 0;
  int number = 0;
  double seconds = 0.5;
  bool suspended = false;
};

std::string temporary() {
  return (std::filesystem::temp_directory_path() / ("training_run_" + std::to_string(std::random_device{}()))).string();
}

}  // namespace

TEST_CASE("one cosine leaves the epochs in all as they were asked for, and the bottom-up arm alone") {
  strata::train::Recipe recipe;
  recipe.distillation = 0.75;
  for (const std::size_t levels : {1U, 2U}) {
    recipe.levels.assign(levels, {0.5, 0.5});
    recipe.distillation = 0.75;
    examples::use_one_cosine(recipe, 40, 8);
    CHECK(recipe.one_cosine);
    CHECK(recipe.dense_epochs + recipe.prune_epochs + recipe.fixed_epochs + recipe.tune_epochs == 40);
    CHECK(recipe.dense_epochs == 8);
    CHECK(recipe.prune_epochs == 12);
    CHECK(recipe.tune_epochs == (levels == 1 ? 0 : 4));
    CHECK(recipe.distillation == 0);
    CHECK(recipe.in_place_distillation == 0.75);
  }
  recipe.arm = strata::train::Arm::freeze_and_grow;
  try {
    examples::use_one_cosine(recipe, 40, 8);
    FAIL("no error");
  } catch (const strata::Error& error) {
    CHECK(error.where() == "--one-cosine");
  }
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

TEST_CASE("time for which a training run was suspended does not count") {
  const train::Dataset data = noise(64);
  for (const bool suspended : {false, true}) {
    SlowTask task(data);
    task.number = 4;
    task.suspended = suspended;
    Net network({.width = 8});
    train::initialise(network, 1);
    train::Recipe recipe;
    recipe.batch = 8;
    recipe.dense_epochs = 1;
    strata::SerialExecutor executor;
    train::Trainer<Net, SlowTask> trainer(network, task, recipe, executor);
    const std::string checkpoint = temporary();
    const auto result = examples::run_training(trainer, 8, {.checkpoint = checkpoint, .steps_per_epoch = 8});
    CHECK(result.finished);
    CHECK(trainer.steps_done() == 8);
    CHECK((result.seconds >= 0.5) != suspended);
    CHECK(result.dense_seconds <= result.seconds);
    std::filesystem::remove(checkpoint);
  }
}

TEST_CASE("a training run stops when it is told to and goes on with its time") {
  const train::Dataset data = noise(64);
  train::Recipe recipe;
  recipe.batch = 8;
  recipe.dense_epochs = 2;
  strata::SerialExecutor executor;
  const std::string checkpoint = temporary();
  double seconds = 0;
  for (const bool second : {false, true}) {
    SlowTask task(data);
    task.number = second ? 0 : 3;
    Net network({.width = 8});
    train::initialise(network, 1);
    train::Trainer<Net, SlowTask> trainer(network, task, recipe, executor);
    const auto result = examples::run_training(
        trainer, 8, {.checkpoint = checkpoint, .resume = second, .stop_after = second ? 0 : 0.5, .steps_per_epoch = 8});
    CHECK(result.finished == second);
    CHECK((trainer.steps_done() == 16) == second);
    CHECK(result.seconds > seconds);
    CHECK(result.seconds >= 0.5);
    seconds = result.seconds;
  }
  std::filesystem::remove(checkpoint);
}

TEST_CASE("the time of the dense phase is that of its steps") {
  const train::Dataset data = noise(64);
  for (const double epochs : {1.0, 0.0}) {
    SlowTask task(data);
    Net network({.width = 8});
    train::initialise(network, 1);
    train::Recipe recipe;
    recipe.levels = {{.weights = 0.5, .flops = 0.5}};
    recipe.batch = 8;
    recipe.dense_epochs = epochs;
    recipe.prune_epochs = recipe.fixed_epochs = 1;
    recipe.tune_epochs = 0;
    strata::SerialExecutor executor;
    train::Trainer<Net, SlowTask> trainer(network, task, recipe, executor);
    // Slow is the last dense step, or the first one with levels where there is none.
    task.number = task.batches + (epochs > 0 ? 8 : 1);
    const std::string checkpoint = temporary();
    const auto result = examples::run_training(trainer, 8, {.checkpoint = checkpoint, .steps_per_epoch = 8});
    CHECK(result.finished);
    CHECK(result.seconds >= task.seconds);
    if (epochs > 0)
      CHECK(result.dense_seconds >= task.seconds);
    else
      CHECK(result.dense_seconds == 0);
    std::filesystem::remove(checkpoint);
  }
}
