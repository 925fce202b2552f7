// Products of the weights that a level holds, where they are few, with batches of vectors: linear and recurrent layers
// in the phases with fixed masks. Forwards and backwards only non-zeros are computed (SparseProp, arXiv 2302.04852).
// The dense products are in train/product.hpp, the inner loops in train/sample_kernels.hpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include <xsimd/xsimd.hpp>

#include <strata/train/bfloat16_product.hpp>
#include <strata/train/lanes.hpp>
#include <strata/train/parameter.hpp>
#include <strata/train/sample_kernels.hpp>
#include <strata/train/tape.hpp>

namespace strata::train {

/// Share of a matrix's weights at a level up to which its products compute non-zeros only. Measured on Zen 3 with GNMT,
/// 512 wide: on a line through the steps at 5 and 13 %, a step costs as much as with whole matrices at about 45 %.
inline constexpr double sparse_matrix_density = 0.4;

namespace detail {

/// Samples in tiles, [tile][feature][sample], as sparse products read and write them.
template <class Scalar>
class SampleTiles {
 public:
  using Arch = xsimd::default_arch;
  static constexpr index_t width = kernels::sample_tile<Scalar, Arch>;

  SampleTiles() = default;
  SampleTiles(Context<Scalar>& context, index_t features, index_t samples)
      : features_(features),
        samples_(samples),
        storage_(context.make(ceil_div(samples, width), {features * width, 1, 1}, false)) {}
  /// The columns of `x`, arranged by all threads.
  SampleTiles(Context<Scalar>& context, const ConstMatrixView<Scalar>& x) : SampleTiles(context, x.rows(), x.cols()) {
    constexpr index_t block = lanes_of<Scalar>;
    context.for_parts(ceil_div(features_, block), [&](index_t, index_t first, index_t last) {
      const index_t begin = first * block;
      const index_t count = std::min(last * block, features_) - begin;
      if (count > 0) set(view(x.data() + begin, count, x.cols(), x.outerStride()), begin);
    });
  }

  [[nodiscard]] index_t tiles() const noexcept { return ceil_div(samples_, width); }
  [[nodiscard]] index_t samples_in(index_t tile) const noexcept { return std::min(width, samples_ - tile * width); }
  [[nodiscard]] index_t vectors_in(index_t tile) const noexcept {
    return kernels::sample_vectors<Scalar, Arch>(samples_in(tile));
  }
  /// The features of a tile from `first` on.
  [[nodiscard]] Scalar* tile(index_t tile, index_t first = 0) const noexcept {
    return storage_.value().data() + (tile * features_ + first) * width;
  }
  /// Takes the rows of `piece`, features `first` and on of all samples. Threads may set different ones at a time.
  void set(const ConstMatrixView<Scalar>& piece, index_t first) const noexcept {
    for (index_t t = 0; t < tiles(); ++t)
      kernels::samples_to_tile<Arch>(piece.data() + t * width * piece.outerStride(), piece.outerStride(), piece.rows(),
                                     samples_in(t), tile(t, first));
  }

 private:
  index_t features_ = 0;
  index_t samples_ = 0;
  Tensor<Scalar> storage_;
};

/// The non-zeros of a matrix in one direction, some columns after the others so that a tile of the features that they
/// meet stays in the L1 cache: non-zeros `starts[part * (rows + 1) + row]` and on, up to the next row's.
template <class Scalar>
struct NonZeroLists {
  static constexpr index_t columns_at_once = 64;

  index_t rows = 0;
  index_t parts = 0;
  std::vector<std::uint32_t> starts;
  std::vector<std::uint32_t> offsets;  ///< of inputs in a tile's part
  std::vector<std::uint32_t> weights;  ///< which weight it is
  std::vector<Scalar> values;

  /// From `weight_at(row, column)`, the index of a weight, and `held(index)`.
  template <class At, class Held>
  void list(index_t row_count, index_t column_count, At&& weight_at, Held&& held) {
    rows = row_count;
    parts = ceil_div(column_count, columns_at_once);
    for (index_t part = 0; part < parts; ++part) {
      const index_t first = part * columns_at_once;
      const index_t last = std::min(first + columns_at_once, column_count);
      for (index_t row = 0; row < rows; ++row) {
        starts.push_back(static_cast<std::uint32_t>(weights.size()));
        for (index_t column = first; column < last; ++column) {
          const index_t i = weight_at(row, column);
          if (!held(i)) continue;
          weights.push_back(static_cast<std::uint32_t>(i));
          offsets.push_back(static_cast<std::uint32_t>((column - first) * SampleTiles<Scalar>::width));
        }
      }
      starts.push_back(static_cast<std::uint32_t>(weights.size()));
    }
    values.resize(weights.size());
  }
  [[nodiscard]] const std::uint32_t* starts_of(index_t part, index_t row) const noexcept {
    return starts.data() + part * (rows + 1) + row;
  }
};

/// What a level holds of a matrix [rows, columns] whose non-zeros are few; row i is row `order[i]` of the weights if
/// there is an order. Kept from pass to pass for as long as the mask stays the same.
template <class Scalar>
class SparseMatrix {
 public:
  using Arch = xsimd::default_arch;
  using Tiles = SampleTiles<Scalar>;

  /// Null if products with `samples` samples are not worth it: too many non-zeros, too few samples, no mask, or
  /// bfloat16, whose units are faster over zeros.
  [[nodiscard]] static std::shared_ptr<const SparseMatrix> find(Context<Scalar>& context,
                                                                const Parameter<Scalar>& weight, Level level,
                                                                index_t samples,
                                                                const std::vector<index_t>* order = nullptr) {
    if (weight.strata.empty() || samples < 2 * lanes_of<Scalar>) return nullptr;
    if (context.bfloat16 && kernels::bfloat16_for<Scalar>) return nullptr;
    if (weight.value.size() > index_t{0xFFFFFFFF}) return nullptr;
    auto& cached = context.cached({&weight.strata, level.index});  // a convolution's masks have the weight's own key
    auto matrix = std::static_pointer_cast<SparseMatrix>(cached);
    if (!matrix || matrix->pass_ != context.pass() || matrix->pass_ == 0) {
      if (!matrix || matrix->strata_ != weight.strata) {
        matrix = std::make_shared<SparseMatrix>(weight, level, order);
        cached = matrix;
      }
      if (matrix->sparse_) matrix->take_values(context, weight);
      matrix->pass_ = context.pass();
    }
    return matrix->sparse_ ? matrix : nullptr;
  }

  SparseMatrix(const Parameter<Scalar>& weight, Level level, const std::vector<index_t>* order)
      : strata_(weight.strata) {
    const index_t rows = weight.shape[0];
    const index_t columns = weight.value.size() / std::max<index_t>(rows, 1);
    const auto held = [&](index_t i) { return weight.contains(i, level); };
    index_t count = 0;
    for (index_t i = 0; i < weight.value.size(); ++i) count += held(i) ? 1 : 0;
    sparse_ = static_cast<double>(count) <= sparse_matrix_density * static_cast<double>(weight.value.size());
    if (!sparse_) return;
    const auto at = [&](index_t row, index_t column) {
      return (order == nullptr ? row : (*order)[static_cast<std::size_t>(row)]) * columns + column;
    };
    ahead_.list(rows, columns, at, held);
    back_.list(
        columns, rows, [&](index_t column, index_t row) { return at(row, column); }, held);
  }

  [[nodiscard]] index_t rows() const noexcept { return ahead_.rows; }

  /// y += W x for rows first .. last-1, which are the rows of `y`; `part` of the work.
  void add_product(Context<Scalar>& context, index_t part, const Tiles& x, index_t first, index_t last,
                   MatrixView<Scalar> y) const {
    add(context, part, ahead_, x, first, last, y);
  }
  /// dx += W^T d for columns first .. last-1 of W, which are the rows of `dx`.
  void add_product_back(Context<Scalar>& context, index_t part, const Tiles& d, index_t first, index_t last,
                        MatrixView<Scalar> dx) const {
    add(context, part, back_, d, first, last, dx);
  }
  /// y += W x, by all threads.
  void add_product(Context<Scalar>& context, const Tiles& x, MatrixView<Scalar> y) const { add(context, ahead_, x, y); }
  /// dx += W^T d, by all threads.
  void add_product_back(Context<Scalar>& context, const Tiles& d, MatrixView<Scalar> dx) const {
    add(context, back_, d, dx);
  }

  /// weight.gradient += d x^T for the non-zeros.
  void add_gradient(Context<Scalar>& context, const Tiles& x, const Tiles& d, Parameter<Scalar>& weight) const {
    context.for_parts(rows(), [&](index_t part, index_t first, index_t last) {
      if (first == last) return;
      index_t count = 0;
      for (index_t p = 0; p < ahead_.parts; ++p)
        count += static_cast<index_t>(*ahead_.starts_of(p, last) - *ahead_.starts_of(p, first));
      Scalar* const all_sums = context.scratch(part, count);
      std::fill_n(all_sums, count, Scalar{0});
      for (index_t tile = 0; tile < x.tiles(); ++tile) {
        Scalar* sums = all_sums;
        for (index_t p = 0; p < ahead_.parts; ++p) {
          const std::uint32_t* const starts = ahead_.starts_of(p, first);
          kernels::sample_gradients<Arch>(x.tile(tile, p * ahead_.columns_at_once), starts, ahead_.offsets.data(),
                                          last - first, d.tile(tile, first), x.vectors_in(tile), sums);
          sums += starts[last - first] - starts[0];
        }
      }
      const Scalar* sum = all_sums;
      for (index_t p = 0; p < ahead_.parts; ++p)
        for (std::uint32_t i = *ahead_.starts_of(p, first); i < *ahead_.starts_of(p, last); ++i, ++sum)
          weight.gradient[static_cast<index_t>(ahead_.weights[i])] += *sum;
    });
  }

 private:
  using Lists = NonZeroLists<Scalar>;

  void take_values(Context<Scalar>& context, const Parameter<Scalar>& weight) {
    for (Lists* lists : {&ahead_, &back_})
      context.for_parts(static_cast<index_t>(lists->values.size()), [&](index_t, index_t first, index_t last) {
        for (auto i = static_cast<std::size_t>(first); i < static_cast<std::size_t>(last); ++i)
          lists->values[i] = weight.value[static_cast<index_t>(lists->weights[i])];
      });
  }

  void add(Context<Scalar>& context, const Lists& lists, const Tiles& x, MatrixView<Scalar> y) const {
    context.for_parts(lists.rows, [&](index_t part, index_t first, index_t last) {
      add(context, part, lists, x, first, last, view(y.data() + first, last - first, y.cols(), y.outerStride()));
    });
  }
  void add(Context<Scalar>& context, index_t part, const Lists& lists, const Tiles& x, index_t first, index_t last,
           MatrixView<Scalar> y) const {
    if (first == last) return;
    constexpr index_t width = Tiles::width;
    Scalar* const sums = context.scratch(part, (last - first) * width);
    for (index_t tile = 0; tile < x.tiles(); ++tile) {
      kernels::LaneOutput<Scalar> output;  // a row of the tile is a block, its vectors are the pixels
      output.target = sums;
      output.pixel_step = lanes_of<Scalar>;
      output.rows = last - first;
      output.block_step = width;
      output.lines = 1;
      output.pixels = x.vectors_in(tile);
      for (index_t p = 0; p < lists.parts; ++p)
        kernels::lane_sparse_product<Arch>(x.tile(tile, p * lists.columns_at_once), 0, lanes_of<Scalar>,
                                           {lists.starts_of(p, first), lists.offsets.data(), lists.values.data()},
                                           output, p > 0);
      kernels::add_tile_to_samples<Arch>(sums, last - first, x.samples_in(tile),
                                         y.data() + tile * width * y.outerStride(), y.outerStride());
    }
  }

  std::vector<std::uint8_t> strata_;
  bool sparse_ = false;
  std::uint64_t pass_ = 0;  ///< that took the values
  Lists ahead_, back_;
};

}  // namespace detail

}  // namespace strata::train
