// Level-sorted CSR times a tile of pixels: the inner kernel of sparse convolutions.
// It computes a range of rows for one block of columns; who cuts the work into blocks, tiles and threads is
// kernels/convolution.hpp, kernels/sparse_narrow.hpp and kernels/sparse_vector.hpp.
#pragma once

#include <array>
#include <cstdint>
#include <type_traits>
#include <utility>

#include <xsimd/xsimd.hpp>

#include <strata/core/tile_layout.hpp>
#include <strata/core/types.hpp>
#include <strata/kernels/epilogue.hpp>
#include <strata/kernels/prefetch.hpp>
#include <strata/sparse/leveled_csr.hpp>

namespace strata::kernels {

/// Where the rows of one block start in each stratum: the state of a walk over them.
template <class Scalar, class Index>
struct StratumCursor {
  const Scalar* values;
  const Index* indices;
  const Index* lengths;
};

/// Strata that one kernel call can walk without allocating; matrices with more levels are refused when loaded.
inline constexpr int max_strata = max_levels;

/// Strata that a kernel walks at once; more levels take more passes, because every kernel costs compile time.
inline constexpr int strata_of_a_pass = 2;

/// Largest group of rows whose sums wait on the stack between passes over strata; those of larger ones wait in the
/// output.
inline constexpr index_t waiting_rows = 64;

/// Where `stratum` is at position `row` of `block`.
template <class Scalar, class Index>
[[nodiscard]] StratumCursor<Scalar, Index> cursor_at(const LeveledCsr<Scalar, Index>& matrix, int stratum,
                                                     index_t block, index_t row) noexcept {
  const index_t group = matrix.row_group();
  const auto& arrays = matrix.stratum(stratum);
  const Index* lengths = arrays.lengths.data() + block * matrix.rows();
  index_t start = arrays.offsets[static_cast<std::size_t>(block * matrix.row_groups() + row / group)];
  for (index_t r = row / group * group; r < row; ++r) start += static_cast<index_t>(lengths[r]);
  return {arrays.values.data() + start, arrays.indices.data() + start, lengths + row};
}

/// Cursors of strata 0 .. level at position `row` of `block`.
template <class Scalar, class Index>
[[nodiscard]] std::array<StratumCursor<Scalar, Index>, max_strata> cursors_at(const LeveledCsr<Scalar, Index>& matrix,
                                                                              Level level, index_t block,
                                                                              index_t row) noexcept {
  std::array<StratumCursor<Scalar, Index>, max_strata> cursors{};
  for (int s = 0; s <= level.index; ++s) cursors[static_cast<std::size_t>(s)] = cursor_at(matrix, s, block, row);
  return cursors;
}

/// Most SIMD vectors of a row that one kernel keeps in registers. Few of them with many columns beat many with few: the
/// panel has to stay in the L1 cache, and sums pass through memory once a block of columns (measured: 4 or 5 of 64
/// bytes with 192 columns). Wider tiles are computed in pieces.
template <class Batch>
inline constexpr index_t max_kernel_vectors = sizeof(Batch) >= 64 ? 5 : 8;

/// A quarter of a vector, which computes the last few pixels of a tile for half the price of a whole vector where
/// vectors have 64 bytes; `void` elsewhere.
template <class Batch>
struct TailOf {
  using type = void;
};
template <class Scalar, class Arch>
requires(sizeof(xsimd::batch<Scalar, Arch>) >= 64 &&
         xsimd::sse2::supported()) struct TailOf<xsimd::batch<Scalar, Arch>> {
  using type = xsimd::batch<Scalar, xsimd::sse2>;
};
template <class Batch>
using TailBatch = typename TailOf<Batch>::type;

/// The whole vectors before a tail: of a picture of 7x7 and of the last piece of one of 14x14. Other rows end in a
/// whole vector, because every kernel costs compile time.
inline constexpr index_t tail_vectors = 3;

/// What one kernel call computes of a row: `vectors` whole vectors and, if `tail`, a `TailBatch` after them.
struct RowWidth {
  index_t vectors = 0;
  bool tail = false;

  /// For `pixels` elements.
  template <class Batch>
  [[nodiscard]] static constexpr RowWidth of(index_t pixels) noexcept {
    constexpr auto lanes = static_cast<index_t>(Batch::size);
    if constexpr (!std::is_void_v<TailBatch<Batch>>) {
      constexpr index_t whole = tail_vectors * lanes;
      if (pixels > whole && pixels <= whole + lanes / 4) return {tail_vectors, true};
    }
    return {ceil_div(pixels, lanes), false};
  }
};

/// Rows `first_row` .. `last_row`-1 of one block of columns; both are ends of groups of rows (or `last_row` the last).
template <class Scalar>
struct TileJob {
  index_t block = 0;
  index_t first_row = 0;
  index_t last_row = 0;
  bool first_block = true;        ///< start from zero instead of what `output` holds
  bool last_block = true;         ///< apply the epilogue
  const Scalar* panel = nullptr;  ///< of the block's first column
  index_t panel_pitch = 0;        ///< from a column to the next one; a multiple of the vector size
  /// Instead of a pitch, for sparse weights: the bytes from `panel` to each column of the block, whole vectors.
  const std::uint32_t* offsets = nullptr;
  Scalar* output = nullptr;  ///< of row 0; `output_pitch` to the next row; aligned to a vector
  index_t output_pitch = 0;
  Epilogue<Scalar> epilogue;  ///< residual laid out as the output
  /// What is read next, to be brought into the cache while this job computes: `prefetch_columns` runs of
  /// `prefetch_bytes`, `prefetch_pitch` elements apart.
  const Scalar* prefetch = nullptr;
  index_t prefetch_columns = 0;
  index_t prefetch_pitch = 0;
  index_t prefetch_bytes = 0;
  /// From the outputs of this job to those of the one after it, in elements, if they are to be brought into the cache
  /// (with their residual) by the job with the last block; 0 if not.
  index_t next_output = 0;
  /// Where the sums of `first_row` wait between passes, `sums_pitch` to those of the next row; null: in the output.
  Scalar* sums = nullptr;
  index_t sums_pitch = 0;
};

/// Spreads the prefetching of a job over its groups of rows: a hardware prefetcher cannot guess the next block of
/// columns from reads that jump about in this one.
template <class Scalar>
class Prefetcher {
 public:
  Prefetcher(const TileJob<Scalar>& job, index_t row_group) noexcept
      : column_(reinterpret_cast<const char*>(job.prefetch)),
        pitch_(job.prefetch_pitch * static_cast<index_t>(sizeof(Scalar))),
        bytes_(job.prefetch_bytes),
        columns_(job.prefetch_columns) {
    const index_t groups = ceil_div(job.last_row - job.first_row, row_group);
    if (columns_ > 0 && groups > 0) columns_per_step_ = ceil_div(columns_, groups);
  }
  void step() noexcept {
    index_t count = columns_ < columns_per_step_ ? columns_ : columns_per_step_;
    columns_ -= count;
    for (; count > 0; --count, column_ += pitch_)
      for (index_t at = 0; at < bytes_; at += line) __builtin_prefetch(column_ + at, 0, 2);
  }

 private:
  static constexpr index_t line = 64;
  const char* column_;
  index_t pitch_;
  index_t bytes_;
  index_t columns_;
  index_t columns_per_step_ = 0;
};

namespace detail {

/// The sums of one row, in registers. (Sums must never have their address taken: arrays of sums that escape into a
/// function that is not inlined cost a third of the speed.)
template <class Batch, bool tail, std::size_t... v>
struct RowSums {
  using Scalar = typename Batch::value_type;
  using Tail = std::conditional_t<tail, TailBatch<Batch>, Batch>;
  static constexpr auto tail_offset = static_cast<index_t>(sizeof...(v) * Batch::size);

  [[gnu::always_inline]] void clear() noexcept {
    ((whole[v] = Batch(Scalar{0})), ...);
    if constexpr (tail) last[0] = Tail(Scalar{0});
  }
  [[gnu::always_inline]] void load(const Scalar* row) noexcept {
    ((whole[v] = Batch::load_aligned(row + v * Batch::size)), ...);
    if constexpr (tail) last[0] = Tail::load_aligned(row + tail_offset);
  }
  [[gnu::always_inline]] void store(Scalar* row) const noexcept {
    (whole[v].store_aligned(row + v * Batch::size), ...);
    if constexpr (tail) last[0].store_aligned(row + tail_offset);
  }
  /// += weight x column of the panel
  [[gnu::always_inline]] void add(Scalar weight, const Scalar* column) noexcept {
    const Batch broadcast(weight);
    ((whole[v] = xsimd::fma(broadcast, Batch::load_aligned(column + v * Batch::size), whole[v])), ...);
    if constexpr (tail) last[0] = xsimd::fma(Tail(weight), Tail::load_aligned(column + tail_offset), last[0]);
  }
  [[gnu::always_inline]] void finish(const Epilogue<Scalar>& epilogue, index_t row, Scalar* output,
                                     index_t offset) noexcept {
    if constexpr (sizeof...(v) > 0) finish_and_store(whole, epilogue, row, output, offset);
    if constexpr (tail) finish_and_store(last, epilogue, row, output, offset + tail_offset);
  }

  std::array<Batch, sizeof...(v)> whole;
  std::array<Tail, tail ? 1 : 0> last;
};

/// Where the sums of a row wait between passes.
template <class Scalar>
[[nodiscard, gnu::always_inline]] inline Scalar* sums_of(const TileJob<Scalar>& job, index_t row) noexcept {
  if (job.sums == nullptr) return job.output + row * job.output_pitch;
  return job.sums + (row - job.first_row) * job.sums_pitch;
}

/// Strata `first` .. `first`+`strata`-1, whose cursors stay in registers. `table`: columns lie where `job.offsets`
/// says.
template <class Arch, bool tail, bool table, int strata, class Scalar, class Index, std::size_t... v>
[[gnu::noinline]] void sparse_tile(const LeveledCsr<Scalar, Index>& matrix, int first, const TileJob<Scalar>& job,
                                   std::index_sequence<v...>) noexcept {
  // How far each stratum was read: one number beside constant pointers, since compilers make slow vectors of pointers
  // that move together.
  std::array<index_t, strata> at{};
  std::array<StratumCursor<Scalar, Index>, strata> cursors;
  for (int s = 0; s < strata; ++s)
    cursors[static_cast<std::size_t>(s)] = cursor_at(matrix, first + s, job.block, job.first_row);
  const auto* const panel = reinterpret_cast<const std::byte*>(job.panel);
  [[maybe_unused]] const index_t pitch = job.panel_pitch * static_cast<index_t>(sizeof(Scalar));
  [[maybe_unused]] const std::uint32_t* const offsets = job.offsets;
  const std::uint8_t* const order = matrix.order().data() + job.block * matrix.rows();
  const index_t row_group = matrix.row_group();
  Prefetcher<Scalar> prefetcher(job, row_group);
  for (index_t group = job.first_row; group < job.last_row; group += row_group) {
    const index_t group_end = group + row_group < job.last_row ? group + row_group : job.last_row;
    prefetcher.step();
    for (index_t position = group; position < group_end; ++position) {
      const index_t row = group + static_cast<index_t>(order[position]);
      const index_t offset = row * job.output_pitch;
      RowSums<xsimd::batch<Scalar, Arch>, tail, v...> sums;
      if (job.first_block) {
        sums.clear();
      } else {
        sums.load(sums_of(job, row));
      }
      const auto add_stratum = [&](std::size_t s) {
        const auto& cursor = cursors[s];
        index_t k = at[s];
        const index_t end = k + static_cast<index_t>(cursor.lengths[position - job.first_row]);
        at[s] = end;
        const Scalar* const values = cursor.values;
        const Index* const indices = cursor.indices;
        for (; k != end; ++k)
          if constexpr (table) {
            sums.add(values[k], reinterpret_cast<const Scalar*>(panel + offsets[indices[k]]));
          } else {
            sums.add(values[k], reinterpret_cast<const Scalar*>(panel + static_cast<index_t>(indices[k]) * pitch));
          }
      };
      add_stratum(0);
      if constexpr (strata == 2) add_stratum(1);
      if (job.last_block) {
        if (job.next_output != 0) {
          constexpr auto elements = static_cast<index_t>(sizeof...(v) * xsimd::batch<Scalar, Arch>::size);
          prefetch<elements>(job.output + offset + job.next_output);
          if (job.epilogue.residual != nullptr && job.epilogue.residual != job.output)
            prefetch<elements>(job.epilogue.residual + offset + job.next_output);
        }
        sums.finish(job.epilogue, row, job.output, offset);
      } else {
        sums.store(sums_of(job, row));
      }
    }
  }
}

/// As many passes as the strata take, each over all rows of the job.
template <class Arch, std::size_t vectors, bool tail, bool table, class Scalar, class Index>
void sparse_tile_passes(const LeveledCsr<Scalar, Index>& matrix, Level level, const TileJob<Scalar>& job) noexcept {
  constexpr std::make_index_sequence<vectors> each{};
  constexpr int most = strata_of_a_pass;
  TileJob<Scalar> pass = job;
  for (int first = 0; first <= level.index; first += most) {
    pass.first_block = job.first_block && first == 0;
    pass.last_block = job.last_block && first + most > level.index;
    if (first + most <= level.index + 1) {
      sparse_tile<Arch, tail, table, most>(matrix, first, pass, each);
    } else {
      sparse_tile<Arch, tail, table, 1>(matrix, first, pass, each);
    }
    pass.prefetch_columns = 0;  // the first pass has fetched all
  }
}

template <class Arch, std::size_t vectors, bool tail, bool table, class Scalar, class Index>
void sparse_tile_entry(const LeveledCsr<Scalar, Index>& matrix, Level level, const TileJob<Scalar>& job) noexcept {
  if (level.index == 0) return sparse_tile<Arch, tail, table, 1>(matrix, 0, job, std::make_index_sequence<vectors>{});
  const index_t group = matrix.row_group();
  if (level.index < strata_of_a_pass || !job.first_block || !job.last_block || group > waiting_rows)
    return sparse_tile_passes<Arch, vectors, tail, table>(matrix, level, job);
  // Group by group, so that the output, which may be the residual, is written once.
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto width = static_cast<index_t>((vectors + (tail ? 1 : 0)) * Batch::size);
  alignas(64) std::array<Scalar, static_cast<std::size_t>(waiting_rows * width)> sums;
  TileJob<Scalar> part = job;
  part.sums = sums.data();
  part.sums_pitch = width;
  for (index_t first = job.first_row; first < job.last_row; first += group) {
    part.first_row = first;
    part.last_row = first + group < job.last_row ? first + group : job.last_row;
    sparse_tile_passes<Arch, vectors, tail, table>(matrix, level, part);
  }
}

template <class Arch, bool table, class Scalar, class Index, std::size_t... v>
void sparse_tile_of(index_t vectors, const LeveledCsr<Scalar, Index>& matrix, Level level, const TileJob<Scalar>& job,
                    std::index_sequence<v...>) noexcept {
  using Kernel = void (*)(const LeveledCsr<Scalar, Index>&, Level, const TileJob<Scalar>&) noexcept;
  static constexpr Kernel kernels[] = {sparse_tile_entry<Arch, v + 1, false, table, Scalar, Index>...};
  kernels[vectors - 1](matrix, level, job);
}

}  // namespace detail

/// output[row] (+)= matrix[row, block] x panel for the rows of the job at `level`; a row of the panel and of the output
/// is as long as `width` says.
/// Preconditions: `width` is what `RowWidth::of` gives, without a tail if the job has `offsets`; 1 <= its vectors <=
/// max_kernel_vectors; level.index < min(matrix.levels(), max_strata).
template <class Arch, class Scalar, class Index>
void sparse_tile(const LeveledCsr<Scalar, Index>& matrix, Level level, RowWidth width,
                 const TileJob<Scalar>& job) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr std::make_index_sequence<static_cast<std::size_t>(max_kernel_vectors<Batch>)> counts{};
  if (job.offsets != nullptr) return detail::sparse_tile_of<Arch, true>(width.vectors, matrix, level, job, counts);
  if constexpr (!std::is_void_v<TailBatch<Batch>>)
    if (width.tail)
      return detail::sparse_tile_entry<Arch, static_cast<std::size_t>(tail_vectors), true, false>(matrix, level, job);
  detail::sparse_tile_of<Arch, false>(width.vectors, matrix, level, job, counts);
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
        const index_t offset = job.offsets == nullptr
                                   ? static_cast<index_t>(*cursor.indices) * job.panel_pitch
                                   : static_cast<index_t>(job.offsets[*cursor.indices] / sizeof(Scalar));
        for (index_t x = 0; x < width; ++x) output[x] += *cursor.values * job.panel[offset + x];
      }
    }
    if (job.last_block)
      for (index_t x = 0; x < width; ++x) output[x] = finish(output[x], job.epilogue, row, row * job.output_pitch + x);
  }
}

}  // namespace strata::kernels
