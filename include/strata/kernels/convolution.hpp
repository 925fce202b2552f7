// Direct convolution over tiles, sparse or dense: cuts the work into tiles, row ranges and blocks of columns, builds
// the panels and calls the tile kernels. Any kernel size, stride, padding, dilation and number of groups.
#pragma once

#include <cstdint>

#include <strata/core/executor.hpp>
#include <strata/core/tensor.hpp>
#include <strata/core/tile_layout.hpp>
#include <strata/kernels/dense_tile.hpp>
#include <strata/kernels/epilogue.hpp>
#include <strata/kernels/panel.hpp>
#include <strata/kernels/sparse_tile.hpp>

namespace strata::kernels {

/// One call per kind of weights, so that everything above is the same for sparse and dense.
template <class Arch, bool tables, class Scalar, class Index>
void multiply_tile(const LeveledCsr<Scalar, Index>& weights, Level level, index_t vectors,
                   const TileJob<Scalar>& job) noexcept {
  sparse_tile<Arch, tables>(weights, level, vectors, job);
}
template <class Arch, bool tables, class Scalar>
void multiply_tile(const DenseMatrix<Scalar>& weights, Level, index_t vectors, const TileJob<Scalar>& job) noexcept {
  dense_tile<Arch>(weights, vectors, job);
}

/// How tiles x rows are spread over threads. Every output element is computed by one task in one order, so results do
/// not depend on the number of threads.
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

/// output = epilogue(convolution of input with weights) at `level`. `weights` is a `LeveledCsr` or a `DenseMatrix` of
/// shape.out_channels x shape.columns(). Residual: laid out as the output. Scratch comes from `arena`.
/// Preconditions: layouts fit the shape, level within the weights' levels, rows of one group of channels are whole
/// `row_group`s if there are several groups. `pointwise`: the shape is, and the tiles are whole vectors; spares the
/// compiler the rest (linear layers).
template <class Arch, bool pointwise = false, class Scalar, class Weights>
void convolution(const Weights& weights, Level level, const ConvolutionShape& shape, const TileLayout& in,
                 const Scalar* input, const TileLayout& out, Scalar* output, const Epilogue<Scalar>& epilogue,
                 Arena& arena, Executor& executor) {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  // A single vector has no lanes side by side: seen as a tile of one pixel it is computed by the scalar twin's rules in
  // the linear layers; a convolution pads it to one vector of pixels.
  const bool direct = pointwise || (shape.pointwise() && in.tile_pitch % lanes == 0);
  const index_t vectors = ceil_div(out.tile_pitch, lanes);
  const PanelPlan plan(shape, in, out, weights.block_columns(), lanes);
  const bool grouped = shape.groups > 1;
  const index_t rows_per_group = shape.out_channels / shape.groups;
  const WorkSplit split(out.tiles, grouped ? shape.groups : shape.out_channels, grouped ? 1 : weights.row_group(),
                        static_cast<index_t>(executor.threads()));
  const bool table_per_block = weights.block_columns() % shape.taps() != 0;
  const index_t panel_bytes = round_up(plan.size() * static_cast<index_t>(sizeof(Scalar)), Block::alignment);
  const index_t task_bytes =
      panel_bytes + round_up(weights.block_columns() * static_cast<index_t>(sizeof(std::uint32_t)), Block::alignment);
  const Block scratch = direct ? Block() : arena.take(split.tasks() * task_bytes);
  executor.parallel_for(split.tasks(), [&](index_t task) {
    Scalar* const panel = direct ? nullptr : reinterpret_cast<Scalar*>(scratch.data() + task * task_bytes);
    auto* const table =
        direct ? nullptr : reinterpret_cast<std::uint32_t*>(scratch.data() + task * task_bytes + panel_bytes);
    if (!direct) plan.prepare(panel);
    if (!direct && plan.uses_table()) plan.fill_table(0, weights.block_width(0), table);
    split.for_each(task, [&](index_t tile, index_t first, index_t last) {
      for (index_t group = grouped ? first : 0; group < (grouped ? last : 1); ++group) {
        TileJob<Scalar> job;
        job.first_row = grouped ? group * rows_per_group : first;
        job.last_row = grouped ? (group + 1) * rows_per_group : last;
        job.output = output + tile * out.tile_size();
        job.output_pitch = out.tile_pitch;
        job.epilogue = epilogue;
        if (epilogue.residual != nullptr) job.epilogue.residual += tile * out.tile_size();
        for (index_t block = 0; block < weights.blocks(); ++block) {
          job.block = block;
          job.first_block = block == 0;
          job.last_block = block + 1 == weights.blocks();
          const index_t column = block * weights.block_columns();
          if (in.tiles == out.tiles && !grouped) {
            // The block of columns or the tile after this one.
            const index_t next = job.last_block ? 0 : column + weights.block_columns();
            const index_t channel = next / shape.taps();
            const index_t channels = ceil_div(weights.block_width(job.last_block ? 0 : block + 1), shape.taps());
            const index_t next_tile = job.last_block ? tile + 1 : tile;
            job.prefetch = input + next_tile * in.tile_size() + channel * in.tile_pitch;
            job.prefetch_bytes =
                next_tile < in.tiles ? channels * in.tile_pitch * static_cast<index_t>(sizeof(Scalar)) : 0;
          }
          if (direct) {
            const index_t channel = group * (shape.in_channels / shape.groups) + column;
            job.panel = input + tile * in.tile_size() + channel * in.tile_pitch;
            job.columns = {in.tile_pitch, nullptr};
          } else if constexpr (!pointwise) {
            plan.template fill<Arch>(input, tile, group, column, weights.block_width(block), panel);
            if (plan.uses_table() && table_per_block) plan.fill_table(column, weights.block_width(block), table);
            job.panel = panel;
            job.columns = {out.tile_pitch, plan.uses_table() ? table : nullptr};
          }
          multiply_tile<Arch, !pointwise>(weights, level, vectors, job);
        }
      }
    });
  });
}

/// The plain twin: row-major pictures, row-major dense weights (a level's, zeros for what it lacks), seven loops.
/// Input: in_channels x height x width. Output and residual: out_channels x output height x output width.
template <class Scalar>
void convolution_reference(const Scalar* weights, const ConvolutionShape& shape, index_t height, index_t width,
                           const Scalar* input, index_t output_height, index_t output_width, Scalar* output,
                           const Epilogue<Scalar>& epilogue) noexcept {
  const index_t group_in = shape.in_channels / shape.groups;
  const index_t group_out = shape.out_channels / shape.groups;
  for (index_t o = 0; o < shape.out_channels; ++o)
    for (index_t y = 0; y < output_height; ++y)
      for (index_t x = 0; x < output_width; ++x) {
        Scalar sum{0};
        for (index_t c = 0; c < group_in; ++c)
          for (index_t ky = 0; ky < shape.kernel.h; ++ky)
            for (index_t kx = 0; kx < shape.kernel.w; ++kx) {
              const index_t sy = y * shape.stride.h - shape.padding.h + ky * shape.dilation.h;
              const index_t sx = x * shape.stride.w - shape.padding.w + kx * shape.dilation.w;
              if (sy < 0 || sy >= height || sx < 0 || sx >= width) continue;
              sum += weights[((o * group_in + c) * shape.kernel.h + ky) * shape.kernel.w + kx] *
                     input[((o / group_out * group_in + c) * height + sy) * width + sx];
            }
        const index_t at = (o * output_height + y) * output_width + x;
        output[at] = finish(sum, epilogue, o, at);
      }
}

}  // namespace strata::kernels
