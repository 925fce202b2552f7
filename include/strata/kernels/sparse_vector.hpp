// Level-sorted CSR times one vector: linear layers at batch 1. Bound by the weights' bandwidth, so it reads each once
// and keeps several independent sums going.
#pragma once

#include <strata/core/types.hpp>
#include <strata/kernels/epilogue.hpp>
#include <strata/kernels/sparse_tile.hpp>
#include <strata/sparse/leveled_csr.hpp>

namespace strata::kernels {

/// output[row] = epilogue(sum over the non-zeros of `level` of value * input[column]) for rows `first_row` ..
/// `last_row`-1, both ends of groups of rows (or `last_row` the last). The order of the sums is fixed, so results do
/// not depend on how rows are split. Precondition: level.index < min(matrix.levels(), max_strata).
template <class Scalar, class Index>
void sparse_vector(const LeveledCsr<Scalar, Index>& matrix, Level level, index_t first_row, index_t last_row,
                   const Scalar* input, Scalar* output, const Epilogue<Scalar>& epilogue) noexcept {
  for (index_t block = 0; block < matrix.blocks(); ++block) {
    auto cursors = cursors_at(matrix, level, block, first_row);
    const Scalar* const x = input + block * matrix.block_columns();
    for (index_t position = first_row; position < last_row; ++position) {
      const index_t row = matrix.row_at(block, position);
      Scalar sums[4] = {};
      for (int s = 0; s <= level.index; ++s) {
        auto& cursor = cursors[static_cast<std::size_t>(s)];
        const auto length = static_cast<index_t>(*cursor.lengths++);
        const Scalar* values = cursor.values;
        const Index* indices = cursor.indices;
        index_t k = 0;
        for (; k + 4 <= length; k += 4) {
          sums[0] += values[k] * x[indices[k]];
          sums[1] += values[k + 1] * x[indices[k + 1]];
          sums[2] += values[k + 2] * x[indices[k + 2]];
          sums[3] += values[k + 3] * x[indices[k + 3]];
        }
        for (; k < length; ++k) sums[0] += values[k] * x[indices[k]];
        cursor.values += length;
        cursor.indices += length;
      }
      const Scalar sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      output[row] = block == 0 ? sum : output[row] + sum;
    }
  }
  for (index_t row = first_row; row < last_row; ++row)
    output[row] = finish(matrix.blocks() == 0 ? Scalar{0} : output[row], epilogue, row, row);
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
