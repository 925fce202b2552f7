// What happens to a finished row of accumulators: per-level scale and bias, residual, activation. Kernels call it on
// registers; the scalar form is the reference and serves scalar tails.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <utility>

#include <xsimd/xsimd.hpp>

#include <strata/core/activation.hpp>
#include <strata/core/types.hpp>
#include <strata/kernels/exponential.hpp>

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

/// x for x > 0, else e^x - 1.
template <class Batch>
[[nodiscard]] [[gnu::always_inline]] inline Batch elu(const Batch& x) noexcept {
  using Scalar = typename Batch::value_type;
  return xsimd::max(x, bounded_exp(xsimd::min(x, Batch(Scalar{0}))) - Batch(Scalar{1}));
}

/// The activation of a vector, lane by lane; agrees with the scalar form to rounding (of numbers about
/// 1), but not for NaN.
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
      return elu(x);
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

namespace detail {

/// Activations with calls or many registers in them work on what was stored already, out of line, so that the common
/// kernels keep all registers for sums.
template <class Arch, class Scalar>
[[gnu::noinline]] void activate_stored(Scalar* output, std::size_t vectors, Activation activation) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  const Scalar* const end = output + vectors * Batch::size;
  if (activation == Activation::elu) {
    for (; output != end; output += Batch::size) elu(Batch::load_aligned(output)).store_aligned(output);
    return;
  }
  for (; output != end; output += Batch::size) activate(Batch::load_aligned(output), activation).store_aligned(output);
}

template <class Scalar, class Arch, std::size_t... v>
[[gnu::always_inline]] inline void finish_and_store(std::array<xsimd::batch<Scalar, Arch>, sizeof...(v)>& sums,
                                                    const Epilogue<Scalar>& epilogue, index_t row, Scalar* output,
                                                    index_t offset, std::index_sequence<v...>) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  const Batch scale(epilogue.scale == nullptr ? Scalar{1} : epilogue.scale[row]);
  const Batch bias(epilogue.bias == nullptr ? Scalar{0} : epilogue.bias[row]);
  ((sums[v] = xsimd::fma(sums[v], scale, bias)), ...);
  if (epilogue.residual != nullptr) {
    const Scalar* const residual = epilogue.residual + offset;
    ((sums[v] += Batch::load_aligned(residual + v * Batch::size)), ...);
  }
  if (epilogue.activation == Activation::relu) ((sums[v] = xsimd::max(sums[v], Batch(Scalar{0}))), ...);
  (sums[v].store_aligned(output + offset + v * Batch::size), ...);
  if (epilogue.activation > Activation::relu) activate_stored<Arch>(output + offset, sizeof...(v), epilogue.activation);
}

}  // namespace detail

/// Applies the epilogue to the accumulators of `row` and stores them at `output + offset` (aligned).
template <class Scalar, class Arch, std::size_t count>
[[gnu::always_inline]] inline void finish_and_store(std::array<xsimd::batch<Scalar, Arch>, count>& sums,
                                                    const Epilogue<Scalar>& epilogue, index_t row, Scalar* output,
                                                    index_t offset) noexcept {
  detail::finish_and_store(sums, epilogue, row, output, offset, std::make_index_sequence<count>());
}

}  // namespace strata::kernels
