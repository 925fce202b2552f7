// Kernels of normalisation, residual and ReLU in training, for activations in lanes (train/lanes.hpp): statistics of
// channels, the forward pass, sums of the backward pass and the backward pass itself, each in one sweep over memory.
// train/operations.hpp puts them together.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include <xsimd/xsimd.hpp>

#include <strata/core/types.hpp>

namespace strata::kernels {

/// A block of channels of one group of pictures: channel c of pixel p is the vector at (p * channels + c) * lanes.
struct LaneBlock {
  index_t pixels = 0;
  index_t channels = 0;
};

namespace detail {

/// Channels at a time: their sums and factors stay in registers.
template <class Scalar, class Arch>
inline constexpr index_t lane_strip = xsimd::batch<Scalar, Arch>::size * sizeof(Scalar) == 64 ? 8 : 4;

/// Calls `f(first channel, std::index_sequence of the strip)` for all channels of the block.
template <class Scalar, class Arch, class F>
inline void for_strips(const LaneBlock& block, F&& f) noexcept {
  constexpr index_t strip = lane_strip<Scalar, Arch>;
  index_t c = 0;
  for (; c + strip <= block.channels; c += strip) f(c, std::make_index_sequence<static_cast<std::size_t>(strip)>());
  for (; c < block.channels; ++c) f(c, std::make_index_sequence<1>());
}

template <class Arch, class Scalar, std::size_t... i>
[[gnu::always_inline]] inline void lane_moments_strip(const LaneBlock& block, const Scalar* x, Scalar* mean,
                                                      Scalar* squares, std::index_sequence<i...>) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const index_t step = block.channels * lanes;
  const Scalar count = static_cast<Scalar>(block.pixels * lanes);
  std::array<Batch, sizeof...(i)> sums{((void)i, Batch(Scalar{0}))...};
  const Scalar* from = x;
  for (index_t p = 0; p < block.pixels; ++p, from += step)
    ((sums[i] += Batch::load_aligned(from + static_cast<index_t>(i) * lanes)), ...);
  ((mean[i] = xsimd::hadd(sums[i]) / count), ...);
  const std::array<Batch, sizeof...(i)> means{Batch(mean[i])...};
  ((sums[i] = Batch(Scalar{0})), ...);
  const auto add = [](Batch& sum, const Batch& difference) { sum = xsimd::fma(difference, difference, sum); };
  from = x;
  for (index_t p = 0; p < block.pixels; ++p, from += step)
    (add(sums[i], Batch::load_aligned(from + static_cast<index_t>(i) * lanes) - means[i]), ...);
  ((squares[i] = xsimd::hadd(sums[i])), ...);
}

template <class Arch, bool relu, bool residual, class Scalar, std::size_t... i>
[[gnu::always_inline]] inline void lane_affine_strip(const LaneBlock& block, const Scalar* x, const Scalar* scale,
                                                     const Scalar* offset, const Scalar* added, Scalar* y,
                                                     std::index_sequence<i...>) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const std::array<Batch, sizeof...(i)> scales{Batch(scale[i])...};
  const std::array<Batch, sizeof...(i)> offsets{Batch(offset[i])...};
  const auto one = [&](std::size_t c, index_t at) {
    Batch z = xsimd::fma(Batch::load_aligned(x + at), scales[c], offsets[c]);
    if constexpr (residual) z += Batch::load_aligned(added + at);
    if constexpr (relu) z = xsimd::max(z, Batch(Scalar{0}));
    z.store_aligned(y + at);
  };
  const index_t step = block.channels * lanes;
  for (index_t p = 0; p < block.pixels; ++p) (one(i, p * step + static_cast<index_t>(i) * lanes), ...);
}

/// The gradient before the activation: `dy` where ReLU let the value through, told by its result.
template <class Arch, bool relu, class Scalar>
[[gnu::always_inline]] inline xsimd::batch<Scalar, Arch> before_relu(const Scalar* y, const Scalar* dy) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  const Batch d = Batch::load_aligned(dy);
  if constexpr (relu) return xsimd::select(Batch::load_aligned(y) > Batch(Scalar{0}), d, Batch(Scalar{0}));
  return d;
}

template <class Arch, bool relu, class Scalar, std::size_t... i>
[[gnu::always_inline]] inline void lane_gradient_sums_strip(const LaneBlock& block, const Scalar* x, const Scalar* mean,
                                                            const Scalar* y, const Scalar* dy, Scalar* sum,
                                                            Scalar* product, std::index_sequence<i...>) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const std::array<Batch, sizeof...(i)> means{Batch(mean[i])...};
  std::array<Batch, sizeof...(i)> sums{((void)i, Batch(Scalar{0}))...};
  std::array<Batch, sizeof...(i)> products = sums;
  const index_t step = block.channels * lanes;
  const auto one = [&](Batch& s, Batch& q, const Batch& m, index_t at) {
    const Batch dz = before_relu<Arch, relu>(y + at, dy + at);
    s += dz;
    q = xsimd::fma(dz, Batch::load_aligned(x + at) - m, q);
  };
  for (index_t p = 0; p < block.pixels; ++p)
    (one(sums[i], products[i], means[i], p * step + static_cast<index_t>(i) * lanes), ...);
  ((sum[i] = xsimd::hadd(sums[i]), product[i] = xsimd::hadd(products[i])), ...);
}

template <class Arch, bool relu, int residual, bool add, class Scalar, std::size_t... i>
[[gnu::always_inline]] inline void lane_affine_gradient_strip(const LaneBlock& block, const Scalar* x,
                                                              const Scalar* scale, const Scalar* slope,
                                                              const Scalar* offset, const Scalar* y, const Scalar* dy,
                                                              Scalar* dx, Scalar* added,
                                                              std::index_sequence<i...>) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const std::array<Batch, sizeof...(i)> scales{Batch(scale[i])...};
  const std::array<Batch, sizeof...(i)> slopes{Batch(slope[i])...};
  const std::array<Batch, sizeof...(i)> offsets{Batch(offset[i])...};
  const auto one = [&](std::size_t c, index_t at) {
    const Batch dz = before_relu<Arch, relu>(y + at, dy + at);
    if constexpr (residual == 1) dz.store_aligned(added + at);
    if constexpr (residual == 2) (dz + Batch::load_aligned(added + at)).store_aligned(added + at);
    Batch d = xsimd::fma(dz, scales[c], xsimd::fma(Batch::load_aligned(x + at), slopes[c], offsets[c]));
    if constexpr (add) d += Batch::load_aligned(dx + at);
    d.store_aligned(dx + at);
  };
  const index_t step = block.channels * lanes;
  for (index_t p = 0; p < block.pixels; ++p) (one(i, p * step + static_cast<index_t>(i) * lanes), ...);
}

}  // namespace detail

/// Mean of every channel of the block and the sum of squared differences from it.
template <class Arch, class Scalar>
void lane_moments(const LaneBlock& block, const Scalar* x, Scalar* mean, Scalar* squares) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  detail::for_strips<Scalar, Arch>(block, [&](index_t c, auto strip) {
    detail::lane_moments_strip<Arch>(block, x + c * lanes, mean + c, squares + c, strip);
  });
}

/// The scalar twin of `lane_moments`.
template <class Arch, class Scalar>
void lane_moments_reference(const LaneBlock& block, const Scalar* x, Scalar* mean, Scalar* squares) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  for (index_t c = 0; c < block.channels; ++c) {
    mean[c] = squares[c] = Scalar{0};
    for (const bool second : {false, true}) {
      for (index_t p = 0; p < block.pixels; ++p)
        for (index_t lane = 0; lane < lanes; ++lane) {
          const Scalar value = x[(p * block.channels + c) * lanes + lane];
          if (second) {
            squares[c] += (value - mean[c]) * (value - mean[c]);
          } else {
            mean[c] += value;
          }
        }
      if (!second) mean[c] /= static_cast<Scalar>(block.pixels * lanes);
    }
  }
}

/// y = x * scale + offset + residual, below zero cut off with `relu`; `residual` null: none. Factors are per channel.
template <class Arch, class Scalar>
void lane_affine(const LaneBlock& block, const Scalar* x, const Scalar* scale, const Scalar* offset,
                 const Scalar* residual, bool relu, Scalar* y) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  detail::for_strips<Scalar, Arch>(block, [&](index_t c, auto strip) {
    const index_t at = c * lanes;
    if (residual == nullptr) {
      if (relu)
        detail::lane_affine_strip<Arch, true, false>(block, x + at, scale + c, offset + c, residual, y + at, strip);
      else
        detail::lane_affine_strip<Arch, false, false>(block, x + at, scale + c, offset + c, residual, y + at, strip);
    } else if (relu) {
      detail::lane_affine_strip<Arch, true, true>(block, x + at, scale + c, offset + c, residual + at, y + at, strip);
    } else {
      detail::lane_affine_strip<Arch, false, true>(block, x + at, scale + c, offset + c, residual + at, y + at, strip);
    }
  });
}

/// The scalar twin of `lane_affine`.
template <class Arch, class Scalar>
void lane_affine_reference(const LaneBlock& block, const Scalar* x, const Scalar* scale, const Scalar* offset,
                           const Scalar* residual, bool relu, Scalar* y) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  for (index_t p = 0; p < block.pixels; ++p)
    for (index_t c = 0; c < block.channels; ++c)
      for (index_t lane = 0; lane < lanes; ++lane) {
        const index_t at = (p * block.channels + c) * lanes + lane;
        const Scalar z = x[at] * scale[c] + offset[c] + (residual == nullptr ? Scalar{0} : residual[at]);
        y[at] = relu && !(z > 0) ? Scalar{0} : z;
      }
}

/// With dz = dy, or with `relu` dy where y > 0: sum = sum of dz and product = sum of dz * (x - mean), per channel.
template <class Arch, class Scalar>
void lane_gradient_sums(const LaneBlock& block, const Scalar* x, const Scalar* mean, const Scalar* y, const Scalar* dy,
                        bool relu, Scalar* sum, Scalar* product) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  detail::for_strips<Scalar, Arch>(block, [&](index_t c, auto strip) {
    const index_t at = c * lanes;
    if (relu)
      detail::lane_gradient_sums_strip<Arch, true>(block, x + at, mean + c, y + at, dy + at, sum + c, product + c,
                                                   strip);
    else
      detail::lane_gradient_sums_strip<Arch, false>(block, x + at, mean + c, y + at, dy + at, sum + c, product + c,
                                                    strip);
  });
}

/// The scalar twin of `lane_gradient_sums`.
template <class Arch, class Scalar>
void lane_gradient_sums_reference(const LaneBlock& block, const Scalar* x, const Scalar* mean, const Scalar* y,
                                  const Scalar* dy, bool relu, Scalar* sum, Scalar* product) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  for (index_t c = 0; c < block.channels; ++c) {
    sum[c] = product[c] = Scalar{0};
    for (index_t p = 0; p < block.pixels; ++p)
      for (index_t lane = 0; lane < lanes; ++lane) {
        const index_t at = (p * block.channels + c) * lanes + lane;
        const Scalar dz = relu && !(y[at] > 0) ? Scalar{0} : dy[at];
        sum[c] += dz;
        product[c] += dz * (x[at] - mean[c]);
      }
  }
}

/// What the last sweep of the backward pass reads and writes; factors are per channel.
template <class Scalar>
struct LaneAffineGradient {
  const Scalar* x = nullptr;
  const Scalar* y = nullptr;
  const Scalar* dy = nullptr;
  const Scalar* scale = nullptr;
  const Scalar* slope = nullptr;
  const Scalar* offset = nullptr;
  bool relu = false;
  Scalar* dx = nullptr;        ///< may be dy
  bool add = false;            ///< to dx, which is not dy then
  Scalar* residual = nullptr;  ///< gradient of the residual: dz is written to it, or added; null: none
  bool add_residual = false;
};

/// dx = (or +=) dz * scale + x * slope + offset, with dz as in `lane_gradient_sums`: the derivative of a normalisation
/// by its input, for factors that follow from the sums. The residual gets dz.
template <class Arch, class Scalar>
void lane_affine_gradient(const LaneBlock& block, const LaneAffineGradient<Scalar>& job) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  detail::for_strips<Scalar, Arch>(block, [&](index_t c, auto strip) {
    const index_t at = c * lanes;
    const auto run = [&]<bool relu, int residual, bool add>() {
      detail::lane_affine_gradient_strip<Arch, relu, residual, add>(
          block, job.x + at, job.scale + c, job.slope + c, job.offset + c, job.y + at, job.dy + at, job.dx + at,
          residual == 0 ? nullptr : job.residual + at, strip);
    };
    const auto with = [&]<bool relu, bool add>() {
      if (job.residual == nullptr) return run.template operator()<relu, 0, add>();
      if (job.add_residual) return run.template operator()<relu, 2, add>();
      run.template operator()<relu, 1, add>();
    };
    if (job.relu) {
      if (job.add) return with.template operator()<true, true>();
      return with.template operator()<true, false>();
    }
    if (job.add) return with.template operator()<false, true>();
    with.template operator()<false, false>();
  });
}

/// The scalar twin of `lane_affine_gradient`.
template <class Arch, class Scalar>
void lane_affine_gradient_reference(const LaneBlock& block, const LaneAffineGradient<Scalar>& job) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  for (index_t p = 0; p < block.pixels; ++p)
    for (index_t c = 0; c < block.channels; ++c)
      for (index_t lane = 0; lane < lanes; ++lane) {
        const index_t at = (p * block.channels + c) * lanes + lane;
        const Scalar dz = job.relu && !(job.y[at] > 0) ? Scalar{0} : job.dy[at];
        if (job.residual != nullptr) job.residual[at] = job.add_residual ? job.residual[at] + dz : dz;
        const Scalar d = dz * job.scale[c] + job.x[at] * job.slope[c] + job.offset[c];
        job.dx[at] = job.add ? job.dx[at] + d : d;
      }
}

}  // namespace strata::kernels
