#include <cstdint>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include <strata/sparse/stratum_map.hpp>

#include "support/catch.hpp"

using strata::Level;
using strata::StratumMap;
using Mask = std::vector<std::uint8_t>;

TEST_CASE("a dense map holds every weight at level 0") {
  const StratumMap map(2, 3);
  CHECK(map.levels() == 1);
  CHECK(map.nnz(Level{0}) == 6);
  CHECK(map.contains(5, Level{0}));
  CHECK(StratumMap().size() == 0);
}

TEST_CASE("masks become strata, and nest") {
  const std::vector<Mask> masks = {{1, 0, 0, 0}, {1, 1, 0, 0}, {1, 1, 0, 1}};
  const StratumMap map = StratumMap::from_masks(2, 2, masks).value();
  CHECK(map.levels() == 3);
  CHECK(std::vector<std::uint8_t>(map.strata().begin(), map.strata().end()) == Mask{0, 1, StratumMap::absent, 2});
  CHECK(map.nnz(Level{0}) == 1);
  CHECK(map.nnz(Level{1}) == 2);
  CHECK(map.nnz(Level{2}) == 3);
  for (strata::index_t weight = 0; weight < 4; ++weight)
    for (int level = 0; level < 3; ++level)
      CHECK(map.contains(weight, Level{level}) ==
            (masks[static_cast<std::size_t>(level)][static_cast<std::size_t>(weight)] != 0));
}

TEST_CASE("random nested masks round trip") {
  std::mt19937 random(7);
  for (int trial = 0; trial < 50; ++trial) {
    const auto rows = static_cast<strata::index_t>(random() % 6);
    const auto columns = static_cast<strata::index_t>(random() % 9);
    const int levels = 1 + static_cast<int>(random() % 4);
    std::vector<Mask> masks(static_cast<std::size_t>(levels), Mask(static_cast<std::size_t>(rows * columns), 0));
    for (std::size_t i = 0; i < masks[0].size(); ++i) {
      bool kept = false;
      for (Mask& mask : masks) mask[i] = static_cast<std::uint8_t>(kept = kept || random() % 3 == 0);
    }
    const StratumMap map = StratumMap::from_masks(rows, columns, masks).value();
    for (int level = 0; level < levels; ++level) {
      strata::index_t count = 0;
      for (strata::index_t weight = 0; weight < map.size(); ++weight) {
        const bool kept = masks[static_cast<std::size_t>(level)][static_cast<std::size_t>(weight)] != 0;
        count += kept ? 1 : 0;
        REQUIRE(map.contains(weight, Level{level}) == kept);
      }
      CHECK(map.nnz(Level{level}) == count);
    }
  }
}

TEST_CASE("maps that are not nested or do not fit are refused") {
  const auto dropped = StratumMap::from_masks(1, 2, std::vector<Mask>{{1, 0}, {0, 1}});
  REQUIRE_FALSE(dropped.ok());
  CHECK(dropped.error().where() == "mask of level 1");
  CHECK_FALSE(StratumMap::from_masks(1, 2, std::vector<Mask>{{1}}).ok());
  CHECK_FALSE(StratumMap::from_masks(1, 2, std::vector<Mask>{}).ok());
  CHECK_FALSE(StratumMap::from_strata(1, 2, 2, {0, 2}).ok());
  CHECK_FALSE(StratumMap::from_strata(1, 2, 0, {0, 0}).ok());
  CHECK_FALSE(StratumMap::from_strata(1, 2, 256, {0, 0}).ok());
  CHECK_FALSE(StratumMap::from_strata(1, 3, 1, {0, 0}).ok());
  CHECK_FALSE(StratumMap::from_strata(-1, -2, 1, {0, 0}).ok());
}

TEST_CASE("maps whose size is negative or beyond the integers are errors and take no memory") {
  constexpr strata::index_t half = strata::index_t{1} << 32;  // half x half is 2^64
  const std::vector<Mask> one = {{1}};
  const std::vector<Mask> none = {{}};
  for (const auto& [rows, columns] : {std::pair<strata::index_t, strata::index_t>{-1, 1},
                                      {1, -1},
                                      {-1, -1},
                                      {half, half},
                                      {half + 1, half - 1},
                                      {half, half / 2},
                                      {0, 5},
                                      {1, std::numeric_limits<strata::index_t>::max()}}) {
    INFO(rows << " x " << columns);
    CHECK(StratumMap::from_masks(rows, columns, one).error().where() == "mask of level 0");
    CHECK(StratumMap::from_strata(rows, columns, 1, {0}).error().where() == "stratum map");
    const bool empty = rows == 0 || columns == 0;
    CHECK(StratumMap::from_masks(rows, columns, none).ok() == empty);
    CHECK(StratumMap::from_strata(rows, columns, 1, {}).ok() == empty);
  }
  CHECK(StratumMap::from_masks(1, 1, std::vector<Mask>(255, Mask{1})).ok());
  CHECK(StratumMap::from_masks(1, 1, std::vector<Mask>(256, Mask{1})).error().found() == "256 levels");
  CHECK(StratumMap::from_masks(-1, 1, std::vector<Mask>{}).error().found() == "0 levels");
}
