// Budgets of levels as the example programs take them on the command line.
#pragma once

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include <strata/core/error.hpp>
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

}  // namespace examples
