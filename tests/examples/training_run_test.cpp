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
