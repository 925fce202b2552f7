// Panels of convolutions over few channels whose rows are whole vectors: a copy of the input for every horizontal tap,
// in which vertical taps are a row apart. Other panels are kernels/panel.hpp's business.
#pragma once

#include <cstdint>

#include <xsimd/xsimd.hpp>

#include <strata/core/arena.hpp>
#include <strata/core/tile_layout.hpp>
#include <strata/core/types.hpp>
#include <strata/kernels/convolution_shape.hpp>

namespace strata::kernels {

/// The panel of a tile for a convolution of stride 1: for every channel and horizontal tap the rows that the tile
/// needs, those above and below it included, moved by the tap and with zeros outside the picture. All vertical taps
/// read the same copy, so that it takes `kernel.w` stores a pixel instead of `taps()`; the pieces of a tile, computed
/// from top to bottom, share the rows between them. Every column's distance from the panel is in a table.
///
/// That pays where building panels takes as long as multiplying: few channels, of which a piece's rows stay in the L1
/// cache.
class RowPanel {
 public:
  /// Most bytes of the rows of all copies that one piece of a tile reads.
  static constexpr index_t max_piece_bytes = index_t{48} << 10;

  /// `max_vectors`: of a piece.
  RowPanel(const ConvolutionShape& shape, const TileLayout& input, const TileLayout& output, index_t lanes,
           index_t max_vectors, index_t element_bytes) noexcept
      : shape_(shape), input_(input), output_(output), halo_((shape.kernel.h - 1) * shape.dilation.h) {
    TileLayout as_input = output;
    as_input.channels = input.channels;
    const index_t width = output.row_pitch;
    if (shape.groups > 1 || shape.kernel.h < 2 || shape.stride != Pair(1) || as_input != input ||
        output.images_per_tile > 1 || width == 0 || width % lanes != 0)
      return;
    // Loads reach so far beyond a row, which may be the first or the last one of the tensor.
    const index_t left = shape.padding.w;
    const index_t right = (shape.kernel.w - 1) * shape.dilation.w - shape.padding.w;
    const index_t reach = (left > right ? left : right) * element_bytes;
    if (left < 0 || reach > Block::guard) return;
    const index_t touched = ceil_div(max_vectors * lanes, width) + (width > lanes ? 1 : 0) + halo_;
    if (copies() * touched * width * element_bytes > max_piece_bytes) return;
    // An odd number of cache lines, so that the copies' rows spread over all sets of the cache.
    const index_t line = static_cast<index_t>(Block::alignment) / element_bytes;
    pitch_ = (ceil_div((output.tile_rows + halo_) * width, line) | 1) * line;
  }

  [[nodiscard]] bool applies() const noexcept { return pitch_ > 0; }
  /// Elements of the panel and the masks behind it.
  [[nodiscard]] index_t size() const noexcept { return copies() * pitch_ + shape_.kernel.w * output_.row_pitch; }
  /// Rows of the tile that the elements `begin` .. `end`-1 of it need: up to this one, from that of `begin` on.
  [[nodiscard]] index_t end_row(index_t end) const noexcept { return ceil_div(end, output_.row_pitch) + halo_; }

  /// The bytes from the panel to each of the `shape.columns()` columns, for the first pixel of a tile.
  void fill_offsets(index_t element_bytes, std::uint32_t* offsets) const noexcept {
    const index_t down = shape_.dilation.h * output_.row_pitch;
    for (index_t c = 0; c < shape_.in_channels; ++c)
      for (index_t ky = 0; ky < shape_.kernel.h; ++ky)
        for (index_t kx = 0; kx < shape_.kernel.w; ++kx)
          *offsets++ = static_cast<std::uint32_t>(((c * shape_.kernel.w + kx) * pitch_ + ky * down) * element_bytes);
  }

  /// Fills the masks behind the panel, which are the same for all tiles.
  template <class Scalar>
  void prepare(Scalar* panel) const noexcept {
    TileLayout row = output_;
    row.tile_pitch = row.row_pitch;
    for (index_t kx = 0; kx < shape_.kernel.w; ++kx)
      fill_column_mask(shape_, row, input_.width, kx, panel + copies() * pitch_ + kx * row.row_pitch);
  }

  /// Fills rows `from` .. `to`-1 of all copies for `tile`; row r is `padding.h` rows above row r of the tile.
  template <class Arch, class Scalar>
  void fill(const Scalar* input, index_t tile, index_t from, index_t to, Scalar* panel) const noexcept {
    using Batch = xsimd::batch<Scalar, Arch>;
    constexpr auto lanes = static_cast<index_t>(Batch::size);
    const index_t width = output_.row_pitch;
    const index_t image = tile / output_.tiles_per_image();
    const index_t top = tile % output_.tiles_per_image() * output_.tile_rows - shape_.padding.h;
    const Scalar* const masks = panel + copies() * pitch_;
    const index_t step = shape_.kernel.w * pitch_;
    for (index_t row = from; row < to; ++row) {
      const index_t y = top + row;
      const bool inside = y >= 0 && y < input_.height;
      const Scalar* const source = inside ? input + input_.row_offset(image, 0, y) : nullptr;
      for (index_t kx = 0; kx < shape_.kernel.w; ++kx) {
        const index_t shift = kx * shape_.dilation.w - shape_.padding.w;
        Scalar* const copy = panel + kx * pitch_ + row * width;
        // All channels of one vector, so that its mask stays in a register.
        for (index_t x = 0; x < width; x += lanes) {
          Scalar* target = copy + x;
          if (!inside) {
            for (index_t c = 0; c < shape_.in_channels; ++c, target += step) Batch(Scalar{0}).store_aligned(target);
            continue;
          }
          const Batch mask = Batch::load_aligned(masks + kx * width + x);
          const Scalar* pixels = source + x + shift;
          for (index_t c = 0; c < shape_.in_channels; ++c, pixels += input_.tile_pitch, target += step)
            (Batch::load_unaligned(pixels) & mask).store_aligned(target);
        }
      }
    }
  }

 private:
  [[nodiscard]] index_t copies() const noexcept { return shape_.in_channels * shape_.kernel.w; }

  ConvolutionShape shape_;
  TileLayout input_;
  TileLayout output_;
  index_t halo_;
  index_t pitch_ = 0;  ///< from a copy to the next one; 0: does not apply
};

}  // namespace strata::kernels
