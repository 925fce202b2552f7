// What example programs take for each level: budgets and rates of dropout.
#include "support/levels.hpp"

#include <cmath>
#include <string>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/sparse/budget.hpp>

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

TEST_CASE("weights of levels are those of the stored model, or the file is named") {
  struct Stored {
    std::vector<strata::index_t> weights;
    [[nodiscard]] int levels() const { return static_cast<int>(weights.size()); }
    [[nodiscard]] strata::index_t nnz(strata::Level level) const {
      return weights[static_cast<std::size_t>(level.index)];
    }
  };
  const std::vector<strata::LayerCount> layers = {{.name = "a", .rows = 2, .columns = 5, .uses = 2, .nnz = {1, 4}},
                                                  {.name = "b", .rows = 3, .columns = 10, .uses = 1, .nnz = {2, 8}}};
  const auto counts = examples::stored_counts(Stored{{3, 12}}, layers, "m.safetensors");
  REQUIRE(counts.size() == 2);
  CHECK(std::abs(counts[0].weight_share() - 0.075) < 1e-12);
  CHECK(std::abs(counts[1].flop_share() - 0.32) < 1e-12);
  CHECK(error_of([&] {
          (void)examples::stored_counts(Stored{{3, 11}}, layers, "m.safetensors");
        }) == "m.safetensors: level 1: 11");
}
