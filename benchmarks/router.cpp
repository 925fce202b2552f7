// What a routing decision costs, the look at the clock included: stages, levels and estimators of several networks.
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <strata/runtime/policy.hpp>
#include <strata/runtime/router.hpp>

namespace {

using strata::Level;

strata::Profile make_profile(int stages, int levels) {
  strata::StageSamples samples;
  std::vector<std::string> names;
  strata::ProfileKey key;
  for (int s = 0; s < stages; ++s) names.push_back("stage " + std::to_string(s));
  for (int level = 0; level < levels; ++level) {
    samples.push_back({});
    for (int run = 0; run < 20; ++run)
      samples.back().emplace_back(static_cast<std::size_t>(stages), 1e5 * (level + 1) + 1e3 * run);
    key.level_nnz.push_back(level);
  }
  return strata::profile_of(samples, names, key);
}

/// One decision at a stage boundary that finds no level in time and so looks at all of them.
void decision(benchmark::State& state) {
  const auto stages = static_cast<int>(state.range(0));
  const auto levels = static_cast<int>(state.range(1));
  strata::RouterOptions options;
  options.slow_down.estimator = state.range(2) == 0 ? strata::Estimator::exponential : strata::Estimator::kalman;
  strata::Router router(make_profile(stages, levels), options);
  strata::ChooseAndReroute policy{.up = true};
  const strata::Clock clock;
  const Level top{levels - 1};
  int stage = stages;
  for (auto _ : state) {
    if (stage == stages) {
      benchmark::DoNotOptimize(router.start(policy, clock(), strata::Duration(1), clock(), top));
      stage = 1;
    } else {
      benchmark::DoNotOptimize(router.next(policy, clock()));
      ++stage;
    }
  }
}
BENCHMARK(decision)
    ->ArgNames({"stages", "levels", "kalman"})
    ->Args({4, 2, 0})
    ->Args({16, 2, 0})
    ->Args({16, 2, 1})
    ->Args({54, 4, 0})
    ->Args({54, 16, 0})
    ->Args({54, 16, 1});

}  // namespace

BENCHMARK_MAIN();
