// A chain of normalised linear layers with a stage between each two, random parameters and any number of levels; and
// what tests of deadlines need beside it: a clock they set, a profile they make up, a path they prescribe.
#pragma once

#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <strata/runtime/session.hpp>

namespace test {

template <class Family>
struct StagedLayer {
  explicit StagedLayer(strata::index_t width)
      : fc({.in_features = width,
            .out_features = width,
            .bias = true,
            .norm = true,
            .activation = strata::Activation::leaky_relu}) {}
  template <class V>
  void visit(V&& v) {
    v("fc", fc, "norm");
  }
  typename Family::Linear fc;
};

template <class Family>
struct StagedNet {
  struct Config {
    strata::index_t width = 16;
    strata::index_t depth = 4;
    template <class V>
    void visit(V&& v) {
      v("width", width);
      v("depth", depth);
    }
  };
  static constexpr std::string_view architecture = "staged";

  explicit StagedNet(const Config& config) : config_(config) {
    for (strata::index_t i = 0; i < config.depth; ++i) {
      layers.emplace_back(config.width);
      names.push_back("layer" + std::to_string(i));
    }
  }

  [[nodiscard]] const Config& config() const { return config_; }
  [[nodiscard]] strata::Shape input_shape() const { return {config_.width, 1, 1}; }

  auto operator()(typename Family::Context& context, const typename Family::Tensor& x) const {
    auto y = layers[0].fc(context, x);
    for (std::size_t i = 1; i < layers.size(); ++i) {
      context.stage(names[i]);
      y = layers[i].fc(context, y);
    }
    return y;
  }
  template <class V>
  void visit(V&& v) {
    v("layers", layers);
  }

  Config config_;
  std::vector<StagedLayer<Family>> layers;
  std::vector<std::string> names;
};

using StagedModel = strata::Model<StagedNet>;

/// Scale and bias of a layer at a level, or in the first stage after a switch.
struct NormValues {
  std::vector<float> scale, bias;
};

inline NormValues random_norm(strata::index_t width, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  NormValues norm;
  for (strata::index_t i = 0; i < width; ++i) {
    norm.scale.push_back(1 + uniform(random) / 2);
    norm.bias.push_back(uniform(random));
  }
  return norm;
}

/// Every second weight is there; the levels share them evenly.
inline strata::Archive staged_archive(strata::index_t width, strata::index_t depth, int levels,
                                      const NormValues* layer1_level0 = nullptr,
                                      const NormValues* layer1_transition = nullptr) {
  std::mt19937 random(5);
  std::uniform_real_distribution<float> uniform(-1, 1);
  strata::Archive archive;
  archive.set_levels(levels);
  archive.metadata()["architecture"] = "staged";
  archive.metadata()["config.width"] = std::to_string(width);
  archive.metadata()["config.depth"] = std::to_string(depth);
  strata::ParameterSink sink(archive);
  for (strata::index_t layer = 0; layer < depth; ++layer) {
    const std::string name = "layers." + std::to_string(layer);
    std::vector<float> weights(static_cast<std::size_t>(width * width));
    std::vector<std::uint8_t> strata(weights.size(), strata::StratumMap::absent);
    for (std::size_t i = 0; i < weights.size(); ++i) {
      weights[i] = uniform(random) * 2 / static_cast<float>(width);
      if (i % 2 == 0) strata[i] = static_cast<std::uint8_t>(i / 2 % static_cast<std::size_t>(levels));
    }
    sink.leveled_csr(name + ".fc.weight",
                     strata::LeveledCsr<float, strata::LinearIndex>::from_dense(
                         weights, strata::StratumMap::from_strata(width, width, levels, strata).value(),
                         strata::linear_block_columns(width)));
    for (int level = 0; level < levels; ++level) {
      NormValues norm = random_norm(width, static_cast<std::uint32_t>(layer * 100 + level));
      if (layer == 1 && level == 0 && layer1_level0 != nullptr) norm = *layer1_level0;
      sink.per_level<float>(name + ".norm.scale", level, norm.scale);
      sink.per_level<float>(name + ".norm.bias", level, norm.bias);
    }
    if (layer == 1 && layer1_transition != nullptr)
      sink.transition<float>(name + ".norm", strata::Level{1}, strata::Level{0}, 0, layer1_transition->scale,
                             layer1_transition->bias);
  }
  return archive;
}

/// A policy that runs a prescribed path.
struct ScriptedPath {
  std::vector<int> levels;

  strata::Level operator()(const strata::RoutePoint& point) const noexcept {
    return {levels[static_cast<std::size_t>(point.stage())]};
  }
};

/// A clock that goes on by the next of `steps` at every look, then by `afterwards`.
struct FakeClock {
  std::vector<std::int64_t> steps = {};
  std::int64_t afterwards = 0;
  std::size_t looks = 0;
  strata::TimePoint time{strata::Duration(1'000'000'000)};

  [[nodiscard]] strata::Clock clock() {
    return {[](void* object) noexcept {
              auto& self = *static_cast<FakeClock*>(object);
              self.time += strata::Duration(self.looks < self.steps.size() ? self.steps[self.looks] : self.afterwards);
              ++self.looks;
              return self.time;
            },
            this};
  }
};

/// `stages` stages that always take `costs[level]` nanoseconds.
inline strata::Profile flat_profile(int stages, const std::vector<double>& costs) {
  strata::StageSamples samples;
  std::vector<std::string> names;
  strata::ProfileKey key;
  for (int s = 0; s < stages; ++s) names.push_back(s == 0 ? std::string(strata::first_stage) : "s" + std::to_string(s));
  for (std::size_t level = 0; level < costs.size(); ++level) {
    samples.push_back({std::vector<double>(static_cast<std::size_t>(stages), costs[level])});
    key.level_nnz.push_back(static_cast<std::int64_t>(level + 1) * 100);
    key.level_bytes.push_back(static_cast<std::int64_t>(level + 1) * 600);
  }
  return strata::profile_of(samples, names, key);
}

}  // namespace test
