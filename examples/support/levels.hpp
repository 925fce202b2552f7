// What the example programs take on the command line for each level, and what they count of each.
#pragma once

#include <algorithm>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/sparse/budget.hpp>

namespace examples {

/// The paper's two levels.
inline constexpr const char* paper_levels = "0.0538:0.0447,0.1338:0.1497";

/// "weights:flops,weights:flops", sparsest level first. Raises: other text, budgets that `check_budgets` refuses.
[[nodiscard]] inline std::vector<strata::LevelBudget> parse_levels(const std::string& text) {
  std::vector<strata::LevelBudget> budgets;
  std::size_t at = 0;
  while (at <= text.size()) {
    const std::size_t end = std::min(text.find(',', at), text.size());
    const std::string part = text.substr(at, end - at);
    strata::LevelBudget budget;
    int used = 0;
    if (std::sscanf(part.c_str(), "%lf:%lf%n", &budget.weights, &budget.flops, &used) != 2 ||
        static_cast<std::size_t>(used) != part.size())
      strata::raise(strata::Error("--levels", "weights:flops,... such as 0.05:0.04,0.13:0.15", "\"" + text + "\""));
    budgets.push_back(budget);
    at = end + 1;
  }
  (void)strata::check_budgets(budgets).value();
  return budgets;
}

/// `Recipe::dropout_factors` for `--level-dropout`: `rates` of `levels` levels, of a network whose layers drop
/// `dropout`. None for no rates. Raises: another number of rates, rates above `dropout`.
[[nodiscard]] inline std::vector<double> dropout_factors(const std::vector<double>& rates, double dropout,
                                                         std::size_t levels) {
  if (!rates.empty() && rates.size() != levels)
    strata::raise(strata::Error("--level-dropout", std::to_string(levels) + " rates, one for each level",
                                std::to_string(rates.size())));
  std::vector<double> factors;
  for (const double rate : rates) {
    if (!(rate >= 0 && rate <= dropout))
      strata::raise(strata::Error("--level-dropout", "0 to " + std::to_string(dropout), std::to_string(rate)));
    factors.push_back(rate > 0 ? rate / dropout : 0);
  }
  return factors;
}

/// What every level of `model` holds, sparsest first, by the counts of the layers it was trained with. Raises: the
/// model, which was loaded from `path`, holds another number of weights.
template <class Model>
[[nodiscard]] std::vector<strata::LevelCount> stored_counts(const Model& model,
                                                            std::span<const strata::LayerCount> layers,
                                                            const std::string& path) {
  std::vector<strata::LevelCount> counts = strata::count_levels(layers, model.levels());
  for (int level = 0; level < model.levels(); ++level) {
    const auto trained = counts[static_cast<std::size_t>(level)].weights;
    const auto stored = model.nnz(strata::Level{level});
    if (trained != stored)
      strata::raise(strata::Error(path + ": level " + std::to_string(level),
                                  std::to_string(trained) + " weights, as trained", std::to_string(stored)));
  }
  return counts;
}

}  // namespace examples
