// What training changes: a named array with its gradient and, for weights that may be pruned, the level of each entry.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/layers/module.hpp>
#include <strata/sparse/stratum_map.hpp>
#include <strata/train/tape.hpp>

namespace strata::train {

/// Shape: row-major, the first extent is the rows (out_channels, out_features).
template <class Scalar>
struct Parameter {
  using Array = Eigen::Array<Scalar, Eigen::Dynamic, 1>;

  std::string name;  ///< as in state_dict; `parameters` fills it
  std::vector<index_t> shape;
  Array value;
  Array gradient;  ///< same size; backward passes add to it
  /// Empty: all weights in every level; else as many as values: the stratum of each, or `StratumMap::absent`.
  std::vector<std::uint8_t> strata;
  bool levelled = false;      ///< may be pruned
  bool budgeted = true;       ///< a matrix that budgets count; false: a table of embeddings
  bool decay = false;         ///< weight decay applies
  int level = -1;             ///< of a normalisation: the only level that uses it; -1: all levels do
  index_t uses = 0;           ///< multiply-adds per weight and sample, as the last forward pass saw them
  std::uint64_t uses_in = 0;  ///< `Context::pass` of that pass

  Parameter() = default;
  Parameter(std::vector<index_t> extents, Scalar fill) : shape(std::move(extents)) {
    index_t size = 1;
    for (const index_t extent : shape) size *= extent;
    value = Array::Constant(size, fill);
    gradient = Array::Zero(size);
  }

  [[nodiscard]] bool contains(index_t i, Level at) const noexcept {
    if (strata.empty()) return true;
    const std::uint8_t stratum = strata[static_cast<std::size_t>(i)];
    return stratum != StratumMap::absent && stratum <= at.index;
  }
  /// Copies the values from the `first` on, zeros for those that the level lacks.
  void copy_values(index_t first, index_t count, Level at, Scalar* to) const {
    for_held(first, count, at, [&](index_t i, bool held) { to[i] = held ? value[first + i] : Scalar{0}; });
  }
  /// Adds to the gradient from its `first` element on, but not to what the level lacks.
  void add_to_gradient(index_t first, const Scalar* from, index_t count, Level at) {
    for_held(first, count, at, [&](index_t i, bool held) { gradient[first + i] += held ? from[i] : Scalar{0}; });
  }

 private:
  /// Calls `f(i, whether the level has first + i)`, without branches.
  template <class F>
  void for_held(index_t first, index_t count, Level at, F&& f) const {
    if (strata.empty()) {
      for (index_t i = 0; i < count; ++i) f(i, true);
      return;
    }
    const auto top = static_cast<std::uint8_t>(std::min(at.index, StratumMap::absent - 1));
    const std::uint8_t* const stratum = strata.data() + first;
    for (index_t i = 0; i < count; ++i) f(i, stratum[i] <= top);
  }
};

/// Raises: values or strata in another number than the shape has.
template <class Scalar>
void check_sizes(const Parameter<Scalar>& parameter) {
  index_t size = 1;
  for (const index_t extent : parameter.shape) size *= extent;
  if (parameter.value.size() != size) raise(Error({parameter.name}, {size, " values"}, {parameter.value.size()}));
  if (!parameter.strata.empty() && static_cast<index_t>(parameter.strata.size()) != size)
    raise(Error({parameter.name}, {size, " strata or none"}, {parameter.strata.size()}));
}

/// Notes that a pass multiplies with each entry of `weight` `uses` times a sample, beside other uses in the same pass.
/// Raises in a checking pass: a weight without a name, or what `check_sizes` refuses.
template <class Scalar>
void note_uses(const Context<Scalar>& context, Parameter<Scalar>& weight, index_t uses) {
  if (weight.uses_in != context.pass()) weight.uses = 0;
  weight.uses_in = context.pass();
  weight.uses += uses;
  if (!context.checking) return;
  if (!weight.name.empty()) return check_sizes(weight);
  std::string shape;
  for (const index_t extent : weight.shape) shape += (shape.empty() ? "" : " x ") + std::to_string(extent);
  raise(strata::detail::left_out({"a layer with weights of ", shape}));
}

/// Whether `parameter` is one of the weights that budgets speak of.
template <class Scalar>
[[nodiscard]] bool is_budgeted(const Parameter<Scalar>& parameter) {
  return parameter.budgeted && parameter.shape.size() > 1;
}

}  // namespace strata::train
