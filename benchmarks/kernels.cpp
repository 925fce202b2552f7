// Convolution kernels on the layers of ResNet-50, at the densities of the two levels, in one stratum and in two, with
// unstructured and with row-balanced masks; beside them the library's dense kernel, the dense kernel of oneDNN (if the
// build found it) and the peak of fused multiply-adds of this core. After the run a table of all rows: microseconds,
// effective GFLOP/s (2 x non-zeros x pixels / time), share of the peak and speed-up over oneDNN, from medians if there
// were repetitions.
// Run pinned: OMP_NUM_THREADS=1 taskset -c 1 kernels --benchmark_repetitions=5
// --benchmark_enable_random_interleaving=true
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include <strata/kernels/convolution.hpp>
#include <strata/layers/parameters.hpp>

#if defined(STRATA_ONEDNN)
#include "dense_peer.hpp"
#endif

namespace {

using strata::index_t;
using Arch = xsimd::default_arch;
using Batch = xsimd::batch<float, Arch>;
constexpr auto lanes = static_cast<index_t>(Batch::size);

struct Layer {
  index_t out, in, size, kernel, stride;

  [[nodiscard]] strata::kernels::ConvolutionShape shape() const {
    strata::kernels::ConvolutionShape shape;
    shape.out_channels = out;
    shape.in_channels = in;
    shape.kernel = kernel;
    shape.stride = stride;
    shape.padding = kernel / 2;
    return shape;
  }
  [[nodiscard]] index_t output_size() const { return (size + 2 * (kernel / 2) - kernel) / stride + 1; }
  [[nodiscard]] std::string name() const {
    const auto text = [](index_t number) { return std::to_string(number); };
    return text(out) + " x " + text(in) + ", " + text(size) + "x" + text(size) + ", " + text(kernel) + "x" +
           text(kernel) + ", /" + text(stride);
  }
};

constexpr Layer resnet50_layers[] = {
    {64, 3, 224, 7, 2},    {64, 64, 56, 1, 1},    {256, 64, 56, 1, 1},   {64, 256, 56, 1, 1},   {128, 256, 56, 1, 1},
    {128, 512, 28, 1, 1},  {512, 128, 28, 1, 1},  {256, 512, 28, 1, 1},  {256, 1024, 14, 1, 1}, {1024, 256, 14, 1, 1},
    {512, 1024, 14, 1, 1}, {512, 2048, 7, 1, 1},  {2048, 512, 7, 1, 1},  {64, 64, 56, 3, 1},    {128, 128, 28, 3, 1},
    {256, 256, 14, 3, 1},  {512, 512, 7, 3, 1},   {128, 128, 56, 3, 2},  {256, 256, 28, 3, 2},  {512, 512, 14, 3, 2},
    {512, 256, 56, 1, 2},  {1024, 512, 28, 1, 2}, {2048, 1024, 14, 1, 2}};

/// Those of ResNet-20, for few channels; not in the means.
constexpr Layer resnet20_layers[] = {{16, 16, 32, 3, 1}, {32, 32, 16, 3, 1}, {64, 64, 8, 3, 1}};

/// Calls `f(layer)` for all layers.
template <class F>
void for_each_layer(F&& f) {
  for (const Layer& layer : resnet50_layers) f(layer);
  for (const Layer& layer : resnet20_layers) f(layer);
}

/// What is run on each layer.
struct Contender {
  const char* name;
  double density;
  int strata;
  bool balanced;  ///< every row has equally many non-zeros in a block of columns, in each stratum
};
constexpr Contender contenders[] = {
    {"13.38 %", 0.1338, 1, false},          {"13.38 %, two strata", 0.1338, 2, false},
    {"13.38 %, balanced", 0.1338, 1, true}, {"13.38 %, balanced, two strata", 0.1338, 2, true},
    {"5.38 %", 0.0538, 1, false},           {"5.38 %, balanced", 0.0538, 1, true}};
constexpr const char* peak_name = "peak";
constexpr const char* dense_name = "dense kernel";
constexpr const char* peer_name = "dense, oneDNN";

/// Operations a second, for the table.
void set_flops(benchmark::State& state, double flops) {
  state.counters["GFLOP/s"] =
      benchmark::Counter(flops * static_cast<double>(state.iterations()) / 1e9, benchmark::Counter::kIsRate);
}

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
  set_flops(state, 1000 * 10 * 2 * lanes);
}

/// The stratum of every weight: a share of 0.4 of the non-zeros in stratum 0 if there are two.
std::vector<std::uint8_t> random_strata(const Contender& contender, index_t rows, index_t columns, index_t block,
                                        std::mt19937& random) {
  std::vector<std::uint8_t> strata(static_cast<std::size_t>(rows * columns), strata::StratumMap::absent);
  const double first = contender.strata == 1 ? contender.density : 0.4 * contender.density;
  if (!contender.balanced) {
    std::uniform_real_distribution<double> uniform(0, 1);
    for (auto& stratum : strata) {
      const double u = uniform(random);
      if (u < contender.density) stratum = u < first ? 0 : 1;
    }
    return strata;
  }
  std::vector<index_t> order;
  for (index_t row = 0; row < rows; ++row)
    for (index_t start = 0; start < columns; start += block) {
      order.resize(static_cast<std::size_t>(std::min(block, columns - start)));
      std::iota(order.begin(), order.end(), start);
      std::ranges::shuffle(order, random);
      const auto count = [&](double share) {
        return static_cast<std::size_t>(std::lround(share * static_cast<double>(order.size())));
      };
      for (std::size_t i = 0; i < count(contender.density); ++i)
        strata[static_cast<std::size_t>(row * columns + order[i])] = i < count(first) ? 0 : 1;
    }
  return strata;
}

std::vector<float> random_numbers(index_t count, std::mt19937& random) {
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (float& number : numbers) number = uniform(random);
  return numbers;
}

/// One layer with its weights (a `LeveledCsr` or a `DenseMatrix`) and tensors.
template <class Weights>
class Kernel {
 public:
  Kernel(const Layer& layer, Weights weights, strata::Level level, double nnz)
      : layer_(layer),
        weights_(std::move(weights)),
        level_(level),
        nnz_(nnz),
        x_(*arena_, strata::TileLayout::make(1, {layer.in, layer.size, layer.size}, lanes)),
        y_(*arena_, strata::TileLayout::make(1, {layer.out, layer.output_size(), layer.output_size()}, lanes)) {
    std::mt19937 random(2);
    std::ranges::copy(random_numbers(x_.layout().size(), random), x_.data());
  }

  void run(benchmark::State& state) const {
    strata::SerialExecutor executor;
    strata::kernels::Epilogue<float> epilogue;
    epilogue.activation = strata::Activation::relu;
    for (auto _ : state) {
      strata::kernels::convolution<Arch>(weights_, level_, layer_.shape(), x_.layout(), x_.data(), y_.layout(),
                                         y_.data(), epilogue, *arena_, executor);
      benchmark::ClobberMemory();
    }
    set_flops(state, 2 * nnz_ * static_cast<double>(layer_.output_size() * layer_.output_size()));
  }

 private:
  Layer layer_;
  Weights weights_;
  strata::Level level_;
  double nnz_;
  std::shared_ptr<strata::Arena> arena_ = std::make_shared<strata::Arena>();
  strata::Tensor<float> x_;
  strata::Tensor<float> y_;
};

auto sparse_kernel(const Layer& layer, const Contender& contender) {
  const auto shape = layer.shape();
  const index_t block = strata::conv_block_columns(shape.taps(), shape.in_channels);
  std::mt19937 random(1);
  const auto weights = random_numbers(shape.out_channels * shape.columns(), random);
  const auto map =
      strata::StratumMap::from_strata(shape.out_channels, shape.columns(), contender.strata,
                                      random_strata(contender, shape.out_channels, shape.columns(), block, random))
          .value();
  const strata::Level level{contender.strata - 1};
  auto matrix = strata::LeveledCsr<float, strata::ConvIndex>::from_dense(weights, map, block);
  const auto nnz = static_cast<double>(matrix.nnz(level));
  return Kernel(layer, std::move(matrix), level, nnz);
}

/// The library's dense kernel; all layers read the same random numbers.
auto dense_kernel(const Layer& layer) {
  static const std::vector<float> weights = [] {
    std::mt19937 random(1);
    return random_numbers(index_t{512} * 512 * 9, random);
  }();
  const auto shape = layer.shape();
  const index_t count = shape.out_channels * shape.columns();
  const strata::kernels::DenseMatrix<float> matrix(weights.data(), shape.out_channels, shape.columns(),
                                                   std::max<index_t>(1, 96 / shape.taps()) * shape.taps());
  return Kernel(layer, matrix, strata::Level{0}, static_cast<double>(count));
}

#if defined(STRATA_ONEDNN)
class Peer {
 public:
  explicit Peer(const Layer& layer) : layer_(layer), convolution_(layer.shape(), layer.size, layer.output_size()) {}
  void run(benchmark::State& state) {
    for (auto _ : state) convolution_.run();
    set_flops(state, 2 * static_cast<double>(layer_.out * layer_.shape().columns() * layer_.output_size() *
                                             layer_.output_size()));
  }

 private:
  Layer layer_;
  benchmarks::DensePeer convolution_;
};
#endif

/// Registers what `make` makes, which is made once, when it is first run.
template <class Make>
void add(const Layer& layer, const char* name, const Make& make) {
  using Made = decltype(make());
  benchmark::RegisterBenchmark((layer.name() + "/" + name).c_str(), [make,
                                                                     made = std::make_shared<std::optional<Made>>()](
                                                                        benchmark::State& state) {
    if (!*made) made->emplace(make());
    (*made)->run(state);
  })->Unit(benchmark::kMicrosecond);
}

/// Prints each row as it comes and, at the end, the table.
class TableReporter : public benchmark::ConsoleReporter {
 public:
  void ReportRuns(const std::vector<Run>& runs) override {
    ConsoleReporter::ReportRuns(runs);
    for (const Run& run : runs) {
      if (run.error_occurred || (run.run_type == Run::RT_Aggregate && run.aggregate_name != "median")) continue;
      const std::string name = run.run_name.function_name;
      const auto known = std::ranges::find(rows_, name, &Row::name);
      Row& row = known != rows_.end() ? *known : rows_.emplace_back();
      // Aggregates come last and replace the single runs.
      row = {name, run.GetAdjustedRealTime(), run.counters.at("GFLOP/s")};
    }
  }

  /// All rows by layer, with what only the whole run can tell.
  void print_table() const {
    const Row* const top = find(peak_name);
    if (top == nullptr) return;
    std::printf("\npeak of this core: %.1f GFLOP/s\n%-32s %-30s %10s %8s %8s %9s\n", top->gflops, "layer", "weights",
                "us", "GFLOP/s", "of peak", "speed-up");
    std::vector<std::string> names;
    for (const Contender& contender : contenders) names.emplace_back(contender.name);
    names.emplace_back(dense_name);
    names.emplace_back(peer_name);
    for_each_layer([&](const Layer& layer) {
      const Row* const dense_peer = find(layer.name() + "/" + peer_name);
      for (const std::string& name : names) {
        const Row* const row = find(layer.name() + "/" + name);
        if (row == nullptr) continue;
        std::printf("%-32s %-30s %10.1f %8.1f %7.1f%% ", layer.name().c_str(), name.c_str(), row->microseconds,
                    row->gflops, 100 * row->gflops / top->gflops);
        if (dense_peer != nullptr) std::printf("%8.2fx", dense_peer->microseconds / row->microseconds);
        std::printf("\n");
      }
    });
    std::printf("\ngeometric means over the 1x1 and 3x3 layers\n%-30s %8s %9s\n", "weights", "of peak", "speed-up");
    for (const std::string& name : names) print_mean(name, *top);
  }

 private:
  struct Row {
    std::string name;
    double microseconds = 0;
    double gflops = 0;
  };

  [[nodiscard]] const Row* find(const std::string& name) const {
    const auto found = std::ranges::find(rows_, name, &Row::name);
    return found == rows_.end() ? nullptr : &*found;
  }

  void print_mean(const std::string& name, const Row& top) const {
    double share = 0;
    double speed = 0;
    int count = 0;
    bool compared = true;
    for (const Layer& layer : resnet50_layers) {
      const Row* const row = find(layer.name() + "/" + name);
      if (row == nullptr || layer.kernel > 3) continue;
      ++count;
      share += std::log(row->gflops / top.gflops);
      const Row* const dense_peer = find(layer.name() + "/" + peer_name);
      compared = compared && dense_peer != nullptr;
      if (dense_peer != nullptr) speed += std::log(dense_peer->microseconds / row->microseconds);
    }
    if (count == 0) return;
    std::printf("%-30s %7.1f%% ", name.c_str(), 100 * std::exp(share / count));
    if (compared) std::printf("%8.2fx", std::exp(speed / count));
    std::printf("\n");
  }

  std::vector<Row> rows_;
};

}  // namespace

int main(int argc, char** argv) {
  benchmark::RegisterBenchmark(peak_name, peak);
  for_each_layer([&](const Layer& layer) {
    for (const Contender& contender : contenders)
      add(layer, contender.name, [&layer, &contender] { return sparse_kernel(layer, contender); });
    add(layer, dense_name, [&layer] { return dense_kernel(layer); });
#if defined(STRATA_ONEDNN)
    add(layer, peer_name, [&layer] { return Peer(layer); });
#endif
  });
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  TableReporter reporter;
  benchmark::RunSpecifiedBenchmarks(&reporter);
  reporter.print_table();
  return 0;
}
