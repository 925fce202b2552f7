// Levels without training, and what belongs to a network that was trained elsewhere: masks by magnitude, statistics
// measured anew, the way from a state_dict through pruning or training to a model.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <strata/strata.hpp>
#include <strata/train/classification.hpp>
#include <strata/train/fit.hpp>
#include <strata/train/prune.hpp>
#include <strata/train/recalibration.hpp>
#include <strata/train/state_dict.hpp>

#include "support/catch.hpp"
#include "support/small_net.hpp"

namespace {

using strata::index_t;
using strata::Level;
namespace train = strata::train;
using PrunedNet = test::SmallNet<train::Training<float>>;

const std::vector<strata::LevelBudget> two_levels = {{0.25, 0.3}, {0.5, 0.6}};

/// Pictures of stripes, whose direction and width are the class.
train::Dataset striped(index_t count) {
  train::Dataset data;
  data.shape = {1, 9, 9};
  data.classes = 5;
  std::mt19937 random(5);
  for (index_t i = 0; i < count; ++i) {
    const index_t label = i % 5;
    for (index_t p = 0; p < 81; ++p) {
      const index_t along = label % 2 == 0 ? p / 9 : p % 9;
      data.pixels.push_back(
          static_cast<std::uint8_t>((along / (label / 2 + 1)) % 2 * 180 + static_cast<index_t>(random() % 60)));
    }
    data.labels.push_back(static_cast<std::uint8_t>(label));
  }
  data.normalise();
  return data;
}

PrunedNet drawn(std::uint64_t seed) {
  PrunedNet network({.width = 16});
  train::initialise(network, seed);
  return network;
}

}  // namespace

TEST_CASE("pruning keeps the largest weights of nested levels within both budgets") {
  PrunedNet network = drawn(1);
  const PrunedNet before = network;
  REQUIRE(train::prune(network, two_levels).ok());
  const auto counts = train::count_layers<float>(network, 2);
  CHECK(strata::check_within(counts, two_levels).ok());
  CHECK(strata::count_level(counts, Level{1}).weight_share() > 0.45);
  CHECK(network.conv.norms().size() == 2);
  float least_kept = 1e9F;
  float most_absent = 0;
  for (index_t i = 0; i < network.conv.weight().value.size(); ++i) {
    const float magnitude = std::abs(before.conv.weight().value[i]);
    if (network.conv.weight().contains(i, Level{1})) {
      CHECK(network.conv.weight().value[i] == before.conv.weight().value[i]);
      least_kept = std::min(least_kept, magnitude);
    } else {
      CHECK(network.conv.weight().value[i] == 0);
      most_absent = std::max(most_absent, magnitude);
    }
  }
  CHECK(least_kept >= most_absent);
}

TEST_CASE("floors hold, and weights that were zero before stay in no level") {
  PrunedNet network = drawn(1);
  network.fc.weight().value.head(40).setZero();
  REQUIRE(train::prune(network, two_levels, {.floor = 0.1, .floors = {{"fc.weight", 0.3}}}).ok());
  const auto counts = train::count_layers<float>(network, 2);
  for (const auto& count : counts) {
    const auto size = static_cast<double>(count.rows * count.columns);
    if (count.name == "conv.weight") CHECK(static_cast<double>(count.nnz[0]) >= 0.1 * size);
    if (count.name == "fc.weight") CHECK(static_cast<double>(count.nnz[0]) >= 0.3 * size);
  }
  for (index_t i = 0; i < 40; ++i)
    CHECK(network.fc.weight().strata[static_cast<std::size_t>(i)] == strata::StratumMap::absent);
}

TEST_CASE("pruning that cannot be done names why and changes nothing") {
  PrunedNet network = drawn(1);
  const auto unchanged = [&] {
    const PrunedNet fresh = drawn(1);
    return network.conv.norms().size() == 1 && network.conv.weight().strata.empty() &&
           (network.conv.weight().value == fresh.conv.weight().value).all();
  };
  CHECK(train::prune(network, two_levels, {.floors = {{"head.weight", 0.3}}}).error().found() == "head.weight");
  CHECK(train::prune(network, two_levels, {.floor = 1.5}).error().where() == "floor");
  CHECK(train::prune(network, two_levels, {.floors = {{"fc.weight", -1}}}).error().where() == "floor of fc.weight");
  CHECK(train::prune(network, two_levels, {.floor = 0.9}).error().where() == "budget of level 0");
  CHECK_FALSE(train::prune(network, {}).ok());
  CHECK_FALSE(train::prune(network, {{0.5, 0.5}, {0.25, 0.25}}).ok());
  CHECK(unchanged());
}

TEST_CASE("recalibration gives each level the statistics of its own weights") {
  const train::Dataset data = striped(60);
  train::Classification<float> task(data);
  strata::SerialExecutor executor;
  PrunedNet network = drawn(2);
  REQUIRE(train::prune(network, two_levels).ok());
  CHECK((network.conv.norms()[0].running_mean == network.conv.norms()[1].running_mean).all());
  // One batch of all pictures: what a pass at the level finds.
  train::recalibrate(network, task, 2, executor, {.batches = 1, .batch = 1000});
  for (const int level : {0, 1}) {
    PrunedNet other = network;
    train::Context<float> context(executor);
    context.norm_momentum = 1;
    context.begin(Level{level});
    std::vector<std::uint32_t> all(60);
    for (std::uint32_t i = 0; i < 60; ++i) all[i] = i;
    task.load_plain(all);
    (void)task.run(other, context);
    const auto at = static_cast<std::size_t>(level);
    CHECK((network.conv.norms()[at].running_mean - other.conv.norms()[at].running_mean).abs().maxCoeff() < 1e-5F);
    CHECK((network.conv.norms()[at].running_variance - other.conv.norms()[at].running_variance).abs().maxCoeff() <
          1e-4F);
  }
  CHECK((network.conv.norms()[0].running_mean != network.conv.norms()[1].running_mean).any());

  // Several batches: their mean, however often the data are gone through.
  PrunedNet twice = network;
  train::recalibrate(twice, task, 2, executor, {.batches = 3, .batch = 1000});
  CHECK((network.conv.norms()[0].running_mean - twice.conv.norms()[0].running_mean).abs().maxCoeff() < 1e-5F);
  CHECK_THROWS_AS(train::recalibrate(network, task, 2, executor, {.batches = 0}), strata::Error);
  CHECK_THROWS_AS(train::recalibrate(network, task, 2, executor, {.batch = 0}), strata::Error);
  CHECK_THROWS_AS(train::recalibrate(network, task, 0, executor), strata::Error);
}

TEST_CASE("a context is after recalibration what it was before") {
  strata::SerialExecutor executor;
  train::Context<float> context(executor);
  context.training = false;
  context.norm_momentum = 0.25;
  context.bfloat16 = true;
  context.keep_norms_below = 1;
  context.drop_at_stage = 2;
  context.dropout_factors = {0.5};
  std::vector<int> levels;
  train::recalibrate(context, 2, 3, [&](index_t batch) {
    CHECK(context.training);
    CHECK_FALSE(context.bfloat16);
    CHECK(context.keep_norms_below == 0);
    CHECK(context.drop_at_stage == -1);
    CHECK(context.dropout_rate(0.4) == 0);
    CHECK(context.norm_momentum == 1 / static_cast<double>(batch + 1));
    levels.push_back(context.level.index);
  });
  CHECK(levels == std::vector<int>{0, 0, 0, 1, 1, 1});
  CHECK_FALSE(context.training);
  CHECK(context.norm_momentum == 0.25);
  CHECK(context.bfloat16);
  CHECK(context.keep_norms_below == 1);
  CHECK(context.drop_at_stage == 2);
  CHECK(context.dropout_factors == std::vector<double>{0.5});
}

TEST_CASE("a network from a state_dict gets levels by pruning or by training, and is stored with them") {
  const train::Dataset data = striped(200);
  train::Classification<float> task(data);
  strata::SerialExecutor executor;
  train::Context<float> context(executor);
  PrunedNet taught = drawn(3);
  train::Recipe dense;
  dense.batch = 20;
  dense.dense_epochs = 8;
  train::fit(taught, task, dense, executor);
  REQUIRE(train::accuracy(taught, context, data, Level{0}) > 0.9);
  const strata::Archive state_dict = train::to_state_dict(taught, Level{0});
  const std::string path = "strata_prune_test.safetensors";

  for (const bool trained : {false, true}) {
    INFO(trained);
    PrunedNet network({.width = 16});
    REQUIRE(train::from_state_dict(network, state_dict).ok());
    const double whole = train::accuracy(network, context, data, Level{0});
    CHECK(whole == train::accuracy(taught, context, data, Level{0}));
    if (trained) {
      train::Recipe recipe{.levels = two_levels};
      recipe.batch = 20;
      recipe.dense_epochs = 0;
      recipe.prune_epochs = recipe.fixed_epochs = 2;
      recipe.tune_epochs = 1;
      CHECK(train::fit(network, task, recipe, executor).dense.has_value());
    } else {
      REQUIRE(train::prune(network, two_levels).ok());
      train::recalibrate(network, task, 2, executor, {.batches = 4, .batch = 50});
    }
    strata::save(network, 2, path);
    const auto model = strata::load<test::SmallNet>(path, {.self_check = true});
    CHECK(model.levels() == 2);
    for (const int level : {0, 1}) {
      const double accuracy = train::accuracy(network, context, data, Level{level});
      CHECK(accuracy > (trained ? 0.8 : 0.4));
      // The stored model computes the same.
      strata::Session<test::SmallModel> session(model);
      std::vector<float> picture;
      std::vector<std::uint8_t> label;
      index_t correct = 0;
      for (std::uint32_t i = 0; i < 200; ++i) {
        data.batch(&i, 1, picture, label);
        const auto logits = session.run(picture, Level{level});
        correct += std::max_element(logits.begin(), logits.end()) - logits.begin() == label[0] ? 1 : 0;
      }
      CHECK(std::abs(static_cast<double>(correct) / 200 - accuracy) < 0.011);
    }
  }
  std::remove(path.c_str());
}

TEST_CASE("tasks on data whose channels are normalised in other ways are told apart") {
  train::Dataset data = striped(10);
  const std::string plain = train::Classification<float>(data).fingerprint();
  data.channel_means = {0.5};
  const std::string apart = train::Classification<float>(data).fingerprint();
  CHECK(apart != plain);
  data.channel_deviations = {0.5};
  CHECK(train::Classification<float>(data).fingerprint() != apart);
}
