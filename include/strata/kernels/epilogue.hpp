// What happens to a finished row of accumulators: per-level scale and bias, residual, activation. Kernels call it on
// registers; the scalar form is the reference and serves scalar tails.
#pragma once

#include <cmath>

#include <xsimd/xsimd.hpp>

#include <strata/core/activation.hpp>
#include <strata/core/types.hpp>

namespace strata::kernels {

/// y = activation(x * scale[row] + bias[row] + residual). Null pointers leave their part out.
template <class Scalar>
struct Epilogue {
  const Scalar* scale = nullptr;     ///< one per row
  const Scalar* bias = nullptr;      ///< one per row
  const Scalar* residual = nullptr;  ///< laid out as the output
  Activation activation = Activation::identity;
};

/// The activation of one number.
template <class Scalar>
[[nodiscard]] Scalar activate(Scalar x, Activation activation) noexcept {
  switch (activation) {
    case Activation::identity:
      return x;
    case Activation::relu:
      return x > 0 ? x : Scalar{0};
    case Activation::relu6:
      return x > 0 ? (x < 6 ? x : Scalar{6}) : Scalar{0};
    case Activation::leaky_relu:
      return x > 0 ? x : x * static_cast<Scalar>(leaky_relu_slope);
    case Activation::elu:
      return x > 0 ? x : std::expm1(x);
    case Activation::sigmoid:
      return 1 / (1 + std::exp(-x));
    case Activation::tanh:
      return std::tanh(x);
    case Activation::silu:
      return x / (1 + std::exp(-x));
  }
  return x;
}

/// The activation of a vector, lane by lane; agrees with the scalar form to rounding.
template <class Scalar, class Arch>
[[nodiscard]] xsimd::batch<Scalar, Arch> activate(const xsimd::batch<Scalar, Arch>& x, Activation activation) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  const Batch zero(Scalar{0});
  const Batch one(Scalar{1});
  switch (activation) {
    case Activation::identity:
      return x;
    case Activation::relu:
      return xsimd::max(x, zero);
    case Activation::relu6:
      return xsimd::min(xsimd::max(x, zero), Batch(Scalar{6}));
    case Activation::leaky_relu:
      return xsimd::max(x, zero) + xsimd::min(x, zero) * Batch(static_cast<Scalar>(leaky_relu_slope));
    case Activation::elu:
      return xsimd::select(x > zero, x, xsimd::expm1(xsimd::min(x, zero)));
    case Activation::sigmoid:
      return one / (one + xsimd::exp(-x));
    case Activation::tanh:
      return xsimd::tanh(x);
    case Activation::silu:
      return x / (one + xsimd::exp(-x));
  }
  return x;
}

/// The whole epilogue of one number of `row`.
template <class Scalar>
[[nodiscard]] Scalar finish(Scalar x, const Epilogue<Scalar>& epilogue, index_t row, index_t offset) noexcept {
  if (epilogue.scale != nullptr) x *= epilogue.scale[row];
  if (epilogue.bias != nullptr) x += epilogue.bias[row];
  if (epilogue.residual != nullptr) x += epilogue.residual[offset];
  return activate(x, epilogue.activation);
}

/// Applies the epilogue to the `count` accumulators of `row` and stores them at `output + offset` (aligned).
template <int count, class Scalar, class Arch>
void finish_and_store(xsimd::batch<Scalar, Arch>* accumulators, const Epilogue<Scalar>& epilogue, index_t row,
                      Scalar* output, index_t offset) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const Batch scale(epilogue.scale == nullptr ? Scalar{1} : epilogue.scale[row]);
  const Batch bias(epilogue.bias == nullptr ? Scalar{0} : epilogue.bias[row]);
  for (int v = 0; v < count; ++v) accumulators[v] = xsimd::fma(accumulators[v], scale, bias);
  if (epilogue.residual != nullptr)
    for (int v = 0; v < count; ++v) accumulators[v] += Batch::load_aligned(epilogue.residual + offset + v * lanes);
  if (epilogue.activation == Activation::relu) {
    for (int v = 0; v < count; ++v) accumulators[v] = xsimd::max(accumulators[v], Batch(Scalar{0}));
  } else if (epilogue.activation != Activation::identity) {
    for (int v = 0; v < count; ++v) accumulators[v] = activate(accumulators[v], epilogue.activation);
  }
  for (int v = 0; v < count; ++v) accumulators[v].store_aligned(output + offset + v * lanes);
}

}  // namespace strata::kernels
