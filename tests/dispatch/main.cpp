// Runs every variant that this machine has and compares their results; prints the one that is chosen by default.
#include <cmath>
#include <cstdio>
#include <numeric>
#include <tiny_variants.hpp>

#include "engine.hpp"

namespace {

int compare() {
  std::vector<float> input(2 * 11 * 11);
  for (std::size_t i = 0; i < input.size(); ++i) input[i] = std::sin(static_cast<float>(i));
  const auto machine = strata::ArchitectureSet::of_this_machine();
  std::vector<std::vector<float>> expected;
  for (const strata::Variant& variant : tiny_variants()) {
    if (!machine.has(variant.architecture)) continue;
    const strata::Dispatcher<MakeEngine> make(tiny_variants(), variant.architecture);
    if (make.active() != variant.architecture) return 1;
    const auto engine = make(5);
    for (int level = 0; level < engine->levels(); ++level) {
      const auto output = engine->run(input, level);
      const auto at = static_cast<std::size_t>(level);
      if (expected.size() == at) expected.push_back(output);
      for (std::size_t i = 0; i < output.size(); ++i)
        if (!(std::abs(output[i] - expected[at][i]) <= 1e-4F * (1 + std::abs(expected[at][i])))) {
          std::fprintf(stderr, "%s, level %d, output %zu: expected %g, found %g\n",
                       std::string(variant.architecture).c_str(), level, i, static_cast<double>(expected[at][i]),
                       static_cast<double>(output[i]));
          return 1;
        }
    }
    std::fprintf(stderr, "%s (%s) agrees\n", std::string(variant.architecture).c_str(), engine->architecture().c_str());
    try {
      (void)make(-1);
      return 1;
    } catch (const strata::Error& error) {
      if (error.where() != "seed") return 1;
    }
  }
  return 0;
}

}  // namespace

int main() {
  try {
    const strata::Dispatcher<MakeEngine> make(tiny_variants());
    std::printf("%s\n", std::string(make.active()).c_str());
    return compare();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 3;
  }
}
