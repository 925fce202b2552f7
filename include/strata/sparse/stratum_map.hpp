// The level of each weight of a matrix. Nested by construction: a weight is in every level from its own upwards.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>

namespace strata {

/// For each weight of a rows x columns matrix (row-major) the lowest level that holds it, or `absent`.
class StratumMap {
 public:
  static constexpr std::uint8_t absent = std::numeric_limits<std::uint8_t>::max();
  static constexpr int max_levels = absent;

  StratumMap() = default;

  /// All weights at level 0 (a dense model).
  StratumMap(index_t rows, index_t columns)
      : rows_(rows), columns_(columns), strata_(static_cast<std::size_t>(rows * columns), 0) {}

  /// From the stratum of every weight. Errors: wrong length, `levels` outside 1 .. 255, a stratum >= `levels` that is
  /// not `absent`.
  [[nodiscard]] static Result<StratumMap> from_strata(index_t rows, index_t columns, int levels,
                                                      std::vector<std::uint8_t> strata) {
    if (levels < 1 || levels > max_levels) return Error({"stratum map"}, {"1 to 255 levels"}, {levels, " levels"});
    if (!has_size(rows, columns, strata.size()))
      return Error({"stratum map"}, {rows, " x ", columns, " weights"}, {strata.size(), " entries"});
    for (std::size_t i = 0; i < strata.size(); ++i)
      if (strata[i] != absent && strata[i] >= levels)
        return Error({"stratum map"}, {"levels below ", levels}, {"level ", strata[i], " at weight ", i});
    StratumMap map;
    map.rows_ = rows;
    map.columns_ = columns;
    map.levels_ = levels;
    map.strata_ = std::move(strata);
    return map;
  }

  /// From one mask per level (non-zero: kept), sparsest first. Errors: not 1 .. 255 masks, masks of the wrong length,
  /// and a weight that a level keeps but the next drops (levels that are not nested).
  [[nodiscard]] static Result<StratumMap> from_masks(index_t rows, index_t columns,
                                                     std::span<const std::vector<std::uint8_t>> masks) {
    return returning_errors([&]() -> Result<StratumMap> {
      if (masks.empty() || masks.size() > static_cast<std::size_t>(max_levels))
        return Error({"stratum map"}, {"1 to 255 levels"}, {masks.size(), " levels"});
      for (std::size_t level = 0; level < masks.size(); ++level)
        if (!has_size(rows, columns, masks[level].size()))
          return Error({"mask of level ", level}, {rows, " x ", columns, " entries"}, {masks[level].size()});
      std::vector<std::uint8_t> strata(masks.front().size(), absent);
      for (std::size_t level = 0; level < masks.size(); ++level) {
        for (std::size_t i = 0; i < strata.size(); ++i) {
          if (masks[level][i] != 0) {
            if (strata[i] == absent) strata[i] = static_cast<std::uint8_t>(level);
          } else if (strata[i] != absent) {
            return Error({"mask of level ", level}, {"every weight of the level below (nested levels)"},
                         {"weight ", i, " dropped"});
          }
        }
      }
      return from_strata(rows, columns, static_cast<int>(masks.size()), std::move(strata));
    });
  }

  [[nodiscard]] index_t rows() const noexcept { return rows_; }
  [[nodiscard]] index_t columns() const noexcept { return columns_; }
  [[nodiscard]] index_t size() const noexcept { return rows_ * columns_; }
  [[nodiscard]] int levels() const noexcept { return levels_; }
  [[nodiscard]] std::span<const std::uint8_t> strata() const noexcept { return strata_; }

  [[nodiscard]] bool contains(index_t weight, Level level) const noexcept {
    const std::uint8_t stratum = strata_[static_cast<std::size_t>(weight)];
    return stratum != absent && stratum <= level.index;
  }

  /// Weights that `level` holds.
  [[nodiscard]] index_t nnz(Level level) const noexcept {
    index_t count = 0;
    for (std::uint8_t stratum : strata_) count += static_cast<index_t>(stratum != absent && stratum <= level.index);
    return count;
  }

 private:
  /// Whether rows x columns are `size`, however large the factors.
  [[nodiscard]] static bool has_size(index_t rows, index_t columns, std::size_t size) noexcept {
    if (rows < 0 || columns < 0) return false;
    if (rows == 0 || columns == 0) return size == 0;
    const auto height = static_cast<std::size_t>(rows);
    return size % height == 0 && size / height == static_cast<std::size_t>(columns);
  }

  index_t rows_ = 0;
  index_t columns_ = 0;
  int levels_ = 1;
  std::vector<std::uint8_t> strata_;
};

}  // namespace strata
