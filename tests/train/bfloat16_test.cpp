// Convolutions with operands rounded to bfloat16: the kernels of every unit that this machine has against their scalar
// twins over awkward shapes, and whole convolutions against those of single precision, on numbers that rounding leaves
// as they are. Matrix products and LSTM layers with such operands likewise.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <strata/runtime/thread_pool.hpp>
#include <strata/train/bfloat16_convolution.hpp>
#include <strata/train/training.hpp>

#include "support/catch.hpp"
#include "support/convolution_cases.hpp"

namespace {

using strata::index_t;
using strata::Level;
using strata::Shape;
using strata::kernels::bfloat16;
using Unit = strata::kernels::Bfloat16Unit;
namespace kernels = strata::kernels;
using Floats = Eigen::Array<float, Eigen::Dynamic, 1>;
using Halves = Eigen::Array<bfloat16, Eigen::Dynamic, 1>;
constexpr index_t lanes = kernels::bfloat16_lanes;

/// Numbers of five bits: products and sums of some thousands of them are exact.
Floats numbers(std::mt19937& random, index_t count) {
  Floats result(count);
  for (float& number : result) number = static_cast<float>(static_cast<int>(random() % 31) - 15) / 16;
  return result;
}
Halves halves(std::mt19937& random, index_t count) {
  const Floats values = numbers(random, count);
  Halves result(count);
  for (index_t i = 0; i < count; ++i) result[i] = kernels::to_bfloat16(values[i]);
  return result;
}

/// Calls `f<unit>()` for the units that this machine has.
template <class F>
void for_units(F&& f) {
  if constexpr (kernels::has_bfloat16) {
    f.template operator()<Unit::vectors>();
    if (kernels::bfloat16_unit() == Unit::tiles) f.template operator()<Unit::tiles>();
  } else {
    WARN("no unit for bfloat16 on this machine: nothing to compare");
  }
}

template <Unit unit>
void check_product(std::mt19937& random, index_t rows, index_t blocks, index_t lines, index_t pixels) {
  INFO("rows " << rows << " blocks " << blocks << " lines " << lines << " pixels " << pixels);
  const kernels::Bfloat16Registers<unit> registers;
  const index_t pixel = 40 * lanes;  // not a multiple of a block: runs begin anywhere
  std::vector<index_t> starts;
  for (index_t i = 0; i < blocks; ++i) starts.push_back(i * 3 * lanes);
  const Halves source = halves(random, (lines * pixels + 1) * pixel + blocks * 3 * lanes + kernels::bfloat16_block);
  const kernels::Bfloat16Input input{source.data(), pixels * pixel, pixel, starts.data(), blocks};
  const Halves weights = halves(random, kernels::bfloat16_packed_size(rows, blocks));
  kernels::LaneOutput<bfloat16> output;
  output.rows = rows;
  output.block = rows % 16 == 0 ? 16 : rows;
  output.pixel_step = output.block * lanes;
  output.line_step = pixels * output.pixel_step;
  output.block_step = lines * output.line_step;
  output.lines = lines;
  output.pixels = pixels;
  Halves found = halves(random, lines * pixels * rows * lanes);
  Halves expected = found;
  output.target = expected.data();
  kernels::bfloat16_product<Unit::scalar, true>(input, weights.data(), output);
  output.target = found.data();
  kernels::bfloat16_product<unit, true>(input, weights.data(), output);
  CHECK((found == expected).all());
  output.target = expected.data();
  kernels::bfloat16_product<Unit::scalar, false>(input, weights.data(), output);
  output.target = found.data();
  kernels::bfloat16_product<unit, false>(input, weights.data(), output);
  CHECK((found == expected).all());
}

template <Unit unit>
void check_gradient(std::mt19937& random, index_t channels, index_t taps, index_t rows, index_t pairs) {
  INFO("channels " << channels << " taps " << taps << " rows " << rows << " pairs " << pairs);
  const kernels::Bfloat16Registers<unit> registers;
  std::vector<index_t> tap_starts, dy_starts, x_starts;
  for (index_t tap = 0; tap < taps; ++tap) tap_starts.push_back(tap * 16 * lanes);
  for (index_t pair = 0; pair < pairs; ++pair) {
    dy_starts.push_back(pair * 3 * lanes);  // pairs lie anywhere
    x_starts.push_back((pairs - pair) * 2 * 16 * lanes);
  }
  kernels::Bfloat16Pixels pixels;
  pixels.dy_row_step = (pairs * 3 + 2) * lanes;
  pixels.x_step = (2 * pairs + taps + 4) * 16 * lanes;
  const Halves dy = halves(random, 32 * pixels.dy_row_step);
  const Halves x = halves(random, 2 * pixels.x_step);
  pixels.dy = dy.data();
  pixels.dy_starts = dy_starts.data();
  pixels.x = x.data();
  pixels.x_starts = x_starts.data();
  pixels.pairs = pairs;
  pixels.taps = tap_starts.data();
  pixels.tap_count = taps;
  const index_t tap_step = channels + 1;
  const index_t row_step = taps * tap_step + 3;
  Floats found = numbers(random, rows * row_step);
  Floats expected = found;
  kernels::bfloat16_weight_gradient<Unit::scalar>(pixels, rows, channels, expected.data(), row_step, tap_step);
  kernels::bfloat16_weight_gradient<unit>(pixels, rows, channels, found.data(), row_step, tap_step);
  CHECK((found == expected).all());
}

template <Unit unit>
void check_arrangements(std::mt19937& random, index_t channels, index_t pixels) {
  INFO("channels " << channels << " pixels " << pixels);
  const index_t pixel = (channels + 1) * lanes;
  const Halves source = halves(random, pixels * pixel);
  const index_t size = (pixels + 1) * 40 * lanes * std::max<index_t>(channels, 16);
  Halves found = halves(random, size);
  Halves expected = found;
  const index_t target_step = (channels + 5) * lanes;
  kernels::to_channel_pairs<unit>(source.data(), pixel, pixels, channels, found.data(), target_step);
  kernels::to_channel_pairs<Unit::scalar>(source.data(), pixel, pixels, channels, expected.data(), target_step);
  CHECK((found == expected).all());
  const index_t plane_step = (pixels + 3) * lanes;
  kernels::to_planes(source.data(), pixel, pixels, channels, found.data(), plane_step);
  for (index_t c = 0; c < channels; ++c)
    for (index_t i = 0; i < pixels * lanes; ++i)
      expected[c * plane_step + i] = source[i / lanes * pixel + c * lanes + i % lanes];
  CHECK((found == expected).all());
  if (channels > 16) return;
  kernels::to_picture_pairs<unit>(source.data(), pixel, pixels, channels, found.data());
  kernels::to_picture_pairs<Unit::scalar>(source.data(), pixel, pixels, channels, expected.data());
  CHECK((found == expected).all());
}

template <Unit unit>
void check_matrix_product(std::mt19937& random, index_t m, index_t n, index_t k) {
  INFO("m " << m << " n " << n << " k " << k);
  namespace train = strata::train::detail;
  using train::Transposed;
  strata::SerialExecutor executor;
  strata::train::Context<float> context(executor);
  for (const auto transposed : {Transposed::none, Transposed::first, Transposed::second}) {
    const index_t a_rows = (transposed == Transposed::first ? k : m) + 1;  // a row between columns that is not read
    const index_t b_rows = (transposed == Transposed::second ? n : k) + 2;
    const Floats a = numbers(random, a_rows * (transposed == Transposed::first ? m : k));
    const Floats b = numbers(random, b_rows * (transposed == Transposed::second ? k : n));
    Floats found = numbers(random, (m + 3) * n);
    Floats expected = found;
    const auto a_view = train::view(a.data(), a_rows - 1, a.size() / a_rows, a_rows);
    const auto b_view = train::view(b.data(), b_rows - 2, b.size() / b_rows, b_rows);
    train::bfloat16_product<unit>(context, 0, transposed, a_view, b_view, train::view(found.data(), m, n, m + 3));
    train::add_product<float>(context, 0, transposed, a_view, b_view, train::view(expected.data(), m, n, m + 3));
    CHECK((found == expected).all());
  }
}

/// The same with both factors put in blocks before, the first by two pieces of vectors, the second by two of sums.
void check_blocked_product(std::mt19937& random, index_t m, index_t n, index_t k) {
  INFO("blocked: m " << m << " n " << n << " k " << k);
  namespace train = strata::train::detail;
  using train::Factor;
  strata::SerialExecutor executor;
  strata::train::Context<float> context(executor);
  CHECK(train::blocked_factor(context, Factor::first, m, k).empty());  // nobody asked for bfloat16
  context.bfloat16 = true;
  const Floats a = numbers(random, m * k);
  const Floats b = numbers(random, n * k);
  auto a_blocks = train::blocked_factor(context, Factor::first, m, k);
  auto b_blocks = train::blocked_factor(context, Factor::second, n, k);
  REQUIRE(a_blocks.empty() != kernels::has_bfloat16);
  const index_t m1 = m / 2 / 16 * 16;
  const index_t k1 = k / 2 / 32 * 32;
  // The vectors of a are rows of m x k, those of b columns of k x n.
  a_blocks.set<float>(train::view(a.data(), m1, k, m), true, 0, 0);
  a_blocks.set<float>(train::view(a.data() + m1, m - m1, k, m), true, m1, 0);
  b_blocks.set<float>(train::view(b.data(), k1, n, k), false, 0, 0);
  b_blocks.set<float>(train::view(b.data() + k1, k - k1, n, k), false, 0, k1);
  const auto a_view = train::view(a.data(), m, k, m);
  const auto b_view = train::view(b.data(), k, n, k);
  const Floats before = numbers(random, m * n);
  Floats expected = before;
  train::add_product<float>(a_view, b_view, train::view(expected.data(), m, n, m));
  const auto none = train::Transposed::none;
  for (const auto& [first, second] : {std::pair(a_blocks.blocks(), b_blocks.blocks()),
                                      std::pair(a_blocks.blocks(), decltype(b_blocks.blocks()){nullptr}),
                                      std::pair(decltype(a_blocks.blocks()){nullptr}, b_blocks.blocks())}) {
    Floats found = before;
    train::add_product<float>(context, 0, none, a_view, b_view, train::view(found.data(), m, n, m), first, second);
    CHECK((found == expected).all());
  }
  // The second half of the rows.
  Floats found = before;
  train::add_product<float>(context, 0, none, train::view(a.data() + m1, m - m1, k, m), b_view,
                            train::view(found.data() + m1, m - m1, n, m), a_blocks.blocks(m1), nullptr);
  for (index_t row = 0; row < m; ++row)
    for (index_t column = 0; column < n; ++column)
      CHECK(found[column * m + row] == (row < m1 ? before : expected)[column * m + row]);
}

using Family = strata::train::Training<float>;

struct Result {
  Floats y, dx, dw;
};

void run(Family::Context& context, Family::Conv2d& layer, Level level, Shape shape, const Floats& x, const Floats& dy,
         Result& result) {
  layer.weight().gradient.setZero();
  context.begin(level);
  auto input = context.make(x.size() / shape.size(), shape, true);
  input.value() = x;
  const auto y = layer(context, input);
  y.gradient() = dy;
  result.y = y.value();
  context.backward();
  result.dx = input.gradient();
  result.dw = layer.weight().gradient;
}

double difference(const Floats& a, const Floats& b) {
  REQUIRE(a.size() == b.size());
  return static_cast<double>((a - b).abs().maxCoeff() / (1 + b.abs().maxCoeff()));
}

}  // namespace

TEST_CASE("numbers are rounded to bfloat16 to the nearest, ties to even") {
  using Limits = std::numeric_limits<float>;
  CHECK(kernels::from_bfloat16(kernels::to_bfloat16(1.5F)) == 1.5F);
  CHECK(kernels::to_bfloat16(1.0F + 0x1p-8F) == kernels::to_bfloat16(1.0F));
  CHECK(kernels::from_bfloat16(kernels::to_bfloat16(1.0F + 3 * 0x1p-8F)) == 1.0F + 0x1p-6F);
  CHECK(kernels::from_bfloat16(kernels::to_bfloat16(1.0F + 0x1.01p-8F)) == 1.0F + 0x1p-7F);
  CHECK(kernels::from_bfloat16(kernels::to_bfloat16(Limits::max())) == Limits::infinity());
  CHECK(kernels::from_bfloat16(kernels::to_bfloat16(-Limits::infinity())) == -Limits::infinity());
  CHECK(std::isnan(kernels::from_bfloat16(kernels::to_bfloat16(Limits::quiet_NaN()))));
  CHECK(std::signbit(kernels::from_bfloat16(kernels::to_bfloat16(-Limits::denorm_min()))));
  CHECK(kernels::from_bfloat16(kernels::to_bfloat16(Limits::denorm_min())) == 0.0F);
}

TEST_CASE("products of bfloat16 numbers agree with their scalar twins") {
  std::mt19937 random(1);
  for_units([&]<Unit unit>() {
    for (const index_t rows : {1, 5, 16, 17, 32, 33, 48})
      for (const index_t blocks : {0, 1, 5})
        for (const auto& [lines, pixels] : {std::array<index_t, 2>{0, 0}, std::array<index_t, 2>{1, 1},
                                            std::array<index_t, 2>{2, 7}, std::array<index_t, 2>{1, 4}})
          check_product<unit>(random, rows, blocks, lines, pixels);
    for (const index_t taps : {0, 1, 4, 9})
      for (const index_t pairs : {0, 1, 5}) {
        for (const index_t channels : {1, 3, 16})
          for (const index_t rows : {1, 7, 16}) check_gradient<unit>(random, channels, taps, rows, pairs);
        check_gradient<unit>(random, 32, taps, 32, pairs);
      }
    for (const index_t m : {1, 16, 47})
      for (const index_t n : {1, 15, 64})
        for (const index_t k : {1, 16, 31, 32, 75}) check_matrix_product<unit>(random, m, n, k);
    for (const index_t channels : {1, 2, 3, 8, 15, 16, 33})
      for (const index_t pixels : {0, 1, 2, 5}) check_arrangements<unit>(random, channels, pixels);
  });
}

TEST_CASE("convolutions with bfloat16 operands and with single precision agree where nothing is rounded") {
  if (!kernels::has_bfloat16) WARN("no unit for bfloat16 on this machine: single precision twice");
  strata::SerialExecutor executor;
  constexpr index_t pictures = 2 * strata::train::lanes_of<float>;
  std::vector<test::ConvolutionCase> cases(std::begin(test::convolution_cases), std::end(test::convolution_cases));
  cases.push_back({{304, 3, 3}, 304, 3, 1, 1, 1});  // so many weights that the parts of the pictures share their sums
  cases.push_back({{320, 5, 4}, 288, 3, 2, 1, 1});
  for (const auto& c : cases) {
    INFO("channels " << c.shape.channels << " height " << c.shape.height << " out " << c.out);
    std::mt19937 random(9);
    Family::Conv2d layer(c.options());
    layer.weight().value = numbers(random, layer.weight().value.size());
    layer.set_levels(2);
    auto& strata = layer.weight().strata;
    strata.resize(static_cast<std::size_t>(layer.weight().value.size()));
    for (auto& stratum : strata) stratum = std::array<std::uint8_t, 3>{0, 1, strata::StratumMap::absent}[random() % 3];
    const Shape out = c.output();
    const Floats x = numbers(random, pictures * c.shape.size());
    const Floats dy = numbers(random, pictures * out.size());
    Family::Context context(executor);
    constexpr index_t scratch = index_t{1} << 20U;  // what is left of other work is not read
    for (index_t part = 0; part < Family::Context::parts; ++part)
      std::fill_n(context.half_scratch(part, scratch), scratch, kernels::to_bfloat16(std::nanf("")));
    for (const int level : {0, 1}) {
      Result half, single;
      context.bfloat16 = true;
      run(context, layer, Level{level}, c.shape, x, dy, half);
      context.bfloat16 = false;
      run(context, layer, Level{level}, c.shape, x, dy, single);
      CHECK(difference(half.y, single.y) < 0x1p-8);  // results are rounded
      CHECK(difference(half.dx, single.dx) < 0x1p-8);
      CHECK(difference(half.dw, single.dw) < 1e-6);
    }
  }
}

TEST_CASE("kernels of normalisation agree with their scalar twins on activations stored as bfloat16") {
  using Arch = xsimd::default_arch;
  constexpr auto width = static_cast<index_t>(xsimd::batch<float, Arch>::size);
  std::mt19937 random(5);
  for (const index_t channels : {1, 3, 8, 16})
    for (const index_t pixels : {1, 2, 25, 777})
      for (const int form : {0, 1, 2, 3, 4, 5}) {
        INFO("channels " << channels << " pixels " << pixels << " form " << form);
        const kernels::LaneBlock block{pixels, channels};
        const index_t size = pixels * channels * width;
        const Halves x = halves(random, size);
        const Halves y = halves(random, size);
        const Halves dy = halves(random, size);
        const Floats a = numbers(random, channels);
        const Floats b = numbers(random, channels);
        const Floats c = numbers(random, channels);
        Floats sums[4];
        for (auto& sum : sums) sum.resize(channels);
        const auto close = [](const auto& found, const auto& expected) {
          double largest = 0;
          for (index_t i = 0; i < found.size(); ++i) {
            const auto e = static_cast<double>(kernels::stored_as<float>(expected[i]));
            largest = std::max(
                largest, std::abs(static_cast<double>(kernels::stored_as<float>(found[i])) - e) / (1 + std::abs(e)));
          }
          return largest < 0x1p-7;  // a sum on the edge may be rounded either way
        };
        kernels::lane_moments<Arch>(block, x.data(), sums[0].data(), sums[1].data());
        kernels::lane_moments_reference<Arch>(block, x.data(), sums[2].data(), sums[3].data());
        CHECK(close(sums[0], sums[2]));
        CHECK(close(sums[1], sums[3]));
        Halves found(size);
        Halves expected(size);
        const bfloat16* const added = form % 2 == 0 ? nullptr : dy.data();
        kernels::lane_affine<Arch>(block, x.data(), a.data(), b.data(), added, form > 2, found.data());
        kernels::lane_affine_reference<Arch>(block, x.data(), a.data(), b.data(), added, form > 2, expected.data());
        CHECK(close(found, expected));
        kernels::LaneAffineGradient<float, bfloat16> job;
        job.x = x.data();
        job.scale = b.data();
        job.shift = c.data();
        job.y = form == 1 ? y.data() : nullptr;
        job.dy = dy.data();
        job.relu = form > 0;
        kernels::lane_gradient_sums<Arch, float, bfloat16>(block, job, a.data(), sums[0].data(), sums[1].data());
        kernels::lane_gradient_sums_reference<Arch, float, bfloat16>(block, job, a.data(), sums[2].data(),
                                                                     sums[3].data());
        CHECK(close(sums[0], sums[2]));
        CHECK(close(sums[1], sums[3]));
        Halves dx[2] = {y, y};
        Halves shortcut[2] = {x, x};
        for (const int twin : {0, 1}) {
          job.slope = a.data();
          job.offset = c.data();
          job.dx = dx[twin].data();
          job.add = form % 2 == 1;
          job.residual = form < 2 ? nullptr : shortcut[twin].data();
          job.add_residual = form > 3;
          if (twin == 0) {
            kernels::lane_affine_gradient<Arch>(block, job);
          } else {
            kernels::lane_affine_gradient_reference<Arch>(block, job);
          }
        }
        CHECK(close(dx[0], dx[1]));
        CHECK(close(shortcut[0], shortcut[1]));
      }
}

TEST_CASE("tensors give values and gradients in lanes of bfloat16 too") {
  strata::SerialExecutor executor;
  Family::Context context(executor);
  using strata::train::Layout;
  constexpr index_t pictures = strata::train::lanes_of<float>;
  std::mt19937 random(2);
  const auto x = context.make(pictures, {3, 2, 2}, true);
  x.value() = numbers(random, x.value().size());
  const auto moved = context.make(pictures, {3, 2, 2}, true, Layout::half_lanes);
  CHECK((moved.has(Layout::half_lanes) && moved.in_lanes() && !moved.has(Layout::lanes)));
  std::copy_n(x.lanes<bfloat16>(), x.value().size(), moved.lanes<bfloat16>());
  CHECK((moved.value() == x.value()).all());
  CHECK((Eigen::Map<Floats>(moved.lanes(), x.value().size()) == Eigen::Map<Floats>(x.lanes(), x.value().size())).all());

  // Added to in one layout, then in the others.
  x.gradient() += x.value();
  const auto half = x.lane_gradient<bfloat16>();
  CHECK_FALSE(half.fresh);
  for (index_t i = 0; i < x.value().size(); ++i)
    half.data[i] = kernels::to_bfloat16(2 * kernels::from_bfloat16(half.data[i]));
  const auto whole = x.lane_gradient();
  CHECK_FALSE(whole.fresh);
  Eigen::Map<Floats>(whole.data, x.value().size()) *= 2;
  (void)x.lane_gradient<bfloat16>();
  CHECK((x.gradient() == 4 * x.value()).all());
  CHECK(moved.lane_gradient<bfloat16>().fresh);
  const auto unused = context.make(pictures, {1, 1, 1}, true, Layout::half_lanes);
  CHECK(*unused.whole_lane_gradient<bfloat16>() == 0);
  const auto heir = context.make(pictures, {1, 1, 1}, true, Layout::half_lanes);
  CHECK(heir.take_lane_gradient<bfloat16>(unused).fresh);
  CHECK((heir.gradient() == 0).all());
}

TEST_CASE("a residual block trained with bfloat16 activations stays close to the one of single precision") {
  strata::SerialExecutor executor;
  constexpr index_t pictures = 2 * strata::train::lanes_of<float>;
  const Shape shape{16, 6, 6};
  Floats results[2][3];
  for (const bool half : {false, true}) {
    std::mt19937 random(8);
    Family::Conv2d first({.in_channels = 16, .out_channels = 16, .padding = 1, .activation = strata::Activation::relu});
    Family::Conv2d second(
        {.in_channels = 16, .out_channels = 16, .padding = 1, .activation = strata::Activation::relu});
    Family::Context context(executor);
    context.bfloat16 = half;
    context.begin(Level{0});
    auto x = context.make(pictures, shape, true);
    x.value() = numbers(random, x.value().size());
    const auto y = first(context, x);
    const auto z = second(context, y, y);
    z.gradient() = numbers(random, z.value().size());
    results[half ? 1 : 0][0] = z.value();
    context.backward();
    results[half ? 1 : 0][1] = x.gradient();
    results[half ? 1 : 0][2] = first.weight().gradient;
  }
  // Where rounding moves one value in 400 across zero, ReLU lets another gradient through: 5 % of the norm.
  for (int i = 0; i < 3; ++i) {
    const auto& expected = results[0][i];
    CHECK((results[1][i] - expected).matrix().norm() < (i == 0 ? 0.01F : 0.1F) * expected.matrix().norm());
  }
}

TEST_CASE("convolutions with bfloat16 operands give the same bits on any number of threads") {
  for (const auto& [shape, out] : {std::pair(Shape{16, 9, 8}, 32), std::pair(Shape{320, 2, 3}, 288)}) {
    std::vector<Floats> results[2];
    for (const int threads : {1, 2}) {
      std::mt19937 random(4);
      Family::Conv2d layer({.in_channels = shape.channels, .out_channels = out, .padding = 1});
      strata::ThreadPool pool(threads);
      Family::Context context(pool);
      context.bfloat16 = true;
      const Floats x = numbers(random, 5 * lanes * shape.size());
      const Floats dy = numbers(random, 5 * lanes * out * shape.height * shape.width);
      Result result;
      run(context, layer, Level{0}, shape, x, dy, result);
      results[threads - 1] = {result.y, result.dx, result.dw};
    }
    for (std::size_t i = 0; i < results[0].size(); ++i) CHECK((results[0][i] == results[1][i]).all());
  }
}

TEST_CASE("factors in blocks that several products share give what the products themselves arrange") {
  std::mt19937 random(5);
  for (const index_t m : {1, 31, 48, 70})
    for (const index_t n : {3, 16, 33})
      for (const index_t k : {7, 64, 100}) check_blocked_product(random, m, n, k);
}

TEST_CASE("an LSTM with bfloat16 stays close to single precision, the same on any number of threads") {
  strata::ThreadPool threads(3);
  strata::SerialExecutor serial;
  const index_t steps = 5;
  for (const index_t units : {256, 72})  // with and without factors shared by all steps
    for (const index_t batch : {19, 3}) {
      INFO("units " << units << " batch " << batch);
      std::mt19937 random(6);
      std::uniform_real_distribution<float> uniform(-1, 1);
      Family::Lstm layer({.in_features = 40, .hidden_features = units, .bidirectional = true});
      layer.initialise(3);
      std::vector<std::int32_t> lengths;
      for (index_t b = 0; b < batch; ++b) lengths.push_back(static_cast<std::int32_t>(1 + b % steps));
      const strata::SequenceShape shape{steps, batch, lengths};
      Floats x(steps * batch * 40);
      Floats dy(steps * batch * 2 * units);
      Floats start(batch * units);
      for (auto* array : {&x, &dy, &start})
        for (float& value : *array) value = uniform(random);
      const auto run = [&](strata::Executor& executor, bool bfloat16) {
        Family::Context context(executor);
        context.bfloat16 = bfloat16;
        std::vector<Floats> results;
        for (int pass = 0; pass < 2; ++pass) {  // the second with buffers of the first
          results.clear();
          layer.for_each_parameter("", "", [](auto& parameter) { parameter.gradient.setZero(); });
          context.begin(Level{0});
          const auto input = context.make(steps * batch, {40, 1, 1}, true);
          input.value() = x;
          Family::Lstm::State state;
          state.empty = false;
          for (std::size_t d = 0; d < 2; ++d) {
            state.hidden[d] = context.make(batch, {units, 1, 1}, true);
            state.cell[d] = context.make(batch, {units, 1, 1}, true);
            state.hidden[d].value() = start;
            state.cell[d].value() = start;
          }
          const auto before = state.hidden;
          const auto y = layer(context, input, shape, state);
          y.gradient() = dy;
          for (auto* after : {&state.hidden, &state.cell})
            for (const auto& tensor : *after) tensor.gradient() = start;
          context.backward();
          results = {y.value(), input.gradient(), before[0].gradient(), before[1].gradient()};
          layer.for_each_parameter("", "", [&](auto& parameter) { results.push_back(parameter.gradient); });
        }
        return results;
      };
      const auto exact = run(serial, false);
      const auto rounded = run(serial, true);
      const auto threaded = run(threads, true);
      for (std::size_t i = 0; i < exact.size(); ++i) {
        INFO("result " << i);
        CHECK(difference(rounded[i], exact[i]) < 0.01);
        CHECK((rounded[i] == threaded[i]).all());
        if (kernels::has_bfloat16 && units * batch > 1000) CHECK((rounded[i] != exact[i]).any());
      }
    }
}
