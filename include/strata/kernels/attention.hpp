// Attention of one query over the positions of a sequence: scores, masked softmax, weighted sum. Keys and values lie
// [channel][pitch] with the positions side by side, so that every kernel works on whole vectors of positions.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <xsimd/xsimd.hpp>

#include <strata/core/types.hpp>
#include <strata/kernels/exponential.hpp>

namespace strata::kernels {

/// scores[s] = sum over u of v[u] * tanh(keys[u * pitch + s] + query[u * stride]) for all s < `pitch`.
/// Preconditions: `pitch` is a multiple of the SIMD width, `keys` and `scores` are aligned to it.
template <class Arch, class Scalar>
void additive_scores(index_t units, const Scalar* keys, index_t pitch, const Scalar* query, index_t stride,
                     const Scalar* v, Scalar* scores) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const Batch one(Scalar{1});
  const Batch limit(sizeof(Scalar) == 4 ? Scalar{10} : Scalar{20});  // tanh is 1 to rounding beyond
  const auto tanh = [&](const Batch& x) {
    const Batch e = bounded_exp(xsimd::max(xsimd::min(x, limit), -limit) * Batch(Scalar{-2}));
    return (one - e) / (one + e);
  };
  index_t s = 0;
  for (; s + 2 * lanes <= pitch; s += 2 * lanes) {
    Batch sums[2] = {Batch(Scalar{0}), Batch(Scalar{0})};
    for (index_t u = 0; u < units; ++u) {
      const Batch q(query[u * stride]);
      const Batch weight(v[u]);
      sums[0] = xsimd::fma(weight, tanh(Batch::load_aligned(keys + u * pitch + s) + q), sums[0]);
      sums[1] = xsimd::fma(weight, tanh(Batch::load_aligned(keys + u * pitch + s + lanes) + q), sums[1]);
    }
    sums[0].store_aligned(scores + s);
    sums[1].store_aligned(scores + s + lanes);
  }
  for (; s < pitch; s += lanes) {
    Batch sum(Scalar{0});
    for (index_t u = 0; u < units; ++u)
      sum = xsimd::fma(Batch(v[u]), tanh(Batch::load_aligned(keys + u * pitch + s) + Batch(query[u * stride])), sum);
    sum.store_aligned(scores + s);
  }
}

/// The plain twin of `additive_scores`.
template <class Scalar>
void additive_scores_reference(index_t units, const Scalar* keys, index_t pitch, const Scalar* query, index_t stride,
                               const Scalar* v, Scalar* scores) noexcept {
  for (index_t s = 0; s < pitch; ++s) {
    scores[s] = 0;
    for (index_t u = 0; u < units; ++u) scores[s] += v[u] * std::tanh(keys[u * pitch + s] + query[u * stride]);
  }
}

/// scores[s] = scale * sum over c of query[c * stride] * keys[c * pitch + s] for all s < `pitch`. Preconditions: as for
/// `additive_scores`.
template <class Arch, class Scalar>
void dot_scores(index_t channels, const Scalar* keys, index_t pitch, const Scalar* query, index_t stride, Scalar scale,
                Scalar* scores) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  index_t s = 0;
  for (; s + 4 * lanes <= pitch; s += 4 * lanes) {
    Batch sums[4] = {Batch(Scalar{0}), Batch(Scalar{0}), Batch(Scalar{0}), Batch(Scalar{0})};
    for (index_t c = 0; c < channels; ++c) {
      const Batch q(query[c * stride]);
      for (index_t i = 0; i < 4; ++i)
        sums[i] = xsimd::fma(q, Batch::load_aligned(keys + c * pitch + s + i * lanes), sums[i]);
    }
    for (index_t i = 0; i < 4; ++i) (sums[i] * Batch(scale)).store_aligned(scores + s + i * lanes);
  }
  for (; s < pitch; s += lanes) {
    Batch sum(Scalar{0});
    for (index_t c = 0; c < channels; ++c)
      sum = xsimd::fma(Batch(query[c * stride]), Batch::load_aligned(keys + c * pitch + s), sum);
    (sum * Batch(scale)).store_aligned(scores + s);
  }
}

/// The plain twin of `dot_scores`.
template <class Scalar>
void dot_scores_reference(index_t channels, const Scalar* keys, index_t pitch, const Scalar* query, index_t stride,
                          Scalar scale, Scalar* scores) noexcept {
  for (index_t s = 0; s < pitch; ++s) {
    scores[s] = 0;
    for (index_t c = 0; c < channels; ++c) scores[s] += query[c * stride] * keys[c * pitch + s];
    scores[s] *= scale;
  }
}

/// Softmax of the first `length` scores in place, plus `mask` (one a position, may be minus infinity) if it is not
/// null; zeros up to `pitch`, and everywhere if no position is left. Preconditions: length <= pitch, otherwise as for
/// `additive_scores`.
template <class Arch, class Scalar>
void masked_softmax(index_t length, index_t pitch, const Scalar* mask, Scalar* scores) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  constexpr Scalar lowest = -std::numeric_limits<Scalar>::infinity();
  if (mask != nullptr)
    for (index_t s = 0; s < length; ++s) scores[s] += mask[s];
  std::fill(scores + length, scores + pitch, lowest);
  Batch largest(lowest);
  for (index_t s = 0; s < pitch; s += lanes) largest = xsimd::max(largest, Batch::load_aligned(scores + s));
  alignas(64) Scalar parts[static_cast<std::size_t>(lanes)];
  largest.store_unaligned(parts);
  const Scalar top = *std::max_element(parts, parts + lanes);
  if (!(top > lowest)) {
    std::fill(scores, scores + pitch, Scalar{0});
    return;
  }
  // A difference of minus infinity must not reach the exponential, whose vector form is for finite numbers.
  const Batch least(sizeof(Scalar) == 4 ? Scalar{-80} : Scalar{-700});
  Batch sums(Scalar{0});
  for (index_t s = 0; s < pitch; s += lanes) {
    const Batch score = Batch::load_aligned(scores + s) - Batch(top);
    const Batch e = xsimd::select(score < least, Batch(Scalar{0}), bounded_exp(xsimd::max(score, least)));
    sums += e;
    e.store_aligned(scores + s);
  }
  const Batch factor(1 / xsimd::hadd(sums));
  for (index_t s = 0; s < pitch; s += lanes) (Batch::load_aligned(scores + s) * factor).store_aligned(scores + s);
}

/// The plain twin of `masked_softmax`.
template <class Scalar>
void masked_softmax_reference(index_t length, index_t pitch, const Scalar* mask, Scalar* scores) noexcept {
  Scalar top = -std::numeric_limits<Scalar>::infinity();
  for (index_t s = 0; s < length; ++s) {
    if (mask != nullptr) scores[s] += mask[s];
    top = std::max(top, scores[s]);
  }
  Scalar sum{0};
  const bool any = top > -std::numeric_limits<Scalar>::infinity();
  for (index_t s = 0; s < pitch; ++s) {
    scores[s] = any && s < length ? std::exp(scores[s] - top) : Scalar{0};
    sum += scores[s];
  }
  for (index_t s = 0; any && s < pitch; ++s) scores[s] /= sum;
}

/// output[c * stride] = sum over s of weights[s] * values[c * pitch + s] for all c < `channels`. Preconditions: as for
/// `additive_scores`; weights and values of padding are zero and finite.
template <class Arch, class Scalar>
void weighted_sum(index_t channels, const Scalar* values, index_t pitch, const Scalar* weights, Scalar* output,
                  index_t stride) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  for (index_t c = 0; c < channels; ++c) {
    Batch sum(Scalar{0});
    for (index_t s = 0; s < pitch; s += lanes)
      sum = xsimd::fma(Batch::load_aligned(weights + s), Batch::load_aligned(values + c * pitch + s), sum);
    output[c * stride] = xsimd::hadd(sum);
  }
}

/// The plain twin of `weighted_sum`.
template <class Scalar>
void weighted_sum_reference(index_t channels, const Scalar* values, index_t pitch, const Scalar* weights,
                            Scalar* output, index_t stride) noexcept {
  for (index_t c = 0; c < channels; ++c) {
    Scalar sum{0};
    for (index_t s = 0; s < pitch; ++s) sum += weights[s] * values[c * pitch + s];
    output[c * stride] = sum;
  }
}

}  // namespace strata::kernels
