// Level-sorted CSR times a tile of pixels: the inner kernel of sparse convolutions and of linear layers over a batch.
// It computes a range of rows for one block of columns; who cuts the work into blocks, tiles and threads is
// kernels/convolution.hpp and kernels/matmul.hpp.
#pragma once

#include <array>
#include <cstdint>
#include <utility>

#include <xsimd/xsimd.hpp>

#include <strata/core/tile_layout.hpp>
#include <strata/core/types.hpp>
#include <strata/kernels/epilogue.hpp>
#include <strata/sparse/leveled_csr.hpp>

namespace strata::kernels {

/// Where column c of a block starts in the block's panel of pixels: at `c * pitch`, or at `table[c]` where a table is
/// given. In elements, from the panel's start.
struct PanelColumns {
  index_t pitch = 0;
  const std::uint32_t* table = nullptr;
};

/// Where the rows of one block start in each stratum: the state of a walk over them.
template <class Scalar, class Index>
struct StratumCursor {
  const Scalar* values;
  const Index* indices;
  const Index* lengths;
};

/// Strata that one kernel call can walk without allocating; matrices with more levels are refused when loaded.
inline constexpr int max_strata = 16;

/// Cursors of strata 0 .. level at position `row` of `block`.
template <class Scalar, class Index>
[[nodiscard]] std::array<StratumCursor<Scalar, Index>, max_strata> cursors_at(const LeveledCsr<Scalar, Index>& matrix,
                                                                              Level level, index_t block,
                                                                              index_t row) noexcept {
  std::array<StratumCursor<Scalar, Index>, max_strata> cursors{};
  const index_t group = matrix.row_group();
  for (int s = 0; s <= level.index; ++s) {
    const auto& stratum = matrix.stratum(s);
    const Index* lengths = stratum.lengths.data() + block * matrix.rows();
    index_t start = stratum.offsets[static_cast<std::size_t>(block * matrix.row_groups() + row / group)];
    for (index_t r = row / group * group; r < row; ++r) start += static_cast<index_t>(lengths[r]);
    cursors[static_cast<std::size_t>(s)] = {stratum.values.data() + start, stratum.indices.data() + start,
                                            lengths + row};
  }
  return cursors;
}

/// Most SIMD vectors of a row that one kernel keeps in registers: enough to hide the latency of the multiply-adds; more
/// gain nothing, because a wider panel leaves the L1 cache (measured). Wider tiles are computed in pieces.
inline constexpr index_t max_kernel_vectors = 8;

/// Rows `first_row` .. `last_row`-1 of one block of columns; both are ends of groups of rows (or `last_row` the last).
template <class Scalar>
struct TileJob {
  index_t block = 0;
  index_t first_row = 0;
  index_t last_row = 0;
  bool first_block = true;  ///< start from zero instead of what `output` holds
  bool last_block = true;   ///< apply the epilogue
  const Scalar* panel = nullptr;
  PanelColumns columns;
  Scalar* output = nullptr;  ///< of row 0; `output_pitch` to the next row; aligned to a vector
  index_t output_pitch = 0;
  Epilogue<Scalar> epilogue;  ///< residual laid out as the output
  /// What is read next, to be brought into the cache while this job computes: `prefetch_bytes` from here.
  const Scalar* prefetch = nullptr;
  index_t prefetch_bytes = 0;
};

/// Spreads the prefetching of a range evenly over the rows of a job: a hardware prefetcher cannot guess the next block
/// of columns from reads that jump about in this one.
class Prefetcher {
 public:
  Prefetcher(const void* start, index_t bytes, index_t steps) noexcept
      : next_(static_cast<const char*>(start)), end_(next_ + bytes) {
    step_ = steps < 1 ? 0 : ceil_div(ceil_div(bytes, line), steps) * line;
  }
  void step() noexcept {
    const char* const until = end_ - next_ < step_ ? end_ : next_ + step_;
    for (; next_ < until; next_ += line) __builtin_prefetch(next_);
  }

 private:
  static constexpr index_t line = 64;
  const char* next_;
  const char* end_;
  index_t step_;
};

namespace detail {

/// `vectors` accumulators += weight * panel column, unrolled whatever the compiler thinks of loops.
template <class Batch, class Scalar, std::size_t... v>
[[gnu::always_inline]] inline void add_column(std::array<Batch, sizeof...(v)>& accumulators, Scalar weight,
                                              const Scalar* column, std::index_sequence<v...>) noexcept {
  const Batch broadcast(weight);
  ((accumulators[v] = xsimd::fma(broadcast, Batch::load_aligned(column + v * Batch::size), accumulators[v])), ...);
}

/// `one`: the level is known to have one stratum, whose cursor then stays in registers.
template <class Arch, bool table, bool one, class Scalar, class Index, std::size_t... v>
void sparse_tile(const LeveledCsr<Scalar, Index>& matrix, Level level, const TileJob<Scalar>& job,
                 std::index_sequence<v...> each) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  auto cursors = cursors_at(matrix, level, job.block, job.first_row);
  auto* const last_cursor = cursors.data() + (one ? 0 : level.index);
  const Scalar* const panel = job.panel;
  const index_t pitch = job.columns.pitch;
  const std::uint32_t* const offsets = job.columns.table;
  const Epilogue<Scalar> epilogue = job.epilogue;
  const bool first_block = job.first_block;
  const bool last_block = job.last_block;
  const std::uint8_t* const order = matrix.order().data() + job.block * matrix.rows();
  const index_t row_group = matrix.row_group();
  index_t group = job.first_row;  // where the group of `position` starts
  Prefetcher prefetcher(job.prefetch, job.prefetch_bytes, job.last_row - job.first_row);
  for (index_t position = job.first_row; position < job.last_row; ++position) {
    if (position - group == row_group) group = position;
    const index_t row = group + static_cast<index_t>(order[position]);
    Scalar* const output = job.output + row * job.output_pitch;
    prefetcher.step();
    std::array<Batch, sizeof...(v)> sums;
    if (first_block) {
      ((sums[v] = Batch(Scalar{0})), ...);
    } else {
      ((sums[v] = Batch::load_aligned(output + v * Batch::size)), ...);
    }
    for (auto* cursor = cursors.data(); cursor <= last_cursor; ++cursor) {
      const Scalar* values = cursor->values;
      const Index* indices = cursor->indices;
      const Scalar* const end = values + static_cast<index_t>(*cursor->lengths++);
      for (; values != end; ++values, ++indices) {
        if constexpr (table) {
          add_column<Batch>(sums, *values, panel + offsets[*indices], each);
        } else {
          add_column<Batch>(sums, *values, panel + static_cast<index_t>(*indices) * pitch, each);
        }
      }
      cursor->values = values;
      cursor->indices = indices;
    }
    if (last_block) {
      finish_and_store(sums, epilogue, row, job.output, row * job.output_pitch);
    } else {
      (sums[v].store_aligned(output + v * Batch::size), ...);
    }
  }
}

template <class Arch, std::size_t vectors, bool table, class Scalar, class Index>
void sparse_tile_entry(const LeveledCsr<Scalar, Index>& matrix, Level level, const TileJob<Scalar>& job) noexcept {
  constexpr std::make_index_sequence<vectors> each{};
  // Measured: a tenth faster for 1x1 convolutions (byte indices, no table), nothing elsewhere; each costs compile time.
  if constexpr (!table && sizeof(Index) == 1)
    if (level.index == 0) return sparse_tile<Arch, table, true>(matrix, level, job, each);
  sparse_tile<Arch, table, false>(matrix, level, job, each);
}

template <class Arch, bool table, class Scalar, class Index, std::size_t... v>
void sparse_tile_of(index_t vectors, const LeveledCsr<Scalar, Index>& matrix, Level level, const TileJob<Scalar>& job,
                    std::index_sequence<v...>) noexcept {
  using Kernel = void (*)(const LeveledCsr<Scalar, Index>&, Level, const TileJob<Scalar>&) noexcept;
  static constexpr Kernel kernels[] = {sparse_tile_entry<Arch, v + 1, table, Scalar, Index>...};
  kernels[vectors - 1](matrix, level, job);
}

}  // namespace detail

/// output[row] (+)= matrix[row, block] x panel for the rows of the job at `level`; a row of the panel and of the output
/// is `vectors` SIMD vectors long. `tables`: whether jobs may have one.
/// Preconditions: vectors >= 1, every column of the panel starts at a multiple of the vector size, level.index <
/// min(matrix.levels(), max_strata).
template <class Arch, bool tables = true, class Scalar, class Index>
void sparse_tile(const LeveledCsr<Scalar, Index>& matrix, Level level, index_t vectors, TileJob<Scalar> job) noexcept {
  constexpr std::make_index_sequence<static_cast<std::size_t>(max_kernel_vectors)> counts{};
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  while (vectors > 0) {  // wide tiles in pieces of about equal width
    const index_t pieces = ceil_div(vectors, max_kernel_vectors);
    const index_t width = ceil_div(vectors, pieces);
    if (job.columns.table == nullptr) {
      detail::sparse_tile_of<Arch, false>(width, matrix, level, job, counts);
    } else if constexpr (tables) {
      detail::sparse_tile_of<Arch, true>(width, matrix, level, job, counts);
    }
    job.panel += width * lanes;
    job.output += width * lanes;
    if (job.epilogue.residual != nullptr) job.epilogue.residual += width * lanes;
    job.prefetch_bytes = 0;  // the first piece has fetched all
    vectors -= width;
  }
}

/// The scalar twin of `sparse_tile`: `width` pixels a row, one at a time.
template <class Scalar, class Index>
void sparse_tile_reference(const LeveledCsr<Scalar, Index>& matrix, Level level, index_t width,
                           const TileJob<Scalar>& job) noexcept {
  auto cursors = cursors_at(matrix, level, job.block, job.first_row);
  for (index_t position = job.first_row; position < job.last_row; ++position) {
    const index_t row = matrix.row_at(job.block, position);
    Scalar* output = job.output + row * job.output_pitch;
    if (job.first_block)
      for (index_t x = 0; x < width; ++x) output[x] = Scalar{0};
    for (int s = 0; s <= level.index; ++s) {
      auto& cursor = cursors[static_cast<std::size_t>(s)];
      const auto length = static_cast<index_t>(*cursor.lengths++);
      for (index_t k = 0; k < length; ++k, ++cursor.values, ++cursor.indices) {
        const index_t offset = job.columns.table != nullptr ? static_cast<index_t>(job.columns.table[*cursor.indices])
                                                            : static_cast<index_t>(*cursor.indices) * job.columns.pitch;
        for (index_t x = 0; x < width; ++x) output[x] += *cursor.values * job.panel[offset + x];
      }
    }
    if (job.last_block)
      for (index_t x = 0; x < width; ++x) output[x] = finish(output[x], job.epilogue, row, row * job.output_pitch + x);
  }
}

}  // namespace strata::kernels
