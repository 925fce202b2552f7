// The product of a weight matrix, level-sorted or dense, with a batch of vectors: a matrix-vector product for one
// sample, one with narrow rows for a few, a tile product for more. And such a matrix for layers that have several.
#pragma once

#include <memory>
#include <string>

#include <strata/core/tensor.hpp>
#include <strata/core/types.hpp>
#include <strata/kernels/convolution.hpp>
#include <strata/kernels/dense_tile.hpp>
#include <strata/kernels/epilogue.hpp>
#include <strata/kernels/sparse_narrow.hpp>
#include <strata/kernels/sparse_vector.hpp>
#include <strata/layers/context.hpp>
#include <strata/layers/parameters.hpp>
#include <strata/sparse/leveled_csr.hpp>

namespace strata::inference {

namespace detail {

/// A batch of at most two vectors: one tile, whose rows are squeezed to the vectors that are needed.
template <class Scalar, class Arch, class Index>
void multiply_narrow(InferenceContext<Scalar, Arch>& context, const LeveledCsr<Scalar, Index>& matrix,
                     const Tensor<Scalar>& x, const Tensor<Scalar>& y, const kernels::Epilogue<Scalar>& epilogue) {
  const index_t width = kernels::narrow_width<Scalar, Arch>(x.batch());
  const index_t pitch = x.layout().tile_pitch;
  const Scalar* panel = x.data();
  Block scratch;
  if (width < pitch) {
    scratch = context.arena().take(matrix.columns() * width * static_cast<index_t>(sizeof(Scalar)));
    auto* const packed = reinterpret_cast<Scalar*>(scratch.data());
    kernels::pack_narrow<Arch>(x.data(), pitch, matrix.columns(), width, packed);
    panel = packed;
  }
  const kernels::WorkSplit split(1, matrix.rows(), matrix.row_group(),
                                 static_cast<index_t>(context.executor().threads()));
  context.executor().parallel_for(split.tasks(), [&](index_t task) {
    split.for_each(task, [&](index_t, index_t first, index_t last) {
      kernels::sparse_narrow<Arch>(
          matrix, context.level(), width,
          kernels::NarrowJob<Scalar>{first, last, panel, y.data(), y.layout().tile_pitch, epilogue});
    });
  });
}

}  // namespace detail

/// y = epilogue(matrix x) at the context's level for every sample; `matrix` is a `LeveledCsr` or a `DenseMatrix`.
/// Preconditions: `x` is matrix.columns() x 1 x 1, `y` matrix.rows() x 1 x 1 of the same batch.
template <class Scalar, class Arch, class Matrix>
void multiply(InferenceContext<Scalar, Arch>& context, const Matrix& matrix, const Tensor<Scalar>& x,
              const Tensor<Scalar>& y, const kernels::Epilogue<Scalar>& epilogue) {
  if (y.batch() == 0) return;
  const Level level = context.level();
  constexpr bool is_sparse = requires {
    matrix.nnz(level);
  };
  if (y.layout().tile_pitch == 1) {
    const kernels::WorkSplit split(1, matrix.rows(), matrix.row_group(),
                                   static_cast<index_t>(context.executor().threads()));
    context.executor().parallel_for(split.tasks(), [&](index_t task) {
      split.for_each(task, [&](index_t, index_t first, index_t last) {
        if constexpr (is_sparse) {
          kernels::sparse_vector<Arch>(matrix, level, first, last, x.data(), y.data(), epilogue);
        } else {
          kernels::dense_vector<Arch>(matrix, first, last, x.data(), y.data(), epilogue);
        }
      });
    });
    return;
  }
  if constexpr (is_sparse)
    if (x.batch() <= kernels::max_narrow_batch<Scalar, Arch>) {
      detail::multiply_narrow(context, matrix, x, y, epilogue);
      return;
    }
  kernels::ConvolutionShape shape;
  shape.in_channels = matrix.columns();
  shape.out_channels = matrix.rows();
  kernels::convolution<Arch, true>(matrix, level, shape, x.layout(), x.data(), y.layout(), y.data(), epilogue,
                                   context.arena(), context.executor());
}

/// A rows x columns matrix, viewing the archive it was loaded from.
template <class Scalar>
class WeightMatrix {
 public:
  /// The array `name` [rows, columns], or the level-sorted matrix of that name. The first error is left in `source`.
  void load(const std::string& name, index_t rows, index_t columns, ParameterSource& source) {
    if (begin(name, rows, columns, source)) return;
    view(source.array<Scalar>(name, {rows, columns}).data(), rows, columns);
  }
  /// The level-sorted matrix `name` if the archive has it; otherwise false, and `view` follows.
  [[nodiscard]] bool begin(const std::string& name, index_t rows, index_t columns, ParameterSource& source) {
    owner_ = source.owner();
    if (source.levels() > kernels::max_strata)
      source.fail(
          Error(name, "at most " + std::to_string(kernels::max_strata) + " levels", std::to_string(source.levels())));
    is_sparse_ = source.has(name + ".shape");
    if (is_sparse_) sparse_ = source.leveled_csr<Scalar, LinearIndex>(name, rows, columns);
    return is_sparse_;
  }
  /// Dense row-major weights that the archive of `begin` holds.
  void view(const Scalar* weights, index_t rows, index_t columns) { dense_ = {weights, rows, columns, 96}; }

  [[nodiscard]] index_t rows() const noexcept { return is_sparse_ ? sparse_.rows() : dense_.rows(); }
  [[nodiscard]] index_t columns() const noexcept { return is_sparse_ ? sparse_.columns() : dense_.columns(); }
  /// Weights that `level` holds.
  [[nodiscard]] index_t nnz(Level level) const noexcept {
    return is_sparse_ ? sparse_.nnz(level) : dense_.rows() * dense_.columns();
  }
  /// Bytes that `level` reads.
  [[nodiscard]] index_t bytes(Level level) const noexcept {
    return is_sparse_ ? sparse_.bytes(level) : dense_.rows() * dense_.columns() * static_cast<index_t>(sizeof(Scalar));
  }

  /// Calls `f` with the `LeveledCsr` or the `DenseMatrix`.
  template <class F>
  void with_matrix(F&& f) const {
    if (is_sparse_) {
      f(sparse_);
    } else {
      f(dense_);
    }
  }

  /// `inference::multiply` with this matrix.
  template <class Arch>
  void multiply(InferenceContext<Scalar, Arch>& context, const Tensor<Scalar>& x, const Tensor<Scalar>& y,
                const kernels::Epilogue<Scalar>& epilogue) const {
    with_matrix([&](const auto& matrix) { inference::multiply(context, matrix, x, y, epilogue); });
  }

 private:
  bool is_sparse_ = false;
  LeveledCsr<Scalar, LinearIndex> sparse_;
  kernels::DenseMatrix<Scalar> dense_;
  std::shared_ptr<const void> owner_;
};

}  // namespace strata::inference
