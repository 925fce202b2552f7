// Level-sorted CSR: the one storage of a sparse weight matrix with all its nested levels. It owns or views the arrays
// and checks them; what is computed with them is the kernels' business.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
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

namespace detail {

/// Sizes of the stored arrays of stratum `index`.
struct StratumSizes {
  std::size_t index;
  std::size_t values;
  std::size_t indices;
  std::size_t lengths;

  /// With `segments` row lengths.
  [[nodiscard]] bool fit(std::size_t segments) const noexcept {
    return lengths == segments && indices == values && values <= std::numeric_limits<std::uint32_t>::max();
  }
  /// Precondition: !fit(segments).
  [[nodiscard]] STRATA_COLD Error error(std::size_t segments) const {
    if (lengths != segments) return {{"stratum ", index, " lengths"}, {segments, " entries"}, {lengths}};
    if (indices != values) return {{"stratum ", index, " indices"}, {values, " entries, one a value"}, {indices}};
    return {{"stratum ", index, " values"}, {"fewer than 2^32 non-zeros"}, {values}};
  }
  /// For row lengths that add up to `sum`, which may be a part of it if it is too much.
  [[nodiscard]] STRATA_COLD Error sum_error(std::uint64_t sum) const {
    if (sum > values) return {{"stratum ", index, " lengths"}, {"a sum of ", values}, {"more than that"}};
    return {{"stratum ", index, " lengths"}, {"a sum of ", values}, {sum}};
  }
};

/// Whether `order` lists every row of every block and group once.
[[nodiscard]] inline Status check_row_order(std::span<const std::uint8_t> order, index_t rows, index_t blocks,
                                            index_t row_group) {
  if (order.size() != static_cast<std::size_t>(blocks * rows))
    return Error({"order"}, {blocks * rows, " entries"}, {order.size()});
  std::array<bool, 256> taken{};  // as many rows as a byte numbers
  for (index_t block = 0; rows > 0 && block < blocks; ++block)
    for (index_t first = 0; first < rows; first += row_group) {
      const index_t count = rows - first < row_group ? rows - first : row_group;
      taken.fill(false);
      for (index_t position = first; position < first + count; ++position) {
        const std::uint8_t row = order[static_cast<std::size_t>(block * rows + position)];
        if (row >= count)
          return Error({"order of block ", block, " position ", position}, {"a row below ", count}, {row});
        if (taken[row])
          return Error({"order of block ", block, " position ", position}, {"every row once"}, {"row ", row, " again"});
        taken[row] = true;
      }
    }
  return success();
}

}  // namespace detail

/// A sparse rows x columns matrix stored stratum by stratum (arXiv 2112.10930): stratum 0 holds the non-zeros of
/// `Level{0}`, stratum s what `Level{s}` adds. Each stratum is a blocked CSR: columns are cut into blocks of
/// `block_columns()`, and the stratum lists block by block, in it row by row, in it by ascending column. Column indices
/// count from the start of their block, so that `Index` may be small. Level l is strata 0 .. l: switching level is
/// stopping earlier, nothing is repacked.
///
/// Within a block and a group of `row_group()` rows, rows lie in an order of their own, shared by all strata: by their
/// number of non-zeros, so that loops over neighbouring rows end alike and processors predict their ends.
///
/// Immutable after it was made, hence safe to share between threads; copies share the arrays.
template <class Scalar, class Index>
class LeveledCsr {
 public:
  /// The non-zeros that one level adds.
  struct Stratum {
    std::span<const Scalar> values;
    std::span<const Index> indices;          ///< column of each value, counted from the start of its block
    std::span<const Index> lengths;          ///< [blocks][positions]: non-zeros in the block of the row stored there
    std::span<const std::uint32_t> offsets;  ///< [blocks][row groups]: where the group's first position starts
  };

  /// Stored arrays of one stratum, as they come from a file.
  struct Arrays {
    std::span<const Scalar> values;
    std::span<const Index> indices;
    std::span<const Index> lengths;
  };

  /// Rows that are ordered among themselves unless told otherwise (measured: 64 to 256 are as good as each other); work
  /// is split between threads at multiples of it.
  static constexpr index_t default_row_group = 64;
  /// Rows of a group are numbered in a byte.
  static constexpr index_t max_row_group = 256;
  /// Widest block whose indices and row lengths both fit `Index`.
  static constexpr index_t max_block_columns =
      std::numeric_limits<Index>::max() < std::numeric_limits<index_t>::max() / 2
          ? static_cast<index_t>(std::numeric_limits<Index>::max())
          : std::numeric_limits<index_t>::max() / 2;  // a sum with the columns is no overflow

  /// 0 x 0, one level.
  LeveledCsr() { strata_.resize(1); }

  /// Takes from the row-major rows x columns `weights` those that `map` puts in a level, zero or not.
  /// Errors: `weights` not of the map's size, `block_columns` outside 1 .. max_block_columns, `row_group` outside 1 ..
  /// max_row_group, 2^32 non-zeros or more.
  [[nodiscard]] static Result<LeveledCsr> try_from_dense(std::span<const Scalar> weights, const StratumMap& map,
                                                         index_t block_columns, index_t row_group = default_row_group) {
    return returning_errors([&]() -> Result<LeveledCsr> {
      if (static_cast<index_t>(weights.size()) != map.size())
        return Error({"level-sorted CSR"}, {map.size(), " weights"}, {weights.size()});
      if (Status status = check_shape(map.rows(), map.columns(), block_columns, row_group); !status)
        return status.error();
      LeveledCsr matrix(map.rows(), map.columns(), block_columns, row_group);
      const auto strata = map.strata();
      auto storage = std::make_shared<Storage>();
      storage->order = matrix.order_by_length(map);
      std::vector<std::array<std::size_t, 2>> starts;  // of values and of lengths, stratum by stratum
      for (int level = 0; level < map.levels(); ++level) {
        starts.push_back({storage->values.size(), storage->lengths.size()});
        for (index_t block = 0; block < matrix.blocks(); ++block) {
          const index_t first = block * block_columns;
          for (index_t position = 0; position < map.rows(); ++position) {
            const std::size_t before = storage->values.size();
            const index_t row = matrix.row_at(storage->order, block, position);
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
      matrix.order_ = storage->order;
      matrix.owner_ = std::move(storage);
      return matrix;
    });
  }

  /// As `try_from_dense`; raises the error.
  [[nodiscard]] static LeveledCsr from_dense(std::span<const Scalar> weights, const StratumMap& map,
                                             index_t block_columns, index_t row_group = default_row_group) {
    return try_from_dense(weights, map, block_columns, row_group).value();
  }

  /// Views the stored arrays of every stratum and the [blocks][rows] `order`, which `owner` keeps alive; null: the
  /// caller does, for as long as this matrix and its copies are there. The arrays are
  /// checked whole: a shape beyond the integers or that the arrays do not have, lengths that do not add up, columns
  /// outside their block, not ascending, or already in a lower stratum, and an order that lists a row of a group twice
  /// are errors. Memory is taken for what the arrays hold, not for the shape that they are said to have.
  [[nodiscard]] STRATA_COLD static Result<LeveledCsr> from_arrays(index_t rows, index_t columns, index_t block_columns,
                                                                  index_t row_group,
                                                                  std::span<const std::uint8_t> order,
                                                                  std::span<const Arrays> arrays,
                                                                  const std::shared_ptr<const void>& owner) {
    return returning_errors([&]() -> Result<LeveledCsr> {
      if (Status status = check_shape(rows, columns, block_columns, row_group); !status) return status.error();
      if (arrays.empty() || arrays.size() > StratumMap::max_levels)
        return Error("level-sorted CSR", "1 to 255 strata", arrays.size());
      LeveledCsr matrix(rows, columns, block_columns, row_group);
      if (Status status = matrix.adopt(arrays); !status) return status.error();
      if (Status status = detail::check_row_order(order, rows, matrix.blocks(), row_group); !status)
        return status.error();
      matrix.order_ = order;
      if (Status status = matrix.check_columns(); !status) return status.error();
      matrix.owner_ = owner;
      return matrix;
    });
  }

  [[nodiscard]] index_t rows() const noexcept { return rows_; }
  [[nodiscard]] index_t columns() const noexcept { return columns_; }
  [[nodiscard]] index_t block_columns() const noexcept { return block_columns_; }
  [[nodiscard]] index_t blocks() const noexcept { return ceil_div(columns_, block_columns_); }
  [[nodiscard]] index_t row_group() const noexcept { return row_group_; }
  [[nodiscard]] index_t row_groups() const noexcept { return ceil_div(rows_, row_group_); }
  /// [blocks][positions]: which row of its group is stored at a position of a block.
  [[nodiscard]] std::span<const std::uint8_t> order() const noexcept { return order_; }
  /// The row whose non-zeros in `block` are stored at `position` of the block.
  [[nodiscard]] index_t row_at(index_t block, index_t position) const noexcept {
    return row_at(order_, block, position);
  }
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

  /// Bytes of the arrays that `level` reads: values, indices, lengths, offsets, the order of rows.
  [[nodiscard]] index_t bytes(Level level) const noexcept {
    auto count = static_cast<index_t>(order_.size_bytes());
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

  /// Calls `f(row, first_column, indices, values)` for every run of a row's non-zeros in a block of columns that
  /// `level` holds, in the order in which they are stored; indices count from `first_column`.
  template <class F>
  void for_each_run(Level level, F&& f) const {
    for (int s = 0; s <= level.index && s < levels(); ++s) {
      const auto& arrays = stratum(s);
      std::size_t next = 0;
      for (index_t block = 0; block < blocks(); ++block)
        for (index_t position = 0; position < rows_; ++position) {
          const std::size_t length = arrays.lengths[static_cast<std::size_t>(block * rows_ + position)];
          if (length == 0) continue;
          f(row_at(block, position), block * block_columns_,
            std::span<const Index>(arrays.indices).subspan(next, length),
            std::span<const Scalar>(arrays.values).subspan(next, length));
          next += length;
        }
    }
  }
  /// Calls `f(row, column, value)` for the non-zeros that `level` holds.
  template <class F>
  void for_each(Level level, F&& f) const {
    for_each_run(level,
                 [&](index_t row, index_t first, std::span<const Index> indices, std::span<const Scalar> values) {
                   for (std::size_t k = 0; k < indices.size(); ++k)
                     f(row, first + static_cast<index_t>(indices[k]), values[k]);
                 });
  }

  /// Row-major rows x columns copy of what `level` holds, zero elsewhere.
  [[nodiscard]] std::vector<Scalar> to_dense(Level level) const {
    std::vector<Scalar> dense(static_cast<std::size_t>(rows_ * columns_), Scalar{0});
    for_each(level, [&](index_t row, index_t column, Scalar value) {
      dense[static_cast<std::size_t>(row * columns_ + column)] = value;
    });
    return dense;
  }

 private:
  struct Storage {
    std::vector<Scalar> values;
    std::vector<Index> indices;
    std::vector<Index> lengths;
    std::vector<std::uint8_t> order;
  };

  LeveledCsr(index_t rows, index_t columns, index_t block_columns, index_t row_group)
      : rows_(rows), columns_(columns), block_columns_(block_columns), row_group_(row_group) {}

  [[nodiscard]] STRATA_COLD static Status check_shape(index_t rows, index_t columns, index_t block_columns,
                                                      index_t row_group) {
    if (rows < 0 || columns < 0) return Error({"level-sorted CSR"}, {"a shape of 0 or more"}, {rows, " x ", columns});
    constexpr index_t most = index_t{1} << (std::numeric_limits<index_t>::digits - 1);
    if (rows > most || columns > most || (rows > 0 && columns > most / rows))
      return Error({"level-sorted CSR"}, {"a shape of at most ", most, " weights"}, {rows, " x ", columns});
    if (block_columns < 1 || block_columns > max_block_columns)
      return Error({"level-sorted CSR"}, {"1 to ", max_block_columns, " columns a block"}, {block_columns});
    if (row_group < 1 || row_group > max_row_group)
      return Error({"level-sorted CSR"}, {"1 to ", max_row_group, " rows a group"}, {row_group});
    return success();
  }

  [[nodiscard]] index_t row_at(std::span<const std::uint8_t> order, index_t block, index_t position) const noexcept {
    return position / row_group_ * row_group_ +
           static_cast<index_t>(order[static_cast<std::size_t>(block * rows_ + position)]);
  }

  /// The rows of every block and group, ascending by their non-zeros in stratum 0, then 1, ...; every other run of
  /// equal lengths descends in the next stratum, so that lengths change by little from row to row.
  [[nodiscard]] std::vector<std::uint8_t> order_by_length(const StratumMap& map) const {
    const auto strata = map.strata();
    const auto levels = static_cast<std::size_t>(map.levels());
    std::vector<std::uint8_t> order;
    order.reserve(static_cast<std::size_t>(blocks() * rows_));
    std::vector<index_t> lengths;  // [rows of the group][levels]
    for (index_t block = 0; block < blocks(); ++block)
      for (index_t first = 0; first < rows_; first += row_group_) {
        const index_t count = rows_ - first < row_group_ ? rows_ - first : row_group_;
        lengths.assign(static_cast<std::size_t>(count) * levels, 0);
        for (index_t r = 0; r < count; ++r)
          for (index_t c = 0; c < block_width(block); ++c) {
            const std::size_t level =
                strata[static_cast<std::size_t>((first + r) * columns_ + block * block_columns_ + c)];
            if (level < levels) ++lengths[static_cast<std::size_t>(r) * levels + level];
          }
        const auto start = static_cast<std::ptrdiff_t>(order.size());
        for (index_t r = 0; r < count; ++r) order.push_back(static_cast<std::uint8_t>(r));
        std::stable_sort(order.begin() + start, order.end(), [&](std::uint8_t a, std::uint8_t b) {
          bool descending = false;
          for (std::size_t s = 0; s < levels; ++s) {
            const index_t left = lengths[a * levels + s];
            const index_t right = lengths[b * levels + s];
            if (left != right) return (left < right) != descending;
            descending = left % 2 != 0;
          }
          return false;
        });
      }
    return order;
  }

  /// Views `arrays` and derives the row-group offsets. Errors: sizes that do not fit together.
  [[nodiscard]] STRATA_COLD Status adopt(std::span<const Arrays> arrays) {
    const auto segments = static_cast<std::size_t>(blocks() * rows_);
    const auto sizes_of = [&](std::size_t s) {
      return detail::StratumSizes{s, arrays[s].values.size(), arrays[s].indices.size(), arrays[s].lengths.size()};
    };
    for (std::size_t s = 0; s < arrays.size(); ++s)  // before memory is taken for the shape
      if (!sizes_of(s).fit(segments)) return sizes_of(s).error(segments);
    auto offsets = std::make_shared<std::vector<std::uint32_t>>();
    const auto groups = static_cast<std::size_t>(blocks() * row_groups());
    offsets->reserve(arrays.size() * groups);
    for (std::size_t s = 0; s < arrays.size(); ++s) {
      const detail::StratumSizes sizes = sizes_of(s);
      std::uint64_t sum = 0;
      for (index_t block = 0; rows_ > 0 && block < blocks(); ++block)
        for (index_t row = 0; row < rows_; ++row) {
          if (row % row_group_ == 0) offsets->push_back(static_cast<std::uint32_t>(sum));
          sum += arrays[s].lengths[static_cast<std::size_t>(block * rows_ + row)];
          if (sum > arrays[s].values.size()) break;
        }
      if (sum != sizes.values) return sizes.sum_error(sum);
    }
    strata_.clear();
    for (std::size_t s = 0; s < arrays.size(); ++s)
      strata_.push_back({arrays[s].values, arrays[s].indices, arrays[s].lengths,
                         std::span<const std::uint32_t>(*offsets).subspan(s * groups, groups)});
    offsets_ = std::move(offsets);
    return success();
  }

  /// What is wrong with `column` of a block, which follows `previous` in its row.
  [[nodiscard]] STRATA_COLD Error column_error(std::size_t stratum, index_t row, index_t block, index_t column,
                                               index_t previous) const {
    const Error::Text place = {"stratum ", stratum, " row ", row, " indices"};
    if (column >= block_width(block)) return {place, {"columns below ", block_width(block)}, {column}};
    if (column <= previous) return {place, {"ascending columns"}, {column, " after ", previous}};
    return {place, {"columns that no lower stratum holds"}, {"column ", block * block_columns_ + column, " again"}};
  }

  /// Whether a stratum below `stratum` holds the column `index` in `segment`, whose end `next` says for each of them.
  [[nodiscard]] STRATA_COLD bool held_below(std::size_t stratum, std::size_t segment, Index index,
                                            std::span<const std::size_t> next) const {
    for (std::size_t s = 0; s < stratum; ++s) {
      const std::size_t length = strata_[s].lengths[segment];
      const std::span<const Index> run = strata_[s].indices.subspan(next[s] - length, length);
      if (std::binary_search(run.begin(), run.end(), index)) return true;
    }
    return false;
  }

  [[nodiscard]] Status check_columns() const {
    std::vector<std::size_t> next(strata_.size(), 0);
    // Last segment that used the column, for the first ones of a block: a wide one may have more than fit the memory.
    const index_t tabled = std::min({block_columns_, columns_, index_t{1} << 16});
    std::vector<index_t> taken(static_cast<std::size_t>(tabled), -1);
    for (index_t block = 0; rows_ > 0 && block < blocks(); ++block)
      for (index_t position = 0; position < rows_; ++position) {
        const index_t segment = block * rows_ + position;
        for (std::size_t s = 0; s < strata_.size(); ++s) {
          index_t previous = -1;
          for (Index k = 0; k < strata_[s].lengths[static_cast<std::size_t>(segment)]; ++k, ++next[s]) {
            const Index index = strata_[s].indices[next[s]];
            const auto column = static_cast<index_t>(index);
            if (column >= block_width(block) || column <= previous)
              return column_error(s, row_at(block, position), block, column, previous);
            if (column < tabled ? taken[static_cast<std::size_t>(column)] == segment
                                : held_below(s, static_cast<std::size_t>(segment), index, next))
              return column_error(s, row_at(block, position), block, column, previous);
            if (column < tabled) taken[static_cast<std::size_t>(column)] = segment;
            previous = column;
          }
        }
      }
    return success();
  }

  index_t rows_ = 0;
  index_t columns_ = 0;
  index_t block_columns_ = 1;
  index_t row_group_ = default_row_group;
  std::vector<Stratum> strata_;
  std::span<const std::uint8_t> order_;
  std::shared_ptr<const std::vector<std::uint32_t>> offsets_;
  std::shared_ptr<const void> owner_;
};

}  // namespace strata
