// Maximum, average and global average pooling of the inference family against plain loops over row-major pictures.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include <strata/layers/inference.hpp>
#include <strata/runtime/thread_pool.hpp>

#include "support/catch.hpp"

namespace {

using strata::index_t;
using strata::Level;
using strata::Pair;
using strata::Shape;
using Family = strata::Inference<float>;
using Context = Family::Context;

std::vector<float> random_numbers(index_t count, float low = -1, float high = 1) {
  std::mt19937 random(13);
  std::uniform_real_distribution<float> uniform(low, high);
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (float& number : numbers) number = uniform(random);
  return numbers;
}

/// Row-major planes x height x width to planes x output height x output width: maximum or mean of what of each window
/// lies inside the picture.
std::vector<float> pool_reference(const std::vector<float>& input, index_t planes, index_t height, index_t width,
                                  const strata::PoolOptions& o, bool maximum) {
  std::vector<float> output;
  for (index_t plane = 0; plane < planes; ++plane)
    for (index_t top = -o.padding.h; top + o.kernel.h <= height + o.padding.h; top += o.stride.h)
      for (index_t left = -o.padding.w; left + o.kernel.w <= width + o.padding.w; left += o.stride.w) {
        double largest = -std::numeric_limits<double>::infinity();
        double sum = 0;
        int count = 0;
        for (index_t y = top; y < top + o.kernel.h; ++y)
          for (index_t x = left; x < left + o.kernel.w; ++x) {
            if (y < 0 || y >= height || x < 0 || x >= width) continue;
            const auto value = static_cast<double>(input[static_cast<std::size_t>((plane * height + y) * width + x)]);
            largest = std::max(largest, value);
            sum += value;
            ++count;
          }
        output.push_back(static_cast<float>(maximum ? largest : sum / count));
      }
  return output;
}

/// Runs `layer` on row-major pictures at every one of three levels, which must not matter; returns row-major pictures.
template <class Layer>
std::vector<float> run(const Layer& layer, const std::vector<float>& input, index_t batch, Shape shape, Shape expected,
                       int threads) {
  strata::ThreadPool pool(threads);
  Context context(pool);
  context.set_checking(true);
  std::vector<float> first;
  for (int level = 0; level < 3; ++level) {
    context.set_level(Level{level});
    auto x = context.make(batch, shape);
    std::fill(x.data(), x.data() + x.layout().size(), NAN);  // idle lanes must not leak into pixels
    strata::read_rows(input.data(), x);
    const auto y = layer(context, x);
    REQUIRE_FALSE(context.error());
    REQUIRE(y.shape() == expected);
    REQUIRE(y.batch() == batch);
    std::vector<float> found(static_cast<std::size_t>(batch * expected.size()));
    strata::write_rows(y, found.data());
    if (level == 0) first = found;
    REQUIRE(found == first);
    std::vector<float> kept(input.size());
    strata::write_rows(x, kept.data());
    REQUIRE(kept == input);
  }
  return first;
}

double difference(const std::vector<float>& found, const std::vector<float>& expected) {
  REQUIRE(found.size() == expected.size());
  double worst = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const double error = std::abs(static_cast<double>(found[i]) - static_cast<double>(expected[i]));
    if (!(error <= worst)) worst = error;
    if (std::isnan(error)) return error;
  }
  return worst;
}

}  // namespace

TEST_CASE("pooling agrees with the plain loops") {
  int combinations = 0;
  for (const auto& [height, width] :
       {std::pair<index_t, index_t>{1, 1}, {1, 9}, {2, 2}, {5, 7}, {8, 8}, {9, 17}, {28, 28}, {3, 250}, {40, 3}})
    for (const Pair kernel : {Pair(1), Pair(2), Pair(3), Pair(5), Pair(2, 3), Pair(1, 4)})
      for (const Pair stride : {Pair(1), Pair(2), Pair(3), Pair(2, 1), Pair(1, 7)})
        for (const Pair padding : {Pair(0), Pair(kernel.h / 2, kernel.w / 2), Pair(0, kernel.w / 2)})
          for (const index_t batch : {1, 3}) {
            if (height + 2 * padding.h < kernel.h || width + 2 * padding.w < kernel.w) continue;
            const strata::PoolOptions o{kernel, stride, padding};
            const index_t channels = combinations % 3 == 0 ? 1 : (combinations % 3 == 1 ? 3 : 17);
            const int threads = 1 + combinations % 3;
            ++combinations;
            INFO(height << "x" << width << " kernel " << kernel.h << "x" << kernel.w << " stride " << stride.h << "x"
                        << stride.w << " padding " << padding.h << "x" << padding.w << " batch " << batch
                        << " channels " << channels << " threads " << threads);
            const std::vector<float> input = random_numbers(batch * channels * height * width);
            const Shape in{channels, height, width};
            const Shape out{channels, o.output_height(height), o.output_width(width)};
            const auto largest = pool_reference(input, batch * channels, height, width, o, true);
            CHECK(run(Family::MaxPool2d(o), input, batch, in, out, threads) == largest);
            const auto means = pool_reference(input, batch * channels, height, width, o, false);
            CHECK(difference(run(Family::AvgPool2d(o), input, batch, in, out, threads), means) < 1e-5);
          }
  CHECK(combinations > 800);
}

TEST_CASE("global average pooling agrees with the plain mean") {
  for (const auto& [height, width] :
       {std::pair<index_t, index_t>{1, 1}, {1, 9}, {7, 7}, {8, 8}, {5, 17}, {28, 28}, {3, 250}, {40, 3}})
    for (const index_t channels : {1, 3, 8, 33})
      for (const index_t batch : {1, 3, 20}) {
        INFO(height << "x" << width << " channels " << channels << " batch " << batch);
        const std::vector<float> input = random_numbers(batch * channels * height * width);
        const strata::PoolOptions whole{Pair(height, width), Pair(height, width), 0};
        const auto expected = pool_reference(input, batch * channels, height, width, whole, false);
        const auto found = run(Family::GlobalAvgPool2d(), input, batch, {channels, height, width}, {channels, 1, 1}, 2);
        CHECK(difference(found, expected) < 1e-5);
      }
}

TEST_CASE("padding counts as minus infinity for the maximum and not at all for the mean") {
  const strata::PoolOptions o{3, 1, 1};
  const std::vector<float> negative = random_numbers(2 * 5 * 6, -3, -2);
  const auto largest = run(Family::MaxPool2d(o), negative, 1, {2, 5, 6}, {2, 5, 6}, 1);
  for (const float value : largest) CHECK(value <= -2);
  const std::vector<float> ones(60, 1.0F);
  const auto means = run(Family::AvgPool2d(o), ones, 1, {2, 5, 6}, {2, 5, 6}, 1);
  for (const float value : means) CHECK(std::abs(value - 1) < 1e-6F);
}

TEST_CASE("pooling pads each direction with its own share") {
  // 1 2 3 / 4 5 6, one column of padding on both sides and none above: windows of 2 x 2 at columns -1, 1, 3 (cut).
  const std::vector<float> input = {1, 2, 3, 4, 5, 6};
  const strata::PoolOptions o{2, 2, Pair(0, 1)};
  CHECK(run(Family::MaxPool2d(o), input, 1, {1, 2, 3}, {1, 1, 2}, 1) == std::vector<float>{4, 6});
  CHECK(run(Family::AvgPool2d(o), input, 1, {1, 2, 3}, {1, 1, 2}, 1) == std::vector<float>{2.5, 4});
}

TEST_CASE("pooling of no pictures makes a tensor of no pictures") {
  strata::SerialExecutor executor;
  Context context(executor);
  const auto x = context.make(0, {3, 8, 8});
  CHECK(Family::MaxPool2d()(context, x).batch() == 0);
  CHECK(Family::AvgPool2d()(context, x).shape() == Shape{3, 4, 4});
  CHECK(Family::GlobalAvgPool2d()(context, x).batch() == 0);
}

TEST_CASE("a window larger than the padded picture is an error of the checking run") {
  strata::SerialExecutor executor;
  for (const auto& [height, width] : {std::pair<index_t, index_t>{2, 5}, {5, 2}, {1, 1}}) {
    INFO(height << "x" << width);
    Context context(executor);
    context.set_checking(true);
    const strata::PoolOptions o{5, 2, 1};
    (void)Family::MaxPool2d(o)(context, context.make(2, {3, height, width}));
    REQUIRE(context.error());
    CHECK(context.error()->where() == "pooling");
    CHECK(context.error()->expected() == "pictures of at least 3 x 3");
    Context other(executor);
    other.set_checking(true);
    (void)Family::AvgPool2d(o)(other, other.make(1, {3, height, width}));
    CHECK(other.error());
  }
}

TEST_CASE("pictures without pixels are errors of the checking run") {
  strata::SerialExecutor executor;
  const auto refused = [&](const auto& layer) {
    Context context(executor);
    context.set_checking(true);
    (void)layer(context, context.make(1, {2, 0, 0}));
    return context.error().has_value();
  };
  const strata::PoolOptions padded{2, 2, 1};
  CHECK(refused(Family::MaxPool2d(padded)));
  CHECK(refused(Family::AvgPool2d(padded)));
  CHECK(refused(Family::GlobalAvgPool2d()));
}
