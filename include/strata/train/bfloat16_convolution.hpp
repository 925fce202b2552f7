// Convolution of pictures in lanes with operands rounded to bfloat16, forwards and backwards: the twin of
// train/lane_convolution.hpp for machines that multiply such numbers several times faster. Activations on the tape
// and their gradients are stored as such numbers too; weights, their gradients and sums stay single precision. Weights
// that a level lacks count as zeros: there is no sparse path.
#pragma once

#include <algorithm>
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

/// The inputs of the forward sweep as `kernels::bfloat16_weight_gradient` reads them: a plane a channel, in which the
/// columns that a stride leaves out of its step lie apart, so that the inputs of neighbouring outputs are neighbours.
class PlanarInputs {
 public:
  PlanarInputs(const LaneSweep& sweep, Shape source, const LaneLayout& layout)
      : window_(sweep, source), layout_(layout) {
    const index_t scale = window_.scale.w;
    phase_width_ = ceil_div(window_.width, scale) + 1;  // one more, for the second pixel of a last pair
    line_size_ = phase_width_ * scale * kernels::bfloat16_lanes;
    lines_ = lines_within_budget(window_, sweep.extent.h, line_size_ * round_up(layout.channels, sub_block));
    pieces_ = ceil_div(sweep.extent.h, lines_);
    // Planes an odd number of cache lines apart, lest all of them fall into the same sets.
    constexpr index_t cache_line = 64 / static_cast<index_t>(sizeof(kernels::bfloat16));
    plane_step_ = ceil_div(window_.rows(lines_) * line_size_, cache_line);
    plane_step_ = (plane_step_ + 1 - plane_step_ % 2) * cache_line;
    for (const LaneTap& tap : sweep.taps)
      starts_.push_back((tap.shift.h - sweep.low.h) * line_size_ +
                        column(tap.shift.w - sweep.low.w) * kernels::bfloat16_lanes);
  }

  /// Channels that are done together; a block of the layout has a whole number of them, or is the only one.
  static constexpr index_t sub_block = kernels::bfloat16_rows;

  [[nodiscard]] index_t lines() const noexcept { return lines_; }
  [[nodiscard]] index_t pieces() const noexcept { return pieces_; }
  [[nodiscard]] index_t size() const noexcept { return round_up(layout_.channels, sub_block) * plane_step_; }

  /// Arranges all channels for lines first .. last-1 of group `group` of the pictures at `source` in `panel`, which
  /// held zeros before the first call.
  void arrange(const kernels::bfloat16* source, index_t group, index_t first, index_t last,
               kernels::bfloat16* panel) const {
    source += group * layout_.group_step();
    const index_t step = layout_.block * layout_.lanes;
    const index_t scale = window_.scale.w;
    window_.for_spans(first, last, [&](index_t row, index_t begin, index_t count, index_t pixel) {
      for (index_t phase = 0; phase < std::min(scale, count); ++phase) {  // columns begin + phase, + scale, ...
        const index_t pixels = ceil_div(count - phase, scale);
        kernels::bfloat16* const to = panel + row * line_size_ + column(begin + phase) * kernels::bfloat16_lanes;
        if (pixel < 0) {
          for (index_t channel = 0; channel < layout_.channels; ++channel)
            std::fill_n(to + channel * plane_step_, pixels * kernels::bfloat16_lanes, kernels::bfloat16{0});
          continue;
        }
        for (index_t block = 0; block < layout_.blocks(); ++block)
          kernels::to_planes(source + block * layout_.block_step() + (pixel + phase) * step, step * scale, pixels,
                             layout_.block, to + block * layout_.block * plane_step_, plane_step_);
      }
    });
  }

  /// Channels channel .. channel+15 of what was arranged.
  [[nodiscard]] kernels::Bfloat16Planes at(const kernels::bfloat16* panel, index_t channel) const noexcept {
    return {panel + channel * plane_step_,        plane_step_,
            window_.scale.h * line_size_,         starts_.data(),
            static_cast<index_t>(starts_.size()), std::min(sub_block, layout_.channels - channel)};
  }

 private:
  [[nodiscard]] index_t column(index_t x) const noexcept {
    return x % window_.scale.w * phase_width_ + x / window_.scale.w;
  }

  SweepWindow window_;
  LaneLayout layout_;
  index_t phase_width_ = 1;
  index_t line_size_ = 0;
  index_t plane_step_ = 0;
  index_t lines_ = 1;
  index_t pieces_ = 1;
  std::vector<index_t> starts_;
};

/// A convolution's geometry and the arrangement of its weights; all that its passes share.
template <kernels::Bfloat16Unit unit>
class Bfloat16Convolution {
 public:
  using Scalar = float;
  using Half = kernels::bfloat16;
  static constexpr index_t parts = Context<Scalar>::parts;

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
    arrange_weights(context, forward_, forward_inputs_, true, forward_weights_);
    arrange_weights(context, backward_, backward_inputs_, false, backward_weights_);
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
  using Weights = std::vector<Eigen::Array<kernels::bfloat16, Eigen::Dynamic, 1>>;  ///< of each sweep
  using Inputs = std::vector<PairedInputs>;

  [[nodiscard]] index_t weight_at(index_t out_channel, index_t in_channel, index_t tap) const noexcept {
    return (out_channel * in_.channels + in_channel) * taps_ + tap;
  }

  /// Packs the weights of every sweep, those above the level as zeros.
  void arrange_weights(Context<Scalar>& context, const std::vector<LaneSweep>& sweeps, const Inputs& inputs,
                       bool forward, Weights& arranged) const {
    const index_t rows = forward ? out_.channels : in_.channels;
    for (std::size_t s = 0; s < sweeps.size(); ++s) {
      auto& values = arranged.emplace_back();
      const index_t blocks = inputs[s].blocks();
      values.setZero(kernels::bfloat16_packed_size(rows, blocks));
      std::vector<index_t> sources;  // of an input's weight in the first row; -1: none
      for (index_t block = 0; block < blocks; ++block) {
        sources.resize(static_cast<std::size_t>((block + 1) * kernels::bfloat16_depth), -1);
        inputs[s].for_inputs(block, [&](index_t k, index_t at, index_t channel) {
          const index_t tap = sweeps[s].taps[static_cast<std::size_t>(at)].tap;
          sources[static_cast<std::size_t>(block * kernels::bfloat16_depth + k)] =
              forward ? weight_at(0, channel, tap) : weight_at(channel, 0, tap);
        });
      }
      const index_t row_step = forward ? weight_at(1, 0, 0) : weight_at(0, 1, 0);
      // Rows of a block innermost: either they or the inputs lie close together.
      context.for_parts(ceil_div(rows, kernels::bfloat16_rows), [&](index_t, index_t first, index_t last) {
        for (index_t row_block = first; row_block < last; ++row_block)
          for (index_t k = 0; k < blocks * kernels::bfloat16_depth; ++k) {
            const index_t source = sources[static_cast<std::size_t>(k)];
            if (source < 0) continue;
            const index_t begin = row_block * kernels::bfloat16_rows;
            for (index_t row = begin; row < std::min(begin + kernels::bfloat16_rows, rows); ++row) {
              const index_t i = source + row * row_step;
              if (weight_.contains(i, level_))
                values[kernels::bfloat16_packed_at(row, k / kernels::bfloat16_depth, k % kernels::bfloat16_depth,
                                                   blocks)] = kernels::to_bfloat16(weight_.value[i]);
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

  void weight_gradient(Context<Scalar>& context, const Half* dy) const {
    constexpr index_t sub_block = PlanarInputs::sub_block;
    const LaneSweep& sweep = forward_.front();
    const PlanarInputs inputs(sweep, in_shape_, in_);
    const index_t rows = out_.channels;
    const index_t columns = in_.channels * taps_;
    const index_t pixels = round_up(sweep.extent.w, 2);
    const index_t line = pixels / 2 * kernels::bfloat16_block;
    // With one tap, two blocks of channels meet two of rows; with more, taps share what is loaded.
    const bool square = taps_ == 1 && in_.channels % (2 * sub_block) == 0 && rows % (2 * sub_block) == 0;
    const index_t together = square ? 2 * sub_block : sub_block;
    const index_t pairs_size = inputs.lines() * line;
    Scalar* const sums = context.scratch(parts, parts * rows * columns);
    const Half* const x = x_.template lanes<Half>();
    context.for_parts(in_.groups * inputs.pieces(), [&](index_t part, index_t first, index_t last) {
      Scalar* const part_sums = sums + part * rows * columns;
      std::fill_n(part_sums, rows * columns, Scalar{0});
      const index_t size = inputs.size() + (square ? 2 : 1) * pairs_size;
      Half* const panel = context.half_scratch(part, size);
      Half* const pairs = panel + inputs.size();
      std::fill_n(panel, size, Half{0});
      const kernels::Bfloat16Registers<unit> registers;
      for (index_t piece = first; piece < last; ++piece) {
        const index_t group = piece / inputs.pieces();
        const index_t begin = piece % inputs.pieces() * inputs.lines();
        const index_t lines = std::min(begin + inputs.lines(), sweep.extent.h) - begin;
        inputs.arrange(x, group, begin, begin + lines, panel);
        for (index_t row = 0; row < rows; row += together) {
          for (index_t r = row; r < std::min(row + together, rows); r += sub_block)
            arrange_gradient(dy, group, begin, lines, r, sweep.extent.w, line,
                             pairs + (r - row) / sub_block * pairs_size);
          for (index_t channel = 0; channel < in_.channels; channel += together) {
            Scalar* const target = part_sums + channel * taps_ * rows + row;
            const kernels::Bfloat16Planes planes = inputs.at(panel, channel);
            if (square) {
              kernels::bfloat16_pointwise_gradient<unit>(planes, pairs, pairs_size, lines, pixels, target, rows);
            } else {
              kernels::bfloat16_weight_gradient<unit>(planes, pairs, lines, pixels, std::min(sub_block, rows - row),
                                                      target, rows);
            }
          }
        }
      }
    });
    const auto has_work = [pieces = in_.groups * inputs.pieces()](index_t part) {
      return part * pieces / parts < (part + 1) * pieces / parts;
    };
    // The parts are added in order, whoever does it. A column is (block of 16 channels, tap, channel within).
    context.for_parts(in_.channels, [&](index_t, index_t first, index_t last) {
      for (index_t channel = first; channel < last; ++channel) {
        const index_t block = channel / sub_block * sub_block;
        const index_t width = std::min(sub_block, in_.channels - block);
        for (index_t t = 0; t < taps_; ++t) {
          const index_t column = block * taps_ + t * width + channel - block;
          const index_t tap = sweep.taps[static_cast<std::size_t>(t)].tap;
          for (index_t row = 0; row < rows; ++row) {
            const index_t i = weight_at(row, channel, tap);
            if (!weight_.contains(i, level_)) continue;
            Scalar sum{0};
            for (index_t part = 0; part < parts; ++part)
              if (has_work(part)) sum += sums[(part * columns + column) * rows + row];
            weight_.gradient[i] += sum;
          }
        }
      }
    });
  }

  /// Up to 16 rows from `row` on of the gradient of some lines of a group of pictures, as pairs of pictures; lines are
  /// `line` elements apart.
  void arrange_gradient(const Half* dy, index_t group, index_t begin, index_t lines, index_t row, index_t width,
                        index_t line, Half* pairs) const {
    const index_t pixel = out_.block * out_.lanes;
    const Half* const from = dy + group * out_.group_step() + row / out_.block * out_.block_step() +
                             row % out_.block * out_.lanes + begin * out_shape_.width * pixel;
    for (index_t y = 0; y < lines; ++y)
      kernels::to_picture_pairs<unit>(from + y * out_shape_.width * pixel, pixel, width,
                                      std::min(PlanarInputs::sub_block, out_.channels - row), pairs + y * line);
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
