// Gradients of every operation against finite differences in double, at several levels; training against inference on
// the same weights; the same bits on any number of threads.
#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include <strata/runtime/session.hpp>
#include <strata/train/training.hpp>

#include "support/catch.hpp"
#include "support/small_net.hpp"

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

/// Compares d(sum of output * random weights) with central differences for all parameters and the input; returns the
/// largest error relative to 1 + |gradient|.
double gradient_error(const std::vector<strata::train::Parameter<double>*>& parameters, index_t batch, Shape shape,
                      Level level, const std::function<Tensor(Context&, const Tensor&)>& f) {
  std::mt19937 random(11);
  strata::SerialExecutor executor;
  Context context(executor);
  std::vector<double> input = random_numbers(random, batch * shape.size());
  std::vector<double> weights;
  const auto run = [&](Tensor* kept_input, Tensor* kept_output) {
    context.begin(level);
    Tensor x = context.make(batch, shape, true);
    for (index_t i = 0; i < x.value().size(); ++i) x.value()[i] = input[static_cast<std::size_t>(i)];
    const Tensor y = f(context, x);
    if (weights.empty()) weights = random_numbers(random, y.value().size());
    double sum = 0;
    for (index_t i = 0; i < y.value().size(); ++i) sum += y.value()[i] * weights[static_cast<std::size_t>(i)];
    if (kept_input != nullptr) {
      *kept_input = x;
      *kept_output = y;
    }
    return sum;
  };
  Tensor x, y;
  run(&x, &y);
  for (index_t i = 0; i < y.value().size(); ++i) y.gradient()[i] = weights[static_cast<std::size_t>(i)];
  for (auto* parameter : parameters) parameter->gradient.setZero();
  context.backward();
  const auto dx = x.gradient();
  double worst = 0;
  const auto compare = [&](double& value, double gradient) {
    constexpr double h = 1e-6;
    const double old = value;
    value = old + h;
    const double above = run(nullptr, nullptr);
    value = old - h;
    const double below = run(nullptr, nullptr);
    value = old;
    const double error = std::abs((above - below) / (2 * h) - gradient) / (1 + std::abs(gradient));
    if (!(error <= worst)) worst = error;
  };
  for (std::size_t i = 0; i < input.size(); i += 1 + input.size() / 40) compare(input[i], dx[static_cast<index_t>(i)]);
  for (auto* parameter : parameters)
    for (index_t i = 0; i < parameter->value.size(); i += 1 + parameter->value.size() / 40)
      compare(parameter->value[i], parameter->gradient[i]);
  return worst;
}

/// Every third weight at level 0, every third at level 1, the rest pruned.
template <class Layer>
void make_levels(Layer& layer) {
  layer.set_levels(2);
  auto& strata = layer.weight().strata;
  strata.resize(static_cast<std::size_t>(layer.weight().value.size()));
  for (std::size_t i = 0; i < strata.size(); ++i)
    strata[i] = i % 3 == 2 ? strata::StratumMap::absent : static_cast<std::uint8_t>(i % 3);
}

template <class Layer>
std::vector<strata::train::Parameter<double>*> parameters_of(Layer& layer) {
  std::vector<strata::train::Parameter<double>*> result;
  layer.for_each_parameter("layer", "norm", [&](auto& parameter) { result.push_back(&parameter); });
  return result;
}

}  // namespace

TEST_CASE("gradients of convolutions agree with finite differences") {
  int combinations = 0;
  for (const index_t kernel : {1, 3})
    for (const index_t stride : {1, 2})
      for (const index_t groups : {1, 3})
        for (const auto& shape : {Shape{3, 1, 1}, Shape{3, 5, 4}, Shape{18, 7, 7}})
          for (const bool norm : {false, true}) {
            strata::Conv2dOptions o;
            o.in_channels = shape.channels;
            o.out_channels = 6;
            o.kernel = kernel;
            o.stride = stride;
            o.padding = kernel / 2 * (combinations % 2 == 0 ? 1 : 2);
            o.dilation = kernel == 3 && o.padding.h == 2 ? 2 : 1;
            o.groups = groups;
            o.norm = norm;
            o.bias = !norm;
            o.activation = static_cast<strata::Activation>(combinations++ % 8);
            Family::Conv2d layer(o);
            make_levels(layer);
            std::mt19937 random(static_cast<unsigned>(combinations));
            std::uniform_real_distribution<double> uniform(0.1, 0.9);
            for (auto* parameter : parameters_of(layer))  // away from zero, where relu has no derivative
              if (parameter != &layer.weight())
                for (double& value : parameter->value) value = uniform(random);
            for (const int level : {0, 1}) {
              INFO("kernel " << kernel << " stride " << stride << " groups " << groups << " norm " << norm
                             << " activation " << static_cast<int>(o.activation) << " height " << shape.height);
              // Three pictures lie channels last, whole vectors of them in lanes: level 0 with sparse kernels.
              for (const index_t batch : {index_t{3}, strata::train::lanes_of<double>})
                CHECK(gradient_error(parameters_of(layer), batch, shape, Level{level},
                                     [&](Context& context, const Tensor& x) { return layer(context, x); }) < 1e-5);
            }
          }
}

TEST_CASE("max pooling passes a NaN on and keeps gradients inside the window") {
  const Family::MaxPool2d pool(strata::PoolOptions{.kernel = 2, .stride = 2});
  strata::SerialExecutor executor;
  Context context(executor);
  context.begin(Level{0});
  Tensor x = context.make(1, {1, 2, 6}, true);
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const double nan = std::nan("");
  const double rows[2][6] = {{1, 2, nan, 9, -infinity, -infinity}, {4, 3, 5, 6, -infinity, -infinity}};
  for (index_t i = 0; i < 12; ++i) x.value()[i] = rows[i / 6][i % 6];
  const Tensor y = pool(context, x);
  CHECK(y.value()[0] == 4);
  CHECK(std::isnan(y.value()[1]));
  CHECK(y.value()[2] == -infinity);
  for (index_t i = 0; i < 3; ++i) y.gradient()[i] = static_cast<double>(i + 1);
  context.backward();
  const double gradient[2][6] = {{0, 0, 2, 0, 3, 0}, {1, 0, 0, 0, 0, 0}};
  for (index_t i = 0; i < 12; ++i) CHECK(x.gradient()[i] == gradient[i / 6][i % 6]);
}

TEST_CASE("gradients of the other layers agree with finite differences") {
  Family::Linear linear({.in_features = 17, .out_features = 5, .activation = strata::Activation::tanh});
  make_levels(linear);
  CHECK(gradient_error(parameters_of(linear), 4, {17, 1, 1}, Level{0},
                       [&](Context& context, const Tensor& x) { return linear(context, x); }) < 1e-6);
  const Family::MaxPool2d max_pool(strata::PoolOptions{.kernel = 3, .stride = 2, .padding = 1});
  CHECK(gradient_error({}, 2, {3, 7, 5}, Level{0},
                       [&](Context& context, const Tensor& x) { return max_pool(context, x); }) < 1e-6);
  const Family::AvgPool2d average(strata::PoolOptions{.kernel = 3, .stride = 2, .padding = 1});
  CHECK(gradient_error({}, 2, {3, 7, 5}, Level{0},
                       [&](Context& context, const Tensor& x) { return average(context, x); }) < 1e-6);
  CHECK(gradient_error({}, 2, {3, 7, 5}, Level{0}, [&](Context& context, const Tensor& x) {
          return Family::Flatten()(context, Family::ActivationLayer(strata::Activation::silu)(context, x));
        }) < 1e-6);
  CHECK(gradient_error({}, 2, {3, 7, 5}, Level{0}, [&](Context& context, const Tensor& x) {
          return Family::GlobalAvgPool2d()(context, Family::Dropout(0.3)(context, x));
        }) < 1e-6);
  Family::Conv2d same({.in_channels = 4, .out_channels = 4, .padding = 1, .activation = strata::Activation::relu});
  CHECK(gradient_error(parameters_of(same), 2, {4, 5, 5}, Level{0},
                       [&](Context& context, const Tensor& x) { return same(context, x, x); }) < 1e-5);
}

TEST_CASE("dropout follows the factor of the level that takes part, also after a path has dropped its level") {
  strata::SerialExecutor executor;
  Context context(executor);
  context.dropout_factors = {0, 0.5};
  const std::vector<double> ones(10000, 1.0);
  const auto dropped = [&](Level level, bool drop) {
    context.drop_at_stage = drop ? 0 : -1;
    context.drop_to = Level{0};
    context.begin(level);
    context.stage("a");
    const auto x = strata::train::input_tensor(context, ones.data(), 1, Shape{10000, 1, 1});
    const auto y = Family::Dropout(0.4)(context, x);
    return static_cast<double>((y.value() == 0).count()) / 10000;
  };
  CHECK(dropped(Level{0}, false) == 0);
  CHECK(std::abs(dropped(Level{1}, false) - 0.2) < 0.02);
  CHECK(std::abs(dropped(Level{2}, false) - 0.4) < 0.02);  // no factor of its own
  CHECK(dropped(Level{2}, true) == 0);
}

TEST_CASE("a trained network computes the same in both families, at every level") {
  test::SmallNet<Family> network({});
  strata::train::set_levels(network, 2);
  make_levels(network.conv);
  make_levels(network.fc);
  strata::ThreadPool pool(2);
  Context context(pool);
  std::mt19937 random(2);
  const std::vector<double> pictures = random_numbers(random, 8 * 81);
  for (const int level : {0, 1, 0, 1}) {  // moves the running statistics away from where they start
    context.begin(Level{level});
    (void)network(context, strata::train::input_tensor(context, pictures.data(), 8, network.input_shape()));
  }
  const auto model = test::SmallModel::from_archive(strata::to_archive(network, 2)).value();
  strata::Session<test::SmallModel> session(model, {.threads = 1, .batch = 8});
  context.training = false;
  const std::vector<float> input(pictures.begin(), pictures.end());
  for (const int level : {0, 1}) {
    context.begin(Level{level});
    const auto expected =
        network(context, strata::train::input_tensor(context, pictures.data(), 8, network.input_shape()));
    const auto found = session.run(input, Level{level});
    for (index_t i = 0; i < expected.value().size(); ++i)
      CHECK(std::abs(static_cast<double>(found[static_cast<std::size_t>(i)]) - expected.value()[i]) < 1e-5);
  }
}

TEST_CASE("gradients are the same bits on any number of threads") {
  std::vector<double> gradients[2];
  for (const int threads : {1, 2}) {
    test::SmallNet<Family> network({});
    strata::ThreadPool pool(threads);
    Context context(pool);
    std::mt19937 random(2);
    const std::vector<double> pictures = random_numbers(random, 37 * 81);
    context.begin(Level{0});
    const auto y = network(context, strata::train::input_tensor(context, pictures.data(), 37, network.input_shape()));
    y.gradient().setConstant(0.1);
    context.backward();
    for (auto* parameter : strata::train::parameters<double>(network))
      gradients[threads - 1].insert(gradients[threads - 1].end(), parameter->gradient.begin(),
                                    parameter->gradient.end());
  }
  CHECK(gradients[0] == gradients[1]);
}
