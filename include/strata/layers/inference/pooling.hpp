// Pooling of the inference family: maximum and average over windows, and the average over whole pictures.
#pragma once

#include <limits>

#include <strata/layers/context.hpp>
#include <strata/layers/options.hpp>

namespace strata::inference {

namespace detail {

/// Applies `reduce(source rows' window)` to every output pixel; windows are cut at the picture's edge.
template <bool maximum, class Scalar, class Arch>
Tensor<Scalar> pool(InferenceContext<Scalar, Arch>& context, const Tensor<Scalar>& x, const PoolOptions& options) {
  const Shape in = x.shape();
  if (!context.check(options.fits(in.height, in.width), [&] {
        return Error("pooling",
                     "pictures of at least " + std::to_string(options.kernel.h - 2 * options.padding.h) + " x " +
                         std::to_string(options.kernel.w - 2 * options.padding.w),
                     strata::detail::text(in));
      }))
    return context.make(x.batch(), {in.channels, 1, 1});
  const Shape out{in.channels, options.output_height(in.height), options.output_width(in.width)};
  Tensor<Scalar> y = context.make(x.batch(), out);
  const auto threads = static_cast<index_t>(context.executor().threads());
  context.executor().parallel_for(threads, [&](index_t task) {
    const index_t planes = x.batch() * out.channels;
    for (index_t plane = task * planes / threads; plane < (task + 1) * planes / threads; ++plane) {
      const index_t image = plane / out.channels;
      const index_t channel = plane % out.channels;
      for (index_t oy = 0; oy < out.height; ++oy) {
        Scalar* target = y.row(image, channel, oy);
        const index_t top = oy * options.stride.h - options.padding.h;
        const index_t y0 = top < 0 ? 0 : top;
        const index_t y1 = top + options.kernel.h < in.height ? top + options.kernel.h : in.height;
        for (index_t ox = 0; ox < out.width; ++ox)
          target[ox] = maximum ? -std::numeric_limits<Scalar>::infinity() : Scalar{0};
        for (index_t sy = y0; sy < y1; ++sy) {
          const Scalar* source = x.row(image, channel, sy);
          for (index_t kx = 0; kx < options.kernel.w; ++kx) {
            const index_t shift = kx - options.padding.w;
            index_t begin = shift >= 0 ? 0 : ceil_div(-shift, options.stride.w);
            index_t end = in.width - 1 - shift < 0 ? 0 : (in.width - 1 - shift) / options.stride.w + 1;
            if (end > out.width) end = out.width;
            for (; begin < end; ++begin) {
              const Scalar value = source[begin * options.stride.w + shift];
              if constexpr (maximum) {
                target[begin] = value > target[begin] ? value : target[begin];
              } else {
                target[begin] += value;
              }
            }
          }
        }
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
