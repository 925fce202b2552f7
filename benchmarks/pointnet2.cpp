// PointNet++ at batch 1: milliseconds a cloud for the dense model and both levels, taken in turns, and the share of
// time of each kind of layer. Weights are random at the usual budgets. `--save DIR` writes the dense model and one
// cloud with its logits, which benchmarks/peers/pointnet2 runs in PyTorch. `--times` prints one line of medians only.
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <strata/strata.hpp>
#include <strata/train/allocation.hpp>
#include <strata/train/training.hpp>

#include "../examples/pointnet2/network.hpp"

namespace {

using strata::index_t;
using strata::Level;
namespace train = strata::train;
using Clock = std::chrono::steady_clock;
using TrainingNet = pointnet2::PointNet2<train::Training<float>>;

/// Time per kind of layer, without that of layers inside it.
enum Kind : std::size_t { sampling, grouping, convolution, maximum, linear, other, kinds };
constexpr std::array<const char*, kinds> kind_names = {"sampling", "ball query + grouping", "convolutions",
                                                       "maxima",   "fully connected",       "other"};
std::array<double, kinds> seconds_of{};
double* inner_seconds = nullptr;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Adds what a layer takes to its kind and takes it off the layer around it.
template <class F>
auto timed(Kind kind, F&& f) {
  double inner = 0;
  double* const outer = std::exchange(inner_seconds, &inner);
  const auto start = Clock::now();
  auto result = f();
  const double taken = since(start);
  inner_seconds = outer;
  seconds_of[kind] += taken - inner;
  if (outer != nullptr) *outer += taken;
  return result;
}

/// A layer of the inference family that is timed.
template <class Layer, Kind kind>
struct Timed : Layer {
  using Layer::Layer;
  template <class... Arguments>
  auto operator()(Arguments&&... arguments) const {
    return timed(kind, [&] { return Layer::operator()(std::forward<Arguments>(arguments)...); });
  }
};

struct TimedInference : strata::Inference<float> {
  using Base = strata::Inference<float>;
  using Conv2d = Timed<Base::Conv2d, convolution>;
  using Linear = Timed<Base::Linear, linear>;
  using FarthestPointSampling = Timed<Base::FarthestPointSampling, sampling>;
  using BallGrouping = Timed<Base::BallGrouping, grouping>;
  using GroupMax = Timed<Base::GroupMax, maximum>;
  using GlobalMaxPool2d = Timed<Base::GlobalMaxPool2d, maximum>;
  using Concatenate = Timed<Base::Concatenate, other>;
};

/// The network with random weights and statistics as training would leave them: at the usual budgets, or dense.
strata::Archive make_archive(const TrainingNet::Config& config, bool levels) {
  TrainingNet network(config);
  train::initialise(network, 1);
  strata::SerialExecutor executor;
  train::Context<float> context(executor);
  context.begin(Level{0});
  std::mt19937 random(2);
  std::uniform_real_distribution<float> uniform(-0.6F, 0.6F);
  std::vector<float> clouds(static_cast<std::size_t>(2 * network.input_shape().size()));
  for (float& x : clouds) x = uniform(random);
  context.norm_momentum = 1;  // statistics of this batch, so that activations have the usual size
  (void)network(context, train::input_tensor(context, clouds.data(), 2, network.input_shape()));
  if (levels) {
    std::vector<train::PrunableLayer<float>> layers;
    for (auto* parameter : train::parameters<float>(network))
      if (parameter->levelled) layers.push_back({parameter, train::weight_scale(*parameter), 0.02});
    (void)train::allocate(layers, {{0.0538, 0.0447}, {0.1338, 0.1497}}).value();
    train::set_levels(network, 2);
  }
  return strata::to_archive(network, levels ? 2 : 1);
}

/// A cloud on the surface of a box in the unit ball, as meshes give: evenly spread points.
std::vector<float> make_cloud(index_t points) {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> uniform(-0.57F, 0.57F);
  std::vector<float> cloud(static_cast<std::size_t>(3 * points));
  for (index_t i = 0; i < points; ++i) {
    const auto face = static_cast<index_t>(random() % 6);
    for (index_t d = 0; d < 3; ++d)
      cloud[static_cast<std::size_t>(d * points + i)] =
          d == face / 2 ? (face % 2 == 0 ? -0.57F : 0.57F) : uniform(random);
  }
  return cloud;
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

void save_numbers(const std::string& path, std::span<const float> numbers) {
  (void)strata::io::write_atomically(path, {std::as_bytes(numbers)}).value();
}

}  // namespace

int main(int argc, char** argv) {
  TrainingNet::Config config;
  bool times_only = false;
  std::string directory;
  int rounds = 100;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--times") {
      times_only = true;
    } else if (argument == "--multi-scale") {
      config.multi_scale = true;
    } else if (argument == "--save" && i + 1 < argc) {
      directory = argv[++i];
    } else if (argument == "--rounds" && i + 1 < argc) {
      rounds = std::max(1, std::atoi(argv[++i]));
    } else {
      std::fprintf(stderr, "usage: pointnet2_latency [--times] [--multi-scale] [--rounds N] [--save DIR]\n");
      return 2;
    }
  }
  using Model = strata::Model<pointnet2::PointNet2>;
  using TimedModel = strata::Model<pointnet2::PointNet2, TimedInference>;
  const strata::Archive dense_archive = make_archive(config, false);
  const strata::Archive level_archive = make_archive(config, true);
  strata::Session<Model> dense(Model::from_archive(dense_archive).value());
  strata::Session<Model> levels(Model::from_archive(level_archive).value());
  const std::vector<float> cloud = make_cloud(config.points);
  for (auto* session : {&dense, &levels}) std::copy(cloud.begin(), cloud.end(), session->input().begin());
  if (!directory.empty()) {
    (void)strata::io::write_model(dense_archive, directory + "/dense.safetensors").value();
    save_numbers(directory + "/cloud.f32", cloud);
    save_numbers(directory + "/logits.f32", dense.forward(Level{0}));
  }
  const std::array<std::pair<strata::Session<Model>*, Level>, 3> runs = {
      {{&dense, Level{0}}, {&levels, Level{1}}, {&levels, Level{0}}}};
  std::array<std::vector<double>, 3> times;
  for (int round = 0; round < rounds; ++round)
    for (std::size_t r = 0; r < runs.size(); ++r) {
      const auto start = Clock::now();
      (void)runs[r].first->forward(runs[r].second);
      times[r].push_back(1e3 * since(start));
    }
  if (times_only) {
    std::printf("%.4f %.4f %.4f\n", median(times[0]), median(times[1]), median(times[2]));
    return 0;
  }
  strata::Session<TimedModel> timed_dense(TimedModel::from_archive(dense_archive).value());
  strata::Session<TimedModel> timed_levels(TimedModel::from_archive(level_archive).value());
  for (auto* session : {&timed_dense, &timed_levels}) std::copy(cloud.begin(), cloud.end(), session->input().begin());
  std::printf("%-8s %8s", "model", "ms");
  for (const char* name : kind_names) std::printf("  %s", name);
  std::printf("\n");
  constexpr std::array<const char*, 3> names = {"dense", "level 1", "level 0"};
  for (std::size_t r = 0; r < runs.size(); ++r) {
    auto& session = r == 0 ? timed_dense : timed_levels;
    std::array<std::vector<double>, kinds> parts;
    for (int round = 0; round < rounds; ++round) {
      seconds_of = {};
      (void)session.forward(runs[r].second);
      for (std::size_t k = 0; k < kinds; ++k) parts[k].push_back(1e3 * seconds_of[k]);
    }
    std::printf("%-8s %8.3f", names[r], median(times[r]));
    double sum = 0;
    for (auto& part : parts) sum += median(part);
    for (std::size_t k = 0; k < kinds; ++k)
      std::printf("  %*.3f (%2.0f %%)", static_cast<int>(std::strlen(kind_names[k])) - 7, median(parts[k]),
                  100 * median(parts[k]) / sum);
    std::printf("\n");
  }
  return 0;
}
