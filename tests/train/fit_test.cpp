// Recipes carried out: nesting and budgets at every moment, frozen levels, and runs that stop and go on.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <random>
#include <string>
#include <unistd.h>
#include <vector>

#include <strata/runtime/thread_pool.hpp>
#include <strata/train/classification.hpp>
#include <strata/train/fit.hpp>

#include "support/catch.hpp"
#include "support/small_net.hpp"

namespace {

using strata::index_t;
using strata::Level;
namespace train = strata::train;
using Net = test::SmallNet<train::Training<float>>;
using Task = train::Classification<float>;
using Trainer = train::Trainer<Net, Task>;

/// Five classes: stripes of different widths and contrasts, with noise.
train::Dataset stripes(index_t count) {
  std::mt19937 random(11);
  train::Dataset data{{1, 9, 9}, 5, {}, {}, 0.5, 0.25};
  for (index_t i = 0; i < count; ++i) {
    const auto label = static_cast<index_t>(random() % 5);
    data.labels.push_back(static_cast<std::uint8_t>(label));
    for (index_t p = 0; p < 81; ++p) {
      const int contrast = label == 4 ? 15 : 75;
      const int noise = static_cast<int>(random() % 60) - 30;
      data.pixels.push_back(
          static_cast<std::uint8_t>(128 + noise + (p % 9 / (label + 1) % 2 == 0 ? contrast : -contrast)));
    }
  }
  return data;
}

/// A first layer that is not pruned, but counted.
template <class Family>
struct WholeStemNet {
  struct Config {
    template <class V>
    void visit(V&&) {}
  };
  static constexpr std::string_view architecture = "whole stem";

  explicit WholeStemNet(const Config&) {}
  [[nodiscard]] static Config config() { return {}; }

  auto operator()(typename Family::Context& context, const typename Family::Tensor& x) const {
    return fc(context, average(context, conv(context, stem(context, x))));
  }
  template <class V>
  void visit(V&& v) {
    v("stem", stem);
    v("conv", conv);
    v("fc", fc);
  }

  typename Family::Conv2d stem{strata::Conv2dOptions{.in_channels = 1,
                                                     .out_channels = 8,
                                                     .padding = 1,
                                                     .norm = false,
                                                     .activation = strata::Activation::relu,
                                                     .levelled = false}};
  typename Family::Conv2d conv{strata::Conv2dOptions{.in_channels = 8, .out_channels = 8, .padding = 1, .norm = false}};
  typename Family::GlobalAvgPool2d average;
  typename Family::Linear fc{strata::LinearOptions{.in_features = 8, .out_features = 5}};
};

/// Two convolutions, of which `visit` may forget one, the second with the first's output as residual.
template <class Family>
struct TwoConvolutions {
  struct Config {
    bool forgetful = false;
    index_t kernel = 3;
    index_t padding = 1;
    index_t middle = 8;
    bool average = true;
    template <class V>
    void visit(V&& v) {
      v("forgetful", forgetful);
      v("kernel", kernel);
      v("padding", padding);
      v("middle", middle);
      v("average", average);
    }
  };
  static constexpr std::string_view architecture = "two convolutions";

  explicit TwoConvolutions(const Config& options)
      : config_(options),
        first({.in_channels = 1, .out_channels = 8, .padding = 1}),
        second(
            {.in_channels = options.middle, .out_channels = 8, .kernel = options.kernel, .padding = options.padding}),
        last({.in_channels = 8, .out_channels = 5, .kernel = 1}) {}
  [[nodiscard]] const Config& config() const { return config_; }

  auto operator()(typename Family::Context& context, const typename Family::Tensor& x) const {
    const auto y = first(context, x);
    const auto z = last(context, second(context, y, y));
    return config_.average ? average(context, z) : z;
  }
  template <class V>
  void visit(V&& v) {
    v("first", first);
    if (!config_.forgetful) v(twice ? "first" : "second", second);
    v("fc", last);
  }

  Config config_;
  bool twice = false;  ///< names both convolutions alike
  typename Family::Conv2d first, second, last;
  typename Family::GlobalAvgPool2d average;
};

/// A normalised layer behind dropout.
template <class Family>
struct DropoutBeforeNorm {
  struct Config {
    template <class V>
    void visit(V&&) {}
  };
  static constexpr std::string_view architecture = "dropout before norm";

  explicit DropoutBeforeNorm(const Config&) {}
  [[nodiscard]] static Config config() { return {}; }

  auto operator()(typename Family::Context& context, const typename Family::Tensor& x) const {
    return second(context, dropout(context, first(context, flatten(context, x))));
  }
  template <class V>
  void visit(V&& v) {
    v("first", first);
    v("second", second, "norm");
  }

  typename Family::Flatten flatten;
  typename Family::Linear first{
      strata::LinearOptions{.in_features = 81, .out_features = 16, .activation = strata::Activation::relu}};
  typename Family::Dropout dropout{0.5};
  typename Family::Linear second{
      strata::LinearOptions{.in_features = 16, .out_features = 5, .bias = false, .norm = true}};
};

train::Recipe small_recipe(train::Arm arm) {
  train::Recipe recipe;
  recipe.levels = {{0.25, 0.25}, {0.5, 0.5}};
  recipe.arm = arm;
  recipe.batch = 32;
  recipe.dense_epochs = 1;
  recipe.prune_epochs = 1;
  recipe.fixed_epochs = 1;
  recipe.tune_epochs = 0.5;
  recipe.floors = {{"fc.weight", 0.2}};
  recipe.masks_per_epoch = 4;
  recipe.recalibration_batches = 3;
  return recipe;
}

/// Every bit of what a network learnt.
std::vector<float> bits_of(Net& network) {
  std::vector<float> bits;
  for (const auto* parameter : train::parameters<float>(network)) {
    bits.insert(bits.end(), parameter->value.begin(), parameter->value.end());
    for (const std::uint8_t stratum : parameter->strata) bits.push_back(stratum);
  }
  for (auto& norm : network.conv.norms()) {
    bits.insert(bits.end(), norm.running_mean.begin(), norm.running_mean.end());
    bits.insert(bits.end(), norm.running_variance.begin(), norm.running_variance.end());
  }
  return bits;
}

std::string error_of(const train::Recipe& recipe) {
  const train::Dataset data = stripes(64);
  Task task(data);
  Net network({.width = 24});
  strata::SerialExecutor executor;
  try {
    Trainer trainer(network, task, recipe, executor);
  } catch (const strata::Error& error) {
    return error.where();
  }
  return "none";
}

}  // namespace

TEST_CASE("both arms reach their budgets with nested levels that have learnt the task", "[many-runs]") {
  const train::Dataset data = stripes(640);
  for (const auto arm : {train::Arm::joint, train::Arm::freeze_and_grow}) {
    Net network({.width = 24});
    train::initialise(network, 3);
    Task task(data);
    strata::ThreadPool pool(2);
    train::Recipe recipe = small_recipe(arm);
    recipe.dense_epochs = recipe.prune_epochs = recipe.fixed_epochs = 6;
    std::vector<train::Progress> seen;
    train::FitOptions options;
    options.progress = [&](const train::Progress& progress) { seen.push_back(progress); };
    const auto report = train::fit(network, task, recipe, pool, options);
    REQUIRE(report.levels == 2);
    REQUIRE_FALSE(seen.empty());
    CHECK(seen.back().step == seen.back().steps);
    CHECK(std::abs(seen.back().seconds_left) < 1e-9);
    const auto counts = train::count_layers<float>(network, 2);
    CHECK(strata::check_within(counts, recipe.levels).ok());
    for (const auto* parameter : train::parameters<float>(network))
      for (std::size_t i = 0; i < parameter->strata.size(); ++i)
        if (parameter->strata[i] == strata::StratumMap::absent) CHECK(parameter->value[static_cast<index_t>(i)] == 0);
    train::Context<float> context(pool);
    CHECK(train::accuracy(*report.dense, context, data, Level{0}) > 0.95);
    CHECK(train::accuracy(network, context, data, Level{1}) > 0.9);
    CHECK(train::accuracy(network, context, data, Level{0}) > 0.85);
  }
}

TEST_CASE("three levels train together") {
  const train::Dataset data = stripes(160);
  Net network({.width = 24});
  Task task(data);
  strata::SerialExecutor executor;
  train::Recipe recipe = small_recipe(train::Arm::joint);
  recipe.levels = {{0.25, 0.25}, {0.4, 0.4}, {0.6, 0.6}};
  CHECK(train::fit(network, task, recipe, executor).levels == 3);
  CHECK(strata::check_within(train::count_layers<float>(network, 3), recipe.levels).ok());
}

TEST_CASE("what lower levels use does not change by a bit while a higher level is made") {
  const train::Dataset data = stripes(160);
  std::vector<std::vector<float>> ends;
  for (const auto& [arm, tune_paths] :
       {std::pair{train::Arm::joint, 0}, {train::Arm::joint, 1}, {train::Arm::freeze_and_grow, 0}}) {
    Net network({.width = 24});
    Task task(data);
    strata::SerialExecutor executor;
    train::Recipe recipe = small_recipe(arm);
    recipe.recalibration_batches = 0;
    recipe.tune_paths = tune_paths;
    Trainer trainer(network, task, recipe, executor);
    const auto of_level_0 = [&] {
      std::vector<float> bits;
      for (const auto* parameter : train::parameters<float>(network))
        for (index_t i = 0; i < parameter->value.size(); ++i)
          if (parameter->level < 1 && parameter->contains(i, Level{0})) bits.push_back(parameter->value[i]);
      const auto& norm = network.conv.norms().front();
      bits.insert(bits.end(), norm.running_mean.begin(), norm.running_mean.end());
      bits.insert(bits.end(), norm.running_variance.begin(), norm.running_variance.end());
      return bits;
    };
    const std::string last = arm == train::Arm::joint ? "tune top level" : "ADMM, level 1";
    while (trainer.phase_name() != last) trainer.step();
    const auto before = of_level_0();
    const auto all_before = bits_of(network);
    while (!trainer.done()) trainer.step();
    CHECK(of_level_0() == before);
    CHECK(bits_of(network) != all_before);
    ends.push_back(bits_of(network));
  }
  CHECK(ends[0] != ends[1]);
}

TEST_CASE("a run that was saved and restored ends with the same bits, from every step and with any threads",
          "[many-runs]") {
  const train::Dataset data = stripes(160);
  for (const auto arm : {train::Arm::joint, train::Arm::freeze_and_grow})
    for (const bool adamw : {false, true}) {
      train::Recipe recipe = small_recipe(arm);
      recipe.adamw = adamw;
      Task task(data, {.variation = {.shift = 1, .flip = true}});
      strata::ThreadPool two(2);
      strata::SerialExecutor one;
      Net whole({.width = 24});
      Trainer reference(whole, task, recipe, two);
      std::vector<strata::Archive> saved;
      while (!reference.done()) {
        saved.push_back(reference.state());
        reference.step();
      }
      saved.push_back(reference.state());
      const auto expected = bits_of(whole);
      const std::string path = "strata_fit_test_checkpoint.safetensors";
      for (std::size_t step = 0; step < saved.size(); ++step) {
        INFO("saved after step " << step << ", " << (adamw ? "AdamW" : "SGD"));
        REQUIRE(strata::io::write_model(saved[step], path).ok());
        const strata::Archive archive = strata::io::read_model(path).value();
        Net network({.width = 24});
        train::initialise(network, 77);
        Trainer trainer(network, task, recipe, one);
        REQUIRE(trainer.restore(archive).ok());
        CHECK(trainer.steps_done() == static_cast<std::int64_t>(step));
        while (!trainer.done()) trainer.step();
        CHECK(bits_of(network) == expected);
      }
      std::remove(path.c_str());
    }
}

TEST_CASE("fit saves a checkpoint and goes on from it") {
  const train::Dataset data = stripes(96);
  Task task(data);
  strata::SerialExecutor executor;
  const train::Recipe recipe = small_recipe(train::Arm::joint);
  const std::string path = "strata_fit_test_resume.safetensors";
  std::remove(path.c_str());
  Net whole({.width = 24});
  train::fit(whole, task, recipe, executor);
  Net stopped({.width = 24});
  int steps = 0;
  const auto stop = [&](const train::Progress&) {
    if (++steps == 7) throw std::runtime_error("stopped");
  };
  train::FitOptions options;
  options.progress = stop;
  options.checkpoint = path;
  options.checkpoint_seconds = 0;
  options.resume = true;
  CHECK_THROWS_AS(train::fit(stopped, task, recipe, executor, options), std::runtime_error);
  options.progress = nullptr;
  Net resumed({.width = 24});
  train::fit(resumed, task, recipe, executor, options);
  CHECK(bits_of(resumed) == bits_of(whole));
  // Once more, from the end of the run.
  Net again({.width = 24});
  CHECK(train::fit(again, task, recipe, executor, options).levels == 2);
  CHECK(bits_of(again) == bits_of(whole));
  std::remove(path.c_str());
}

TEST_CASE("a run without a dense phase does not go on from a checkpoint of other weights") {
  const train::Dataset data = stripes(96);
  Task task(data);
  strata::SerialExecutor executor;
  train::Recipe recipe = small_recipe(train::Arm::joint);
  recipe.dense_epochs = 0;
  train::FitOptions options;
  options.checkpoint = "strata_fit_test_start.safetensors";
  options.resume = true;
  std::remove(options.checkpoint.c_str());
  for (const unsigned seed : {1U, 1U, 2U}) {
    Net network({.width = 24});
    train::initialise(network, seed);
    if (seed == 1) {
      CHECK_NOTHROW(train::fit(network, task, recipe, executor, options));
    } else {
      CHECK_THROWS_AS(train::fit(network, task, recipe, executor, options), strata::Error);
    }
  }
  std::remove(options.checkpoint.c_str());
}

TEST_CASE("a checkpoint of another run is refused and changes nothing") {
  const train::Dataset data = stripes(96);
  Task task(data);
  strata::SerialExecutor executor;
  Net network({.width = 24});
  Trainer trainer(network, task, small_recipe(train::Arm::joint), executor);
  for (int i = 0; i < 5; ++i) trainer.step();
  const strata::Archive state = trainer.state();
  train::Recipe other = small_recipe(train::Arm::joint);
  other.seed = 2;
  Net second({.width = 24});
  Trainer different(second, task, other, executor);
  const auto before = bits_of(second);
  const strata::Error error = different.restore(state).error();
  CHECK(error.where() == "checkpoint");
  CHECK(error.expected() == "one of this run, that is with seed 2");
  CHECK(error.found() == "one with seed 1");
  strata::Archive broken;
  broken.metadata() = state.metadata();
  for (const auto& view : state.arrays())
    if (view.name != "fc.bias") broken.add_view(view);
  Net third({.width = 24});
  train::initialise(third, 5);
  Trainer damaged(third, task, small_recipe(train::Arm::joint), executor);
  const auto third_before = bits_of(third);
  CHECK(damaged.restore(broken).error().where() == "checkpoint fc.bias");
  CHECK(bits_of(third) == third_before);
  CHECK(damaged.steps_done() == 0);
  CHECK(bits_of(second) == before);
  // The optimiser too goes on as if nothing had been tried.
  Net fourth({.width = 24});
  Trainer tried(fourth, task, small_recipe(train::Arm::joint), executor);
  for (int i = 0; i < 5; ++i) tried.step();
  CHECK_FALSE(tried.restore(broken).ok());
  tried.step();
  trainer.step();
  CHECK(bits_of(fourth) == bits_of(network));
}

TEST_CASE("other means and deviations of the pixels are other data") {
  const train::Dataset data = stripes(64);
  train::Dataset other = data;
  other.mean = 0;
  CHECK(Task(data).fingerprint() != Task(other).fingerprint());
  other.normalise();
  train::Dataset same = other;
  same.normalise();
  CHECK(Task(same).fingerprint() == Task(other).fingerprint());
}

TEST_CASE("the bottom-up arm goes on with a layer that is not pruned as from every moment before") {
  const train::Dataset data = stripes(96);
  strata::SerialExecutor executor;
  train::Classification<float> task(data);
  using UnprunedNet = WholeStemNet<train::Training<float>>;
  using UnprunedTrainer = train::Trainer<UnprunedNet, Task>;
  train::Recipe recipe = small_recipe(train::Arm::freeze_and_grow);
  recipe.levels = {{0.4, 0.5}, {0.6, 0.7}};
  recipe.floors = {};
  const auto learnt = [](UnprunedNet& network) {
    std::vector<float> bits;
    for (const auto* parameter : train::parameters<float>(network)) {
      bits.insert(bits.end(), parameter->value.begin(), parameter->value.end());
      for (const std::uint8_t stratum : parameter->strata) bits.push_back(stratum);
    }
    return bits;
  };
  UnprunedNet whole({});
  train::initialise(whole, 3);
  UnprunedTrainer trainer(whole, task, recipe, executor);
  std::vector<strata::Archive> states;
  while (!trainer.done()) {
    states.push_back(trainer.state());
    trainer.step();
  }
  const auto counts = train::count_layers<float>(whole, 2);
  CHECK(counts[0].nnz == std::vector<std::int64_t>{72, 72});
  for (std::size_t s = 0; s < states.size(); ++s) {
    INFO("step " << s);
    UnprunedNet network({});
    UnprunedTrainer again(network, task, recipe, executor);
    REQUIRE(again.restore(states[s]).ok());
    while (!again.done()) again.step();
    CHECK(learnt(network) == learnt(whole));
  }
}

TEST_CASE("a network that has levels teaches others with its fullest one, and forgets them when it trains densely") {
  const train::Dataset data = stripes(320);
  Task task(data);
  strata::SerialExecutor executor;
  train::Recipe recipe = small_recipe(train::Arm::joint);
  recipe.levels = {{0.06, 0.08}, {0.6, 0.6}};
  recipe.floors = {};
  recipe.dense_epochs = 6;
  Net network({.width = 24});
  train::initialise(network, 3);
  (void)train::fit(network, task, recipe, executor);
  train::Context<float> context(executor);
  const double fullest = train::accuracy(network, context, data, Level{1});
  REQUIRE(fullest > train::accuracy(network, context, data, Level{0}));

  train::Recipe more = recipe;
  more.dense_epochs = 0;
  more.levels = {{0.06, 0.08}, {0.3, 0.3}, {0.6, 0.6}};
  Net again = network;
  const auto report = train::fit(again, task, more, executor);
  REQUIRE(report.dense);
  CHECK(train::accuracy(*report.dense, context, data, Level{0}) == fullest);
  CHECK(Net(*report.dense).conv.norms().size() == 1);

  train::Recipe dense;
  dense.batch = 32;
  dense.dense_epochs = 1;
  (void)train::fit(network, task, dense, executor);
  CHECK(network.conv.weight().strata.empty());
  CHECK((network.conv.weight().value != 0).all());
}

TEST_CASE("statistics are recalibrated without dropout") {
  const train::Dataset data = stripes(64);
  Task task(data);
  strata::SerialExecutor executor;
  train::Recipe recipe;
  recipe.batch = 64;
  recipe.dense_epochs = 1;
  recipe.recalibration_batches = 1;
  using DropoutNet = DropoutBeforeNorm<train::Training<float>>;
  DropoutNet network({});
  train::initialise(network, 3);
  (void)train::fit(network, task, recipe, executor);
  // What it was recalibrated on, in one batch: inputs of the second layer as they are when the network is used.
  const auto stored = network.second.norms().front().running_mean;
  DropoutNet without = network;
  train::Context<float> context(executor);
  context.dropout_factors = {0};
  context.norm_momentum = 1;
  std::vector<std::uint32_t> all(64);
  for (std::uint32_t i = 0; i < 64; ++i) all[i] = i;
  task.load(all, 1);
  context.begin(Level{0});
  (void)task.run(without, context);
  CHECK((without.second.norms().front().running_mean - stored).abs().maxCoeff() < 1e-5F);
}

TEST_CASE("a run goes on from another run's dense model to the bits that it reaches from the start") {
  const train::Dataset data = stripes(96);
  Task task(data, {.variation = {.flip = true}});
  strata::SerialExecutor executor;
  Net first({.width = 24});
  Trainer joint(first, task, small_recipe(train::Arm::joint), executor);
  const strata::Archive early = joint.state();
  while (joint.dense() == nullptr) joint.step();
  joint.step();
  const strata::Archive saved = joint.state();

  train::Recipe recipe = small_recipe(train::Arm::freeze_and_grow);
  recipe.levels = {{0.3, 0.3}};
  recipe.distillation = 0.9;
  recipe.dropout_factors = {0.5};
  recipe.dense_epochs += 1e-9;  // the same steps
  Net whole({.width = 24});
  train::fit(whole, task, recipe, executor);
  Net network({.width = 24});
  Trainer trainer(network, task, recipe, executor);
  const auto untouched = bits_of(network);
  CHECK(trainer.start_from_dense(early).error().where().starts_with("checkpoint dense."));
  CHECK(trainer.start_from_dense({}).error().where() == "checkpoint");
  CHECK(bits_of(network) == untouched);
  CHECK(trainer.steps_done() == 0);
  REQUIRE(trainer.start_from_dense(saved).ok());
  CHECK(trainer.steps_done() == 3);
  while (!trainer.done()) trainer.step();
  CHECK(bits_of(network) == bits_of(whole));

  train::Recipe without_levels = recipe;
  without_levels.levels.clear();
  without_levels.dropout_factors.clear();
  Net dense({.width = 24});
  Trainer dense_run(dense, task, without_levels, executor);
  dense_run.step();
  const strata::Archive unfinished = dense_run.state();
  while (!dense_run.done()) dense_run.step();
  Net from_run({.width = 24});
  Trainer after_dense_run(from_run, task, recipe, executor);
  CHECK(after_dense_run.start_from_dense(unfinished).error().where().starts_with("checkpoint dense."));
  REQUIRE(after_dense_run.start_from_dense(dense_run.state()).ok());
  CHECK(after_dense_run.steps_done() == 3);
  CHECK(bits_of(from_run) == bits_of(dense));
  REQUIRE(after_dense_run.dense() != nullptr);
  while (!after_dense_run.done()) after_dense_run.step();

  for (const auto& change : {+[](train::Recipe& r) { r.seed = 2; }, +[](train::Recipe& r) { r.dense_epochs = 2; },
                             +[](train::Recipe& r) { r.momentum = 0.8; }, +[](train::Recipe& r) { r.levels.clear(); },
                             +[](train::Recipe& r) { r.dense_epochs = 0; }}) {
    train::Recipe other = recipe;
    other.dropout_factors.clear();
    change(other);
    Net another({.width = 24});
    Trainer different(another, task, other, executor);
    CHECK_FALSE(different.start_from_dense(saved).ok());
    CHECK(different.steps_done() == 0);
  }
}

TEST_CASE("with one cosine every phase's rates go on where those of the phase before ended") {
  for (const auto arm : {train::Arm::joint, train::Arm::freeze_and_grow}) {
    train::Recipe recipe = small_recipe(arm);
    recipe.dense_rate = 0.3;
    recipe.warm_up_epochs = 0.5;
    recipe.one_cosine = true;
    const auto phases = train::phases_of(recipe, 10);
    REQUIRE(phases.size() > 3);
    std::int64_t steps = 0;
    for (const train::Phase& phase : phases) steps += phase.steps;
    const train::Schedule whole{.rate = 0.3, .warm_up = 5, .steps = steps};
    std::int64_t at = 0;
    for (const train::Phase& phase : phases)
      for (std::int64_t step = 0; step < phase.steps; ++step) CHECK(phase.schedule(step) == whole(at++));
    CHECK(whole(steps - 1) < 0.3 / 100);
    // The phases are rounded so that no step is lost or won in all.
    for (double* part : {&recipe.dense_epochs, &recipe.prune_epochs, &recipe.fixed_epochs}) *part = 1.25;
    recipe.tune_epochs = arm == train::Arm::joint ? 1.25 : 0;
    std::int64_t uneven = 0;
    for (const train::Phase& phase : train::phases_of(recipe, 7)) uneven += phase.steps;
    CHECK(uneven == (arm == train::Arm::joint ? 35 : 26));
  }
}

TEST_CASE("a dense model that was made for one cosine over other epochs is another one") {
  const train::Dataset data = stripes(96);
  Task task(data);
  strata::SerialExecutor executor;
  train::Recipe recipe = small_recipe(train::Arm::joint);
  recipe.one_cosine = true;
  recipe.fixed_epochs = 1.2;
  Net first({.width = 24});
  Trainer joint(first, task, recipe, executor);
  while (joint.dense() == nullptr) joint.step();
  const strata::Archive saved = joint.state();
  Net network({.width = 24});
  recipe.prune_epochs += recipe.tune_epochs;
  recipe.tune_epochs = 0;
  Trainer same(network, task, recipe, executor);
  CHECK(same.start_from_dense(saved).ok());
  recipe.levels = {{0.5, 0.5}};  // no top level to tune
  recipe.fixed_epochs = 1.2 - 1e-15;
  Trainer single(network, task, recipe, executor);
  CHECK(single.steps() == same.steps());
  CHECK(single.start_from_dense(saved).ok());
  recipe.tune_epochs = 1;
  recipe.fixed_epochs = 0;
  Trainer untuned(network, task, recipe, executor);
  CHECK(untuned.steps() < same.steps());
  CHECK_FALSE(untuned.start_from_dense(saved).ok());
  recipe.fixed_epochs = 2;
  Trainer longer(network, task, recipe, executor);
  CHECK_FALSE(longer.start_from_dense(saved).ok());
}

TEST_CASE("the bottom level learns from the top level of the same step") {
  const train::Dataset data = stripes(640);
  Task task(data);
  strata::ThreadPool pool(2);
  train::Recipe recipe = small_recipe(train::Arm::joint);
  recipe.dense_epochs = recipe.prune_epochs = recipe.fixed_epochs = 6;
  recipe.distillation = 0;
  std::vector<std::vector<float>> ends;
  // All of the loss but the top level's: what the bottom level knows of the labels comes through that.
  for (const double share : {0.0, 1.0}) {
    recipe.in_place_distillation = share;
    Net network({.width = 24});
    train::initialise(network, 3);
    train::fit(network, task, recipe, pool);
    train::Context<float> context(pool);
    CHECK(train::accuracy(network, context, data, Level{0}) > 0.85);
    ends.push_back(bits_of(network));
  }
  CHECK(ends[0] != ends[1]);
}

TEST_CASE("with paths in turn a step trains one level, and all of them in as many steps as there are paths") {
  const train::Dataset data = stripes(160);
  Task task(data);
  strata::SerialExecutor executor;
  train::Recipe recipe = small_recipe(train::Arm::joint);
  recipe.random_paths = 0;
  recipe.paths_in_turn = true;
  Net network({.width = 24});
  Trainer trainer(network, task, recipe, executor);
  CHECK(trainer.passes_of_step() == 1);
  while (trainer.phase_name() != "train levels") trainer.step();
  CHECK(std::abs(trainer.passes_of_step() - 4.0 / 3) < 1e-9);
  const auto means = [&](std::size_t level) {
    const auto& mean = network.conv.norms()[level].running_mean;
    return std::vector<float>(mean.begin(), mean.end());
  };
  for (std::size_t step = 0; trainer.phase_name() == "train levels"; ++step) {
    const std::vector<float> before[] = {means(0), means(1)};
    trainer.step();
    const std::size_t trained = step % 2 == 0 ? 1 : 0;
    CHECK(means(trained) != before[trained]);
    CHECK(means(1 - trained) == before[1 - trained]);
  }
}

TEST_CASE("with paths in turn levels reach their budgets and learn the task, and a run goes on to the same bits") {
  const train::Dataset data = stripes(640);
  Task task(data);
  strata::ThreadPool pool(2);
  train::Recipe recipe = small_recipe(train::Arm::joint);
  recipe.dense_epochs = recipe.prune_epochs = recipe.fixed_epochs = 6;
  recipe.tune_paths = 1;
  recipe.paths_in_turn = true;
  Net network({.width = 24});
  train::initialise(network, 3);
  Trainer trainer(network, task, recipe, pool);
  std::optional<strata::Archive> saved;
  while (!trainer.done()) {
    trainer.step();
    if (!saved && trainer.phase_name() == "tune top level") saved = trainer.state();
  }
  train::Context<float> context(pool);
  CHECK(strata::check_within(train::count_layers<float>(network, 2), recipe.levels).ok());
  CHECK(train::accuracy(network, context, data, Level{1}) > 0.9);
  CHECK(train::accuracy(network, context, data, Level{0}) > 0.85);
  Net again({.width = 24});
  Trainer other(again, task, recipe, pool);
  REQUIRE(other.restore(*saved).ok());
  while (!other.done()) other.step();
  CHECK(bits_of(again) == bits_of(network));
}

TEST_CASE("levels may train on pictures that are varied in another way than those of the dense model") {
  const train::Dataset data = stripes(96);
  const train::Variation dense{.shift = 1, .hole = 4};
  Task task(data, {.variation = dense});
  Task same(data, {.variation = dense, .level_variation = dense});
  Task other(data, {.variation = dense, .level_variation = train::Variation{.flip = true}});
  CHECK(same.fingerprint() == task.fingerprint());
  CHECK(other.fingerprint() != task.fingerprint());

  strata::SerialExecutor executor;
  const train::Recipe recipe = small_recipe(train::Arm::joint);
  Net first({.width = 24});
  Net second({.width = 24});
  Trainer one(first, task, recipe, executor);
  Trainer two(second, other, recipe, executor);
  while (!one.dense()) {
    one.step();
    two.step();
  }
  CHECK(bits_of(first) == bits_of(second));
  const strata::Archive saved = one.state();
  one.step();
  two.step();
  CHECK(bits_of(first) != bits_of(second));
  while (!two.done()) two.step();

  Net third({.width = 24});
  Trainer from_dense(third, other, recipe, executor);
  CHECK_FALSE(from_dense.restore(saved).ok());
  REQUIRE(from_dense.start_from_dense(saved).ok());
  while (!from_dense.done()) from_dense.step();
  CHECK(bits_of(third) == bits_of(second));

  Task another(data, {.variation = {.shift = 1}, .level_variation = dense});
  Net fourth({.width = 24});
  Trainer refused(fourth, another, recipe, executor);
  CHECK_FALSE(refused.start_from_dense(saved).ok());
}

TEST_CASE("data that does not fit the network is refused before any work") {
  strata::SerialExecutor executor;
  Net network({.width = 24});
  const auto refused = [&](const train::Dataset& data) {
    Task task(data);
    try {
      Trainer trainer(network, task, small_recipe(train::Arm::joint), executor);
    } catch (const strata::Error& error) {
      return std::string(error.what());
    }
    return std::string("none");
  };
  train::Dataset data = stripes(64);
  CHECK(refused(data) == "none");
  data.classes = 9;
  CHECK(refused(data) == "network: expected at least 9 outputs, one a class, found 5");
  data.classes = 5;
  data.shape = {1, 27, 3};
  CHECK(refused(data) == "dataset: expected pictures of 1 x 9 x 9, the network's input, found 1 x 27 x 3");
}

TEST_CASE("a run whose loss is no longer finite stops there") {
  const train::Dataset data = stripes(96);
  Task task(data);
  strata::SerialExecutor executor;
  train::Recipe recipe = small_recipe(train::Arm::joint);
  recipe.dense_rate = 1e30;
  Net network({.width = 24});
  int steps = 0;
  train::FitOptions options;
  options.progress = [&](const train::Progress& progress) {
    ++steps;
    CHECK(std::isfinite(progress.loss));
  };
  try {
    train::fit(network, task, recipe, executor, options);
    FAIL("the run went on");
  } catch (const strata::Error& error) {
    CHECK(error.where() == "training, step " + std::to_string(steps + 1) + " (dense)");
  }
}

TEST_CASE("a checkpoint in a directory that is not there is refused before any work") {
  const train::Dataset data = stripes(96);
  Task task(data);
  strata::SerialExecutor executor;
  Net network({.width = 24});
  int steps = 0;
  train::FitOptions options;
  options.progress = [&](const train::Progress&) { ++steps; };
  options.checkpoint = "strata_no_such_directory/run.safetensors";
  CHECK_THROWS_AS(train::fit(network, task, small_recipe(train::Arm::joint), executor, options), strata::Error);
  CHECK(steps == 0);
}

TEST_CASE("a file that is no checkpoint is not replaced by one, an old checkpoint is") {
  const train::Dataset data = stripes(96);
  Task task(data);
  strata::SerialExecutor executor;
  Net network({.width = 24});
  train::FitOptions options;
  options.checkpoint = (std::filesystem::temp_directory_path() / ("strata_fit_" + std::to_string(getpid()))).string();
  train::Recipe recipe = small_recipe(train::Arm::joint);
  const auto fit = [&] { train::fit(network, task, recipe, executor, options); };
  strata::save(network, 1, options.checkpoint);
  const auto size = std::filesystem::file_size(options.checkpoint);
  CHECK_THROWS_AS(fit(), strata::Error);
  CHECK(std::filesystem::file_size(options.checkpoint) == size);
  std::filesystem::remove(options.checkpoint);
  CHECK_NOTHROW(fit());
  recipe.seed = 2;
  CHECK_NOTHROW(fit());
  std::filesystem::remove(options.checkpoint);
}

TEST_CASE("two layers of one name are refused before any work") {
  const train::Dataset data = stripes(64);
  Task task(data);
  strata::SerialExecutor executor;
  TwoConvolutions<train::Training<float>> network({});
  network.twice = true;
  train::Recipe recipe = small_recipe(train::Arm::joint);
  recipe.floors = {};
  try {
    train::Trainer<TwoConvolutions<train::Training<float>>, Task> trainer(network, task, recipe, executor);
    FAIL("no error");
  } catch (const strata::Error& error) {
    CHECK(error.where() == "first.weight");
    CHECK(error.expected() == "a name of its own");
  }
}

TEST_CASE("a checkpoint that may be there but cannot be looked at is not begun anew") {
  const train::Dataset data = stripes(96);
  Task task(data);
  strata::SerialExecutor executor;
  Net network({.width = 24});
  int steps = 0;
  train::FitOptions options;
  options.progress = [&](const train::Progress&) { ++steps; };
  options.checkpoint = std::string(300, 'x');  // longer than names may be
  options.resume = true;
  CHECK_THROWS_AS(train::fit(network, task, small_recipe(train::Arm::joint), executor, options), strata::Error);
  CHECK(steps == 0);
}

TEST_CASE("a network is saved with the levels that it has, and only if its outputs are finite") {
  const std::string path = "strata_fit_test_levels.safetensors";
  std::remove(path.c_str());
  const train::Dataset data = stripes(160);
  Net network({.width = 24});
  Task task(data);
  strata::SerialExecutor executor;
  train::fit(network, task, small_recipe(train::Arm::joint), executor);
  const auto refused = [&](int levels) {
    try {
      strata::save(network, levels, path);
    } catch (const strata::Error& error) {
      return error.where();
    }
    return std::string("none");
  };
  CHECK(refused(3) == "bn");
  CHECK(refused(1) == "conv.weight: stratum map");
  network.fc.weight().value[0] = NAN;
  network.fc.weight().strata[0] = 0;
  CHECK(refused(2) == "fc.weight, number 0");
  network.fc.weight().value.setConstant(3e38F);
  CHECK(refused(2) == "output of level 0");
  CHECK(std::fopen(path.c_str(), "rb") == nullptr);
}

TEST_CASE("a network that forgets a layer or cannot take its pictures is refused before any work") {
  const train::Dataset data = stripes(64);
  strata::SerialExecutor executor;
  const auto refused = [&](auto network) {
    Task task(data);
    try {
      train::Trainer trainer(network, task, small_recipe(train::Arm::joint), executor);
    } catch (const strata::Error& error) {
      return std::string(error.what());
    }
    return std::string("none");
  };
  using Family = train::Training<float>;
  CHECK(refused(TwoConvolutions<Family>({})) == "none");
  CHECK(refused(TwoConvolutions<Family>({.forgetful = true})) ==
        "a layer with weights of 8 x 8 x 3 x 3: expected a name from the network's visit, found none: visit leaves the "
        "layer out");
  CHECK(refused(TwoConvolutions<Family>({.kernel = 17})) ==
        "second.weight: expected 8 channels of at least 15 x 15 pixels, found 8 x 9 x 9");
  CHECK(refused(TwoConvolutions<Family>({.middle = 7})) ==
        "second.weight: expected 7 channels of at least 1 x 1 pixels, found 8 x 9 x 9");
  CHECK(refused(TwoConvolutions<Family>({.padding = 0})) ==
        "second.weight: expected a residual of shape 1 x 8 x 7 x 7, found 1 x 8 x 9 x 9");
  CHECK(refused(TwoConvolutions<Family>({.average = false})) ==
        "network: expected an output of 5 x 1 x 1, found 5 x 9 x 9");
}

TEST_CASE("options of a task that cannot work are errors") {
  const train::Dataset data = stripes(8);
  const auto refused = [&](const train::ClassificationOptions& options) {
    try {
      Task task(data, options);
    } catch (const strata::Error& error) {
      return error.where();
    }
    return std::string("none");
  };
  CHECK(refused({.variation = {.shift = 9, .hole = 99}, .smoothing = 0.99}) == "none");
  CHECK(refused({.variation = {.shift = -1}}) == "variation.shift");
  CHECK(refused({.variation = {.hole = -1}}) == "variation.hole");
  CHECK(refused({.level_variation = train::Variation{.shift = -3}}) == "variation.shift");
  for (const double smoothing : {-0.1, 1.0, 2.0, static_cast<double>(NAN)})
    CHECK(refused({.smoothing = smoothing}) == "classification.smoothing");
}

TEST_CASE("accuracy is asked for at levels that there are and in batches of pictures") {
  const train::Dataset data = stripes(8);
  strata::SerialExecutor executor;
  train::Context<float> context(executor);
  Net network({.width = 24});
  train::set_levels(network, 2);
  CHECK(train::accuracy(network, context, data, Level{1}, 3) >= 0);
  CHECK_THROWS_AS(train::accuracy(network, context, data, Level{2}), strata::Error);
  CHECK(context.training);
  CHECK_THROWS_AS(train::accuracy(network, context, data, Level{-1}), strata::Error);
  CHECK_THROWS_AS(train::accuracy(network, context, data, Level{0}, 0), strata::Error);
}

TEST_CASE("recipes that cannot work are refused before any work") {
  const train::Recipe good = small_recipe(train::Arm::joint);
  CHECK(error_of(good) == "none");
  const auto with = [&](auto change) {
    train::Recipe recipe = good;
    change(recipe);
    return error_of(recipe);
  };
  CHECK(with([](auto& r) { r.batch = 0; }) == "recipe.batch");
  CHECK(with([](auto& r) { r.dense_rate = NAN; }) == "recipe.dense_rate");
  CHECK(with([](auto& r) { r.dense_epochs = 1e300; }) == "recipe.dense_epochs");
  CHECK(with([](auto& r) { r.levels.assign(17, {0.5, 0.5}); }) == "budgets");
  CHECK(with([](auto& r) { r.distillation = 1.5; }) == "recipe.distillation");
  CHECK(with([](auto& r) { r.in_place_distillation = 1.5; }) == "recipe.in_place_distillation");
  CHECK(with([](auto& r) {
          r.in_place_distillation = 0.5;
          r.paths_in_turn = true;
        }) == "recipe.in_place_distillation");
  CHECK(with([](auto& r) { r.dropout_factors = {0.5}; }) == "recipe.dropout_factors");
  CHECK(with([](auto& r) { r.dropout_factors = {0.5, 1.5}; }) == "recipe.dropout_factors");
  CHECK(with([](auto& r) { r.dropout_factors = {0.5, NAN}; }) == "recipe.dropout_factors.1");
  CHECK(with([](auto& r) { r.momentum = 1; }) == "recipe.momentum");
  CHECK(with([](auto& r) { r.floors = {{"conv9.weight", 0.1}}; }) == "recipe.floors");
  CHECK(with([](auto& r) { r.floors = {{"fc.bias", 0.1}}; }) == "recipe.floors");
  CHECK(with([](auto& r) { r.floor = 0.3; }) == "budget of level 0");
  CHECK(with([](auto& r) { r.levels = {{0.5, 0.5}, {0.4, 0.6}}; }) == "budget of level 1");
  CHECK(with([](auto& r) {
          r.levels = {{0.3, 0.3}, {0.4, 0.4}, {0.5, 0.5}};
          r.random_paths = 0;
        }) == "recipe.random_paths");
}

TEST_CASE("in a saved model level 0 lies inside level 1, places and values, bit for bit") {
  const train::Dataset data = stripes(160);
  Net network({.width = 24});
  Task task(data);
  strata::SerialExecutor executor;
  train::fit(network, task, small_recipe(train::Arm::joint), executor);
  const std::string path = "strata_fit_test_model.safetensors";
  const std::string prefix = "strata_fit_test_prefix.safetensors";
  strata::save(network, 2, path);
  REQUIRE(strata::io::write_truncated(path, Level{0}, prefix).ok());
  const auto whole = strata::load<test::SmallNet>(path);
  const auto small = strata::load<test::SmallNet>(prefix);
  const auto dense_of = [](const auto& csr, int level) {
    std::vector<float> dense(static_cast<std::size_t>(csr.rows() * csr.columns()));
    for (int s = 0; s <= level; ++s) {
      const auto& stratum = csr.stratum(s);
      std::size_t at = 0;
      for (index_t block = 0; block < csr.blocks(); ++block)
        for (index_t position = 0; position < csr.rows(); ++position) {
          const auto count = stratum.lengths[static_cast<std::size_t>(block * csr.rows() + position)];
          const index_t row = csr.row_at(block, position);
          for (index_t i = 0; i < static_cast<index_t>(count); ++i, ++at)
            dense[static_cast<std::size_t>(row * csr.columns() + block * csr.block_columns() + stratum.indices[at])] =
                stratum.values[at];
        }
    }
    return dense;
  };
  const auto compare = [&](const auto& stored, const auto& of_prefix, const train::Parameter<float>& trained) {
    const auto level_0 = dense_of(stored, 0);
    const auto level_1 = dense_of(stored, 1);
    CHECK(dense_of(of_prefix, 0) == level_0);
    for (std::size_t i = 0; i < level_0.size(); ++i) {
      if (level_0[i] != 0) CHECK(level_0[i] == level_1[i]);
      CHECK(level_1[i] == trained.value[static_cast<index_t>(i)]);
    }
  };
  compare(whole.network().conv.weights().sparse(), small.network().conv.weights().sparse(), network.conv.weight());
  compare(whole.network().fc.weights().sparse(), small.network().fc.weights().sparse(), network.fc.weight());
  std::remove(path.c_str());
  std::remove(prefix.c_str());
}
