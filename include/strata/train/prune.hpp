// Nested levels of a network that was trained elsewhere, by magnitude alone. Training (train/fit.hpp) makes better
// ones; these are there at once, and are what a speed can be measured with.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/executor.hpp>
#include <strata/core/types.hpp>
#include <strata/sparse/budget.hpp>
#include <strata/sparse/stratum_map.hpp>
#include <strata/train/allocation.hpp>
#include <strata/train/parameter.hpp>
#include <strata/train/training.hpp>

namespace strata::train {

/// Passes one input of zeros through `network`, which tells each of its weights how often it is used: what budgets of
/// FLOPs count by. Weights, statistics and levels stay as they are. For networks of one input tensor; others tell by a
/// pass of their own with `Context::training` false. `Scalar` is the network's. Raises: layers that do not fit
/// together.
template <class Scalar = float, class Network>
void count_uses(const Network& network) {
  SerialExecutor executor;
  Context<Scalar> context(executor);
  context.training = false;
  context.begin(Level{0});
  const std::vector<Scalar> zeros(static_cast<std::size_t>(network.input_shape().size()));
  (void)network(context, input_tensor(context, zeros.data(), 1, network.input_shape()));
}

struct PruneOptions {
  double floor = 0;  ///< least density of every weight matrix at every level
  /// Least densities of single ones by name ("conv1.weight"), in the place of `floor`.
  std::vector<std::pair<std::string, double>> floors = {};
};

/// Makes levels of `network` within `budgets`, sparsest first: the largest weights over the deviation of their layer,
/// as `allocate` chooses them, and makes the network ready for them. Weights that are zero, as in a checkpoint that was
/// sparse before, belong to no level. A network with normalisations needs `recalibrate` (train/recalibration.hpp)
/// next: until then all levels have the statistics that it had before. Errors, with nothing changed: those of
/// `allocate`, floors of unknown names or outside [0, 1], layers that do not fit together. `Scalar` is the network's.
/// Precondition: a network of several inputs has run once.
template <class Scalar = float, class Network>
[[nodiscard]] Status prune(Network& network, const std::vector<LevelBudget>& budgets,
                           const PruneOptions& options = {}) {
  if constexpr (requires { network.input_shape(); }) {
    const auto pass = [&] {
      count_uses<Scalar>(network);
      return success();
    };
    if (Status status = returning_errors(pass); !status) return status;
  }
  const auto is_density = [](double value) { return value >= 0 && value <= 1; };
  if (!is_density(options.floor)) return Error({"floor"}, {"0 to 1"}, {options.floor});
  std::vector<PrunableLayer<Scalar>> layers;
  for (auto* parameter : parameters<Scalar>(network)) {
    if (!is_budgeted(*parameter)) continue;
    PrunableLayer<Scalar> layer{parameter};
    // Zeros of earlier pruning would make the layer's remaining weights look large.
    const auto kept = static_cast<double>((parameter->value != 0).count());
    const auto size = static_cast<double>(parameter->value.size());
    layer.scale = weight_scale(*parameter) * (kept > 0 ? std::sqrt(size / kept) : 1.0);
    layer.floor = options.floor;
    layers.push_back(layer);
  }
  for (const auto& [name, density] : options.floors) {
    const auto layer = std::find_if(layers.begin(), layers.end(),
                                    [&name = name](const auto& other) { return other.weight->name == name; });
    if (layer == layers.end()) return Error({"floors"}, {"names of weight matrices"}, {name});
    if (!is_density(density)) return Error({"floor of ", name}, {"0 to 1"}, {density});
    layer->floor = density;
  }
  if (Status status = allocate(layers, budgets); !status) return status;
  set_levels(network, static_cast<int>(budgets.size()));
  for (const auto& layer : layers)
    for (std::size_t i = 0; i < layer.weight->strata.size(); ++i)
      if (layer.weight->value[static_cast<index_t>(i)] == 0) layer.weight->strata[i] = StratumMap::absent;
  return success();
}

}  // namespace strata::train
