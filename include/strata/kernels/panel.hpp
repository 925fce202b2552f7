// Panels: the input pixels that one tile of output needs, arranged so that every weight of a block of columns meets one
// contiguous run of vectors. 1x1 convolutions need none; the others build theirs here, block by block, in the L1 cache.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

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
/// thinned out by the horizontal stride; see split_rows). With vertical stride s the rows fall into s phases; the rows
/// that one vertical tap needs are then neighbours, so a tap is an offset into the panel.
///
/// Column panel: for tiles of several pictures, whose rows are not neighbours, and for packed rows, whose vectors would
/// not be aligned: every column by itself.
class PanelPlan {
 public:
  PanelPlan(const ConvolutionShape& shape, const TileLayout& input, const TileLayout& output, index_t block_columns,
            index_t lanes) noexcept
      : shape_(shape), input_(input), output_(output), lanes_(lanes) {
    column_panel_ = output.images_per_tile > 1 || output.row_pitch % lanes != 0;
    same_rows_ = shape.stride == Pair(1) && input.row_pitch == output.row_pitch &&
                 largest_shift(shape.padding.w, (shape.kernel.w - 1) * shape.dilation.w) <= reach(lanes);
    TileLayout as_input = output;
    as_input.channels = input.channels;
    same_tiles_ = same_rows_ && as_input == input && output.tile_rows == output.height &&
                  largest_shift(shape.padding.h * output.row_pitch + shape.padding.w,
                                (shape.kernel.h - 1) * shape.dilation.h * output.row_pitch +
                                    (shape.kernel.w - 1) * shape.dilation.w) <= reach(lanes);
    rows_ = 0;
    for (index_t phase = 0; phase < shape.stride.h; ++phase) {
      const index_t rows = count_rows_of_phase(phase);
      if (const auto at = static_cast<std::size_t>(phase); at < phase_rows_.size()) phase_rows_[at] = rows;
      rows_ += rows;
    }
    const index_t touched = ceil_div(block_columns, shape.taps()) + (block_columns % shape.taps() == 0 ? 0 : 1);
    tap_pitch_ = rows_ * output.row_pitch;
    channel_pitch_ = shape.kernel.w * tap_pitch_;
    panel_size_ =
        round_up((column_panel_ ? block_columns * output.tile_pitch : touched * channel_pitch_) + lanes, lanes);
    // Streams of the rows of one channel: the horizontal taps reach beyond both ends, vectors beyond the right one.
    const index_t extent = (shape.kernel.w - 1) * shape.dilation.w;
    stream_margin_ = ceil_div(shape.padding.w, shape.stride.w);
    const index_t width = ceil_div(input.width, shape.stride.w);
    const index_t run = output.row_pitch + ceil_div(extent, shape.stride.w) + lanes;
    stream_pitch_ = round_up(stream_margin_ + (width > run ? width : run), lanes);
    split_rows_ = (output.tile_rows - 1) * shape.stride.h + (shape.kernel.h - 1) * shape.dilation.h + 1;
    if (column_panel_ ? same_tiles_ : same_rows_)
      size_ = panel_size_ + (column_panel_ ? shape.taps() * output.tile_pitch : shape.kernel.w * output.row_pitch);
    else
      size_ = panel_size_ + output.images_per_tile * split_rows_ * shape.stride.w * stream_pitch_;
  }

  /// Elements of the panel, edges that vectors hang over included.
  [[nodiscard]] index_t size() const noexcept { return size_; }
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

  /// Writes what every `fill` of this memory needs behind the panel: masks with ones where a tap is inside the picture.
  template <class Scalar>
  void prepare(Scalar* panel) const noexcept {
    Scalar* mask = panel + panel_size_;
    const auto inside = [](index_t at, index_t shift, index_t extent) {
      return at + shift >= 0 && at + shift < extent;
    };
    if (column_panel_ && same_tiles_) {
      for (index_t tap = 0; tap < shape_.taps(); ++tap, mask += output_.tile_pitch) {
        const index_t down = tap / shape_.kernel.w * shape_.dilation.h - shape_.padding.h;
        const index_t right = tap % shape_.kernel.w * shape_.dilation.w - shape_.padding.w;
        for (index_t slot = 0; slot < output_.images_per_tile; ++slot)
          for (index_t y = 0; y < output_.height; ++y)
            for (index_t x = 0; x < output_.row_pitch; ++x)
              set_mask(mask + (slot * output_.height + y) * output_.row_pitch + x,
                       x < output_.width && inside(y, down, input_.height) && inside(x, right, input_.width));
      }
    } else if (!column_panel_ && same_rows_) {
      for (index_t kx = 0; kx < shape_.kernel.w; ++kx)
        for (index_t x = 0; x < output_.row_pitch; ++x, ++mask)
          set_mask(mask, x < output_.width && inside(x, kx * shape_.dilation.w - shape_.padding.w, input_.width));
    }
  }

  /// Fills the panel of output tile `tile` for columns first .. first+count-1 of the weights of `group`. The memory was
  /// given to `prepare` once.
  template <class Arch, class Scalar>
  void fill(const Scalar* input, index_t tile, index_t group, index_t first, index_t count,
            Scalar* panel) const noexcept {
    const index_t parts = output_.tiles_per_image();
    const index_t image = tile / parts * output_.images_per_tile;
    const index_t top = tile % parts * output_.tile_rows * shape_.stride.h - shape_.padding.h;
    const index_t base = group * (shape_.in_channels / shape_.groups);
    if (column_panel_) {
      fill_columns<Arch>(input, tile, image, top, base, first, count, panel);
    } else if (same_rows_) {
      const index_t channel = first / shape_.taps();
      const index_t channels = (first + count - 1) / shape_.taps() - channel + 1;
      for (index_t kx = 0; kx < shape_.kernel.w; ++kx)
        copy_rows<Arch>(input, image, base + channel, channels, top, kx * shape_.dilation.w - shape_.padding.w,
                        panel + panel_size_ + kx * output_.row_pitch, panel + kx * tap_pitch_);
    } else {
      const index_t first_channel = first / shape_.taps();
      const index_t last_channel = (first + count - 1) / shape_.taps();
      for (index_t channel = first_channel; channel <= last_channel; ++channel, panel += channel_pitch_)
        fill_rows<Arch>(input, image, base + channel, top, panel,
                        panel + (last_channel - channel + 1) * channel_pitch_);
    }
  }

 private:
  /// Panel rows of a phase: those of the tile and what the furthest tap of the phase adds; none if no tap falls in it.
  [[nodiscard]] index_t rows_of_phase(index_t phase) const noexcept {
    const auto at = static_cast<std::size_t>(phase);
    return at < phase_rows_.size() ? phase_rows_[at] : count_rows_of_phase(phase);
  }
  [[nodiscard]] index_t count_rows_of_phase(index_t phase) const noexcept {
    index_t furthest = -1;
    for (index_t ky = 0; ky < shape_.kernel.h; ++ky)
      if (ky * shape_.dilation.h % shape_.stride.h == phase) furthest = ky * shape_.dilation.h / shape_.stride.h;
    return furthest < 0 ? 0 : output_.tile_rows + furthest;
  }

  template <class Scalar>
  static void set_mask(Scalar* mask, bool inside) noexcept {
    std::memset(mask, inside ? 0xFF : 0, sizeof(Scalar));
  }

  /// Elements past both ends of a tensor that may be read: a vector hangs over by less than a vector, and the shift.
  [[nodiscard]] static constexpr index_t reach(index_t lanes) noexcept {
    return Block::guard / static_cast<index_t>(sizeof(float)) - lanes;
  }
  /// How far taps that span `extent` elements, the first `padding` before its pixel, are from the pixel at most.
  [[nodiscard]] static constexpr index_t largest_shift(index_t padding, index_t extent) noexcept {
    return padding > extent - padding ? padding : extent - padding;
  }

  /// A whole tile of whole pictures seen through one tap: input and output have the same tiles, so it is the tile moved
  /// by a fixed distance, with zeros where `mask` says that this leaves the picture.
  template <class Arch, class Scalar>
  void copy_tile(const Scalar* source, const Scalar* mask, Scalar* target) const noexcept {
    using Batch = xsimd::batch<Scalar, Arch>;
    constexpr auto lanes = static_cast<index_t>(Batch::size);
    for (index_t x = 0; x < output_.tile_pitch; x += lanes)
      (Batch::load_unaligned(source + x) & Batch::load_aligned(mask + x)).store_aligned(target + x);
  }

  /// The panel rows of one horizontal tap of each of `channels` channels, from input row `top` on, if input rows are as
  /// far apart as panel rows: all rows that lie in one input tile are one run of vectors. `mask`: of one row.
  template <class Arch, class Scalar>
  void copy_rows(const Scalar* input, index_t image, index_t channel, index_t channels, index_t top, index_t shift,
                 const Scalar* mask, Scalar* target) const noexcept {
    using Batch = xsimd::batch<Scalar, Arch>;
    constexpr auto lanes = static_cast<index_t>(Batch::size);
    const index_t pitch = output_.row_pitch;
    index_t rows = 0;
    for (index_t q = 0; q < rows_; q += rows, target += rows * pitch) {
      const index_t y = top + q;
      if (y < 0 || y >= input_.height) {
        rows = 1;
        for (index_t c = 0; c < channels; ++c)
          for (index_t x = 0; x < pitch; x += lanes) Batch(Scalar{0}).store_aligned(target + c * channel_pitch_ + x);
        continue;
      }
      rows = input_.tile_rows - y % input_.tile_rows;
      if (rows > input_.height - y) rows = input_.height - y;
      if (rows > rows_ - q) rows = rows_ - q;
      const Scalar* source = input + input_.row_offset(image, channel, y) + shift;
      Scalar* to = target;
      for (index_t c = 0; c < channels; ++c, source += input_.tile_pitch, to += channel_pitch_)
        for (index_t row = 0; row < rows * pitch; row += pitch)
          for (index_t x = 0; x < pitch; x += lanes)
            (Batch::load_unaligned(source + row + x) & Batch::load_aligned(mask + x)).store_aligned(to + row + x);
    }
  }

  /// Cuts input rows `top` .. of a channel of a picture into streams, one for each column of the input modulo the
  /// horizontal stride, with zeros around them: any tap of any output row is then a run of one stream. Leaves out what
  /// no tap falls in.
  template <class Arch, class Scalar>
  void split_rows(const Scalar* input, index_t image, index_t channel, index_t top, Scalar* streams) const noexcept {
    const index_t step = shape_.stride.w;
    const bool all_phases = shape_.kernel.w > 1;
    const index_t only = run_of(0) / stream_pitch_;
    const index_t first = top < 0 ? 0 : top;
    index_t in_tile = first % input_.tile_rows;
    const Scalar* source = first < input_.height ? input + input_.row_offset(image, channel, first) : nullptr;
    const index_t next_tile = input_.tile_size() - (input_.tile_rows - 1) * input_.row_pitch;
    index_t phase = 0;  // of the row modulo the vertical stride
    for (index_t y = top; y < top + split_rows_; ++y, streams += step * stream_pitch_) {
      const bool inside = y >= 0 && y < input_.height;
      if (rows_of_phase(phase) > 0) {
        if (step == 2 && all_phases) {  // written so that compilers see the shuffles
          clear_around<Arch>(streams, inside ? ceil_div(input_.width, 2) : 0);
          clear_around<Arch>(streams + stream_pitch_, inside ? input_.width / 2 : 0);
          Scalar* const even = streams + stream_margin_;
          Scalar* const odd = even + stream_pitch_;
          const index_t pairs = inside ? input_.width / 2 : 0;
          for (index_t x = 0; x < pairs; ++x) {
            even[x] = source[2 * x];
            odd[x] = source[2 * x + 1];
          }
          if (inside && input_.width % 2 != 0) even[pairs] = source[2 * pairs];
        } else {
          for (index_t stream = all_phases ? 0 : only; stream < (all_phases ? step : only + 1); ++stream) {
            Scalar* const target = streams + stream * stream_pitch_;
            const index_t count = inside && stream < input_.width ? ceil_div(input_.width - stream, step) : 0;
            clear_around<Arch>(target, count);
            if (step == 2) {
              for (index_t x = 0; x < count; ++x) target[stream_margin_ + x] = source[2 * x + stream];
            } else {
              for (index_t x = 0; x < count; ++x) target[stream_margin_ + x] = source[x * step + stream];
            }
          }
        }
      }
      if (++phase == shape_.stride.h) phase = 0;
      if (!inside) continue;
      if (++in_tile < input_.tile_rows) {
        source += input_.row_pitch;
      } else {
        in_tile = 0;
        source += next_tile;
      }
    }
  }

  /// Zeros before and after the `count` elements of a stream.
  template <class Arch, class Scalar>
  void clear_around(Scalar* stream, index_t count) const noexcept {
    using Batch = xsimd::batch<Scalar, Arch>;
    constexpr auto lanes = static_cast<index_t>(Batch::size);
    const Batch zero(Scalar{0});
    for (index_t x = 0; x < stream_margin_; x += lanes) zero.store_aligned(stream + x);
    for (index_t x = (stream_margin_ + count) / lanes * lanes; x < stream_pitch_; x += lanes)
      zero.store_aligned(stream + x);
  }

  /// Where the run of horizontal tap `kx` starts in the streams of a row.
  [[nodiscard]] index_t run_of(index_t kx) const noexcept {
    const index_t step = shape_.stride.w;
    const index_t shift = kx * shape_.dilation.w - shape_.padding.w;
    const index_t start = shift >= 0 ? shift / step : -ceil_div(-shift, step);
    return (shift - start * step) * stream_pitch_ + stream_margin_ + start;
  }

  /// Every panel row of one channel, from its streams, which lie at `scratch`.
  template <class Arch, class Scalar>
  void fill_rows(const Scalar* input, index_t image, index_t channel, index_t top, Scalar* target,
                 Scalar* scratch) const noexcept {
    using Batch = xsimd::batch<Scalar, Arch>;
    constexpr auto lanes = static_cast<index_t>(Batch::size);
    const index_t row_size = shape_.stride.w * stream_pitch_;
    const index_t pitch = output_.row_pitch;
    split_rows<Arch>(input, image, channel, top, scratch);
    for (index_t kx = 0; kx < shape_.kernel.w; ++kx) {
      const Scalar* const run = scratch + run_of(kx);
      for (index_t phase = 0; phase < shape_.stride.h; ++phase) {
        const Scalar* source = run + phase * row_size;
        for (index_t q = rows_of_phase(phase); q > 0; --q, target += pitch, source += shape_.stride.h * row_size)
          for (index_t x = 0; x < pitch; x += lanes) Batch::load_unaligned(source + x).store_aligned(target + x);
      }
    }
  }

  /// The columns of a column panel, each a tile of its own.
  template <class Arch, class Scalar>
  void fill_columns(const Scalar* input, index_t tile, index_t image, index_t top, index_t base, index_t first,
                    index_t count, Scalar* panel) const noexcept {
    using Batch = xsimd::batch<Scalar, Arch>;
    constexpr auto lanes = static_cast<index_t>(Batch::size);
    const index_t rest = output_.batch - image;
    const index_t images = rest < output_.images_per_tile ? rest : output_.images_per_tile;
    const index_t row_size = shape_.stride.w * stream_pitch_;
    Scalar* const scratch = panel + panel_size_;
    index_t in_scratch = -1;  // the channel whose streams are there
    for (index_t c = 0; c < count; ++c, panel += output_.tile_pitch) {
      const index_t tap = (first + c) % shape_.taps();
      const index_t channel = base + (first + c) / shape_.taps();
      const index_t down = tap / shape_.kernel.w * shape_.dilation.h;
      const index_t kx = tap % shape_.kernel.w;
      if (same_tiles_) {
        const index_t shift = (down - shape_.padding.h) * output_.row_pitch + kx * shape_.dilation.w - shape_.padding.w;
        copy_tile<Arch>(input + tile * input_.tile_size() + channel * input_.tile_pitch + shift,
                        scratch + tap * output_.tile_pitch, panel);
        continue;
      }
      if (channel != in_scratch)
        for (index_t slot = 0; slot < images; ++slot)
          split_rows<Arch>(input, image + slot, channel, top, scratch + slot * split_rows_ * row_size);
      in_scratch = channel;
      const Scalar* run = scratch + run_of(kx) + down * row_size;
      // Vectors hang over the end of a packed row; what comes after it is written later.
      for (index_t slot = 0; slot < images; ++slot, run += split_rows_ * row_size)
        for (index_t y = 0; y < output_.tile_rows; ++y) {
          const Scalar* const source = run + y * shape_.stride.h * row_size;
          Scalar* const target = panel + (slot * output_.height + y) * output_.row_pitch;
          for (index_t x = 0; x < output_.width; x += lanes)
            Batch::load_unaligned(source + x).store_unaligned(target + x);
        }
    }
  }

  ConvolutionShape shape_;
  TileLayout input_;
  TileLayout output_;
  index_t lanes_;
  bool column_panel_ = false;
  bool same_rows_ = false;               ///< stride 1, and input rows are as far apart as panel rows
  bool same_tiles_ = false;              ///< and tiles are whole pictures, the same ones in input and output
  std::array<index_t, 8> phase_rows_{};  ///< of the first phases; strides beyond are rare and count anew
  index_t rows_ = 0;                     ///< panel rows per channel and horizontal tap
  index_t tap_pitch_ = 0;                ///< elements per horizontal tap
  index_t channel_pitch_ = 0;            ///< elements per channel
  index_t panel_size_ = 0;               ///< elements without the streams behind them
  index_t stream_margin_ = 0;            ///< zeros before a stream
  index_t stream_pitch_ = 0;             ///< from a stream to the next one
  index_t split_rows_ = 0;               ///< input rows that a tile touches in one picture
  index_t size_ = 0;
};

}  // namespace strata::kernels
