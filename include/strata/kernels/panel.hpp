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
    // Packed rows are filled by whole vectors: the last one hangs over, into room of its own.
    tap_pitch_ = round_up(rows_ * output.row_pitch, lanes) + (output.row_pitch % lanes == 0 ? 0 : lanes);
    channel_pitch_ = shape.kernel.w * tap_pitch_;
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
      table[c] = static_cast<std::uint32_t>(channel * channel_pitch_ + tap % shape_.kernel.w * tap_pitch_ +
                                            row * output_.row_pitch);
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
        const Span span = span_of(tap % shape_.kernel.w);
        for (index_t slot = 0; slot < images && tile * images + slot < output_.batch; ++slot)
          for (index_t y = 0; y < output_.height; ++y)
            fill_rows<Arch>(input, tile * images + slot, channel, 1,
                            y * shape_.stride.h - shape_.padding.h + tap / shape_.kernel.w * shape_.dilation.h, span,
                            panel + c * output_.tile_pitch + (slot * output_.height + y) * output_.row_pitch);
      }
      return;
    }
    const index_t image = tile / output_.tiles_per_image();
    const index_t top = tile % output_.tiles_per_image() * output_.tile_rows * shape_.stride.h - shape_.padding.h;
    const index_t first_channel = first / shape_.taps();
    const index_t channels = (first + count - 1) / shape_.taps() - first_channel + 1;
    for (index_t kx = 0; kx < shape_.kernel.w; ++kx) {
      const Span span = span_of(kx);
      Scalar* target = panel + kx * tap_pitch_;
      for (index_t phase = 0; phase < shape_.stride.h; ++phase)
        for (index_t q = 0; q < rows_of_phase(phase); ++q, target += output_.row_pitch)
          fill_rows<Arch>(input, image, base + first_channel, channels, top + q * shape_.stride.h + phase, span,
                          target);
    }
  }

 private:
  /// Panel rows of a phase: those of the tile and what the furthest tap of the phase adds; none if no tap falls in it.
  [[nodiscard]] index_t rows_of_phase(index_t phase) const noexcept {
    index_t furthest = -1;
    for (index_t ky = 0; ky < shape_.kernel.h; ++ky)
      if (ky * shape_.dilation.h % shape_.stride.h == phase) furthest = ky * shape_.dilation.h / shape_.stride.h;
    return furthest < 0 ? 0 : output_.tile_rows + furthest;
  }

  /// Output columns begin .. end-1 of a horizontal tap lie inside the picture, at input column x * stride + shift.
  struct Span {
    index_t shift;
    index_t begin;
    index_t end;
  };

  [[nodiscard]] Span span_of(index_t kx) const noexcept {
    Span span{kx * shape_.dilation.w - shape_.padding.w, 0, 0};
    const index_t step = shape_.stride.w;
    span.begin = span.shift >= 0 ? 0 : ceil_div(-span.shift, step);
    span.end = input_.width - 1 - span.shift < 0 ? 0 : (input_.width - 1 - span.shift) / step + 1;
    if (span.begin > output_.width) span.begin = output_.width;
    if (span.end > output_.width) span.end = output_.width;
    if (span.end < span.begin) span.end = span.begin;
    return span;
  }

  /// One panel row of each of `channels` channels: input row `y` seen through a horizontal tap, zero outside the
  /// picture. May write up to a vector beyond a row, so the rows of a channel have to be filled in ascending order.
  template <class Arch, class Scalar>
  void fill_rows(const Scalar* input, index_t image, index_t channel, index_t channels, index_t y, const Span& span,
                 Scalar* target) const noexcept {
    using Batch = xsimd::batch<Scalar, Arch>;
    constexpr auto lanes = static_cast<index_t>(Batch::size);
    // Elements past both ends of a tensor that may be read: a vector hangs over by less than a vector, and the shift.
    constexpr index_t reach = Block::guard / static_cast<index_t>(sizeof(Scalar)) - lanes;
    const index_t width = output_.width;
    const index_t pitch = output_.row_pitch;
    if (y < 0 || y >= input_.height) {
      for (index_t c = 0; c < channels; ++c, target += channel_pitch_)
        for (index_t x = 0; x < pitch; x += lanes) Batch(Scalar{0}).store_unaligned(target + x);
      return;
    }
    const Scalar* source = input + input_.row_offset(image, channel, y) + span.shift;
    const index_t step = shape_.stride.w;
    const bool by_vectors = step == 1 && span.shift >= -reach && span.shift <= reach;
    for (index_t c = 0; c < channels; ++c, target += channel_pitch_, source += input_.tile_pitch) {
      if (by_vectors) {
        for (index_t x = 0; x < span.end; x += lanes) Batch::load_unaligned(source + x).store_unaligned(target + x);
      } else if (step == 2) {
        for (index_t x = span.begin; x < span.end; ++x) target[x] = source[2 * x];
      } else {
        for (index_t x = span.begin; x < span.end; ++x) target[x] = source[step * x];
      }
      for (index_t x = 0; x < span.begin; ++x) target[x] = Scalar{0};
      for (index_t x = span.end; x < width; ++x) target[x] = Scalar{0};
    }
  }

  ConvolutionShape shape_;
  TileLayout input_;
  TileLayout output_;
  index_t lanes_;
  bool column_panel_ = false;
  index_t rows_ = 0;           ///< panel rows per channel and horizontal tap
  index_t tap_pitch_ = 0;      ///< elements per horizontal tap
  index_t channel_pitch_ = 0;  ///< elements per channel
  index_t size_ = 0;
};

}  // namespace strata::kernels
