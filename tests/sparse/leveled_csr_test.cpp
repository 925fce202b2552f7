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
  CHECK_FALSE(Matrix::from_arrays(2, 3, 2, arrays).ok());
}
