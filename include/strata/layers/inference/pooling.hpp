// Pooling of the inference family: maximum and average over windows, and the average over whole pictures.
#pragma once

#include <algorithm>
#include <array>
#include <limits>

#include <xsimd/xsimd.hpp>

#include <strata/kernels/lanes.hpp>
#include <strata/layers/context.hpp>
#include <strata/layers/options.hpp>

namespace strata::inference {

namespace detail {

/// The larger or the sum.
template <bool maximum, class Batch>
[[nodiscard]] Batch combine(const Batch& a, const Batch& b) noexcept {
  if constexpr (maximum) {
    return xsimd::max(a, b);
  } else {
    return a + b;
  }
}

/// reduced[x] = the maximum or the sum of rows[0][x] .. rows[count-1][x] and, unless they are the `first` rows,
/// reduced[x], for `width` elements.
template <bool maximum, std::size_t count, class Arch, class Scalar>
void combine_rows(const Scalar* const* rows, index_t width, bool first, Scalar* reduced) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  index_t x = 0;
  for (; x + lanes <= width; x += lanes) {
    Batch pixels = Batch::load_unaligned(rows[0] + x);
    for (std::size_t r = 1; r < count; ++r) pixels = combine<maximum>(Batch::load_unaligned(rows[r] + x), pixels);
    (first ? pixels : combine<maximum>(pixels, Batch::load_aligned(reduced + x))).store_aligned(reduced + x);
  }
  for (; x < width; ++x) {
    Scalar pixel = rows[0][x];
    for (std::size_t r = 1; r < count; ++r) pixel = maximum ? std::max(rows[r][x], pixel) : rows[r][x] + pixel;
    reduced[x] = first ? pixel : (maximum ? std::max(pixel, reduced[x]) : pixel + reduced[x]);
  }
}

/// The sum of `count` elements.
template <class Arch, class Scalar>
[[nodiscard]] Scalar sum_of(const Scalar* row, index_t count) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  Batch sums(Scalar{0});
  index_t x = 0;
  for (; x + lanes <= count; x += lanes) sums += Batch::load_unaligned(row + x);
  Scalar sum = xsimd::hadd(sums);
  for (; x < count; ++x) sum += row[x];
  return sum;
}

/// target[x] = the maximum or the sum of row[x * step] .. row[x * step + count - 1] for `width` elements; `count` may
/// be any number, whole vectors of the row are read.
template <bool maximum, class Arch, class Scalar>
void combine_columns(const Scalar* row, index_t step, index_t count, index_t width, Scalar* target) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const auto at = [&](index_t x, index_t kx) {
    return step == 2 ? kernels::even_lanes<Batch>(row + 2 * x + kx) : Batch::load_unaligned(row + x + kx);
  };
  if (step > 2) {
    for (index_t x = 0; x < width; ++x) {
      Scalar result = row[x * step];
      for (index_t kx = 1; kx < count; ++kx) {
        const Scalar pixel = row[x * step + kx];
        result = maximum ? std::max(result, pixel) : result + pixel;
      }
      target[x] = result;
    }
    return;
  }
  for (index_t x = 0; x < width; x += lanes) {
    Batch result = at(x, 0);
    for (index_t kx = 1; kx < count; ++kx) result = combine<maximum>(at(x, kx), result);
    if (x + lanes <= width) {
      result.store_unaligned(target + x);
    } else {  // what comes after the row may belong to another thread
      alignas(Block::alignment) std::array<Scalar, Batch::size> rest;
      result.store_aligned(rest.data());
      std::copy_n(rest.data(), width - x, target + x);
    }
  }
}

/// Applies `reduce(source rows' window)` to every output pixel; windows are cut at the picture's edge.
template <bool maximum, class Scalar, class Arch>
Tensor<Scalar> pool(InferenceContext<Scalar, Arch>& context, const Tensor<Scalar>& x, const PoolOptions& options) {
  const Shape in = x.shape();
  if (!context.check(options.fits(in.height, in.width), [&] {
        return Error({"pooling"},
                     {"pictures of at least ", options.kernel.h - 2 * options.padding.h, " x ",
                      options.kernel.w - 2 * options.padding.w},
                     {strata::detail::text(in)});
      }))
    return context.make(x.batch(), {in.channels, 1, 1});
  const Shape out{in.channels, options.output_height(in.height), options.output_width(in.width)};
  Tensor<Scalar> y = context.make(x.batch(), out);
  const auto threads = static_cast<index_t>(context.executor().threads());
  // Rows of some channels reduced over the window's rows by whole vectors, with neutral elements on either side, then
  // each over the window's columns: by then the vectors have left the store buffer, which unaligned loads wait for.
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  constexpr index_t together = 8;
  const Batch neutral(maximum ? -std::numeric_limits<Scalar>::infinity() : Scalar{0});
  const index_t margin = round_up(options.padding.w, lanes);
  const index_t reach = round_up(out.width, lanes) * options.stride.w + options.kernel.w + lanes;  // of the last window
  const index_t row_size = margin + round_up(std::max(in.width, reach), lanes) + lanes;
  const index_t task_bytes = round_up(together * row_size * static_cast<index_t>(sizeof(Scalar)), Block::alignment);
  const Block scratch = context.arena().take(threads * task_bytes);
  context.executor().parallel_for(threads, [&](index_t task) {
    auto* const start = reinterpret_cast<Scalar*>(scratch.data() + task * task_bytes);
    for (index_t sx = 0; sx < together * row_size; sx += lanes) neutral.store_aligned(start + sx);
    // Row by row, all channels of each: so they lie in memory.
    const index_t rows = x.batch() * out.height;
    for (index_t row = task * rows / threads; row < (task + 1) * rows / threads; ++row) {
      const index_t image = row / out.height;
      const index_t oy = row % out.height;
      const index_t top = oy * options.stride.h - options.padding.h;
      const index_t y0 = top < 0 ? 0 : top;
      const index_t y1 = top + options.kernel.h < in.height ? top + options.kernel.h : in.height;
      for (index_t first = 0; first < out.channels; first += together) {
        const index_t channels = std::min(together, out.channels - first);
        for (index_t sy = y0; sy < y1; sy += 3) {
          // Three rows at a time, the height of the usual window.
          const Scalar* pixels[3];
          const index_t count = std::min<index_t>(3, y1 - sy);
          for (index_t r = 0; r < count; ++r) pixels[r] = x.row(image, first, sy + r);
          Scalar* reduced = start + margin;
          for (index_t c = 0; c < channels; ++c, reduced += row_size) {
            if (count == 3) {
              combine_rows<maximum, 3, Arch>(pixels, in.width, sy == y0, reduced);
            } else {
              for (index_t r = 0; r < count; ++r)
                combine_rows<maximum, 1, Arch>(pixels + r, in.width, sy + r == y0, reduced);
            }
            for (index_t r = 0; r < count; ++r) pixels[r] += x.layout().tile_pitch;
          }
        }
        Scalar* target = y.row(image, first, oy);
        const Scalar* reduced = start + margin - options.padding.w;
        for (index_t c = 0; c < channels; ++c, target += y.layout().tile_pitch, reduced += row_size) {
          combine_columns<maximum, Arch>(reduced, options.stride.w, options.kernel.w, out.width, target);
          if constexpr (!maximum) {
            for (index_t ox = 0; ox < out.width; ++ox) {
              const index_t left = ox * options.stride.w - options.padding.w;
              const index_t x0 = left < 0 ? 0 : left;
              const index_t x1 = left + options.kernel.w < in.width ? left + options.kernel.w : in.width;
              target[ox] /= static_cast<Scalar>((y1 - y0) * (x1 - x0));
            }
          }
        }
      }
    }
  });
  return y;
}

}  // namespace detail

/// Maximum of each window.
template <class Scalar, class Arch>
class MaxPool2d {
 public:
  static constexpr bool has_parameters = false;
  explicit MaxPool2d(const PoolOptions& options = {}) : options_(options) { require_valid(options); }
  [[nodiscard]] Tensor<Scalar> operator()(InferenceContext<Scalar, Arch>& context, const Tensor<Scalar>& x) const {
    return detail::pool<true>(context, x, options_);
  }

 private:
  PoolOptions options_;
};

/// Mean of each window's pixels inside the picture.
template <class Scalar, class Arch>
class AvgPool2d {
 public:
  static constexpr bool has_parameters = false;
  explicit AvgPool2d(const PoolOptions& options = {}) : options_(options) { require_valid(options); }
  [[nodiscard]] Tensor<Scalar> operator()(InferenceContext<Scalar, Arch>& context, const Tensor<Scalar>& x) const {
    return detail::pool<false>(context, x, options_);
  }

 private:
  PoolOptions options_;
};

/// Mean of each channel: channels x height x width -> channels x 1 x 1.
template <class Scalar, class Arch>
class GlobalAvgPool2d {
 public:
  static constexpr bool has_parameters = false;
  [[nodiscard]] Tensor<Scalar> operator()(InferenceContext<Scalar, Arch>& context, const Tensor<Scalar>& x) const {
    const Shape in = x.shape();
    Tensor<Scalar> y = context.make(x.batch(), {in.channels, 1, 1});
    if (!context.check(in.height >= 1 && in.width >= 1,
                       [&] { return Error("global average", "at least 1 pixel", strata::detail::text(in)); }))
      return y;
    // A picture lies in one tile or several, each of which holds whole rows without gaps.
    const index_t rows = std::max<index_t>(1, x.layout().tile_rows);
    const auto pixels = static_cast<Scalar>(in.height * in.width);
    for (index_t image = 0; image < x.batch(); ++image)
      for (index_t channel = 0; channel < in.channels; ++channel) {
        Scalar sum{0};
        for (index_t row = 0; row < in.height; row += rows)
          sum += detail::sum_of<Arch>(x.row(image, channel, row), std::min(rows, in.height - row) * in.width);
        *y.row(image, channel, 0) = sum / pixels;
      }
    return y;
  }
};

}  // namespace strata::inference
