// Panels: the input pixels that a piece of a tile of output needs, arranged so that every weight of a block of columns
// meets one run of aligned vectors. 1x1 convolutions need none; the others build theirs here, block by block, in the L1
// cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <xsimd/xsimd.hpp>

#include <strata/core/arena.hpp>
#include <strata/core/tile_layout.hpp>
#include <strata/core/types.hpp>
#include <strata/kernels/convolution_shape.hpp>
#include <strata/kernels/lanes.hpp>
#include <strata/kernels/stride_phases.hpp>

namespace strata::kernels {

/// How the panel of a convolution is arranged for given layouts: a run of `pitch` elements for each column.
///
/// If input and output have the same tiles (stride 1), the run of a tap is the input moved by a fixed distance, with
/// masks where that leaves the picture; rows that lie in the tile before or after come from there. For stride 2
/// `StridePhases` does the same with parted rows. Otherwise the panel is put together row by row.
class PanelPlan {
 public:
  PanelPlan(const ConvolutionShape& shape, const TileLayout& input, const TileLayout& output, index_t block_columns,
            index_t lanes, index_t max_vectors) noexcept
      : shape_(shape), input_(input), output_(output), phases_(shape, input, output, lanes, max_vectors) {
    TileLayout as_input = output;
    as_input.channels = input.channels;
    const index_t up = shape.padding.h;
    const index_t down = (shape.kernel.h - 1) * shape.dilation.h - shape.padding.h;
    const index_t furthest = up > down ? up : down;
    same_tiles_ = shape.stride == Pair(1) && as_input == input &&
                  (output.tile_rows == output.height || furthest <= output.tile_rows);
    panel_size_ = round_up(block_columns * max_vectors * lanes + lanes, lanes);
    size_ = panel_size_ + (same_tiles_ ? (shape.kernel.w + 2 * shape.kernel.h) * output.tile_pitch : phases_.size());
  }

  /// Elements of the panel's memory, edges that vectors hang over and scratch included.
  [[nodiscard]] index_t size() const noexcept { return size_; }

  /// Writes what every `fill` for `tile` needs behind the panel: masks with ones where a tap is inside the picture. To
  /// be called before the first tile, and whenever the tile changes.
  template <class Scalar>
  void prepare(index_t tile, bool first, Scalar* panel) const noexcept {
    const index_t part = tile % output_.tiles_per_image();
    // Tiles from which no tap leaves the picture have the same masks, and so have whole pictures.
    const bool same_as_before =
        output_.tiles_per_image() == 1 || (part > 0 && stays_inside(part - 1) && stays_inside(part));
    if (phases_.applies() && first) phases_.prepare(panel + panel_size_);
    if (!same_tiles_ || (!first && same_as_before)) return;
    Scalar* mask = panel + panel_size_;
    for (index_t kx = 0; kx < shape_.kernel.w; ++kx, mask += output_.tile_pitch)
      if (first) fill_column_mask(shape_, output_, input_.width, kx, mask);
    for (index_t ky = 0; ky < shape_.kernel.h; ++ky, mask += 2 * output_.tile_pitch)
      fill_row_masks(part, ky, mask, mask + output_.tile_pitch);
  }

  /// Fills the panel. Its memory was given to `prepare` for this tile.
  template <class Arch, class Scalar>
  void fill(const Scalar* input, const PanelPart& part, Scalar* panel) const noexcept {
    const index_t base = part.group * (shape_.in_channels / shape_.groups);
    if (same_tiles_) {
      const Scalar* const tile = input + part.tile * input_.tile_size() + base * input_.tile_pitch;
      for (index_t tap = 0; tap < shape_.taps(); ++tap) move_tile<Arch>(tile, part, tap, panel);
    } else if (phases_.applies()) {
      phases_.template fill<Arch>(input, part, base, panel + panel_size_, panel);
    } else {
      gather_rows<Arch>(input, part, base, panel);
    }
  }

 private:
  /// Whether all vertical taps of a tile's rows lie in the picture.
  [[nodiscard]] bool stays_inside(index_t part) const noexcept {
    const index_t top = part * output_.tile_rows - shape_.padding.h;
    const index_t span = output_.tile_rows + (shape_.kernel.h - 1) * shape_.dilation.h;
    return top >= 0 && top + span <= output_.height;
  }

  template <class Scalar>
  static void set_mask(Scalar* mask, index_t count, bool inside) noexcept {
    std::memset(mask, inside ? 0xFF : 0, static_cast<std::size_t>(count) * sizeof(Scalar));
  }

  /// Ones where the vertical tap of a row lies in the picture: in `own` if in the same tile, in `other` if in the tile
  /// before or after it.
  template <class Scalar>
  void fill_row_masks(index_t part, index_t ky, Scalar* own, Scalar* other) const noexcept {
    const index_t shift = ky * shape_.dilation.h - shape_.padding.h;
    const index_t width = output_.width;
    const index_t top = part * output_.tile_rows;
    const index_t images = output_.images_per_tile;
    index_t at = 0;
    for (index_t image = 0; image < images; ++image)
      for (index_t row = 0; row < output_.tile_rows; ++row, at += width) {
        const index_t y = top + row + shift;
        const bool inside = top + row < output_.height && y >= 0 && y < output_.height;
        const bool same = row + shift >= 0 && row + shift < output_.tile_rows;
        set_mask(own + at, width, inside && same);
        set_mask(other + at, width, inside && !same);
      }
    set_mask(own + at, output_.tile_pitch - at, false);
    set_mask(other + at, output_.tile_pitch - at, false);
  }

  /// The columns of one tap, for input that has the tiles of the output. `tile`: of the first channel of the group.
  template <class Arch, class Scalar>
  void move_tile(const Scalar* tile, const PanelPart& part, index_t tap, Scalar* panel) const noexcept {
    using Batch = xsimd::batch<Scalar, Arch>;
    constexpr auto lanes = static_cast<index_t>(Batch::size);
    const index_t taps = shape_.taps();
    const index_t first_channel = ceil_div(part.first > tap ? part.first - tap : 0, taps);
    const index_t last_channel = ceil_div(part.first + part.count > tap ? part.first + part.count - tap : 0, taps);
    const index_t ky = tap / shape_.kernel.w;
    const index_t kx = tap % shape_.kernel.w;
    const index_t down = ky * shape_.dilation.h - shape_.padding.h;
    const index_t shift = down * output_.row_pitch + kx * shape_.dilation.w - shape_.padding.w;
    const index_t extent = output_.tile_rows * output_.images_per_tile * output_.row_pitch;
    // The tile before or after this one lies so far from where it would be if the tiles were one.
    const index_t jump = down < 0 ? extent - input_.tile_size() : input_.tile_size() - extent;
    const Scalar* const column_mask = panel + panel_size_ + kx * output_.tile_pitch + part.begin;
    const Scalar* const own_mask = panel + panel_size_ + (shape_.kernel.w + 2 * ky) * output_.tile_pitch + part.begin;
    const Scalar* const other_mask = own_mask + output_.tile_pitch;
    // Whole pictures may be read beyond their ends, as far as the guards reach.
    const bool split = output_.tile_rows < output_.height;
    const index_t margin = split ? 0 : Block::guard / static_cast<index_t>(sizeof(Scalar));
    tile += first_channel * input_.tile_pitch + part.begin + shift;
    panel += (first_channel * taps + tap - part.first) * part.pitch;
    const index_t step = taps * part.pitch;
    // All channels of one vector, so that its masks stay in registers.
    for (index_t x = 0; x < part.pitch; x += lanes) {
      const index_t at = part.begin + x + shift;  // of the first lane in the tile
      const Batch columns = Batch::load_aligned(column_mask + x);
      const Batch own = columns & Batch::load_aligned(own_mask + x);
      const Scalar* source = tile + x;
      Scalar* target = panel + x;
      if (at >= -margin && at + lanes <= extent + margin) {
        for (index_t c = first_channel; c < last_channel; ++c, source += input_.tile_pitch, target += step)
          (Batch::load_unaligned(source) & own).store_aligned(target);
        continue;
      }
      // Lanes that no mask wants may lie outside the tensor by more than its guards.
      const Batch other = columns & Batch::load_aligned(other_mask + x);
      const bool here = any_set(own);
      const bool there = any_set(other);
      for (index_t c = first_channel; c < last_channel; ++c, source += input_.tile_pitch, target += step) {
        Batch pixels(Scalar{0});
        if (here) pixels = Batch::load_unaligned(source) & own;
        if (there) pixels = pixels | (Batch::load_unaligned(source + jump) & other);
        pixels.store_aligned(target);
      }
    }
  }

  template <class Scalar, class Arch>
  [[nodiscard]] static bool any_set(const xsimd::batch<Scalar, Arch>& mask) noexcept {
    using Bits = xsimd::batch<xsimd::as_unsigned_integer_t<Scalar>, Arch>;
    return xsimd::any(xsimd::bitwise_cast<Bits>(mask) != Bits(0));
  }

  /// Every `step`-th element of a row. By whole vectors, if `may_hang_over`: then `count` rounded up to vectors is read
  /// and written.
  template <class Arch, class Scalar>
  static void thin_row(const Scalar* source, index_t step, index_t count, bool may_hang_over, Scalar* target) noexcept {
    using Batch = xsimd::batch<Scalar, Arch>;
    constexpr auto lanes = static_cast<index_t>(Batch::size);
    const index_t whole = may_hang_over ? count : count - lanes + 1;
    index_t x = 0;
    if (step == 1) {
      for (; x < whole; x += lanes) Batch::load_unaligned(source + x).store_unaligned(target + x);
    } else if (step == 2) {
      for (; x < whole; x += lanes) even_lanes<Batch>(source + 2 * x).store_unaligned(target + x);
    }
    for (; x < count; ++x) target[x] = source[x * step];
  }

  /// As `row_offset` of the input for channel 0, with narrow divisions: there is one for every row and tap.
  [[nodiscard]] index_t row_start(index_t image, index_t y, index_t tiles_per_image) const noexcept {
    if (input_.images_per_tile > 1) return input_.row_offset(image, 0, y);
    const auto tile =
        static_cast<index_t>(static_cast<std::uint32_t>(y) / static_cast<std::uint32_t>(input_.tile_rows));
    return (image * tiles_per_image + tile) * input_.tile_size() + (y - tile * input_.tile_rows) * input_.row_pitch;
  }

  /// The columns of any convolution: tap by tap and row by row, all channels of a row one after the other. Rows are
  /// many and short: what divides stands outside their loop, but for finding the tile of an input row.
  template <class Arch, class Scalar>
  void gather_rows(const Scalar* input, const PanelPart& part, index_t base, Scalar* panel) const noexcept {
    constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
    const index_t taps = shape_.taps();
    const index_t tiles_per_image = output_.tiles_per_image();
    const index_t in_tiles_per_image = input_.tiles_per_image();
    const index_t first_image = part.tile / tiles_per_image * output_.images_per_tile;
    const index_t top = part.tile % tiles_per_image * output_.tile_rows;
    const index_t width = output_.row_pitch;
    const index_t step = shape_.stride.w;
    const index_t first_row = part.begin / width;
    const index_t first_slot = first_row / output_.tile_rows;
    const index_t first_row_of_slot = first_row - first_slot * output_.tile_rows;
    for (index_t tap = 0; tap < taps; ++tap) {
      const index_t first_channel = ceil_div(part.first > tap ? part.first - tap : 0, taps);
      const index_t last_channel = ceil_div(part.first + part.count > tap ? part.first + part.count - tap : 0, taps);
      if (first_channel >= last_channel) continue;
      const index_t down = tap / shape_.kernel.w * shape_.dilation.h - shape_.padding.h;
      const index_t right = tap % shape_.kernel.w * shape_.dilation.w - shape_.padding.w;
      // Elements inside_from .. inside_to-1 of a row have the tap in the picture.
      const index_t inside_from = right >= 0 ? 0 : ceil_div(-right, step);
      const index_t inside_to = right >= input_.width ? 0 : ceil_div(input_.width - right, step);
      Scalar* const first_column = panel + (first_channel * taps + tap - part.first) * part.pitch;
      index_t image = first_image + first_slot;
      index_t row = first_row_of_slot;             // of the picture in the tile
      index_t x = part.begin - first_row * width;  // elements x .. end-1 of the row belong to the part
      for (index_t at = 0; at < part.pitch;) {
        const index_t end = width - x < part.pitch - at ? width : x + part.pitch - at;
        const index_t y = (top + row) * shape_.stride.h + down;
        const bool inside = y >= 0 && y < input_.height && top + row < output_.height && image < output_.batch;
        const index_t from = !inside || inside_from > end ? end : (inside_from > x ? inside_from : x);
        const index_t to = !inside || inside_to < from ? from : (inside_to < end ? inside_to : end);
        // What hangs over the end of a row is written later, unless it hangs over the end of the column.
        const bool may_hang_over = at + from - x + round_up(to - from, lanes) <= part.pitch;
        Scalar* target = first_column + at;
        if (to > from) {
          const Scalar* source = input + row_start(image, y, in_tiles_per_image) +
                                 (base + first_channel) * input_.tile_pitch + from * step + right;
          for (index_t c = first_channel; c < last_channel;
               ++c, target += taps * part.pitch, source += input_.tile_pitch)
            thin_row<Arch>(source, step, to - from, may_hang_over, target + (from - x));
        }
        if (from > x || to < end) {
          target = first_column + at;
          for (index_t c = first_channel; c < last_channel; ++c, target += taps * part.pitch) {
            for (index_t i = x; i < from; ++i) target[i - x] = Scalar{0};
            for (index_t i = to; i < end; ++i) target[i - x] = Scalar{0};
          }
        }
        at += end - x;
        x = 0;
        if (++row == output_.tile_rows) {
          row = 0;
          if (++image == first_image + output_.images_per_tile) break;  // the rest of the tile's vector is idle
        }
      }
    }
  }

  ConvolutionShape shape_;
  TileLayout input_;
  TileLayout output_;
  StridePhases phases_;
  bool same_tiles_ = false;  ///< the panel is the input, moved
  index_t panel_size_ = 0;   ///< elements without the masks behind them
  index_t size_ = 0;
};

}  // namespace strata::kernels
