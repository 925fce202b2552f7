// Linear layers at small batches: microseconds and effective GFLOP/s (2 x non-zeros x batch / time) of sparse weights
// at the densities of the two levels, in one stratum and in two, and the dense kernel of the same library beside them.
// Run pinned: taskset -c 1 linear --benchmark_repetitions=5 --benchmark_enable_random_interleaving=true
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include <strata/layers/inference.hpp>

namespace {

using strata::index_t;
using Family = strata::Inference<float>;

/// Arguments: out_features, in_features, batch, density in 1/10,000 (10,000: dense kernel), strata.
void linear(benchmark::State& state) {
  const index_t rows = state.range(0);
  const index_t columns = state.range(1);
  const index_t batch = state.range(2);
  const double density = static_cast<double>(state.range(3)) / 1e4;
  const auto levels = static_cast<int>(state.range(4));
  const bool is_dense = state.range(3) == 10000;
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> weights(static_cast<std::size_t>(rows * columns));
  std::vector<std::uint8_t> strata(weights.size(), strata::StratumMap::absent);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    weights[i] = uniform(random);
    const double u = (static_cast<double>(uniform(random)) + 1) / 2;
    if (u < density) strata[i] = levels == 1 || u < density * 0.4 ? 0 : 1;
  }
  strata::Archive archive;
  archive.set_levels(levels);
  strata::ParameterSink sink(archive);
  const strata::Level level{levels - 1};
  auto nnz = static_cast<double>(weights.size());
  if (is_dense) {
    sink.array<float>("fc.weight", {rows, columns}, 0, weights);
  } else {
    const auto map = strata::StratumMap::from_strata(rows, columns, levels, std::move(strata)).value();
    const auto matrix =
        strata::LeveledCsr<float, strata::LinearIndex>::from_dense(weights, map, strata::linear_block_columns(columns));
    nnz = static_cast<double>(matrix.nnz(level));
    sink.leveled_csr("fc.weight", matrix);
  }
  Family::Linear layer(
      {.in_features = columns, .out_features = rows, .bias = false, .activation = strata::Activation::relu});
  strata::ParameterSource source(archive);
  layer.load("fc", "", source);
  (void)source.finish("").value();
  strata::SerialExecutor executor;
  Family::Context context(executor);
  context.set_level(level);
  const auto x = context.make(batch, {columns, 1, 1});
  for (index_t i = 0; i < x.layout().size(); ++i) x.data()[i] = uniform(random);
  for (auto _ : state) {
    const auto y = layer(context, x);
    benchmark::DoNotOptimize(y.data());
    benchmark::ClobberMemory();
  }
  state.counters["GFLOP/s"] =
      benchmark::Counter(2 * nnz * static_cast<double>(batch * state.iterations()) / 1e9, benchmark::Counter::kIsRate);
}

void shapes(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"out", "in", "batch", "density", "strata"})->Unit(benchmark::kMicrosecond);
  for (const auto& [out, in] : {std::pair<index_t, index_t>{4096, 1024}, {1000, 2048}})
    for (const index_t batch : {1, 4, 8, 16, 32})
      for (const auto& [density, levels] : {std::pair<index_t, index_t>{1338, 1}, {1338, 2}, {538, 1}, {10000, 1}})
        benchmark->Args({out, in, batch, density, levels});
}
BENCHMARK(linear)->Apply(shapes);

}  // namespace

BENCHMARK_MAIN();
