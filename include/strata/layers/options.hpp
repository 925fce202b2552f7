// What a layer is, apart from its weights: the option structs that both module families build their layers from.
#pragma once

#include <cstdint>
#include <string>

#include <strata/core/activation.hpp>
#include <strata/core/error.hpp>
#include <strata/core/types.hpp>

namespace strata {

/// 2-D cross-correlation, then per-level normalisation, residual and activation, as in torch.nn.Conv2d + BatchNorm2d.
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
  bool bias = false;  ///< a bias vector; with `norm` its offset already is one
  Activation activation = Activation::identity;
  bool levelled = true;  ///< false: all weights belong to level 0

  [[nodiscard]] index_t columns() const noexcept { return in_channels / groups * kernel.h * kernel.w; }
  [[nodiscard]] index_t output_height(index_t height) const noexcept {
    return (height + 2 * padding.h - dilation.h * (kernel.h - 1) - 1) / stride.h + 1;
  }
  [[nodiscard]] index_t output_width(index_t width) const noexcept {
    return (width + 2 * padding.w - dilation.w * (kernel.w - 1) - 1) / stride.w + 1;
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
};

}  // namespace strata
