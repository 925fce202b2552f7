// What example programs take for each level: budgets and rates of dropout.
#include "support/levels.hpp"

#include <string>
#include <vector>

#include <strata/core/error.hpp>

#include "support/catch.hpp"

namespace {

/// What `f` raises: "where: found", or "none".
template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const strata::Error& error) {
    return error.where() + ": " + error.found();
  }
  return "none";
}

}  // namespace

TEST_CASE("budgets of levels are read, the sparsest first") {
  const auto budgets = examples::parse_levels("0.05:0.04,0.1338:0.1497");
  REQUIRE(budgets.size() == 2);
  CHECK(budgets[0].weights == 0.05);
  CHECK(budgets[0].flops == 0.04);
  CHECK(budgets[1].weights == 0.1338);
  CHECK(budgets[1].flops == 0.1497);
  CHECK(examples::parse_levels(examples::paper_levels).size() == 2);
}

TEST_CASE("text that is no budgets is refused and named") {
  for (const std::string text : {"", "0.05", "0.05:", "0.05:0.04,", "0.05:0.04x", "a:b", "0.05:0.04;0.1:0.1"}) {
    CAPTURE(text);
    CHECK(error_of([&] { (void)examples::parse_levels(text); }) == "--levels: \"" + text + "\"");
  }
  CHECK(error_of([] { (void)examples::parse_levels("0.2:0.2,0.1:0.1"); }).starts_with("budget of level 1"));
}

TEST_CASE("rates of dropout become factors of the network's rate") {
  CHECK(examples::dropout_factors({}, 0.4, 2).empty());
  CHECK(examples::dropout_factors({0.1, 0.4}, 0.4, 2) == std::vector<double>{0.25, 1});
  CHECK(examples::dropout_factors({0}, 0, 1) == std::vector<double>{0});
}

TEST_CASE("rates of dropout that do not fit are refused") {
  const auto error = [](const std::vector<double>& rates) {
    return error_of([&] { (void)examples::dropout_factors(rates, 0.4, 2); });
  };
  CHECK(error({0.1}) == "--level-dropout: 1");
  CHECK(error({0.1, 0.2, 0.3}) == "--level-dropout: 3");
  CHECK(error({0.1, 0.5}) == "--level-dropout: " + std::to_string(0.5));
  CHECK(error({-0.1, 0.2}) == "--level-dropout: " + std::to_string(-0.1));
}
