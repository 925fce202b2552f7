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
  CHECK_FALSE(Matrix::from_arrays(2, 3, 2, 64, {}, arrays).ok());
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
