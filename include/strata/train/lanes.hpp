// The second layout of activations on the tape, for convolutions over batches: as many pictures as a vector has lanes
// lie side by side, so that every (pixel, channel) is one vector. Kernel size, stride and padding then cost no
// shuffling, and a sparse weight meets whole vectors.
#pragma once

#include <algorithm>

#include <xsimd/xsimd.hpp>

#include <strata/core/types.hpp>
#include <strata/train/bfloat16.hpp>

namespace strata::train {

/// [picture / lanes][channel / block][pixel][channel % block][picture % lanes].
struct LaneLayout {
  index_t lanes = 1;   ///< pictures in a vector; divides the batch
  index_t groups = 0;  ///< batch / lanes
  index_t channels = 0;
  index_t pixels = 0;
  index_t block = 1;  ///< channels beside each other: few, so that a tile of their pixels stays in the L1 cache

  /// Channels that lie beside each other where there are `channels`.
  [[nodiscard]] static constexpr index_t block_of(index_t channels) noexcept {
    return channels % 16 == 0 ? 16 : channels;
  }
  LaneLayout(index_t vector, index_t batch, Shape shape) noexcept
      : lanes(vector),
        groups(batch / vector),
        channels(shape.channels),
        pixels(shape.height * shape.width),
        block(block_of(shape.channels)) {}

  [[nodiscard]] index_t blocks() const noexcept { return channels / block; }
  /// Elements from one block of channels to the next, and from one group of pictures to the next.
  [[nodiscard]] index_t block_step() const noexcept { return pixels * block * lanes; }
  [[nodiscard]] index_t group_step() const noexcept { return pixels * channels * lanes; }
};

/// Pictures in a vector of the instruction set that this file is compiled for.
template <class Scalar>
inline constexpr index_t lanes_of = static_cast<index_t>(xsimd::batch<Scalar>::size);

/// Copies pixels first .. last-1 of group `group` of the pictures [picture][pixel][channel] into the layout, stored
/// there as they are or as bfloat16.
template <class Scalar, class Stored>
void to_lanes(const LaneLayout& layout, index_t group, index_t first, index_t last, const Scalar* channels_last,
              Stored* lanes) noexcept {
  const index_t size = layout.pixels * layout.channels;
  const Scalar* const source = channels_last + group * layout.lanes * size;
  for (index_t block = 0; block < layout.blocks(); ++block) {
    Stored* target =
        lanes + group * layout.group_step() + block * layout.block_step() + first * layout.block * layout.lanes;
    for (index_t pixel = first; pixel < last; ++pixel)
      for (index_t c = block * layout.block; c < (block + 1) * layout.block; ++c)
        for (index_t lane = 0; lane < layout.lanes; ++lane)
          *target++ = kernels::stored_as<Stored>(source[lane * size + pixel * layout.channels + c]);
  }
}

/// The way back, picture by picture within pieces that stay in the L1 cache: the pictures of a group often lie a
/// multiple of 4 KiB apart, where lines of all of them would throw each other out of it (three times slower).
template <class Stored, class Scalar>
void from_lanes(const LaneLayout& layout, index_t group, index_t first, index_t last, const Stored* lanes,
                Scalar* channels_last) noexcept {
  constexpr index_t piece_bytes = index_t{16} << 10U;
  const index_t size = layout.pixels * layout.channels;
  const index_t pixel_size = layout.block * layout.lanes;
  const index_t most = std::max<index_t>(piece_bytes / (pixel_size * static_cast<index_t>(sizeof(Scalar))), 1);
  Scalar* const target = channels_last + group * layout.lanes * size;
  for (index_t block = 0; block < layout.blocks(); ++block) {
    const Stored* source = lanes + group * layout.group_step() + block * layout.block_step() + first * pixel_size;
    for (index_t begin = first; begin < last; begin += most) {
      const index_t count = std::min(most, last - begin);
      for (index_t lane = 0; lane < layout.lanes; ++lane) {
        const Stored* from = source + lane;
        Scalar* to = target + lane * size + begin * layout.channels + block * layout.block;
        for (index_t pixel = 0; pixel < count; ++pixel, to += layout.channels)
          for (index_t c = 0; c < layout.block; ++c, from += layout.lanes) to[c] = kernels::stored_as<Scalar>(*from);
      }
      source += count * pixel_size;
    }
  }
}

}  // namespace strata::train
