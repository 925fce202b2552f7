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

/// Cursors of strata 0 .. level at `row` of `block`.
template <class Scalar, class Index>
[[nodiscard]] std::array<StratumCursor<Scalar, Index>, max_strata> cursors_at(const LeveledCsr<Scalar, Index>& matrix,
                                                                              Level level, index_t block,
                                                                              index_t row) noexcept {
  std::array<StratumCursor<Scalar, Index>, max_strata> cursors{};
  constexpr index_t group = LeveledCsr<Scalar, Index>::row_group;
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

/// Rows `first_row` .. `last_row`-1 of one block of columns.
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
};

namespace detail {

/// `vectors` accumulators += weight * panel column, unrolled whatever the compiler thinks of loops.
template <class Batch, bool aligned, class Scalar, std::size_t... v>
[[gnu::always_inline]] inline void add_column(std::array<Batch, sizeof...(v)>& accumulators, Scalar weight,
                                              const Scalar* column, std::index_sequence<v...>) noexcept {
  const Batch broadcast(weight);
  if constexpr (aligned) {
    ((accumulators[v] = xsimd::fma(broadcast, Batch::load_aligned(column + v * Batch::size), accumulators[v])), ...);
  } else {
    ((accumulators[v] = xsimd::fma(broadcast, Batch::load_unaligned(column + v * Batch::size), accumulators[v])), ...);
  }
}

template <class Arch, bool table, bool aligned, class Scalar, class Index, std::size_t... v>
void sparse_tile(const LeveledCsr<Scalar, Index>& matrix, Level level, const TileJob<Scalar>& job,
                 std::index_sequence<v...> each) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  auto cursors = cursors_at(matrix, level, job.block, job.first_row);
  auto* const last_cursor = cursors.data() + level.index;
  const Scalar* const panel = job.panel;
  const index_t pitch = job.columns.pitch;
  const std::uint32_t* const offsets = job.columns.table;
  const Epilogue<Scalar> epilogue = job.epilogue;
  const bool first_block = job.first_block;
  const bool last_block = job.last_block;
  Scalar* output = job.output + job.first_row * job.output_pitch;
  for (index_t row = job.first_row; row < job.last_row; ++row, output += job.output_pitch) {
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
          add_column<Batch, aligned>(sums, *values, panel + offsets[*indices], each);
        } else {
          add_column<Batch, aligned>(sums, *values, panel + static_cast<index_t>(*indices) * pitch, each);
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

template <class Arch, std::size_t vectors, bool table, bool aligned, class Scalar, class Index>
void sparse_tile_entry(const LeveledCsr<Scalar, Index>& matrix, Level level, const TileJob<Scalar>& job) noexcept {
  sparse_tile<Arch, table, aligned>(matrix, level, job, std::make_index_sequence<vectors>());
}

template <class Arch, bool table, bool aligned, class Scalar, class Index, std::size_t... v>
void sparse_tile_of(index_t vectors, const LeveledCsr<Scalar, Index>& matrix, Level level, const TileJob<Scalar>& job,
                    std::index_sequence<v...>) noexcept {
  using Kernel = void (*)(const LeveledCsr<Scalar, Index>&, Level, const TileJob<Scalar>&) noexcept;
  static constexpr Kernel kernels[] = {sparse_tile_entry<Arch, v + 1, table, aligned, Scalar, Index>...};
  kernels[vectors - 1](matrix, level, job);
}

}  // namespace detail

/// output[row] (+)= matrix[row, block] x panel for the rows of the job at `level`; a row of the panel and of the output
/// is `vectors` SIMD vectors long. `aligned`: every panel column starts at a multiple of the vector size.
/// Preconditions: vectors >= 1, level.index < min(matrix.levels(), max_strata).
template <class Arch, class Scalar, class Index>
void sparse_tile(const LeveledCsr<Scalar, Index>& matrix, Level level, index_t vectors, bool aligned,
                 TileJob<Scalar> job) noexcept {
  constexpr std::make_index_sequence<static_cast<std::size_t>(TileLayout::max_vectors)> counts{};
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  while (vectors > 0) {  // wide tiles in pieces of about equal width
    const index_t pieces = ceil_div(vectors, TileLayout::max_vectors);
    const index_t width = ceil_div(vectors, pieces);
    if (job.columns.table == nullptr) {
      detail::sparse_tile_of<Arch, false, true>(width, matrix, level, job, counts);
    } else if (aligned) {
      detail::sparse_tile_of<Arch, true, true>(width, matrix, level, job, counts);
    } else {
      detail::sparse_tile_of<Arch, true, false>(width, matrix, level, job, counts);
    }
    job.panel += width * lanes;
    job.output += width * lanes;
    if (job.epilogue.residual != nullptr) job.epilogue.residual += width * lanes;
    vectors -= width;
  }
}

/// The scalar twin of `sparse_tile`: `width` pixels a row, one at a time.
template <class Scalar, class Index>
void sparse_tile_reference(const LeveledCsr<Scalar, Index>& matrix, Level level, index_t width,
                           const TileJob<Scalar>& job) noexcept {
  auto cursors = cursors_at(matrix, level, job.block, job.first_row);
  for (index_t row = job.first_row; row < job.last_row; ++row) {
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
