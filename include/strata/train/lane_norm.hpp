// Kernels of normalisation, residual and ReLU in training, for activations in lanes (train/lanes.hpp): statistics of
// channels, the forward pass, sums of the backward pass and the backward pass itself, each in one sweep over memory.
// train/operations.hpp puts them together.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include <xsimd/xsimd.hpp>

#include <strata/core/types.hpp>
#include <strata/kernels/prefetch.hpp>
#include <strata/train/bfloat16.hpp>

namespace strata::kernels {

/// A block of channels of one group of pictures: channel c of pixel p is the vector at (p * channels + c) * lanes.
/// Activations may be stored as bfloat16 (`Stored`); factors and sums are as precise as the computation.
struct LaneBlock {
  index_t pixels = 0;
  index_t channels = 0;
};

namespace detail {

/// Channels at a time: their sums and factors stay in registers.
template <class Scalar, class Arch>
inline constexpr index_t lane_strip = xsimd::batch<Scalar, Arch>::size * sizeof(Scalar) == 64 ? 8 : 4;
/// The same on the way back, where more of them are needed: too many for the registers if numbers are widened on top.
template <class Scalar, class Arch, class Stored>
inline constexpr index_t lane_back_strip = lane_strip<Scalar, Arch> / (std::is_same_v<Scalar, Stored> ? 1 : 2);

/// Calls `f(piece, first pixel)` for pieces of the block's pixels, small enough that the strips of a piece find in the
/// L2 cache what prefetchers brought there for their neighbours.
template <class Scalar, class Arch, class F>
inline void for_pixel_pieces(const LaneBlock& block, F&& f) noexcept {
  constexpr index_t bytes = index_t{128} << 10U;  // of one array; the backward pass has four
  constexpr auto vector = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size * sizeof(Scalar));
  const index_t most = std::max<index_t>(bytes / (block.channels * vector), 1);
  for (index_t first = 0; first < block.pixels; first += most)
    f(LaneBlock{std::min(most, block.pixels - first), block.channels}, first);
}

/// Calls `f(first channel, std::index_sequence of the strip)` for all channels of the block, `strip` at a time.
template <index_t strip, class F>
inline void for_strips(const LaneBlock& block, F&& f) noexcept {
  index_t c = 0;
  for (; c + strip <= block.channels; c += strip) f(c, std::make_index_sequence<static_cast<std::size_t>(strip)>());
  for (; c < block.channels; ++c) f(c, std::make_index_sequence<1>());
}

template <class Arch, class Scalar, class Stored, std::size_t... i>
[[gnu::always_inline]] inline void lane_moments_strip(const LaneBlock& block, const Stored* x, Scalar* mean,
                                                      Scalar* squares, std::index_sequence<i...>) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const index_t step = block.channels * lanes;
  constexpr index_t strip = lanes * static_cast<index_t>(sizeof...(i));
  const Scalar count = static_cast<Scalar>(block.pixels * lanes);
  std::array<Batch, sizeof...(i)> sums{((void)i, Batch(Scalar{0}))...};
  const Stored* from = x;
  for (index_t p = 0; p < block.pixels; ++p, from += step) {
    prefetch_ahead<strip>(from);
    ((sums[i] += load_stored<Batch>(from + static_cast<index_t>(i) * lanes)), ...);
  }
  ((mean[i] = xsimd::hadd(sums[i]) / count), ...);
  const std::array<Batch, sizeof...(i)> means{Batch(mean[i])...};
  ((sums[i] = Batch(Scalar{0})), ...);
  const auto add = [](Batch & sum, const Batch& difference) __attribute__((always_inline)) {
    sum = xsimd::fma(difference, difference, sum);
  };
  from = x;
  for (index_t p = 0; p < block.pixels; ++p, from += step)
    (add(sums[i], load_stored<Batch>(from + static_cast<index_t>(i) * lanes) - means[i]), ...);
  ((squares[i] = xsimd::hadd(sums[i])), ...);
}

template <class Arch, bool relu, bool residual, class Scalar, class Stored, std::size_t... i>
[[gnu::always_inline]] inline void lane_affine_strip(const LaneBlock& block, const Stored* x, const Scalar* scale,
                                                     const Scalar* offset, const Stored* added, Stored* y,
                                                     std::index_sequence<i...>) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const std::array<Batch, sizeof...(i)> scales{Batch(scale[i])...};
  const std::array<Batch, sizeof...(i)> offsets{Batch(offset[i])...};
  const auto one = [&](std::size_t c, index_t at) __attribute__((always_inline)) {
    Batch z = xsimd::fma(load_stored<Batch>(x + at), scales[c], offsets[c]);
    if constexpr (residual) z += load_stored<Batch>(added + at);
    if constexpr (relu) z = xsimd::max(Batch(Scalar{0}), z);  // in this order x86 keeps a NaN, of which the loss tells
    store_stored(z, y + at);
  };
  constexpr index_t strip = lanes * static_cast<index_t>(sizeof...(i));
  const index_t step = block.channels * lanes;
  for (index_t p = 0; p < block.pixels; ++p) {
    prefetch_ahead<strip>(x + p * step);
    prefetch_ahead<strip, true>(y + p * step);
    if constexpr (residual) prefetch_ahead<strip>(added + p * step);
    (one(i, p * step + static_cast<index_t>(i) * lanes), ...);
  }
}

/// How a backward pass knows where ReLU let the value through: by its result, or from the input of the forward pass,
/// which saves reading the result.
enum class ReluMask : std::uint8_t { none, by_result, by_input };

/// The gradient before the activation: `dy` where ReLU let the value through.
template <class Arch, ReluMask mask, class Scalar, class Stored>
[[gnu::always_inline]] inline xsimd::batch<Scalar, Arch> before_relu(const xsimd::batch<Scalar, Arch>& x,
                                                                     const Scalar* scale, const Scalar* shift,
                                                                     std::size_t c, const Stored* y,
                                                                     const Stored* dy) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  const Batch zero(Scalar{0});
  const Batch d = load_stored<Batch>(dy);
  if constexpr (mask == ReluMask::by_result) return xsimd::select(load_stored<Batch>(y) > zero, d, zero);
  if constexpr (mask == ReluMask::by_input)
    return xsimd::select(xsimd::fma(x, Batch(scale[c]), Batch(shift[c])) > zero, d, zero);
  return d;
}

/// Adds to `sum` and `product`.
template <class Arch, ReluMask mask, class Scalar, class Stored, std::size_t... i>
[[gnu::always_inline]] inline void lane_gradient_sums_strip(const LaneBlock& block, const Stored* x, const Scalar* mean,
                                                            const Scalar* scale, const Scalar* shift, const Stored* y,
                                                            const Stored* dy, Scalar* sum, Scalar* product,
                                                            std::index_sequence<i...>) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const std::array<Batch, sizeof...(i)> means{Batch(mean[i])...};
  std::array<Batch, sizeof...(i)> sums{((void)i, Batch(Scalar{0}))...};
  std::array<Batch, sizeof...(i)> products = sums;
  constexpr index_t strip = lanes * static_cast<index_t>(sizeof...(i));
  const index_t step = block.channels * lanes;
  const auto one = [&](Batch & s, Batch & q, std::size_t c, index_t at) __attribute__((always_inline)) {
    const Batch from = load_stored<Batch>(x + at);
    const Batch dz =
        before_relu<Arch, mask>(from, scale, shift, c, mask == ReluMask::by_result ? y + at : nullptr, dy + at);
    s += dz;
    q = xsimd::fma(dz, from - means[c], q);
  };
  for (index_t p = 0; p < block.pixels; ++p) {
    prefetch_ahead<strip>(x + p * step);
    prefetch_ahead<strip>(dy + p * step);
    if constexpr (mask == ReluMask::by_result) prefetch_ahead<strip>(y + p * step);
    (one(sums[i], products[i], i, p * step + static_cast<index_t>(i) * lanes), ...);
  }
  ((sum[i] += xsimd::hadd(sums[i]), product[i] += xsimd::hadd(products[i])), ...);
}

template <class Arch, ReluMask mask, int residual, bool add, class Scalar, class Stored, std::size_t... i>
[[gnu::always_inline]] inline void lane_affine_gradient_strip(const LaneBlock& block, const Stored* x,
                                                              const Scalar* scale, const Scalar* shift,
                                                              const Scalar* slope, const Scalar* offset,
                                                              const Stored* y, const Stored* dy, Stored* dx,
                                                              Stored* added, std::index_sequence<i...>) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const std::array<Batch, sizeof...(i)> scales{Batch(scale[i])...};
  const std::array<Batch, sizeof...(i)> slopes{Batch(slope[i])...};
  const std::array<Batch, sizeof...(i)> offsets{Batch(offset[i])...};
  const auto one = [&](std::size_t c, index_t at) __attribute__((always_inline)) {
    const Batch from = load_stored<Batch>(x + at);
    const Batch dz =
        before_relu<Arch, mask>(from, scale, shift, c, mask == ReluMask::by_result ? y + at : nullptr, dy + at);
    if constexpr (residual == 1) store_stored(dz, added + at);
    if constexpr (residual == 2) store_stored(dz + load_stored<Batch>(added + at), added + at);
    Batch d = xsimd::fma(dz, scales[c], xsimd::fma(from, slopes[c], offsets[c]));
    if constexpr (add) d += load_stored<Batch>(dx + at);
    store_stored(d, dx + at);
  };
  constexpr index_t strip = lanes * static_cast<index_t>(sizeof...(i));
  const index_t step = block.channels * lanes;
  for (index_t p = 0; p < block.pixels; ++p) {
    prefetch_ahead<strip>(x + p * step);
    prefetch_ahead<strip>(dy + p * step);  // dx takes its place, or is added to
    if constexpr (add) prefetch_ahead<strip>(dx + p * step);
    if constexpr (mask == ReluMask::by_result) prefetch_ahead<strip>(y + p * step);
    if constexpr (residual != 0) prefetch_ahead<strip, true>(added + p * step);
    (one(i, p * step + static_cast<index_t>(i) * lanes), ...);
  }
}

}  // namespace detail

/// Mean of every channel of the block and the sum of squared differences from it, piece by piece (Chan, Golub and
/// LeVeque, "Algorithms for computing the sample variance", 1983).
template <class Arch, class Scalar, class Stored>
void lane_moments(const LaneBlock& block, const Stored* x, Scalar* mean, Scalar* squares) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  detail::for_pixel_pieces<Scalar, Arch>(block, [&](const LaneBlock& piece, index_t first) {
    const Scalar share = static_cast<Scalar>(piece.pixels) / static_cast<Scalar>(first + piece.pixels);
    const auto before = static_cast<Scalar>(first * lanes);
    detail::for_strips<detail::lane_strip<Scalar, Arch>>(piece, [&](index_t c, auto strip) {
      constexpr auto channels = static_cast<index_t>(strip.size());
      Scalar means[channels];
      Scalar sums[channels];
      detail::lane_moments_strip<Arch>(piece, x + (first * block.channels + c) * lanes, means, sums, strip);
      for (index_t i = 0; i < channels; ++i) {
        if (first == 0) mean[c + i] = squares[c + i] = Scalar{0};
        const Scalar difference = means[i] - mean[c + i];
        mean[c + i] += difference * share;
        squares[c + i] += sums[i] + difference * difference * before * share;
      }
    });
  });
}

/// The scalar twin of `lane_moments`, whose sums are in double precision.
template <class Arch, class Scalar, class Stored>
void lane_moments_reference(const LaneBlock& block, const Stored* x, Scalar* mean, Scalar* squares) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  for (index_t c = 0; c < block.channels; ++c) {
    double sum = 0;
    double of_squares = 0;
    for (const bool second : {false, true}) {
      const double centre = sum / static_cast<double>(block.pixels * lanes);
      for (index_t p = 0; p < block.pixels; ++p)
        for (index_t lane = 0; lane < lanes; ++lane) {
          const auto value = static_cast<double>(stored_as<Scalar>(x[(p * block.channels + c) * lanes + lane]));
          if (second) {
            of_squares += (value - centre) * (value - centre);
          } else {
            sum += value;
          }
        }
    }
    mean[c] = static_cast<Scalar>(sum / static_cast<double>(block.pixels * lanes));
    squares[c] = static_cast<Scalar>(of_squares);
  }
}

/// y = x * scale + offset + residual, below zero cut off with `relu`; `residual` null: none. Factors are per channel.
template <class Arch, class Scalar, class Stored>
void lane_affine(const LaneBlock& block, const Stored* x, const Scalar* scale, const Scalar* offset,
                 const Stored* residual, bool relu, Stored* y) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  detail::for_pixel_pieces<Scalar, Arch>(block, [&](const LaneBlock& piece, index_t first) {
    detail::for_strips<detail::lane_strip<Scalar, Arch>>(piece, [&](index_t c, auto strip) {
      const index_t at = (first * block.channels + c) * lanes;
      if (residual == nullptr) {
        if (relu)
          detail::lane_affine_strip<Arch, true, false>(piece, x + at, scale + c, offset + c, residual, y + at, strip);
        else
          detail::lane_affine_strip<Arch, false, false>(piece, x + at, scale + c, offset + c, residual, y + at, strip);
      } else if (relu) {
        detail::lane_affine_strip<Arch, true, true>(piece, x + at, scale + c, offset + c, residual + at, y + at, strip);
      } else {
        detail::lane_affine_strip<Arch, false, true>(piece, x + at, scale + c, offset + c, residual + at, y + at,
                                                     strip);
      }
    });
  });
}

/// The scalar twin of `lane_affine`.
template <class Arch, class Scalar, class Stored>
void lane_affine_reference(const LaneBlock& block, const Stored* x, const Scalar* scale, const Scalar* offset,
                           const Stored* residual, bool relu, Stored* y) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  for (index_t p = 0; p < block.pixels; ++p)
    for (index_t c = 0; c < block.channels; ++c)
      for (index_t lane = 0; lane < lanes; ++lane) {
        const index_t at = (p * block.channels + c) * lanes + lane;
        const Scalar z = stored_as<Scalar>(x[at]) * scale[c] + offset[c] +
                         (residual == nullptr ? Scalar{0} : stored_as<Scalar>(residual[at]));
        y[at] = stored_as<Stored>(relu && z <= 0 ? Scalar{0} : z);
      }
}

/// What both sweeps of the backward pass read; factors are per channel.
template <class Scalar, class Stored = Scalar>
struct LaneBackward {
  const Stored* x = nullptr;
  const Scalar* scale = nullptr;  ///< of the forward pass
  const Scalar* shift = nullptr;  ///< of the forward pass; for ReLU without `y`
  const Stored* y = nullptr;      ///< for ReLU after a residual; null: x * scale + shift was what it cut off
  const Stored* dy = nullptr;
  bool relu = false;

  /// Scalar: the gradient of element `at`, of channel `c`, before the activation.
  [[nodiscard]] Scalar before_activation(index_t at, index_t c) const noexcept {
    if (relu &&
        !((y != nullptr ? stored_as<Scalar>(y[at]) : std::fma(stored_as<Scalar>(x[at]), scale[c], shift[c])) > 0))
      return Scalar{0};
    return stored_as<Scalar>(dy[at]);
  }
};

/// With dz = dy, or with `relu` dy where the result is above 0: sum = sum of dz and product = sum of dz * (x - mean),
/// per channel.
template <class Arch, class Scalar, class Stored>
void lane_gradient_sums(const LaneBlock& block, const LaneBackward<Scalar, Stored>& job, const Scalar* mean,
                        Scalar* sum, Scalar* product) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  std::fill_n(sum, block.channels, Scalar{0});
  std::fill_n(product, block.channels, Scalar{0});
  detail::for_pixel_pieces<Scalar, Arch>(block, [&](const LaneBlock& piece, index_t first) {
    detail::for_strips<detail::lane_back_strip<Scalar, Arch, Stored>>(piece, [&](index_t c, auto strip) {
      const index_t at = (first * block.channels + c) * lanes;
      const auto run = [&]<detail::ReluMask mask>() {
        constexpr bool by_input = mask == detail::ReluMask::by_input;
        detail::lane_gradient_sums_strip<Arch, mask>(
            piece, job.x + at, mean + c, by_input ? job.scale + c : nullptr, by_input ? job.shift + c : nullptr,
            mask == detail::ReluMask::by_result ? job.y + at : nullptr, job.dy + at, sum + c, product + c, strip);
      };
      if (!job.relu) return run.template operator()<detail::ReluMask::none>();
      if (job.y == nullptr) return run.template operator()<detail::ReluMask::by_input>();
      run.template operator()<detail::ReluMask::by_result>();
    });
  });
}

/// The scalar twin of `lane_gradient_sums`, whose sums are in double precision.
template <class Arch, class Scalar, class Stored>
void lane_gradient_sums_reference(const LaneBlock& block, const LaneBackward<Scalar, Stored>& job, const Scalar* mean,
                                  Scalar* sum, Scalar* product) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  for (index_t c = 0; c < block.channels; ++c) {
    double sums = 0;
    double products = 0;
    for (index_t p = 0; p < block.pixels; ++p)
      for (index_t lane = 0; lane < lanes; ++lane) {
        const index_t at = (p * block.channels + c) * lanes + lane;
        const Scalar dz = job.before_activation(at, c);
        sums += static_cast<double>(dz);
        products += static_cast<double>(dz) * static_cast<double>(stored_as<Scalar>(job.x[at]) - mean[c]);
      }
    sum[c] = static_cast<Scalar>(sums);
    product[c] = static_cast<Scalar>(products);
  }
}

/// What the last sweep of the backward pass reads and writes; factors are per channel.
template <class Scalar, class Stored = Scalar>
struct LaneAffineGradient : LaneBackward<Scalar, Stored> {
  const Scalar* slope = nullptr;
  const Scalar* offset = nullptr;
  Stored* dx = nullptr;        ///< may be dy
  bool add = false;            ///< to dx, which is not dy then
  Stored* residual = nullptr;  ///< gradient of the residual: dz is written to it, or added; null: none
  bool add_residual = false;
};

/// dx = (or +=) dz * scale + x * slope + offset, with dz as in `lane_gradient_sums`: the derivative of a normalisation
/// by its input, for factors that follow from the sums. The residual gets dz.
template <class Arch, class Scalar, class Stored>
void lane_affine_gradient(const LaneBlock& block, const LaneAffineGradient<Scalar, Stored>& job) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  detail::for_pixel_pieces<Scalar, Arch>(block, [&](const LaneBlock& piece, index_t first) {
    detail::for_strips<detail::lane_back_strip<Scalar, Arch, Stored>>(piece, [&](index_t c, auto strip) {
      using detail::ReluMask;
      const index_t at = (first * block.channels + c) * lanes;
      const auto run = [&]<ReluMask mask, int residual, bool add>() {
        detail::lane_affine_gradient_strip<Arch, mask, residual, add>(
            piece, job.x + at, job.scale + c, mask == ReluMask::by_input ? job.shift + c : nullptr, job.slope + c,
            job.offset + c, mask == ReluMask::by_result ? job.y + at : nullptr, job.dy + at, job.dx + at,
            residual == 0 ? nullptr : job.residual + at, strip);
      };
      const auto with = [&]<ReluMask mask, bool add>() {
        if (job.residual == nullptr) return run.template operator()<mask, 0, add>();
        if (job.add_residual) return run.template operator()<mask, 2, add>();
        run.template operator()<mask, 1, add>();
      };
      const auto masked = [&]<ReluMask mask>() {
        if (job.add) return with.template operator()<mask, true>();
        with.template operator()<mask, false>();
      };
      if (!job.relu) return masked.template operator()<ReluMask::none>();
      if (job.y == nullptr) return masked.template operator()<ReluMask::by_input>();
      masked.template operator()<ReluMask::by_result>();
    });
  });
}

/// The scalar twin of `lane_affine_gradient`.
template <class Arch, class Scalar, class Stored>
void lane_affine_gradient_reference(const LaneBlock& block, const LaneAffineGradient<Scalar, Stored>& job) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  for (index_t p = 0; p < block.pixels; ++p)
    for (index_t c = 0; c < block.channels; ++c)
      for (index_t lane = 0; lane < lanes; ++lane) {
        const index_t at = (p * block.channels + c) * lanes + lane;
        const Scalar dz = job.before_activation(at, c);
        if (job.residual != nullptr)
          job.residual[at] = stored_as<Stored>(job.add_residual ? stored_as<Scalar>(job.residual[at]) + dz : dz);
        const Scalar d = dz * job.scale[c] + stored_as<Scalar>(job.x[at]) * job.slope[c] + job.offset[c];
        job.dx[at] = stored_as<Stored>(job.add ? stored_as<Scalar>(job.dx[at]) + d : d);
      }
}

}  // namespace strata::kernels
