// Convolutions in lanes against the same ones channels last, picture by picture: every arrangement of borders, strides,
// blocks of channels and pieces of pictures, dense and sparse, at every level; the same bits on any number of threads.
#include <cmath>
#include <random>
#include <utility>
#include <vector>

#include <strata/runtime/thread_pool.hpp>
#include <strata/train/training.hpp>

#include "support/catch.hpp"
#include "support/convolution_cases.hpp"

namespace {

using strata::index_t;
using strata::Level;
using strata::Shape;
using Family = strata::train::Training<double>;
using Array = strata::train::Parameter<double>::Array;
constexpr index_t lanes = strata::train::lanes_of<double>;

Array numbers(std::mt19937& random, index_t count) {
  std::uniform_real_distribution<double> uniform(-1, 1);
  Array result(count);
  for (double& number : result) number = uniform(random);
  return result;
}

/// Level 0 holds `density` of the weights, level 1 that much again up to all.
void make_levels(Family::Conv2d& layer, std::mt19937& random, double density) {
  layer.set_levels(2);
  auto& strata = layer.weight().strata;
  strata.resize(static_cast<std::size_t>(layer.weight().value.size()));
  std::uniform_real_distribution<double> uniform(0, 1);
  for (auto& stratum : strata) {
    const double place = uniform(random);
    stratum = place < density ? 0 : place < 2 * density ? 1 : strata::StratumMap::absent;
  }
}

struct Result {
  Array y, dx, dw;
};

/// Output and gradients for pictures first .. first+count-1 of `x`, with `dy` as the gradient of the output; the
/// weight's gradient is added to.
void run(Family::Context& context, Family::Conv2d& layer, Level level, Shape shape, const Array& x, const Array& dy,
         index_t first, index_t count, Result& result) {
  context.begin(level);
  auto input = context.make(count, shape, true);
  input.value() = x.segment(first * shape.size(), count * shape.size());
  const auto y = layer(context, input);
  const index_t size = y.shape().size();
  y.gradient() = dy.segment(first * size, count * size);
  result.y.conservativeResize((first + count) * size);
  result.y.segment(first * size, count * size) = y.value();
  context.backward();
  result.dx.conservativeResize((first + count) * shape.size());
  result.dx.segment(first * shape.size(), count * shape.size()) = input.gradient();
  result.dw = layer.weight().gradient;
}

double difference(const Array& a, const Array& b) {
  REQUIRE(a.size() == b.size());
  return (a - b).abs().maxCoeff() / (1 + b.abs().maxCoeff());
}

}  // namespace

TEST_CASE("convolutions in lanes and channels last agree") {
  strata::SerialExecutor executor;
  for (const auto& c : test::convolution_cases)
    for (const double density : {0.0, 0.1, 0.4}) {
      std::mt19937 random(9);
      Family::Conv2d layer(c.options());
      if (density > 0) make_levels(layer, random, density);
      const Shape out = c.output();
      REQUIRE(out.height * out.width >= 4);
      const Array x = numbers(random, lanes * c.shape.size());
      const Array dy = numbers(random, lanes * out.size());
      Family::Context context(executor);
      for (const int level : {0, 1, 0}) {
        INFO("channels " << c.shape.channels << " height " << c.shape.height << " density " << density << " level "
                         << level);
        Result together, apart;
        layer.weight().gradient.setZero();
        run(context, layer, Level{level}, c.shape, x, dy, 0, lanes, together);
        layer.weight().gradient.setZero();
        for (index_t i = 0; i < lanes; ++i) run(context, layer, Level{level}, c.shape, x, dy, i, 1, apart);
        CHECK(difference(together.y, apart.y) < 1e-12);
        CHECK(difference(together.dx, apart.dx) < 1e-12);
        CHECK(difference(together.dw, apart.dw) < 1e-12);
      }
      // A mask that has changed is noticed.
      if (density != 0.1) continue;
      layer.weight().strata.front() = layer.weight().strata.front() == 0 ? strata::StratumMap::absent : 0;
      Result together, apart;
      run(context, layer, Level{0}, c.shape, x, dy, 0, lanes, together);
      for (index_t i = 0; i < lanes; ++i) run(context, layer, Level{0}, c.shape, x, dy, i, 1, apart);
      CHECK(difference(together.y, apart.y) < 1e-12);
    }
}

TEST_CASE("one sparse convolution on pictures of two sizes in a pass has the gradients of both") {
  strata::SerialExecutor executor;
  Family::Context context(executor);
  std::mt19937 random(5);
  Family::Conv2d layer({.in_channels = 4, .out_channels = 4, .padding = 1, .norm = false});
  make_levels(layer, random, 0.25);
  layer.weight().value = numbers(random, layer.weight().value.size());
  const Shape large{4, 8, 8};
  const Shape small{4, 4, 4};
  const Array x = numbers(random, lanes * large.size());
  const Array dy = numbers(random, lanes * large.size());
  const auto gradient = [&](bool first, bool second) {
    layer.weight().gradient.setZero();
    context.begin(Level{0});
    for (const Shape& shape : {large, small}) {
      auto input = context.make(lanes, shape, true);
      input.value() = x.head(lanes * shape.size());
      const auto y = layer(context, input);
      const bool counts = shape == large ? first : second;
      y.gradient() = counts ? Array(dy.head(y.value().size())) : Array(Array::Zero(y.value().size()));
    }
    context.backward();
    return Array(layer.weight().gradient);
  };
  const Array both = gradient(true, true);
  const auto alone = [&](Shape shape) {
    layer.weight().gradient.setZero();
    Result result;
    run(context, layer, Level{0}, shape, x, dy, 0, lanes, result);
    return result.dw;
  };
  CHECK(difference(both, alone(large) + alone(small)) < 1e-12);
  CHECK(difference(gradient(true, false), alone(large)) < 1e-12);
  CHECK(difference(gradient(false, true), alone(small)) < 1e-12);
}

TEST_CASE("a sparse convolution with a stride goes back to pictures of one column as to others") {
  // The second phase of the large picture is that of odd columns, of the narrow one that of odd rows.
  strata::SerialExecutor executor;
  Family::Context context(executor);
  std::mt19937 random(6);
  Family::Conv2d layer({.in_channels = 4, .out_channels = 4, .stride = 2, .padding = 1, .norm = false});
  make_levels(layer, random, 0.25);
  layer.weight().value = numbers(random, layer.weight().value.size());
  for (const Shape shape : {Shape{4, 8, 8}, Shape{4, 8, 1}, Shape{4, 8, 8}, Shape{4, 1, 8}}) {
    INFO(shape.height << " x " << shape.width);
    const Array x = numbers(random, lanes * shape.size());
    const Array dy = numbers(random, lanes * 4 * 4 * 4);
    Result together, apart;
    layer.weight().gradient.setZero();
    run(context, layer, Level{0}, shape, x, dy, 0, lanes, together);
    layer.weight().gradient.setZero();
    for (index_t i = 0; i < lanes; ++i) run(context, layer, Level{0}, shape, x, dy, i, 1, apart);
    CHECK(difference(together.dx, apart.dx) < 1e-12);
    CHECK(difference(together.dw, apart.dw) < 1e-12);
  }
}

TEST_CASE("every element has its place in lanes, and comes back from there") {
  std::mt19937 random(3);
  for (const Shape& shape : {Shape{1, 1, 1}, Shape{3, 2, 2}, Shape{131, 1, 7}, Shape{48, 3, 50}}) {
    const strata::train::LaneLayout layout(lanes, 2 * lanes, shape);
    const Array x = numbers(random, 2 * lanes * shape.size());
    Array there(x.size());
    Array back(x.size());
    for (index_t group = 0; group < 2; ++group)
      for (const auto& [first, last] : {std::pair(index_t{0}, layout.pixels / 3), {layout.pixels / 3, layout.pixels}}) {
        strata::train::to_lanes(layout, group, first, last, x.data(), there.data());
        strata::train::from_lanes(layout, group, first, last, there.data(), back.data());
      }
    CHECK((back == x).all());
    for (index_t picture = 0; picture < 2 * lanes; ++picture)
      for (index_t pixel = 0; pixel < layout.pixels; ++pixel)
        for (index_t c = 0; c < shape.channels; ++c) {
          const index_t at = picture / lanes * layout.group_step() + c / layout.block * layout.block_step() +
                             (pixel * layout.block + c % layout.block) * lanes + picture % lanes;
          if (there[at] != x[(picture * layout.pixels + pixel) * shape.channels + c]) FAIL("element " << at);
        }
  }
}

TEST_CASE("tensors give values and gradients in either layout") {
  strata::SerialExecutor executor;
  Family::Context context(executor);
  std::mt19937 random(2);
  const auto x = context.make(2 * lanes, {3, 2, 2}, true);
  x.value() = numbers(random, x.value().size());
  const Array lane_values = Eigen::Map<Array>(x.lanes(), x.value().size());
  const auto moved = context.make(2 * lanes, {3, 2, 2}, true, strata::train::Layout::lanes);
  std::copy(lane_values.begin(), lane_values.end(), moved.lanes());
  CHECK_FALSE(moved.has(strata::train::Layout::channels_last));
  CHECK((moved.value() == x.value()).all());

  // Added to in one layout, then in the other.
  x.gradient() += x.value();
  const auto in_lanes = x.lane_gradient();
  CHECK_FALSE(in_lanes.fresh);
  Eigen::Map<Array>(in_lanes.data, lane_values.size()) += lane_values;
  CHECK((x.gradient() == 2 * x.value()).all());
  CHECK(moved.lane_gradient().fresh);

  const auto unused = context.make(lanes, {1, 1, 1}, true, strata::train::Layout::lanes);
  CHECK((Eigen::Map<Array>(unused.whole_lane_gradient(), lanes) == 0).all());
  CHECK_FALSE(x.fits_lanes(0));
}

TEST_CASE("tensors are copied to another layout by any number of threads, within a task, and without their context") {
  const Shape shape{3, 5, 7};
  const index_t batch = 3 * lanes;
  std::mt19937 random(6);
  const Array x = numbers(random, batch * shape.size());
  for (const int threads : {1, 2, 3}) {
    strata::train::Tensor<double> left;
    {
      strata::ThreadPool pool(threads);
      Family::Context context(pool);
      const auto from = context.make(batch, shape, true);
      from.value() = x;
      from.gradient() += x;
      const auto copy = [&](const Array& numbers_of) {
        const auto made = context.make(batch, shape, true, strata::train::Layout::lanes);
        std::copy(numbers_of.begin(), numbers_of.end(), made.lanes());
        return made;
      };
      const Array values = Eigen::Map<Array>(from.lanes(), x.size());
      const auto gradient = from.lane_gradient();
      CHECK_FALSE(gradient.fresh);
      CHECK((Eigen::Map<Array>(gradient.data, x.size()) == values).all());
      CHECK((from.gradient() == x).all());
      CHECK((copy(values).value() == x).all());
      const auto shared = copy(values);
      context.for_parts(batch, [&](index_t, index_t, index_t) { (void)shared.value(); });
      CHECK((shared.value() == x).all());
      left = copy(values);
    }
    CHECK((left.value() == x).all());
    CHECK((left.gradient() == 0).all());
  }
}

TEST_CASE("gradients in lanes are the same bits on any number of threads") {
  std::vector<Array> results[2];
  for (const int threads : {1, 2}) {
    std::mt19937 random(4);
    Family::Conv2d first({.in_channels = 3, .out_channels = 32, .padding = 1, .activation = strata::Activation::relu});
    Family::Conv2d second({.in_channels = 32, .out_channels = 32, .padding = 1});
    make_levels(second, random, 0.2);
    first.set_levels(2);
    strata::ThreadPool pool(threads);
    Family::Context context(pool);
    for (const int level : {0, 1}) {
      const Shape shape{3, 9, 7};
      context.begin(Level{level});
      auto x = context.make(5 * lanes, shape, true);
      x.value() = numbers(random, x.value().size());
      const auto y = first(context, x);
      const auto z = second(context, y, y);
      z.gradient() = numbers(random, z.value().size());
      context.backward();
      auto& kept = results[threads - 1];
      kept.push_back(x.gradient());
      for (auto* layer : {&first, &second})
        layer->for_each_parameter("", "", [&](auto& parameter) { kept.push_back(parameter.gradient); });
    }
  }
  REQUIRE(results[0].size() == results[1].size());
  for (std::size_t i = 0; i < results[0].size(); ++i) CHECK((results[0][i] == results[1][i]).all());
}
