// What a session costs beside its kernels: a run at each level, and the same runs with the level switched every time.
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <strata/strata.hpp>
#include <strata/train/allocation.hpp>

#include "../examples/quickstart/network.hpp"

namespace {

using strata::Level;
using Model = strata::Model<quickstart::FashionNet>;

/// The quick start's network with random weights at its budgets.
Model make_model() {
  namespace train = strata::train;
  quickstart::FashionNet<train::Training<float>> network({});
  train::initialise(network, 1);
  strata::SerialExecutor executor;
  train::Context<float> context(executor);
  context.training = false;
  context.begin(Level{0});
  const std::vector<float> picture(784);
  (void)network(context, train::input_tensor(context, picture.data(), 1, {1, 28, 28}));
  std::vector<train::PrunableLayer<float>> layers;
  for (auto* parameter : train::parameters<float>(network))
    if (parameter->levelled) layers.push_back({parameter, train::weight_scale(*parameter), 0.02});
  (void)train::allocate(layers, {{0.0538, 0.0447}, {0.1338, 0.1497}}).value();
  train::set_levels(network, 2);
  return Model::from_archive(strata::to_archive(network, 2)).value();
}

void run_level(benchmark::State& state) {
  strata::Session<Model> session(make_model());
  const Level level{static_cast<int>(state.range(0))};
  for (auto _ : state) benchmark::DoNotOptimize(session.forward(level).data());
}
BENCHMARK(run_level)->Arg(0)->Arg(1)->ArgName("level");

/// One run at level 0 and one at level 1: what is above the sum of the rows before is the price of two switches.
void switch_every_run(benchmark::State& state) {
  strata::Session<Model> session(make_model());
  for (auto _ : state) {
    benchmark::DoNotOptimize(session.forward(Level{0}).data());
    benchmark::DoNotOptimize(session.forward(Level{1}).data());
  }
}
BENCHMARK(switch_every_run);

}  // namespace

BENCHMARK_MAIN();
