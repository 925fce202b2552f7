// Normalisation with ReLU in training, forward and backward pass, on layers of ResNet-20 and ResNet-50 for 32x32
// pictures at batch 128: the kernels of train/lane_norm.hpp on activations of single precision and of bfloat16, their
// scalar twins, and oneDNN's batch normalisation (if the build found it). One thread. GB/s count every array that a
// pass has to read or write once: x and y forward, x, dy and dx, which takes dy's place, backward; what has to be swept
// twice counts once. Before each backward pass dy is filled again, untimed.
// Run pinned: OMP_NUM_THREADS=1 taskset -c 1 lane_norm --benchmark_repetitions=5
// --benchmark_enable_random_interleaving=true
#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <strata/core/arena.hpp>
#include <strata/train/lane_norm.hpp>
#include <strata/train/lanes.hpp>

#if defined(STRATA_ONEDNN)
#include <cstring>
#include <dnnl.hpp>
#include <unordered_map>
#endif

namespace {

namespace kernels = strata::kernels;
using kernels::bfloat16;
using strata::index_t;
using Arch = xsimd::default_arch;

constexpr index_t batch = 128;

/// Channels, and pixels along a side.
struct Layer {
  index_t channels, size;
};
constexpr Layer layers[] = {{16, 32}, {64, 8}, {64, 32}, {256, 32}, {512, 16}, {2048, 4}};

enum class Pass { forward, backward };

/// Bytes of the arrays that `pass` reads and writes.
void set_bytes(benchmark::State& state, const Layer& layer, Pass pass, std::size_t bytes) {
  const index_t numbers = batch * layer.channels * layer.size * layer.size;
  state.SetBytesProcessed(state.iterations() * (pass == Pass::forward ? 2 : 3) * numbers *
                          static_cast<std::int64_t>(bytes));
}

/// A layer's arrays and factors, and the sweeps over them.
template <class Stored>
class Norm {
 public:
  explicit Norm(const Layer& layer)
      : layout_(strata::train::lanes_of<float>, batch, strata::Shape{layer.channels, layer.size, layer.size}),
        x_(array()),
        y_(array()),
        dy_(array()),
        scale_(count(layout_.channels), 0.5F),
        shift_(scale_.size(), 0.1F),
        slope_(scale_.size(), 1e-3F),
        means_(scale_.size()),
        squares_(scale_.size()) {
    for (index_t i = 0; i < numbers(); ++i)
      x_[i] = kernels::stored_as<Stored>(static_cast<float>((i * 37) % 101 - 50) / 25.0F);
  }

  void fill_gradient() { std::copy_n(x_, numbers(), dy_); }

  template <bool reference>
  void forward() {
    const auto moments = [&](index_t at, index_t channel) {
      if constexpr (reference) {
        kernels::lane_moments_reference<Arch>(block_, x_ + at, &means_[count(channel)], &squares_[count(channel)]);
      } else {
        kernels::lane_moments<Arch>(block_, x_ + at, &means_[count(channel)], &squares_[count(channel)]);
      }
    };
    const auto affine = [&](index_t at, index_t channel) {
      const float* const scale = &scale_[count(channel)];
      const float* const shift = &shift_[count(channel)];
      const Stored* const none = nullptr;
      if constexpr (reference) {
        kernels::lane_affine_reference<Arch>(block_, x_ + at, scale, shift, none, true, y_ + at);
      } else {
        kernels::lane_affine<Arch>(block_, x_ + at, scale, shift, none, true, y_ + at);
      }
    };
    for_blocks(moments);
    for_blocks(affine);
  }

  template <bool reference>
  void backward() {
    const auto sums = [&](index_t at, index_t channel) {
      const Gradient job = gradient(at, channel);
      const float* const mean = &means_[count(channel)];
      if constexpr (reference) {
        kernels::lane_gradient_sums_reference<Arch, float, Stored>(block_, job, mean, &squares_[count(channel)],
                                                                   &sums_[count(channel)]);
      } else {
        kernels::lane_gradient_sums<Arch, float, Stored>(block_, job, mean, &squares_[count(channel)],
                                                         &sums_[count(channel)]);
      }
    };
    const auto affine = [&](index_t at, index_t channel) {
      if constexpr (reference) {
        kernels::lane_affine_gradient_reference<Arch>(block_, gradient(at, channel));
      } else {
        kernels::lane_affine_gradient<Arch>(block_, gradient(at, channel));
      }
    };
    for_blocks(sums);
    for_blocks(affine);
  }

 private:
  using Gradient = kernels::LaneAffineGradient<float, Stored>;

  static std::size_t count(index_t i) { return static_cast<std::size_t>(i); }
  [[nodiscard]] index_t numbers() const { return layout_.groups * layout_.group_step(); }

  /// An array of the layer's size, whose numbers are nought.
  [[nodiscard]] Stored* array() {
    blocks_.push_back(arena_.take(numbers() * static_cast<index_t>(sizeof(Stored))));
    auto* const start = reinterpret_cast<Stored*>(blocks_.back().data());
    std::uninitialized_value_construct_n(start, numbers());
    return start;
  }

  [[nodiscard]] Gradient gradient(index_t at, index_t channel) {
    Gradient job;
    job.x = x_ + at;
    job.scale = &scale_[count(channel)];
    job.shift = &shift_[count(channel)];
    job.dy = dy_ + at;
    job.relu = true;
    job.slope = &slope_[count(channel)];
    job.offset = &shift_[count(channel)];
    job.dx = dy_ + at;
    return job;
  }

  /// Calls `f(where a block of channels of a group of pictures starts, its first channel)` for all of them, as
  /// train/operations.hpp does.
  template <class F>
  void for_blocks(F&& f) {
    for (index_t i = 0; i < layout_.groups * layout_.blocks(); ++i)
      f(i * layout_.block_step(), i % layout_.blocks() * layout_.block);
  }

  strata::train::LaneLayout layout_;
  kernels::LaneBlock block_{layout_.pixels, layout_.block};
  strata::Arena arena_;
  std::vector<strata::Block> blocks_;
  Stored* x_;
  Stored* y_;
  Stored* dy_;
  std::vector<float> scale_;
  std::vector<float> shift_;
  std::vector<float> slope_;
  std::vector<float> means_;
  std::vector<float> squares_;
  std::vector<float> sums_ = squares_;
};

template <class Stored, bool reference>
void lanes(benchmark::State& state, Layer layer, Pass pass) {
  Norm<Stored> norm(layer);
  for (auto _ : state) {
    if (pass == Pass::forward) {
      norm.template forward<reference>();
    } else {
      state.PauseTiming();
      norm.fill_gradient();
      state.ResumeTiming();
      norm.template backward<reference>();
    }
    benchmark::ClobberMemory();
  }
  set_bytes(state, layer, pass, sizeof(Stored));
}

#if defined(STRATA_ONEDNN)
/// oneDNN's, with channels in blocks of 16 and ReLU fused.
void peer(benchmark::State& state, Layer layer, Pass pass, dnnl::memory::data_type type) {
  using dnnl::memory;
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const memory::desc data({batch, layer.channels, layer.size, layer.size}, type, memory::format_tag::nChw16c);
  const auto flags = dnnl::normalization_flags::use_scale_shift | dnnl::normalization_flags::fuse_norm_relu;
  const dnnl::batch_normalization_forward::primitive_desc forward(
      {dnnl::prop_kind::forward_training, data, 1e-5F, flags}, engine);
  const dnnl::batch_normalization_backward::primitive_desc backward(
      {dnnl::prop_kind::backward, data, data, 1e-5F, flags}, engine, forward);
  const auto fill = [](const memory& target) {  // 0.01 in either type: which number does not matter to the time
    std::memset(target.get_data_handle(), 0x3C, target.get_desc().get_size());
  };
  const auto made = [&](const memory::desc& description) {
    const memory result(description, engine);
    fill(result);
    return result;
  };
  const memory gradient = made(data);
  const bool in_place = type != memory::data_type::f32;  // the faster way for either type
  const std::unordered_map<int, memory> arguments{{DNNL_ARG_SRC, made(data)},
                                                  {DNNL_ARG_DST, made(data)},
                                                  {DNNL_ARG_DIFF_SRC, in_place ? gradient : made(data)},
                                                  {DNNL_ARG_DIFF_DST, gradient},
                                                  {DNNL_ARG_MEAN, made(forward.mean_desc())},
                                                  {DNNL_ARG_VARIANCE, made(forward.variance_desc())},
                                                  {DNNL_ARG_SCALE_SHIFT, made(forward.weights_desc())},
                                                  {DNNL_ARG_DIFF_SCALE_SHIFT, made(forward.weights_desc())},
                                                  {DNNL_ARG_WORKSPACE, made(forward.workspace_desc())}};
  const dnnl::batch_normalization_forward run_forward(forward);
  const dnnl::batch_normalization_backward run_backward(backward);
  run_forward.execute(stream, arguments);
  for (auto _ : state) {
    if (pass == Pass::forward) {
      run_forward.execute(stream, arguments);
    } else {
      state.PauseTiming();
      fill(gradient);
      state.ResumeTiming();
      run_backward.execute(stream, arguments);
    }
    stream.wait();
  }
  set_bytes(state, layer, pass, memory::data_type_size(type));
}
#endif

void register_all() {
  for (const Pass pass : {Pass::forward, Pass::backward})
    for (const Layer& layer : layers) {
      const std::string name = std::string(pass == Pass::forward ? "forward" : "backward") + "/" +
                               std::to_string(layer.channels) + " channels, " + std::to_string(layer.size) + "x" +
                               std::to_string(layer.size) + "/";
      const auto add = [&](const char* contender, auto&& run) {
        benchmark::RegisterBenchmark((name + contender).c_str(), run)->Unit(benchmark::kMillisecond);
      };
      add("single", [=](benchmark::State& state) { lanes<float, false>(state, layer, pass); });
      add("bfloat16", [=](benchmark::State& state) { lanes<bfloat16, false>(state, layer, pass); });
      add("single, scalar twin", [=](benchmark::State& state) { lanes<float, true>(state, layer, pass); });
      add("bfloat16, scalar twin", [=](benchmark::State& state) { lanes<bfloat16, true>(state, layer, pass); });
#if defined(STRATA_ONEDNN)
      add("single, oneDNN", [=](benchmark::State& state) { peer(state, layer, pass, dnnl::memory::data_type::f32); });
      add("bfloat16, oneDNN",
          [=](benchmark::State& state) { peer(state, layer, pass, dnnl::memory::data_type::bf16); });
#endif
    }
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  register_all();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
