// A training step (forward, backward, SGD) with random pictures: seconds a step, median of the steps. Networks: the
// quick start's and those of examples/resnet; dense, or at a level of random masks within a share of weights and FLOPs,
// as a path of the phases with fixed masks. benchmarks/peers/training compares it with PyTorch.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <strata/runtime/thread_pool.hpp>
#include <strata/sparse/budget.hpp>
#include <strata/train/allocation.hpp>
#include <strata/train/loss.hpp>
#include <strata/train/optimiser.hpp>
#include <strata/train/training.hpp>

#include "../examples/quickstart/network.hpp"
#include "../examples/resnet/network.hpp"

namespace {

namespace train = strata::train;
using strata::index_t;
using strata::Level;
using Family = train::Training<float>;
using Clock = std::chrono::steady_clock;

struct Options {
  std::string network = "quickstart";
  double weights = 1;
  double flops = 1;
  index_t batch = 128;
  int steps = 60;
  int threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  bool parts = false;
  bool bfloat16 = false;
};

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

template <class Network>
void run(Network network, const Options& options) {
  const auto parameters = train::parameters<float>(network);
  train::initialise(network, 1);
  strata::ThreadPool pool(options.threads);
  Family::Context context(pool);
  context.bfloat16 = options.bfloat16;
  train::Sgd<float> optimiser(parameters, {});
  const strata::Shape shape = network.input_shape();
  std::vector<float> pictures(static_cast<std::size_t>(options.batch * shape.size()));
  std::vector<std::uint8_t> labels(static_cast<std::size_t>(options.batch));
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(0, 1);
  for (float& pixel : pictures) pixel = uniform(random);
  for (std::size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<std::uint8_t>(i % 10);
  if (options.weights < 1) {
    context.training = false;  // one pass tells how often each weight is used
    context.begin(Level{0});
    (void)network(context, train::input_tensor(context, pictures.data(), 1, shape));
    context.training = true;
    std::vector<train::PrunableLayer<float>> layers;
    for (auto* parameter : parameters)
      if (parameter->levelled) layers.push_back({parameter, train::weight_scale(*parameter), 0.02});
    (void)train::allocate(layers, {{options.weights, options.flops}}).value();
  }
  std::vector<double> whole, forward, backward, rest;
  for (int step = 0; step < options.steps; ++step) {
    const auto start = Clock::now();
    train::clear_gradients(context, parameters);
    context.begin(Level{0});
    const auto logits = network(context, train::input_tensor(context, pictures.data(), options.batch, shape));
    train::cross_entropy(logits, labels);
    forward.push_back(since(start));
    context.backward();
    backward.push_back(since(start) - forward.back());
    optimiser.step(context, 0.01);
    whole.push_back(since(start));
    rest.push_back(whole.back() - forward.back() - backward.back());
  }
  std::printf("%.6f\n", median(whole));
  if (options.parts)
    std::printf("forward %.6f, backward %.6f, optimiser %.6f\n", median(forward), median(backward), median(rest));
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{"Times training steps."};
  app.add_option("--network", options.network,
                 "quickstart, or a network of examples/resnet: resnet20, resnet50-small, ...")
      ->capture_default_str();
  app.add_option("--weights", options.weights, "share of the weights that the level has; 1: dense")
      ->check(CLI::Range(0.001, 1.0))
      ->capture_default_str();
  app.add_option("--flops", options.flops, "share of the FLOPs that it may have")->check(CLI::Range(0.001, 1.0));
  app.add_option("--batch", options.batch)->check(CLI::Range(1, 65536))->capture_default_str();
  app.add_option("--steps", options.steps)->check(CLI::Range(1, 1 << 20))->capture_default_str();
  app.add_option("--threads", options.threads)->check(CLI::Range(1, 256))->capture_default_str();
  app.add_flag("--parts", options.parts, "print the forward pass, the backward pass and the optimiser apart");
  app.add_flag("--bfloat16", options.bfloat16, "round the operands of convolutions to bfloat16");
  CLI11_PARSE(app, argc, argv);
  try {
    if (options.network == "quickstart") {
      run(quickstart::FashionNet<Family>({}), options);
    } else {
      run(resnet::ResNet<Family>(resnet::config_named(options.network, 10, {3, 32, 32}).value()), options);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "training_step: %s\n", error.what());
    return 1;
  }
  return 0;
}
