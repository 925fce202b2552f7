// How a layer's parameters pass through an Archive: one naming of arrays for writing (training layers) and reading
// (inference layers). Reading checks everything and remembers the first error, so that layers need no error paths.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <strata/core/archive.hpp>
#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/kernels/sparse_narrow.hpp>
#include <strata/sparse/leveled_csr.hpp>

namespace strata {

/// Index types of stored weights. Convolutions have narrow column blocks (their input block has to fit the L1 cache),
/// linear layers whole rows; model files hold these types, whatever the machine.
using ConvIndex = std::uint8_t;
using LinearIndex = std::uint16_t;

/// Columns of a block of a convolution's weight matrix with `taps` = kernel.h * kernel.w columns per input channel: as
/// many whole channels as stay in L1 with the pixels of their taps (measured in benchmarks/kernels.cpp). Layers with
/// many channels get wider blocks, because their maps are small and so are the pieces of them that are computed
/// together.
[[nodiscard]] constexpr index_t conv_block_columns(index_t taps, index_t in_channels) noexcept {
  constexpr index_t widest = LeveledCsr<float, ConvIndex>::max_block_columns;
  if (taps > widest) return widest;
  if (taps == 1) return 192;
  const index_t columns = in_channels < 256 ? 144 : 189;
  return taps * (taps >= columns ? 1 : columns / taps);
}

/// Rows of a convolution's weight matrix that may be ordered among themselves: whole groups of channels are made of
/// them, because groups are computed one by one.
[[nodiscard]] constexpr index_t conv_row_group(index_t out_channels, index_t groups) noexcept {
  using Matrix = LeveledCsr<float, ConvIndex>;
  if (groups <= 1) return Matrix::default_row_group;
  index_t rows = out_channels / groups;
  for (index_t divisor = 2; rows > Matrix::max_row_group; ++divisor)
    if (out_channels / groups % divisor == 0) rows = out_channels / groups / divisor;
  return rows;
}

/// Columns of a block of a linear layer's weight matrix: whole rows up to what the kernel for small batches takes.
[[nodiscard]] constexpr index_t linear_block_columns(index_t columns) noexcept {
  constexpr index_t widest = kernels::max_narrow_columns;
  return columns < 1 ? 1 : (columns < widest ? columns : widest);
}

/// Name under which a normalisation keeps scale and bias for its stage, if the last switch `from` -> `to` was so many
/// stages ago; `.scale` and `.bias` follow. All are optional, those of `stages` need those of fewer, and they belong to
/// the higher of the two strata.
[[nodiscard]] STRATA_COLD inline std::string transition_name(const std::string& norm_name, Level from, Level to,
                                                             int stages) {
  std::string name = norm_name + ".transition." + std::to_string(from.index) + "." + std::to_string(to.index);
  if (stages > 0) name += "." + std::to_string(stages);
  return name;
}

/// Writes parameters into an archive. A layer calls it with its state_dict names.
class ParameterSink {
 public:
  explicit ParameterSink(Archive& archive) : archive_(archive) {}

  [[nodiscard]] int levels() const noexcept { return archive_.levels(); }

  /// A whole array that `stratum` and all above need. Raises: the name is taken, a number that is not finite.
  template <class T>
  void array(const std::string& name, std::vector<index_t> shape, int stratum, std::span<const T> values) {
    if constexpr (std::is_floating_point_v<T>)
      for (std::size_t i = 0; i < values.size(); ++i)
        if (!std::isfinite(values[i])) raise(Error({name, ", number ", i}, {"a finite number"}, {values[i]}));
    if (!archive_.add(name, std::move(shape), stratum, values)) raise(Error(name, "a name of its own", "it is taken"));
  }

  /// One vector per level, such as a normalisation's scale: `name.0`, `name.1`, ...
  template <class T>
  void per_level(const std::string& name, int level, std::span<const T> values) {
    array(name + "." + std::to_string(level), {static_cast<index_t>(values.size())}, level, values);
  }

  /// Scale and bias of a normalisation `stages` stages after a switch `from` -> `to`; 0: in the first one.
  template <class T>
  void transition(const std::string& norm_name, Level from, Level to, int stages, std::span<const T> scale,
                  std::span<const T> bias) {
    const std::string name = transition_name(norm_name, from, to, stages);
    const int stratum = from > to ? from.index : to.index;
    array(name + ".scale", {static_cast<index_t>(scale.size())}, stratum, scale);
    array(name + ".bias", {static_cast<index_t>(bias.size())}, stratum, bias);
  }

  /// A level-sorted matrix: `name.shape` (rows, columns, block columns, row group), `name.order`, and per stratum s
  /// `name.values.s`, `name.indices.s`, `name.lengths.s`.
  template <class Scalar, class Index>
  void leveled_csr(const std::string& name, const LeveledCsr<Scalar, Index>& matrix) {
    const std::array<std::int64_t, 4> shape = {matrix.rows(), matrix.columns(), matrix.block_columns(),
                                               matrix.row_group()};
    array(name + ".shape", {4}, 0, std::span<const std::int64_t>(shape));
    array(name + ".order", {matrix.blocks(), matrix.rows()}, 0, matrix.order());
    for (int s = 0; s < matrix.levels(); ++s) {
      const auto& stratum = matrix.stratum(s);
      const std::string suffix = "." + std::to_string(s);
      const auto nnz = static_cast<index_t>(stratum.values.size());
      array(name + ".values" + suffix, {nnz}, s, stratum.values);
      array(name + ".indices" + suffix, {nnz}, s, stratum.indices);
      array(name + ".lengths" + suffix, {matrix.blocks(), matrix.rows()}, s, stratum.lengths);
    }
  }

 private:
  Archive& archive_;
};

/// Reads parameters from an archive, which does not change meanwhile. The first error is kept (`status()`); after it
/// every read returns something empty.
class ParameterSource {
 public:
  STRATA_COLD explicit ParameterSource(const Archive& archive)
      : archive_(archive), taken_(archive.arrays().size(), false) {
    auto owners = std::make_shared<std::vector<std::shared_ptr<const void>>>(archive.owners());
    owner_ = std::move(owners);
  }

  [[nodiscard]] int levels() const noexcept { return archive_.levels(); }
  [[nodiscard]] bool has(const std::string& name) const noexcept { return archive_.find(name) != nullptr; }
  /// Keeps the memory of every view alive.
  [[nodiscard]] const std::shared_ptr<const void>& owner() const noexcept { return owner_; }

  /// View of the array `name`. Errors: missing, another type, another shape.
  template <class T>
  std::span<const T> array(const std::string& name, const std::vector<index_t>& shape) {
    const ArrayView* found = take(name, data_type_of<T>(), shape);
    if (found == nullptr) return {};
    return found->as<T>();
  }

  /// Views of `name.0` .. `name.<levels-1>`, each of `size` entries.
  template <class T>
  STRATA_COLD std::vector<std::span<const T>> per_level(const std::string& name, index_t size) {
    std::vector<std::span<const T>> views;
    for (int level = 0; level < levels(); ++level)
      views.push_back(array<T>(name + "." + std::to_string(level), {size}));
    return views;
  }

  /// The level-sorted matrix `name`. Errors: missing arrays, another shape, anything `LeveledCsr::from_arrays` refuses.
  template <class Scalar, class Index>
  STRATA_COLD LeveledCsr<Scalar, Index> leveled_csr(const std::string& name, index_t rows, index_t columns) {
    using Matrix = LeveledCsr<Scalar, Index>;
    const MatrixShape shape = matrix_shape(name, rows, columns, Matrix::max_block_columns);
    if (error_) return {};
    std::vector<typename Matrix::Arrays> arrays;
    for (int s = 0; s < levels(); ++s) {
      const MatrixArrays views =
          matrix_arrays(name, s, rows, shape.blocks, data_type_of<Scalar>(), data_type_of<Index>());
      if (error_) return {};
      arrays.push_back({views[0]->as<Scalar>(), views[1]->as<Index>(), views[2]->as<Index>()});
    }
    Result<Matrix> matrix =
        Matrix::from_arrays(rows, columns, shape.block_columns, shape.row_group, shape.order, arrays, owner_);
    if (!matrix) {
      fail(matrix.error().within(name));
      return {};
    }
    return std::move(matrix).value();
  }

  /// Remembers `error` unless there is one already.
  void fail(Error error) {
    if (!error_) error_ = std::move(error);
  }

  /// The first error so far.
  [[nodiscard]] Status status() const { return error_ ? Status(*error_) : success(); }

  /// The first error, or one that names an array nobody asked for. Names that start with `reserved` are left alone.
  [[nodiscard]] STRATA_COLD Status finish(const std::string& reserved) const {
    if (error_) return *error_;
    const std::vector<ArrayView>& arrays = archive_.arrays();
    for (std::size_t i = 0; i < arrays.size(); ++i)
      if (!taken_[i] && !arrays[i].name.starts_with(reserved))
        return Error({arrays[i].name}, {"no such parameter in this network"},
                     {"an array of shape ", text(arrays[i].shape)});
    return success();
  }

 private:
  STRATA_COLD const ArrayView* take(const std::string& name, DataType type, const std::vector<index_t>& shape) {
    if (error_) return nullptr;
    const ArrayView* found = archive_.find(name);
    if (found == nullptr) {
      fail(Error(name, "a parameter of that name", "none"));
      return nullptr;
    }
    taken_[static_cast<std::size_t>(found - archive_.arrays().data())] = true;
    if (found->type != type) {
      fail(Error({name}, {"type ", name_of(type)}, {name_of(found->type)}));
      return nullptr;
    }
    if (found->shape != shape) {
      fail(Error({name}, {"shape ", text(shape)}, {text(found->shape)}));
      return nullptr;
    }
    if (const index_t bytes = found->size() * size_of(type); static_cast<index_t>(found->bytes.size()) != bytes) {
      fail(Error({name}, {bytes, " bytes"}, {found->bytes.size()}));
      return nullptr;
    }
    return found;
  }

  /// What a level-sorted matrix has once.
  struct MatrixShape {
    index_t block_columns = 1;
    index_t blocks = 0;
    index_t row_group = 1;
    std::span<const std::uint8_t> order;
  };
  /// Values, indices and lengths of one stratum.
  using MatrixArrays = std::array<const ArrayView*, 3>;

  /// Of the matrix `name`, of any types. The first error is kept.
  STRATA_COLD MatrixShape matrix_shape(const std::string& name, index_t rows, index_t columns,
                                       index_t max_block_columns) {
    constexpr index_t max_row_group = LeveledCsr<float, ConvIndex>::max_row_group;  // of all index types
    const auto shape = array<std::int64_t>(name + ".shape", {4});
    if (error_) return {};
    if (shape[0] != rows || shape[1] != columns) {
      fail(Error({name}, {rows, " x ", columns}, {shape[0], " x ", shape[1]}));
      return {};
    }
    if (shape[2] < 1 || shape[2] > max_block_columns) {
      fail(Error({name}, {"1 to ", max_block_columns, " columns a block"}, {shape[2]}));
      return {};
    }
    if (shape[3] < 1 || shape[3] > max_row_group) {
      fail(Error({name}, {"1 to ", max_row_group, " rows a group"}, {shape[3]}));
      return {};
    }
    const auto block_columns = static_cast<index_t>(shape[2]);
    const index_t blocks = ceil_div(columns, block_columns);
    return {block_columns, blocks, static_cast<index_t>(shape[3]),
            array<std::uint8_t>(name + ".order", {blocks, rows})};
  }

  /// Of stratum `s` of the matrix `name`. The first error is kept; without one none is null.
  STRATA_COLD MatrixArrays matrix_arrays(const std::string& name, int s, index_t rows, index_t blocks, DataType scalar,
                                         DataType index) {
    const std::string suffix = "." + std::to_string(s);
    const std::string values = name + ".values" + suffix;
    const ArrayView* found = archive_.find(values);
    const index_t nnz = found == nullptr ? 0 : found->size();
    return {take(values, scalar, {nnz}), take(name + ".indices" + suffix, index, {nnz}),
            take(name + ".lengths" + suffix, index, {blocks, rows})};
  }

  [[nodiscard]] STRATA_COLD static std::string text(const std::vector<index_t>& shape) {
    std::string result = "[";
    for (std::size_t i = 0; i < shape.size(); ++i) result += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
    return result + "]";
  }

  const Archive& archive_;
  std::shared_ptr<const void> owner_;
  std::vector<bool> taken_;  // of the archive's arrays
  std::optional<Error> error_;
};

}  // namespace strata
