// The element-wise functions that end a layer, by name; kernels/epilogue.hpp and the training layers compute them.
#pragma once

#include <cstdint>

namespace strata {

/// Element-wise function at the end of a layer.
enum class Activation : std::uint8_t { identity, relu, relu6, leaky_relu, elu, sigmoid, tanh, silu };

/// Slope of `Activation::leaky_relu` below zero, PyTorch's default.
inline constexpr float leaky_relu_slope = 0.01F;

}  // namespace strata
