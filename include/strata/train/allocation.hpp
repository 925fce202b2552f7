// Which weights each level keeps: one ranking over the whole network, floors per layer, and a price on FLOPs that makes
// both bounds of a budget hold. It decides from magnitudes; when to prune is the recipe's business.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/sparse/budget.hpp>
#include <strata/train/parameter.hpp>

namespace strata::train {

/// A layer as the allocation sees it.
template <class Scalar>
struct PrunableLayer {
  Parameter<Scalar>* weight = nullptr;
  double scale = 1;  ///< root mean square of the dense model's weights; taken before pruning, as pruned layers shrink
  double floor = 0;  ///< least density at every level
};

/// The root mean square of a layer's weights; 1 for a layer of zeros.
template <class Scalar>
[[nodiscard]] double weight_scale(const Parameter<Scalar>& weight) {
  const double square = static_cast<double>(weight.value.square().sum());
  return square > 0 ? std::sqrt(square / static_cast<double>(weight.value.size())) : 1.0;
}

namespace detail {

struct Candidate {
  double score;
  std::uint32_t layer;
  std::uint32_t weight;
};

}  // namespace detail

/// Chooses the strata of all layers: level by level from the fullest down, each level inside the one above it. A
/// weight's score is |w| / scale - price * uses; the price is the least for which the FLOP bound holds when the weight
/// bound is used up, found by bisection (a Lagrangian of the two bounds). Budgets are upper bounds on shares of all
/// weights and FLOPs of `layers`; layers that are not levelled are kept whole and counted. Ties go to the earlier
/// weight, so the result is the same everywhere. Errors: bad budgets, floors or unprunable layers that alone exceed a
/// level's budget (names the level).
template <class Scalar>
[[nodiscard]] Status allocate(const std::vector<PrunableLayer<Scalar>>& layers,
                              const std::vector<LevelBudget>& budgets) {
  if (Status status = check_budgets(budgets); !status) return status;
  double total_weights = 0;
  double total_flops = 0;
  double most_uses = 1;
  for (const auto& layer : layers) {
    const auto size = static_cast<double>(layer.weight->value.size());
    const auto uses = static_cast<double>(layer.weight->uses);
    total_weights += size;
    total_flops += size * uses;
    most_uses = std::max(most_uses, uses);
  }
  // What each level may choose from: everything at first, then what the level above kept.
  std::vector<std::vector<std::uint32_t>> available(layers.size());
  for (std::size_t l = 0; l < layers.size(); ++l) {
    available[l].resize(static_cast<std::size_t>(layers[l].weight->value.size()));
    for (std::size_t i = 0; i < available[l].size(); ++i) available[l][i] = static_cast<std::uint32_t>(i);
    const auto better = [&](std::uint32_t a, std::uint32_t b) {
      const auto x = std::abs(layers[l].weight->value[static_cast<index_t>(a)]);
      const auto y = std::abs(layers[l].weight->value[static_cast<index_t>(b)]);
      return x != y ? x > y : a < b;
    };
    std::sort(available[l].begin(), available[l].end(), better);
  }
  std::vector<std::vector<std::uint8_t>> strata(layers.size());
  for (std::size_t l = 0; l < layers.size(); ++l) strata[l].assign(available[l].size(), StratumMap::absent);

  for (auto level = static_cast<int>(budgets.size()) - 1; level >= 0; --level) {
    const LevelBudget& budget = budgets[static_cast<std::size_t>(level)];
    const double weight_bound = budget.weights * total_weights;
    const double flop_bound = budget.flops * total_flops;
    std::vector<std::size_t> least(layers.size());
    double least_weights = 0;
    double least_flops = 0;
    for (std::size_t l = 0; l < layers.size(); ++l) {
      const auto size = static_cast<double>(layers[l].weight->value.size());
      least[l] = layers[l].weight->levelled
                     ? std::min(available[l].size(), static_cast<std::size_t>(std::ceil(layers[l].floor * size)))
                     : available[l].size();
      least_weights += static_cast<double>(least[l]);
      least_flops += static_cast<double>(least[l]) * static_cast<double>(layers[l].weight->uses);
    }
    if (least_weights > weight_bound || least_flops > flop_bound)
      return Error("budget of level " + std::to_string(level),
                   "at least " + std::to_string(least_weights / total_weights) + " of the weights and " +
                       std::to_string(total_flops > 0 ? least_flops / total_flops : 0) +
                       " of the FLOPs, which floors and unpruned layers need",
                   std::to_string(budget.weights) + " and " + std::to_string(budget.flops));
    // Available weights are sorted by magnitude, so what a layer keeps is a count.
    const auto take = [&](double price) {
      std::vector<detail::Candidate> candidates;
      for (std::size_t l = 0; l < layers.size(); ++l)
        for (std::size_t i = least[l]; i < available[l].size(); ++i) {
          const auto magnitude =
              static_cast<double>(std::abs(layers[l].weight->value[static_cast<index_t>(available[l][i])]));
          candidates.push_back(
              {magnitude / layers[l].scale - price * static_cast<double>(layers[l].weight->uses) / most_uses,
               static_cast<std::uint32_t>(l), static_cast<std::uint32_t>(i)});
        }
      const auto room = static_cast<std::size_t>(weight_bound - least_weights);
      const std::size_t chosen = std::min(room, candidates.size());
      const auto before = [](const detail::Candidate& a, const detail::Candidate& b) {
        if (a.score != b.score) return a.score > b.score;
        return a.layer != b.layer ? a.layer < b.layer : a.weight < b.weight;
      };
      std::nth_element(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(chosen), candidates.end(),
                       before);
      std::vector<std::size_t> counts = least;
      double flops = least_flops;
      for (std::size_t c = 0; c < chosen; ++c) {
        ++counts[candidates[c].layer];
        flops += static_cast<double>(layers[candidates[c].layer].weight->uses);
      }
      return std::pair(counts, flops);
    };
    auto [counts, flops] = take(0);
    if (flops > flop_bound) {
      double low = 0;
      double high = 1;
      while (take(high).second > flop_bound && high < 1e6) high *= 2;
      for (int i = 0; i < 40; ++i) {
        const double middle = (low + high) / 2;
        (take(middle).second > flop_bound ? low : high) = middle;
      }
      std::tie(counts, flops) = take(high);
      // Even the cheapest layers may be too dear to use up the weight bound: drop the least of the dearest layer.
      while (flops > flop_bound) {
        std::size_t dearest = layers.size();
        for (std::size_t l = 0; l < layers.size(); ++l)
          if (counts[l] > least[l] &&
              (dearest == layers.size() || layers[l].weight->uses > layers[dearest].weight->uses))
            dearest = l;
        --counts[dearest];
        flops -= static_cast<double>(layers[dearest].weight->uses);
      }
    }
    for (std::size_t l = 0; l < layers.size(); ++l) {
      available[l].resize(counts[l]);
      for (const std::uint32_t i : available[l]) strata[l][i] = static_cast<std::uint8_t>(level);
    }
  }
  for (std::size_t l = 0; l < layers.size(); ++l) {
    layers[l].weight->strata = std::move(strata[l]);
    for (std::size_t i = 0; i < layers[l].weight->strata.size(); ++i)
      if (layers[l].weight->strata[i] == StratumMap::absent) layers[l].weight->value[static_cast<index_t>(i)] = 0;
  }
  return success();
}

}  // namespace strata::train
