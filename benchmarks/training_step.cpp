// One training step (forward, backward, SGD) of the quick-start network at batch 128 on all cores: seconds a step,
// median of the steps. benchmarks/peers compares it with PyTorch.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include <strata/runtime/thread_pool.hpp>
#include <strata/train/loss.hpp>
#include <strata/train/optimiser.hpp>
#include <strata/train/training.hpp>

#include "../examples/quickstart/network.hpp"

int main() {
  using Family = strata::train::Training<float>;
  quickstart::FashionNet<Family> network({});
  const auto parameters = strata::train::parameters<float>(network);
  strata::ThreadPool pool(static_cast<int>(std::thread::hardware_concurrency()));
  Family::Context context(pool);
  strata::train::Sgd<float> optimiser(parameters, {});
  std::vector<float> pictures(128 * 784);
  std::vector<std::uint8_t> labels(128);
  for (std::size_t i = 0; i < pictures.size(); ++i) pictures[i] = static_cast<float>(i % 255) / 255.0F;
  for (std::size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<std::uint8_t>(i % 10);
  std::vector<double> seconds;
  for (int step = 0; step < 60; ++step) {
    const auto start = std::chrono::steady_clock::now();
    strata::train::clear_gradients(parameters);
    context.begin(strata::Level{0});
    const auto logits = network(context, strata::train::input_tensor(context, pictures.data(), 128, {1, 28, 28}));
    strata::train::cross_entropy(logits, labels);
    context.backward();
    optimiser.step(0.01);
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(seconds.begin(), seconds.end());
  std::printf("%.6f\n", seconds[seconds.size() / 2]);
}
