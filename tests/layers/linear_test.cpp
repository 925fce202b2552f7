// Linear layers of the inference family against one plain sum a row, at every level: single samples and batches, sparse
// and dense storage, empty rows and strata.
#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include <strata/layers/inference.hpp>
#include <strata/runtime/thread_pool.hpp>

#include "support/catch.hpp"

namespace {

using strata::index_t;
using strata::Level;
using Context = strata::Inference<float>::Context;
using Linear = strata::Inference<float>::Linear;
using strata::StratumMap;

/// How the weights are spread over the levels.
enum class Pattern { random, empty_rows, empty_first_stratum, empty_last_stratum, nothing, full_top, dense };
constexpr Pattern patterns[] = {
    Pattern::random,   Pattern::empty_rows, Pattern::empty_first_stratum, Pattern::empty_last_stratum, Pattern::nothing,
    Pattern::full_top, Pattern::dense};

struct Case {
  strata::LinearOptions options;
  index_t batch;
  int levels;
  Pattern pattern;
  bool residual;
  int threads;
};

std::vector<float> random_numbers(std::mt19937& random, index_t count, float bound = 1) {
  std::uniform_real_distribution<float> uniform(-bound, bound);
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (float& number : numbers) number = uniform(random);
  return numbers;
}

std::vector<std::uint8_t> random_strata(std::mt19937& random, const Case& c) {
  const auto rows = static_cast<std::size_t>(c.options.out_features);
  const auto columns = static_cast<std::size_t>(c.options.in_features);
  std::vector<std::uint8_t> strata(rows * columns, StratumMap::absent);
  for (std::size_t i = 0; i < strata.size(); ++i) {
    auto stratum = static_cast<std::uint8_t>(random() % static_cast<unsigned>(c.levels));
    const bool kept = random() % 10 < 4;
    if (c.pattern == Pattern::empty_first_stratum && stratum == 0) continue;
    if (c.pattern == Pattern::empty_last_stratum && stratum == c.levels - 1) continue;
    if (c.pattern == Pattern::empty_rows && i / columns % 3 != 1) continue;
    if (c.pattern == Pattern::nothing) continue;
    if (c.pattern == Pattern::dense) stratum = 0;
    if (kept || c.pattern == Pattern::full_top || c.pattern == Pattern::dense) strata[i] = stratum;
  }
  return strata;
}

double activated(double x, strata::Activation activation) {
  switch (activation) {
    case strata::Activation::identity:
      return x;
    case strata::Activation::relu:
      return std::max(x, 0.0);
    case strata::Activation::relu6:
      return std::min(std::max(x, 0.0), 6.0);
    case strata::Activation::leaky_relu:
      return x > 0 ? x : 0.01 * x;
    case strata::Activation::elu:
      return x > 0 ? x : std::exp(x) - 1;
    case strata::Activation::sigmoid:
      return 1 / (1 + std::exp(-x));
    case strata::Activation::tanh:
      return std::tanh(x);
    case strata::Activation::silu:
      return x / (1 + std::exp(-x));
  }
  return x;
}

/// Largest difference of the layer to sums in double, relative to 1 + |sum|, over all levels.
double difference(const Case& c) {
  std::mt19937 random(5);
  const auto& o = c.options;
  const index_t rows = o.out_features;
  const index_t columns = o.in_features;
  const float bound = 2 / std::sqrt(static_cast<float>(columns));
  const std::vector<float> weights = random_numbers(random, rows * columns, bound);
  const std::vector<std::uint8_t> strata = random_strata(random, c);
  strata::Archive archive;
  archive.set_levels(c.levels);
  strata::ParameterSink sink(archive);
  if (c.pattern == Pattern::dense) {
    sink.array<float>("fc.weight", {rows, columns}, 0, weights);
  } else {
    const auto map = StratumMap::from_strata(rows, columns, c.levels, strata).value();
    sink.leveled_csr("fc.weight", strata::LeveledCsr<float, strata::LinearIndex>::from_dense(
                                      weights, map, strata::linear_block_columns(columns)));
  }
  std::vector<std::vector<float>> scale, offset;
  for (int level = 0; level < c.levels; ++level) {
    scale.push_back(random_numbers(random, rows, 2));
    offset.push_back(random_numbers(random, rows));
    if (!o.norm) continue;
    sink.per_level<float>("bn.scale", level, scale.back());
    sink.per_level<float>("bn.bias", level, offset.back());
  }
  if (!o.norm && o.bias) sink.array<float>("fc.bias", {rows}, 0, offset[0]);
  Linear layer(o);
  strata::ParameterSource source(archive);
  layer.load("fc", "bn", source);
  REQUIRE(source.finish("").ok());
  REQUIRE(layer.weights().is_sparse() == (c.pattern != Pattern::dense));

  const std::vector<float> input = random_numbers(random, c.batch * columns);
  const std::vector<float> residual = random_numbers(random, c.batch * rows);
  strata::ThreadPool pool(c.threads);
  Context context(pool);
  context.set_checking(true);
  double worst = 0;
  for (int level = 0; level < c.levels; ++level) {
    context.set_level(Level{level});
    auto x = context.make(c.batch, {columns, 1, 1});
    std::fill(x.data(), x.data() + x.layout().size(), NAN);  // idle lanes must not leak into samples
    strata::read_rows(input.data(), x);
    auto r = context.make(c.batch, {rows, 1, 1});
    std::fill(r.data(), r.data() + r.layout().size(), NAN);
    strata::read_rows(residual.data(), r);
    const auto y = c.residual ? layer(context, x, r) : layer(context, x);
    REQUIRE_FALSE(context.error());
    REQUIRE(y.shape() == strata::Shape{rows, 1, 1});
    REQUIRE(y.batch() == c.batch);
    std::vector<float> found(static_cast<std::size_t>(c.batch * rows));
    strata::write_rows(y, found.data());
    const auto at = static_cast<std::size_t>(level);
    for (index_t sample = 0; sample < c.batch; ++sample)
      for (index_t row = 0; row < rows; ++row) {
        double sum = 0;
        for (index_t column = 0; column < columns; ++column) {
          const auto w = static_cast<std::size_t>(row * columns + column);
          if (strata[w] == StratumMap::absent || strata[w] > level) continue;
          sum += static_cast<double>(weights[w]) *
                 static_cast<double>(input[static_cast<std::size_t>(sample * columns + column)]);
        }
        const auto out = static_cast<std::size_t>(sample * rows + row);
        const auto r_at = static_cast<std::size_t>(row);
        if (o.norm) sum = sum * static_cast<double>(scale[at][r_at]) + static_cast<double>(offset[at][r_at]);
        if (!o.norm && o.bias) sum += static_cast<double>(offset[0][r_at]);
        if (c.residual) sum += static_cast<double>(residual[out]);
        const double expected = activated(sum, o.activation);
        const double error = std::abs(static_cast<double>(found[out]) - expected) / (1 + std::abs(expected));
        if (!(error <= worst)) worst = error;
        if (std::isnan(error)) return error;
      }
  }
  return worst;
}

std::string text(const Case& c) {
  const auto& o = c.options;
  return std::to_string(o.in_features) + " -> " + std::to_string(o.out_features) + " batch " + std::to_string(c.batch) +
         " levels " + std::to_string(c.levels) + " pattern " + std::to_string(static_cast<int>(c.pattern)) + " bias " +
         std::to_string(o.bias) + " norm " + std::to_string(o.norm) + " residual " + std::to_string(c.residual) +
         " activation " + std::to_string(static_cast<int>(o.activation)) + " threads " + std::to_string(c.threads);
}

/// A layer of 9 -> 4 features with all weights at level 0 and no bias.
Linear small_layer(strata::Archive& archive) {
  const std::vector<float> weights(36, 0.5F);
  strata::ParameterSink(archive).array<float>("fc.weight", {4, 9}, 0, weights);
  Linear layer({.in_features = 9, .out_features = 4, .bias = false});
  strata::ParameterSource source(archive);
  layer.load("fc", "", source);
  REQUIRE(source.finish("").ok());
  return layer;
}

}  // namespace

TEST_CASE("linear layers agree with plain sums") {
  int combinations = 0;
  for (const index_t in : {1, 3, 7, 8, 9, 17, 33, 100, 257})
    for (const index_t out : {1, 5, 16, 17, 33, 70})
      for (const index_t batch : {1, 3, 19})
        for (const int levels : {1, 2, 3})
          for (const Pattern pattern : patterns) {
            const int k = combinations++;
            strata::LinearOptions o;
            o.in_features = in;
            o.out_features = out;
            o.bias = k % 5 != 0;
            o.norm = k % 4 == 1;
            o.activation = static_cast<strata::Activation>(k % 8);
            const Case c{o, batch, levels, pattern, k % 3 == 0, 1 + k / 7 % 3};
            INFO(text(c));
            CHECK(difference(c) < 1e-4);
          }
  CHECK(combinations > 3000);
}

TEST_CASE("every mix of bias, norm, residual and activation agrees with plain sums") {
  for (int activation = 0; activation < 8; ++activation)
    for (const bool bias : {false, true})
      for (const bool norm : {false, true})
        for (const bool residual : {false, true})
          for (const index_t batch : {1, 3})
            for (const Pattern pattern : {Pattern::random, Pattern::dense}) {
              strata::LinearOptions o;
              o.in_features = 37;
              o.out_features = 21;
              o.bias = bias;
              o.norm = norm;
              o.activation = static_cast<strata::Activation>(activation);
              const Case c{o, batch, 3, pattern, residual, 2};
              INFO(text(c));
              CHECK(difference(c) < 1e-4);
            }
}

TEST_CASE("linear layers with more columns than a column index reaches agree with plain sums") {
  for (const index_t in : {65535, 65536, 66000})
    for (const index_t batch : {1, 3})
      for (const Pattern pattern : {Pattern::random, Pattern::empty_rows, Pattern::full_top, Pattern::dense}) {
        strata::LinearOptions o;
        o.in_features = in;
        o.out_features = 3;
        const Case c{o, batch, 2, pattern, false, 2};
        INFO(text(c));
        CHECK(difference(c) < 1e-4);
      }
}

TEST_CASE("a linear layer of no samples makes a tensor of no samples") {
  strata::Archive archive;
  const Linear layer = small_layer(archive);
  strata::SerialExecutor executor;
  Context context(executor);
  const auto y = layer(context, context.make(0, {9, 1, 1}));
  CHECK(y.batch() == 0);
  CHECK(y.shape() == strata::Shape{4, 1, 1});
}

TEST_CASE("a linear layer gives the same bits on any number of threads") {
  std::mt19937 random(9);
  const std::vector<float> weights = random_numbers(random, 100 * 50);
  std::vector<std::uint8_t> strata(weights.size());
  for (auto& stratum : strata)
    stratum = random() % 3 == 0 ? StratumMap::absent : static_cast<std::uint8_t>(random() % 2);
  strata::Archive archive;
  archive.set_levels(2);
  strata::ParameterSink(archive).leveled_csr("fc.weight",
                                             strata::LeveledCsr<float, strata::LinearIndex>::from_dense(
                                                 weights, StratumMap::from_strata(100, 50, 2, strata).value(), 50));
  Linear layer({.in_features = 50, .out_features = 100, .bias = false});
  strata::ParameterSource source(archive);
  layer.load("fc", "", source);
  REQUIRE(source.finish("").ok());
  for (const index_t batch : {1, 3, 40})
    for (const int level : {0, 1}) {
      const std::vector<float> input = random_numbers(random, batch * 50);
      std::vector<std::vector<float>> outputs;
      for (const int threads : {1, 2, 3, 5}) {
        strata::ThreadPool pool(threads);
        Context context(pool);
        context.set_level(Level{level});
        auto x = context.make(batch, {50, 1, 1});
        strata::read_rows(input.data(), x);
        outputs.emplace_back(static_cast<std::size_t>(batch * 100));
        strata::write_rows(layer(context, x), outputs.back().data());
        INFO("batch " << batch << " level " << level << " threads " << threads);
        CHECK(outputs.back() == outputs.front());
      }
    }
}

TEST_CASE("a linear layer names itself where shapes do not fit") {
  strata::Archive archive;
  const Linear layer = small_layer(archive);
  strata::SerialExecutor executor;
  {
    Context context(executor);
    context.set_checking(true);
    CHECK(layer(context, context.make(2, {8, 1, 1})).shape() == strata::Shape{4, 1, 1});
    REQUIRE(context.error());
    CHECK(context.error()->where() == "fc");
    CHECK(context.error()->expected() == "9 x 1 x 1");
    CHECK(context.error()->found() == "8 x 1 x 1");
  }
  {
    Context context(executor);
    context.set_checking(true);
    (void)layer(context, context.make(1, {1, 3, 3}));  // as many numbers, but not flattened
    CHECK(context.error());
  }
  for (const auto& [batch, features] : {std::pair<index_t, index_t>{2, 5}, {3, 4}}) {
    INFO("residual of " << batch << " x " << features);
    Context context(executor);
    context.set_checking(true);
    (void)layer(context, context.make(2, {9, 1, 1}), context.make(batch, {features, 1, 1}));
    REQUIRE(context.error());
    CHECK(context.error()->where() == "fc");
  }
}

TEST_CASE("parameters of another shape, missing or of too many levels keep a linear layer from loading") {
  const strata::LinearOptions o{.in_features = 9, .out_features = 4};
  const std::vector<float> numbers(40, 1.0F);
  const auto load = [&](index_t rows, index_t columns, index_t bias, int levels, bool norm) {
    strata::Archive archive;
    archive.set_levels(levels);
    strata::ParameterSink sink(archive);
    const std::span<const float> all(numbers);
    sink.array<float>("fc.weight", {rows, columns}, 0, all.first(static_cast<std::size_t>(rows * columns)));
    if (bias > 0) sink.array<float>("fc.bias", {bias}, 0, all.first(static_cast<std::size_t>(bias)));
    strata::LinearOptions options = o;
    options.norm = norm;
    Linear layer(options);
    strata::ParameterSource source(archive);
    layer.load("fc", "bn", source);
    return source.finish("");
  };
  CHECK(load(4, 9, 4, 1, false).ok());
  CHECK(load(4, 9, 4, 16, false).ok());
  CHECK(load(9, 4, 4, 1, false).error().where() == "fc.weight");
  CHECK(load(4, 9, 3, 1, false).error().where() == "fc.bias");
  CHECK(load(4, 9, 0, 1, false).error().where() == "fc.bias");
  CHECK(load(4, 9, 4, 1, true).error().where() == "bn.scale.0");
  CHECK(load(4, 9, 4, 17, false).error().where() == "fc.weight");
}

TEST_CASE("an array with fewer numbers than its shape says keeps a layer from loading") {
  const std::vector<float> four(4, 1.0F);
  strata::Archive archive;
  archive.set_levels(1);
  archive.add<float>("fc.weight", {4, 9}, 0, four);
  archive.add<float>("fc.bias", {4}, 0, four);
  Linear layer(strata::LinearOptions{.in_features = 9, .out_features = 4});
  strata::ParameterSource source(archive);
  layer.load("fc", "", source);
  const auto status = source.finish("");
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().where() == "fc.weight");
  CHECK(status.error().expected() == "144 bytes");
}
