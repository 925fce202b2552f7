// ResNets with random weights and random nested masks, for measurements of speed: what a run costs depends on how many
// weights each layer keeps, not on their values. Models for use come from training or from the converter.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/sparse/budget.hpp>
#include <strata/train/allocation.hpp>
#include <strata/train/training.hpp>

#include "network.hpp"

namespace resnet {

using TrainingNet = ResNet<strata::train::Training<float>>;

/// Which share of each layer's weights a level keeps: uniform, the first layer `first_factor` times as dense, all times
/// (uses / most uses)^-tilt. With `hold_flops` the tilt is the least for which the FLOP bound holds while the weight
/// bound is used up, or 0 if it holds anyway; without, 0. `within`: densities of the level above, none is exceeded.
[[nodiscard]] inline std::vector<double> random_densities(std::span<const strata::LayerCount> layers,
                                                          const strata::LevelBudget& budget, bool hold_flops,
                                                          std::span<const double> within, double first_factor = 3) {
  double weights = 0;
  double flops = 0;
  double most_uses = 1;
  for (const auto& layer : layers) {
    const auto size = static_cast<double>(layer.rows * layer.columns);
    weights += size;
    flops += size * static_cast<double>(layer.uses);
    most_uses = std::max(most_uses, static_cast<double>(layer.uses));
  }
  std::vector<double> densities(layers.size());
  const auto fill = [&](double tilt, double base) {
    double kept = 0;
    double used = 0;
    for (std::size_t l = 0; l < layers.size(); ++l) {
      const double factor = std::pow(static_cast<double>(layers[l].uses) / most_uses, -tilt);
      const double most = within.empty() ? 1.0 : within[l];
      densities[l] = std::min(most, base * factor * (l == 0 ? first_factor : 1.0));
      const double count = densities[l] * static_cast<double>(layers[l].rows * layers[l].columns);
      kept += count;
      used += count * static_cast<double>(layers[l].uses);
    }
    return std::array{kept / weights, used / flops};
  };
  const auto solve = [&](double tilt) {  // the base that uses up the weight bound; the share of FLOPs that follows
    double low = 0;
    double high = 1;
    for (int i = 0; i < 60; ++i) {
      const double middle = (low + high) / 2;
      (fill(tilt, middle)[0] > budget.weights ? high : low) = middle;
    }
    return fill(tilt, low)[1];
  };
  if (solve(0) <= budget.flops || !hold_flops) return densities;
  double low = 0;
  double high = 4;
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (solve(middle) > budget.flops ? low : high) = middle;
  }
  if (solve(high) > budget.flops)
    strata::raise(strata::Error(
        "budget", "FLOPs that the weights can be spread within",
        std::to_string(budget.weights) + " of the weights, " + std::to_string(budget.flops) + " of the FLOPs"));
  return densities;
}

/// Weights and norms drawn anew; every layer's outputs have about the variance that its inputs have.
inline void randomise(TrainingNet& network, std::uint64_t seed) {
  strata::train::initialise(network, seed);
  std::mt19937_64 random(seed ^ 0x5DEECE66DU);
  const auto uniform = [&](double low, double high) {
    return static_cast<float>(low + (high - low) * static_cast<double>(random() >> 11U) * 0x1p-53);
  };
  strata::for_each_layer(network, [&](const std::string&, const std::string&, auto& layer) {
    if constexpr (std::remove_cvref_t<decltype(layer)>::has_parameters)
      for (auto& norm : layer.norms())
        for (index_t c = 0; c < norm.gamma.value.size(); ++c) {
          norm.gamma.value[c] = uniform(0.5, 1);
          norm.beta.value[c] = uniform(-0.2, 0.2);
          norm.running_mean[c] = uniform(-0.2, 0.2);
          norm.running_variance[c] = uniform(0.8, 1.2);
        }
  });
}

/// Gives `network` nested masks of the largest weights of each layer at `random_densities`. The norms of a level make
/// up for what the layer lost in variance, so that activations neither vanish nor grow. Raises: budgets that
/// `check_budgets` or `random_densities` refuse. Precondition: `train::count_uses`.
inline void mask_randomly(TrainingNet& network, const std::vector<strata::LevelBudget>& budgets, bool hold_flops) {
  (void)strata::check_budgets(budgets).value();
  const auto levels = static_cast<int>(budgets.size());
  const auto counts = strata::train::count_layers<float>(network, 1);
  std::vector<std::vector<double>> densities(budgets.size());
  for (std::size_t level = budgets.size(); level-- > 0;)
    densities[level] = random_densities(
        counts, budgets[level], hold_flops,
        level + 1 < budgets.size() ? std::span<const double>(densities[level + 1]) : std::span<const double>());
  strata::train::set_levels(network, levels);
  std::size_t l = 0;
  strata::for_each_layer(network, [&](const std::string&, const std::string&, auto& layer) {
    if constexpr (std::remove_cvref_t<decltype(layer)>::has_parameters) {
      auto& weight = layer.weight();
      const auto size = static_cast<std::size_t>(weight.value.size());
      std::vector<std::uint32_t> order(size);
      std::iota(order.begin(), order.end(), 0U);
      const auto larger = [&](std::uint32_t a, std::uint32_t b) {
        const float x = std::abs(weight.value[static_cast<index_t>(a)]);
        const float y = std::abs(weight.value[static_cast<index_t>(b)]);
        return x != y ? x > y : a < b;
      };
      weight.strata.assign(size, strata::StratumMap::absent);
      const double whole = static_cast<double>(weight.value.square().sum());
      auto end = order.end();
      for (int level = levels - 1; level >= 0; --level) {
        // The least that rounding down may leave is one weight.
        const double share = densities[static_cast<std::size_t>(level)][l];
        const auto kept = static_cast<std::ptrdiff_t>(std::max(1.0, share * static_cast<double>(size)));
        if (kept < end - order.begin()) std::nth_element(order.begin(), order.begin() + kept, end, larger);
        end = order.begin() + std::min(kept, end - order.begin());
        double energy = 0;
        for (auto i = order.begin(); i != end; ++i) {
          weight.strata[*i] = static_cast<std::uint8_t>(level);
          const auto value = static_cast<double>(weight.value[static_cast<index_t>(*i)]);
          energy += value * value;
        }
        if (!layer.norms().empty())
          layer.norms()[static_cast<std::size_t>(level)].gamma.value *= static_cast<float>(std::sqrt(whole / energy));
      }
      for (std::size_t i = 0; i < size; ++i)
        if (weight.strata[i] == strata::StratumMap::absent) weight.value[static_cast<index_t>(i)] = 0;
      ++l;
    }
  });
}

}  // namespace resnet
