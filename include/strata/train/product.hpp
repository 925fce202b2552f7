// Products of weight matrices with large batches of vectors: the heart of linear, recurrent and attention layers in
// training. Work is cut into fixed parts whose results do not depend on the number of threads, and no part sums are
// kept.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <strata/train/bfloat16_product.hpp>
#include <strata/train/parameter.hpp>
#include <strata/train/sparse_product.hpp>
#include <strata/train/tape.hpp>

namespace strata::train {

namespace detail {

/// c += a b
template <class Scalar>
[[gnu::noinline]] void add_product(const ConstMatrixView<Scalar>& a, const ConstMatrixView<Scalar>& b,
                                   MatrixView<Scalar> c) {
  c.noalias() += a * b;
}
/// c += a^T b
template <class Scalar>
[[gnu::noinline]] void add_product_tn(const ConstMatrixView<Scalar>& a, const ConstMatrixView<Scalar>& b,
                                      MatrixView<Scalar> c) {
  c.noalias() += a.transpose() * b;
}
/// c += a b^T
template <class Scalar>
[[gnu::noinline]] void add_product_nt(const ConstMatrixView<Scalar>& a, const ConstMatrixView<Scalar>& b,
                                      MatrixView<Scalar> c) {
  c.noalias() += a * b.transpose();
}

/// c += a b as part `part` of the work, in the precision that the context asks for. Factors that several products share
/// may be there in blocks already: `a_blocks` and `b_blocks`, from the vectors of `a` or `b` on; null: they are not.
template <class Scalar>
void add_product(Context<Scalar>& context, index_t part, Transposed transposed, const ConstMatrixView<Scalar>& a,
                 const ConstMatrixView<Scalar>& b, MatrixView<Scalar> c, const kernels::bfloat16* a_blocks = nullptr,
                 const kernels::bfloat16* b_blocks = nullptr) {
  if constexpr (std::is_same_v<Scalar, float>) {
    const bool blocked = a_blocks != nullptr || b_blocks != nullptr;
    const bool pays = bfloat16_pays(c.rows(), c.cols(), transposed == Transposed::first ? a.rows() : a.cols());
    if ((blocked || (context.bfloat16 && pays)) && kernels::with_bfloat16_unit([&]<kernels::Bfloat16Unit unit>() {
          bfloat16_product<unit>(context, part, transposed, a, b, c, a_blocks, b_blocks);
        }))
      return;
  }
  if (transposed == Transposed::first) return add_product_tn<Scalar>(a, b, c);
  if (transposed == Transposed::second) return add_product_nt<Scalar>(a, b, c);
  add_product<Scalar>(a, b, c);
}

/// The rows of a weight matrix [rows, columns] that a level holds, zero elsewhere, in an order of rows: row i of the
/// view is row `order[i]` of the weights. Row-major as the weights are; without levels and order they are not copied.
template <class Scalar>
class WeightRows {
 public:
  WeightRows(Context<Scalar>& context, const Parameter<Scalar>& weight, Level level,
             const std::vector<index_t>* order = nullptr)
      : rows_(weight.shape[0]), columns_(weight.value.size() / (rows_ < 1 ? 1 : rows_)), data_(weight.value.data()) {
    if (weight.strata.empty() && order == nullptr) return;
    copy_ = context.make(rows_, {columns_, 1, 1}, false);
    Scalar* const copy = copy_.value().data();
    context.for_parts(rows_, [&](index_t, index_t first, index_t last) {
      for (index_t row = first; row < last; ++row) {
        const index_t from = (order == nullptr ? row : (*order)[static_cast<std::size_t>(row)]) * columns_;
        Scalar* const to = copy + row * columns_;
        if (weight.strata.empty()) {
          std::copy_n(weight.value.data() + from, columns_, to);
          continue;
        }
        const std::uint8_t* const strata = weight.strata.data() + from;
        const Scalar* const values = weight.value.data() + from;
        for (index_t c = 0; c < columns_; ++c)
          to[c] = static_cast<int>(strata[c]) <= level.index && strata[c] != StratumMap::absent ? values[c] : Scalar{0};
      }
    });
    data_ = copy;
  }
  WeightRows(const WeightRows&) = delete;
  WeightRows& operator=(const WeightRows&) = delete;

  [[nodiscard]] index_t rows() const noexcept { return rows_; }
  [[nodiscard]] index_t columns() const noexcept { return columns_; }
  /// Rows first .. first+count-1 as columns: columns() x count.
  [[nodiscard]] ConstMatrixView<Scalar> transposed(index_t first, index_t count) const {
    return view(data_ + first * columns_, columns_, count, columns_);
  }

 private:
  index_t rows_;
  index_t columns_;
  const Scalar* data_;
  Tensor<Scalar> copy_;
};

/// weight.gradient += x d^T for the weights that `level` holds: x is columns x n; row i of d is that of row first_row +
/// i of the weights, or of row `order[i]`.
template <class Scalar>
void add_weight_gradient(Context<Scalar>& context, const ConstMatrixView<Scalar>& x, const ConstMatrixView<Scalar>& d,
                         Level level, Parameter<Scalar>& weight, const std::vector<index_t>* order = nullptr,
                         index_t first_row = 0) {
  const index_t rows = d.rows();
  const index_t columns = x.rows();
  const bool plain = weight.strata.empty() && order == nullptr;
  const BlockedFactor inputs = shared_factor(context, Factor::first, x, true, rows / Context<Scalar>::parts);
  context.for_parts(rows, [&](index_t part, index_t first, index_t last) {
    const auto part_of_d = view(d.data() + first, last - first, d.cols(), d.outerStride());
    if (plain) {
      add_product<Scalar>(context, part, Transposed::second, x, part_of_d,
                          view(weight.gradient.data() + (first_row + first) * columns, columns, last - first, columns),
                          inputs.blocks());
      return;
    }
    Scalar* const sums = context.scratch(part, (last - first) * columns);
    std::fill_n(sums, (last - first) * columns, Scalar{0});
    add_product<Scalar>(context, part, Transposed::second, x, part_of_d, view(sums, columns, last - first, columns),
                        inputs.blocks());
    for (index_t row = first; row < last; ++row) {
      const index_t at = (order == nullptr ? first_row + row : (*order)[static_cast<std::size_t>(row)]) * columns;
      const Scalar* const from = sums + (row - first) * columns;
      Scalar* const to = weight.gradient.data() + at;
      if (weight.strata.empty()) {
        for (index_t c = 0; c < columns; ++c) to[c] += from[c];
        continue;
      }
      const std::uint8_t* const strata = weight.strata.data() + at;
      for (index_t c = 0; c < columns; ++c)
        if (static_cast<int>(strata[c]) <= level.index && strata[c] != StratumMap::absent) to[c] += from[c];
    }
  });
}

/// y += W x with as many rows of the weights as y has, from `first_row` on; cut by rows where that repeats less work.
template <class Scalar>
void add_weighted(Context<Scalar>& context, const WeightRows<Scalar>& weight, const ConstMatrixView<Scalar>& x,
                  MatrixView<Scalar> y, index_t first_row = 0) {
  constexpr index_t parts = Context<Scalar>::parts;
  if (y.rows() >= x.cols()) {
    const BlockedFactor inputs = shared_factor(context, Factor::second, x, false, y.rows() / parts);
    context.for_parts(y.rows(), [&](index_t part, index_t first, index_t last) {
      add_product<Scalar>(context, part, Transposed::first, weight.transposed(first_row + first, last - first), x,
                          view(y.data() + first, last - first, y.cols(), y.outerStride()), nullptr, inputs.blocks());
    });
    return;
  }
  const auto w = weight.transposed(first_row, y.rows());
  const BlockedFactor weights = shared_factor(context, Factor::first, w, false, x.cols() / parts);
  context.for_parts(x.cols(), [&](index_t part, index_t first, index_t last) {
    add_product<Scalar>(context, part, Transposed::first, w,
                        view(x.data() + first * x.outerStride(), x.rows(), last - first, x.outerStride()),
                        view(y.data() + first * y.outerStride(), y.rows(), last - first, y.outerStride()),
                        weights.blocks());
  });
}

/// dx += W^T d with as many rows of the weights as d has, from `first_row` on.
template <class Scalar>
void add_weighted_back(Context<Scalar>& context, const WeightRows<Scalar>& weight, const ConstMatrixView<Scalar>& d,
                       MatrixView<Scalar> dx, index_t first_row = 0) {
  const auto w = weight.transposed(first_row, d.rows());
  const BlockedFactor weights = shared_factor(context, Factor::first, w, true, d.cols() / Context<Scalar>::parts);
  context.for_parts(d.cols(), [&](index_t part, index_t first, index_t last) {
    add_product<Scalar>(context, part, Transposed::none, w,
                        view(d.data() + first * d.outerStride(), d.rows(), last - first, d.outerStride()),
                        view(dx.data() + first * dx.outerStride(), dx.rows(), last - first, dx.outerStride()),
                        weights.blocks());
  });
}

template <class Scalar>
[[nodiscard]] ConstMatrixView<Scalar> values_of(const Tensor<Scalar>& x) {
  const index_t rows = x.shape().channels;
  return view(static_cast<const Scalar*>(x.value().data()), rows, x.pixels(), rows);
}
template <class Scalar>
[[nodiscard]] ConstMatrixView<Scalar> gradients_of(const Tensor<Scalar>& x) {
  const index_t rows = x.shape().channels;
  return view(static_cast<const Scalar*>(x.gradient().data()), rows, x.pixels(), rows);
}
template <class Scalar>
[[nodiscard]] MatrixView<Scalar> mutable_values_of(const Tensor<Scalar>& x) {
  return view(x.value().data(), x.shape().channels, x.pixels(), x.shape().channels);
}
template <class Scalar>
[[nodiscard]] MatrixView<Scalar> mutable_gradients_of(const Tensor<Scalar>& x) {
  return view(x.gradient().data(), x.shape().channels, x.pixels(), x.shape().channels);
}

}  // namespace detail

/// y = W x + b for every sample of `x` (in_features x 1 x 1) with the weights [out_features, in_features] that the
/// context's level holds; `bias` may be null. With `rows` above 0 only so many outputs, from `first_row` on.
template <class Scalar>
[[nodiscard]] Tensor<Scalar> linear(Context<Scalar>& context, const Tensor<Scalar>& x, Parameter<Scalar>& weight,
                                    Parameter<Scalar>* bias, index_t first_row = 0, index_t rows = 0) {
  const index_t outputs = rows > 0 ? rows : weight.shape[0];
  note_uses(context, weight, first_row == 0 ? 1 : 0);  // parts of the rows are together one use
  const Level level = context.level;
  Tensor<Scalar> y = context.make(x.batch(), {outputs, 1, 1}, true);
  context.for_parts(x.batch(), [&](index_t, index_t first, index_t last) {
    for (index_t n = first; n < last; ++n) {
      Scalar* const column = y.value().data() + n * outputs;
      if (bias == nullptr) {
        std::fill_n(column, outputs, Scalar{0});
      } else {
        std::copy_n(bias->value.data() + first_row, outputs, column);
      }
    }
  });
  if (x.batch() == 0) return y;
  const auto add_bias_gradient = [&context, bias, first_row, outputs](const detail::ConstMatrixView<Scalar>& dy) {
    if (bias == nullptr) return;
    context.for_parts(outputs, [&](index_t, index_t first, index_t last) {
      for (index_t n = 0; n < dy.cols(); ++n)
        bias->gradient.segment(first_row + first, last - first) += dy.col(n).segment(first, last - first).array();
    });
  };
  const auto sparse =
      outputs == weight.shape[0] ? detail::SparseMatrix<Scalar>::find(context, weight, level, x.batch()) : nullptr;
  if (sparse) {
    const detail::SampleTiles<Scalar> inputs(context, detail::values_of(x));
    sparse->add_product(context, inputs, detail::mutable_values_of(y));
    context.record([=, &context, &weight] {
      const auto dy = detail::gradients_of(y);
      const detail::SampleTiles<Scalar> d(context, dy);
      sparse->add_gradient(context, inputs, d, weight);
      add_bias_gradient(dy);
      if (x.needs_gradient()) sparse->add_product_back(context, d, detail::mutable_gradients_of(x));
    });
    return y;
  }
  auto weights = std::make_shared<detail::WeightRows<Scalar>>(context, weight, level);
  detail::add_weighted<Scalar>(context, *weights, detail::values_of(x), detail::mutable_values_of(y), first_row);
  context.record([=, &context, &weight] {
    const auto dy = detail::gradients_of(y);
    detail::add_weight_gradient<Scalar>(context, detail::values_of(x), dy, level, weight, nullptr, first_row);
    add_bias_gradient(dy);
    if (x.needs_gradient())
      detail::add_weighted_back<Scalar>(context, *weights, dy, detail::mutable_gradients_of(x), first_row);
  });
  return y;
}

}  // namespace strata::train
