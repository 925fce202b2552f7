// Panels: the input pixels that one tile of output needs, arranged so that every weight of a block of columns meets one
// contiguous run of vectors. 1x1 convolutions need none; the others build theirs here, block by block, in the L1 cache.
#pragma once

#include <cstdint>

#include <xsimd/xsimd.hpp>

#include <strata/core/arena.hpp>
#include <strata/core/tile_layout.hpp>
#include <strata/core/types.hpp>
#include <strata/kernels/sparse_tile.hpp>

namespace strata::kernels {

/// Extents of a 2-D convolution; weights are out_channels x (in_channels / groups * kernel.h * kernel.w).
struct ConvolutionShape {
  index_t in_channels = 1;
  index_t out_channels = 1;
  Pair kernel = 1;
  Pair stride = 1;
  Pair padding = 0;
  Pair dilation = 1;
  index_t groups = 1;

  [[nodiscard]] constexpr index_t taps() const noexcept { return kernel.h * kernel.w; }
  [[nodiscard]] constexpr index_t columns() const noexcept { return in_channels / groups * taps(); }
  /// Input and output pixels are the same ones: no panel needed.
  [[nodiscard]] constexpr bool pointwise() const noexcept {
    return kernel == Pair(1) && stride == Pair(1) && padding == Pair(0);
  }
};

/// How the panel of a convolution is arranged for given layouts.
///
/// Row panel: for each input channel and horizontal tap the rows that the tile's rows touch, once, already shifted (and
/// thinned out by the horizontal stride). With vertical stride s the rows fall into s phases; the rows that one
/// vertical tap needs are then neighbours, so a tap is an offset into the panel.
///
/// Column panel: for tiles of several pictures, whose rows are not neighbours: every column by itself.
class PanelPlan {
 public:
  PanelPlan(const ConvolutionShape& shape, const TileLayout& input, const TileLayout& output, index_t block_columns,
            index_t lanes) noexcept
      : shape_(shape), input_(input), output_(output), lanes_(lanes) {
    column_panel_ = output.images_per_tile > 1;
    rows_ = 0;
    for (index_t phase = 0; phase < shape.stride.h; ++phase) rows_ += rows_of_phase(phase);
    const index_t touched = ceil_div(block_columns, shape.taps()) + (block_columns % shape.taps() == 0 ? 0 : 1);
    channel_pitch_ = shape.kernel.w * rows_ * output.row_pitch;
    size_ = (column_panel_ ? block_columns * output.tile_pitch : touched * channel_pitch_) +
            (TileLayout::max_vectors + 2) * lanes;
  }

  /// Elements of the panel, edges that vectors hang over included.
  [[nodiscard]] index_t size() const noexcept { return size_; }
  /// Every column starts at a multiple of the vector size.
  [[nodiscard]] bool aligned() const noexcept { return column_panel_ || output_.row_pitch % lanes_ == 0; }
  [[nodiscard]] bool uses_table() const noexcept { return !column_panel_; }

  /// Fills `table` (one entry a column) for the block of columns first .. first+count-1.
  void fill_table(index_t first, index_t count, std::uint32_t* table) const noexcept {
    const index_t first_channel = first / shape_.taps();
    for (index_t c = 0; c < count; ++c) {
      const index_t tap = (first + c) % shape_.taps();
      const index_t channel = (first + c) / shape_.taps() - first_channel;
      const index_t y = tap / shape_.kernel.w * shape_.dilation.h;
      index_t row = y / shape_.stride.h;
      for (index_t phase = 0; phase < y % shape_.stride.h; ++phase) row += rows_of_phase(phase);
      table[c] = static_cast<std::uint32_t>(channel * channel_pitch_ +
                                            (tap % shape_.kernel.w * rows_ + row) * output_.row_pitch);
    }
  }

  /// Fills the panel of output tile `tile` for columns first .. first+count-1 of the weights of `group`.
  template <class Arch, class Scalar>
  void fill(const Scalar* input, index_t tile, index_t group, index_t first, index_t count,
            Scalar* panel) const noexcept {
    const index_t base = group * (shape_.in_channels / shape_.groups);
    if (column_panel_) {
      const index_t images = output_.images_per_tile;
      for (index_t c = 0; c < count; ++c) {
        const index_t tap = (first + c) % shape_.taps();
        const index_t channel = base + (first + c) / shape_.taps();
        for (index_t slot = 0; slot < images && tile * images + slot < output_.batch; ++slot)
          for (index_t y = 0; y < output_.height; ++y)
            fill_row<Arch>(input, tile * images + slot, channel,
                           y * shape_.stride.h - shape_.padding.h + tap / shape_.kernel.w * shape_.dilation.h,
                           tap % shape_.kernel.w,
                           panel + c * output_.tile_pitch + (slot * output_.height + y) * output_.row_pitch);
      }
      return;
    }
    const index_t image = tile / output_.tiles_per_image();
    const index_t top = tile % output_.tiles_per_image() * output_.tile_rows * shape_.stride.h - shape_.padding.h;
    const index_t first_channel = first / shape_.taps();
    const index_t last_channel = (first + count - 1) / shape_.taps();
    for (index_t channel = first_channel; channel <= last_channel; ++channel)
      for (index_t kx = 0; kx < shape_.kernel.w; ++kx)
        for (index_t phase = 0; phase < shape_.stride.h; ++phase)
          for (index_t q = 0; q < rows_of_phase(phase); ++q, panel += output_.row_pitch)
            fill_row<Arch>(input, image, base + channel, top + q * shape_.stride.h + phase, kx, panel);
  }

 private:
  /// Panel rows of a phase: those of the tile and what the furthest tap of the phase adds; none if no tap falls in it.
  [[nodiscard]] index_t rows_of_phase(index_t phase) const noexcept {
    index_t furthest = -1;
    for (index_t ky = 0; ky < shape_.kernel.h; ++ky)
      if (ky * shape_.dilation.h % shape_.stride.h == phase) furthest = ky * shape_.dilation.h / shape_.stride.h;
    return furthest < 0 ? 0 : output_.tile_rows + furthest;
  }

  /// One panel row: input row `y` seen through horizontal tap `kx`, zero outside the picture. May write up to a vector
  /// beyond the row, so rows have to be filled in ascending order.
  template <class Arch, class Scalar>
  void fill_row(const Scalar* input, index_t image, index_t channel, index_t y, index_t kx,
                Scalar* target) const noexcept {
    using Batch = xsimd::batch<Scalar, Arch>;
    constexpr auto lanes = static_cast<index_t>(Batch::size);
    const index_t width = output_.width;
    if (y < 0 || y >= input_.height) {
      for (index_t x = 0; x < output_.row_pitch; x += lanes) Batch(Scalar{0}).store_unaligned(target + x);
      return;
    }
    const Scalar* source = input + input_.row_offset(image, channel, y);
    const index_t shift = kx * shape_.dilation.w - shape_.padding.w;
    const index_t step = shape_.stride.w;
    index_t begin = shift >= 0 ? 0 : ceil_div(-shift, step);
    index_t end = input_.width - 1 - shift < 0 ? 0 : (input_.width - 1 - shift) / step + 1;
    if (begin > width) begin = width;
    if (end > width) end = width;
    if (end < begin) end = begin;
    // Elements past both ends of a tensor that may be read: a vector hangs over by less than a vector, and the shift.
    constexpr index_t reach = Block::guard / static_cast<index_t>(sizeof(Scalar)) - lanes;
    if (step == 1 && shift >= -reach && shift <= reach) {
      for (index_t x = 0; x < output_.row_pitch && x < end; x += lanes)
        Batch::load_unaligned(source + x + shift).store_unaligned(target + x);
    } else if (step == 2) {
      for (index_t x = begin; x < end; ++x) target[x] = source[2 * x + shift];
    } else {
      for (index_t x = begin; x < end; ++x) target[x] = source[step * x + shift];
    }
    for (index_t x = 0; x < begin; ++x) target[x] = Scalar{0};
    for (index_t x = end; x < width; ++x) target[x] = Scalar{0};
  }

  ConvolutionShape shape_;
  TileLayout input_;
  TileLayout output_;
  index_t lanes_;
  bool column_panel_ = false;
  index_t rows_ = 0;           ///< panel rows per channel and horizontal tap
  index_t channel_pitch_ = 0;  ///< elements per channel
  index_t size_ = 0;
};

}  // namespace strata::kernels
