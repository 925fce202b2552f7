// One network text, two families: what the training family computes in evaluation mode and what the inference family
// computes from its archive are the same for every layer, option and level; and both refuse the same descriptions.
#include <algorithm>
#include <cmath>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <strata/runtime/session.hpp>
#include <strata/train/training.hpp>

#include "support/catch.hpp"

namespace {

using strata::Activation;
using strata::index_t;
using strata::Level;
using strata::Pair;
using strata::Shape;
using strata::StratumMap;
using Training = strata::train::Training<float>;
using Inference = strata::Inference<float>;

template <class Family>
using ContextOf = typename Family::Context;
template <class Family>
using TensorOf = typename Family::Tensor;

/// A single convolution, its own output added as residual if `residual`.
template <class Family>
struct ConvNet {
  struct Config {
    strata::Conv2dOptions conv;
    index_t height = 1;
    index_t width = 1;
    bool residual = false;
    template <class V>
    void visit(V&& v) {
      v("in_channels", conv.in_channels);
      v("out_channels", conv.out_channels);
      for (auto& [name, pair] : {std::pair<std::string, Pair*>{"kernel", &conv.kernel},
                                 {"stride", &conv.stride},
                                 {"padding", &conv.padding},
                                 {"dilation", &conv.dilation}}) {
        v((name + "_h").c_str(), pair->h);
        v((name + "_w").c_str(), pair->w);
      }
      v("groups", conv.groups);
      v("norm", conv.norm);
      v("bias", conv.bias);
      v("activation", conv.activation);
      v("levelled", conv.levelled);
      v("height", height);
      v("width", width);
      v("residual", residual);
    }
  };
  static constexpr std::string_view architecture = "conv";

  explicit ConvNet(const Config& config) : config_(config), layer(config.conv) {}
  [[nodiscard]] const Config& config() const { return config_; }
  [[nodiscard]] Shape input_shape() const { return {config_.conv.in_channels, config_.height, config_.width}; }
  auto operator()(ContextOf<Family>& context, const TensorOf<Family>& x) const {
    const auto y = layer(context, x);
    return config_.residual ? layer(context, x, y) : y;
  }
  template <class V>
  void visit(V&& v) {
    v("layer", layer, "bn");
  }

  Config config_;
  typename Family::Conv2d layer;
};

/// A single linear layer, its own output added as residual if `residual`.
template <class Family>
struct LinearNet {
  struct Config {
    strata::LinearOptions linear;
    bool residual = false;
    template <class V>
    void visit(V&& v) {
      v("in_features", linear.in_features);
      v("out_features", linear.out_features);
      v("bias", linear.bias);
      v("norm", linear.norm);
      v("activation", linear.activation);
      v("levelled", linear.levelled);
      v("residual", residual);
    }
  };
  static constexpr std::string_view architecture = "linear";

  explicit LinearNet(const Config& config) : config_(config), layer(config.linear) {}
  [[nodiscard]] const Config& config() const { return config_; }
  [[nodiscard]] Shape input_shape() const { return {config_.linear.in_features, 1, 1}; }
  auto operator()(ContextOf<Family>& context, const TensorOf<Family>& x) const {
    const auto y = layer(context, x);
    return config_.residual ? layer(context, x, y) : y;
  }
  template <class V>
  void visit(V&& v) {
    v("layer", layer);
  }

  Config config_;
  typename Family::Linear layer;
};

/// Every layer there is: strided stem, pooling, grouped and dilated convolutions around a residual, dropout, a head.
template <class Family>
struct EveryLayerNet {
  struct Config {
    index_t width = 12;
    bool projection = true;
    template <class V>
    void visit(V&& v) {
      v("width", width);
      v("projection", projection);
    }
  };
  static constexpr std::string_view architecture = "every layer";

  struct Block {
    explicit Block(const Config& c)
        : conv1({.in_channels = c.width,
                 .out_channels = c.width,
                 .padding = 1,
                 .groups = 4,
                 .activation = Activation::silu}),
          conv2({.in_channels = c.width,
                 .out_channels = c.width,
                 .padding = 2,
                 .dilation = 2,
                 .bias = true,
                 .activation = Activation::relu}) {
      if (c.projection)
        projection.emplace(strata::Conv2dOptions{
            .in_channels = c.width, .out_channels = c.width, .kernel = 1, .norm = false, .bias = true});
    }
    auto operator()(ContextOf<Family>& context, const TensorOf<Family>& x) const {
      return conv2(context, conv1(context, x), projection ? (*projection)(context, x) : x);
    }
    template <class V>
    void visit(V&& v) {
      v("conv1", conv1, "bn1");
      v("conv2", conv2);
      v("projection", projection);
    }
    typename Family::Conv2d conv1, conv2;
    std::optional<typename Family::Conv2d> projection;
  };

  explicit EveryLayerNet(const Config& config)
      : config_(config),
        stem({.in_channels = 3,
              .out_channels = config.width,
              .kernel = 5,
              .stride = 2,
              .padding = 2,
              .activation = Activation::leaky_relu}),
        blocks{Block(config), Block(config)},
        hidden({.in_features = config.width * 12, .out_features = 21, .norm = true, .activation = Activation::tanh}),
        same({.in_features = 21, .out_features = 21, .bias = false, .activation = Activation::elu}),
        logits({.in_features = 21, .out_features = 10, .levelled = false}) {}

  [[nodiscard]] const Config& config() const { return config_; }
  [[nodiscard]] Shape input_shape() const { return {3, 32, 27}; }

  auto operator()(ContextOf<Family>& context, const TensorOf<Family>& x) const {
    auto y = largest(context, stem(context, x));
    for (const Block& block : blocks) y = block(context, y);
    context.stage("head");
    y = activation(context, mean(context, y));
    y = hidden(context, flatten(context, dropout(context, y)));
    y = same(context, y, y);
    return logits(context, flatten(context, global(context, y)));
  }
  template <class V>
  void visit(V&& v) {
    v("stem", stem, "bn");
    v("blocks", blocks);
    v("hidden", hidden);
    v("same", same);
    v("logits", logits);
  }

  Config config_;
  typename Family::Conv2d stem;
  typename Family::MaxPool2d largest{strata::PoolOptions{3, 2, 1}};
  std::vector<Block> blocks;
  typename Family::AvgPool2d mean{strata::PoolOptions{3, 2, Pair(1, 0)}};  // 8 x 7 -> 4 x 3
  typename Family::ActivationLayer activation{Activation::sigmoid};
  typename Family::Dropout dropout{0.4};
  typename Family::Flatten flatten;
  typename Family::GlobalAvgPool2d global;
  typename Family::Linear hidden, same, logits;
};

std::vector<float> random_numbers(std::mt19937& random, index_t count, float low = -1, float high = 1) {
  std::uniform_real_distribution<float> uniform(low, high);
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (float& number : numbers) number = uniform(random);
  return numbers;
}

/// How the weights of pruned layers are spread over the levels.
enum class Pattern { random, empty_rows, empty_first_stratum, empty_last_stratum, nothing, full_top, dense };
constexpr Pattern patterns[] = {
    Pattern::random,   Pattern::empty_rows, Pattern::empty_first_stratum, Pattern::empty_last_stratum, Pattern::nothing,
    Pattern::full_top, Pattern::dense};

/// Random levels, parameters and running statistics for every layer; with `norm_per_level` a norm for each level,
/// otherwise one for all.
template <class Network>
void randomise(Network& network, int levels, Pattern pattern, bool norm_per_level, std::mt19937& random) {
  if (norm_per_level) strata::train::set_levels(network, levels);
  strata::for_each_layer(network, [&](const std::string&, const std::string&, auto& layer) {
    if constexpr (std::remove_cvref_t<decltype(layer)>::has_parameters) {
      layer.initialise(random());
      for (auto& norm : layer.norms()) {
        const index_t channels = norm.running_mean.size();
        const auto fill = [&](auto& array, float low, float high) {
          for (auto& value : array) value = random_numbers(random, 1, low, high)[0];
        };
        REQUIRE(norm.gamma.value.size() == channels);
        fill(norm.gamma.value, -1.5F, 1.5F);
        fill(norm.beta.value, -1, 1);
        fill(norm.running_mean, -1, 1);
        fill(norm.running_variance, 0.3F, 2);
      }
    }
  });
  for (auto* parameter : strata::train::parameters<float>(network)) {
    if (parameter->name.ends_with(".bias"))
      for (auto& value : parameter->value) value = random_numbers(random, 1)[0];
    if (!parameter->levelled) continue;
    const auto size = static_cast<std::size_t>(parameter->value.size());
    const std::size_t row = size / static_cast<std::size_t>(parameter->shape[0]);
    parameter->strata.assign(size, StratumMap::absent);
    for (std::size_t i = 0; i < size; ++i) {
      auto stratum = static_cast<std::uint8_t>(random() % static_cast<unsigned>(levels));
      const bool kept = random() % 2 == 0;
      if (pattern == Pattern::empty_first_stratum && stratum == 0) continue;
      if (pattern == Pattern::empty_last_stratum && stratum == levels - 1) continue;
      if (pattern == Pattern::empty_rows && i / row % 3 != 1) continue;
      if (pattern == Pattern::nothing) continue;
      if (pattern == Pattern::dense) stratum = 0;
      if (kept || pattern == Pattern::full_top || pattern == Pattern::dense) parameter->strata[i] = stratum;
    }
  }
}

/// Row-major batch x channels x height x width, as sessions return it.
std::vector<float> rows(const Training::Tensor& tensor) {
  const Shape s = tensor.shape();
  const index_t pixels = s.height * s.width;
  std::vector<float> result;
  for (index_t image = 0; image < tensor.batch(); ++image)
    for (index_t c = 0; c < s.channels; ++c)
      for (index_t p = 0; p < pixels; ++p) result.push_back(tensor.value()[(image * pixels + p) * s.channels + c]);
  return result;
}

double relative_difference(std::span<const float> found, std::span<const float> expected) {
  REQUIRE(found.size() == expected.size());
  double worst = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const auto right = static_cast<double>(expected[i]);
    const double error = std::abs(static_cast<double>(found[i]) - right) / std::max(1.0, std::abs(right));
    if (!(error <= worst)) worst = error;
    if (std::isnan(error)) return error;
  }
  return worst;
}

/// Checks that the model of `network`'s archive computes at every level what `network` does in evaluation mode.
template <template <class> class Net>
void compare(const Net<Training>& network, int levels, index_t batch, int threads, std::mt19937& random) {
  using Model = strata::Model<Net>;
  strata::ThreadPool pool(threads);
  Training::Context context(pool);
  context.training = false;
  const auto model = Model::from_archive(strata::to_archive(network, levels)).value();
  REQUIRE(model.levels() == levels);
  strata::Session<Model> session(model, {.threads = threads, .batch = batch});
  const std::vector<float> input = random_numbers(random, batch * network.input_shape().size());
  for (int level = 0; level < levels; ++level) {
    INFO("level " << level << " of " << levels << " batch " << batch << " threads " << threads);
    context.begin(Level{level});
    const auto expected =
        network(context, strata::train::input_tensor(context, input.data(), batch, network.input_shape()));
    CHECK(relative_difference(session.run(input, Level{level}), rows(expected)) < 1e-4);
  }
}

/// Runs a layer without parameters in both families at several levels; returns the largest difference.
template <class Trained, class Inferred>
double difference(const Trained& trained, const Inferred& inferred, index_t batch, Shape shape) {
  std::mt19937 random(23);
  const std::vector<float> input = random_numbers(random, batch * shape.size(), -4, 4);
  strata::ThreadPool pool(2);
  Training::Context context(pool);
  context.training = false;
  Inference::Context other(pool);
  other.set_checking(true);
  double worst = 0;
  for (int level = 0; level < 3; ++level) {
    context.begin(Level{level});
    const auto expected = trained(context, strata::train::input_tensor(context, input.data(), batch, shape));
    other.set_level(Level{level});
    auto x = other.make(batch, shape);
    strata::read_rows(input.data(), x);
    const auto y = inferred(other, x);
    REQUIRE_FALSE(other.error());
    REQUIRE(y.shape() == expected.shape());
    std::vector<float> found(static_cast<std::size_t>(batch * y.shape().size()));
    strata::write_rows(y, found.data());
    worst = std::max(worst, relative_difference(found, rows(expected)));
  }
  return worst;
}

constexpr Shape shapes[] = {{1, 1, 1}, {33, 1, 1}, {3, 2, 2},   {3, 7, 5},
                            {2, 8, 8}, {9, 9, 17}, {1, 28, 28}, {2, 3, 250}};

std::string text(Shape shape, index_t batch) {
  return strata::detail::text(shape) + " batch " + std::to_string(batch);
}

/// Whether `f` raises a `strata::Error`.
template <class F>
bool refuses(F&& f) {
  try {
    f();
  } catch (const strata::Error&) {
    return true;
  }
  return false;
}

/// Whether `layer` of the training family refuses a picture of `shape`.
template <class Layer>
bool training_refuses(const Layer& layer, Shape shape) {
  strata::SerialExecutor executor;
  Training::Context context(executor);
  const std::vector<float> zeros(static_cast<std::size_t>(shape.size()));
  context.begin(Level{0});
  return refuses([&] { (void)layer(context, strata::train::input_tensor(context, zeros.data(), 1, shape)); });
}

/// Whether `layer` of the inference family refuses a picture of `shape`.
template <class Layer>
bool inference_refuses(const Layer& layer, Shape shape) {
  strata::SerialExecutor executor;
  Inference::Context context(executor);
  context.set_checking(true);
  const auto x = context.make(1, shape);
  std::fill(x.data(), x.data() + x.layout().size(), 0.0F);
  (void)layer(context, x);
  return context.error().has_value();
}

/// The layer of the inference family with the parameters of the one of the training family.
template <class Inferred, class Trained, class Options>
Inferred inference_layer(const Trained& trained, const Options& options, strata::Archive& archive) {
  strata::ParameterSink sink(archive);
  trained.store("layer", "bn", sink);
  Inferred layer(options);
  strata::ParameterSource source(archive);
  layer.load("layer", "bn", source);
  REQUIRE(source.finish("").ok());
  return layer;
}

}  // namespace

TEST_CASE("convolutions of both families agree") {
  int combinations = 0;
  for (const auto& [height, width] : {std::pair<index_t, index_t>{1, 1}, {7, 7}, {5, 9}, {14, 14}, {3, 65}})
    for (const Pair kernel : {Pair(1), Pair(3), Pair(5), Pair(2, 3)})
      for (const Pair stride : {Pair(1), Pair(2), Pair(1, 3)})
        for (const Pair dilation : {Pair(1), Pair(2, 1)})
          for (const index_t groups : {1, 3, 6})
            for (const index_t batch : {1, 3}) {
              const int k = combinations++;
              ConvNet<Training>::Config config;
              auto& o = config.conv;
              o.in_channels = groups * (1 + k % 5);
              o.out_channels = groups * (1 + k % 4);
              o.kernel = kernel;
              o.stride = stride;
              o.dilation = dilation;
              o.padding = Pair(dilation.h * (kernel.h - 1) / 2 + k % 2, dilation.w * (kernel.w - 1) / 2);
              if (k % 5 == 4) o.padding = 0;
              o.groups = groups;
              o.norm = k % 3 != 0;
              o.bias = k % 2 == 0;
              o.activation = static_cast<Activation>(k % 8);
              o.levelled = k % 11 != 0;
              config.height = height;
              config.width = width;
              config.residual = k % 4 == 1;
              if (height + 2 * o.padding.h <= dilation.h * (kernel.h - 1) ||
                  width + 2 * o.padding.w <= dilation.w * (kernel.w - 1))
                continue;
              const Pattern pattern = patterns[k % 7];
              const int levels = 1 + k / 3 % 3;
              INFO(o.in_channels << " -> " << o.out_channels << " on " << height << "x" << width << " kernel "
                                 << kernel.h << "x" << kernel.w << " stride " << stride.h << "x" << stride.w
                                 << " dilation " << dilation.h << "x" << dilation.w << " padding " << o.padding.h << "x"
                                 << o.padding.w << " groups " << groups << " norm " << o.norm << " bias " << o.bias
                                 << " activation " << k % 8 << " residual " << config.residual << " levelled "
                                 << o.levelled << " pattern " << static_cast<int>(pattern));
              std::mt19937 random(static_cast<unsigned>(k));
              ConvNet<Training> network(config);
              randomise(network, levels, pattern, k % 6 != 1, random);
              compare<ConvNet>(network, levels, batch, 1 + k % 2, random);
            }
  CHECK(combinations > 500);
}

TEST_CASE("linear layers of both families agree") {
  int combinations = 0;
  for (const index_t in : {1, 7, 8, 33, 300})
    for (const index_t out : {1, 5, 16, 37})
      for (const index_t batch : {1, 3, 19})
        for (const int levels : {1, 2, 3})
          for (const Pattern pattern : patterns) {
            const int k = combinations++;
            LinearNet<Training>::Config config;
            auto& o = config.linear;
            o.in_features = in;
            o.out_features = out;
            o.bias = k % 3 != 0;
            o.norm = k % 2 == 0;
            o.activation = static_cast<Activation>(k % 8);
            o.levelled = k % 11 != 0;
            config.residual = k % 5 == 1;
            INFO(in << " -> " << out << " norm " << o.norm << " bias " << o.bias << " activation " << k % 8
                    << " residual " << config.residual << " levelled " << o.levelled << " pattern "
                    << static_cast<int>(pattern));
            std::mt19937 random(static_cast<unsigned>(k));
            LinearNet<Training> network(config);
            randomise(network, levels, pattern, k % 7 != 1, random);
            compare<LinearNet>(network, levels, batch, 1 + k % 2, random);
          }
  CHECK(combinations > 1000);
}

TEST_CASE("pooling of both families agrees") {
  for (const Shape& shape : shapes)
    for (const Pair kernel : {Pair(1), Pair(2), Pair(3), Pair(2, 5)})
      for (const Pair stride : {Pair(1), Pair(2), Pair(3, 1)})
        for (const bool padded : {false, true})
          for (const index_t batch : {1, 3}) {
            const strata::PoolOptions o{kernel, stride, padded ? Pair(kernel.h / 2, kernel.w / 2) : Pair(0)};
            if (shape.height + 2 * o.padding.h < kernel.h || shape.width + 2 * o.padding.w < kernel.w) continue;
            INFO(text(shape, batch) << " kernel " << kernel.h << "x" << kernel.w << " stride " << stride.h << "x"
                                    << stride.w << " padding " << o.padding.h << "x" << o.padding.w);
            CHECK(difference(Training::MaxPool2d(o), Inference::MaxPool2d(o), batch, shape) == 0);
            CHECK(difference(Training::AvgPool2d(o), Inference::AvgPool2d(o), batch, shape) < 1e-4);
          }
}

TEST_CASE("layers without options of both families agree") {
  for (const Shape& shape : shapes)
    for (const index_t batch : {1, 3, 20}) {
      INFO(text(shape, batch));
      CHECK(difference(Training::GlobalAvgPool2d(), Inference::GlobalAvgPool2d(), batch, shape) < 1e-4);
      CHECK(difference(Training::Flatten(), Inference::Flatten(), batch, shape) == 0);
      CHECK(difference(Training::Dropout(0.7), Inference::Dropout(0.7), batch, shape) == 0);
      for (int activation = 0; activation < 8; ++activation) {
        INFO("activation " << activation);
        const auto a = static_cast<Activation>(activation);
        CHECK(difference(Training::ActivationLayer(a), Inference::ActivationLayer(a), batch, shape) < 1e-4);
      }
    }
}

TEST_CASE("a network of every layer computes the same in both families") {
  int combinations = 0;
  for (const int levels : {1, 2, 3})
    for (const Pattern pattern : patterns)
      for (const bool projection : {false, true})
        for (const index_t batch : {1, 3}) {
          INFO("pattern " << static_cast<int>(pattern) << " projection " << projection);
          std::mt19937 random(static_cast<unsigned>(combinations));
          EveryLayerNet<Training> network({.width = 12, .projection = projection});
          randomise(network, levels, pattern, combinations % 5 != 4, random);
          compare<EveryLayerNet>(network, levels, batch, 1 + combinations % 2, random);
          ++combinations;
        }
}

TEST_CASE("running statistics that training moved reach the inference family") {
  std::mt19937 random(31);
  EveryLayerNet<Training> network({});
  randomise(network, 3, Pattern::random, true, random);
  strata::ThreadPool pool(2);
  Training::Context context(pool);
  for (const int level : {2, 0, 1, 0, 2}) {
    const auto input = random_numbers(random, 6 * network.input_shape().size());
    context.begin(Level{level});
    (void)network(context, strata::train::input_tensor(context, input.data(), 6, network.input_shape()));
  }
  compare<EveryLayerNet>(network, 3, 3, 2, random);
}

TEST_CASE("evaluation mode leaves no trace: the same result twice, and other levels in between do not matter") {
  std::mt19937 random(37);
  EveryLayerNet<Training> network({});
  randomise(network, 3, Pattern::random, true, random);
  const auto input = random_numbers(random, 3 * network.input_shape().size());
  strata::SerialExecutor executor;
  Training::Context context(executor);
  context.training = false;
  std::vector<std::vector<float>> first(3);
  for (int i = 0; i < 9; ++i) {
    const int level = i * 2 % 3;
    context.begin(Level{level});
    const auto output =
        rows(network(context, strata::train::input_tensor(context, input.data(), 3, network.input_shape())));
    auto& kept = first[static_cast<std::size_t>(level)];
    if (kept.empty()) kept = output;
    INFO("pass " << i << " level " << level);
    CHECK(output == kept);
  }
}

TEST_CASE("a residual of another shape is refused by both families") {
  const strata::Conv2dOptions o{.in_channels = 2, .out_channels = 3, .padding = 1};
  const Training::Conv2d trained(o);
  strata::Archive archive;
  const auto inferred = inference_layer<Inference::Conv2d>(trained, o, archive);
  for (const auto& [batch, shape] : {std::pair<index_t, Shape>{1, {3, 5, 6}}, {2, {2, 5, 6}}, {2, {3, 6, 5}}}) {
    INFO(text(shape, batch));
    strata::SerialExecutor executor;
    Training::Context context(executor);
    context.begin(Level{0});
    const std::vector<float> zeros(1000);
    const auto x = strata::train::input_tensor(context, zeros.data(), 2, {2, 5, 6});
    const auto r = strata::train::input_tensor(context, zeros.data(), batch, shape);
    CHECK(refuses([&] { (void)trained(context, x, r); }));
    Inference::Context other(executor);
    other.set_checking(true);
    const auto y = other.make(2, {2, 5, 6});
    strata::read_rows(zeros.data(), y);
    (void)inferred(other, y, other.make(batch, shape));
    CHECK(other.error());
  }
}

TEST_CASE("pictures smaller than the window are refused by both families") {
  for (const index_t stride : {1, 2, 3})
    for (const index_t dilation : {1, 2})
      for (const auto& [height, width] : {std::pair<index_t, index_t>{1, 9}, {2, 9}, {9, 1}, {9, 2}, {9, 9}}) {
        strata::Conv2dOptions o{.in_channels = 2, .out_channels = 3};
        o.stride = stride;
        o.dilation = dilation;
        const Training::Conv2d trained(o);
        strata::Archive archive;
        const auto inferred = inference_layer<Inference::Conv2d>(trained, o, archive);
        const bool expected = height <= 2 * dilation || width <= 2 * dilation;
        INFO("convolution of " << height << "x" << width << " stride " << stride << " dilation " << dilation);
        CHECK(training_refuses(trained, {2, height, width}) == expected);
        CHECK(inference_refuses(inferred, {2, height, width}) == expected);
        if (dilation > 1) continue;
        const strata::PoolOptions p{3, stride, 0};
        CHECK(training_refuses(Training::MaxPool2d(p), {2, height, width}) == expected);
        CHECK(inference_refuses(Inference::MaxPool2d(p), {2, height, width}) == expected);
        CHECK(training_refuses(Training::AvgPool2d(p), {2, height, width}) == expected);
        CHECK(inference_refuses(Inference::AvgPool2d(p), {2, height, width}) == expected);
      }
}

TEST_CASE("pictures that were not flattened are refused by the linear layers of both families") {
  const strata::LinearOptions o{.in_features = 4, .out_features = 3};
  const Training::Linear trained(o);
  strata::Archive archive;
  const auto inferred = inference_layer<Inference::Linear>(trained, o, archive);
  for (const Shape& shape : {Shape{4, 1, 1}, Shape{5, 1, 1}, Shape{1, 2, 2}, Shape{4, 3, 3}, Shape{4, 1, 2}}) {
    INFO(text(shape, 1));
    const bool expected = shape != Shape{4, 1, 1};
    CHECK(training_refuses(trained, shape) == expected);
    CHECK(inference_refuses(inferred, shape) == expected);
  }
}

TEST_CASE("options that describe no layer are refused by both families") {
  const auto both_refuse = [](auto&& change) {
    strata::Conv2dOptions o{.in_channels = 6, .out_channels = 4};
    change(o);
    return refuses([&] { const Inference::Conv2d layer(o); }) && refuses([&] { const Training::Conv2d layer(o); });
  };
  CHECK(both_refuse([](auto& o) { o.in_channels = 0; }));
  CHECK(both_refuse([](auto& o) { o.out_channels = 0; }));
  CHECK(both_refuse([](auto& o) { o.kernel = 0; }));
  CHECK(both_refuse([](auto& o) { o.stride = 0; }));
  CHECK(both_refuse([](auto& o) { o.dilation = 0; }));
  CHECK(both_refuse([](auto& o) { o.padding = -1; }));
  CHECK(both_refuse([](auto& o) { o.groups = 4; }));
  const strata::LinearOptions linear{.in_features = 0, .out_features = 2};
  CHECK(refuses([&] { const Training::Linear layer(linear); }));
  CHECK(refuses([&] { const Inference::Linear layer(linear); }));
  const strata::PoolOptions pool{3, 0, 0};
  CHECK(refuses([&] { const Training::MaxPool2d layer(pool); }));
  CHECK(refuses([&] { const Inference::MaxPool2d layer(pool); }));
  CHECK(refuses([&] { const Training::AvgPool2d layer(pool); }));
  CHECK(refuses([&] { const Inference::AvgPool2d layer(pool); }));
}

TEST_CASE("no groups and a negative number of channels are refused by both families") {
  for (const auto& [in, out, groups] : {std::tuple<index_t, index_t, index_t>{6, 4, 0}, {6, -4, 1}, {-6, 4, 1}}) {
    INFO(in << " -> " << out << " groups " << groups);
    strata::Conv2dOptions o{.in_channels = in, .out_channels = out};
    o.groups = groups;
    CHECK(refuses([&] { const Inference::Conv2d layer(o); }));
    CHECK(refuses([&] { const Training::Conv2d layer(o); }));
  }
}
