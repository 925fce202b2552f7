// What a project that uses the library does first: include it, compile, run.
#include <cstdio>

#include <strata/strata.hpp>

int main() {
  const strata::StratumMap map(2, 2);
  const float weights[] = {1, 2, 3, 4};
  const auto matrix = strata::LeveledCsr<float, strata::LinearIndex>::from_dense(weights, map, 2);
  std::printf("strata %d.%d.%d\n", STRATA_VERSION_MAJOR, STRATA_VERSION_MINOR, STRATA_VERSION_PATCH);
  return matrix.nnz(strata::Level{0}) == 4 ? 0 : 1;
}
