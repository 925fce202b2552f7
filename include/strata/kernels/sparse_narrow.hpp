// Level-sorted CSR times a few vectors that lie side by side in the lanes: linear layers over a batch. One or two
// SIMD vectors a row are too few sums to hide the latency of multiply-adds, hence several for each row; a batch that
// fills at most half of a vector is computed with narrower vectors, whose input fits the first cache.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include <xsimd/xsimd.hpp>

#include <strata/core/types.hpp>
#include <strata/kernels/epilogue.hpp>
#include <strata/kernels/lanes.hpp>
#include <strata/kernels/sparse_tile.hpp>
#include <strata/kernels/sparse_vector.hpp>
#include <strata/sparse/leveled_csr.hpp>

namespace strata::kernels {

/// Columns of a block up to which `sparse_narrow` is fast; wider ones take the scalar path.
inline constexpr index_t max_narrow_columns = index_t{1} << 14;

/// Samples up to which `sparse_narrow` is the kernel: two vectors of them.
template <class Scalar, class Arch>
inline constexpr index_t max_narrow_batch = 2 * static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);

/// Elements that the inputs of one column take in the panel of `sparse_narrow` for `batch` samples: the smallest of 4,
/// 8, one vector and two vectors that holds them and whose vectors the instruction set has. Precondition: 1 <= batch <=
/// max_narrow_batch.
template <class Scalar, class Arch>
[[nodiscard]] constexpr index_t narrow_width(index_t batch) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  constexpr auto four =
      static_cast<index_t>(xsimd::batch<Scalar, typename detail::Narrowed<Scalar, Arch, 4>::type>::size);
  constexpr auto eight =
      static_cast<index_t>(xsimd::batch<Scalar, typename detail::Narrowed<Scalar, Arch, 8>::type>::size);
  if (batch <= four) return four;
  if (batch <= eight) return eight;
  return batch <= lanes ? lanes : 2 * lanes;
}

namespace detail {

template <class Arch, index_t vectors, class Scalar>
void pack_columns(const Scalar* input, index_t pitch, index_t columns, Scalar* panel) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  for (index_t column = 0; column < columns; ++column, input += pitch, panel += vectors * lanes)
    for (index_t v = 0; v < vectors; ++v) Batch::load_aligned(input + v * lanes).store_aligned(panel + v * lanes);
}

}  // namespace detail

/// Copies `columns` columns of `width` elements, `pitch` apart, next to each other; what of a column lies behind the
/// samples is copied too. Preconditions: `width` is what `narrow_width` gives and at most `pitch`, which is a multiple
/// of the vector size; both arrays are aligned to a vector.
template <class Arch, class Scalar>
void pack_narrow(const Scalar* input, index_t pitch, index_t columns, index_t width, Scalar* panel) noexcept {
  using Four = typename detail::Narrowed<Scalar, Arch, 4>::type;
  using Eight = typename detail::Narrowed<Scalar, Arch, 8>::type;
  if (width == static_cast<index_t>(xsimd::batch<Scalar, Four>::size)) {
    detail::pack_columns<Four, 1>(input, pitch, columns, panel);
  } else if (width == static_cast<index_t>(xsimd::batch<Scalar, Eight>::size)) {
    detail::pack_columns<Eight, 1>(input, pitch, columns, panel);
  } else if (width == static_cast<index_t>(xsimd::batch<Scalar, Arch>::size)) {
    detail::pack_columns<Arch, 1>(input, pitch, columns, panel);
  } else {
    detail::pack_columns<Arch, 2>(input, pitch, columns, panel);
  }
}

/// Rows `first_row` .. `last_row`-1, both ends of groups of rows (or `last_row` the last).
template <class Scalar>
struct NarrowJob {
  index_t first_row = 0;
  index_t last_row = 0;
  const Scalar* panel = nullptr;  ///< [columns][width], aligned to a vector
  Scalar* output = nullptr;       ///< of row 0; `output_pitch` to the next row; aligned to a vector
  index_t output_pitch = 0;
  Epilogue<Scalar> epilogue;  ///< residual laid out as the output
};

namespace detail {

/// Where the columns of four consecutive indices lie, `bytes` each, behind the first one. Indices of 16 bits come with
/// one load. Narrow columns multiply them together, up to the factor of 8 that address arithmetic has to itself; wide
/// ones one by one with a shift and a mask, which is faster there (measured).
template <class Index, std::size_t bytes>
class FourOffsets {
  static constexpr int scale = std::countr_zero(bytes);
  static constexpr bool in_a_word =
      sizeof(Index) == 2 && std::endian::native == std::endian::little && std::has_single_bit(bytes) && scale <= 16;
  static constexpr bool together = in_a_word && scale >= 3 && bytes <= 32;

 public:
  /// Columns of a block up to which no index overflows into its neighbour.
  static constexpr index_t max_columns =
      together ? index_t{1} << (16 - (scale - 3)) : std::numeric_limits<index_t>::max();

  [[gnu::always_inline]] explicit FourOffsets(const Index* indices) noexcept {
    if constexpr (in_a_word) {
      std::memcpy(&word_, indices, sizeof(word_));
      if constexpr (together) word_ <<= scale - 3;
    } else {
      indices_ = indices;
    }
  }
  template <int j>
  [[nodiscard]] [[gnu::always_inline]] std::size_t at() const noexcept {
    constexpr std::uint64_t mask = std::uint64_t{0xFFFF} << scale;
    if constexpr (together) {
      const auto pair = static_cast<std::uint32_t>(word_ >> (j / 2 * 32));
      return std::size_t{8} * (j % 2 == 0 ? pair & 0xFFFFU : pair >> 16);
    } else if constexpr (in_a_word && 16 * j >= scale) {
      return static_cast<std::size_t>(word_ >> (16 * j - scale) & mask);
    } else if constexpr (in_a_word) {
      return static_cast<std::size_t>(word_ << (scale - 16 * j) & mask);
    } else {
      return static_cast<std::size_t>(indices_[j]) * bytes;
    }
  }

 private:
  std::uint64_t word_ = 0;
  const Index* indices_ = nullptr;
};

/// sums += value * column, unrolled whatever the compiler thinks of loops.
template <class Batch, class Scalar, std::size_t... v>
[[gnu::always_inline]] inline void add_narrow(std::array<Batch, sizeof...(v)>& sums, const Batch& value,
                                              const Scalar* column, std::index_sequence<v...>) noexcept {
  ((sums[v] = xsimd::fma(value, Batch::load_aligned(column + v * Batch::size), sums[v])), ...);
}

/// `sparse_narrow` with `sizeof...(v)` vectors of `Arch` a row.
template <class Arch, class Scalar, class Index, std::size_t... v>
void sparse_narrow(const LeveledCsr<Scalar, Index>& matrix, Level level, const NarrowJob<Scalar>& job,
                   std::index_sequence<v...> each) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  using Sums = std::array<Batch, sizeof...(v)>;
  constexpr std::size_t width = sizeof...(v) * Batch::size;
  constexpr std::size_t bytes = width * sizeof(Scalar);
  static_assert(FourOffsets<Index, bytes>::max_columns >= max_narrow_columns);
  const Epilogue<Scalar> epilogue = job.epilogue;
  const index_t blocks = matrix.blocks();
  for (index_t block = 0; block < blocks; ++block) {
    const Scalar* const panel = job.panel + block * matrix.block_columns() * static_cast<index_t>(width);
    const auto column_at = [panel](std::size_t offset) {
      return reinterpret_cast<const Scalar*>(reinterpret_cast<const char*>(panel) + offset);
    };
    walk_rows(
        matrix, level, block, job.first_row, job.last_row,
        [&](int stratum, index_t row, const Scalar*& values, const Index*& indices, index_t length)
            __attribute__((always_inline)) {
              Scalar* const output = job.output + row * job.output_pitch;
              // Four sums of their own for every vector, added at the end: a multiply-add takes four cycles.
              Sums first, second, third, fourth;
              if (block == 0 && stratum == 0) {
                ((first[v] = Batch(Scalar{0})), ...);
              } else {
                ((first[v] = Batch::load_aligned(output + v * Batch::size)), ...);
              }
              ((second[v] = Batch(Scalar{0})), ...);
              ((third[v] = Batch(Scalar{0})), ...);
              ((fourth[v] = Batch(Scalar{0})), ...);
              const Scalar* const end = values + length;
              // What is left over by fours comes first: the loop's end is then all that is hard to predict.
              const index_t rest = length % 4;
              if (rest > 2)
                add_narrow(third, Batch(values[2]), panel + static_cast<std::size_t>(indices[2]) * width, each);
              if (rest > 1)
                add_narrow(second, Batch(values[1]), panel + static_cast<std::size_t>(indices[1]) * width, each);
              if (rest > 0)
                add_narrow(first, Batch(values[0]), panel + static_cast<std::size_t>(indices[0]) * width, each);
              for (values += rest, indices += rest; values != end; values += 4, indices += 4) {
                const FourOffsets<Index, bytes> columns(indices);
                const FourValues<Batch> value(values);
                add_narrow(first, value.template broadcast<0>(), column_at(columns.template at<0>()), each);
                add_narrow(second, value.template broadcast<1>(), column_at(columns.template at<1>()), each);
                add_narrow(third, value.template broadcast<2>(), column_at(columns.template at<2>()), each);
                add_narrow(fourth, value.template broadcast<3>(), column_at(columns.template at<3>()), each);
              }
              ((first[v] = (first[v] + second[v]) + (third[v] + fourth[v])), ...);
              if (block + 1 == blocks && stratum == level.index) {
                finish_and_store(first, epilogue, row, job.output, row * job.output_pitch);
              } else {
                (first[v].store_aligned(output + v * Batch::size), ...);
              }
            });
  }
  for (index_t row = job.first_row; blocks == 0 && row < job.last_row; ++row) {  // a matrix without columns
    Sums zero;
    ((zero[v] = Batch(Scalar{0})), ...);
    finish_and_store(zero, epilogue, row, job.output, row * job.output_pitch);
  }
}

}  // namespace detail

/// The scalar twin of `sparse_narrow`, for any width: one sum a number in the order of the stored non-zeros.
template <class Scalar, class Index>
void sparse_narrow_reference(const LeveledCsr<Scalar, Index>& matrix, Level level, index_t width,
                             const NarrowJob<Scalar>& job) noexcept {
  if (job.first_row >= job.last_row) return;
  for (index_t row = job.first_row; row < job.last_row; ++row)
    for (index_t x = 0; x < width; ++x) job.output[row * job.output_pitch + x] = Scalar{0};
  for (index_t block = 0; block < matrix.blocks(); ++block) {
    auto cursors = cursors_at(matrix, level, block, job.first_row);
    const Scalar* const panel = job.panel + block * matrix.block_columns() * width;
    for (index_t position = job.first_row; position < job.last_row; ++position) {
      Scalar* const output = job.output + matrix.row_at(block, position) * job.output_pitch;
      for (int s = 0; s <= level.index; ++s) {
        auto& cursor = cursors[static_cast<std::size_t>(s)];
        const auto length = static_cast<index_t>(*cursor.lengths++);
        for (index_t k = 0; k < length; ++k, ++cursor.values, ++cursor.indices)
          for (index_t x = 0; x < width; ++x)
            output[x] += *cursor.values * panel[static_cast<index_t>(*cursor.indices) * width + x];
      }
    }
  }
  for (index_t row = job.first_row; row < job.last_row; ++row)
    for (index_t x = 0; x < width; ++x) {
      const index_t at = row * job.output_pitch + x;
      job.output[at] = finish(job.output[at], job.epilogue, row, at);
    }
}

/// output[row] = epilogue(matrix[row] x panel) for the rows of the job at `level`, `width` numbers each. The order of
/// the sums is fixed, so results do not depend on how rows are split. Preconditions: `width` is what
/// `narrow_width` gives, level.index < min(matrix.levels(), max_strata).
template <class Arch, class Scalar, class Index>
void sparse_narrow(const LeveledCsr<Scalar, Index>& matrix, Level level, index_t width,
                   const NarrowJob<Scalar>& job) noexcept {
  if (job.first_row >= job.last_row) return;
  if (matrix.block_columns() > max_narrow_columns) return sparse_narrow_reference(matrix, level, width, job);
  using Four = typename detail::Narrowed<Scalar, Arch, 4>::type;
  using Eight = typename detail::Narrowed<Scalar, Arch, 8>::type;
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  constexpr auto four = static_cast<index_t>(xsimd::batch<Scalar, Four>::size);
  constexpr auto eight = static_cast<index_t>(xsimd::batch<Scalar, Eight>::size);
  if constexpr (four < lanes)
    if (width == four) return detail::sparse_narrow<Four>(matrix, level, job, std::make_index_sequence<1>());
  if constexpr (four < eight && eight < lanes)
    if (width == eight) return detail::sparse_narrow<Eight>(matrix, level, job, std::make_index_sequence<1>());
  if (width == lanes) return detail::sparse_narrow<Arch>(matrix, level, job, std::make_index_sequence<1>());
  detail::sparse_narrow<Arch>(matrix, level, job, std::make_index_sequence<2>());
}

}  // namespace strata::kernels
