// Level-sorted CSR: the one storage of a sparse weight matrix with all its nested levels. It owns or views the arrays
// and checks them; what is computed with them is the kernels' business.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/sparse/stratum_map.hpp>

namespace strata {

/// A sparse rows x columns matrix stored stratum by stratum (arXiv 2112.10930): stratum 0 holds the non-zeros of
/// `Level{0}`, stratum s what `Level{s}` adds. Each stratum is a blocked CSR: columns are cut into blocks of
/// `block_columns()`, and the stratum lists block by block, in it row by row, in it by ascending column. Column indices
/// count from the start of their block, so that `Index` may be small. Level l is strata 0 .. l: switching level is
/// stopping earlier, nothing is repacked.
///
/// Immutable after it was made, hence safe to share between threads; copies share the arrays.
template <class Scalar, class Index>
class LeveledCsr {
 public:
  /// The non-zeros that one level adds.
  struct Stratum {
    std::span<const Scalar> values;
    std::span<const Index> indices;          ///< column of each value, counted from the start of its block
    std::span<const Index> lengths;          ///< [blocks][rows]: non-zeros of the row in the block
    std::span<const std::uint32_t> offsets;  ///< [blocks][row groups]: where the group's first row starts
  };

  /// Stored arrays of one stratum, as they come from a file.
  struct Arrays {
    std::span<const Scalar> values;
    std::span<const Index> indices;
    std::span<const Index> lengths;
  };

  /// Rows between two stored offsets; work is split between threads at multiples of it.
  static constexpr index_t row_group = 16;
  /// Widest block whose indices and row lengths both fit `Index`.
  static constexpr index_t max_block_columns = std::numeric_limits<Index>::max() < std::numeric_limits<index_t>::max()
                                                   ? static_cast<index_t>(std::numeric_limits<Index>::max())
                                                   : std::numeric_limits<index_t>::max();

  /// 0 x 0, one level.
  LeveledCsr() { strata_.resize(1); }

  /// Takes from the row-major rows x columns `weights` those that `map` puts in a level, zero or not.
  /// Errors: `weights` not of the map's size, `block_columns` outside 1 .. max_block_columns, 2^32 non-zeros or more.
  [[nodiscard]] static Result<LeveledCsr> try_from_dense(std::span<const Scalar> weights, const StratumMap& map,
                                                         index_t block_columns) {
    if (static_cast<index_t>(weights.size()) != map.size())
      return Error("level-sorted CSR", std::to_string(map.size()) + " weights", std::to_string(weights.size()));
    if (Status status = check_shape(map.rows(), map.columns(), block_columns); !status) return status.error();
    LeveledCsr matrix(map.rows(), map.columns(), block_columns);
    const auto strata = map.strata();
    auto storage = std::make_shared<Storage>();
    std::vector<std::array<std::size_t, 2>> starts;  // of values and of lengths, stratum by stratum
    for (int level = 0; level < map.levels(); ++level) {
      starts.push_back({storage->values.size(), storage->lengths.size()});
      for (index_t block = 0; block < matrix.blocks(); ++block) {
        const index_t first = block * block_columns;
        for (index_t row = 0; row < map.rows(); ++row) {
          const std::size_t before = storage->values.size();
          for (index_t column = first; column < first + matrix.block_width(block); ++column) {
            const auto at = static_cast<std::size_t>(row * map.columns() + column);
            if (strata[at] != level) continue;
            storage->values.push_back(weights[at]);
            storage->indices.push_back(static_cast<Index>(column - first));
          }
          storage->lengths.push_back(static_cast<Index>(storage->values.size() - before));
        }
      }
    }
    starts.push_back({storage->values.size(), storage->lengths.size()});
    std::vector<Arrays> arrays;
    for (std::size_t s = 0; s + 1 < starts.size(); ++s) {
      const std::size_t nnz = starts[s + 1][0] - starts[s][0];
      arrays.push_back(
          {std::span<const Scalar>(storage->values).subspan(starts[s][0], nnz),
           std::span<const Index>(storage->indices).subspan(starts[s][0], nnz),
           std::span<const Index>(storage->lengths).subspan(starts[s][1], starts[s + 1][1] - starts[s][1])});
    }
    if (Status status = matrix.adopt(arrays); !status) return status.error();
    matrix.owner_ = std::move(storage);
    return matrix;
  }

  /// As `try_from_dense`; raises the error.
  [[nodiscard]] static LeveledCsr from_dense(std::span<const Scalar> weights, const StratumMap& map,
                                             index_t block_columns) {
    return try_from_dense(weights, map, block_columns).value();
  }

  /// Views the stored arrays of every stratum, which `owner` keeps alive. The arrays are checked whole: lengths that do
  /// not add up, columns outside their block, not ascending, or already in a lower stratum are errors.
  [[nodiscard]] static Result<LeveledCsr> from_arrays(index_t rows, index_t columns, index_t block_columns,
                                                      std::span<const Arrays> arrays,
                                                      const std::shared_ptr<const void>& owner = nullptr) {
    if (Status status = check_shape(rows, columns, block_columns); !status) return status.error();
    if (arrays.empty() || arrays.size() > StratumMap::max_levels)
      return Error("level-sorted CSR", "1 to 255 strata", std::to_string(arrays.size()));
    LeveledCsr matrix(rows, columns, block_columns);
    if (Status status = matrix.adopt(arrays); !status) return status.error();
    if (Status status = matrix.check_columns(); !status) return status.error();
    matrix.owner_ = owner;
    return matrix;
  }

  [[nodiscard]] index_t rows() const noexcept { return rows_; }
  [[nodiscard]] index_t columns() const noexcept { return columns_; }
  [[nodiscard]] index_t block_columns() const noexcept { return block_columns_; }
  [[nodiscard]] index_t blocks() const noexcept { return ceil_div(columns_, block_columns_); }
  [[nodiscard]] index_t row_groups() const noexcept { return ceil_div(rows_, row_group); }
  /// Columns of `block`; the last one may be narrower than the others.
  [[nodiscard]] index_t block_width(index_t block) const noexcept {
    const index_t rest = columns_ - block * block_columns_;
    return rest < block_columns_ ? rest : block_columns_;
  }
  [[nodiscard]] int levels() const noexcept { return static_cast<int>(strata_.size()); }
  [[nodiscard]] const Stratum& stratum(int index) const noexcept { return strata_[static_cast<std::size_t>(index)]; }

  /// Non-zeros of `level`: where to cut the stratum-by-stratum arrays to have that level.
  [[nodiscard]] index_t nnz(Level level) const noexcept {
    index_t count = 0;
    for (int s = 0; s <= level.index && s < levels(); ++s) count += static_cast<index_t>(stratum(s).values.size());
    return count;
  }

  /// Bytes of the arrays that `level` reads: values, indices, lengths, offsets.
  [[nodiscard]] index_t bytes(Level level) const noexcept {
    index_t count = 0;
    for (int s = 0; s <= level.index && s < levels(); ++s)
      count += static_cast<index_t>(stratum(s).values.size_bytes() + stratum(s).indices.size_bytes() +
                                    stratum(s).lengths.size_bytes() + stratum(s).offsets.size_bytes());
    return count;
  }

  /// The same arrays up to `level`, which becomes the fullest. Shares the memory. Precondition: level.index < levels().
  [[nodiscard]] LeveledCsr truncated(Level level) const {
    LeveledCsr copy = *this;
    copy.strata_.resize(static_cast<std::size_t>(level.index) + 1);
    return copy;
  }

  /// Row-major rows x columns copy of what `level` holds, zero elsewhere.
  [[nodiscard]] std::vector<Scalar> to_dense(Level level) const {
    std::vector<Scalar> dense(static_cast<std::size_t>(rows_ * columns_), Scalar{0});
    for (int s = 0; s <= level.index && s < levels(); ++s) {
      std::size_t next = 0;
      for (index_t block = 0; block < blocks(); ++block)
        for (index_t row = 0; row < rows_; ++row)
          for (Index k = 0; k < stratum(s).lengths[static_cast<std::size_t>(block * rows_ + row)]; ++k, ++next)
            dense[static_cast<std::size_t>(row * columns_ + block * block_columns_) + stratum(s).indices[next]] =
                stratum(s).values[next];
    }
    return dense;
  }

 private:
  struct Storage {
    std::vector<Scalar> values;
    std::vector<Index> indices;
    std::vector<Index> lengths;
  };

  LeveledCsr(index_t rows, index_t columns, index_t block_columns)
      : rows_(rows), columns_(columns), block_columns_(block_columns) {}

  [[nodiscard]] static Status check_shape(index_t rows, index_t columns, index_t block_columns) {
    if (rows < 0 || columns < 0)
      return Error("level-sorted CSR", "a shape of 0 or more", std::to_string(rows) + " x " + std::to_string(columns));
    if (block_columns < 1 || block_columns > max_block_columns)
      return Error("level-sorted CSR", "1 to " + std::to_string(max_block_columns) + " columns a block",
                   std::to_string(block_columns));
    return success();
  }

  /// Views `arrays` and derives the row-group offsets. Errors: sizes that do not fit together.
  [[nodiscard]] Status adopt(std::span<const Arrays> arrays) {
    const auto segments = static_cast<std::size_t>(blocks() * rows_);
    auto offsets = std::make_shared<std::vector<std::uint32_t>>();
    const auto groups = static_cast<std::size_t>(blocks() * row_groups());
    offsets->reserve(arrays.size() * groups);
    for (std::size_t s = 0; s < arrays.size(); ++s) {
      const std::string place = "stratum " + std::to_string(s);
      if (arrays[s].lengths.size() != segments)
        return Error(place + " lengths", std::to_string(segments) + " entries",
                     std::to_string(arrays[s].lengths.size()));
      if (arrays[s].indices.size() != arrays[s].values.size())
        return Error(place + " indices", std::to_string(arrays[s].values.size()) + " entries, one a value",
                     std::to_string(arrays[s].indices.size()));
      if (arrays[s].values.size() > std::numeric_limits<std::uint32_t>::max())
        return Error(place + " values", "fewer than 2^32 non-zeros", std::to_string(arrays[s].values.size()));
      std::uint64_t sum = 0;
      for (index_t block = 0; block < blocks(); ++block)
        for (index_t row = 0; row < rows_; ++row) {
          if (row % row_group == 0) offsets->push_back(static_cast<std::uint32_t>(sum));
          sum += arrays[s].lengths[static_cast<std::size_t>(block * rows_ + row)];
          if (sum > arrays[s].values.size()) break;
        }
      if (sum != arrays[s].values.size())
        return Error(place + " lengths", "a sum of " + std::to_string(arrays[s].values.size()),
                     (sum > arrays[s].values.size() ? "more than that" : std::to_string(sum)));
    }
    strata_.clear();
    for (std::size_t s = 0; s < arrays.size(); ++s)
      strata_.push_back({arrays[s].values, arrays[s].indices, arrays[s].lengths,
                         std::span<const std::uint32_t>(*offsets).subspan(s * groups, groups)});
    offsets_ = std::move(offsets);
    return success();
  }

  [[nodiscard]] Status check_columns() const {
    std::vector<std::size_t> next(strata_.size(), 0);
    std::vector<index_t> taken(static_cast<std::size_t>(block_columns_), -1);  // last segment that used the column
    for (index_t block = 0; block < blocks(); ++block)
      for (index_t row = 0; row < rows_; ++row) {
        const index_t segment = block * rows_ + row;
        for (std::size_t s = 0; s < strata_.size(); ++s) {
          index_t previous = -1;
          for (Index k = 0; k < strata_[s].lengths[static_cast<std::size_t>(segment)]; ++k, ++next[s]) {
            const auto column = static_cast<index_t>(strata_[s].indices[next[s]]);
            const auto place = [&] { return "stratum " + std::to_string(s) + " row " + std::to_string(row); };
            if (column >= block_width(block))
              return Error(place() + " indices", "columns below " + std::to_string(block_width(block)),
                           std::to_string(column));
            if (column <= previous)
              return Error(place() + " indices", "ascending columns",
                           std::to_string(column) + " after " + std::to_string(previous));
            if (taken[static_cast<std::size_t>(column)] == segment)
              return Error(place() + " indices", "columns that no lower stratum holds",
                           "column " + std::to_string(block * block_columns_ + column) + " again");
            taken[static_cast<std::size_t>(column)] = segment;
            previous = column;
          }
        }
      }
    return success();
  }

  index_t rows_ = 0;
  index_t columns_ = 0;
  index_t block_columns_ = 1;
  std::vector<Stratum> strata_;
  std::shared_ptr<const std::vector<std::uint32_t>> offsets_;
  std::shared_ptr<const void> owner_;
};

}  // namespace strata
