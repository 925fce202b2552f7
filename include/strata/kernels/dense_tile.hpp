// Dense weights times a tile of pixels or one vector: the path of layers that are not sparse enough to gain, and the
// library's own dense baseline. Weights are read where they lie, row-major.
#pragma once

#include <array>
#include <cstdint>
#include <utility>

#include <xsimd/xsimd.hpp>

#include <strata/core/types.hpp>
#include <strata/kernels/epilogue.hpp>
#include <strata/kernels/lanes.hpp>
#include <strata/kernels/prefetch.hpp>
#include <strata/kernels/sparse_tile.hpp>

namespace strata::kernels {

/// A row-major rows x columns view of weights, cut into blocks of columns as `LeveledCsr` is.
template <class Scalar>
class DenseMatrix {
 public:
  DenseMatrix() = default;
  DenseMatrix(const Scalar* weights, index_t rows, index_t columns, index_t block_columns)
      : weights_(weights), rows_(rows), columns_(columns), block_columns_(block_columns) {}

  [[nodiscard]] const Scalar* data() const noexcept { return weights_; }
  [[nodiscard]] index_t rows() const noexcept { return rows_; }
  [[nodiscard]] index_t columns() const noexcept { return columns_; }
  [[nodiscard]] index_t block_columns() const noexcept { return block_columns_; }
  [[nodiscard]] index_t blocks() const noexcept { return ceil_div(columns_, block_columns_); }
  /// Work is split between threads at multiples of so many rows.
  [[nodiscard]] index_t row_group() const noexcept { return 16; }
  [[nodiscard]] index_t block_width(index_t block) const noexcept {
    const index_t rest = columns_ - block * block_columns_;
    return rest < block_columns_ ? rest : block_columns_;
  }

 private:
  const Scalar* weights_ = nullptr;
  index_t rows_ = 0;
  index_t columns_ = 0;
  index_t block_columns_ = 1;
};

namespace detail {

/// Registers of the dense kernel: rows x vectors accumulators beside the loaded vectors and one broadcast.
template <class Batch>
inline constexpr int dense_rows = Batch::size * sizeof(typename Batch::value_type) >= 64 ? 8 : 4;
inline constexpr int dense_vectors = 3;

template <class Arch, int rows, int vectors, class Scalar>
void dense_tile(const DenseMatrix<Scalar>& matrix, index_t row, const TileJob<Scalar>& job) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  std::array<std::array<Batch, static_cast<std::size_t>(vectors)>, static_cast<std::size_t>(rows)> sums;
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vectors; ++v)
      sums[static_cast<std::size_t>(r)][static_cast<std::size_t>(v)] =
          job.first_block ? Batch(Scalar{0})
                          : Batch::load_aligned(job.output + (row + r) * job.output_pitch + v * lanes);
  const index_t width = matrix.block_width(job.block);
  const Scalar* weights = matrix.data() + row * matrix.columns() + job.block * matrix.block_columns();
  for (index_t c = 0; c < width; ++c) {
    const Scalar* column = job.panel + c * job.panel_pitch;
    std::array<Batch, static_cast<std::size_t>(vectors)> pixels;
    for (int v = 0; v < vectors; ++v)
      pixels[static_cast<std::size_t>(v)] = in_register(Batch::load_unaligned(column + v * lanes));
    for (int r = 0; r < rows; ++r) {
      const Batch weight(weights[r * matrix.columns() + c]);
      for (std::size_t v = 0; v < static_cast<std::size_t>(vectors); ++v)
        sums[static_cast<std::size_t>(r)][v] = xsimd::fma(weight, pixels[v], sums[static_cast<std::size_t>(r)][v]);
    }
  }
  for (int r = 0; r < rows; ++r) {
    auto& row_sums = sums[static_cast<std::size_t>(r)];
    if (job.last_block) {
      finish_and_store(row_sums, job.epilogue, row + r, job.output, (row + r) * job.output_pitch);
    } else {
      for (int v = 0; v < vectors; ++v)
        row_sums[static_cast<std::size_t>(v)].store_aligned(job.output + (row + r) * job.output_pitch + v * lanes);
    }
  }
}

template <class Arch, int vectors, class Scalar>
void dense_rows_of_tile(const DenseMatrix<Scalar>& matrix, const TileJob<Scalar>& job) noexcept {
  constexpr int rows = dense_rows<xsimd::batch<Scalar, Arch>>;
  index_t row = job.first_row;
  for (; row + rows <= job.last_row; row += rows) dense_tile<Arch, rows, vectors>(matrix, row, job);
  for (; row < job.last_row; ++row) dense_tile<Arch, 1, vectors>(matrix, row, job);
}

}  // namespace detail

/// As `sparse_tile`, with all weights of the block.
template <class Arch, class Scalar>
void dense_tile(const DenseMatrix<Scalar>& matrix, index_t vectors, TileJob<Scalar> job) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  while (vectors > 0) {
    const index_t width = vectors < detail::dense_vectors ? vectors : detail::dense_vectors;
    if (width == 3) {
      detail::dense_rows_of_tile<Arch, 3>(matrix, job);
    } else if (width == 2) {
      detail::dense_rows_of_tile<Arch, 2>(matrix, job);
    } else {
      detail::dense_rows_of_tile<Arch, 1>(matrix, job);
    }
    job.panel += width * lanes;
    job.output += width * lanes;
    if (job.epilogue.residual != nullptr) job.epilogue.residual += width * lanes;
    vectors -= width;
  }
}

/// output[row] = epilogue(matrix[row] . input) for rows `first_row` .. `last_row`-1.
template <class Arch, class Scalar>
void dense_vector(const DenseMatrix<Scalar>& matrix, index_t first_row, index_t last_row, const Scalar* input,
                  Scalar* output, const Epilogue<Scalar>& epilogue) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const index_t columns = matrix.columns();
  for (index_t row = first_row; row < last_row; ++row) {
    const Scalar* weights = matrix.data() + row * columns;
    Batch sums[4] = {Batch(Scalar{0}), Batch(Scalar{0}), Batch(Scalar{0}), Batch(Scalar{0})};
    index_t c = 0;
    for (; c + 4 * lanes <= columns; c += 4 * lanes)
      for (index_t i = 0; i < 4; ++i) {
        detail::prefetch_stream(weights + c + i * lanes);
        sums[i] = xsimd::fma(Batch::load_unaligned(weights + c + i * lanes),
                             Batch::load_unaligned(input + c + i * lanes), sums[i]);
      }
    for (; c + lanes <= columns; c += lanes)
      sums[0] = xsimd::fma(Batch::load_unaligned(weights + c), Batch::load_unaligned(input + c), sums[0]);
    Scalar sum = xsimd::hadd((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; c < columns; ++c) sum += weights[c] * input[c];
    output[row] = finish(sum, epilogue, row, row);
  }
}

/// The scalar twin of `dense_tile`: `width` pixels a row, one at a time.
template <class Scalar>
void dense_tile_reference(const DenseMatrix<Scalar>& matrix, index_t width, const TileJob<Scalar>& job) noexcept {
  for (index_t row = job.first_row; row < job.last_row; ++row)
    for (index_t x = 0; x < width; ++x) {
      Scalar& output = job.output[row * job.output_pitch + x];
      if (job.first_block) output = Scalar{0};
      for (index_t c = 0; c < matrix.block_width(job.block); ++c) {
        const index_t offset = c * job.panel_pitch;
        output +=
            matrix.data()[row * matrix.columns() + job.block * matrix.block_columns() + c] * job.panel[offset + x];
      }
      if (job.last_block) output = finish(output, job.epilogue, row, row * job.output_pitch + x);
    }
}

/// The scalar twin of `dense_vector`.
template <class Scalar>
void dense_vector_reference(const DenseMatrix<Scalar>& matrix, const Scalar* input, Scalar* output,
                            const Epilogue<Scalar>& epilogue) noexcept {
  for (index_t row = 0; row < matrix.rows(); ++row) {
    Scalar sum{0};
    for (index_t c = 0; c < matrix.columns(); ++c) sum += matrix.data()[row * matrix.columns() + c] * input[c];
    output[row] = finish(sum, epilogue, row, row);
  }
}

}  // namespace strata::kernels
