// Flattening, dropout and activations of the inference family against plain loops, and the options that layers refuse.
#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <strata/layers/inference.hpp>
#include <strata/layers/options.hpp>

#include "support/catch.hpp"

namespace {

using strata::index_t;
using strata::Level;
using strata::Pair;
using strata::Shape;
using Family = strata::Inference<float>;
using Context = Family::Context;

std::vector<float> random_numbers(index_t count, float bound = 1) {
  std::mt19937 random(17);
  std::uniform_real_distribution<float> uniform(-bound, bound);
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (float& number : numbers) number = uniform(random);
  return numbers;
}

/// Runs `layer` on row-major pictures and returns row-major pictures.
template <class Layer>
std::vector<float> run(const Layer& layer, const std::vector<float>& input, index_t batch, Shape shape, Shape expected,
                       Level level) {
  strata::SerialExecutor executor;
  Context context(executor);
  context.set_checking(true);
  context.set_level(level);
  auto x = context.make(batch, shape);
  std::fill(x.data(), x.data() + x.layout().size(), NAN);  // idle lanes must not leak into pixels
  strata::read_rows(input.data(), x);
  const auto y = layer(context, x);
  REQUIRE_FALSE(context.error());
  REQUIRE(y.shape() == expected);
  REQUIRE(y.batch() == batch);
  REQUIRE(context.level() == level);
  std::vector<float> found(static_cast<std::size_t>(batch * expected.size()));
  strata::write_rows(y, found.data());
  std::vector<float> kept(input.size());
  strata::write_rows(x, kept.data());
  REQUIRE(kept == input);
  return found;
}

constexpr Shape shapes[] = {{1, 1, 1}, {5, 1, 1},  {8, 1, 1},  {33, 1, 1},  {1, 1, 7},   {3, 2, 2},  {3, 7, 5},
                            {2, 8, 8}, {9, 9, 17}, {4, 3, 16}, {1, 28, 28}, {2, 3, 250}, {2, 40, 3}, {0, 4, 4}};
constexpr strata::Activation activations[] = {strata::Activation::identity, strata::Activation::relu,
                                              strata::Activation::relu6,    strata::Activation::leaky_relu,
                                              strata::Activation::elu,      strata::Activation::sigmoid,
                                              strata::Activation::tanh,     strata::Activation::silu};

std::string text(Shape shape, index_t batch, int level) {
  return strata::detail::text(shape) + " batch " + std::to_string(batch) + " level " + std::to_string(level);
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

/// The error that `f` raises, or one that says that it raised none.
template <class F>
strata::Error error_of(F&& f) {
  try {
    f();
  } catch (const strata::Error& error) {
    return error;
  }
  return {"nowhere", "an error", "none"};
}

strata::Conv2dOptions convolution() {
  strata::Conv2dOptions o;
  o.in_channels = 6;
  o.out_channels = 4;
  return o;
}

/// Places that a window of `kernel` (spread by `dilation`) has in `extent` pixels with `padding` on both sides.
index_t windows(index_t extent, index_t kernel, index_t stride, index_t padding, index_t dilation) {
  index_t count = 0;
  for (index_t first = -padding; first + dilation * (kernel - 1) < extent + padding; first += stride) ++count;
  return count;
}

}  // namespace

TEST_CASE("flattening keeps the order of channels, rows and columns") {
  for (const Shape& shape : shapes)
    for (const index_t batch : {0, 1, 3, 20})
      for (int level = 0; level < 3; ++level) {
        INFO(text(shape, batch, level));
        const std::vector<float> input = random_numbers(batch * shape.size());
        CHECK(run(Family::Flatten(), input, batch, shape, {shape.size(), 1, 1}, Level{level}) == input);
      }
}

TEST_CASE("dropout of the inference family is the identity") {
  for (const Shape& shape : shapes)
    for (const index_t batch : {1, 3}) {
      INFO(text(shape, batch, 0));
      const std::vector<float> input = random_numbers(batch * shape.size());
      CHECK(run(Family::Dropout(0.9), input, batch, shape, shape, Level{0}) == input);
    }
}

TEST_CASE("activation layers agree with the formulas") {
  for (const Shape& shape : shapes)
    for (const index_t batch : {0, 1, 3, 20})
      for (const auto activation : activations) {
        const int level = static_cast<int>(activation) % 3;
        INFO(text(shape, batch, level) << " activation " << static_cast<int>(activation));
        const std::vector<float> input = random_numbers(batch * shape.size(), 9);
        const auto found = run(Family::ActivationLayer(activation), input, batch, shape, shape, Level{level});
        double worst = 0;
        for (std::size_t i = 0; i < input.size(); ++i) {
          const double expected = activated(static_cast<double>(input[i]), activation);
          const double error = std::abs(static_cast<double>(found[i]) - expected) / (1 + std::abs(expected));
          if (!(error <= worst)) worst = error;
        }
        CHECK(worst < 1e-5);
      }
}

TEST_CASE("activations keep their limits for numbers far from zero") {
  const std::vector<float> input = {0.0F,  -0.0F,  1e-6F,  -1e-6F,  6.0F, -6.0F, 20.0F, -20.0F,
                                    80.0F, -80.0F, 100.0F, -100.0F, 1e4F, -1e4F, 1e30F, -1e30F};
  const auto count = static_cast<index_t>(input.size());
  for (const auto activation : activations) {
    const auto found = run(Family::ActivationLayer(activation), input, 1, {count, 1, 1}, {count, 1, 1}, Level{0});
    for (std::size_t i = 0; i < input.size(); ++i) {
      INFO("activation " << static_cast<int>(activation) << " of " << input[i]);
      const double expected = activated(static_cast<double>(input[i]), activation);
      CHECK(std::abs(static_cast<double>(found[i]) - expected) <= 1e-5 * (1 + std::abs(expected)));
      CHECK(std::abs(strata::kernels::activate(input[i], activation) - found[i]) <= 1e-5F * (1 + std::abs(found[i])));
    }
  }
}

TEST_CASE("output extents are the number of places that a window has") {
  for (index_t extent = 1; extent < 20; ++extent)
    for (index_t kernel = 1; kernel < 6; ++kernel)
      for (index_t stride = 1; stride < 4; ++stride)
        for (index_t padding = 0; padding < 4; ++padding)
          for (index_t dilation = 1; dilation < 4; ++dilation) {
            if (extent + 2 * padding <= dilation * (kernel - 1)) continue;
            INFO("extent " << extent << " kernel " << kernel << " stride " << stride << " padding " << padding
                           << " dilation " << dilation);
            strata::Conv2dOptions o = convolution();
            o.kernel = Pair(kernel, 1);
            o.stride = Pair(stride, 1);
            o.padding = Pair(padding, 0);
            o.dilation = Pair(dilation, 1);
            const index_t expected = windows(extent, kernel, stride, padding, dilation);
            REQUIRE(o.output_height(extent) == expected);
            REQUIRE(o.output_width(7) == 7);
            std::swap(o.kernel.h, o.kernel.w);
            std::swap(o.stride.h, o.stride.w);
            std::swap(o.padding.h, o.padding.w);
            std::swap(o.dilation.h, o.dilation.w);
            REQUIRE(o.output_width(extent) == expected);
            REQUIRE(o.output_height(7) == 7);
            if (dilation > 1 || 2 * padding > kernel) continue;
            const strata::PoolOptions pool{Pair(kernel, 1), Pair(stride, 1), Pair(padding, 0)};
            REQUIRE(pool.output_height(extent) == expected);
            REQUIRE(pool.output_width(extent) == extent);
          }
}

TEST_CASE("options of convolutions that describe no layer are refused by name") {
  CHECK_NOTHROW(strata::require_valid(convolution()));
  const auto refused = [](auto&& change) {
    strata::Conv2dOptions o = convolution();
    change(o);
    const strata::Error error = error_of([&] { const Family::Conv2d layer(o); });
    CHECK(error.where() == "convolution");
    return error.expected() + ", found " + error.found();
  };
  CHECK(refused([](auto& o) { o.in_channels = 0; }) == "channels (in x out) of at least 1, found 0 x 4");
  CHECK(refused([](auto& o) { o.out_channels = -1; }) == "channels (in x out) of at least 1, found 6 x -1");
  CHECK(refused([](auto& o) { o.kernel = 0; }) == "a kernel of at least 1, found 0 x 0");
  CHECK(refused([](auto& o) { o.kernel = Pair(3, 0); }) == "a kernel of at least 1, found 3 x 0");
  CHECK(refused([](auto& o) { o.stride = Pair(0, 1); }) == "a stride of at least 1, found 0 x 1");
  CHECK(refused([](auto& o) { o.dilation = Pair(1, 0); }) == "a dilation of at least 1, found 1 x 0");
  CHECK(refused([](auto& o) { o.padding = Pair(-1, 0); }) == "padding of at least 0, found -1 x 0");
  const std::string groups = "groups that divide in_channels and out_channels, found ";
  CHECK(refused([](auto& o) { o.groups = 0; }) == groups + "0");
  CHECK(refused([](auto& o) { o.groups = -2; }) == groups + "-2");
  CHECK(refused([](auto& o) { o.groups = 3; }) == groups + "3");  // divides 6, not 4
  CHECK(refused([](auto& o) { o.groups = 4; }) == groups + "4");  // divides 4, not 6
  strata::Conv2dOptions o = convolution();
  o.groups = 2;
  o.padding = 100;  // wider than the kernel: the outer pixels see bias only
  CHECK_NOTHROW(strata::require_valid(o));
}

TEST_CASE("options of linear and pooling layers that describe no layer are refused by name") {
  for (const auto& [in, out] : {std::pair<index_t, index_t>{0, 3}, {3, 0}, {-1, 3}, {3, -7}}) {
    INFO(in << " -> " << out);
    const strata::LinearOptions o{.in_features = in, .out_features = out};
    CHECK(error_of([&] { const Family::Linear layer(o); }).where() == "linear layer");
  }
  CHECK_NOTHROW(strata::require_valid(strata::LinearOptions{.in_features = 1, .out_features = 1}));
  const auto found = [](const strata::PoolOptions& o) {
    const strata::Error largest = error_of([&] { const Family::MaxPool2d layer(o); });
    const strata::Error mean = error_of([&] { const Family::AvgPool2d layer(o); });
    CHECK(largest.where() == "pooling");
    CHECK(std::string(mean.what()) == largest.what());
    return largest.expected() + ", found " + largest.found();
  };
  CHECK(found({Pair(0, 2), 1, 0}) == "a kernel of at least 1, found 0 x 2");
  CHECK(found({2, Pair(1, 0), 0}) == "a stride of at least 1, found 1 x 0");
  CHECK(found({3, 1, Pair(0, -1)}) == "padding of at least 0, found 0 x -1");
  CHECK(found({3, 1, 2}) == "padding of at most half the kernel, found 2 x 2");
  CHECK(found({Pair(4, 1), 1, Pair(2, 1)}) == "padding of at most half the kernel, found 2 x 1");
  CHECK_NOTHROW(strata::require_valid(strata::PoolOptions{Pair(4, 2), 3, Pair(2, 1)}));
}
