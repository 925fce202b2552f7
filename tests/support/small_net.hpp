// A small network with random parameters at two levels, for tests that need some network.
#pragma once

#include <random>
#include <string_view>
#include <vector>

#include <strata/runtime/model.hpp>

namespace test {

template <class Family>
struct SmallNet {
  struct Config {
    strata::index_t width = 8;
    template <class V>
    void visit(V&& v) {
      v("width", width);
    }
  };
  static constexpr std::string_view architecture = "small";

  explicit SmallNet(const Config& config)
      : config_(config),
        conv({.in_channels = 1, .out_channels = config.width, .padding = 1, .activation = strata::Activation::relu}),
        fc({.in_features = config.width, .out_features = 5}) {}

  [[nodiscard]] const Config& config() const { return config_; }
  [[nodiscard]] strata::Shape input_shape() const { return {1, 9, 9}; }

  auto operator()(typename Family::Context& context, const typename Family::Tensor& x) const {
    auto y = pool(context, conv(context, x));
    context.stage("head");
    return fc(context, flatten(context, average(context, y)));
  }
  template <class V>
  void visit(V&& v) {
    v("conv", conv, "bn");
    v("fc", fc);
  }

  Config config_;
  typename Family::Conv2d conv;
  typename Family::MaxPool2d pool{strata::PoolOptions{}};
  typename Family::GlobalAvgPool2d average;
  typename Family::Flatten flatten;
  typename Family::Linear fc;
};

using SmallModel = strata::Model<SmallNet>;

inline strata::Archive small_archive() {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> uniform(-1, 1);
  strata::Archive archive;
  archive.set_levels(2);
  archive.metadata()["architecture"] = "small";
  archive.metadata()["config.width"] = "8";
  strata::ParameterSink sink(archive);
  const auto matrix = [&]<class Index>(Index, strata::index_t rows, strata::index_t columns, strata::index_t block) {
    std::vector<float> weights(static_cast<std::size_t>(rows * columns));
    std::vector<std::uint8_t> strata(weights.size());
    for (std::size_t i = 0; i < weights.size(); ++i) {
      weights[i] = uniform(random);
      strata[i] = i % 4 == 0 ? 0 : (i % 4 == 1 ? 1 : strata::StratumMap::absent);
    }
    return strata::LeveledCsr<float, Index>::from_dense(
        weights, strata::StratumMap::from_strata(rows, columns, 2, strata).value(), block);
  };
  sink.leveled_csr("conv.weight", matrix(strata::ConvIndex{}, 8, 9, strata::conv_block_columns(9, 1)));
  sink.leveled_csr("fc.weight", matrix(strata::LinearIndex{}, 5, 8, strata::linear_block_columns(8)));
  const std::vector<float> ones(8, 1.0F);
  for (int level = 0; level < 2; ++level) {
    sink.per_level<float>("bn.scale", level, ones);
    sink.per_level<float>("bn.bias", level, ones);
  }
  sink.array<float>("fc.bias", {5}, 0, std::span<const float>(ones).first(5));
  return archive;
}

}  // namespace test
