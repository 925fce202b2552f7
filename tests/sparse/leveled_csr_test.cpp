#include <algorithm>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <strata/layers/parameters.hpp>

#include "support/catch.hpp"

TEST_CASE("a level is the truncation of the arrays, and bad arrays are refused") {
  std::vector<std::uint8_t> strata = {0, 1, 255, 1, 0, 255};
  auto map = strata::StratumMap::from_strata(2, 3, 2, strata).value();
  std::vector<float> weights = {1, 2, 3, 4, 5, 6};
  using Matrix = strata::LeveledCsr<float, std::uint8_t>;
  auto matrix = Matrix::from_dense(weights, map, 2);
  CHECK(matrix.nnz(strata::Level{0}) == 2);
  CHECK(matrix.nnz(strata::Level{1}) == 4);
  CHECK(matrix.to_dense(strata::Level{0}) == std::vector<float>{1, 0, 0, 0, 5, 0});
  CHECK(matrix.to_dense(strata::Level{1}) == std::vector<float>{1, 2, 0, 4, 5, 0});
  std::vector<Matrix::Arrays> arrays(2);
  CHECK_FALSE(Matrix::from_arrays(2, 3, 2, 64, {}, arrays, nullptr).ok());
}

TEST_CASE("rows of a group lie by their lengths in stratum 0, then in stratum 1, and say which row they are") {
  // Non-zeros of rows 0 .. 4 in strata 0 and 1: (2, 0), (1, 1), (0, 0), (1, 2), (0, 1).
  const std::vector<std::uint8_t> strata = {0, 0, 255, 0, 1, 255, 255, 255, 255, 1, 0, 1, 255, 255, 1};
  const auto map = strata::StratumMap::from_strata(5, 3, 2, strata).value();
  std::vector<float> weights(15);
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(i + 1);
  using Matrix = strata::LeveledCsr<float, std::uint8_t>;
  const auto together = Matrix::from_dense(weights, map, 3);
  CHECK(std::vector<std::uint8_t>(together.order().begin(), together.order().end()) ==
        std::vector<std::uint8_t>{2, 4, 3, 1, 0});
  const auto lengths = together.stratum(0).lengths;
  CHECK(std::vector<std::uint8_t>(lengths.begin(), lengths.end()) == std::vector<std::uint8_t>{0, 0, 1, 1, 2});
  CHECK(together.row_at(0, 2) == 3);
  for (const strata::index_t group : {1, 2, 3, 5, 256}) {
    const auto matrix = Matrix::from_dense(weights, map, 2, group);
    CHECK(matrix.row_groups() == strata::ceil_div(5, group));
    for (const int level : {0, 1})
      CHECK(matrix.to_dense(strata::Level{level}) == together.to_dense(strata::Level{level}));
    for (strata::index_t position = 0; position < 5; ++position)
      CHECK(matrix.row_at(1, position) / group == position / group);
  }
  CHECK_FALSE(Matrix::try_from_dense(weights, map, 3, 0).ok());
  CHECK_FALSE(Matrix::try_from_dense(weights, map, 3, 257).ok());
}

TEST_CASE("shapes beyond the integers or the arrays are errors, and take no memory") {
  constexpr strata::index_t most = std::numeric_limits<strata::index_t>::max();
  const std::vector<float> values = {1};
  const std::vector<std::uint8_t> order = {0};
  const auto refused = [&]<class Index>(Index, strata::index_t rows, strata::index_t columns, strata::index_t width,
                                        bool empty = true) {
    using Matrix = strata::LeveledCsr<float, Index>;
    const std::vector<Index> indices = {0};
    const std::vector<Index> lengths = {1};
    std::vector<typename Matrix::Arrays> arrays(1);
    if (!empty) arrays[0] = {values, indices, lengths};
    const std::vector<std::uint8_t> none;
    const auto matrix = Matrix::from_arrays(rows, columns, width, 256, empty ? none : order, arrays, nullptr);
    return matrix ? "accepted" : matrix.error().where();
  };
  constexpr std::uint8_t narrow = 0;
  constexpr std::uint32_t wide = 0;
  constexpr std::uint64_t widest = 0;
  const std::string shape = "level-sorted CSR";
  constexpr strata::index_t half = strata::index_t{1} << 33;
  CHECK(refused(wide, half, half, 4) == shape);
  CHECK(refused(narrow, strata::index_t{1} << 56, strata::index_t{256} * 255, 255) == shape);  // blocks x rows: 2^64
  CHECK(refused(narrow, most, most, 255) == shape);
  CHECK(refused(narrow, 1, most, 255) == shape);
  CHECK(refused(wide, half, half / 16, 4) == "stratum 0 lengths");
  CHECK(refused(widest, 1, strata::index_t{1} << 62, most) == shape);
  // Without rows or columns nothing is stored, however wide the other side is.
  CHECK(refused(narrow, 0, strata::index_t{1} << 62, 1) == "accepted");
  CHECK(refused(narrow, strata::index_t{1} << 62, 0, 1) == "accepted");
  CHECK(refused(wide, 0, 0, 4'294'967'295) == "accepted");
  // One row of one block, which is wider than the matrix or as wide as 2^32 columns.
  CHECK(refused(wide, 1, 1, 4'294'967'295, false) == "accepted");
  CHECK(refused(wide, 1, 4'294'967'295, 4'294'967'295, false) == "accepted");
  CHECK(refused(widest, 1, strata::index_t{1} << 62, strata::index_t{1} << 61, false) == "stratum 0 lengths");
  CHECK(refused(widest, 1, strata::index_t{1} << 61, strata::index_t{1} << 61, false) == "accepted");
}

TEST_CASE("a column that any lower stratum holds is refused, however many there are") {
  using Matrix = strata::LeveledCsr<float, std::uint8_t>;
  const std::vector<float> values(3, 1.0F);
  const std::vector<std::uint8_t> order = {0};
  std::mt19937 random(3);
  int accepted = 0;
  for (int trial = 0; trial < 2000; ++trial) {
    const std::size_t strata = 1 + random() % 4;
    const std::size_t width = 6 + random() % 20;
    std::vector<std::vector<std::uint8_t>> indices(strata);
    std::vector<std::vector<std::uint8_t>> lengths(strata);
    std::vector<int> taken(256, 0);
    bool good = true;
    std::vector<Matrix::Arrays> arrays;
    for (std::size_t s = 0; s < strata; ++s) {
      const std::size_t count = random() % 4;
      for (std::size_t k = 0; k < count; ++k) indices[s].push_back(static_cast<std::uint8_t>(random() % (width + 1)));
      if (trial % 8 != 0) std::sort(indices[s].begin(), indices[s].end());
      for (std::size_t k = 0; k < count; ++k) {
        const std::uint8_t column = indices[s][k];
        good = good && column < width && (k == 0 || column > indices[s][k - 1]) && taken[column]++ == 0;
      }
      lengths[s] = {static_cast<std::uint8_t>(count)};
      arrays.push_back({std::span<const float>(values).first(count), indices[s], lengths[s]});
    }
    INFO(trial);
    REQUIRE(Matrix::from_arrays(1, static_cast<strata::index_t>(width), 255, 64, order, arrays, nullptr).ok() == good);
    accepted += good ? 1 : 0;
  }
  CHECK(accepted > 100);
}
