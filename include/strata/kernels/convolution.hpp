// Direct convolution over tiles, sparse or dense: cuts the work into tiles, row ranges and blocks of columns, builds
// the panels and calls the tile kernels. Any kernel size, stride, padding, dilation and number of groups.
#pragma once

#include <algorithm>
#include <cstdint>

#include <strata/core/executor.hpp>
#include <strata/core/tensor.hpp>
#include <strata/core/tile_layout.hpp>
#include <strata/kernels/dense_tile.hpp>
#include <strata/kernels/epilogue.hpp>
#include <strata/kernels/panel.hpp>
#include <strata/kernels/row_panel.hpp>
#include <strata/kernels/sparse_tile.hpp>

namespace strata::kernels {

/// One call per kind of weights, so that everything above is the same for sparse and dense.
template <class Arch, class Scalar, class Index>
void multiply_tile(const LeveledCsr<Scalar, Index>& weights, Level level, RowWidth width,
                   const TileJob<Scalar>& job) noexcept {
  sparse_tile<Arch>(weights, level, width, job);
}
template <class Arch, class Scalar>
void multiply_tile(const DenseMatrix<Scalar>& weights, Level, RowWidth width, const TileJob<Scalar>& job) noexcept {
  dense_tile<Arch>(weights, width.vectors + (width.tail ? 1 : 0), job);
}

/// Most vectors of a tile that are computed together: what stays in the L1 cache with a block of columns.
template <class Batch, class Scalar, class Index>
[[nodiscard]] constexpr index_t max_piece(const LeveledCsr<Scalar, Index>&) noexcept {
  return max_kernel_vectors<Batch>;
}
template <class Batch, class Scalar>
[[nodiscard]] constexpr index_t max_piece(const DenseMatrix<Scalar>&) noexcept {
  return index_t{2} * detail::dense_vectors;
}

/// Whether a panel may have its columns in other places than a pitch apart.
template <class Scalar, class Index>
[[nodiscard]] constexpr bool takes_offsets(const LeveledCsr<Scalar, Index>&) noexcept {
  return true;
}
template <class Scalar>
[[nodiscard]] constexpr bool takes_offsets(const DenseMatrix<Scalar>&) noexcept {
  return false;
}

/// A tile cut into pieces that one kernel call computes, all of about the same width.
class Pieces {
 public:
  /// Of a tile of `vectors` vectors; no piece is wider than `most`.
  Pieces(index_t vectors, index_t most) noexcept
      : count_(ceil_div(vectors, most)), narrow_(vectors / count_), wide_(vectors % count_) {}

  [[nodiscard]] index_t count() const noexcept { return count_; }
  /// The first vector of a piece; of the piece after the last one: the end.
  [[nodiscard]] index_t begin(index_t piece) const noexcept {
    return piece * narrow_ + (piece < wide_ ? piece : wide_);
  }

 private:
  index_t count_;
  index_t narrow_;
  index_t wide_;  // pieces with a vector more than the others: the first ones
};

/// How pieces of tiles x rows are spread over threads. Every output element is computed by one task in one order, so
/// results do not depend on the number of threads.
class WorkSplit {
 public:
  /// `units` rows or groups that may be parted at multiples of `grain`.
  WorkSplit(index_t tiles, index_t units, index_t grain, index_t threads) noexcept : tiles_(tiles), units_(units) {
    const bool by_tile = tiles % threads == 0 || tiles >= 4 * threads;
    const index_t parts = by_tile ? 1 : threads;
    part_ = round_up(ceil_div(units < 1 ? 1 : units, parts), grain);
    parts_ = ceil_div(units < 1 ? 1 : units, part_);
    pieces_ = tiles_ * parts_;
    tasks_ = pieces_ < threads ? pieces_ : threads;
  }

  [[nodiscard]] index_t tasks() const noexcept { return tasks_; }

  /// Calls `f(tile, first, last)` for every piece of `task`.
  template <class F>
  void for_each(index_t task, F&& f) const noexcept {
    for (index_t piece = task * pieces_ / tasks_; piece < (task + 1) * pieces_ / tasks_; ++piece) {
      const index_t first = piece % parts_ * part_;
      const index_t last = first + part_ < units_ ? first + part_ : units_;
      f(piece / parts_, first, last);
    }
  }

 private:
  index_t tiles_;
  index_t units_;
  index_t part_ = 1;
  index_t parts_ = 1;
  index_t pieces_ = 0;
  index_t tasks_ = 0;
};

/// Bytes of an output up to which it is taken to be in the L2 cache before it is written.
inline constexpr index_t cached_output = index_t{1} << 20;

/// output = epilogue(convolution of input with weights) at `level`. `weights` is a `LeveledCsr` or a `DenseMatrix` of
/// shape.out_channels x shape.columns(). Residual: laid out as the output. Scratch comes from `arena`.
/// Preconditions: input, output and residual are aligned as blocks of an arena are, with `Block::guard` readable bytes
/// before and behind the input (vectors hang over its edges); layouts fit the shape, level within the weights' levels,
/// rows of one group of channels are whole `row_group`s if there are several groups.
template <class Arch, class Scalar, class Weights>
void convolution(const Weights& weights, Level level, const ConvolutionShape& shape, const TileLayout& in,
                 const Scalar* input, const TileLayout& out, Scalar* output, const Epilogue<Scalar>& epilogue,
                 Arena& arena, Executor& executor) {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  if (out.size() == 0) return;
  // A single vector has no lanes side by side: seen as a tile of one pixel it is computed by the scalar twin's rules in
  // the linear layers; a convolution pads it to one vector of pixels.
  const bool direct = shape.pointwise() && in.tile_pitch % lanes == 0;
  const Pieces pieces(ceil_div(out.tile_pitch, lanes), max_piece<Batch>(weights));
  const PanelPlan plan(shape, in, out, weights.block_columns(), lanes, pieces.begin(1));
  constexpr auto element = static_cast<index_t>(sizeof(Scalar));
  const RowPanel rows(shape, in, out, lanes, pieces.begin(1), element);
  const bool by_rows = takes_offsets(weights) && rows.applies();
  const bool grouped = shape.groups > 1;
  const index_t rows_per_group = shape.out_channels / shape.groups;
  const WorkSplit split(out.tiles * pieces.count(), grouped ? shape.groups : shape.out_channels,
                        grouped ? 1 : weights.row_group(), static_cast<index_t>(executor.threads()));
  const index_t task_bytes = round_up((by_rows ? rows.size() : plan.size()) * element, Block::alignment);
  // Rows of a piece lie a channel apart, which no hardware prefetcher follows. Outputs that the caches hold anyway need
  // none.
  const bool outputs_leave_cache = out.size() * element > cached_output;
  const Block scratch = direct ? Block() : arena.take(split.tasks() * task_bytes);
  const Block table = by_rows ? arena.take(shape.columns() * static_cast<index_t>(sizeof(std::uint32_t))) : Block();
  auto* const offsets = by_rows ? reinterpret_cast<std::uint32_t*>(table.data()) : nullptr;
  if (by_rows) rows.fill_offsets(element, offsets);
  executor.parallel_for(split.tasks(), [&](index_t task) {
    Scalar* const panel = direct ? nullptr : reinterpret_cast<Scalar*>(scratch.data() + task * task_bytes);
    index_t prepared = -1;  // the tile whose masks (or, by rows, input) the panel has
    index_t filled = 0;     // by rows: the first row of the tile that the panel does not have
    split.for_each(task, [&](index_t item, index_t first, index_t last) {
      const index_t tile = item / pieces.count();
      const index_t begin = pieces.begin(item % pieces.count()) * lanes;
      const index_t end = pieces.begin(item % pieces.count() + 1) * lanes;
      const index_t used = out.tile_width(tile);  // less than the tile where a picture or the batch ends
      if (begin >= used) return;
      const RowWidth width = RowWidth::of<Batch>(used < end ? used - begin : end - begin);
      if (by_rows) {
        if (prepared < 0) rows.prepare(panel);
        const index_t first_row = begin / out.row_pitch;
        if (tile != prepared || filled < first_row) filled = first_row;
        const index_t end_row = rows.end_row(used < end ? used : end);
        if (filled < end_row) rows.template fill<Arch>(input, tile, filled, end_row, panel);
        filled = end_row;
        prepared = tile;
      } else if (!direct && tile != prepared) {
        plan.prepare(tile, prepared < 0, panel);
        prepared = tile;
      }
      for (index_t group = grouped ? first : 0; group < (grouped ? last : 1); ++group) {
        TileJob<Scalar> job;
        job.first_row = grouped ? group * rows_per_group : first;
        job.last_row = grouped ? (group + 1) * rows_per_group : last;
        job.output = output + tile * out.tile_size() + begin;
        job.output_pitch = out.tile_pitch;
        job.epilogue = epilogue;
        if (outputs_leave_cache)
          job.next_output = item % pieces.count() + 1 < pieces.count() ? end - begin : out.tile_size() - begin;
        if (epilogue.residual != nullptr) job.epilogue.residual += tile * out.tile_size() + begin;
        for (index_t block = 0; block < weights.blocks(); ++block) {
          job.block = block;
          job.first_block = block == 0;
          job.last_block = block + 1 == weights.blocks();
          const index_t column = block * weights.block_columns();
          if (in.tiles == out.tiles && !grouped && !by_rows && !job.last_block) {
            const index_t next = (column + weights.block_columns()) / shape.taps();
            job.prefetch = input + tile * in.tile_size() + next * in.tile_pitch + begin;
            job.prefetch_columns = ceil_div(weights.block_width(block + 1), shape.taps());
            job.prefetch_pitch = in.tile_pitch;
            job.prefetch_bytes = (end - begin) * element;
          } else {
            job.prefetch_columns = 0;
          }
          if (direct) {
            const index_t channel = group * (shape.in_channels / shape.groups) + column;
            job.panel = input + tile * in.tile_size() + channel * in.tile_pitch + begin;
            job.panel_pitch = in.tile_pitch;
          } else if (by_rows) {
            job.panel = panel + begin;
            job.offsets = offsets + column;
          } else {
            job.panel = panel;
            job.panel_pitch = end - begin;
            plan.template fill<Arch>(input, {tile, group, column, weights.block_width(block), begin, end - begin},
                                     panel);
          }
          multiply_tile<Arch>(weights, level, width, job);
        }
      }
    });
  });
}

/// The plain twin: row-major pictures, row-major dense weights (a level's, zeros for what it lacks, which are passed
/// over), seven loops. Input: in_channels x height x width. Output and residual, which may not be one:
/// out_channels x output height x output width.
template <class Scalar>
void convolution_reference(const Scalar* weights, const ConvolutionShape& shape, index_t height, index_t width,
                           const Scalar* input, index_t output_height, index_t output_width, Scalar* output,
                           const Epilogue<Scalar>& epilogue) noexcept {
  const index_t group_in = shape.in_channels / shape.groups;
  const index_t group_out = shape.out_channels / shape.groups;
  const index_t pixels = output_height * output_width;
  for (index_t o = 0; o < shape.out_channels; ++o) {
    Scalar* const sums = output + o * pixels;
    std::fill_n(sums, pixels, Scalar{0});
    for (index_t c = 0; c < group_in; ++c) {
      const Scalar* const channel = input + (o / group_out * group_in + c) * height * width;
      for (index_t ky = 0; ky < shape.kernel.h; ++ky)
        for (index_t kx = 0; kx < shape.kernel.w; ++kx) {
          const Scalar weight = weights[((o * group_in + c) * shape.kernel.h + ky) * shape.kernel.w + kx];
          if (weight == Scalar{0}) continue;
          for (index_t y = 0; y < output_height; ++y) {
            const index_t sy = y * shape.stride.h - shape.padding.h + ky * shape.dilation.h;
            if (sy < 0 || sy >= height) continue;
            for (index_t x = 0; x < output_width; ++x) {
              const index_t sx = x * shape.stride.w - shape.padding.w + kx * shape.dilation.w;
              if (sx >= 0 && sx < width) sums[y * output_width + x] += weight * channel[sy * width + sx];
            }
          }
        }
    }
    for (index_t at = o * pixels; at < (o + 1) * pixels; ++at) output[at] = finish(output[at], epilogue, o, at);
  }
}

}  // namespace strata::kernels
