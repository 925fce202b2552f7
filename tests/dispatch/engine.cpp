// Compiled once per instruction set: a small network with random nested weights.
#include "engine.hpp"

#include <random>
#include <string_view>

#include <strata/runtime/dispatch.hpp>
#include <strata/strata.hpp>

namespace {

template <class Family>
struct Network {
  struct Config {
    strata::index_t width = 24;
    template <class V>
    void visit(V&& v) {
      v("width", width);
    }
  };
  static constexpr std::string_view architecture = "dispatched";

  explicit Network(const Config& config)
      : config_(config),
        conv({.in_channels = 2, .out_channels = config.width, .padding = 1, .activation = strata::Activation::silu}),
        fc({.in_features = config.width, .out_features = 7}) {}

  const Config& config() const { return config_; }
  strata::Shape input_shape() const { return {2, 11, 11}; }
  auto operator()(typename Family::Context& context, const typename Family::Tensor& x) const {
    return fc(context, average(context, conv(context, x)));
  }
  template <class V>
  void visit(V&& v) {
    v("conv", conv, "bn");
    v("fc", fc);
  }

  Config config_;
  typename Family::Conv2d conv;
  typename Family::GlobalAvgPool2d average;
  typename Family::Linear fc;
};

strata::Archive random_archive(int seed) {
  std::mt19937 random(static_cast<unsigned>(seed));
  const auto numbers = [&](std::size_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = static_cast<float>(random() % 2001) / 1000.0F - 1.0F;
    return values;
  };
  strata::Archive archive;
  archive.set_levels(2);
  archive.metadata()["architecture"] = "dispatched";
  archive.metadata()["config.width"] = "24";
  strata::ParameterSink sink(archive);
  const auto matrix = [&]<class Index>(Index, strata::index_t rows, strata::index_t columns, strata::index_t block) {
    const auto weights = numbers(static_cast<std::size_t>(rows * columns));
    std::vector<std::uint8_t> strata(weights.size(), strata::StratumMap::absent);
    for (std::uint8_t& stratum : strata)
      if (const auto draw = random() % 4; draw < 2) stratum = static_cast<std::uint8_t>(draw);
    return strata::LeveledCsr<float, Index>::from_dense(
        weights, strata::StratumMap::from_strata(rows, columns, 2, strata).value(), block);
  };
  sink.leveled_csr("conv.weight", matrix(strata::ConvIndex{}, 24, 18, strata::conv_block_columns(9, 2)));
  sink.leveled_csr("fc.weight", matrix(strata::LinearIndex{}, 7, 24, strata::linear_block_columns(24)));
  for (int level = 0; level < 2; ++level) {
    sink.per_level<float>("bn.scale", level, numbers(24));
    sink.per_level<float>("bn.bias", level, numbers(24));
  }
  sink.array<float>("fc.bias", {7}, 0, numbers(7));
  return archive;
}

/// A global object with a constructor that the compiler cannot leave out: made when the variant is entered.
const std::vector<std::string> names = {std::string(40, 'a'), xsimd::default_arch::name()};

class StrataEngine : public Engine {
 public:
  using Model = strata::Model<Network>;

  explicit StrataEngine(int seed) : session_(Model::from_archive(random_archive(seed)).value()) {}

  int levels() const override { return session_.model().levels(); }
  std::string architecture() const override { return names.at(1); }
  std::vector<float> run(const std::vector<float>& input, int level) override {
    const auto output = session_.run(input, strata::Level{level});
    return {output.begin(), output.end()};
  }

 private:
  strata::Session<Model> session_;
};

std::unique_ptr<Engine> make_engine(int seed) {
  if (names.size() != 2) strata::raise(strata::Error("global objects", "2 names", std::to_string(names.size())));
  if (seed < 0) strata::raise(strata::Error("seed", "0 or more", std::to_string(seed)));
  return std::make_unique<StrataEngine>(seed);
}

}  // namespace

STRATA_DISPATCH_ENTRY(make_engine);
