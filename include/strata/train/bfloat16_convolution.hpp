// Convolution of pictures in lanes with operands rounded to bfloat16, forwards and backwards: the twin of
// train/lane_convolution.hpp for machines that multiply such numbers several times faster. Activations on the tape
// and their gradients are stored as such numbers too; weights, their gradients and sums stay single precision. Weights
// that a level lacks count as zeros: there is no sparse path.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include <strata/layers/options.hpp>
#include <strata/train/bfloat16_kernels.hpp>
#include <strata/train/lane_convolution.hpp>
#include <strata/train/lanes.hpp>
#include <strata/train/parameter.hpp>
#include <strata/train/tape.hpp>

namespace strata::train {

namespace detail {

/// What inputs, arranged for a product, of the lines that are done together may take: half of an L2 cache.
inline constexpr index_t bfloat16_budget = (index_t{512} << 10U) / static_cast<index_t>(sizeof(kernels::bfloat16));

/// The most lines of output, of `extent`, whose source rows of `row_size` elements stay within the budget; about equal
/// pieces.
[[nodiscard]] inline index_t lines_within_budget(const SweepWindow& window, index_t extent, index_t row_size) noexcept {
  const index_t rows = bfloat16_budget / std::max<index_t>(row_size, 1);
  const index_t most = std::max<index_t>((rows - window.reach.h) / window.scale.h + 1, 1);
  return extent < 1 ? 1 : ceil_div(extent, ceil_div(extent, most));
}

/// A sweep's inputs as `kernels::bfloat16_product` reads them: all channels of a pixel side by side in pairs, and
/// blocks of 32 of them that go through taps next to each other.
class PairedInputs {
 public:
  PairedInputs(const LaneSweep& sweep, Shape source, const LaneLayout& layout)
      : window_(sweep, source), layout_(layout), channels_(round_up(layout.channels, 2)) {
    pixel_step_ = channels_ * kernels::bfloat16_lanes;
    line_size_ = window_.width * pixel_step_;
    lines_ = lines_within_budget(window_, sweep.extent.h, line_size_);
    pieces_ = ceil_div(sweep.extent.h, lines_);
    for (std::size_t tap = 0; tap < sweep.taps.size(); ++tap) {
      const Pair shift = sweep.taps[tap].shift;
      const index_t start = (shift.h - sweep.low.h) * line_size_ + (shift.w - sweep.low.w) * pixel_step_;
      order_.push_back({start, static_cast<index_t>(tap)});
    }
    std::sort(order_.begin(), order_.end());
    // Taps whose pixels lie side by side are one run of inputs, cut into blocks.
    for (std::size_t first = 0; first < order_.size();) {
      std::size_t last = first + 1;
      while (last < order_.size() && order_[last].start == order_[last - 1].start + pixel_step_) ++last;
      const index_t count = static_cast<index_t>(last - first) * channels_;
      for (index_t k = 0; k < count; k += kernels::bfloat16_depth) {
        starts_.push_back(order_[first].start + k * kernels::bfloat16_lanes);
        blocks_.push_back({static_cast<index_t>(first), k, count});
      }
      first = last;
    }
  }

  [[nodiscard]] index_t lines() const noexcept { return lines_; }
  [[nodiscard]] index_t pieces() const noexcept { return pieces_; }
  [[nodiscard]] index_t size() const noexcept { return window_.rows(lines_) * line_size_ + kernels::bfloat16_block; }
  [[nodiscard]] index_t blocks() const noexcept { return static_cast<index_t>(blocks_.size()); }

  /// Calls `f(k, index of the tap in the sweep, channel)` for the inputs of a block.
  template <class F>
  void for_inputs(index_t block, F&& f) const {
    const Block& at = blocks_[static_cast<std::size_t>(block)];
    for (index_t k = 0; k < std::min(kernels::bfloat16_depth, at.count - at.first); ++k) {
      const index_t channel = (at.first + k) % channels_;
      if (channel < layout_.channels)
        f(k, order_[static_cast<std::size_t>(at.chain + (at.first + k) / channels_)].tap, channel);
    }
  }

  /// Arranges what lines first .. last-1 of group `group` of the pictures at `source` need in `panel`.
  template <kernels::Bfloat16Unit unit>
  [[nodiscard]] kernels::Bfloat16Input arrange(const kernels::bfloat16* source, index_t group, index_t first,
                                               index_t last, kernels::bfloat16* panel) const {
    source += group * layout_.group_step();
    window_.for_spans(first, last, [&](index_t row, index_t column, index_t count, index_t pixel) {
      kernels::bfloat16* const to = panel + row * line_size_ + column * pixel_step_;
      if (pixel < 0) {
        std::fill_n(to, count * pixel_step_, kernels::bfloat16{0});
        return;
      }
      const index_t step = layout_.block * layout_.lanes;
      for (index_t block = 0; block < layout_.blocks(); ++block)
        kernels::to_channel_pairs<unit>(source + block * layout_.block_step() + pixel * step, step, count,
                                        layout_.block, to + block * step, pixel_step_);
    });
    // The last block of a run may reach beyond it, for weights that are zero.
    std::fill_n(panel + window_.rows(last - first) * line_size_, kernels::bfloat16_block, kernels::bfloat16{0});
    return {panel, window_.scale.h * line_size_, window_.scale.w * pixel_step_, starts_.data(), blocks()};
  }

 private:
  struct Tap {
    index_t start = 0;
    index_t tap = 0;
    [[nodiscard]] auto operator<=>(const Tap&) const = default;  // NOLINT(modernize-use-nullptr): clang-tidy 14 errs
  };
  struct Block {
    index_t chain = 0;  ///< the first of its taps in `order_`
    index_t first = 0;  ///< the block's first input in the chain
    index_t count = 0;  ///< inputs of the chain
  };

  SweepWindow window_;
  LaneLayout layout_;
  index_t channels_ = 0;  ///< an even number
  index_t pixel_step_ = 0;
  index_t line_size_ = 0;
  index_t lines_ = 1;
  index_t pieces_ = 1;
  std::vector<Tap> order_;
  std::vector<index_t> starts_;
  std::vector<Block> blocks_;
};

/// The inputs of the forward sweep as `kernels::bfloat16_weight_gradient` reads them: blocks of 16 channels, in which
/// the columns that a stride leaves out of its step lie apart, so that the inputs of neighbouring outputs are
/// neighbours.
class GradientInputs {
 public:
  GradientInputs(const LaneSweep& sweep, Shape source, const LaneLayout& layout)
      : window_(sweep, source), layout_(layout), pairs_(ceil_div(sweep.extent.w, 2)) {
    const index_t scale = window_.scale.w;
    phase_width_ = ceil_div(window_.width, scale) + sweep.extent.w % 2;  // of a last pair without a second pixel
    line_size_ = phase_width_ * scale * pixel_size;
    lines_ = lines_within_budget(window_, sweep.extent.h, line_size_ * blocks());
    pieces_ = ceil_div(sweep.extent.h, lines_);
    for (const LaneTap& tap : sweep.taps)
      taps_.push_back((tap.shift.h - sweep.low.h) * line_size_ + column(tap.shift.w - sweep.low.w) * pixel_size);
    for (index_t y = 0; y < lines_; ++y)
      for (index_t pair = 0; pair < pairs_; ++pair)
        starts_.push_back(y * window_.scale.h * line_size_ + 2 * pair * pixel_size);
  }

  [[nodiscard]] index_t lines() const noexcept { return lines_; }
  [[nodiscard]] index_t pieces() const noexcept { return pieces_; }
  [[nodiscard]] index_t pairs() const noexcept { return pairs_; }  ///< of output pixels in a line
  [[nodiscard]] index_t block_step() const noexcept { return window_.rows(lines_) * line_size_; }
  [[nodiscard]] index_t size() const noexcept { return blocks() * block_step(); }
  [[nodiscard]] const std::vector<index_t>& taps() const noexcept { return taps_; }
  /// Of the pairs of all lines.
  [[nodiscard]] const index_t* starts() const noexcept { return starts_.data(); }

  /// Arranges all channels for lines first .. last-1 of group `group` of the pictures at `source` in `panel`.
  template <kernels::Bfloat16Unit unit>
  void arrange(const kernels::bfloat16* source, index_t group, index_t first, index_t last,
               kernels::bfloat16* panel) const {
    const index_t scale = window_.scale.w;
    for (index_t block = 0; block < blocks(); ++block, panel += block_step()) {
      const index_t channel = block * side;
      const kernels::bfloat16* const from = source + group * layout_.group_step() +
                                            channel / layout_.block * layout_.block_step() +
                                            channel % layout_.block * layout_.lanes;
      const index_t step = layout_.block * layout_.lanes;
      window_.for_spans(first, last, [&](index_t row, index_t begin, index_t count, index_t pixel) {
        for (index_t phase = 0; phase < std::min(scale, count); ++phase) {  // columns begin + phase, + scale, ...
          const index_t pixels = ceil_div(count - phase, scale);
          kernels::bfloat16* const to = panel + row * line_size_ + column(begin + phase) * pixel_size;
          if (pixel < 0) {
            std::fill_n(to, pixels * pixel_size, kernels::bfloat16{0});
          } else {
            kernels::to_picture_pairs<unit>(from + (pixel + phase) * step, step * scale, pixels,
                                            std::min(side, layout_.channels - channel), to);
          }
        }
      });
      // What no output meets may hold anything but what is not a number.
      for (index_t row = 0; row < window_.rows(last - first); ++row)
        for (index_t phase = 0; phase < scale; ++phase) {
          const index_t pixels = ceil_div(window_.width - phase, scale);
          std::fill_n(panel + row * line_size_ + (phase * phase_width_ + pixels) * pixel_size,
                      (phase_width_ - pixels) * pixel_size, kernels::bfloat16{0});
        }
    }
  }

 private:
  static constexpr index_t side = kernels::bfloat16_lanes;  ///< channels of a block
  static constexpr index_t pixel_size = side * kernels::bfloat16_lanes;

  [[nodiscard]] index_t blocks() const noexcept { return ceil_div(layout_.channels, side); }
  [[nodiscard]] index_t column(index_t x) const noexcept {
    return x % window_.scale.w * phase_width_ + x / window_.scale.w;
  }

  SweepWindow window_;
  LaneLayout layout_;
  index_t pairs_ = 0;
  index_t phase_width_ = 1;
  index_t line_size_ = 0;
  index_t lines_ = 1;
  index_t pieces_ = 1;
  std::vector<index_t> taps_;
  std::vector<index_t> starts_;
};

/// What the gradient of a convolution's weights needs to know about the work: pieces of the pictures, and the gradient
/// by outputs of some rows of the weights in a piece, arranged by `to_planes`.
struct WeightGradientWork {
  GradientInputs inputs;
  LaneLayout out;
  index_t width = 0, height = 0;  ///< of the outputs
  index_t pieces = 0;
  index_t side = kernels::bfloat16_rows;  ///< rows and channels that are multiplied together
  index_t chunk = 1;                      ///< lines in one sum
  index_t row_step = 0;                   ///< elements of a row of an arranged gradient
  std::vector<index_t> starts;            ///< of the pairs of all lines in it

  WeightGradientWork(const LaneSweep& sweep, Shape in_shape, const LaneLayout& in, const LaneLayout& outputs)
      : inputs(sweep, in_shape, in),
        out(outputs),
        width(sweep.extent.w),
        height(sweep.extent.h),
        pieces(in.groups * inputs.pieces()) {
    // Two blocks of channels meet two of rows; where there are none, taps share what is loaded.
    if (in.channels % (2 * side) == 0 && out.channels % (2 * side) == 0) side *= 2;
    // Sums long enough to make up for reading and writing them, short enough for what taps share to stay in the L1
    // cache.
    constexpr index_t pairs = 8;
    chunk = std::min(inputs.lines(), ceil_div(pairs, inputs.pairs()));
    // Rows an odd number of cache lines apart, lest all of them fall into the same sets.
    const index_t count = inputs.lines() * inputs.pairs();
    row_step = (count + 1 - count % 2) * kernels::bfloat16_depth;
    for (index_t pair = 0; pair < count; ++pair) starts.push_back(pair * kernels::bfloat16_depth);
  }

  [[nodiscard]] index_t group(index_t piece) const noexcept { return piece / inputs.pieces(); }
  [[nodiscard]] index_t first_line(index_t piece) const noexcept { return piece % inputs.pieces() * inputs.lines(); }
  [[nodiscard]] index_t lines(index_t piece) const noexcept {
    return std::min(inputs.lines(), height - first_line(piece));
  }
  /// Elements of an arranged gradient.
  [[nodiscard]] index_t gradient_size() const noexcept { return side * row_step; }

  template <kernels::Bfloat16Unit unit>
  void arrange_inputs(const kernels::bfloat16* x, index_t piece, kernels::bfloat16* panel) const {
    const index_t first = first_line(piece);
    inputs.template arrange<unit>(x, group(piece), first, first + lines(piece), panel);
  }
  /// Rows row .. row+count-1 of the gradient by outputs at `dy`.
  void arrange_gradient(const kernels::bfloat16* dy, index_t piece, index_t row, index_t count,
                        kernels::bfloat16* panel) const {
    const index_t pixel = out.block * out.lanes;
    const index_t line = inputs.pairs() * kernels::bfloat16_depth;
    for (index_t r = 0; r < count; r += kernels::bfloat16_rows) {
      const kernels::bfloat16* from = dy + group(piece) * out.group_step() + (row + r) / out.block * out.block_step() +
                                      (row + r) % out.block * out.lanes + first_line(piece) * width * pixel;
      kernels::bfloat16* to = panel + r * row_step;
      const index_t rows = std::min(kernels::bfloat16_rows, count - r);
      for (index_t y = 0; y < lines(piece); ++y, from += width * pixel, to += line) {
        kernels::to_planes(from, pixel, width, rows, to, row_step);
        if (width % 2 != 0)  // no second pixel
          for (index_t i = 0; i < rows; ++i)
            std::fill_n(to + i * row_step + width * out.lanes, out.lanes, kernels::bfloat16{0});
      }
    }
  }
};

/// A convolution's geometry and the arrangement of its weights; all that its passes share.
template <kernels::Bfloat16Unit unit>
class Bfloat16Convolution {
 public:
  using Scalar = float;
  using Half = kernels::bfloat16;
  static constexpr index_t parts = Context<Scalar>::parts;
  /// Bytes of a gradient by weights from which on a part of the pictures no longer has sums of its own: an L2 cache and
  /// a half. Measured with the layers of ResNet-50 for 32x32 pictures.
  static constexpr index_t sums_budget = index_t{3} << 20U;

  Bfloat16Convolution(Context<Scalar>& context, const Tensor<Scalar>& x, Parameter<Scalar>& weight,
                      const Conv2dOptions& options, const Tensor<Scalar>& y)
      : x_(x),
        y_(y),
        weight_(weight),
        level_(context.level),
        taps_(options.kernel.h * options.kernel.w),
        in_(x.lane_layout()),
        out_(y.lane_layout()),
        in_shape_(x.shape()),
        out_shape_(y.shape()) {
    const index_t largest = std::max(in_.channels, out_.channels) * in_.pixels * kernels::bfloat16_lanes;
    if (options.pointwise() && in_shape_.width < 16 &&
        largest <= bfloat16_budget) {  // one long line instead of short ones
      in_shape_ = {in_.channels, 1, in_.pixels};
      out_shape_ = {out_.channels, 1, out_.pixels};
    }
    forward_ = forward_sweeps(options, out_shape_);
    if (context.training && x.needs_gradient()) backward_ = backward_sweeps(options, in_shape_);
    for (const LaneSweep& sweep : forward_) forward_inputs_.emplace_back(sweep, in_shape_, in_);
    for (const LaneSweep& sweep : backward_) backward_inputs_.emplace_back(sweep, out_shape_, out_);
    const HalfBuffer rounded = rounded_weights(context);
    arrange_weights(context, rounded, forward_, forward_inputs_, true, forward_weights_);
    arrange_weights(context, rounded, backward_, backward_inputs_, false, backward_weights_);
  }

  void run(Context<Scalar>& context) const {
    apply(context, x_.template lanes<Half>(), in_, forward_, forward_inputs_, forward_weights_,
          y_.template lanes<Half>(), out_, out_shape_, false);
  }

  void run_back(Context<Scalar>& context) const {
    const Half* const dy = y_.template whole_lane_gradient<Half>();
    weight_gradient(context, dy);
    if (!x_.needs_gradient()) return;
    const auto dx = x_.template lane_gradient<Half>();
    apply(context, dy, out_, backward_, backward_inputs_, backward_weights_, dx.data, in_, in_shape_, !dx.fresh);
  }

 private:
  using Weights = std::vector<HalfBuffer>;  ///< of each sweep
  using Inputs = std::vector<PairedInputs>;

  [[nodiscard]] index_t weight_at(index_t out_channel, index_t in_channel, index_t tap) const noexcept {
    return (out_channel * in_.channels + in_channel) * taps_ + tap;
  }

  /// The weights, those above the level as zeros.
  [[nodiscard]] HalfBuffer rounded_weights(Context<Scalar>& context) const {
    HalfBuffer rounded = context.half_buffer(weight_.value.size());
    context.for_parts(weight_.value.size(), [&](index_t, index_t first, index_t last) {
      std::array<Scalar, 512> values;
      for (index_t i = first; i < last; i += static_cast<index_t>(values.size())) {
        const index_t count = std::min(last - i, static_cast<index_t>(values.size()));
        weight_.copy_values(i, count, level_, values.data());
        kernels::copy_stored(values.data(), count, rounded.data() + i);
      }
    });
    return rounded;
  }

  /// Packs the weights of every sweep.
  void arrange_weights(Context<Scalar>& context, const HalfBuffer& rounded, const std::vector<LaneSweep>& sweeps,
                       const Inputs& inputs, bool forward, Weights& arranged) const {
    const index_t rows = forward ? out_.channels : in_.channels;
    const index_t row_step = forward ? weight_at(1, 0, 0) : weight_at(0, 1, 0);
    for (std::size_t s = 0; s < sweeps.size(); ++s) {
      const index_t depth = inputs[s].blocks() * kernels::bfloat16_depth;
      std::vector<index_t> sources(static_cast<std::size_t>(depth), -1);  // of weights in the first row; -1: none
      for (index_t block = 0; block < inputs[s].blocks(); ++block)
        inputs[s].for_inputs(block, [&](index_t k, index_t at, index_t channel) {
          const index_t tap = sweeps[s].taps[static_cast<std::size_t>(at)].tap;
          sources[static_cast<std::size_t>(block * kernels::bfloat16_depth + k)] =
              forward ? weight_at(0, channel, tap) : weight_at(channel, 0, tap);
        });
      arranged.push_back(context.half_buffer(kernels::bfloat16_packed_size(rows, inputs[s].blocks())));
      Half* const values = arranged.back().data();
      context.for_parts(ceil_div(rows, kernels::bfloat16_rows), [&](index_t, index_t first, index_t last) {
        for (index_t row_block = first; row_block < last; ++row_block) {
          const index_t begin = row_block * kernels::bfloat16_rows;
          const index_t count = std::min(kernels::bfloat16_rows, rows - begin);
          const Half* const from = rounded.data() + begin * row_step;
          // Rows of a block innermost: either they or the inputs lie close together.
          for (index_t k = 0; k < depth; ++k) {
            const index_t source = sources[static_cast<std::size_t>(k)];
            Half* const to = values + kernels::bfloat16_packed_at(begin, k / kernels::bfloat16_depth,
                                                                  k % kernels::bfloat16_depth, inputs[s].blocks());
            for (index_t row = 0; row < kernels::bfloat16_rows; ++row)
              to[row * kernels::bfloat16_depth] = source < 0 || row >= count ? Half{0} : from[source + row * row_step];
          }
        }
      });
    }
  }

  /// All sweeps of one direction: target = (or +=) weights x source.
  void apply(Context<Scalar>& context, const Half* source, const LaneLayout& source_layout,
             const std::vector<LaneSweep>& sweeps, const Inputs& all_inputs, const Weights& weights, Half* target,
             const LaneLayout& target_layout, Shape target_shape, bool add) const {
    for (std::size_t s = 0; s < sweeps.size(); ++s) {
      const LaneSweep& sweep = sweeps[s];
      const PairedInputs& inputs = all_inputs[s];
      if (sweep.extent.h < 1 || sweep.extent.w < 1) continue;
      const index_t pixel = target_layout.block * target_layout.lanes;
      kernels::LaneOutput<Half> whole;
      whole.line_step = sweep.step.h * target_shape.width * pixel;
      whole.pixel_step = sweep.step.w * pixel;
      whole.rows = target_layout.channels;
      whole.block = target_layout.block;
      whole.block_step = target_layout.block_step();
      whole.pixels = sweep.extent.w;
      context.for_parts(source_layout.groups * inputs.pieces(), [&](index_t part, index_t first, index_t last) {
        kernels::bfloat16* const panel = context.half_scratch(part, inputs.size());
        const kernels::Bfloat16Registers<unit> registers;
        for (index_t piece = first; piece < last; ++piece) {
          const index_t group = piece / inputs.pieces();
          const index_t begin = piece % inputs.pieces() * inputs.lines();
          const index_t end = std::min(begin + inputs.lines(), sweep.extent.h);
          kernels::LaneOutput<Half> output = whole;
          output.lines = end - begin;
          output.target = target + group * target_layout.group_step() + begin * whole.line_step +
                          (sweep.first.h * target_shape.width + sweep.first.w) * pixel;
          const kernels::Bfloat16Input input = inputs.template arrange<unit>(source, group, begin, end, panel);
          if (add) {
            kernels::bfloat16_product<unit, true>(input, weights[s].data(), output);
          } else {
            kernels::bfloat16_product<unit, false>(input, weights[s].data(), output);
          }
        }
      });
    }
  }

  /// Adds to the gradient of the weights. Sums of a row are [tap][channel].
  void weight_gradient(Context<Scalar>& context, const Half* dy) const {
    const WeightGradientWork work(forward_.front(), in_shape_, in_, out_);
    const Half* const x = x_.template lanes<Half>();
    const index_t rows = out_.channels;
    const index_t columns = in_.channels * taps_;
    if (rows * columns * static_cast<index_t>(sizeof(Scalar)) > sums_budget) {
      // Every part of the rows sums over all pictures.
      HalfBuffer panels = context.half_buffer(work.pieces * work.inputs.size());
      const auto panel = [&](index_t piece) { return panels.data() + piece * work.inputs.size(); };
      context.for_parts(work.pieces, [&](index_t, index_t first, index_t last) {
        for (index_t piece = first; piece < last; ++piece) work.template arrange_inputs<unit>(x, piece, panel(piece));
      });
      Scalar* const sums = context.scratch(parts, rows * columns);
      context.for_parts(ceil_div(rows, work.side), [&](index_t part, index_t first, index_t last) {
        const index_t begin = first * work.side;
        const index_t end = std::min(last * work.side, rows);
        std::fill(sums + begin * columns, sums + end * columns, Scalar{0});
        Half* const gradient = context.half_scratch(part, work.gradient_size());
        for (index_t piece = 0; piece < work.pieces; ++piece)
          add_piece(work, dy, piece, panel(piece), begin, end, sums, gradient);
        Scalar* const line = context.scratch(part, columns);
        for (index_t row = begin; row < end; ++row) store_row(row, sums + row * columns, line);
      });
      return;
    }
    // Every part of the pictures has sums of its own, which are added in order, whoever does it.
    Scalar* const sums = context.scratch(parts, parts * rows * columns);
    context.for_parts(work.pieces, [&](index_t part, index_t first, index_t last) {
      Scalar* const part_sums = sums + part * rows * columns;
      std::fill_n(part_sums, rows * columns, Scalar{0});
      Half* const panel = context.half_scratch(part, work.inputs.size() + work.gradient_size());
      for (index_t piece = first; piece < last; ++piece) {
        work.template arrange_inputs<unit>(x, piece, panel);
        add_piece(work, dy, piece, panel, 0, rows, part_sums, panel + work.inputs.size());
      }
    });
    context.for_parts(rows, [&](index_t part, index_t first, index_t last) {
      Scalar* const line = context.scratch(part, 2 * columns);
      for (index_t row = first; row < last; ++row) {
        std::fill_n(line, columns, Scalar{0});
        for (index_t p = 0; p < parts; ++p) {
          if (p * work.pieces / parts == (p + 1) * work.pieces / parts) continue;  // had no pictures
          const Scalar* const from = sums + (p * rows + row) * columns;
          for (index_t i = 0; i < columns; ++i) line[i] += from[i];
        }
        store_row(row, line, line + columns);
      }
    });
  }

  /// Adds what a piece of the pictures, arranged in `panel`, gives to the sums of rows begin .. end-1.
  void add_piece(const WeightGradientWork& work, const Half* dy, index_t piece, const Half* panel, index_t begin,
                 index_t end, Scalar* sums, Half* gradient) const {
    const kernels::Bfloat16Registers<unit> registers;
    const index_t columns = in_.channels * taps_;
    const index_t pairs = work.inputs.pairs();
    kernels::Bfloat16Pixels pixels;
    pixels.dy = gradient;
    pixels.dy_row_step = work.row_step;
    pixels.x_step = work.inputs.block_step();
    pixels.taps = work.inputs.taps().data();
    pixels.tap_count = taps_;
    for (index_t row = begin; row < end; row += work.side) {
      const index_t rows = std::min(work.side, end - row);
      work.arrange_gradient(dy, piece, row, rows, gradient);
      for (index_t channel = 0; channel < in_.channels; channel += work.side) {
        pixels.x = panel + channel / kernels::bfloat16_lanes * work.inputs.block_step();
        for (index_t y = 0; y < work.lines(piece); y += work.chunk) {
          pixels.dy_starts = work.starts.data() + y * pairs;
          pixels.x_starts = work.inputs.starts() + y * pairs;
          pixels.pairs = std::min(work.chunk, work.lines(piece) - y) * pairs;
          kernels::bfloat16_weight_gradient<unit>(pixels, rows, std::min(work.side, in_.channels - channel),
                                                  sums + row * columns + channel, columns, in_.channels);
        }
      }
    }
  }

  /// Adds a row of sums to the gradient of the weights that the level has; `line`: room for as many.
  void store_row(index_t row, const Scalar* sums, Scalar* line) const {
    const index_t columns = in_.channels * taps_;
    if (taps_ > 1) {
      for (index_t t = 0; t < taps_; ++t) {
        const index_t tap = forward_.front().taps[static_cast<std::size_t>(t)].tap;
        for (index_t channel = 0; channel < in_.channels; ++channel)
          line[channel * taps_ + tap] = sums[t * in_.channels + channel];
      }
      sums = line;
    }
    weight_.add_to_gradient(row * columns, sums, columns, level_);
  }

  Tensor<Scalar> x_, y_;
  Parameter<Scalar>& weight_;
  Level level_;
  index_t taps_;
  LaneLayout in_, out_;
  Shape in_shape_, out_shape_;
  std::vector<LaneSweep> forward_, backward_;
  Inputs forward_inputs_, backward_inputs_;
  Weights forward_weights_, backward_weights_;
};

/// Computes `y`, made for it, with the unit that the machine has.
template <class Scalar>
void bfloat16_convolution(Context<Scalar>& context, const Tensor<Scalar>& x, Parameter<Scalar>& weight,
                          const Conv2dOptions& options, const Tensor<Scalar>& y) {
  if constexpr (kernels::bfloat16_for<Scalar>)
    kernels::with_bfloat16_unit([&]<kernels::Bfloat16Unit unit>() {
      const auto convolution = std::make_shared<Bfloat16Convolution<unit>>(context, x, weight, options, y);
      convolution->run(context);
      context.record([convolution, &context] { convolution->run_back(context); });
    });
}

}  // namespace detail

}  // namespace strata::train
