// Budgets of levels (shares of weights and FLOPs) and the counting that tells whether they hold. It counts what is
// given to it; which weights to keep within a budget is decided in train/allocation.hpp.
#pragma once

#include <cstdint>
#include <cstdio>
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

  /// Whether both bounds hold. Compares rounded shares, so that 29 of 100 weights are within a budget of 0.29.
  [[nodiscard]] bool within(const LevelBudget& budget) const noexcept {
    return weight_share() <= budget.weights && flop_share() <= budget.flops;
  }

 private:
  [[nodiscard]] static double share(std::int64_t part, std::int64_t whole) noexcept {
    return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
  }
};

namespace detail {

/// Enough digits to tell a share from a bound that it just exceeds.
[[nodiscard]] inline std::string share_text(double share) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.9g", share);
  return text;
}

[[nodiscard]] inline std::string share_text(double share, std::int64_t part, std::int64_t whole) {
  return share_text(share) + " (" + std::to_string(part) + " of " + std::to_string(whole) + ")";
}

}  // namespace detail

/// Describes a layer by the stratum of each of its weights. `strata` empty: all weights in every level. Raises: strata
/// that are neither empty nor one per weight. Precondition: levels >= 1.
[[nodiscard]] inline LayerCount count_layer(std::string name, index_t rows, index_t columns, index_t uses, int levels,
                                            std::span<const std::uint8_t> strata, bool levelled = true) {
  LayerCount layer{std::move(name), rows, columns, uses, levelled, {}};
  layer.nnz.assign(static_cast<std::size_t>(levels), 0);
  if (strata.empty()) {
    layer.nnz.assign(static_cast<std::size_t>(levels), rows * columns);
    return layer;
  }
  if (static_cast<index_t>(strata.size()) != rows * columns)
    raise(Error({layer.name}, {rows * columns, " strata, one a weight"}, {strata.size()}));
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

/// Errors: no level or more than `max_levels`, a share outside (0, 1] or not a number, a share below that of the
/// level under it. Budgets are listed as levels are, sparsest first.
[[nodiscard]] inline Status check_budgets(std::span<const LevelBudget> budgets) {
  if (budgets.empty() || budgets.size() > static_cast<std::size_t>(max_levels))
    return Error({"budgets"}, {"1 to ", max_levels, " levels"}, {budgets.size(), " levels"});
  for (std::size_t level = 0; level < budgets.size(); ++level) {
    const auto check = [&](const char* what, double LevelBudget::*member) -> Status {
      const double share = budgets[level].*member;
      const std::string where = "budget of level " + std::to_string(level);
      if (!(share > 0 && share <= 1))
        return Error({where}, {"a share of ", what, " above 0 and at most 1"}, {detail::share_text(share)});
      if (level > 0 && share < budgets[level - 1].*member)
        return Error({where}, {"a share of ", what, " not below that of level ", level - 1},
                     {detail::share_text(share), " after ", detail::share_text(budgets[level - 1].*member)});
      return success();
    };
    if (Status status = check("weights", &LevelBudget::weights); !status) return status;
    if (Status status = check("FLOPs", &LevelBudget::flops); !status) return status;
  }
  return success();
}

/// Errors: a level of `layers` exceeds its budget (names the level, the bound and the counts), a layer without a count
/// for each budget.
[[nodiscard]] inline Status check_within(std::span<const LayerCount> layers, std::span<const LevelBudget> budgets) {
  for (const LayerCount& layer : layers)
    if (layer.nnz.size() < budgets.size())
      return Error({layer.name}, {"counts of ", budgets.size(), " levels"}, {layer.nnz.size()});
  for (std::size_t level = 0; level < budgets.size(); ++level) {
    const LevelCount count = count_level(layers, Level{static_cast<int>(level)});
    const std::string where = "level " + std::to_string(level);
    if (!(count.weight_share() <= budgets[level].weights))
      return Error({where}, {"at most ", detail::share_text(budgets[level].weights), " of the weights"},
                   {detail::share_text(count.weight_share(), count.weights, count.total_weights)});
    if (!(count.flop_share() <= budgets[level].flops))
      return Error({where}, {"at most ", detail::share_text(budgets[level].flops), " of the FLOPs"},
                   {detail::share_text(count.flop_share(), count.flops, count.total_flops)});
  }
  return success();
}

}  // namespace strata
