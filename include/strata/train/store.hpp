// How layers with several weight matrices write them into an archive.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <strata/layers/parameters.hpp>
#include <strata/train/parameter.hpp>

namespace strata::train::detail {

/// Rows first .. first+rows-1 of a weight matrix as single-precision numbers.
template <class Scalar>
[[nodiscard]] std::vector<float> floats(const Parameter<Scalar>& parameter, index_t first, index_t count) {
  std::vector<float> result(static_cast<std::size_t>(count));
  for (index_t i = 0; i < count; ++i)
    result[static_cast<std::size_t>(i)] = static_cast<float>(parameter.value[first + i]);
  return result;
}
template <class Scalar>
[[nodiscard]] std::vector<float> floats(const Parameter<Scalar>& parameter) {
  return floats(parameter, 0, parameter.value.size());
}

/// Whether all weights are in level 0.
template <class Scalar>
[[nodiscard]] bool is_dense(const Parameter<Scalar>& parameter) {
  return std::all_of(parameter.strata.begin(), parameter.strata.end(), [](std::uint8_t s) { return s == 0; });
}

/// The strata of the weights `name`. Raises: non-zeros of levels that are not to be stored.
[[nodiscard]] inline StratumMap stratum_map(const std::string& name, index_t rows, index_t columns,
                                            std::vector<std::uint8_t> strata, const ParameterSink& sink) {
  auto map = StratumMap::from_strata(rows, columns, sink.levels(), std::move(strata));
  if (!map) raise(map.error().within(name));
  return std::move(map).value();
}

/// Rows first .. first+rows-1 of `parameter` level-sorted under `name`.
template <class Scalar>
void store_leveled_rows(const std::string& name, const Parameter<Scalar>& parameter, index_t first, index_t rows,
                        ParameterSink& sink) {
  const index_t columns = parameter.shape[1];
  std::vector<std::uint8_t> strata(parameter.strata.begin() + first * columns,
                                   parameter.strata.begin() + (first + rows) * columns);
  const StratumMap map = stratum_map(name, rows, columns, std::move(strata), sink);
  sink.leveled_csr(name, LeveledCsr<float, LinearIndex>::from_dense(floats(parameter, first * columns, rows * columns),
                                                                    map, linear_block_columns(columns)));
}

/// The matrix `parameter` under `name`: dense if all its weights are in level 0, else level-sorted.
template <class Scalar>
void store_matrix(const std::string& name, const Parameter<Scalar>& parameter, ParameterSink& sink) {
  if (is_dense(parameter)) {
    sink.array<float>(name, parameter.shape, 0, floats(parameter));
  } else {
    store_leveled_rows(name, parameter, 0, parameter.shape[0], sink);
  }
}

}  // namespace strata::train::detail
