// Sessions: levels per call, no allocation after construction, concurrent sessions on one model, clear errors.
#include <atomic>
#include <random>
#include <thread>

#include <strata/runtime/session.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"

namespace {

using strata::index_t;
using strata::Level;

template <class Family>
struct SmallNet {
  struct Config {
    index_t width = 8;
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

strata::Archive small_archive() {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> uniform(-1, 1);
  strata::Archive archive;
  archive.set_levels(2);
  archive.metadata()["architecture"] = "small";
  archive.metadata()["config.width"] = "8";
  strata::ParameterSink sink(archive);
  const auto matrix = [&]<class Index>(Index, index_t rows, index_t columns, index_t block) {
    std::vector<float> weights(static_cast<std::size_t>(rows * columns));
    std::vector<std::uint8_t> strata(weights.size());
    for (std::size_t i = 0; i < weights.size(); ++i) {
      weights[i] = uniform(random);
      strata[i] = i % 4 == 0 ? 0 : (i % 4 == 1 ? 1 : strata::StratumMap::absent);
    }
    return strata::LeveledCsr<float, Index>::from_dense(
        weights, strata::StratumMap::from_strata(rows, columns, 2, strata).value(), block);
  };
  sink.leveled_csr("conv.weight", matrix(strata::ConvIndex{}, 8, 9, strata::conv_block_columns(9)));
  sink.leveled_csr("fc.weight", matrix(strata::LinearIndex{}, 5, 8, strata::linear_block_columns(8)));
  const std::vector<float> ones(8, 1.0F);
  for (int level = 0; level < 2; ++level) {
    sink.per_level<float>("bn.scale", level, ones);
    sink.per_level<float>("bn.bias", level, ones);
  }
  sink.array<float>("fc.bias", {5}, 0, std::span<const float>(ones).first(5));
  return archive;
}

}  // namespace

TEST_CASE("a run allocates nothing, gives the same result every time and switches level at no cost") {
  auto model = SmallModel::from_archive(small_archive()).value();
  for (const int threads : {1, 2})
    for (const index_t batch : {index_t{1}, index_t{5}}) {
      strata::Session<SmallModel> session(model, {.threads = threads, .batch = batch});
      std::vector<float> input(static_cast<std::size_t>(batch * 81));
      for (std::size_t i = 0; i < input.size(); ++i) input[i] = static_cast<float>(i % 17) / 17.0F;
      std::vector<float> first[2];
      for (int level : {0, 1}) {
        const auto output = session.run(input, Level{level});
        first[level].assign(output.begin(), output.end());
      }
      CHECK(first[0] != first[1]);
      const long before = allocations();
      bool same = true;
      for (int i = 0; i < 20; ++i) {
        const auto output = session.run(input, Level{i % 2});
        same = same && std::equal(output.begin(), output.end(), first[i % 2].begin());
      }
      CHECK(allocations() == before);
      CHECK(same);
    }
}

TEST_CASE("sessions at different levels run one model at once") {
  auto model = SmallModel::from_archive(small_archive()).value();
  const std::vector<float> input(81, 0.5F);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int level : {0, 1})
    threads.emplace_back([&, level] {
      strata::Session<SmallModel> session(model);
      const auto output = session.run(input, Level{level});
      const std::vector<float> expected(output.begin(), output.end());
      for (int i = 0; i < 200; ++i) {
        const auto again = session.run(input, Level{level});
        if (!std::equal(again.begin(), again.end(), expected.begin())) ++wrong;
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}

TEST_CASE("wrong inputs, levels and archives are errors that say what was expected") {
  auto archive = small_archive();
  auto model = SmallModel::from_archive(archive).value();
  strata::Session<SmallModel> session(model);
  CHECK_THROWS_AS(session.run(std::vector<float>(80), Level{0}), strata::Error);
  CHECK_THROWS_AS(session.run(std::vector<float>(81), Level{2}), strata::Error);
  CHECK_THROWS_AS(session.run(std::vector<float>(81), Level{-1}), strata::Error);
  archive.metadata()["config.width"] = "9";
  CHECK_FALSE(SmallModel::from_archive(archive).ok());
  archive.metadata()["config.width"] = "8";
  archive.metadata()["architecture"] = "other";
  CHECK(SmallModel::from_archive(archive).error().where() == "architecture");
}
