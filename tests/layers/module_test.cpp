// What a network's `visit` and its config's `visit` leave out is an error before anything is trained, stored or run.
#include <array>
#include <span>
#include <string>
#include <string_view>

#include <strata/layers/exchange.hpp>
#include <strata/runtime/session.hpp>
#include <strata/train/training.hpp>

#include "support/catch.hpp"

namespace {

using strata::index_t;
using strata::Level;
using strata::SequenceShape;

/// Calls `use(context, layer)` in a checking run; what the error, if there is one, is about.
template <class Layer, class Options, class Use>
std::string left_out(const Options& options, const Use& use) {
  strata::SerialExecutor executor;
  strata::Inference<>::Context context(executor);
  context.set_checking(true);
  context.set_level(Level{0});
  const Layer layer(options);
  use(context, layer);
  if (!context.error()) return "";
  CHECK(std::string(context.error()->found()) == "none: visit leaves the layer out");
  return context.error()->where();
}

struct Nothing {
  template <class V>
  void visit(V&&) {}
};
enum class Kind : int { one, other };
struct Whole {
  std::array<index_t, 2> sizes{};
  Kind kind = Kind::one;
  bool flag = false;
  double rate = 0;
  template <class V>
  void visit(V&& v) {
    v("size1", sizes[0]);
    v("size2", sizes[1]);
    v("kind", kind);
    v("flag", flag);
    v("rate", rate);
  }
};
struct Forgetful {
  index_t width = 8;
  bool relu = false;
  template <class V>
  void visit(V&& v) {
    v("width", width);
  }
};
/// With a constructor it is no aggregate, whose numbers could be counted.
struct Closed {
  Closed() = default;
  template <class V>
  void visit(V&& v) {
    v("width", width);
    v("relu", relu);
    if (!forgetful) v("kernel", kernel.h);
    v("kernel_w", kernel.w);
  }
  index_t width = 8;
  bool relu = false;
  strata::Pair kernel = 3;
  static inline bool forgetful = false;
};
struct Twice {
  index_t width = 8;
  index_t height = 8;
  template <class V>
  void visit(V&& v) {
    v("width", width);
    v("width", height);
  }
};
/// A struct within has padding behind its last member.
struct Nested {
  Closed inner;
  bool flag = false;
  template <class V>
  void visit(V&& v) {
    v("width", inner.width);
    v("relu", inner.relu);
    v("kernel_h", inner.kernel.h);
    v("kernel_w", inner.kernel.w);
    v("flag", flag);
  }
};
struct Tail {
  struct Inner {
    index_t width = 8;
    bool relu = false;
  } inner;
  bool flag = false;
  template <class V>
  void visit(V&& v) {
    v("width", inner.width);
    v("relu", inner.relu);
    v("flag", flag);
  }
};
/// Stored in another form than it has.
struct Elsewhere {
  strata::Pair kernel = 3;
  template <class V>
  void visit(V&& v) {
    auto both = kernel.h;
    v("kernel", both);
    kernel = both;
  }
};

template <class Config_>
struct NetOf {
  using Config = Config_;
  static constexpr std::string_view architecture = "some net";
};

}  // namespace

TEST_CASE("an inference layer that was not loaded is an error that says which") {
  using Family = strata::Inference<>;
  const auto with_pixels = [](strata::Shape shape) {
    return [shape](auto& context, const auto& layer) { (void)layer(context, context.make(1, shape)); };
  };
  CHECK(left_out<Family::Conv2d>(strata::Conv2dOptions{.in_channels = 3, .out_channels = 8, .padding = 1},
                                 with_pixels({3, 5, 5})) == "a convolution of 3 to 8 channels");
  CHECK(left_out<Family::Linear>(strata::LinearOptions{.in_features = 7, .out_features = 2}, with_pixels({7, 1, 1})) ==
        "a linear layer of 7 to 2 features");
  const SequenceShape shape{.steps = 2, .batch = 1};
  const std::array<strata::TokenId, 2> words = {1, 2};
  CHECK(left_out<Family::Embedding>(strata::EmbeddingOptions{.words = 9, .features = 4},
                                    [&](auto& context, const auto& layer) {
                                      (void)layer(context, std::span<const strata::TokenId>(words));
                                    }) == "an embedding of 9 words in 4 features");
  CHECK(left_out<Family::Lstm>(strata::LstmOptions{.in_features = 4, .hidden_features = 6},
                               [&](auto& context, const auto& layer) {
                                 (void)layer(context, context.make(2, {4, 1, 1}), shape);
                               }) == "an LSTM of 4 to 6 features");
  CHECK(left_out<Family::BahdanauAttention>(
            strata::BahdanauOptions{.query_features = 4, .memory_features = 6, .units = 5},
            [&](auto& context, const auto& layer) {
              (void)layer.memory(context, context.make(2, {6, 1, 1}), shape);
            }) == "a Bahdanau attention of 5 units");
  CHECK(left_out<Family::MultiHeadAttention>(strata::MultiHeadAttentionOptions{.features = 4, .heads = 2},
                                             [&](auto& context, const auto& layer) {
                                               const auto x = context.make(2, {4, 1, 1});
                                               (void)layer(context, x, shape, x, x, shape);
                                             }) == "a multi-head attention of 4 features");
  const std::array<strata::GraphEdge, 1> edges = {strata::GraphEdge{0, 1}};
  const auto graph = strata::Graph::from_edges(2, edges);
  CHECK(left_out<Family::GraphAttention>(
            strata::GraphAttentionOptions{.in_features = 3, .out_features = 2, .heads = 2},
            [&](auto& context, const auto& layer) {
              (void)layer(context, Family::NodeFeatures(context.arena(), 2, 3, context.lanes), graph);
            }) == "a graph attention of 3 to 4 features");
}

TEST_CASE("in a checking pass of training a weight without a name is an error") {
  using Family = strata::train::Training<float>;
  strata::SerialExecutor executor;
  Family::Context context(executor);
  Family::Linear layer({.in_features = 7, .out_features = 2});
  context.begin(Level{0});
  const auto x = context.make(1, {7, 1, 1}, false);
  x.value().setZero();
  CHECK_NOTHROW(layer(context, x));
  context.checking = true;
  CHECK_THROWS_WITH(layer(context, x),
                    "a layer with weights of 2 x 7: expected a name from the network's visit, found none: visit leaves "
                    "the layer out");
  layer.for_each_parameter("fc", "fc.norm", [](auto&) {});
  CHECK_NOTHROW(layer(context, x));
  Family::Lstm lstm({.in_features = 7, .hidden_features = 2});
  CHECK_THROWS_AS(lstm(context, x, strata::SequenceShape{1, 1, {}}), strata::Error);
  lstm.for_each_parameter("lstm", "", [](auto&) {});
  CHECK_NOTHROW(lstm(context, x, strata::SequenceShape{1, 1, {}}));
}

TEST_CASE("a layer that runs several times in a pass is as dear as all its runs") {
  using Family = strata::train::Training<float>;
  strata::SerialExecutor executor;
  Family::Context context(executor);
  Family::Conv2d layer({.in_channels = 2, .out_channels = 2, .padding = 1, .norm = false});
  for (int pass = 0; pass < 2; ++pass) {
    context.begin(Level{0});
    for (const index_t size : {4, 3}) {
      const auto x = context.make(1, {2, size, size}, false);
      x.value().setZero();
      (void)layer(context, x);
    }
    CHECK(layer.weight().uses == 16 + 9);
  }
}

TEST_CASE("a config whose visit leaves out a number is an error") {
  CHECK(strata::check_config<NetOf<Whole>>());
  CHECK(strata::check_config<NetOf<Nothing>>());
  CHECK(strata::check_config<NetOf<Closed>>());
  const auto status = strata::check_config<NetOf<Forgetful>>();
  REQUIRE_FALSE(status.ok());
  CHECK(std::string(status.error().what()) ==
        "config of some net: expected a visit that names all its 2 numbers, found 1");
  Closed::forgetful = true;
  CHECK(std::string(strata::check_config<NetOf<Closed>>().error().what()) ==
        "config of some net: expected a visit that names all its numbers, found none in bytes 9 to 23 of it");
  Closed::forgetful = false;
  CHECK(strata::check_config<NetOf<Twice>>().error().found() == "\"width\" twice");
  CHECK(strata::check_config<NetOf<Elsewhere>>());
  CHECK(strata::check_config<NetOf<Nested>>());
  CHECK(strata::check_config<NetOf<Tail>>());
}
