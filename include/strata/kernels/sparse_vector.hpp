// Level-sorted CSR times one vector: linear layers at batch 1. Bound by loads (a value, an index and an input for each
// non-zero), so indices are read four at a time and multiplied four at a time.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <xsimd/xsimd.hpp>

#include <strata/core/types.hpp>
#include <strata/kernels/epilogue.hpp>
#include <strata/kernels/sparse_tile.hpp>
#include <strata/sparse/leveled_csr.hpp>

namespace strata::kernels {

namespace detail {

/// `Arch` or, where its vectors have more than `lanes` elements, the best architecture with vectors of `lanes`. Not
/// every number has one; then it is one with wider vectors.
template <class Scalar, class Arch, std::size_t lanes>
struct Narrowed {
  static constexpr std::size_t bytes = lanes * sizeof(Scalar);
  using Eight = std::conditional_t<xsimd::fma3<xsimd::avx2>::supported(), xsimd::fma3<xsimd::avx2>,
                                   std::conditional_t<xsimd::avx::supported(), xsimd::avx, Arch>>;
  // xsimd has no multiply-adds of four lanes beside those of eight: the compiler joins product and sum.
  using Four = std::conditional_t<xsimd::sse2::supported(), xsimd::sse2, Arch>;
  using type = std::conditional_t<xsimd::batch<Scalar, Arch>::size <= lanes, Arch,
                                  std::conditional_t<bytes == 32, Eight, std::conditional_t<bytes == 16, Four, Arch>>>;
};

/// Four consecutive column indices, `at(j)` the j-th. Those of 16 bits come with one load, which halves the loads.
template <class Index>
class FourColumns {
 public:
  explicit FourColumns(const Index* indices) noexcept {
    if constexpr (in_a_word) {
      std::memcpy(&word_, indices, sizeof(word_));
    } else {
      indices_ = indices;
    }
  }
  template <int j>
  [[nodiscard]] std::size_t at() const noexcept {
    if constexpr (in_a_word) {
      const auto pair =
          static_cast<std::uint32_t>(word_ >> (j / 2 * 32));  // fewer copies of registers than from 64 bits
      return j % 2 == 0 ? pair & 0xFFFFU : pair >> 16;
    } else {
      return static_cast<std::size_t>(indices_[j]);
    }
  }

 private:
  static constexpr bool in_a_word = sizeof(Index) == 2 && std::endian::native == std::endian::little;
  std::uint64_t word_ = 0;
  const Index* indices_ = nullptr;
};

/// values[0 .. 3] * x[indices[0 .. 3]] + sums, lane by lane.
template <class Batch, class Scalar, class Index>
[[gnu::always_inline]] inline Batch add_four(const Batch& sums, const Scalar* values, const Index* indices,
                                             const Scalar* x) noexcept {
  const FourColumns<Index> columns(indices);
  const Batch gathered{x[columns.template at<0>()], x[columns.template at<1>()], x[columns.template at<2>()],
                       x[columns.template at<3>()]};
  return xsimd::fma(Batch::load_unaligned(values), gathered, sums);
}

/// The epilogue of `Batch::size` rows from `row` on, whose sums, residuals and results are at the given addresses.
template <class Batch, class Scalar>
[[gnu::always_inline]] inline void finish_vector(const Scalar* sums, const Scalar* scale, const Scalar* bias,
                                                 const Scalar* residual, Activation activation,
                                                 Scalar* output) noexcept {
  Batch x = Batch::load_unaligned(sums);
  if (scale != nullptr) x *= Batch::load_unaligned(scale);
  if (bias != nullptr) x += Batch::load_unaligned(bias);
  if (residual != nullptr) x += Batch::load_unaligned(residual);
  activate(x, activation).store_unaligned(output);
}

/// The epilogue of rows with one number each, a vector of rows at a time. The last rows go the same way, by a copy, so
/// that a row's result does not depend on where the range ends.
template <class Arch, class Scalar>
void finish_rows(Scalar* output, index_t first_row, index_t last_row, const Epilogue<Scalar>& epilogue) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const auto at = [](const Scalar* array, index_t row) { return array == nullptr ? nullptr : array + row; };
  index_t row = first_row;
  for (; row + lanes <= last_row; row += lanes)
    finish_vector<Batch>(output + row, at(epilogue.scale, row), at(epilogue.bias, row), at(epilogue.residual, row),
                         epilogue.activation, output + row);
  const index_t rest = last_row - row;
  if (rest == 0) return;
  std::array<std::array<Scalar, Batch::size>, 4> copies{};
  const auto copy = [&](std::size_t to, const Scalar* array) -> const Scalar* {
    if (array == nullptr) return nullptr;
    for (index_t i = 0; i < rest; ++i) copies[to][static_cast<std::size_t>(i)] = array[row + i];
    return copies[to].data();
  };
  copy(0, output);
  finish_vector<Batch>(copies[0].data(), copy(1, epilogue.scale), copy(2, epilogue.bias), copy(3, epilogue.residual),
                       epilogue.activation, copies[0].data());
  for (index_t i = 0; i < rest; ++i) output[row + i] = copies[0][static_cast<std::size_t>(i)];
}

/// The sum of `length` products; moves `values` and `indices` behind them.
template <class Four, class Scalar, class Index>
[[nodiscard]] [[gnu::always_inline]] inline Scalar sum_of_row(const Scalar*& values, const Index*& indices,
                                                              index_t length, const Scalar* x) noexcept {
  const Scalar* const end = values + length;
  Scalar sum{0};
  if constexpr (Four::size == 4) {
    Four first(Scalar{0});
    Four second(Scalar{0});
    Four third(Scalar{0});
    Four fourth(Scalar{0});
    for (; end - values >= 16; values += 16, indices += 16) {
      prefetch_stream(values);
      prefetch_stream(indices);
      first = add_four(first, values, indices, x);
      second = add_four(second, values + 4, indices + 4, x);
      third = add_four(third, values + 8, indices + 8, x);
      fourth = add_four(fourth, values + 12, indices + 12, x);
    }
    for (; end - values >= 4; values += 4, indices += 4) first = add_four(first, values, indices, x);
    sum = xsimd::hadd((first + second) + (third + fourth));
  } else {
    Scalar sums[4] = {};
    for (; end - values >= 4; values += 4, indices += 4)
      for (int i = 0; i < 4; ++i) sums[i] += values[i] * x[indices[i]];
    sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  for (; values != end; ++values, ++indices) sum += *values * x[*indices];
  return sum;
}

/// Calls `f(stratum, row, values, indices, length)` for every stratum of `level` in every row `first_row` ..
/// `last_row`-1 of a block; `f` moves `values` and `indices`, references, `length` non-zeros on. Group of rows by
/// group, in it stratum by stratum: two streams of memory at a time, and the sums wait in L1.
template <class Scalar, class Index, class F>
[[gnu::always_inline]] inline void walk_rows(const LeveledCsr<Scalar, Index>& matrix, Level level, index_t block,
                                             index_t first_row, index_t last_row, F&& f) noexcept {
  auto cursors = cursors_at(matrix, level, block, first_row);
  const std::uint8_t* const order = matrix.order().data() + block * matrix.rows();
  const index_t row_group = matrix.row_group();
  for (index_t group = first_row; group < last_row; group += row_group) {
    const index_t end_of_group = group + row_group < last_row ? group + row_group : last_row;
    for (int stratum = 0; stratum <= level.index; ++stratum) {
      auto& cursor = cursors[static_cast<std::size_t>(stratum)];
      const Scalar* values = cursor.values;
      const Index* indices = cursor.indices;
      const auto* lengths = cursor.lengths;
      for (index_t position = group; position < end_of_group; ++position)
        f(stratum, group + static_cast<index_t>(order[position]), values, indices, static_cast<index_t>(*lengths++));
      cursor.values = values;
      cursor.indices = indices;
      cursor.lengths = lengths;
    }
  }
}

}  // namespace detail

/// output[row] = epilogue(sum over the non-zeros of `level` of value * input[column]) for rows `first_row` ..
/// `last_row`-1, both ends of groups of rows (or `last_row` the last). The order of the sums is fixed, so results do
/// not depend on how rows are split. Gather instructions are slower than four loads (measured). Precondition:
/// level.index < min(matrix.levels(), max_strata).
template <class Arch, class Scalar, class Index>
void sparse_vector(const LeveledCsr<Scalar, Index>& matrix, Level level, index_t first_row, index_t last_row,
                   const Scalar* input, Scalar* output, const Epilogue<Scalar>& epilogue) noexcept {
  if (first_row >= last_row) return;
  using Four = xsimd::batch<Scalar, typename detail::Narrowed<Scalar, Arch, 4>::type>;
  for (index_t block = 0; block < matrix.blocks(); ++block) {
    const Scalar* const x = input + block * matrix.block_columns();
    detail::walk_rows(
        matrix, level, block, first_row, last_row,
        [&](int stratum, index_t row, const Scalar*& values, const Index*& indices, index_t length)
            __attribute__((always_inline)) {
              const Scalar sum = detail::sum_of_row<Four>(values, indices, length, x);
              output[row] = block == 0 && stratum == 0 ? sum : output[row] + sum;
            });
  }
  for (index_t row = first_row; matrix.blocks() == 0 && row < last_row; ++row) output[row] = Scalar{0};
  detail::finish_rows<Arch>(output, first_row, last_row, epilogue);
}

/// The plain twin of `sparse_vector`: one sum a row in the order of the stored non-zeros.
template <class Scalar, class Index>
void sparse_vector_reference(const LeveledCsr<Scalar, Index>& matrix, Level level, const Scalar* input, Scalar* output,
                             const Epilogue<Scalar>& epilogue) noexcept {
  for (index_t row = 0; row < matrix.rows(); ++row) output[row] = Scalar{0};
  for (index_t block = 0; block < matrix.blocks(); ++block)
    for (index_t position = 0; position < matrix.rows(); ++position) {
      auto cursors = cursors_at(matrix, level, block, position);
      for (int s = 0; s <= level.index; ++s) {
        auto& cursor = cursors[static_cast<std::size_t>(s)];
        for (index_t k = 0; k < static_cast<index_t>(*cursor.lengths); ++k)
          output[matrix.row_at(block, position)] +=
              cursor.values[k] * input[block * matrix.block_columns() + static_cast<index_t>(cursor.indices[k])];
      }
    }
  for (index_t row = 0; row < matrix.rows(); ++row) output[row] = finish(output[row], epilogue, row, row);
}

}  // namespace strata::kernels
