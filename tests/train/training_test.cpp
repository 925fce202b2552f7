// Losses, optimisers, schedules and the allocation of levels, and all of them together on a task that can be learnt.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <new>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include <strata/runtime/session.hpp>
#include <strata/runtime/thread_pool.hpp>
#include <strata/train/allocation.hpp>
#include <strata/train/loss.hpp>
#include <strata/train/optimiser.hpp>
#include <strata/train/schedule.hpp>
#include <strata/train/training.hpp>

#include "support/catch.hpp"
#include "support/small_net.hpp"

namespace {

using strata::index_t;
using strata::Level;
namespace train = strata::train;

std::vector<train::Parameter<float>> random_layers(std::mt19937& random) {
  std::vector<train::Parameter<float>> layers;
  const index_t shapes[][3] = {{8, 9, 196}, {40, 72, 49}, {64, 360, 9}, {10, 64, 1}};  // rows, columns, uses
  for (const auto& [rows, columns, uses] : shapes) {
    train::Parameter<float> weight({rows, columns}, 0);
    std::normal_distribution<float> normal(0, 1 / std::sqrt(static_cast<float>(columns)));
    for (float& w : weight.value) w = normal(random);
    weight.levelled = true;
    weight.uses = uses;
    layers.push_back(weight);
  }
  return layers;
}

}  // namespace

TEST_CASE("levels nest, hold both bounds and nearly use up the one that binds") {
  for (unsigned seed = 0; seed < 20; ++seed) {
    std::mt19937 random(seed);
    auto weights = random_layers(random);
    std::vector<train::PrunableLayer<float>> layers;
    for (auto& weight : weights) layers.push_back({&weight, train::weight_scale(weight), 0.02});
    layers.front().floor = 0.3;
    const std::vector<strata::LevelBudget> budgets = {
        {0.0538, 0.0447 + 0.01 * (seed % 3)}, {0.1338, 0.1497}, {0.3, 0.25 + 0.05 * (seed % 4)}};
    REQUIRE(train::allocate(layers, budgets).ok());
    std::vector<strata::LayerCount> counts;
    for (const auto& weight : weights)
      counts.push_back(strata::count_layer("layer", weight.shape[0], weight.shape[1], weight.uses, 3, weight.strata));
    CHECK(strata::check_within(counts, budgets).ok());
    for (int level = 0; level < 3; ++level) {
      const auto count = strata::count_level(counts, Level{level});
      const auto& budget = budgets[static_cast<std::size_t>(level)];
      CHECK(std::max(count.weight_share() / budget.weights, count.flop_share() / budget.flops) > 0.97);
    }
    CHECK(static_cast<double>(counts[0].nnz[0]) >= 0.3 * 72);
  }
}

TEST_CASE("rankings of weights are those of a plain sort, ties and frozen weights included") {
  std::mt19937 random(3);
  for (const std::size_t size : {1U, 2U, 2047U, 5000U}) {
    train::Parameter<float> weight({1, static_cast<index_t>(size)}, 0);
    std::normal_distribution<float> normal;
    for (float& w : weight.value) w = std::round(normal(random) * 20) / 8 * (random() % 50 == 0 ? 1e-40F : 1.0F);
    weight.strata.resize(size);
    for (std::uint8_t& stratum : weight.strata) stratum = random() % 4 == 0 ? 0 : strata::StratumMap::absent;
    const std::vector<train::PrunableLayer<float>> layers{{.weight = &weight}};
    for (const int frozen_below : {0, 1}) {
      std::vector<std::uint32_t> expected(size);
      std::iota(expected.begin(), expected.end(), 0U);
      std::stable_sort(expected.begin(), expected.end(), [&](std::uint32_t a, std::uint32_t b) {
        const bool frozen_a = layers[0].frozen(a, frozen_below);
        const bool frozen_b = layers[0].frozen(b, frozen_below);
        return frozen_a != frozen_b ? frozen_a : layers[0].magnitude(a) > layers[0].magnitude(b);
      });
      CHECK(train::detail::ranking_of(layers, frozen_below)[0] == expected);
    }
  }
}

TEST_CASE("the largest of several sorted lists are those of one sorted list, ties included") {
  std::mt19937 random(4);
  for (int trial = 0; trial < 100; ++trial) {
    std::vector<std::vector<double>> lists(1 + random() % 4);
    std::vector<std::size_t> begins;
    std::vector<std::size_t> ends;
    std::vector<std::pair<double, std::size_t>> all;  // minus the score, list
    for (std::size_t l = 0; l < lists.size(); ++l) {
      lists[l].resize(random() % 30);
      const double scale = std::pow(10.0, static_cast<double>(random() % 9) - 4);
      for (double& score : lists[l]) score = scale * (static_cast<double>(random() % 11) - 5);  // -0.0 among them
      std::sort(lists[l].rbegin(), lists[l].rend());
      begins.push_back(random() % (lists[l].size() + 1));
      ends.push_back(lists[l].size());
      for (std::size_t i = begins[l]; i < ends[l]; ++i) all.emplace_back(-lists[l][i], l);
    }
    std::sort(all.begin(), all.end());
    std::vector<std::size_t> expected = begins;
    for (std::size_t chosen = 0; chosen <= all.size(); ++chosen) {
      const auto score = [&](std::size_t l, std::size_t i) { return lists[l][i]; };
      CHECK(train::detail::take_largest(begins, ends, chosen, score) == expected);
      if (chosen < all.size()) ++expected[all[chosen].second];
    }
  }
}

TEST_CASE("where FLOPs bind, layers that cost the same keep what one ranking gives them") {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<train::Parameter<float>> weights;
  for (int l = 0; l < 4; ++l) {
    auto& weight = weights.emplace_back(std::vector<index_t>{20, 50}, 0.0F);
    for (float& w : weight.value) w = normal(random);
    weight.levelled = true;
    weight.uses = 3;
  }
  std::vector<train::PrunableLayer<float>> layers;
  for (auto& weight : weights) layers.push_back({&weight, 1.0, 0.02});
  REQUIRE(train::allocate(layers, {{0.0538, 0.0447}}).ok());
  float least_kept = 1e9F;
  float largest_absent = 0;
  std::size_t kept = 0;
  for (const auto& weight : weights)
    for (index_t i = 0; i < weight.value.size(); ++i)
      if (weight.strata[static_cast<std::size_t>(i)] == 0) {
        ++kept;
        least_kept = std::min(least_kept, std::abs(weight.value[i]));
      }
  CHECK(kept == 178);  // 4.47 % of 4,000 are 178.8
  std::mt19937 again(5);
  normal.reset();
  for (const auto& weight : weights)
    for (const std::uint8_t stratum : weight.strata)
      if (const float w = std::abs(normal(again)); stratum != 0) largest_absent = std::max(largest_absent, w);
  CHECK(largest_absent <= least_kept);

  // Weights of one size leave nothing to choose by, but the bound is used up all the same.
  for (auto& weight : weights) weight.value.setConstant(0.5F);
  REQUIRE(train::allocate(layers, {{0.0538, 0.0447}}).ok());
  kept = 0;
  for (const auto& weight : weights)
    kept += static_cast<std::size_t>(std::count(weight.strata.begin(), weight.strata.end(), 0));
  CHECK(kept == 178);
}

TEST_CASE("a floor may be the whole budget, which is used up to the last weight") {
  for (const double share : {0.07, 0.14, 0.29, 0.5})
    for (const double floor : {0.0, share}) {
      INFO(share << " floor " << floor);
      train::Parameter<double> weight({10, 10}, 0);
      weight.levelled = true;
      weight.uses = 1;
      for (index_t i = 0; i < 100; ++i) weight.value[i] = static_cast<double>(i + 1);
      REQUIRE(train::allocate<double>({{&weight, 1.0, floor}}, {{share, 1}}).ok());
      CHECK(static_cast<double>(std::count(weight.strata.begin(), weight.strata.end(), 0)) == std::round(100 * share));
    }
}

TEST_CASE("budgets that cannot be met are errors") {
  std::mt19937 random(1);
  auto weights = random_layers(random);
  std::vector<train::PrunableLayer<float>> layers;
  for (auto& weight : weights) layers.push_back({&weight, 1.0, 0.5});
  CHECK(train::allocate(layers, {{0.1, 0.1}}).error().where() == "budget of level 0");
  CHECK_FALSE(train::allocate(layers, {}).ok());
  CHECK_FALSE(train::allocate(layers, {{0.5, 0.5}, {0.4, 0.6}}).ok());
  CHECK_FALSE(train::allocate(layers, {{NAN, 0.5}}).ok());
  // Of weights that no pass has used nobody knows the FLOPs.
  for (auto& weight : weights) weight.uses = 0;
  CHECK(train::allocate(layers, {{0.6, 0.6}}).error().where() == "budgets of FLOPs");
  CHECK(train::allocate(layers, {{0.6, 1}}).ok());
}

TEST_CASE("derivatives of the losses agree with finite differences") {
  strata::SerialExecutor executor;
  train::Context<double> context(executor);
  auto logits = context.make(3, {5, 1, 1}, true);
  const std::vector<std::uint8_t> labels = {0, 4, 2};
  std::vector<double> teacher(15);
  for (index_t i = 0; i < 15; ++i) {
    logits.value()[i] = std::sin(static_cast<double>(i));
    teacher[static_cast<std::size_t>(i)] = std::cos(static_cast<double>(3 * i));
  }
  const auto loss = [&] {
    logits.gradient().setZero();
    return train::cross_entropy(logits, labels, 0.1, 0.7) +
           train::distillation(logits, std::span<const double>(teacher), 3.0, 0.4);
  };
  loss();
  const Eigen::ArrayXd gradient = logits.gradient();
  for (index_t i = 0; i < 15; ++i) {
    logits.value()[i] += 1e-6;
    const double above = loss();
    logits.value()[i] -= 2e-6;
    const double below = loss();
    logits.value()[i] += 1e-6;
    CHECK(std::abs((above - below) / 2e-6 - gradient[i]) < 1e-8);
  }
}

TEST_CASE("schedules warm up and come down") {
  const train::Schedule cosine{.rate = 1, .warm_up = 4, .steps = 104};
  CHECK(cosine(0) == 0.25);
  CHECK(cosine(3) == 1);
  CHECK(std::abs(cosine(54) - 0.5) < 1e-12);
  CHECK(cosine(103) < 0.001);
  const train::Schedule steps{.shape = train::Schedule::Shape::step, .rate = 1, .steps = 100, .step_size = 30};
  CHECK(steps(29) == 1);
  CHECK(std::abs(steps(60) - 0.01) < 1e-12);
  const train::Schedule short_run{.rate = 1, .warm_up = 10, .steps = 5};
  CHECK(short_run(4) == 0.5);
  CHECK(short_run(12) == 0.5);
}

TEST_CASE("AdamW and SGD take the steps of their formulas and leave pruned and frozen weights alone") {
  strata::SerialExecutor executor;
  train::Context<double> context(executor);
  train::Parameter<double> weight({1, 3}, 1);
  weight.strata = {0, 1, strata::StratumMap::absent};
  weight.value[2] = 0;
  weight.decay = true;
  weight.gradient.setConstant(0.5);
  train::Sgd<double> sgd({&weight}, {.momentum = 0.9, .decay = 0.1});
  sgd.step(context, 0.1, {.frozen_below = 1});
  sgd.step(context, 0.1, {.frozen_below = 1});
  CHECK(weight.value[0] == 1);
  CHECK(weight.value[2] == 0);
  // v1 = 0.6, w1 = 0.94; v2 = 0.9 * 0.6 + 0.5 + 0.094 = 1.134, w2 = 0.94 - 0.1134
  CHECK(std::abs(weight.value[1] - 0.8266) < 1e-12);
  train::Parameter<double> other({1}, 1);
  other.gradient[0] = 0.5;
  other.decay = true;
  train::AdamW<double> adam({&other}, {.decay = 0.1});
  adam.step(context, 0.01);
  CHECK(std::abs(other.value[0] - (1 - 0.001 - 0.01)) < 1e-8);
}

TEST_CASE("optimisers change every weight they may and no other, the same on any number of threads") {
  constexpr strata::index_t size = 40'000;
  for (const bool levelled : {false, true})
    for (const bool nesterov : {false, true}) {
      INFO("levelled " << levelled << " nesterov " << nesterov);
      const auto run = [&](strata::Executor& executor, int frozen_below) {
        train::Context<float> context(executor);
        train::Parameter<float> by_sgd({size}, 1);
        by_sgd.decay = true;
        for (strata::index_t i = 0; i < size; ++i) {
          by_sgd.value[i] = static_cast<float>(i % 7) - 3.5F;
          by_sgd.gradient[i] = static_cast<float>(i % 11) - 5.27F;
        }
        if (levelled)
          for (strata::index_t i = 0; i < size; ++i)
            by_sgd.strata.push_back(i % 5 < 3 ? static_cast<std::uint8_t>(i % 5 % 2) : strata::StratumMap::absent);
        train::Parameter<float> by_adam = by_sgd;
        train::Sgd<float> sgd({&by_sgd}, {.decay = 0.1, .nesterov = nesterov});
        train::AdamW<float> adam({&by_adam}, {.decay = 0.1});
        for (int step = 0; step < 2; ++step) {
          sgd.step(context, 0.1, {.frozen_below = frozen_below});
          adam.step(context, 0.01, {.frozen_below = frozen_below});
        }
        train::clear_gradients<float>(context, {&by_sgd});
        CHECK((by_sgd.gradient == 0).all());
        return std::pair(by_sgd, by_adam);
      };
      strata::SerialExecutor serial;
      strata::ThreadPool threads(3);
      for (const int frozen_below : {0, 1}) {
        const auto [sgd, adam] = run(serial, frozen_below);
        const auto [threaded_sgd, threaded_adam] = run(threads, frozen_below);
        CHECK((sgd.value == threaded_sgd.value).all());
        CHECK((adam.value == threaded_adam.value).all());
        for (const auto* parameter : {&sgd, &adam})
          for (strata::index_t i = 0; i < size; ++i) {
            const bool may = levelled ? i % 5 < 3 && i % 5 % 2 >= frozen_below : frozen_below == 0;
            if ((parameter->value[i] != static_cast<float>(i % 7) - 3.5F) != may) FAIL("weight " << i);
          }
      }
    }
}

TEST_CASE("what a part of the work raises is raised once all parts have ended, and work goes on after it") {
  strata::ThreadPool pool(2);
  train::Context<float> context(pool);
  std::atomic<int> ended{0};
  for (int round = 0; round < 3; ++round) {
    ended = 0;
    CHECK_THROWS_AS(context.for_parts(64,
                                      [&](index_t part, index_t, index_t) {
                                        ++ended;
                                        if (part % 3 == 1) throw std::bad_alloc();
                                      }),
                    std::bad_alloc);
    CHECK(ended == 8);
    context.for_parts(64, [&](index_t, index_t first, index_t last) { ended += static_cast<int>(last - first); });
    CHECK(ended == 72);
  }
}

TEST_CASE("nested levels learn, and the compressed model computes what was trained") {
  using Family = train::Training<float>;
  test::SmallNet<Family> network({.width = 24});
  strata::ThreadPool pool(2);
  Family::Context context(pool);
  std::mt19937 random(4);
  std::normal_distribution<float> normal(0, 0.3F);
  // Five classes: stripes of five widths, with noise.
  const auto draw = [&](index_t batch, std::vector<float>& pictures, std::vector<std::uint8_t>& labels) {
    pictures.resize(static_cast<std::size_t>(batch * 81));
    labels.resize(static_cast<std::size_t>(batch));
    for (index_t i = 0; i < batch; ++i) {
      const auto label = static_cast<index_t>(random() % 5);
      labels[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(label);
      for (index_t p = 0; p < 81; ++p)
        pictures[static_cast<std::size_t>(i * 81 + p)] =
            (p % 9 / (label + 1) % 2 == 0 ? 1.0F : -1.0F) * (label == 4 ? 0.2F : 1.0F) + normal(random);
    }
  };
  std::vector<float> pictures;
  std::vector<std::uint8_t> labels;
  const auto train_levels = [&](std::int64_t steps, int levels, double rate) {
    const auto parameters = train::parameters<float>(network);
    train::Sgd<float> optimiser(parameters, {.momentum = 0.9, .decay = 1e-4});
    const train::Schedule schedule{.rate = rate, .warm_up = 5, .steps = steps};
    for (std::int64_t step = 0; step < steps; ++step) {
      draw(32, pictures, labels);
      train::clear_gradients(context, parameters);
      for (int level = 0; level < levels; ++level) {
        context.begin(Level{level});
        const auto logits = network(context, train::input_tensor(context, pictures.data(), 32, {1, 9, 9}));
        train::cross_entropy(logits, labels, 0.0, 1.0 / levels);
        context.backward();
      }
      optimiser.step(context, schedule(step));
    }
  };
  train_levels(150, 1, 0.1);
  std::vector<train::PrunableLayer<float>> layers;
  for (auto* parameter : train::parameters<float>(network))
    if (parameter->levelled) layers.push_back({parameter, train::weight_scale(*parameter), 0.15});
  REQUIRE(train::allocate(layers, {{0.3, 0.3}, {0.6, 0.6}}).ok());
  train::set_levels(network, 2);
  train_levels(200, 2, 0.05);
  draw(500, pictures, labels);
  const auto model = test::SmallModel::from_archive(strata::to_archive(network, 2)).value();
  CHECK(static_cast<double>(model.nnz(Level{0})) <= 0.3 * (24 * 9 + 24 * 5));
  strata::Session<test::SmallModel> session(model, {.threads = 1, .batch = 500});
  for (const int level : {0, 1}) {
    const auto output = session.run(pictures, Level{level});
    int correct = 0;
    for (std::size_t i = 0; i < 500; ++i) {
      const auto* row = output.data() + 5 * i;
      correct += std::max_element(row, row + 5) - row == labels[i] ? 1 : 0;
    }
    INFO("level " << level << " correct " << correct);
    CHECK(correct > 450);
  }
}
