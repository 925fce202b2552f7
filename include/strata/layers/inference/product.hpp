// The product of a weight matrix, level-sorted or dense, with a batch of vectors: a matrix-vector product for one
// sample, one with narrow rows for more. And such a matrix for layers that have several.
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

/// A batch, two vectors of it at a time; rows are squeezed to the vectors that are needed.
template <class Scalar, class Arch, class Index>
void multiply_narrow(InferenceContext<Scalar, Arch>& context, const LeveledCsr<Scalar, Index>& matrix,
                     const Tensor<Scalar>& x, const Tensor<Scalar>& y, const kernels::Epilogue<Scalar>& epilogue) {
  constexpr index_t most = kernels::max_narrow_batch<Scalar, Arch>;
  const TileLayout& in = x.layout();
  const TileLayout& out = y.layout();
  const index_t pieces = ceil_div(in.tile_pitch, most);
  const kernels::WorkSplit split(in.tiles * pieces, matrix.rows(), matrix.row_group(),
                                 static_cast<index_t>(context.executor().threads()));
  // A single piece is packed once for all threads, and not at all if it fills its tile; else every task has its own.
  const index_t first_width = kernels::narrow_width<Scalar, Arch>(in.tile_width(0) < most ? in.tile_width(0) : most);
  const bool whole = in.tiles == 1 && in.tile_pitch == first_width;
  const bool single = in.tiles == 1 && pieces == 1;
  const index_t task_size = whole ? 0 : matrix.columns() * first_width;
  const Block scratch =
      whole ? Block()
            : context.arena().take((single ? 1 : split.tasks()) * task_size * static_cast<index_t>(sizeof(Scalar)));
  auto* const packed = reinterpret_cast<Scalar*>(scratch.data());
  if (single && !whole) kernels::pack_narrow<Arch>(x.data(), in.tile_pitch, matrix.columns(), first_width, packed);
  context.executor().parallel_for(split.tasks(), [&](index_t task) {
    const Scalar* panel = whole ? x.data() : packed;
    index_t prepared = single ? 0 : -1;
    split.for_each(task, [&](index_t item, index_t first, index_t last) {
      const index_t tile = item / pieces;
      const index_t begin = item % pieces * most;
      const index_t used = in.tile_width(tile) - begin;  // less than the tile where the batch ends
      if (used <= 0) return;
      const index_t width = kernels::narrow_width<Scalar, Arch>(used < most ? used : most);
      if (item != prepared) {
        Scalar* const own = packed + task * task_size;
        kernels::pack_narrow<Arch>(x.data() + tile * in.tile_size() + begin, in.tile_pitch, matrix.columns(), width,
                                   own);
        panel = own;
        prepared = item;
      }
      const index_t offset = tile * out.tile_size() + begin;
      kernels::NarrowJob<Scalar> job{first, last, panel, y.data() + offset, out.tile_pitch, epilogue};
      if (epilogue.residual != nullptr) job.epilogue.residual += offset;
      kernels::sparse_narrow<Arch>(matrix, context.level(), width, job);
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
  if constexpr (is_sparse) {
    detail::multiply_narrow(context, matrix, x, y, epilogue);
  } else {
    kernels::ConvolutionShape shape;
    shape.in_channels = matrix.columns();
    shape.out_channels = matrix.rows();
    kernels::convolution<Arch>(matrix, level, shape, x.layout(), x.data(), y.layout(), y.data(), epilogue,
                               context.arena(), context.executor());
  }
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
      source.fail(Error({name}, {"at most ", kernels::max_strata, " levels"}, {source.levels()}));
    is_sparse_ = source.has(name + ".shape");
    if (is_sparse_) sparse_ = source.leveled_csr<Scalar, LinearIndex>(name, rows, columns);
    return is_sparse_;
  }
  /// Dense row-major weights that the archive of `begin` holds.
  void view(const Scalar* weights, index_t rows, index_t columns) {
    is_sparse_ = false;
    dense_ = {weights, rows, columns, 96};
  }

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
