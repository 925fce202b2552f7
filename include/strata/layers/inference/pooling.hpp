// Pooling of the inference family: maximum and average over windows, and the average over whole pictures.
#pragma once

#include <algorithm>
#include <array>
#include <limits>

#include <xsimd/xsimd.hpp>

#include <strata/kernels/even_lanes.hpp>
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
  // A row of the picture reduced over the window's rows by whole vectors, with neutral elements on either side, then
  // the row over the window's columns.
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const Batch neutral(maximum ? -std::numeric_limits<Scalar>::infinity() : Scalar{0});
  const index_t margin = round_up(options.padding.w, lanes);
  const index_t reach = round_up(out.width, lanes) * options.stride.w + options.kernel.w + lanes;  // of the last window
  const index_t row_size = margin + round_up(std::max(in.width, reach), lanes) + lanes;
  const index_t row_bytes = round_up(row_size * static_cast<index_t>(sizeof(Scalar)), Block::alignment);
  const Block scratch = context.arena().take(threads * row_bytes);
  context.executor().parallel_for(threads, [&](index_t task) {
    auto* const start = reinterpret_cast<Scalar*>(scratch.data() + task * row_bytes);
    for (index_t sx = 0; sx < row_size; sx += lanes) neutral.store_aligned(start + sx);
    Scalar* const reduced = start + margin;
    const index_t planes = x.batch() * out.channels;
    for (index_t plane = task * planes / threads; plane < (task + 1) * planes / threads; ++plane) {
      const index_t image = plane / out.channels;
      const index_t channel = plane % out.channels;
      for (index_t oy = 0; oy < out.height; ++oy) {
        Scalar* target = y.row(image, channel, oy);
        const index_t top = oy * options.stride.h - options.padding.h;
        const index_t y0 = top < 0 ? 0 : top;
        const index_t y1 = top + options.kernel.h < in.height ? top + options.kernel.h : in.height;
        for (index_t sy = y0; sy < y1; ++sy) {
          const Scalar* const pixels = x.row(image, channel, sy);
          index_t sx = 0;
          for (; sx + lanes <= in.width; sx += lanes) {
            const auto row = Batch::load_unaligned(pixels + sx);
            (sy == y0 ? row : combine<maximum>(row, Batch::load_aligned(reduced + sx))).store_aligned(reduced + sx);
          }
          for (; sx < in.width; ++sx)
            reduced[sx] =
                sy == y0 ? pixels[sx] : (maximum ? std::max(pixels[sx], reduced[sx]) : pixels[sx] + reduced[sx]);
        }
        combine_columns<maximum, Arch>(reduced - options.padding.w, options.stride.w, options.kernel.w, out.width,
                                       target);
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
    for (index_t image = 0; image < x.batch(); ++image)
      for (index_t channel = 0; channel < in.channels; ++channel) {
        Scalar sum{0};
        for (index_t row = 0; row < in.height; ++row) {
          const Scalar* source = x.row(image, channel, row);
          for (index_t column = 0; column < in.width; ++column) sum += source[column];
        }
        *y.row(image, channel, 0) = sum / static_cast<Scalar>(in.height * in.width);
      }
    return y;
  }
};

}  // namespace strata::inference
