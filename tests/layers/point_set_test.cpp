// Layers over point sets: a small PointNet++ in both families on the same weights, awkward clouds, what is refused, and
// that a run allocates nothing.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <strata/runtime/session.hpp>
#include <strata/train/training.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"

namespace {

using strata::index_t;
using strata::Level;
using strata::Shape;
using Training = strata::train::Training<float>;
using Inference = strata::Inference<float>;

/// Two set abstractions, the second with features, and the whole set at the end.
template <class Family>
struct PointNet {
  struct Config {
    index_t dimensions = 3;
    index_t points = 64;
    index_t centroids = 20;
    index_t samples = 5;
    double radius = 0.5;
    template <class V>
    void visit(V&& v) {
      v("dimensions", dimensions);
      v("points", points);
      v("centroids", centroids);
      v("samples", samples);
      v("radius", radius);
    }
  };
  static constexpr std::string_view architecture = "points";
  using Tensor = typename Family::Tensor;
  using Context = typename Family::Context;

  explicit PointNet(const Config& config)
      : config_(config),
        sample1({config.dimensions, config.centroids}),
        sample2({config.dimensions, 7}),
        group1({config.dimensions, config.radius, config.samples}),
        group2({config.dimensions, 2 * config.radius, 9}),
        conv1(pointwise(config.dimensions, 6)),
        conv2(pointwise(config.dimensions + 6, 10)),
        conv3(pointwise(config.dimensions + 10, 12)),
        fc({.in_features = 12, .out_features = 3}) {}

  [[nodiscard]] static strata::Conv2dOptions pointwise(index_t in, index_t out) {
    return {.in_channels = in, .out_channels = out, .kernel = 1, .activation = strata::Activation::relu};
  }
  [[nodiscard]] const Config& config() const { return config_; }
  [[nodiscard]] Shape input_shape() const { return {config_.dimensions, 1, config_.points}; }
  [[nodiscard]] strata::Status check_input(std::span<const float> clouds) const {
    return strata::check_points(clouds, config_.dimensions, config_.points);
  }

  auto operator()(Context& context, const Tensor& x) const {
    const Tensor centres1 = sample1(context, x);
    const Tensor features1 = group1(context, x, centres1, nullptr,
                                    [&](const Tensor& groups) { return maximum(context, conv1(context, groups)); });
    const Tensor centres2 = sample2(context, centres1);
    const Tensor features2 = group2(context, centres1, centres2, &features1,
                                    [&](const Tensor& groups) { return maximum(context, conv2(context, groups)); });
    return fc(context, whole(context, conv3(context, beside(context, centres2, features2))));
  }
  template <class V>
  void visit(V&& v) {
    v("conv1", conv1);
    v("conv2", conv2);
    v("conv3", conv3);
    v("fc", fc);
  }

  Config config_;
  typename Family::FarthestPointSampling sample1, sample2;
  typename Family::BallGrouping group1, group2;
  typename Family::Conv2d conv1, conv2, conv3;
  typename Family::GroupMax maximum;
  typename Family::Concatenate beside;
  typename Family::GlobalMaxPool2d whole;
  typename Family::Linear fc;
};

using Model = strata::Model<PointNet>;

PointNet<Training> trained_network(const PointNet<Training>::Config& config) {
  PointNet<Training> network(config);
  strata::train::initialise(network, 5);
  strata::train::set_levels(network, 2);
  std::mt19937 random(6);
  for (auto* parameter : strata::train::parameters<float>(network)) {
    if (!parameter->levelled) {
      for (float& x : parameter->value) x = static_cast<float>(random() % 1000) / 1000 + 0.2F;
      continue;
    }
    parameter->strata.resize(static_cast<std::size_t>(parameter->value.size()));
    for (std::size_t i = 0; i < parameter->strata.size(); ++i) {
      parameter->strata[i] = i % 3 == 2 ? strata::StratumMap::absent : static_cast<std::uint8_t>(i % 3);
      if (i % 3 == 2) parameter->value[static_cast<index_t>(i)] = 0;
    }
  }
  return network;
}

std::vector<float> random_clouds(index_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (float& number : numbers) number = uniform(random);
  return numbers;
}

/// The largest difference of the two families' outputs, relative to the largest output.
double family_difference(const PointNet<Training>::Config& config, const std::vector<float>& clouds, index_t batch,
                         int threads) {
  PointNet<Training> network = trained_network(config);
  const Model model = Model::from_archive(strata::to_archive(network, 2)).value();
  strata::ThreadPool pool(threads);
  Training::Context context(pool);
  context.training = false;
  strata::Session<Model> session(model, {.threads = threads, .batch = batch});
  double worst = 0;
  for (const int level : {0, 1}) {
    context.begin(Level{level});
    const auto expected =
        network(context, strata::train::input_tensor(context, clouds.data(), batch, network.input_shape()));
    const auto found = session.run(clouds, Level{level});
    REQUIRE(static_cast<index_t>(found.size()) == expected.value().size());
    const double largest = static_cast<double>(expected.value().abs().maxCoeff());
    for (std::size_t i = 0; i < found.size(); ++i) {
      const double error =
          std::abs(static_cast<double>(found[i] - expected.value()[static_cast<index_t>(i)])) / (1e-6 + largest);
      if (!(error <= worst)) worst = error;
    }
  }
  return worst;
}

template <class F>
std::string refusal(F&& f) {
  try {
    f();
  } catch (const strata::Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("both families compute the same from point clouds") {
  for (const index_t dimensions : {2, 3})
    for (const index_t points : {1, 2, 7, 16, 33, 64, 250})
      for (const index_t centroids : {1, 20, 70})
        for (const index_t samples : {1, 5, 32})
          for (const index_t batch : {1, 3}) {
            INFO(dimensions << " dimensions, " << points << " points, " << centroids << " centroids, " << samples
                            << " samples, batch " << batch);
            const PointNet<Training>::Config config{dimensions, points, centroids, samples, 0.5};
            const auto clouds = random_clouds(batch * dimensions * points, static_cast<unsigned>(points));
            CHECK(family_difference(config, clouds, batch, 1 + static_cast<int>(points % 3)) < 1e-4);
          }
}

TEST_CASE("points that lie on each other make no difference between the families") {
  auto clouds = random_clouds(3 * 64, 3);
  for (std::size_t i = 0; i < clouds.size(); ++i) clouds[i] = clouds[i / 64 * 64 + i % 4];
  CHECK(family_difference({}, clouds, 1, 1) < 1e-4);
  std::fill(clouds.begin(), clouds.end(), 0.0F);
  CHECK(family_difference({}, clouds, 1, 1) < 1e-4);
}

TEST_CASE("a run over a point cloud allocates nothing and does not depend on the number of threads") {
  const PointNet<Training>::Config config{3, 250, 70, 32, 0.5};
  const Model model = Model::from_archive(strata::to_archive(trained_network(config), 2)).value();
  const auto cloud = random_clouds(3 * 250, 4);
  strata::Session<Model> session(model);
  strata::Session<Model> wide(model, {.threads = 3});
  for (const int level : {0, 1, 0}) {
    const long before = allocations();
    const auto found = session.run(cloud, Level{level});
    CHECK(allocations() == before);
    const auto other = wide.run(cloud, Level{level});
    CHECK(std::vector<float>(found.begin(), found.end()) == std::vector<float>(other.begin(), other.end()));
  }
}

TEST_CASE("coordinates that are not finite are refused before any work, and harmless behind the check") {
  const Model model = Model::from_archive(strata::to_archive(trained_network({}), 2)).value();
  strata::Session<Model> session(model, {.batch = 2});
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    auto clouds = random_clouds(2 * 3 * 64, 5);
    clouds[3 * 64 + 64 + 7] = bad;
    const std::string message = refusal([&] { session.run(clouds, Level{0}); });
    CHECK(message.find("cloud 1, point 7: expected finite coordinates") == 0);
    std::copy(clouds.begin(), clouds.end(), session.input().begin());
    (void)session.forward(Level{1});  // nothing to say of the result; sanitizers watch
  }
}

TEST_CASE("what describes no layer and what does not go together is refused") {
  for (const index_t dimensions : {0, 1, 4}) {
    CHECK(refusal([&] { const Inference::FarthestPointSampling layer({dimensions, 4}); }) != "");
    CHECK(refusal([&] { const Training::BallGrouping layer({dimensions, 0.1, 4}); }) != "");
  }
  CHECK(refusal([&] { const Training::FarthestPointSampling layer({3, 0}); }) != "");
  CHECK(refusal([&] { const Inference::BallGrouping layer({3, 0.1, 0}); }) != "");
  for (const double radius : {0.0, -1.0, std::nan(""), HUGE_VAL})
    CHECK(refusal([&] { const Inference::BallGrouping layer({3, radius, 4}); }) != "");
  // An empty cloud is refused when the session is made, by the first layer that sees it.
  PointNet<Training>::Config config;
  config.points = 0;
  const Model empty = Model::from_archive(strata::to_archive(trained_network(config), 2)).value();
  CHECK(refusal([&] { const strata::Session<Model> session(empty); }).find("farthest point sampling") == 0);

  strata::SerialExecutor executor;
  Inference::Context context(executor);
  context.set_checking(true);
  const auto points = context.make(1, {3, 1, 4});
  const auto centroids = context.make(1, {3, 1, 2});
  const auto other = context.make(1, {5, 1, 3});
  const auto maximum = [&](const Inference::Tensor& x) { return Inference::GroupMax()(context, x); };
  (void)Inference::BallGrouping({})(context, points, centroids, &other, maximum);
  REQUIRE(context.error());
  CHECK(context.error()->where() == "grouping");
  Inference::Context second(executor);
  second.set_checking(true);
  (void)Inference::Concatenate()(second, points, other);
  REQUIRE(second.error());
  CHECK(second.error()->where() == "concatenation");
  Inference::Context third(executor);
  third.set_checking(true);
  std::fill(points.data(), points.data() + points.layout().size(), 0.0F);
  std::fill(centroids.data(), centroids.data() + centroids.layout().size(), 0.0F);
  (void)Inference::BallGrouping({})(third, points, centroids, nullptr, [](const Inference::Tensor& x) { return x; });
  REQUIRE(third.error());
  CHECK(third.error()->where() == "grouping");
}

TEST_CASE("the check of a cloud names what is wrong") {
  std::vector<float> numbers(12, 0.5F);
  CHECK(strata::check_points<float>(numbers, 3, 4));
  CHECK(strata::check_points<float>(numbers, 2, 3));
  CHECK_FALSE(strata::check_points<float>(numbers, 3, 5));
  CHECK_FALSE(strata::check_points<float>(numbers, 3, 0));
  CHECK_FALSE(strata::check_points<float>({}, 3, 4));
  numbers[9] = -std::numeric_limits<float>::infinity();
  CHECK(strata::check_points<float>(numbers, 2, 3).error().where() == "cloud 1, point 0");
}
