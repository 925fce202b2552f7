// Convolution kernels on the layers of ResNet-50: effective GFLOP/s (2 x non-zeros x pixels / time) at the densities of
// the two levels, the dense kernel of the same library beside them, and the peak of fused multiply-adds of this core.
// Run pinned: taskset -c 1 kernels --benchmark_repetitions=5 --benchmark_enable_random_interleaving=true
#include <random>
#include <vector>

#include <benchmark/benchmark.h>

#include <strata/kernels/convolution.hpp>
#include <strata/layers/parameters.hpp>

namespace {

using strata::index_t;
using Arch = xsimd::default_arch;
using Batch = xsimd::batch<float, Arch>;
constexpr auto lanes = static_cast<index_t>(Batch::size);

/// Ten independent chains of fused multiply-adds.
void peak(benchmark::State& state) {
  Batch sums[10];
  for (int i = 0; i < 10; ++i) sums[i] = Batch(static_cast<float>(i));
  const Batch a(0.999F);
  const Batch b(1e-3F);
  for (auto _ : state) {
    for (int repeat = 0; repeat < 1000; ++repeat)
      for (Batch& sum : sums) sum = xsimd::fma(sum, a, b);
    for (Batch& sum : sums) benchmark::DoNotOptimize(sum);
  }
  state.counters["GFLOP/s"] = benchmark::Counter(static_cast<double>(state.iterations()) * 1000 * 10 * 2 * lanes / 1e9,
                                                 benchmark::Counter::kIsRate);
}
BENCHMARK(peak);

/// Arguments: out_channels, in_channels, height = width, kernel, stride, density in 1/10,000 (10,000: dense kernel),
/// strata.
void convolution(benchmark::State& state) {
  strata::kernels::ConvolutionShape shape;
  shape.out_channels = state.range(0);
  shape.in_channels = state.range(1);
  const index_t size = state.range(2);
  shape.kernel = state.range(3);
  shape.stride = state.range(4);
  shape.padding = state.range(3) / 2;
  const double density = static_cast<double>(state.range(5)) / 1e4;
  const int levels = static_cast<int>(state.range(6));
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> weights(static_cast<std::size_t>(shape.out_channels * shape.columns()));
  std::vector<std::uint8_t> strata(weights.size(), strata::StratumMap::absent);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    weights[i] = uniform(random);
    const double u = (static_cast<double>(uniform(random)) + 1) / 2;
    if (u < density) strata[i] = levels == 1 || u < density * 0.4 ? 0 : 1;
  }
  const strata::Level level{levels - 1};
  const auto map =
      strata::StratumMap::from_strata(shape.out_channels, shape.columns(), levels, std::move(strata)).value();
  const auto matrix = strata::LeveledCsr<float, strata::ConvIndex>::from_dense(
      weights, map, strata::conv_block_columns(shape.taps(), shape.in_channels));
  const strata::kernels::DenseMatrix<float> dense(weights.data(), shape.out_channels, shape.columns(),
                                                  96 / shape.taps() * shape.taps());
  const index_t output_size = (size + 2 * shape.padding.h - shape.kernel.h) / shape.stride.h + 1;
  strata::Arena arena;
  strata::SerialExecutor executor;
  const strata::Tensor<float> x(arena, strata::TileLayout::make(1, {shape.in_channels, size, size}, lanes));
  const strata::Tensor<float> y(arena,
                                strata::TileLayout::make(1, {shape.out_channels, output_size, output_size}, lanes));
  for (index_t i = 0; i < x.layout().size(); ++i) x.data()[i] = uniform(random);
  const bool is_dense = state.range(5) == 10000;
  for (auto _ : state) {
    strata::kernels::Epilogue<float> epilogue;
    epilogue.activation = strata::Activation::relu;
    if (is_dense) {
      strata::kernels::convolution<Arch>(dense, level, shape, x.layout(), x.data(), y.layout(), y.data(), epilogue,
                                         arena, executor);
    } else {
      strata::kernels::convolution<Arch>(matrix, level, shape, x.layout(), x.data(), y.layout(), y.data(), epilogue,
                                         arena, executor);
    }
    benchmark::ClobberMemory();
  }
  const double nnz = is_dense ? static_cast<double>(weights.size()) : static_cast<double>(matrix.nnz(level));
  state.counters["GFLOP/s"] = benchmark::Counter(
      2 * nnz * static_cast<double>(output_size * output_size * state.iterations()) / 1e9, benchmark::Counter::kIsRate);
}

void resnet50_layers(benchmark::internal::Benchmark* benchmark) {
  const index_t layers[][5] = {
      {64, 3, 224, 7, 2},    {64, 64, 56, 1, 1},    {256, 64, 56, 1, 1},   {64, 256, 56, 1, 1},   {128, 256, 56, 1, 1},
      {128, 512, 28, 1, 1},  {512, 128, 28, 1, 1},  {256, 512, 28, 1, 1},  {256, 1024, 14, 1, 1}, {1024, 256, 14, 1, 1},
      {512, 1024, 14, 1, 1}, {512, 2048, 7, 1, 1},  {2048, 512, 7, 1, 1},  {64, 64, 56, 3, 1},    {128, 128, 28, 3, 1},
      {256, 256, 14, 3, 1},  {512, 512, 7, 3, 1},   {128, 128, 56, 3, 2},  {256, 256, 28, 3, 2},  {512, 512, 14, 3, 2},
      {512, 256, 56, 1, 2},  {1024, 512, 28, 1, 2}, {2048, 1024, 14, 1, 2}};
  for (const auto& layer : layers)
    for (const auto& [density, levels] : {std::pair<index_t, index_t>{1338, 1}, {1338, 2}, {538, 1}, {10000, 1}})
      benchmark->Args({layer[0], layer[1], layer[2], layer[3], layer[4], density, levels});
}
BENCHMARK(convolution)->Apply(resnet50_layers);

}  // namespace

BENCHMARK_MAIN();
