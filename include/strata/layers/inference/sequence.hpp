// Access to single samples of a batch of vectors, for layers that go through sequences step by step, and the choice of
// samples by number.
#pragma once

#include <cstdint>
#include <span>

#include <strata/core/tensor.hpp>
#include <strata/core/types.hpp>
#include <strata/layers/context.hpp>
#include <strata/layers/sequence.hpp>

namespace strata::inference {

/// The features of one sample of a batch of vectors: `stride` apart from `first` on.
template <class Scalar>
struct SampleView {
  Scalar* first = nullptr;
  index_t stride = 1;

  [[nodiscard]] Scalar& operator[](index_t feature) const noexcept { return first[feature * stride]; }
};

/// Precondition: `x` is a batch of vectors (height and width 1), `index` below its batch.
template <class Scalar>
[[nodiscard]] SampleView<Scalar> sample(const Tensor<Scalar>& x, index_t index) noexcept {
  return {x.row(index, 0, 0), x.layout().tile_pitch};
}

/// The samples `indices` of `x`, in that order; for the state of hypotheses whose parents these are. Preconditions:
/// `x` is a batch of vectors, the indices are below its batch.
template <class Scalar, class Arch>
[[nodiscard]] Tensor<Scalar> select(InferenceContext<Scalar, Arch>& context, const Tensor<Scalar>& x,
                                    std::span<const std::int32_t> indices) {
  const index_t features = x.shape().channels;
  Tensor<Scalar> y = context.make(static_cast<index_t>(indices.size()), x.shape());
  for (std::size_t i = 0; i < indices.size(); ++i) {
    const auto from = sample(x, static_cast<index_t>(indices[i]));
    const auto to = sample(y, static_cast<index_t>(i));
    for (index_t f = 0; f < features; ++f) to[f] = from[f];
  }
  return y;
}

}  // namespace strata::inference
