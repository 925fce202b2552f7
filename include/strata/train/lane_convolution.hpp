// Convolution of pictures that lie in lanes (train/lanes.hpp), forwards and backwards, with dense or with sparse
// weights: borders, strides, masks and the cutting of the work into parts. The inner loops are in
// train/lane_kernels.hpp.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include <xsimd/xsimd.hpp>

#include <strata/layers/options.hpp>
#include <strata/train/lane_kernels.hpp>
#include <strata/train/lanes.hpp>
#include <strata/train/parameter.hpp>
#include <strata/train/tape.hpp>

namespace strata::train {

/// Share of a convolution's weights at a level up to which it is computed with sparse kernels. Measured on Zen 3 with
/// ResNet-20 and ResNet-50 for 32x32 pictures: the whole step costs as much as the dense one at 60 to 70 %
/// (benchmarks/training_step, --weights and --flops).
inline constexpr double sparse_density = 0.6;

namespace detail {

/// A tap of the kernel and the source pixel that it meets at output pixel 0.
struct LaneTap {
  index_t tap = 0;
  Pair shift = 0;
};

/// Output pixels `first + step * (y, x)` for (y, x) within `extent`, whose inputs through each tap are the source
/// pixels `scale * (y, x) + shift`. A convolution is one sweep; its derivative by the input one for each phase of the
/// stride.
struct LaneSweep {
  Pair scale = 1;
  Pair first = 0;
  Pair step = 1;
  Pair extent = 0;
  std::vector<LaneTap> taps;
  Pair low = 0;  ///< smallest and largest shifts
  Pair high = 0;

  void find_bounds() noexcept {
    if (taps.empty()) return;
    low = high = taps.front().shift;
    for (const LaneTap& tap : taps) {
      low = {std::min(low.h, tap.shift.h), std::min(low.w, tap.shift.w)};
      high = {std::max(high.h, tap.shift.h), std::max(high.w, tap.shift.w)};
    }
  }
};

[[nodiscard]] inline std::vector<LaneSweep> forward_sweeps(const Conv2dOptions& options, Shape out) {
  LaneSweep sweep;
  sweep.scale = options.stride;
  sweep.extent = {out.height, out.width};
  for (index_t ky = 0; ky < options.kernel.h; ++ky)
    for (index_t kx = 0; kx < options.kernel.w; ++kx)
      sweep.taps.push_back(
          {ky * options.kernel.w + kx,
           {ky * options.dilation.h - options.padding.h, kx * options.dilation.w - options.padding.w}});
  sweep.find_bounds();
  return {sweep};
}

[[nodiscard]] inline std::vector<LaneSweep> backward_sweeps(const Conv2dOptions& options, Shape in) {
  std::vector<LaneSweep> sweeps;
  const Pair stride = options.stride;
  for (index_t py = 0; py < std::min(stride.h, in.height); ++py)
    for (index_t px = 0; px < std::min(stride.w, in.width); ++px) {
      LaneSweep sweep;
      sweep.first = {py, px};
      sweep.step = stride;
      sweep.extent = {ceil_div(in.height - py, stride.h), ceil_div(in.width - px, stride.w)};
      for (index_t ky = 0; ky < options.kernel.h; ++ky)
        for (index_t kx = 0; kx < options.kernel.w; ++kx) {
          const index_t y = py + options.padding.h - ky * options.dilation.h;
          const index_t x = px + options.padding.w - kx * options.dilation.w;
          if (y % stride.h == 0 && x % stride.w == 0)
            sweep.taps.push_back({ky * options.kernel.w + kx, {y / stride.h, x / stride.w}});
        }
      sweep.find_bounds();
      sweeps.push_back(std::move(sweep));
    }
  return sweeps;
}

/// The rectangle of source pixels that lines of a sweep meet, with zeros where there is no picture.
struct SweepWindow {
  Shape source;
  Pair scale = 1;
  Pair low = 0;
  Pair reach = 1;  ///< source pixels that the taps of one output pixel span
  index_t width = 1;

  SweepWindow() = default;
  SweepWindow(const LaneSweep& sweep, Shape picture)
      : source(picture), scale(sweep.scale), low(sweep.low), reach(sweep.high.h - sweep.low.h + 1, 0) {
    reach.w = sweep.high.w - sweep.low.w + 1;
    width = (sweep.extent.w - 1) * scale.w + reach.w;
  }

  /// Rows of source pixels for so many lines of output.
  [[nodiscard]] index_t rows(index_t lines) const noexcept { return (lines - 1) * scale.h + reach.h; }
  /// Calls `f(row, first column, count, first source pixel, or -1 for zeros)` for the pixels of all rows of output
  /// lines first .. last-1.
  template <class F>
  void for_spans(index_t first, index_t last, F&& f) const {
    const index_t left = std::clamp<index_t>(-low.w, 0, width);
    const index_t from = std::max<index_t>(low.w, 0);
    const index_t inside = std::clamp<index_t>(source.width - from, 0, width - left);
    const auto span = [&](index_t row, index_t column, index_t count, index_t pixel) {
      if (count > 0) f(row, column, count, pixel);
    };
    for (index_t row = 0; row < rows(last - first); ++row) {
      const index_t y = first * scale.h + low.h + row;
      if (y < 0 || y >= source.height) {
        span(row, 0, width, -1);
        continue;
      }
      span(row, 0, left, -1);
      span(row, left, inside, y * source.width + from);
      span(row, left + inside, width - left - inside, -1);
    }
  }
};

/// Where a sweep finds its inputs, a few blocks of the source's channels at a time: in the source itself, or, where
/// taps reach beyond the picture, in a panel of some lines with zeros around them.
class LaneWindow {
 public:
  /// What the inputs of the lines that are done together, and the outputs that wait for further blocks of channels, may
  /// take: about half of an L2 cache.
  static constexpr index_t budget_bytes = index_t{512} << 10U;

  /// `blocks` of the source at a time; `waiting`: output channels that are read and written again for every one.
  LaneWindow(const LaneSweep& sweep, Shape source, const LaneLayout& layout, index_t blocks, index_t waiting,
             index_t element_bytes)
      : sweep_(sweep), window_(sweep, source), layout_(layout), blocks_(std::min(blocks, layout.blocks())) {
    const index_t last_y = (sweep.extent.h - 1) * sweep.scale.h + sweep.high.h;
    const index_t last_x = (sweep.extent.w - 1) * sweep.scale.w + sweep.high.w;
    direct_ = sweep.low.h >= 0 && sweep.low.w >= 0 && last_y < source.height && last_x < source.width;
    width_ = direct_ ? source.width : window_.width;
    pixel_ = layout.block * layout.lanes;
    const index_t reach = window_.reach.h;
    const index_t row = width_ * blocks_ * pixel_ * element_bytes;
    const index_t line = sweep.scale.h * row + sweep.extent.w * waiting * layout.lanes * element_bytes;
    const index_t most = std::max<index_t>((budget_bytes - (reach - sweep.scale.h) * row) / line, 1);
    lines_ = std::max<index_t>(ceil_div(sweep.extent.h, ceil_div(sweep.extent.h, most)), 1);
    rows_ = direct_ ? source.height : window_.rows(lines_);
    block_step_ = rows_ * width_ * pixel_;
    const Pair origin = direct_ ? Pair(0) : sweep.low;
    for (index_t block = 0; block < blocks_; ++block)
      for (const LaneTap& tap : sweep.taps)
        starts_.push_back(block * block_step_ + ((tap.shift.h - origin.h) * width_ + tap.shift.w - origin.w) * pixel_);
  }

  /// Lines of output at a time, and how many such pieces there are.
  [[nodiscard]] index_t lines() const noexcept { return lines_; }
  [[nodiscard]] index_t pieces() const noexcept { return ceil_div(sweep_.extent.h, lines_); }
  [[nodiscard]] index_t panel_size() const noexcept { return direct_ ? 0 : blocks_ * block_step_; }
  /// Blocks of channels at a time, and how many times that makes.
  [[nodiscard]] index_t blocks() const noexcept { return blocks_; }
  [[nodiscard]] index_t passes() const noexcept { return ceil_div(layout_.blocks(), blocks_); }
  /// Where (block of a pass, tap) starts, blocks outermost.
  [[nodiscard]] const std::vector<index_t>& starts() const noexcept { return starts_; }
  [[nodiscard]] index_t line_step() const noexcept { return sweep_.scale.h * width_ * pixel_; }
  [[nodiscard]] index_t pixel_step() const noexcept { return sweep_.scale.w * pixel_; }

  /// The inputs of lines first .. last-1 of group `group` of the pictures at `source`, for the blocks of `pass`.
  template <class Scalar>
  [[nodiscard]] const Scalar* inputs(const Scalar* source, index_t group, index_t first, index_t last, index_t pass,
                                     Scalar* panel) const noexcept {
    source += group * layout_.group_step() + pass * blocks_ * layout_.block_step();
    if (direct_) return source + first * line_step();
    const index_t blocks = std::min(blocks_, layout_.blocks() - pass * blocks_);
    for (index_t block = 0; block < blocks; ++block)
      window_.for_spans(first, last, [&](index_t row, index_t column, index_t count, index_t pixel) {
        Scalar* const to = panel + block * block_step_ + (row * width_ + column) * pixel_;
        if (pixel < 0) {
          std::fill_n(to, count * pixel_, Scalar{0});
        } else {
          std::copy_n(source + block * layout_.block_step() + pixel * pixel_, count * pixel_, to);
        }
      });
    return panel;
  }

 private:
  const LaneSweep& sweep_;
  SweepWindow window_;
  LaneLayout layout_;
  index_t blocks_ = 1;
  bool direct_ = false;
  index_t width_ = 1;
  index_t rows_ = 1;
  index_t lines_ = 1;
  index_t pixel_ = 1;
  index_t block_step_ = 0;
  std::vector<index_t> starts_;
};

/// The non-zeros of one sweep, part by part of the source's channels, so that a tile of pixels of a part stays in the
/// L1 cache. Made from a mask and found again while the mask stays the same.
struct LaneMask {
  Pair phase = 0;               ///< of the sweep (its `first`), which tells its taps
  std::vector<index_t> window;  ///< of the sweep's window: what offsets were made for
  index_t parts = 0;
  std::vector<std::uint32_t> starts;   ///< rows + 1 for every part
  std::vector<std::uint32_t> offsets;  ///< of inputs
  std::vector<std::uint32_t> weights;  ///< which weight it is

  /// The most non-zeros of a part.
  [[nodiscard]] index_t largest_part(index_t rows) const noexcept {
    index_t largest = 0;
    for (index_t part = 0; part < parts; ++part) {
      const std::uint32_t* const first = starts.data() + part * (rows + 1);
      largest = std::max(largest, static_cast<index_t>(first[rows] - first[0]));
    }
    return largest;
  }
};

/// What a mask says at one level, in both directions.
struct LaneMasks {
  std::vector<std::uint8_t> strata;  ///< the mask
  bool sparse = false;               ///< few enough non-zeros for the kernels below
  std::vector<LaneMask> forward, backward;
};

/// A convolution's geometry and the arrangement of its weights; all that its passes share.
template <class Scalar>
class LaneConvolution {
 public:
  using Arch = xsimd::default_arch;
  static constexpr index_t lanes = lanes_of<Scalar>;
  static constexpr index_t parts = Context<Scalar>::parts;

  LaneConvolution(Context<Scalar>& context, const Tensor<Scalar>& x, Parameter<Scalar>& weight,
                  const Conv2dOptions& options, const Tensor<Scalar>& y)
      : x_(x),
        y_(y),
        weight_(weight),
        level_(context.level),
        taps_(options.kernel.h * options.kernel.w),
        in_(x.lane_layout()),
        out_(y.lane_layout()) {
    Shape in = x.shape();
    Shape out = y.shape();
    if (options.pointwise() && in.width < 16 && in.width * in.height <= 256) {  // one long line instead of short ones
      in = {in.channels, 1, in.width * in.height};
      out = {out.channels, 1, out.width * out.height};
    }
    in_shape_ = in;
    out_shape_ = out;
    forward_ = forward_sweeps(options, out);
    if (context.training && x.needs_gradient()) backward_ = backward_sweeps(options, in);
    find_density(context);
    constexpr auto bytes = static_cast<index_t>(sizeof(Scalar));
    const auto add_window = [&](const LaneSweep& sweep, bool ahead, Windows& windows) {
      const LaneLayout& source = ahead ? in_ : out_;
      if (masks_ && masks_->sparse) {
        // Several blocks at once only where their offsets fit the masks' 32 bits.
        const bool several = sweep.taps.size() <= 1 && 4 * source.block_step() <= index_t{0xFFFFFFFF};
        windows.emplace_back(sweep, ahead ? in : out, source, several ? 4 : 1, (ahead ? out_ : in_).channels, bytes);
      } else {
        windows.emplace_back(sweep, ahead ? in : out, source, source.blocks(), 0, bytes);
      }
    };
    for (const LaneSweep& sweep : forward_) add_window(sweep, true, forward_windows_);
    for (const LaneSweep& sweep : backward_) add_window(sweep, false, backward_windows_);
    gradient_window_.emplace_back(forward_.front(), in, in_, 1, turned_rows(), bytes);
    if (masks_ && masks_->sparse) {
      // A layer that runs on pictures of another size in the same pass still needs the masks that it made.
      if (!suit(forward_, forward_windows_, masks_->forward) || !suit(backward_, backward_windows_, masks_->backward)) {
        masks_ = std::make_shared<LaneMasks>(*masks_);
        context.cached({&weight_, level_.index}) = masks_;
      }
      make_masks(context, forward_, forward_windows_, in_, true, masks_->forward);
      make_masks(context, backward_, backward_windows_, out_, false, masks_->backward);
    }
    arrange(context, forward_, forward_windows_, true, forward_weights_);
    arrange(context, backward_, backward_windows_, false, backward_weights_);
  }

  void run(Context<Scalar>& context) const {
    apply(context, x_.lanes(), in_, forward_, forward_windows_, masks_ ? masks_->forward : none_, forward_weights_,
          y_.lanes(), out_, out_shape_, false);
  }

  void run_back(Context<Scalar>& context) const {
    const Scalar* const dy = y_.whole_lane_gradient();
    if (masks_ && masks_->sparse) {
      sparse_weight_gradient(context, dy);
    } else {
      weight_gradient(context, dy);
    }
    if (!x_.needs_gradient()) return;
    const auto dx = x_.lane_gradient();
    apply(context, dy, out_, backward_, backward_windows_, masks_ ? masks_->backward : none_, backward_weights_,
          dx.data, in_, in_shape_, !dx.fresh);
  }

 private:
  using Weights = std::vector<typename Parameter<Scalar>::Array>;  ///< of each sweep
  using Windows = std::vector<LaneWindow>;

  [[nodiscard]] index_t weight_at(index_t out_channel, index_t in_channel, index_t tap) const noexcept {
    return (out_channel * in_.channels + in_channel) * taps_ + tap;
  }

  /// Rows of gradients that are turned round at a time, to meet all inputs: all of them, since panels are expensive to
  /// make again, or a block where one tap meets inputs that lie as they are needed.
  [[nodiscard]] index_t turned_rows() const noexcept { return taps_ > 1 ? out_.channels : out_.block; }

  /// The masks of the last pass if they still hold, else new ones.
  void find_density(Context<Scalar>& context) {
    if (weight_.strata.empty()) return;
    auto& cached = context.cached({&weight_, level_.index});
    auto masks = std::static_pointer_cast<LaneMasks>(cached);
    if (!masks || masks->strata != weight_.strata) {
      masks = std::make_shared<LaneMasks>();
      masks->strata = weight_.strata;
      index_t count = 0;
      for (index_t i = 0; i < weight_.value.size(); ++i) count += weight_.contains(i, level_) ? 1 : 0;
      masks->sparse = static_cast<double>(count) <= sparse_density * static_cast<double>(weight_.value.size());
      cached = masks;
    }
    // Masks have offsets of 32 bits within a block of channels; the dense product takes larger ones.
    if (masks->sparse && std::max(in_.block_step(), out_.block_step()) > index_t{0xFFFFFFFF}) return;
    masks_ = std::move(masks);
  }

  /// Whether `mask` was made for that sweep of pictures of that size.
  [[nodiscard]] static bool suits(const LaneMask& mask, const LaneSweep& sweep, const LaneWindow& window) {
    return mask.phase == sweep.first && mask.window == window.starts();
  }

  /// Whether no mask that was made is for other sweeps or windows.
  [[nodiscard]] static bool suit(const std::vector<LaneSweep>& sweeps, const Windows& windows,
                                 const std::vector<LaneMask>& masks) {
    for (std::size_t s = 0; s < std::min(windows.size(), masks.size()); ++s)
      if (masks[s].parts != 0 && !suits(masks[s], sweeps[s], windows[s])) return false;
    return true;
  }

  void make_masks(Context<Scalar>& context, const std::vector<LaneSweep>& sweeps, const Windows& windows,
                  const LaneLayout& source, bool forward, std::vector<LaneMask>& masks) const {
    if (masks.size() < sweeps.size()) masks.resize(sweeps.size());
    context.parallel_for(static_cast<index_t>(sweeps.size()), [&](index_t s) {
      const auto at = static_cast<std::size_t>(s);
      if (masks[at].parts == 0 || !suits(masks[at], sweeps[at], windows[at]))
        masks[at] = make_mask(sweeps[at], windows[at], source, forward);
    });
  }

  [[nodiscard]] LaneMask make_mask(const LaneSweep& sweep, const LaneWindow& window, const LaneLayout& source,
                                   bool forward) const {
    LaneMask mask;
    mask.phase = sweep.first;
    mask.window = window.starts();
    const auto taps = static_cast<index_t>(sweep.taps.size());
    const index_t rows = forward ? out_.channels : in_.channels;
    mask.parts = window.passes();
    for (index_t part = 0; part < mask.parts; ++part) {
      const index_t first_block = part * window.blocks();
      const index_t last_block = std::min(first_block + window.blocks(), source.blocks());
      for (index_t row = 0; row < rows; ++row) {
        mask.starts.push_back(static_cast<std::uint32_t>(mask.weights.size()));
        for (index_t block = first_block; block < last_block; ++block)
          for (index_t k = 0; k < source.block; ++k)
            for (index_t t = 0; t < taps; ++t) {
              const index_t column = block * source.block + k;
              const index_t tap = sweep.taps[static_cast<std::size_t>(t)].tap;
              const index_t i = forward ? weight_at(row, column, tap) : weight_at(column, row, tap);
              if (!weight_.contains(i, level_)) continue;
              mask.weights.push_back(static_cast<std::uint32_t>(i));
              mask.offsets.push_back(static_cast<std::uint32_t>(
                  window.starts()[static_cast<std::size_t>((block - first_block) * taps + t)] + k * source.lanes));
            }
      }
      mask.starts.push_back(static_cast<std::uint32_t>(mask.weights.size()));
    }
    return mask;
  }

  /// Packs the weights of every sweep for the dense product, those above the level as zeros, or collects the non-zeros.
  void arrange(Context<Scalar>& context, const std::vector<LaneSweep>& sweeps, const Windows& windows, bool forward,
               Weights& arranged) const {
    const LaneLayout& source = forward ? in_ : out_;
    const index_t rows = forward ? out_.channels : in_.channels;
    for (std::size_t s = 0; s < sweeps.size(); ++s) {
      auto& values = arranged.emplace_back();
      if (masks_ && masks_->sparse) {
        const LaneMask& mask = (forward ? masks_->forward : masks_->backward)[s];
        values.resize(static_cast<index_t>(mask.weights.size()));
        context.for_parts(values.size(), [&](index_t, index_t first, index_t last) {
          for (index_t i = first; i < last; ++i)
            values[i] = weight_.value[static_cast<index_t>(mask.weights[static_cast<std::size_t>(i)])];
        });
        continue;
      }
      const auto taps = static_cast<index_t>(sweeps[s].taps.size());
      const auto columns = static_cast<index_t>(windows[s].starts().size()) * source.block;
      values.resize(kernels::lane_packed_size<Arch, Scalar>(rows, columns));
      constexpr index_t tile = kernels::lane_row_tile<Scalar, Arch>;
      context.for_parts(ceil_div(rows, tile), [&](index_t, index_t first, index_t last) {
        for (index_t row = first * tile; row < last * tile; ++row)
          for (index_t block = 0; block < source.blocks(); ++block)
            for (index_t t = 0; t < taps; ++t)
              for (index_t k = 0; k < source.block; ++k) {
                Scalar& value =
                    values[kernels::lane_packed_at<Arch, Scalar>(row, (block * taps + t) * source.block + k, columns)];
                value = Scalar{0};
                if (row >= rows) continue;
                const index_t tap = sweeps[s].taps[static_cast<std::size_t>(t)].tap;
                const index_t column = block * source.block + k;
                const index_t i = forward ? weight_at(row, column, tap) : weight_at(column, row, tap);
                if (weight_.contains(i, level_)) value = weight_.value[i];
              }
      });
    }
  }

  /// All sweeps of one direction: target = (or +=) weights x source.
  void apply(Context<Scalar>& context, const Scalar* source, const LaneLayout& source_layout,
             const std::vector<LaneSweep>& sweeps, const Windows& windows, const std::vector<LaneMask>& masks,
             const Weights& weights, Scalar* target, const LaneLayout& target_layout, Shape target_shape,
             bool add) const {
    const bool sparse = masks_ && masks_->sparse;
    for (std::size_t s = 0; s < sweeps.size(); ++s) {
      const LaneSweep& sweep = sweeps[s];
      const LaneWindow& window = windows[s];
      if (sweep.extent.h < 1 || sweep.extent.w < 1) continue;
      const index_t pixel = target_layout.block * lanes;
      kernels::LaneOutput<Scalar> whole;
      whole.line_step = sweep.step.h * target_shape.width * pixel;
      whole.pixel_step = sweep.step.w * pixel;
      whole.rows = target_layout.channels;
      whole.block = target_layout.block;
      whole.block_step = target_layout.block_step();
      whole.pixels = sweep.extent.w;
      context.for_parts(source_layout.groups * window.pieces(), [&](index_t part, index_t first, index_t last) {
        Scalar* const panel = context.scratch(part, window.panel_size());
        for (index_t unit = first; unit < last; ++unit) {
          const index_t group = unit / window.pieces();
          const index_t begin = unit % window.pieces() * window.lines();
          const index_t end = std::min(begin + window.lines(), sweep.extent.h);
          kernels::LaneOutput<Scalar> output = whole;
          output.lines = end - begin;
          output.target = target + group * target_layout.group_step() + begin * whole.line_step +
                          (sweep.first.h * target_shape.width + sweep.first.w) * pixel;
          if (sparse) {
            const LaneMask& mask = masks[s];
            for (index_t k = 0; k < mask.parts; ++k)
              kernels::lane_sparse_product<Arch>(
                  window.inputs(source, group, begin, end, k, panel), window.line_step(), window.pixel_step(),
                  {mask.starts.data() + k * (output.rows + 1), mask.offsets.data(), weights[s].data()}, output,
                  add || k > 0);
            continue;
          }
          const kernels::LaneInput<Scalar> input{window.inputs(source, group, begin, end, 0, panel),
                                                 window.line_step(),
                                                 window.pixel_step(),
                                                 window.starts().data(),
                                                 static_cast<index_t>(window.starts().size()),
                                                 source_layout.block};
          if (add) {
            kernels::lane_product<Arch, true>(input, weights[s].data(), output);
          } else {
            kernels::lane_product<Arch, false>(input, weights[s].data(), output);
          }
        }
      });
    }
  }

  /// Calls `f(part, dy, inputs, scratch)` for every piece of the forward sweep, the parts side by side; `inputs(pass)`
  /// are those of a pass of `window` over its channels.
  template <class F>
  void for_gradient_pieces(Context<Scalar>& context, const LaneWindow& window, const Scalar* dy, index_t extra_scratch,
                           F&& f) const {
    const LaneSweep& sweep = forward_.front();
    const Scalar* const x = x_.lanes();
    const index_t pixel = out_.block * lanes;
    context.for_parts(in_.groups * window.pieces(), [&](index_t part, index_t first, index_t last) {
      Scalar* const panel = context.scratch(part, window.panel_size() + extra_scratch);
      for (index_t unit = first; unit < last; ++unit) {
        const index_t group = unit / window.pieces();
        const index_t begin = unit % window.pieces() * window.lines();
        const index_t end = std::min(begin + window.lines(), sweep.extent.h);
        kernels::LaneOutput<const Scalar> output;
        output.line_step = out_shape_.width * pixel;
        output.pixel_step = pixel;
        output.rows = out_.channels;
        output.block = out_.block;
        output.block_step = out_.block_step();
        output.lines = end - begin;
        output.pixels = sweep.extent.w;
        output.target = dy + group * out_.group_step() + begin * output.line_step;
        const auto inputs = [&](index_t pass) { return window.inputs(x, group, begin, end, pass, panel); };
        f(part, output, inputs, panel + window.panel_size());
      }
    });
  }

  void weight_gradient(Context<Scalar>& context, const Scalar* dy) const {
    const LaneWindow& window = gradient_window_.front();
    const auto taps = static_cast<index_t>(forward_.front().taps.size());
    const index_t rows = out_.channels;
    const index_t columns = in_.channels * taps;
    Scalar* const sums = context.scratch(parts, parts * rows * columns);
    std::fill_n(sums, parts * rows * columns, Scalar{0});
    const index_t most_pixels = window.lines() * forward_.front().extent.w;
    for_gradient_pieces(
        context, window, dy, kernels::lane_turned_size<Arch, Scalar>(turned_rows(), most_pixels),
        [&](index_t part, kernels::LaneOutput<const Scalar> output, const auto& inputs, Scalar* turned) {
          output.rows = turned_rows();
          for (index_t row = 0; row < rows; row += output.rows, output.target += output.block_step) {
            kernels::lane_turn<Arch>(output, turned);
            for (index_t pass = 0; pass < window.passes(); ++pass)
              kernels::lane_weight_gradient<Arch>(
                  {inputs(pass), window.line_step(), window.pixel_step(), window.starts().data(), taps, in_.block},
                  kernels::LaneTurned<Scalar>{turned, output.rows, output.lines, output.pixels},
                  sums + (part * columns + pass * taps * in_.block) * rows + row, rows);
          }
        });
    // The parts are added in order, whoever does it.
    context.for_parts(columns, [&](index_t, index_t first, index_t last) {
      for (index_t column = first; column < last; ++column) {
        const index_t k = column % in_.block;
        const index_t t = column / in_.block % taps;
        const index_t channel = column / in_.block / taps * in_.block + k;
        for (index_t row = 0; row < rows; ++row) {
          const index_t i = weight_at(row, channel, forward_.front().taps[static_cast<std::size_t>(t)].tap);
          if (!weight_.contains(i, level_)) continue;
          Scalar sum{0};
          for (index_t part = 0; part < parts; ++part) sum += sums[(part * columns + column) * rows + row];
          weight_.gradient[i] += sum;
        }
      }
    });
  }

  void sparse_weight_gradient(Context<Scalar>& context, const Scalar* dy) const {
    using Batch = xsimd::batch<Scalar, Arch>;
    const LaneWindow& window = forward_windows_.front();
    const LaneMask& mask = masks_->forward.front();
    const index_t rows = out_.channels;
    const auto count = static_cast<index_t>(mask.weights.size());
    Scalar* const sums = context.scratch(parts, parts * count);
    std::fill_n(sums, parts * count, Scalar{0});
    for_gradient_pieces(
        context, window, dy, mask.largest_part(rows) * lanes,
        [&](index_t part, const kernels::LaneOutput<const Scalar>& output, const auto& inputs, Scalar* products) {
          for (index_t pass = 0; pass < window.passes(); ++pass) {
            const std::uint32_t* const starts = mask.starts.data() + pass * (rows + 1);
            std::fill_n(products, static_cast<index_t>(starts[rows] - starts[0]) * lanes, Scalar{0});
            kernels::lane_sampled_product<Arch, Scalar>(inputs(pass), window.line_step(), window.pixel_step(),
                                                        {starts, mask.offsets.data(), nullptr}, output, products);
            for (index_t i = starts[0]; i < static_cast<index_t>(starts[rows]); ++i)
              sums[part * count + i] += xsimd::hadd(Batch::load_aligned(products + (i - starts[0]) * lanes));
          }
        });
    context.for_parts(count, [&](index_t, index_t first, index_t last) {
      for (index_t i = first; i < last; ++i) {
        Scalar sum{0};
        for (index_t part = 0; part < parts; ++part) sum += sums[part * count + i];
        weight_.gradient[static_cast<index_t>(mask.weights[static_cast<std::size_t>(i)])] += sum;
      }
    });
  }

  Tensor<Scalar> x_, y_;
  Parameter<Scalar>& weight_;
  Level level_;
  index_t taps_;
  LaneLayout in_, out_;
  Shape in_shape_, out_shape_;
  std::vector<LaneSweep> forward_, backward_;
  Windows forward_windows_, backward_windows_;
  Windows gradient_window_;  ///< one, of the forward sweep: a block of inputs at a time for a block of gradients
  std::shared_ptr<LaneMasks> masks_;
  std::vector<LaneMask> none_;
  Weights forward_weights_, backward_weights_;
};

/// Whether a convolution of `x` to `out` is done in lanes: whole vectors of pictures, and pixels enough to share a
/// weight.
template <class Scalar>
[[nodiscard]] bool suits_lanes(const Tensor<Scalar>& x, const Conv2dOptions& options, Shape out) noexcept {
  return Tensor<Scalar>::fits_lanes(x.batch()) && options.groups == 1 && out.height * out.width >= 4;
}

}  // namespace detail

}  // namespace strata::train
