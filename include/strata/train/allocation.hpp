// Which weights each level keeps: one ranking over the whole network, floors per layer, and a price on FLOPs that makes
// both bounds of a budget hold. It decides from magnitudes; when to prune is the recipe's business.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/sparse/budget.hpp>
#include <strata/train/parameter.hpp>
#include <strata/train/training.hpp>

namespace strata::train {

/// A layer as the allocation sees it.
template <class Scalar>
struct PrunableLayer {
  Parameter<Scalar>* weight = nullptr;
  double scale = 1;  ///< root mean square of the dense model's weights; taken before pruning, as pruned layers shrink
  double floor = 0;  ///< least density at every level
  /// Ranked instead of the weights themselves if not null; one entry a weight.
  const typename Parameter<Scalar>::Array* scores = nullptr;

  [[nodiscard]] double magnitude(std::size_t i) const {
    return static_cast<double>(std::abs((scores == nullptr ? weight->value : *scores)[static_cast<index_t>(i)]));
  }
  [[nodiscard]] bool frozen(std::size_t i, int below) const {
    return below > 0 && !weight->strata.empty() && weight->strata[i] != StratumMap::absent && weight->strata[i] < below;
  }
};

/// The root mean square of a layer's weights; 1 for a layer of zeros.
template <class Scalar>
[[nodiscard]] double weight_scale(const Parameter<Scalar>& weight) {
  const double square = static_cast<double>(weight.value.square().sum());
  return square > 0 ? std::sqrt(square / static_cast<double>(weight.value.size())) : 1.0;
}

namespace detail {

/// Which weights of each layer are in question, those to keep first.
using Ranking = std::vector<std::vector<std::uint32_t>>;

/// 0 .. keys - 1 by `key(i)`, the smallest first and of equal ones the earlier: a radix sort of 11 bits a pass, several
/// times as fast as a comparing one over the millions of weights that are ranked at every change of masks.
template <class Key>
[[nodiscard]] std::vector<std::uint32_t> sorted_by_key(std::size_t keys, const Key& key) {
  constexpr int bits = 11;
  constexpr std::uint32_t digits = 1U << bits;
  struct Entry {
    std::uint32_t key, index;
  };
  std::vector<Entry> from(keys);
  std::vector<Entry> to(keys);
  for (std::size_t i = 0; i < keys; ++i) from[i] = {key(i), static_cast<std::uint32_t>(i)};
  for (int shift = 0; shift < 32; shift += bits) {
    const auto digit = [shift](const Entry& entry) { return (entry.key >> shift) & (digits - 1); };
    std::vector<std::size_t> begins(digits + 1, 0);
    for (const Entry& entry : from) ++begins[digit(entry) + 1];
    std::partial_sum(begins.begin(), begins.end(), begins.begin());
    for (const Entry& entry : from) to[begins[digit(entry)]++] = entry;
    std::swap(from, to);
  }
  std::vector<std::uint32_t> sorted(keys);
  std::transform(from.begin(), from.end(), sorted.begin(), [](const Entry& entry) { return entry.index; });
  return sorted;
}

/// All weights of all layers, largest magnitude first; weights of strata below `frozen_below` before all others.
template <class Scalar>
[[nodiscard]] Ranking ranking_of(const std::vector<PrunableLayer<Scalar>>& layers, int frozen_below) {
  Ranking ranking;
  for (const auto& layer : layers) {
    const auto size = static_cast<std::size_t>(layer.weight->value.size());
    if constexpr (std::is_same_v<Scalar, float>) {
      // Bits of floats that are not negative are in the order of their values; the sign is free for the frozen ones.
      ranking.push_back(sorted_by_key(size, [&](std::size_t i) {
        const auto magnitude = std::bit_cast<std::uint32_t>(static_cast<float>(layer.magnitude(i)));
        return ~(layer.frozen(i, frozen_below) ? magnitude | 0x80000000U : magnitude);
      }));
    } else {
      std::vector<std::uint32_t>& weights = ranking.emplace_back(size);
      std::iota(weights.begin(), weights.end(), 0U);
      std::sort(weights.begin(), weights.end(), [&](std::uint32_t a, std::uint32_t b) {
        const bool x_frozen = layer.frozen(a, frozen_below);
        const bool y_frozen = layer.frozen(b, frozen_below);
        if (x_frozen != y_frozen) return x_frozen;
        const auto x = layer.magnitude(a);
        const auto y = layer.magnitude(b);
        return x != y ? x > y : a < b;
      });
    }
  }
  return ranking;
}

/// An integer that is in the order of the numbers.
[[nodiscard]] inline std::uint64_t ordered_bits(double value) noexcept {
  constexpr std::uint64_t sign = std::uint64_t{1} << 63;
  const auto bits = std::bit_cast<std::uint64_t>(value == 0 ? 0.0 : value);
  return (bits & sign) != 0 ? ~bits : bits | sign;
}

/// The first of `first` .. `last` - 1 for which `holds` does not hold, `last` if there is none. Precondition: behind it
/// there is none for which it holds.
template <class Predicate>
[[nodiscard]] std::size_t end_of(std::size_t first, std::size_t last, const Predicate& holds) {
  while (first < last) {
    const std::size_t middle = first + (last - first) / 2;
    if (holds(middle)) {
      first = middle + 1;
    } else {
      last = middle;
    }
  }
  return first;
}

/// Lists `l` with falling scores `score(l, i)`, of which the first `begins[l]` are taken: where each ends when `chosen`
/// more are, the largest of all, of equal ones those of earlier lists. Bisection of the least score, in the integers
/// of `ordered_bits`. Precondition: begins[l] <= ends[l]; the lists have so many.
template <class Score>
[[nodiscard]] std::vector<std::size_t> take_largest(std::vector<std::size_t> begins, std::vector<std::size_t> ends,
                                                    std::size_t chosen, const Score& score) {
  if (chosen == 0) return begins;
  const std::size_t wanted = std::accumulate(begins.begin(), begins.end(), chosen);
  std::uint64_t low = 0;  // what has at least this score is enough, up to `ends`; with `high` too few, up to `begins`
  std::uint64_t high = std::numeric_limits<std::uint64_t>::max();
  std::vector<std::size_t> middles(begins.size());
  while (high - low > 1) {
    const std::uint64_t middle = low + (high - low) / 2;
    for (std::size_t l = 0; l < begins.size(); ++l) {
      middles[l] = end_of(begins[l], ends[l], [&](std::size_t i) { return ordered_bits(score(l, i)) >= middle; });
    }
    const std::size_t taken = std::accumulate(middles.begin(), middles.end(), std::size_t{0});
    if (taken == wanted) return middles;
    if (taken > wanted) {
      low = middle;
      ends = middles;
    } else {
      high = middle;
      begins = middles;
    }
  }
  std::size_t left = wanted - std::accumulate(begins.begin(), begins.end(), std::size_t{0});
  for (std::size_t l = 0; l < begins.size(); ++l) {
    const std::size_t more = std::min(left, ends[l] - begins[l]);
    begins[l] += more;
    left -= more;
  }
  return begins;
}

/// The most of `total` whose share is at most `share`, rounded as `LevelCount::within` rounds it.
[[nodiscard]] inline double most_within(double share, double total) {
  double count = std::floor(share * total);
  while (count < total && (count + 1) / total <= share) ++count;
  while (count > 0 && count / total > share) --count;
  return count;
}

/// The fewest weights that each layer keeps: its frozen ones, its floor, or all if it is not levelled.
template <class Scalar>
[[nodiscard]] std::vector<std::size_t> least_counts(const std::vector<PrunableLayer<Scalar>>& layers,
                                                    int frozen_below) {
  std::vector<std::size_t> least;
  for (const auto& layer : layers) {
    const auto size = static_cast<std::size_t>(layer.weight->value.size());
    std::size_t frozen = 0;
    for (std::size_t i = 0; i < size && frozen_below > 0; ++i) frozen += layer.frozen(i, frozen_below) ? 1U : 0U;
    auto floor = static_cast<std::size_t>(std::ceil(layer.floor * static_cast<double>(size)));
    if (floor > 0 && static_cast<double>(floor - 1) / static_cast<double>(size) >= layer.floor) --floor;
    least.push_back(layer.weight->levelled ? std::max(frozen, std::min(size, floor)) : size);
  }
  return least;
}

template <class Scalar>
[[nodiscard]] Status check_least(const std::vector<PrunableLayer<Scalar>>& layers,
                                 const std::vector<std::size_t>& least, const LevelBudget& budget, int level) {
  double weights = 0;
  double flops = 0;
  double total_weights = 0;
  double total_flops = 0;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const auto size = static_cast<double>(layers[l].weight->value.size());
    const auto uses = static_cast<double>(layers[l].weight->uses);
    weights += static_cast<double>(least[l]);
    flops += static_cast<double>(least[l]) * uses;
    total_weights += size;
    total_flops += size * uses;
  }
  if (weights <= most_within(budget.weights, total_weights) && flops <= most_within(budget.flops, total_flops))
    return success();
  return Error("budget of level " + std::to_string(level),
               "at least " + strata::detail::share_text(weights / total_weights) + " of the weights and " +
                   strata::detail::share_text(total_flops > 0 ? flops / total_flops : 0) +
                   " of the FLOPs, which floors, frozen weights and unpruned layers need",
               strata::detail::share_text(budget.weights) + " and " + strata::detail::share_text(budget.flops));
}

/// How many of each layer's ranked weights to keep within `budget`. Precondition: `least` is within it.
template <class Scalar>
[[nodiscard]] std::vector<std::size_t> choose_counts(const std::vector<PrunableLayer<Scalar>>& layers,
                                                     const LevelBudget& budget, const Ranking& ranking,
                                                     const std::vector<std::size_t>& least) {
  double total_weights = 0;
  double total_flops = 0;
  double least_weights = 0;
  double least_flops = 0;
  double most_uses = 1;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const auto size = static_cast<double>(layers[l].weight->value.size());
    const auto uses = static_cast<double>(layers[l].weight->uses);
    total_weights += size;
    total_flops += size * uses;
    least_weights += static_cast<double>(least[l]);
    least_flops += static_cast<double>(least[l]) * uses;
    most_uses = std::max(most_uses, uses);
  }
  const double flop_bound = most_within(budget.flops, total_flops);
  const auto room = static_cast<std::size_t>(most_within(budget.weights, total_weights) - least_weights);
  std::vector<std::size_t> sizes;
  for (std::size_t l = 0; l < layers.size(); ++l) sizes.push_back(std::max(least[l], ranking[l].size()));
  const auto score = [&](std::size_t l, std::size_t i, double price) {
    return layers[l].magnitude(ranking[l][i]) / layers[l].scale -
           price * static_cast<double>(layers[l].weight->uses) / most_uses;
  };
  /// `room` weights at that price; with `worthwhile` only those whose score is above zero.
  const auto take = [&](double price, bool worthwhile) {
    std::vector<std::size_t> ends = sizes;
    for (std::size_t l = 0; worthwhile && l < layers.size(); ++l)
      ends[l] = end_of(least[l], sizes[l], [&](std::size_t i) { return score(l, i, price) > 0; });
    const std::size_t there = std::accumulate(ends.begin(), ends.end(), std::size_t{0}) -
                              std::accumulate(least.begin(), least.end(), std::size_t{0});
    std::vector<std::size_t> counts = take_largest(least, ends, std::min(room, there),
                                                   [&](std::size_t l, std::size_t i) { return score(l, i, price); });
    double flops = least_flops;
    for (std::size_t l = 0; l < layers.size(); ++l)
      flops += static_cast<double>(counts[l] - least[l]) * static_cast<double>(layers[l].weight->uses);
    return std::pair(std::move(counts), flops);
  };
  auto [counts, flops] = take(0, false);
  if (flops <= flop_bound) return counts;
  constexpr double dearest = 1e6;
  // Where even the cheapest layers are too dear to use up the weight bound, the FLOP bound alone decides.
  const bool worthwhile = take(dearest, false).second > flop_bound;
  double low = 0;
  double high = 1;
  while (take(high, worthwhile).second > flop_bound && high < dearest * dearest) high *= 2;
  for (int i = 0; i < 30; ++i) {
    const double middle = (low + high) / 2;
    (take(middle, worthwhile).second > flop_bound ? low : high) = middle;
  }
  std::tie(counts, flops) = take(high, worthwhile);
  if (flops > flop_bound) return least;
  // Weights of one score come at one price, all or none: as many of them as the bounds have room for.
  const auto more = take(low, worthwhile).first;
  double left = most_within(budget.weights, total_weights) -
                static_cast<double>(std::accumulate(counts.begin(), counts.end(), std::size_t{0}));
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const auto uses = static_cast<double>(layers[l].weight->uses);
    while (counts[l] < more[l] && left >= 1 && flops + uses <= flop_bound) {
      ++counts[l];
      --left;
      flops += uses;
    }
  }
  return counts;
}

template <class Scalar>
void clear_absent(Parameter<Scalar>& weight) {
  for (std::size_t i = 0; i < weight.strata.size(); ++i)
    if (weight.strata[i] == StratumMap::absent) weight.value[static_cast<index_t>(i)] = 0;
}

}  // namespace detail

/// Whether `allocate` can meet `budgets`: it depends on sizes, floors and uses only. Errors: bad budgets, floors or
/// unprunable layers that alone exceed a level's budget (names the level), bounds on FLOPs for weights of which no
/// forward pass has noted the uses.
template <class Scalar>
[[nodiscard]] Status check_allocation(const std::vector<PrunableLayer<Scalar>>& layers,
                                      const std::vector<LevelBudget>& budgets) {
  if (Status status = check_budgets(budgets); !status) return status;
  const bool used = std::any_of(layers.begin(), layers.end(), [](const auto& layer) { return layer.weight->uses > 0; });
  if (!used && std::any_of(budgets.begin(), budgets.end(), [](const LevelBudget& budget) { return budget.flops < 1; }))
    return Error("budgets of FLOPs", "a network that has run once, which tells how often weights are used",
                 "one that has not");
  const auto least = detail::least_counts(layers, 0);
  for (std::size_t level = 0; level < budgets.size(); ++level)
    if (Status status = detail::check_least(layers, least, budgets[level], static_cast<int>(level)); !status)
      return status;
  return success();
}

/// Chooses the strata of all layers: level by level from the fullest down, each level inside the one above it. A
/// weight's score is |w| / scale - price * uses; the price is the least for which the FLOP bound holds when the weight
/// bound is used up, found by bisection (a Lagrangian of the two bounds). Where it does not hold at any price, weights
/// whose score is not above zero are left out. Budgets are upper bounds on shares of all weights and FLOPs of `layers`;
/// layers that are not levelled are kept whole and counted. Ties go to the earlier weight, so the result is the same
/// everywhere. Errors: those of `check_allocation`; then nothing is changed.
template <class Scalar>
[[nodiscard]] Status allocate(const std::vector<PrunableLayer<Scalar>>& layers,
                              const std::vector<LevelBudget>& budgets) {
  if (Status status = check_allocation(layers, budgets); !status) return status;
  const auto least = detail::least_counts(layers, 0);
  detail::Ranking ranking = detail::ranking_of(layers, 0);
  std::vector<std::vector<std::uint8_t>> strata;
  for (const auto& layer : layers)
    strata.emplace_back(static_cast<std::size_t>(layer.weight->value.size()), StratumMap::absent);
  for (auto level = static_cast<int>(budgets.size()) - 1; level >= 0; --level) {
    const auto counts = detail::choose_counts(layers, budgets[static_cast<std::size_t>(level)], ranking, least);
    for (std::size_t l = 0; l < layers.size(); ++l) {
      ranking[l].resize(counts[l]);
      for (const std::uint32_t i : ranking[l]) strata[l][i] = static_cast<std::uint8_t>(level);
    }
  }
  for (std::size_t l = 0; l < layers.size(); ++l) {
    layers[l].weight->strata = std::move(strata[l]);
    detail::clear_absent(*layers[l].weight);
  }
  return success();
}

/// The weights that level `level` would keep around the strata below it, which stay (the step upwards of the bottom-up
/// arm; same scores and bounds as `allocate`). Per layer: true for kept weights. Errors: as `allocate`, and frozen
/// weights that alone exceed the budget.
template <class Scalar>
[[nodiscard]] Result<std::vector<std::vector<bool>>> choose_level(const std::vector<PrunableLayer<Scalar>>& layers,
                                                                  const LevelBudget& budget, int level) {
  if (Status status = check_budgets({&budget, 1}); !status) return status.error();
  const auto least = detail::least_counts(layers, level);
  if (Status status = detail::check_least(layers, least, budget, level); !status) return status.error();
  const detail::Ranking ranking = detail::ranking_of(layers, level);
  const auto counts = detail::choose_counts(layers, budget, ranking, least);
  std::vector<std::vector<bool>> kept;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    kept.emplace_back(ranking[l].size());
    for (std::size_t i = 0; i < counts[l]; ++i) kept[l][ranking[l][i]] = true;
  }
  return kept;
}

/// The weight matrices of `network`, of the training family, as budgets count them. Precondition: a forward pass has
/// noted how often each weight is used.
template <class Scalar, class Network>
[[nodiscard]] std::vector<LayerCount> count_layers(const Network& network, int levels) {
  std::vector<LayerCount> counts;
  for (const auto* parameter : parameters<Scalar>(const_cast<Network&>(network))) {  // fills in names, changes no more
    if (!is_budgeted(*parameter)) continue;
    const index_t rows = parameter->shape.front();
    counts.push_back(count_layer(parameter->name, rows, parameter->value.size() / rows, parameter->uses, levels,
                                 parameter->strata, parameter->levelled));
  }
  return counts;
}

}  // namespace strata::train
