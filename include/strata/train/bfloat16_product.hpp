// Matrix products whose factors are rounded to bfloat16 and cut into blocks for the unit that multiplies them; sums are
// single precision. What is multiplied with what, and in which parts, is train/product.hpp's business.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include <Eigen/Core>

#include <strata/train/bfloat16_kernels.hpp>
#include <strata/train/tape.hpp>

namespace strata::train::detail {

/// Column-major matrix whose columns are a stride apart. All products have this one type, so that each is compiled
/// once.
template <class Scalar>
using MatrixView = Eigen::Map<Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>, 0, Eigen::OuterStride<>>;
template <class Scalar>
using ConstMatrixView =
    Eigen::Map<const Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>, 0, Eigen::OuterStride<>>;

template <class Scalar>
[[nodiscard]] MatrixView<Scalar> view(Scalar* data, index_t rows, index_t columns, index_t stride) {
  return {data, rows, columns, Eigen::OuterStride<>(stride)};
}
template <class Scalar>
[[nodiscard]] ConstMatrixView<Scalar> view(const Scalar* data, index_t rows, index_t columns, index_t stride) {
  return {data, rows, columns, Eigen::OuterStride<>(stride)};
}

/// Which of the two factors of a product are transposed.
enum class Transposed : std::uint8_t { none, first, second };

/// One factor of a product: `vectors` of `sums` numbers each, over which the product sums.
enum class Factor : std::uint8_t {
  first,  ///< its vectors are the product's rows, and the lanes of block products
  second  ///< its vectors are the product's columns, and the rows of block products
};

/// The columns of a matrix as the vectors of a factor, or (`transposed`) its rows.
struct FactorView {
  ConstMatrixView<float> matrix;
  bool transposed = false;

  [[nodiscard]] index_t vectors() const noexcept { return transposed ? matrix.rows() : matrix.cols(); }
  [[nodiscard]] index_t sums() const noexcept { return transposed ? matrix.cols() : matrix.rows(); }
};

[[nodiscard]] inline FactorView first_factor(Transposed transposed, const ConstMatrixView<float>& a) {
  return {a, transposed != Transposed::first};
}
[[nodiscard]] inline FactorView second_factor(Transposed transposed, const ConstMatrixView<float>& b) {
  return {b, transposed == Transposed::second};
}

/// Elements of a factor's blocks.
[[nodiscard]] constexpr index_t blocks_size(index_t vectors, index_t sums) noexcept {
  return ceil_div(vectors, kernels::bfloat16_rows) * ceil_div(sums, kernels::bfloat16_depth) * kernels::bfloat16_block;
}

/// Rounds a factor into blocks: 16 vectors by 32 sums each, zeros beyond its end, those of the same vectors `depth`
/// blocks of all sums one behind the other.
template <kernels::Bfloat16Unit unit>
void to_blocks(const FactorView& from, Factor factor, index_t depth, kernels::bfloat16* to) {
  constexpr index_t side = kernels::bfloat16_rows;
  const index_t step = from.matrix.outerStride();
  // All vectors for a few sums, then the next ones: columns far apart are read on, each in its own page.
  for (index_t k = 0; k < from.sums(); k += kernels::bfloat16_depth)
    for (index_t first = 0; first < from.vectors(); first += side) {
      const index_t width = std::min(side, from.vectors() - first);
      const index_t length = std::min(kernels::bfloat16_depth, from.sums() - k);
      kernels::bfloat16* const block =
          to + (first / side * depth + k / kernels::bfloat16_depth) * kernels::bfloat16_block;
      if (from.transposed) {
        kernels::to_block_pairs<unit>(from.matrix.data() + k * step + first, step, width, length, block);
      } else {
        kernels::to_block_rows<unit>(from.matrix.data() + first * step + k, step, width, length, block);
      }
      if (from.transposed == (factor == Factor::second)) kernels::transpose_block<unit>(block);
    }
}

/// A factor that several products share, in blocks: arranged once for all of them. Empty until it is given a size.
class BlockedFactor {
 public:
  BlockedFactor() = default;
  BlockedFactor(HalfBuffer buffer, Factor factor, index_t vectors, index_t sums)
      : buffer_(std::move(buffer)), factor_(factor), vectors_(vectors), sums_(sums) {}

  [[nodiscard]] bool empty() const noexcept { return vectors_ == 0; }
  [[nodiscard]] index_t depth() const noexcept { return ceil_div(sums_, kernels::bfloat16_depth); }
  /// The blocks from those of vector `first` on. Precondition: a multiple of 16.
  [[nodiscard]] const kernels::bfloat16* blocks(index_t first = 0) const noexcept {
    return buffer_.data() + offset(first, 0);
  }

  /// Takes a piece, the columns of a matrix or (`transposed`) its rows, whose first vector is the factor's `vector`-th
  /// and its first number the `sum`-th; does nothing if empty. Preconditions: a multiple of 16 and of 32, and so are
  /// the piece's ends where they are not the factor's. Threads may give different pieces at a time.
  template <class Scalar>
  void set(const ConstMatrixView<Scalar>& piece, bool transposed, index_t vector, index_t sum) {
    if constexpr (std::is_same_v<Scalar, float>) {
      if (empty()) return;
      (void)kernels::with_bfloat16_unit([&]<kernels::Bfloat16Unit unit>() {
        to_blocks<unit>({piece, transposed}, factor_, depth(), buffer_.data() + offset(vector, sum));
      });
    }
  }

 private:
  [[nodiscard]] index_t offset(index_t vector, index_t sum) const noexcept {
    return (vector / kernels::bfloat16_rows * depth() + sum / kernels::bfloat16_depth) * kernels::bfloat16_block;
  }

  HalfBuffer buffer_;
  Factor factor_ = Factor::first;
  index_t vectors_ = 0;
  index_t sums_ = 0;
};

/// From so many multiplications on, a product of bfloat16 numbers makes up for rounding and arranging its factors.
inline constexpr index_t bfloat16_least_work = index_t{1} << 16U;

/// Whether a product of a factor of `a` with one of `b` vectors pays.
[[nodiscard]] constexpr bool bfloat16_pays(index_t a, index_t b, index_t sums) noexcept {
  return std::min(a, b) >= 8 && a * b * sums >= bfloat16_least_work;
}

/// A factor in blocks, empty if the context does not ask for bfloat16 or the machine has no unit for it.
template <class Scalar>
[[nodiscard]] BlockedFactor blocked_factor(Context<Scalar>& context, Factor factor, index_t vectors, index_t sums) {
  if (!context.bfloat16 || !kernels::bfloat16_for<Scalar> || vectors * sums == 0) return {};
  return {context.half_buffer(blocks_size(vectors, sums)), factor, vectors, sums};
}

/// All of a factor in blocks, arranged by all threads; empty as well if products with `others` vectors do not pay.
template <class Scalar>
[[nodiscard]] BlockedFactor shared_factor(Context<Scalar>& context, Factor factor,
                                          const ConstMatrixView<Scalar>& matrix, bool transposed, index_t others) {
  if constexpr (std::is_same_v<Scalar, float>) {
    const FactorView from{matrix, transposed};
    if (!bfloat16_pays(from.vectors(), others, from.sums())) return {};
    BlockedFactor result = blocked_factor(context, factor, from.vectors(), from.sums());
    if (result.empty()) return result;
    constexpr index_t side = kernels::bfloat16_rows;
    context.for_parts(ceil_div(from.vectors(), side), [&](index_t, index_t first, index_t last) {
      const index_t begin = first * side;
      const index_t count = std::min(last * side, from.vectors()) - begin;
      const float* const data = matrix.data() + (transposed ? begin : begin * matrix.outerStride());
      const index_t rows = transposed ? count : matrix.rows();
      const index_t columns = transposed ? matrix.cols() : count;
      result.set<float>(view(data, rows, columns, matrix.outerStride()), transposed, begin, 0);
    });
    return result;
  }
  return {};
}

/// c += a b for factors of bfloat16 as `transposed` says, those that are not null from their blocks.
template <kernels::Bfloat16Unit unit>
void bfloat16_product(Context<float>& context, index_t part, Transposed transposed, const ConstMatrixView<float>& a,
                      const ConstMatrixView<float>& b, MatrixView<float> c, const kernels::bfloat16* a_blocks = nullptr,
                      const kernels::bfloat16* b_blocks = nullptr) {
  const FactorView first = first_factor(transposed, a);
  const FactorView second = second_factor(transposed, b);
  const index_t depth = ceil_div(first.sums(), kernels::bfloat16_depth);
  const index_t a_size = a_blocks == nullptr ? blocks_size(first.vectors(), first.sums()) : 0;
  const index_t b_size = b_blocks == nullptr ? blocks_size(second.vectors(), second.sums()) : 0;
  kernels::bfloat16* const scratch = context.half_scratch(part, a_size + b_size);
  if (a_blocks == nullptr) {
    to_blocks<unit>(first, Factor::first, depth, scratch);
    a_blocks = scratch;
  }
  if (b_blocks == nullptr) {
    to_blocks<unit>(second, Factor::second, depth, scratch + a_size);
    b_blocks = scratch + a_size;
  }
  const kernels::Bfloat16Registers<unit> registers;
  kernels::bfloat16_add_product<unit>(b_blocks, a_blocks, depth, c.cols(), c.rows(), c.data(), c.outerStride());
}

}  // namespace strata::train::detail
