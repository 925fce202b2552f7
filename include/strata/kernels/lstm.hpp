// The element-wise half of an LSTM step: gates to cell and hidden state in one pass. The products that make the gates
// are the business of the layers.
#pragma once

#include <cmath>

#include <xsimd/xsimd.hpp>

#include <strata/core/types.hpp>
#include <strata/kernels/exponential.hpp>

namespace strata::kernels {

/// The plain twin of `lstm_cell`.
template <class Scalar>
void lstm_cell_reference(index_t count, const Scalar* gates, const Scalar* cell_before, Scalar* cell,
                         Scalar* hidden) noexcept {
  const auto sigmoid = [](Scalar x) { return 1 / (1 + std::exp(-x)); };
  for (index_t i = 0; i < count; ++i) {
    const Scalar kept = sigmoid(gates[count + i]) * cell_before[i];
    cell[i] = kept + sigmoid(gates[i]) * std::tanh(gates[2 * count + i]);
    hidden[i] = sigmoid(gates[3 * count + i]) * std::tanh(cell[i]);
  }
}

/// cell = sigmoid(f) * cell_before + sigmoid(i) * tanh(g), hidden = sigmoid(o) * tanh(cell), for `count` numbers;
/// `gates` holds i, f, g, o, `count` of each. Nothing needs to be aligned; `cell` may be `cell_before`.
template <class Arch, class Scalar>
void lstm_cell(index_t count, const Scalar* gates, const Scalar* cell_before, Scalar* cell, Scalar* hidden) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const Batch one(Scalar{1});
  const auto load = [&](index_t gate, index_t i) { return Batch::load_unaligned(gates + gate * count + i); };
  // sigmoid(a) * tanh(b) with one exponential each; the clamps keep both finite, where tanh is 1 to rounding anyway.
  const Batch limit(sizeof(Scalar) == 4 ? Scalar{20} : Scalar{40});
  const auto sigmoid_times_tanh = [&](const Batch& a, const Batch& b) {
    const Batch ea = bounded_exp(-xsimd::max(xsimd::min(a, limit), -limit));
    const Batch eb = bounded_exp(xsimd::max(xsimd::min(b, limit), -limit) * Batch(Scalar{-2}));
    return (one - eb) / ((one + ea) * (one + eb));
  };
  index_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const Batch forget = one / (one + bounded_exp(-xsimd::max(xsimd::min(load(1, i), limit), -limit)));
    const Batch c =
        xsimd::fma(forget, Batch::load_unaligned(cell_before + i), sigmoid_times_tanh(load(0, i), load(2, i)));
    c.store_unaligned(cell + i);
    sigmoid_times_tanh(load(3, i), c).store_unaligned(hidden + i);
  }
  const auto sigmoid = [](Scalar x) { return 1 / (1 + std::exp(-x)); };
  for (; i < count; ++i) {
    const Scalar c = sigmoid(gates[count + i]) * cell_before[i] + sigmoid(gates[i]) * std::tanh(gates[2 * count + i]);
    cell[i] = c;
    hidden[i] = sigmoid(gates[3 * count + i]) * std::tanh(c);
  }
}

}  // namespace strata::kernels
