// The code of README.md and docs/guide.md, which has to compile and to work; the last test says that it is theirs.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <functional>
#include <iterator>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <strata/strata.hpp>
#include <strata/train/classification.hpp>
#include <strata/train/fit.hpp>
#include <strata/train/prune.hpp>
#include <strata/train/recalibration.hpp>
#include <strata/train/state_dict.hpp>
#include <strata/train/transitions.hpp>

#include "support/catch.hpp"

namespace {

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

  const Config& config() const { return config_; }
  strata::Shape input_shape() const { return {1, 28, 28}; }
  auto operator()(typename Family::Context& context, const typename Family::Tensor& x) const {
    return fc(context, average(context, conv(context, x)));
  }
  template <class V>
  void visit(V&& v) {
    v("conv", conv, "bn");
    v("fc", fc);
  }

  Config config_;
  typename Family::Conv2d conv;  // convolution + per-level norm + activation
  typename Family::GlobalAvgPool2d average;
  typename Family::Linear fc;
};

template <class Family>
struct Block {
  explicit Block(strata::index_t width)
      : conv1({.in_channels = width, .out_channels = width, .padding = 1, .activation = strata::Activation::relu}),
        conv2({.in_channels = width, .out_channels = width, .padding = 1, .activation = strata::Activation::relu}) {}

  auto operator()(typename Family::Context& context, const typename Family::Tensor& x) const {
    return conv2(context, conv1(context, x), x);  // normalisation, plus the residual x, then the activation
  }
  template <class V>
  void visit(V&& v) {
    v("conv1", conv1, "bn1");
    v("conv2", conv2, "bn2");
  }

  typename Family::Conv2d conv1, conv2;
};

template <class Family>
class Swish;  // x times its sigmoid

template <class Scalar, class Arch>
class Swish<strata::Inference<Scalar, Arch>> {
 public:
  using Family = strata::Inference<Scalar, Arch>;
  auto operator()(typename Family::Context& context, const typename Family::Tensor& x) const {
    const strata::Shape shape = x.shape();
    auto y = context.make(x.batch(), shape);  // from the session's arena, uninitialised
    for (strata::index_t image = 0; image < x.batch(); ++image)
      for (strata::index_t channel = 0; channel < shape.channels; ++channel)
        for (strata::index_t row = 0; row < shape.height; ++row) {
          const Scalar* from = x.row(image, channel, row);
          Scalar* to = y.row(image, channel, row);
          for (strata::index_t i = 0; i < shape.width; ++i) to[i] = from[i] / (1 + std::exp(-from[i]));
        }
    return y;
  }
};

template <class Scalar>
class Swish<strata::train::Training<Scalar>> {
 public:
  using Family = strata::train::Training<Scalar>;
  auto operator()(typename Family::Context& context, const typename Family::Tensor& x) const {
    const auto y = context.make(x.batch(), x.shape(), true);  // values channels last: [batch][height][width][channels]
    y.value() = x.value() / (Scalar{1} + (-x.value()).exp());
    context.record([x, y] {  // on the way back: adds to the input's gradient
      if (!x.needs_gradient()) return;
      const typename Family::Tensor::Array s = (Scalar{1} + (-x.value()).exp()).inverse();
      x.gradient() += y.gradient() * (s + y.value() * (Scalar{1} - s));
    });
    return y;
  }
};

template <class Family>
struct SwishNet {
  struct Config {
    strata::index_t width = 3;
    template <class V>
    void visit(V&& v) {
      v("width", width);
    }
  };
  static constexpr std::string_view architecture = "swish";

  explicit SwishNet(const Config& config)
      : config_(config), conv({.in_channels = 2, .out_channels = config.width, .norm = false, .bias = true}) {}

  const Config& config() const { return config_; }
  strata::Shape input_shape() const { return {2, 7, 5}; }
  auto operator()(typename Family::Context& context, const typename Family::Tensor& x) const {
    return swish(context, conv(context, x));
  }
  template <class V>
  void visit(V&& v) {
    v("conv", conv);
  }

  Config config_;
  typename Family::Conv2d conv;
  Swish<Family> swish;
};

/// What a server of the guide gets its work from.
struct Request {
  strata::TimePoint arrival;
  std::vector<float> input;
  std::vector<float>* answer = nullptr;
  void reply(std::span<const float> output) const { answer->assign(output.begin(), output.end()); }
};
struct Requests {
  std::vector<Request> waiting;
  std::optional<Request> next() {
    if (waiting.empty()) return {};
    Request request = std::move(waiting.back());
    waiting.pop_back();
    return request;
  }
};

using Model = strata::Model<SmallNet>;
using Session = strata::Session<Model>;

strata::Status answer(Session& session, std::span<const float> request, strata::Level level,
                      std::vector<float>& reply) {
  if (strata::Status ok = session.check_input(request); !ok) return ok;  // another size, or the network refuses it
  if (level.index < 0 || level.index >= session.model().levels())
    return strata::Error("level", "one of the model", level.index);
  std::ranges::copy(request, session.input().begin());
  const auto output = session.forward(level);  // cannot fail; with a profile set also session.forward(deadline, policy)
  reply.assign(output.begin(), output.end());
  return strata::success();
}

strata::train::Dataset some_pictures() {
  std::vector<std::uint8_t> pixels(256 * 28 * 28);
  std::vector<std::uint8_t> labels(256);
  for (std::size_t i = 0; i < labels.size(); ++i) {
    labels[i] = static_cast<std::uint8_t>(i % 5);
    for (std::size_t p = 0; p < 784; ++p)
      pixels[i * 784 + p] = static_cast<std::uint8_t>((p * (i % 5 + 1) * 13 + i) % 251);
  }
  strata::train::Dataset pictures;
  pictures.shape = {1, 28, 28};
  pictures.classes = 5;
  pictures.pixels = std::move(pixels);  // as many bytes as pictures x channels x rows x columns
  pictures.labels = std::move(labels);  // one a picture, each below `classes`
  pictures.normalise();  // mean and deviation over all of them; test data take those of the training data
  return pictures;
}

void train_a_model(const strata::train::Dataset& pictures) {
  using strata::train::Training;
  SmallNet<Training<float>> network({});
  strata::train::initialise(network, 1);
  strata::train::Classification<float> task(pictures, {.variation = {.flip = true}});  // a train::Dataset
  strata::train::Recipe recipe{.levels = {{.weights = 0.3, .flops = 0.3}, {.weights = 0.6, .flops = 0.6}}};
  strata::ThreadPool threads(2);
  // The epochs of README.md are for more patient people.
  recipe.dense_epochs = recipe.prune_epochs = recipe.fixed_epochs = recipe.tune_epochs = 1;
  std::remove("run.safetensors");
  strata::train::fit(network, task, recipe, threads, {.checkpoint = "run.safetensors", .resume = true});
  strata::save(network, 2, "small.safetensors");
  CHECK(strata::load<SmallNet>("small.safetensors").levels() == 2);
  std::remove("small.safetensors");
  {
    strata::Archive archive = strata::to_archive(network, 2);
    strata::train::calibrate_transitions(network, task, archive, threads);
    (void)strata::add_self_check<SmallNet>(archive).value();
    (void)strata::io::write_model(archive, "small.safetensors").value();
  }
}

std::string text_of(const std::string& path) {
  std::ifstream stream(path);
  REQUIRE(stream.is_open());
  return {std::istreambuf_iterator<char>(stream), {}};
}

/// Without white space and comments.
std::string bare(const std::string& code) {
  std::string result;
  for (std::size_t i = 0; i < code.size(); ++i) {
    if (code.compare(i, 2, "//") == 0 && (i == 0 || code[i - 1] == ' ' || code[i - 1] == '\n'))
      i = std::min(code.find('\n', i), code.size() - 1);
    if (std::isspace(static_cast<unsigned char>(code[i])) == 0) result += code[i];
  }
  return result;
}

}  // namespace

TEST_CASE("the code of README.md and of the guide does what they say") {
  train_a_model(some_pictures());
  const std::vector<float> image(784, 0.5F);
  auto model = strata::load<SmallNet>("small.safetensors", {.self_check = true});  // runs every level once
  strata::Session session(model, {.threads = 2});
  auto output = session.run(image, strata::Level{0});  // image: scaled as in training; output: valid until the next run
  const std::vector<float> sparse(output.begin(), output.end());
  output = session.run(image, strata::Level{1});
  CHECK_FALSE(std::equal(output.begin(), output.end(), sparse.begin()));
  std::remove("small.safetensors.profile.json");
  session.set_profile(
      strata::profile_beside("small.safetensors", session));  // measured once per machine, kept beside it
  const auto run = session.run(image, strata::Deadline{std::chrono::milliseconds(20)});
  std::printf("%s, level %d at the end\n", run.met ? "in time" : "late", run.path.back().index);
}

TEST_CASE("a server of the guide answers all requests, and one without exceptions refuses what is wrong") {
  train_a_model(some_pictures());
  const Model shared = strata::load<SmallNet>("small.safetensors");
  std::remove("small.safetensors.profile.json");
  const strata::Profile profile = [&] {
    Session first(shared);
    return strata::profile_beside("small.safetensors", first);  // as busy as the server will be, for honest predictions
  }();
  const auto serve = [&](Requests& requests) {
    Session session(shared);  // threads = 1
    session.set_profile(profile);
    while (const auto request = requests.next()) {
      const strata::Deadline deadline{std::chrono::milliseconds(20), request->arrival};  // it may have waited already
      request->reply(session.run(request->input, deadline).output);
    }
  };
  std::vector<float> answers[3];
  Requests requests;
  for (auto& one : answers) requests.waiting.push_back({strata::Clock()(), std::vector<float>(784, 0.25F), &one});
  serve(requests);
  for (const auto& one : answers) CHECK(one.size() == 5);

  Session session(shared);
  std::vector<float> reply;
  CHECK(answer(session, std::vector<float>(784), strata::Level{1}, reply).ok());
  CHECK(reply.size() == 5);
  CHECK_FALSE(answer(session, std::vector<float>(783), strata::Level{1}, reply).ok());
  CHECK_FALSE(answer(session, std::vector<float>(784), strata::Level{2}, reply).ok());
}

TEST_CASE("weights from elsewhere get levels as the guide does it") {
  using strata::train::Training;
  const strata::train::Dataset pictures = some_pictures();
  strata::train::Classification<float> task(pictures);
  strata::SerialExecutor threads;
  SmallNet<Training<float>> source({});
  strata::train::initialise(source, 4);
  (void)strata::io::write_model(strata::train::to_state_dict(source, strata::Level{0}), "checkpoint.safetensors")
      .value();

  SmallNet<Training<float>> imported({});
  const strata::Archive state_dict = strata::train::read_state_dict("checkpoint.safetensors").value();
  (void)strata::train::from_state_dict(imported, state_dict).value();  // a third argument renames: "module.conv.weight"
  SmallNet<Training<float>> pruned = imported;
  strata::train::Recipe fine{.levels = {{.weights = 0.3, .flops = 0.3}, {.weights = 0.6, .flops = 0.6}}};
  fine.dense_epochs = 0;
  fine.sparse_rate = 0.01;  // lower than the default: the weights are good already
  fine.prune_epochs = fine.fixed_epochs = fine.tune_epochs = 1;
  strata::train::fit(imported, task, fine, threads);
  CHECK(imported.conv.norms().size() == 2);

  (void)strata::train::prune(pruned, {{.weights = 0.3, .flops = 0.3}, {.weights = 0.6, .flops = 0.6}}).value();
  strata::train::recalibrate(pruned, task, 2, threads);
  strata::save(pruned, 2, "pruned.safetensors");
  const auto model = strata::load<SmallNet>("pruned.safetensors", {.self_check = true});
  CHECK(model.nnz(strata::Level{0}) < model.nnz(strata::Level{1}));
  CHECK((pruned.conv.norms()[0].running_mean != pruned.conv.norms()[1].running_mean).any());
}

TEST_CASE("the guide's own layer computes the same in both families, and its derivative") {
  SwishNet<strata::train::Training<float>> network({});
  strata::train::initialise(network, 6);
  strata::save(network, 1, "swish.safetensors");
  const auto model = strata::load<SwishNet>("swish.safetensors", {.self_check = true});
  strata::Session session(model, {.batch = 2});
  std::vector<float> input(2 * 70);
  for (std::size_t i = 0; i < input.size(); ++i) input[i] = static_cast<float>(i % 13) / 6.0F - 1;
  const auto output = session.run(input, strata::Level{0});
  strata::SerialExecutor executor;
  strata::train::Context<float> context(executor);
  context.begin(strata::Level{0});
  const auto trained = network(context, strata::train::input_tensor(context, input.data(), 2, {2, 7, 5}));
  const strata::Shape shape = session.output_shape();
  CHECK(shape == trained.shape());
  float difference = 0;
  for (strata::index_t image = 0; image < 2; ++image)
    for (strata::index_t c = 0; c < shape.channels; ++c)
      for (strata::index_t p = 0; p < shape.height * shape.width; ++p) {
        const auto at = static_cast<std::size_t>((image * shape.channels + c) * shape.height * shape.width + p);
        const float other = trained.value()[(image * shape.height * shape.width + p) * shape.channels + c];
        difference = std::max(difference, std::abs(output[at] - other));
      }
  CHECK(difference < 1e-5F);

  strata::train::Context<double> exact(executor);
  const Swish<strata::train::Training<double>> swish;
  const auto of = [&](double shift) {
    exact.begin(strata::Level{0});
    const auto x = exact.make(1, {3, 2, 2}, true);
    for (strata::index_t i = 0; i < 12; ++i) x.value()[i] = static_cast<double>(i) / 3 - 2 + shift;
    const auto y = swish(exact, x);
    y.gradient().setOnes();
    exact.backward();
    return std::pair(y, x);
  };
  const double step = 1e-5;
  const auto slope = ((of(step).first.value() - of(-step).first.value()) / (2 * step)).eval();
  CHECK((of(0).second.gradient() - slope).abs().maxCoeff() < 1e-8);
}

TEST_CASE("a model is made by hand as the guide does it") {
  using strata::train::Training;
  SmallNet<Training<float>> made({});
  strata::train::initialise(made, 2);
  strata::train::set_levels(made, 2);
  auto& weight = made.conv.weight();
  std::vector<strata::index_t> order(static_cast<std::size_t>(weight.value.size()));
  std::iota(order.begin(), order.end(), strata::index_t{0});
  std::ranges::sort(order, std::greater(), [&](strata::index_t i) { return std::abs(weight.value[i]); });
  weight.strata.assign(order.size(), strata::StratumMap::absent);
  for (std::size_t i = 0; i < order.size() / 4; ++i)
    weight.strata[static_cast<std::size_t>(order[i])] = i < order.size() / 8 ? 0 : 1;
  strata::save(made, 2, "made.safetensors");
  const auto model = strata::load<SmallNet>("made.safetensors", {.self_check = true});
  CHECK(model.network().conv.weights().nnz(strata::Level{0}) == 9);
  CHECK(model.network().conv.weights().nnz(strata::Level{1}) == 18);
}

TEST_CASE("the guide's block adds its residual to the normalised sum, before the activation") {
  Block<strata::train::Training<float>> block(4);
  strata::SerialExecutor executor;
  strata::train::Context<float> context(executor);
  context.begin(strata::Level{0});
  block.conv2.norms().front().gamma.value.setZero();  // what conv2 makes is normalised to nothing
  for (const float number : {1.5F, -1.5F}) {
    const std::vector<float> pixels(4 * 6 * 6, number);
    const auto x = strata::train::input_tensor(context, pixels.data(), 1, {4, 6, 6});
    const auto y = block(context, x);
    CHECK(y.shape() == x.shape());
    CHECK((y.value() == std::max(number, 0.0F)).all());
  }
}

TEST_CASE("every piece of C++ in README.md and in the guide is in this file") {
  const std::string root = STRATA_SOURCE_DIR;
  const std::string here = bare(text_of(root + "/tests/docs/snippets_test.cpp"));
  for (const char* page : {"/README.md", "/docs/guide.md"}) {
    const std::string text = text_of(root + page);
    int pieces = 0;
    for (std::size_t begin = text.find("```cpp\n"); begin != std::string::npos; begin = text.find("```cpp\n", begin)) {
      begin += 7;
      const std::size_t end = text.find("```", begin);
      std::string piece = text.substr(begin, end - begin);
      if (piece.starts_with("#include <strata/strata.hpp>\n")) piece.erase(0, piece.find('\n'));
      INFO(page << ": " << piece);
      // Line by line: the test may do more in between.
      std::size_t from = 0;
      for (std::size_t line = 0; line < piece.size();) {
        const std::size_t stop = std::min(piece.find('\n', line), piece.size());
        const std::string wanted = bare(piece.substr(line, stop - line) + "\n");
        from = here.find(wanted, from);
        INFO(piece.substr(line, stop - line));
        REQUIRE(from != std::string::npos);
        from += wanted.size();
        line = stop + 1;
      }
      ++pieces;
      begin = end + 3;
    }
    CHECK(pieces >= 3);
  }
}
