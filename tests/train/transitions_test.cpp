// Statistics of switches of level: which layers get them, and that they normalise what the switch makes.
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include <strata/runtime/session.hpp>
#include <strata/train/classification.hpp>
#include <strata/train/transitions.hpp>

#include "support/catch.hpp"
#include "support/staged_net.hpp"

namespace {

using strata::index_t;
using strata::Level;
namespace train = strata::train;
using Net = test::StagedNet<train::Training<float>>;

constexpr index_t width = 16;
constexpr index_t samples = 200;

train::Dataset noise() {
  std::mt19937 random(4);
  train::Dataset data{{width, 1, 1}, width, {}, {}, 0.5, 0.25};
  for (index_t i = 0; i < samples * width; ++i) data.pixels.push_back(static_cast<std::uint8_t>(random() % 256));
  for (index_t i = 0; i < samples; ++i) data.labels.push_back(static_cast<std::uint8_t>(i % width));
  return data;
}

/// Random weights, every second one only in level 1.
Net random_net(index_t depth) {
  Net network({.width = width, .depth = depth});
  train::initialise(network, 3);
  for (auto* parameter : train::parameters<float>(network))
    if (parameter->levelled)
      for (std::size_t i = 0; i < parameter->strata.size(); ++i) parameter->strata[i] = i % 2 == 0 ? 0 : 1;
  train::set_levels(network, 2);
  return network;
}

}  // namespace

TEST_CASE("layers behind a stage get statistics for the switches asked for, others none") {
  const auto data = noise();
  train::Classification<float> task(data);
  const Net network = random_net(4);
  strata::SerialExecutor executor;
  for (const bool up : {false, true}) {
    auto archive = strata::to_archive(network, 2);
    train::calibrate_transitions(network, task, archive, executor, {.batches = 2, .batch = 64, .up = up});
    for (int layer = 0; layer < 4; ++layer) {
      const std::string norm = "layers." + std::to_string(layer) + ".norm";
      CHECK((archive.find(norm + ".transition.1.0.scale") != nullptr) == (layer > 0));
      CHECK((archive.find(norm + ".transition.0.1.bias") != nullptr) == (layer > 0 && up));
      for (int since = 1; since < 4; ++since)
        CHECK((archive.find(norm + ".transition.1.0." + std::to_string(since) + ".scale") != nullptr) ==
              (since < layer));
      if (const auto* view = archive.find(norm + ".transition.1.0.scale")) CHECK(view->stratum == 1);
    }
    CHECK_THROWS_AS(train::calibrate_transitions(network, task, archive, executor), strata::Error);
  }
  auto archive = strata::to_archive(network, 2);
  CHECK_THROWS_AS(train::calibrate_transitions(network, task, archive, executor, {.batches = 0}), strata::Error);
  CHECK_THROWS_AS(train::calibrate_transitions(network, task, archive, executor, {.stages = 0}), strata::Error);
  train::calibrate_transitions(network, task, archive, executor, {.batches = 2, .batch = 64, .stages = 2});
  CHECK(archive.find("layers.3.norm.transition.1.0.1.scale") != nullptr);
  CHECK(archive.find("layers.3.norm.transition.1.0.2.scale") == nullptr);
}

TEST_CASE("all stages after a switch are normalised for what the switch makes") {
  const auto data = noise();
  train::Classification<float> task(data);
  strata::SerialExecutor executor;
  std::vector<std::uint32_t> indices;
  for (std::uint32_t i = 0; i < samples; ++i) indices.push_back(i);
  std::vector<float> pictures;
  std::vector<std::uint8_t> labels;
  data.batch(indices.data(), samples, pictures, labels);
  const index_t depth = 4;
  Net network = random_net(depth);
  // Level 1's statistics from the same batch, so that evaluation repeats what calibration saw.
  {
    train::Context<float> context(executor);
    context.norm_momentum = 1;
    task.load(indices, 1);
    context.begin(Level{1});
    (void)task.run(network, context);
  }
  auto archive = strata::to_archive(network, 2);
  train::calibrate_transitions(network, task, archive, executor, {.batches = 1, .batch = samples});
  strata::Session<test::StagedModel> session(test::StagedModel::from_archive(archive).value(), {.batch = samples});
  session.set_profile(strata::profile(session, {.runs = 1}));
  for (const std::vector<int>& path : std::vector<std::vector<int>>{{1, 0, 0, 0}, {1, 1, 0, 0}, {1, 1, 1, 0}}) {
    const auto switched = session.run(pictures, strata::Deadline::never(), test::ScriptedPath{path}).output;
    for (index_t channel = 0; channel < width; ++channel) {
      double sum = 0;
      double squares = 0;
      for (index_t i = 0; i < samples; ++i) {
        // Back through the leaky rectifier.
        double value = switched[static_cast<std::size_t>(i * width + channel)];
        if (value < 0) value /= strata::leaky_relu_slope;
        sum += value / samples;
        squares += value * value / samples;
      }
      INFO(path[1] + path[2] << " stages, channel " << channel << ": " << sum << ", " << squares);
      CHECK(std::abs(sum) < 2e-2);
      CHECK(std::abs(squares - 1) < 3e-2);
    }
  }
}

namespace {

/// A normalised layer behind a stage, and one of several matrices beside it.
template <class Family>
struct MixedNet {
  struct Config {
    template <class V>
    void visit(V&&) {}
  };
  static constexpr std::string_view architecture = "mixed";

  explicit MixedNet(const Config& config)
      : config_(config),
        fc({.in_features = width, .out_features = width, .norm = true}),
        lstm({.in_features = width, .hidden_features = 4}) {}

  [[nodiscard]] const Config& config() const { return config_; }
  [[nodiscard]] strata::Shape input_shape() const { return {width, 1, 1}; }
  auto operator()(typename Family::Context& context, const typename Family::Tensor& x) const {
    context.stage("fc");
    return fc(context, x);
  }
  template <class V>
  void visit(V&& v) {
    v("fc", fc, "norm");
    v("lstm", lstm);
  }

  Config config_;
  typename Family::Linear fc;
  typename Family::Lstm lstm;
};

}  // namespace

TEST_CASE("networks with layers that have no normalisation get statistics for those that have") {
  const auto data = noise();
  train::Classification<float> task(data);
  MixedNet<train::Training<float>> network({});
  train::initialise(network, 3);
  train::set_levels(network, 2);
  strata::SerialExecutor executor;
  auto archive = strata::to_archive(network, 2);
  train::calibrate_transitions(network, task, archive, executor, {.batches = 1, .batch = 64});
  CHECK(archive.find("norm.transition.1.0.scale") != nullptr);
}
