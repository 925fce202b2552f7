// Kernels of sparse weight matrices in training: samples lie side by side in the lanes of vectors, some vectors of them
// a tile, so that a non-zero meets whole vectors. Who lists non-zeros and cuts the work is train/sparse_product.hpp.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

#include <xsimd/xsimd.hpp>

#include <strata/core/types.hpp>
#include <strata/kernels/lanes.hpp>
#include <strata/train/lane_kernels.hpp>

namespace strata::kernels {

/// Samples of a tile, [feature][sample]: as many as a sparse product keeps sums of in registers.
template <class Scalar, class Arch>
inline constexpr index_t sample_tile = lane_sparse_pixels* static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);

/// Vectors of a tile that so many samples take.
template <class Scalar, class Arch>
[[nodiscard]] constexpr index_t sample_vectors(index_t samples) noexcept {
  return ceil_div(samples, static_cast<index_t>(xsimd::batch<Scalar, Arch>::size));
}

/// `features` of `samples` samples, those of one beside each other and samples `stride` apart, into rows of a tile;
/// zeros up to the end of the last vector. Precondition: at most `sample_tile` samples, the tile aligned.
template <class Arch, class Scalar>
void samples_to_tile(const Scalar* from, index_t stride, index_t features, index_t samples, Scalar* tile) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  constexpr index_t width = sample_tile<Scalar, Arch>;
  for (index_t sample = 0; sample < samples; sample += lanes) {
    const index_t count = std::min(lanes, samples - sample);
    const Scalar* const source = from + sample * stride;
    Scalar* const target = tile + sample;
    index_t feature = 0;
    for (; count == lanes && feature + lanes <= features; feature += lanes) {
      std::array<Batch, Batch::size> block;
      for (std::size_t i = 0; i < block.size(); ++i)
        block[i] = Batch::load_unaligned(source + static_cast<index_t>(i) * stride + feature);
      transpose(block);
      for (std::size_t i = 0; i < block.size(); ++i)
        block[i].store_aligned(target + (feature + static_cast<index_t>(i)) * width);
    }
    for (; feature < features; ++feature)
      for (index_t i = 0; i < lanes; ++i)
        target[feature * width + i] = i < count ? source[i * stride + feature] : Scalar{0};
  }
}

/// The scalar twin of `samples_to_tile`.
template <class Arch, class Scalar>
void samples_to_tile_reference(const Scalar* from, index_t stride, index_t features, index_t samples,
                               Scalar* tile) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  for (index_t feature = 0; feature < features; ++feature)
    for (index_t sample = 0; sample < round_up(samples, lanes); ++sample)
      tile[feature * sample_tile<Scalar, Arch> + sample] =
          sample < samples ? from[sample * stride + feature] : Scalar{0};
}

/// The way back: adds rows of a tile to the samples.
template <class Arch, class Scalar>
void add_tile_to_samples(const Scalar* tile, index_t features, index_t samples, Scalar* to, index_t stride) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  constexpr index_t width = sample_tile<Scalar, Arch>;
  for (index_t sample = 0; sample < samples; sample += lanes) {
    const index_t count = std::min(lanes, samples - sample);
    const Scalar* const source = tile + sample;
    Scalar* const target = to + sample * stride;
    index_t feature = 0;
    for (; count == lanes && feature + lanes <= features; feature += lanes) {
      std::array<Batch, Batch::size> block;
      for (std::size_t i = 0; i < block.size(); ++i)
        block[i] = Batch::load_aligned(source + (feature + static_cast<index_t>(i)) * width);
      transpose(block);
      for (std::size_t i = 0; i < block.size(); ++i) {
        Scalar* const at = target + static_cast<index_t>(i) * stride + feature;
        (Batch::load_unaligned(at) + block[i]).store_unaligned(at);
      }
    }
    for (; feature < features; ++feature)
      for (index_t i = 0; i < count; ++i) target[i * stride + feature] += source[feature * width + i];
  }
}

/// The scalar twin of `add_tile_to_samples`.
template <class Arch, class Scalar>
void add_tile_to_samples_reference(const Scalar* tile, index_t features, index_t samples, Scalar* to,
                                   index_t stride) noexcept {
  for (index_t feature = 0; feature < features; ++feature)
    for (index_t sample = 0; sample < samples; ++sample)
      to[sample * stride + feature] += tile[feature * sample_tile<Scalar, Arch> + sample];
}

namespace detail {

/// Gradients of as many non-zeros as a vector has lanes, summed in one go, then of what is left one by one.
template <class Arch, class Scalar, std::size_t... v>
void sample_gradients_of(const Scalar* x, const std::uint32_t* starts, const std::uint32_t* offsets, index_t rows,
                         const Scalar* dy, Scalar* sums, std::index_sequence<v...>) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const std::uint32_t* offset = offsets + starts[0];
  for (index_t row = 0; row < rows; ++row, dy += sample_tile<Scalar, Arch>) {
    const std::uint32_t* const end = offsets + starts[row + 1];
    if (offset == end) continue;
    const std::array<Batch, sizeof...(v)> d{Batch::load_aligned(dy + static_cast<index_t>(v) * lanes)...};
    const auto product = [&](std::uint32_t at) __attribute__((always_inline)) {
      Batch sum = d[0] * Batch::load_aligned(x + at);
      ((v > 0 ? void(sum = xsimd::fma(d[v], Batch::load_aligned(x + at + static_cast<index_t>(v) * lanes), sum))
              : void()),
       ...);
      return sum;
    };
    for (; end - offset >= lanes; offset += lanes, sums += lanes) {
      std::array<Batch, Batch::size> products;
      for (std::size_t i = 0; i < products.size(); ++i) products[i] = product(offset[i]);
      (Batch::load_unaligned(sums) + xsimd::haddp(products.data())).store_unaligned(sums);
    }
    for (; offset != end; ++offset, ++sums) *sums += xsimd::hadd(product(*offset));
  }
}

template <class Arch, class Scalar, std::size_t... w>
void sample_gradients_of_width(index_t vectors, const Scalar* x, const std::uint32_t* starts,
                               const std::uint32_t* offsets, index_t rows, const Scalar* dy, Scalar* sums,
                               std::index_sequence<w...>) noexcept {
  ((static_cast<index_t>(w) + 1 == vectors
        ? sample_gradients_of<Arch>(x, starts, offsets, rows, dy, sums, std::make_index_sequence<w + 1>())
        : void()),
   ...);
}

}  // namespace detail

/// sums[i - starts[0]] += sum over the samples of a tile of dy[row] x input, for the non-zeros `starts[row]` ..
/// `starts[row + 1] - 1` of every row, whose inputs are rows of a tile at `x + offsets[i]`. Row r of dy is at
/// `dy + r * sample_tile`. Of both the first `vectors` vectors are met. (As `lane_sampled_product`, but summed up.)
template <class Arch, class Scalar>
void sample_gradients(const Scalar* x, const std::uint32_t* starts, const std::uint32_t* offsets, index_t rows,
                      const Scalar* dy, index_t vectors, Scalar* sums) noexcept {
  detail::sample_gradients_of_width<Arch>(vectors, x, starts, offsets, rows, dy, sums, detail::lane_sparse_widths);
}

/// The scalar twin of `sample_gradients`.
template <class Arch, class Scalar>
void sample_gradients_reference(const Scalar* x, const std::uint32_t* starts, const std::uint32_t* offsets,
                                index_t rows, const Scalar* dy, index_t vectors, Scalar* sums) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  for (index_t row = 0; row < rows; ++row)
    for (std::uint32_t i = starts[row]; i < starts[row + 1]; ++i)
      for (index_t sample = 0; sample < vectors * lanes; ++sample)
        sums[i - starts[0]] += dy[row * sample_tile<Scalar, Arch> + sample] * x[offsets[i] + sample];
}

}  // namespace strata::kernels
