// Panels of convolutions of stride 2, whose taps jump over every other pixel.
#pragma once

#include <xsimd/xsimd.hpp>

#include <strata/core/tile_layout.hpp>
#include <strata/core/types.hpp>
#include <strata/kernels/convolution_shape.hpp>
#include <strata/kernels/lanes.hpp>

namespace strata::kernels {

/// Half of `value`, rounded down; and what is left.
struct Halved {
  index_t half;
  index_t parity;
  explicit constexpr Halved(index_t value) noexcept : half(value >> 1), parity(value & 1) {}
};

/// Panels of convolutions of stride 2. The rows of the input that a channel's columns need are parted into even and odd
/// pixels once, in a scratch that stays in the L1 cache: four phases (even or odd row, even or odd pixel), each with
/// rows as wide as the output's. There every tap is a fixed distance away, as with stride 1.
class StridePhases {
 public:
  /// Vectors beyond a row of the input that may be read, in a tensor's last row beyond the tensor (`Block::guard`):
  /// with wide borders the output may be much wider than half of the input.
  static constexpr index_t reach = 4;

  StridePhases(const ConvolutionShape& shape, const TileLayout& input, const TileLayout& output, index_t lanes,
               index_t max_vectors) noexcept
      : shape_(shape), input_(input), output_(output), lanes_(lanes) {
    const index_t width = output.row_pitch;
    applies_ = shape.stride == Pair(2) && shape.taps() > 1 && output.images_per_tile == 1 &&
               input.images_per_tile == 1 && width > 0 && input.width <= 2 * width &&
               2 * round_up(width, lanes) <= input.width + reach * lanes;
    if (!applies_) return;
    for (index_t ky = 0; ky < shape.kernel.h; ++ky) {
      const Halved row = vertical(ky);
      Rows& rows = rows_[row.parity];
      if (rows.last < rows.first) rows = {row.half, row.half};
      rows.first = row.half < rows.first ? row.half : rows.first;
      rows.last = row.half > rows.last ? row.half : rows.last;
    }
    left_ = horizontal(0).half;
    right_ = horizontal(shape.kernel.w - 1).half;
    // Rows that a piece may touch, wherever it begins.
    const index_t touched = ceil_div(max_vectors * lanes + right_ - left_, width) + 1;
    for (const Rows& rows : rows_)
      if (rows.last >= rows.first) rows_capacity_ += touched + rows.last - rows.first;
  }

  [[nodiscard]] bool applies() const noexcept { return applies_; }
  /// Elements of the masks, and of masks and scratch.
  [[nodiscard]] index_t masks_size() const noexcept { return shape_.kernel.w * output_.tile_pitch; }
  [[nodiscard]] index_t size() const noexcept {
    return applies_ ? masks_size() + round_up(2 * rows_capacity_ * output_.row_pitch + 2 * lanes_, lanes_) : 0;
  }

  /// Fills the masks, which are the same for all tiles.
  template <class Scalar>
  void prepare(Scalar* memory) const noexcept {
    for (index_t kx = 0; kx < shape_.kernel.w; ++kx)
      fill_column_mask(shape_, output_, input_.width, kx, memory + kx * output_.tile_pitch);
  }

  /// Fills the panel. `base`: the first channel of the group.
  template <class Arch, class Scalar>
  void fill(const Scalar* input, const PanelPart& part, index_t base, Scalar* memory, Scalar* panel) const noexcept {
    using Batch = xsimd::batch<Scalar, Arch>;
    constexpr auto lanes = static_cast<index_t>(Batch::size);
    const index_t taps = shape_.taps();
    const index_t width = output_.row_pitch;
    Scalar* const scratch = memory + masks_size();
    const index_t tiles = output_.tiles_per_image();
    const index_t image = part.tile / tiles;
    const index_t top = part.tile % tiles * output_.tile_rows;
    const index_t from = floor_div(part.begin + left_, width);  // rows of the tile that the part touches
    const index_t to = floor_div(part.begin + part.pitch - 1 + right_, width);
    // Where the phases of even and of odd rows begin; those of odd pixels lie behind.
    const index_t count[2] = {rows_[0].last < rows_[0].first ? 0 : to - from + 1 + rows_[0].last - rows_[0].first,
                              rows_[1].last < rows_[1].first ? 0 : to - from + 1 + rows_[1].last - rows_[1].first};
    const index_t odd_pixels = (count[0] + count[1]) * width + lanes;
    for (index_t column = part.first; column < part.first + part.count;) {
      const index_t channel = column / taps;
      const index_t end =
          (channel + 1) * taps < part.first + part.count ? (channel + 1) * taps : part.first + part.count;
      Scalar* row = scratch;
      for (index_t parity = 0; parity < 2; ++parity)
        for (index_t i = 0; i < count[parity]; ++i, row += width) {
          const index_t y = 2 * (top + from + rows_[parity].first + i) + parity;
          if (y < 0 || y >= input_.height) {
            for (index_t x = 0; x < width; x += lanes) {
              Batch(Scalar{0}).store_unaligned(row + x);
              Batch(Scalar{0}).store_unaligned(row + x + odd_pixels);
            }
            continue;
          }
          const Scalar* const source = input + input_.row_offset(image, base + channel, y);
          for (index_t x = 0; x < width; x += lanes) {
            const Parted<Batch> pixels = part_lanes<Batch>(source + 2 * x);
            pixels.even.store_unaligned(row + x);
            pixels.odd.store_unaligned(row + x + odd_pixels);
          }
        }
      index_t ky = (column - channel * taps) / shape_.kernel.w;
      index_t kx = column - channel * taps - ky * shape_.kernel.w;
      for (; column < end; ++ky, kx = 0) {
        const Halved down = vertical(ky);
        const Scalar* const rows = scratch + (down.parity == 0 ? 0 : count[0] * width) +
                                   (down.half - rows_[down.parity].first - from) * width + part.begin;
        const Scalar* mask = memory + kx * output_.tile_pitch + part.begin;
        for (; kx < shape_.kernel.w && column < end; ++kx, ++column, mask += output_.tile_pitch, panel += part.pitch) {
          const Halved right = horizontal(kx);
          const Scalar* const source = rows + (right.parity == 0 ? 0 : odd_pixels) + right.half;
          for (index_t x = 0; x < part.pitch; x += lanes)
            (Batch::load_unaligned(source + x) & Batch::load_aligned(mask + x)).store_aligned(panel + x);
        }
      }
    }
  }

 private:
  /// Rows of a phase before and after those of the output.
  struct Rows {
    index_t first = 1;
    index_t last = 0;
  };

  [[nodiscard]] static index_t floor_div(index_t a, index_t b) noexcept { return a >= 0 ? a / b : -ceil_div(-a, b); }
  [[nodiscard]] Halved vertical(index_t ky) const noexcept { return Halved(ky * shape_.dilation.h - shape_.padding.h); }
  [[nodiscard]] Halved horizontal(index_t kx) const noexcept {
    return Halved(kx * shape_.dilation.w - shape_.padding.w);
  }

  ConvolutionShape shape_;
  TileLayout input_;
  TileLayout output_;
  index_t lanes_;
  bool applies_ = false;
  Rows rows_[2];
  index_t left_ = 0;
  index_t right_ = 0;
  index_t rows_capacity_ = 0;
};

}  // namespace strata::kernels
