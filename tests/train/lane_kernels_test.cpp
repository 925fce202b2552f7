// The kernels of convolution and normalisation in lanes against their scalar twins, over awkward shapes.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include <strata/train/lane_kernels.hpp>
#include <strata/train/lane_norm.hpp>
#include <strata/train/lanes.hpp>

#include "support/arrays.hpp"
#include "support/catch.hpp"

namespace {

using strata::index_t;
using Arch = xsimd::default_arch;
namespace kernels = strata::kernels;

/// The greatest difference over the greatest expected sum (over 1 if that is less): rounding grows with what is summed.
template <class Scalar>
double relative_difference(const Array<Scalar>& found, const Array<Scalar>& expected) {
  const double size = expected.size() == 0 ? 0.0 : static_cast<double>(expected.abs().maxCoeff());
  return difference(found, expected) / std::max(1.0, size);
}

/// Output and input of a run of pixels with its taps, all in buffers of their own.
template <class Scalar>
struct Run {
  static constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  std::vector<index_t> starts;
  Array<Scalar> source, target;
  kernels::LaneInput<Scalar> input;
  kernels::LaneOutput<Scalar> output;

  Run(std::mt19937& random, index_t rows, index_t taps, index_t depth, index_t lines, index_t pixels, index_t stride) {
    const index_t width = pixels * stride + taps;  // tap t is t pixels to the right, and a line below if it is odd
    for (index_t t = 0; t < taps; ++t) starts.push_back((t + t % 2 * width) * depth * lanes);
    source = numbers<Scalar>(random, (lines + 2) * width * depth * lanes);
    input = {source.data(), width * depth * lanes, stride * depth * lanes, starts.data(), taps, depth};
    output.rows = rows;
    output.block = rows % 16 == 0 ? 16 : rows;
    output.block_step = lines * pixels * output.block * lanes;
    output.line_step = pixels * output.block * lanes;
    output.pixel_step = output.block * lanes;
    output.lines = lines;
    output.pixels = pixels;
    target = numbers<Scalar>(random, lines * pixels * rows * lanes);
  }
  [[nodiscard]] kernels::LaneOutput<Scalar> into(Array<Scalar>& values) const {
    kernels::LaneOutput<Scalar> result = output;
    result.target = values.data();
    return result;
  }
  [[nodiscard]] kernels::LaneOutput<const Scalar> from(const Array<Scalar>& values) const {
    return {values.data(), output.line_step,  output.pixel_step, output.rows,
            output.block,  output.block_step, output.lines,      output.pixels};
  }
};

/// Calls `f(run)` for runs of many shapes.
template <class Scalar, class F>
void for_runs(F&& f) {
  std::mt19937 random(3);
  for (const index_t rows : {1, 3, 7, 8, 9, 16, 32})
    for (const index_t taps : {0, 1, 4})
      for (const index_t depth : {1, 3, 6, 7, 16})
        for (const auto& [lines, pixels, stride] :
             {std::array<index_t, 3>{0, 0, 1}, std::array<index_t, 3>{1, 1, 1}, std::array<index_t, 3>{2, 4, 2},
              std::array<index_t, 3>{3, 9, 1}, std::array<index_t, 3>{1, 17, 1}}) {
          INFO("rows " << rows << " taps " << taps << " depth " << depth << " pixels " << pixels);
          f(random, Run<Scalar>(random, rows, taps, depth, lines, pixels, stride));
        }
}

template <class Scalar>
void check_products(double tolerance) {
  for_runs<Scalar>([&](std::mt19937& random, const Run<Scalar>& run) {
    const index_t columns = run.input.taps * run.input.depth;
    const Array<Scalar> weights =
        numbers<Scalar>(random, kernels::lane_packed_size<Arch, Scalar>(run.output.rows, columns));
    Array<Scalar> found = run.target;
    Array<Scalar> expected = run.target;
    kernels::lane_product<Arch, false>(run.input, weights.data(), run.into(found));
    kernels::lane_product_reference<Arch, false>(run.input, weights.data(), run.into(expected));
    CHECK(difference(found, expected) < tolerance);
    kernels::lane_product<Arch, true>(run.input, weights.data(), run.into(found));
    kernels::lane_product_reference<Arch, true>(run.input, weights.data(), run.into(expected));
    CHECK(difference(found, expected) < tolerance);

    const index_t step = run.output.rows + 3;
    Array<Scalar> sums = numbers<Scalar>(random, columns * step);
    Array<Scalar> expected_sums = sums;
    const kernels::LaneOutput<const Scalar> dy = run.from(run.target);
    Array<Scalar> turned(kernels::lane_turned_size<Arch, Scalar>(dy.rows, dy.lines * dy.pixels));
    Array<Scalar> expected_turned(turned.size());
    kernels::lane_turn<Arch>(dy, turned.data());
    kernels::lane_turn_reference<Arch>(dy, expected_turned.data());
    CHECK(difference(turned, expected_turned) == 0);
    const kernels::LaneTurned<Scalar> rows{turned.data(), dy.rows, dy.lines, dy.pixels};
    kernels::lane_weight_gradient<Arch>(run.input, rows, sums.data(), step);
    kernels::lane_weight_gradient_reference<Arch>(run.input, dy, expected_sums.data(), step);
    CHECK(difference(sums, expected_sums) < 8 * tolerance);
  });
}

template <class Scalar>
void check_sparse_products(double tolerance) {
  constexpr index_t lanes = Run<Scalar>::lanes;
  for_runs<Scalar>([&](std::mt19937& random, const Run<Scalar>& run) {
    std::vector<std::uint32_t> starts{2};  // as the second part of a mask: numbers before it
    std::vector<std::uint32_t> offsets{0, 0};
    for (index_t row = 0; row < run.output.rows; ++row) {  // every third row is empty
      for (index_t column = 0; row % 3 != 1 && column < run.input.taps * run.input.depth; ++column)
        if (random() % 3 == 0)
          offsets.push_back(static_cast<std::uint32_t>(run.starts[static_cast<std::size_t>(column / run.input.depth)] +
                                                       column % run.input.depth * lanes));
      starts.push_back(static_cast<std::uint32_t>(offsets.size()));
    }
    const Array<Scalar> values = numbers<Scalar>(random, static_cast<index_t>(offsets.size()));
    const kernels::LaneNonZeros<Scalar> weights{starts.data(), offsets.data(), values.data()};
    Array<Scalar> found = run.target;
    Array<Scalar> expected = run.target;
    for (const bool add : {false, true}) {
      kernels::lane_sparse_product<Arch>(run.source.data(), run.input.line_step, run.input.pixel_step, weights,
                                         run.into(found), add);
      kernels::lane_sparse_product_reference<Arch>(run.source.data(), run.input.line_step, run.input.pixel_step,
                                                   weights, run.into(expected), add);
      CHECK(difference(found, expected) < tolerance);
    }
    Array<Scalar> sums = numbers<Scalar>(random, static_cast<index_t>(offsets.size()) * lanes);
    Array<Scalar> expected_sums = sums;
    kernels::lane_sampled_product<Arch>(run.source.data(), run.input.line_step, run.input.pixel_step, weights,
                                        run.from(run.target), sums.data());
    kernels::lane_sampled_product_reference<Arch>(run.source.data(), run.input.line_step, run.input.pixel_step, weights,
                                                  run.from(run.target), expected_sums.data());
    CHECK(difference(sums, expected_sums) < tolerance);
  });
}

template <class Scalar>
void check_normalisation(double tolerance) {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  std::mt19937 random(5);
  for (const index_t channels : {1, 3, 4, 8, 11, 16})
    for (const index_t pixels : {1, 2, 25, 777}) {  // the last ones are more than one piece
      INFO("channels " << channels << " pixels " << pixels);
      const kernels::LaneBlock block{pixels, channels};
      const index_t size = pixels * channels * lanes;
      const Array<Scalar> x = numbers<Scalar>(random, size);
      const Array<Scalar> y = numbers<Scalar>(random, size);
      const Array<Scalar> dy = numbers<Scalar>(random, size);
      const Array<Scalar> a = numbers<Scalar>(random, channels);
      const Array<Scalar> b = numbers<Scalar>(random, channels);
      const Array<Scalar> c = numbers<Scalar>(random, channels);
      Array<Scalar> sums[4];
      for (auto& sum : sums) sum.resize(channels);
      kernels::lane_moments<Arch>(block, x.data(), sums[0].data(), sums[1].data());
      kernels::lane_moments_reference<Arch>(block, x.data(), sums[2].data(), sums[3].data());
      CHECK(relative_difference(sums[0], sums[2]) < tolerance);
      CHECK(relative_difference(sums[1], sums[3]) < tolerance);
      for (const int cut : {0, 1, 2}) {
        const bool relu = cut > 0;
        const Scalar* const result = cut == 1 ? y.data() : nullptr;  // else ReLU goes by the input
        kernels::LaneBackward<Scalar> sums_job;
        sums_job.x = x.data();
        sums_job.scale = b.data();
        sums_job.shift = c.data();
        sums_job.y = result;
        sums_job.dy = dy.data();
        sums_job.relu = relu;
        kernels::lane_gradient_sums<Arch>(block, sums_job, a.data(), sums[0].data(), sums[1].data());
        kernels::lane_gradient_sums_reference<Arch>(block, sums_job, a.data(), sums[2].data(), sums[3].data());
        CHECK(relative_difference(sums[0], sums[2]) < tolerance);
        CHECK(relative_difference(sums[1], sums[3]) < tolerance);
        for (const bool residual : {false, true}) {
          Array<Scalar> found(size);
          Array<Scalar> expected(size);
          const Scalar* const added = residual ? dy.data() : nullptr;
          kernels::lane_affine<Arch>(block, x.data(), a.data(), b.data(), added, relu, found.data());
          kernels::lane_affine_reference<Arch>(block, x.data(), a.data(), b.data(), added, relu, expected.data());
          CHECK(difference(found, expected) < tolerance);
          for (const int form : {0, 1, 2, 3}) {
            Array<Scalar> dx[2] = {dy, dy};
            Array<Scalar> shortcut[2] = {x, x};
            for (const int twin : {0, 1}) {
              kernels::LaneAffineGradient<Scalar> job;
              job.x = x.data();
              job.y = result;
              job.shift = c.data();
              job.add = form % 2 == 1;
              job.dx = dx[twin].data();
              job.dy = job.add ? dy.data() : dx[twin].data();  // in place unless it is added to
              job.scale = a.data();
              job.slope = b.data();
              job.offset = c.data();
              job.relu = relu;
              if (residual) job.residual = shortcut[twin].data();
              job.add_residual = form / 2 == 1;
              if (twin == 0) {
                kernels::lane_affine_gradient<Arch>(block, job);
              } else {
                kernels::lane_affine_gradient_reference<Arch>(block, job);
              }
            }
            CHECK(difference(dx[0], dx[1]) < tolerance);
            CHECK(difference(shortcut[0], shortcut[1]) < tolerance);
          }
        }
      }
    }
}

/// Moments of channels far from zero, with a first pixel far from the others, or all alike.
template <class Scalar>
void check_moments(double tolerance) {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  std::mt19937 random(8);
  for (const double mean : {0.0, 100.0, -3000.0})
    for (const double outlier : {0.0, 20.0}) {
      INFO("mean " << mean << " outlier " << outlier);
      const kernels::LaneBlock block{500, 9};
      Array<Scalar> x = numbers<Scalar>(random, block.pixels * block.channels * lanes) + static_cast<Scalar>(mean);
      x.head(block.channels * lanes) += static_cast<Scalar>(outlier);
      for (index_t pixel = 0; pixel < block.pixels; ++pixel)
        x.segment((pixel * block.channels + 4) * lanes, lanes) =
            static_cast<Scalar>(mean);  // a channel without variance
      Array<Scalar> found[2];
      Array<Scalar> expected[2];
      for (int i : {0, 1}) {
        found[i].resize(block.channels);
        expected[i].resize(block.channels);
      }
      kernels::lane_moments<Arch>(block, x.data(), found[0].data(), found[1].data());
      kernels::lane_moments_reference<Arch>(block, x.data(), expected[0].data(), expected[1].data());
      CHECK(found[1][4] == 0);
      for (index_t c = 0; c < block.channels; ++c) {
        const auto close = [&](int i, double scale) {
          return std::abs(static_cast<double>(found[i][c] - expected[i][c])) <= tolerance * scale;
        };
        CHECK(close(0, std::abs(mean) + 1));
        CHECK(close(1, 10 * static_cast<double>(expected[1][c])));
      }
    }
}

}  // namespace

TEST_CASE("dense products in lanes agree with their scalar twins") {
  check_products<float>(1e-4);
  check_products<double>(1e-12);
}

TEST_CASE("sparse products in lanes agree with their scalar twins") {
  check_sparse_products<float>(1e-4);
  check_sparse_products<double>(1e-12);
}

TEST_CASE("normalisation in lanes agrees with its scalar twins") {
  check_normalisation<float>(1e-5);
  check_normalisation<double>(1e-13);
}

TEST_CASE("ReLU in lanes lets what is no number through, as its scalar twin does") {
  constexpr index_t size = static_cast<index_t>(xsimd::batch<float, Arch>::size);
  const Array<float> x = Array<float>::Constant(size, std::numeric_limits<float>::quiet_NaN());
  const float scale = 2;
  const float offset = 1;
  Array<float> y[2] = {Array<float>::Zero(size), Array<float>::Zero(size)};
  kernels::lane_affine<Arch>({1, 1}, x.data(), &scale, &offset, static_cast<const float*>(nullptr), true, y[0].data());
  kernels::lane_affine_reference<Arch>({1, 1}, x.data(), &scale, &offset, static_cast<const float*>(nullptr), true,
                                       y[1].data());
  for (const auto& result : y) CHECK(result.isNaN().all());
}

TEST_CASE("activations go into lanes and come back") {
  std::mt19937 random(7);
  for (const auto& shape : {strata::Shape{1, 1, 1}, strata::Shape{3, 5, 2}, strata::Shape{16, 1, 1},
                            strata::Shape{17, 2, 2}, strata::Shape{48, 3, 3}})
    for (const index_t groups : {1, 3}) {
      constexpr index_t lanes = strata::train::lanes_of<float>;
      const strata::train::LaneLayout layout(lanes, groups * lanes, shape);
      const Array<float> values = numbers<float>(random, groups * lanes * shape.size());
      Array<float> moved(values.size());
      Array<float> back(values.size());
      for (index_t g = 0; g < groups; ++g)
        strata::train::to_lanes(layout, g, 0, layout.pixels, values.data(), moved.data());
      for (index_t g = 0; g < groups; ++g)
        strata::train::from_lanes(layout, g, 0, layout.pixels, moved.data(), back.data());
      CHECK(difference(values, back) == 0);
      // Picture 1, last channel, last pixel.
      const index_t channel = shape.channels - 1;
      const index_t pixel = shape.height * shape.width - 1;
      const index_t picture = lanes > 1 ? 1 : 0;
      CHECK(moved[channel / layout.block * layout.block_step() +
                  (pixel * layout.block + channel % layout.block) * lanes + picture] ==
            values[(picture * (pixel + 1) + pixel) * shape.channels + channel]);
    }
}

TEST_CASE("moments of channels keep their digits wherever the numbers lie") {
  check_moments<float>(1e-5);
  check_moments<double>(1e-13);
}
