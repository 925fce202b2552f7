#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <strata/sparse/budget.hpp>

#include "support/catch.hpp"

using namespace strata;

namespace {

Error error_of(const Status& status) {
  REQUIRE_FALSE(status.ok());
  return status.error();
}

Error check(std::vector<LevelBudget> budgets) {
  return error_of(check_budgets(budgets));
}

}  // namespace

TEST_CASE("weights and FLOPs of a level are counted from strata") {
  const std::vector<std::uint8_t> strata = {0, 1, StratumMap::absent, 1, 0, 2};
  const std::vector<LayerCount> layers = {count_layer("conv", 2, 3, 10, 3, strata),
                                          count_layer("fc", 2, 2, 1, 3, {}, false)};
  CHECK(layers[0].nnz == std::vector<index_t>{2, 4, 5});
  CHECK(layers[1].nnz == std::vector<index_t>{4, 4, 4});
  const std::vector<LevelCount> counts = count_levels(layers, 3);
  REQUIRE(counts.size() == 3);
  CHECK(counts[1].weights == 8);
  CHECK(counts[1].flops == 2 * (4 * 10 + 4));
  CHECK(counts[1].total_weights == 10);
  CHECK(counts[1].total_flops == 2 * (6 * 10 + 4));
  CHECK(std::abs(counts[2].weight_share() - 0.9) < 1e-12);
  CHECK(count_level({}, Level{0}).weight_share() == 0);
}

TEST_CASE("strata that do not fit the layer are refused") {
  const std::vector<std::uint8_t> strata = {0, 1};
  CHECK_THROWS_AS(count_layer("fc", 2, 2, 1, 2, strata), Error);
}

TEST_CASE("a level that uses its budget up exactly is within it") {
  LevelCount count;
  count.total_weights = count.total_flops = 100;
  for (int used = 1; used <= 100; ++used) {
    count.weights = count.flops = used;
    const double share = std::stod("0." + std::string(used < 10 ? "0" : "") + std::to_string(used));
    if (used == 100) break;
    INFO(used);
    CHECK(count.within({share, share}));
    CHECK_FALSE(count.within({share, share - 1e-12}));
    CHECK_FALSE(count.within({share - 1e-12, share}));
  }
}

TEST_CASE("budgets that no network can have are refused, naming the level") {
  CHECK(check_budgets(std::vector<LevelBudget>{{0.0538, 0.0447}, {0.1338, 0.1497}}).ok());
  CHECK(check_budgets(std::vector<LevelBudget>{{0.1, 0.1}, {0.1, 0.2}, {1, 1}}).ok());
  CHECK(check({}).found() == "0 levels");
  CHECK(check(std::vector<LevelBudget>(17)).found() == "17 levels");
  const double not_a_number = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  for (const double bad : {0.0, -0.5, 1.0000001, not_a_number, infinity, -infinity}) {
    INFO(bad);
    CHECK(check({{bad, 0.5}}).where() == "budget of level 0");
    CHECK(check({{0.5, 0.5}, {0.6, bad}}).where() == "budget of level 1");
  }
  const Error falling = check({{0.2, 0.1}, {0.1, 0.2}});
  CHECK(falling.where() == "budget of level 1");
  CHECK(falling.found() == "0.1 after 0.2");
  CHECK(check({{0.1, 0.2}, {0.2, 0.1}}).expected().find("FLOPs") != std::string::npos);
}

TEST_CASE("an exceeded budget names the level, the bound and the count") {
  const std::vector<std::uint8_t> strata = {0, 1, StratumMap::absent, 1};
  const std::vector<LayerCount> layers = {count_layer("conv", 2, 2, 10, 2, strata)};
  CHECK(check_within(layers, std::vector<LevelBudget>{{0.25, 0.25}, {0.75, 0.75}}).ok());
  const Error weights = error_of(check_within(layers, std::vector<LevelBudget>{{0.25, 0.25}, {0.7, 0.75}}));
  CHECK(weights.where() == "level 1");
  CHECK(weights.expected() == "at most 0.7 of the weights");
  CHECK(weights.found() == "0.75 (3 of 4)");
  const Error flops = error_of(check_within(layers, std::vector<LevelBudget>{{0.25, 0.2}, {0.75, 0.75}}));
  CHECK(flops.where() == "level 0");
  CHECK(flops.found() == "0.25 (20 of 80)");
  CHECK(error_of(check_within(layers, std::vector<LevelBudget>(3))).where() == "conv");
}
