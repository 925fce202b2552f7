// Budgets of levels (shares of weights and FLOPs) and the counting that tells whether they hold. It counts what is
// given to it; which weights to keep within a budget is decided in train/allocation.hpp.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/sparse/stratum_map.hpp>

namespace strata {

/// Upper bounds of one level as fractions of the prunable network: all convolution, linear, recurrent and attention
/// weights (norms, biases and embeddings do not count). Both hold at once; neither has to be used up.
struct LevelBudget {
  double weights = 1;  ///< share of the weights, in (0, 1]
  double flops = 1;    ///< share of the FLOPs of one forward pass, in (0, 1]

  friend bool operator==(const LevelBudget&, const LevelBudget&) = default;
};

/// One weight matrix as budgets see it.
struct LayerCount {
  std::string name;
  index_t rows = 0;
  index_t columns = 0;
  index_t uses = 0;          ///< multiply-adds per weight and sample; a convolution's output pixels
  bool levelled = true;      ///< false: not pruned, all weights in every level
  std::vector<index_t> nnz;  ///< weights of each level (cumulative), sparsest level first
};

/// Weights and FLOPs of one level and of the whole prunable network.
struct LevelCount {
  std::int64_t weights = 0;
  std::int64_t flops = 0;  ///< 2 x uses x weights, summed over the layers, per sample
  std::int64_t total_weights = 0;
  std::int64_t total_flops = 0;

  [[nodiscard]] double weight_share() const noexcept { return share(weights, total_weights); }
  [[nodiscard]] double flop_share() const noexcept { return share(flops, total_flops); }

  [[nodiscard]] bool within(const LevelBudget& budget) const noexcept {
    return static_cast<double>(weights) <= budget.weights * static_cast<double>(total_weights) &&
           static_cast<double>(flops) <= budget.flops * static_cast<double>(total_flops);
  }

 private:
  [[nodiscard]] static double share(std::int64_t part, std::int64_t whole) noexcept {
    return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
  }
};

/// Describes a layer by the stratum of each of its weights. `strata` empty: all weights in every level.
[[nodiscard]] inline LayerCount count_layer(std::string name, index_t rows, index_t columns, index_t uses, int levels,
                                            std::span<const std::uint8_t> strata, bool levelled = true) {
  LayerCount layer{std::move(name), rows, columns, uses, levelled, {}};
  layer.nnz.assign(static_cast<std::size_t>(levels), 0);
  if (strata.empty()) {
    layer.nnz.assign(static_cast<std::size_t>(levels), rows * columns);
    return layer;
  }
  for (std::uint8_t stratum : strata)
    if (stratum != StratumMap::absent && stratum < levels) ++layer.nnz[stratum];
  for (std::size_t level = 1; level < layer.nnz.size(); ++level) layer.nnz[level] += layer.nnz[level - 1];
  return layer;
}

/// Weights and FLOPs of `level`, levelled layers and others together. Precondition: every layer has a count for
/// `level`.
[[nodiscard]] inline LevelCount count_level(std::span<const LayerCount> layers, Level level) {
  LevelCount count;
  for (const LayerCount& layer : layers) {
    const auto all = static_cast<std::int64_t>(layer.rows * layer.columns);
    const auto nnz = static_cast<std::int64_t>(layer.nnz[static_cast<std::size_t>(level.index)]);
    count.weights += nnz;
    count.flops += 2 * nnz * layer.uses;
    count.total_weights += all;
    count.total_flops += 2 * all * layer.uses;
  }
  return count;
}

/// `count_level` for every level, sparsest first.
[[nodiscard]] inline std::vector<LevelCount> count_levels(std::span<const LayerCount> layers, int levels) {
  std::vector<LevelCount> counts;
  for (int level = 0; level < levels; ++level) counts.push_back(count_level(layers, Level{level}));
  return counts;
}

/// Errors: no level or more than a stratum map holds, a share outside (0, 1] or not a number, a share below that of the
/// level under it.
[[nodiscard]] inline Status check_budgets(std::span<const LevelBudget> budgets) {
  if (budgets.empty() || budgets.size() > static_cast<std::size_t>(StratumMap::max_levels))
    return Error("budgets", "1 to " + std::to_string(StratumMap::max_levels) + " levels",
                 std::to_string(budgets.size()) + " levels");
  for (std::size_t level = 0; level < budgets.size(); ++level) {
    const auto check = [&](const char* what, double LevelBudget::*member) -> Status {
      const double share = budgets[level].*member;
      const std::string where = "budget of level " + std::to_string(level);
      if (!(share > 0 && share <= 1))
        return Error(where, "a share of " + std::string(what) + " above 0 and at most 1", std::to_string(share));
      if (level > 0 && share < budgets[level - 1].*member)
        return Error(where, "a share of " + std::string(what) + " not below that of level " + std::to_string(level - 1),
                     std::to_string(share) + " after " + std::to_string(budgets[level - 1].*member));
      return success();
    };
    if (Status status = check("weights", &LevelBudget::weights); !status) return status;
    if (Status status = check("FLOPs", &LevelBudget::flops); !status) return status;
  }
  return success();
}

/// Error: a level of `layers` exceeds its budget; names the level and both counts.
[[nodiscard]] inline Status check_within(std::span<const LayerCount> layers, std::span<const LevelBudget> budgets) {
  for (std::size_t level = 0; level < budgets.size(); ++level) {
    const LevelCount count = count_level(layers, Level{static_cast<int>(level)});
    if (!count.within(budgets[level]))
      return Error("level " + std::to_string(level),
                   "at most " + std::to_string(budgets[level].weights) + " of the weights and " +
                       std::to_string(budgets[level].flops) + " of the FLOPs",
                   std::to_string(count.weight_share()) + " and " + std::to_string(count.flop_share()));
  }
  return success();
}

}  // namespace strata
