// What a layer is, apart from its weights: the option structs that both module families build their layers from.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include <strata/core/activation.hpp>
#include <strata/core/error.hpp>
#include <strata/core/types.hpp>

namespace strata {

/// 2-D cross-correlation with bias, then per-level normalisation, residual and activation, as in torch.nn.Conv2d +
/// BatchNorm2d.
/// Weight shape: out_channels x (in_channels / groups) x kernel.h x kernel.w.
struct Conv2dOptions {
  index_t in_channels = 0;
  index_t out_channels = 0;
  Pair kernel = 3;
  Pair stride = 1;
  Pair padding = 0;
  Pair dilation = 1;
  index_t groups = 1;
  bool norm = true;   ///< batch normalisation, one set per level
  bool bias = false;  ///< a bias vector; with `norm`, which comes after it, it has no use but to hold a state_dict's
  Activation activation = Activation::identity;
  bool levelled = true;  ///< false: all weights belong to level 0

  [[nodiscard]] index_t columns() const noexcept { return in_channels / groups * kernel.h * kernel.w; }
  /// Whether every output pixel meets the input pixel in its place only.
  [[nodiscard]] bool pointwise() const noexcept { return kernel == Pair(1) && stride == Pair(1) && padding == Pair(0); }
  [[nodiscard]] index_t output_height(index_t height) const noexcept {
    return (height + 2 * padding.h - dilation.h * (kernel.h - 1) - 1) / stride.h + 1;
  }
  [[nodiscard]] index_t output_width(index_t width) const noexcept {
    return (width + 2 * padding.w - dilation.w * (kernel.w - 1) - 1) / stride.w + 1;
  }
  /// Whether there is a picture that, padded, holds the kernel at least once; the output's size is defined only then.
  [[nodiscard]] bool fits(index_t height, index_t width) const noexcept {
    return height >= 1 && width >= 1 && height + 2 * padding.h > dilation.h * (kernel.h - 1) &&
           width + 2 * padding.w > dilation.w * (kernel.w - 1);
  }
};

/// y = activation(norm(W x + b) + residual); W is out_features x in_features.
struct LinearOptions {
  index_t in_features = 0;
  index_t out_features = 0;
  bool bias = true;
  bool norm = false;
  Activation activation = Activation::identity;
  bool levelled = true;
};

/// Sliding window of max or average pooling. Padding counts as minus infinity (max) or is left out of the mean
/// (average).
struct PoolOptions {
  Pair kernel = 2;
  Pair stride = 2;
  Pair padding = 0;

  [[nodiscard]] index_t output_height(index_t height) const noexcept {
    return (height + 2 * padding.h - kernel.h) / stride.h + 1;
  }
  [[nodiscard]] index_t output_width(index_t width) const noexcept {
    return (width + 2 * padding.w - kernel.w) / stride.w + 1;
  }
  /// Whether there is a picture that, padded, holds the window at least once; the output's size is defined only then.
  [[nodiscard]] bool fits(index_t height, index_t width) const noexcept {
    return height >= 1 && width >= 1 && height + 2 * padding.h >= kernel.h && width + 2 * padding.w >= kernel.w;
  }
};

/// Largest extent of a kernel or pooling window, its stride, padding or dilation.
inline constexpr index_t max_window = 65535;

namespace detail {

/// Raises if no array can be that large (`max_elements`). `what` is what has the extents.
STRATA_COLD inline void require_array_size(std::initializer_list<index_t> extents, const char* where,
                                           const char* what) {
  if (is_array_size(extents)) return;
  std::string found;
  for (const index_t extent : extents) found += (found.empty() ? "" : " x ") + std::to_string(extent);
  raise(Error({where}, {what, " of at most ", max_elements, " numbers"}, {found}));
}

STRATA_COLD inline void require_window(const Pair& value, const char* where, const char* what) {
  if (value.h > max_window || value.w > max_window)
    raise(Error({where}, {what, " of at most ", max_window}, {value.h, " x ", value.w}));
}

STRATA_COLD inline void require_at_least(index_t least, const Pair& value, const char* where, const char* what) {
  if (value.h < least || value.w < least)
    raise(Error({where}, {what, " of at least ", least}, {value.h, " x ", value.w}));
}

/// The error of pictures `in` that the convolution `name` cannot take.
[[nodiscard]] STRATA_COLD inline Error wrong_input(const std::string& name, const Conv2dOptions& options, Shape in) {
  const auto least = [](index_t dilation, index_t kernel, index_t padding) {
    const index_t extent = dilation * (kernel - 1) + 1 - 2 * padding;
    return extent > 1 ? extent : 1;
  };
  return {
      {name},
      {options.in_channels, " channels of at least ", least(options.dilation.h, options.kernel.h, options.padding.h),
       " x ", least(options.dilation.w, options.kernel.w, options.padding.w), " pixels"},
      {text(in)}};
}

}  // namespace detail

/// Raises for options that describe no layer: channels, kernel, stride, dilation or groups below 1, negative padding,
/// groups that do not divide the channels, sizes beyond `max_window` and `max_elements`.
STRATA_COLD inline void require_valid(const Conv2dOptions& options) {
  detail::require_at_least(1, {options.in_channels, options.out_channels}, "convolution", "channels (in x out)");
  detail::require_at_least(1, options.kernel, "convolution", "a kernel");
  detail::require_at_least(1, options.stride, "convolution", "a stride");
  detail::require_at_least(1, options.dilation, "convolution", "a dilation");
  detail::require_at_least(0, options.padding, "convolution", "padding");
  if (options.groups < 1 || options.in_channels % options.groups != 0 || options.out_channels % options.groups != 0)
    raise(Error("convolution", "groups that divide in_channels and out_channels", options.groups));
  detail::require_window(options.kernel, "convolution", "a kernel");
  detail::require_window(options.stride, "convolution", "a stride");
  detail::require_window(options.dilation, "convolution", "a dilation");
  detail::require_window(options.padding, "convolution", "padding");
  detail::require_array_size({options.in_channels, options.out_channels, options.kernel.h, options.kernel.w},
                             "convolution", "in_channels x out_channels x kernel");
}

/// Raises for features below 1 and for more weights than `max_elements`.
STRATA_COLD inline void require_valid(const LinearOptions& options) {
  detail::require_at_least(1, {options.in_features, options.out_features}, "linear layer", "features (in x out)");
  detail::require_array_size({options.in_features, options.out_features}, "linear layer", "features (in x out)");
}

/// Raises for a kernel or stride below 1 or above `max_window` and for padding that is negative or above half the
/// kernel.
STRATA_COLD inline void require_valid(const PoolOptions& options) {
  detail::require_at_least(1, options.kernel, "pooling", "a kernel");
  detail::require_at_least(1, options.stride, "pooling", "a stride");
  detail::require_at_least(0, options.padding, "pooling", "padding");
  detail::require_window(options.kernel, "pooling", "a kernel");
  detail::require_window(options.stride, "pooling", "a stride");
  if (2 * options.padding.h > options.kernel.h || 2 * options.padding.w > options.kernel.w)
    raise(Error({"pooling"}, {"padding of at most half the kernel"}, {options.padding.h, " x ", options.padding.w}));
}

}  // namespace strata
