// Gradients of the operations on point sets against finite differences in double, and the same bits on any number of
// threads.
#include <cmath>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include <strata/runtime/thread_pool.hpp>
#include <strata/train/training.hpp>

#include "support/catch.hpp"

namespace {

using strata::index_t;
using strata::Level;
using strata::Shape;
using Family = strata::train::Training<double>;
using Context = Family::Context;
using Tensor = Family::Tensor;

std::vector<double> random_numbers(std::mt19937& random, index_t count) {
  std::uniform_real_distribution<double> uniform(-1, 1);
  std::vector<double> numbers(static_cast<std::size_t>(count));
  for (double& number : numbers) number = uniform(random);
  return numbers;
}

/// Compares d(sum of output * random weights) / d(inputs) with central differences; the largest error relative to
/// 1 + |gradient|. The inputs have the given shapes.
double gradient_error(const std::vector<Shape>& shapes, index_t batch,
                      const std::function<Tensor(Context&, const std::vector<Tensor>&)>& f) {
  std::mt19937 random(11);
  strata::SerialExecutor executor;
  Context context(executor);
  std::vector<std::vector<double>> inputs;
  for (const Shape& shape : shapes) inputs.push_back(random_numbers(random, batch * shape.size()));
  std::vector<double> weights;
  const auto run = [&](std::vector<Tensor>& x, Tensor& y) {
    context.begin(Level{0});
    x.clear();
    for (std::size_t k = 0; k < shapes.size(); ++k) {
      x.push_back(context.make(batch, shapes[k], true));
      std::copy(inputs[k].begin(), inputs[k].end(), x.back().value().data());
    }
    y = f(context, x);
    if (weights.empty()) weights = random_numbers(random, y.value().size());
    double sum = 0;
    for (index_t i = 0; i < y.value().size(); ++i) sum += y.value()[i] * weights[static_cast<std::size_t>(i)];
    return sum;
  };
  std::vector<Tensor> x;
  Tensor y;
  run(x, y);
  for (index_t i = 0; i < y.value().size(); ++i) y.gradient()[i] = weights[static_cast<std::size_t>(i)];
  context.backward();
  std::vector<std::vector<double>> gradients;
  for (const Tensor& each : x)
    gradients.emplace_back(each.gradient().data(), each.gradient().data() + each.gradient().size());
  double worst = 0;
  for (std::size_t k = 0; k < inputs.size(); ++k)
    for (std::size_t i = 0; i < inputs[k].size(); ++i) {
      constexpr double h = 1e-6;
      const double old = inputs[k][i];
      inputs[k][i] = old + h;
      const double above = run(x, y);
      inputs[k][i] = old - h;
      const double below = run(x, y);
      inputs[k][i] = old;
      const double error = std::abs((above - below) / (2 * h) - gradients[k][i]) / (1 + std::abs(gradients[k][i]));
      if (!(error <= worst)) worst = error;
    }
  return worst;
}

}  // namespace

TEST_CASE("gradients of the operations on point sets agree with finite differences") {
  for (const index_t dimensions : {2, 3})
    for (const index_t batch : {1, 3})
      for (const index_t points : {1, 4, 19}) {
        INFO(dimensions << " dimensions, batch " << batch << ", " << points << " points");
        const Shape cloud{dimensions, 1, points};
        const Family::FarthestPointSampling sampling({dimensions, 5});
        CHECK(gradient_error({cloud}, batch, [&](Context& context, const std::vector<Tensor>& x) {
                return sampling(context, x[0]);
              }) < 1e-6);
        const Family::BallGrouping grouping({dimensions, 0.7, 4});
        const Family::GroupMax maximum;
        const Shape centroids{dimensions, 1, 3};
        CHECK(gradient_error({cloud, centroids, {2, 1, points}}, batch,
                             [&](Context& context, const std::vector<Tensor>& x) {
                               return grouping(context, x[0], x[1], &x[2],
                                               [&](const Tensor& groups) { return maximum(context, groups); });
                             }) < 1e-6);
        CHECK(gradient_error({cloud, centroids}, batch, [&](Context& context, const std::vector<Tensor>& x) {
                return strata::train::ball_groups<double>(context, x[0], x[1], nullptr, {dimensions, 0.7, 4});
              }) < 1e-6);
      }
  CHECK(gradient_error({{3, 2, 5}, {4, 2, 5}}, 2, [&](Context& context, const std::vector<Tensor>& x) {
          return Family::GlobalMaxPool2d()(context, Family::Concatenate()(context, x[0], x[1]));
        }) < 1e-6);
}

TEST_CASE("maxima of activations in lanes are those of the same activations channels last, equals included") {
  constexpr index_t lanes = strata::train::lanes_of<double>;
  strata::SerialExecutor executor;
  std::mt19937 random(7);
  std::uniform_int_distribution<int> few(0, 3);
  // The last one is more than one piece.
  for (const Shape& shape : {Shape{1, 1, 1}, Shape{5, 3, 4}, Shape{16, 7, 2}, Shape{48, 4, 5}, Shape{48, 3, 601}})
    for (const index_t batch : {lanes, 3 * lanes})
      for (const bool whole : {false, true}) {
        INFO(shape.channels << " channels, " << shape.height << " samples, batch " << batch << ", whole " << whole);
        Context context(executor);
        std::vector<double> values(static_cast<std::size_t>(batch * shape.size()));
        for (double& value : values) value = few(random);
        std::vector<double> results[2], gradients[2];
        for (const bool in_lanes : {false, true}) {
          context.begin(Level{0});
          const Tensor x = context.make(batch, shape, true);
          std::copy(values.begin(), values.end(), x.value().data());
          if (in_lanes) (void)x.lanes();
          const Tensor y = whole ? strata::train::global_max(context, x) : strata::train::group_max(context, x);
          CHECK(y.has(strata::train::Layout::lanes) == in_lanes);
          results[in_lanes].assign(y.value().begin(), y.value().end());
          for (index_t i = 0; i < y.value().size(); ++i) y.gradient()[i] = static_cast<double>(i + 1);
          // Another user of x may have added to its gradient before.
          const bool used = batch > lanes;
          if (used) x.gradient().setConstant(0.5);
          if (used && in_lanes) CHECK_FALSE(x.lane_gradient().fresh);
          context.backward();
          if (used) CHECK(x.gradient().minCoeff() >= 0.5);
          gradients[in_lanes].assign(x.gradient().begin(), x.gradient().end());
        }
        CHECK(results[0] == results[1]);
        CHECK(gradients[0] == gradients[1]);
      }
}

TEST_CASE("operations on point sets refuse tensors that do not go together") {
  strata::SerialExecutor executor;
  Context context(executor);
  const auto refuses = [&](auto&& f, const std::string& where) {
    try {
      f();
    } catch (const strata::Error& error) {
      return error.where() == where;
    }
    return false;
  };
  const auto zeros = [&](index_t batch, Shape shape) {
    Tensor x = context.make(batch, shape, true);
    x.value().setZero();
    return x;
  };
  const Family::FarthestPointSampling sampling({3, 2});
  for (const Shape& shape : {Shape{3, 1, 0}, Shape{2, 1, 4}, Shape{3, 2, 4}})
    CHECK(refuses([&] { (void)sampling(context, zeros(1, shape)); }, "farthest point sampling"));
  const Tensor points = zeros(1, {3, 1, 4});
  const Tensor centroids = zeros(1, {3, 1, 2});
  const Tensor other = zeros(1, {5, 1, 3});
  CHECK(refuses([&] { (void)strata::train::ball_groups<double>(context, points, centroids, &other, {}); }, "grouping"));
  CHECK(refuses([&] { (void)strata::train::ball_groups<double>(context, points, other, nullptr, {}); }, "grouping"));
  const Family::BallGrouping grouping({});
  CHECK(refuses([&] { (void)grouping(context, points, centroids, nullptr, [](const Tensor& x) { return x; }); },
                "grouping"));
  CHECK(refuses([&] { (void)Family::Concatenate()(context, points, other); }, "concatenation"));
  CHECK(refuses([&] { (void)Family::GroupMax()(context, zeros(1, {3, 0, 4})); }, "maximum over groups"));
  CHECK(refuses([&] { (void)Family::GlobalMaxPool2d()(context, zeros(1, {3, 1, 0})); }, "global maximum"));
}
