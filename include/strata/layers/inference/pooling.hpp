// Pooling of the inference family: maximum and average over windows, and the average over whole pictures.
#pragma once

#include <algorithm>
#include <limits>

#include <strata/layers/context.hpp>
#include <strata/layers/options.hpp>

namespace strata::inference {

namespace detail {

/// target[x] = max(target[x], row[x * step + shift]), or the sum, where that is inside the row; the neutral element
/// first if `first`.
template <bool maximum, class Scalar>
void add_column(const Scalar* __restrict row, index_t shift, index_t step, index_t width, index_t out_width, bool first,
                Scalar* __restrict target) noexcept {
  if (first)
    for (index_t x = 0; x < out_width; ++x) target[x] = maximum ? -std::numeric_limits<Scalar>::infinity() : Scalar{0};
  const index_t from = shift >= 0 ? 0 : ceil_div(-shift, step);
  const index_t inside = shift >= width ? 0 : ceil_div(width - shift, step);
  const index_t to = inside < out_width ? inside : out_width;
  const auto add = [&](index_t x, Scalar pixel) {
    if constexpr (maximum) {
      target[x] = pixel > target[x] ? pixel : target[x];
    } else {
      target[x] += pixel;
    }
  };
  row += shift;
  if (step == 2) {
    for (index_t x = from; x < to; ++x) add(x, row[2 * x]);  // compilers make shuffles of it
  } else {
    for (index_t x = from; x < to; ++x) add(x, row[x * step]);
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
  // A row of the picture reduced over the window's rows by whole vectors, then the row over the window's columns.
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const index_t row_bytes =
      round_up(round_up(in.width, lanes) * static_cast<index_t>(sizeof(Scalar)), Block::alignment);
  const Block scratch = context.arena().take(threads * row_bytes);
  context.executor().parallel_for(threads, [&](index_t task) {
    auto* const reduced = reinterpret_cast<Scalar*>(scratch.data() + task * row_bytes);
    const index_t planes = x.batch() * out.channels;
    for (index_t plane = task * planes / threads; plane < (task + 1) * planes / threads; ++plane) {
      const index_t image = plane / out.channels;
      const index_t channel = plane % out.channels;
      for (index_t oy = 0; oy < out.height; ++oy) {
        Scalar* target = y.row(image, channel, oy);
        const index_t top = oy * options.stride.h - options.padding.h;
        const index_t y0 = top < 0 ? 0 : top;
        const index_t y1 = top + options.kernel.h < in.height ? top + options.kernel.h : in.height;
        for (index_t sx = 0; sx < in.width; sx += lanes) {
          Batch column(maximum ? -std::numeric_limits<Scalar>::infinity() : Scalar{0});
          for (index_t sy = y0; sy < y1; ++sy) {
            const auto pixels = Batch::load_unaligned(x.row(image, channel, sy) + sx);
            column = maximum ? xsimd::max(pixels, column) : column + pixels;
          }
          column.store_aligned(reduced + sx);
        }
        for (index_t kx = 0; kx < options.kernel.w; ++kx)
          add_column<maximum>(reduced, kx - options.padding.w, options.stride.w, in.width, out.width, kx == 0, target);
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
