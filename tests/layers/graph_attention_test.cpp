// The graph attention layer of both families against the plain reference on awkward graphs and widths, at every level;
// gradients against finite differences; what is refused.
#include <cmath>
#include <filesystem>
#include <random>
#include <string>

#include <strata/io/model_file.hpp>
#include <strata/kernels/graph_attention.hpp>
#include <strata/layers/exchange.hpp>
#include <strata/runtime/graph_session.hpp>
#include <strata/train/training.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"

namespace {

using strata::Activation;
using strata::Graph;
using strata::GraphAttentionOptions;
using strata::GraphEdge;
using strata::GraphIndex;
using strata::GraphInput;
using strata::index_t;
using strata::Level;
using strata::SparseFeatures;
namespace train = strata::train;

/// One layer, or two in a row, as a network.
template <class Family>
struct Net {
  struct Config {
    index_t features = 5, hidden = 3, heads = 2, outputs = 3, output_heads = 1;
    bool concat = true, bias = true;
    double slope = 0.2;
    template <class V>
    void visit(V&& v) {
      v("features", features);
      v("hidden", hidden);
      v("heads", heads);
      v("outputs", outputs);
      v("output_heads", output_heads);
      v("concat", concat);
      v("bias", bias);
      v("slope", slope);
    }
  };
  static constexpr std::string_view architecture = "test.Graph";
  explicit Net(const Config& c)
      : config_(c),
        first({.in_features = c.features,
               .out_features = c.hidden,
               .heads = c.heads,
               .concat = c.concat,
               .bias = c.bias,
               .activation = Activation::elu,
               .negative_slope = c.slope,
               .sparse_input = true}),
        second({.in_features = first.options().output_features(),
                .out_features = c.outputs,
                .heads = c.output_heads,
                .concat = !c.concat,
                .bias = c.bias,
                .negative_slope = c.slope}) {}
  const Config& config() const { return config_; }
  auto operator()(typename Family::Context& context, const GraphInput& input) const {
    auto y = first(context, input.features, input.graph);
    context.stage("second");
    return second(context, y, input.graph);
  }
  template <class V>
  void visit(V&& v) {
    v("first", first);
    v("second", second);
  }
  Config config_;
  typename Family::GraphAttention first, second;
};

using TrainingNet = Net<train::Training<double>>;
using Model = strata::Model<Net>;

struct Case {
  const char* name;
  Graph graph;
};

std::vector<Case> graphs() {
  std::vector<Case> cases;
  const auto add = [&](const char* name, index_t nodes, const std::vector<GraphEdge>& edges, bool loops) {
    cases.push_back({name, Graph::from_edges(nodes, edges, {.undirected = false, .add_self_loops = loops})});
  };
  add("no node", 0, {}, true);
  add("one node", 1, {}, true);
  add("one isolated node", 1, {}, false);
  add("isolated nodes", 9, {{0, 1}, {3, 3}}, false);
  add("two nodes, one hears the other", 2, {{0, 1}}, true);
  std::vector<GraphEdge> star;
  for (GraphIndex i = 1; i < 300; ++i) star.push_back({i, 0});  // more edges than a chunk
  add("star", 300, star, true);
  std::mt19937 random(3);
  std::vector<GraphEdge> edges;
  for (GraphIndex i = 0; i < 37; ++i)
    for (GraphIndex j = 0; j < 37; ++j)
      if (random() % 5 == 0) edges.push_back({i, j});
  add("random with some self-loops", 37, edges, false);
  return cases;
}

SparseFeatures random_features(index_t nodes, index_t features, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<GraphIndex> offsets = {0}, indices;
  std::vector<float> values;
  for (index_t node = 0; node < nodes; ++node) {
    for (index_t f = 0; f < features && node % 4 != 3; ++f)  // every fourth row is empty
      if (random() % 3 == 0) {
        indices.push_back(static_cast<GraphIndex>(f));
        values.push_back(static_cast<float>(random() % 200) / 100.0F - 1.0F);
      }
    offsets.push_back(static_cast<GraphIndex>(indices.size()));
  }
  return SparseFeatures::from_csr(features, offsets, indices, values);
}

std::vector<double> dense(const SparseFeatures& x) {
  std::vector<double> result(static_cast<std::size_t>(x.nodes() * x.features()));
  for (std::size_t k = 0; k < static_cast<std::size_t>(x.entries()); ++k)
    result[static_cast<std::size_t>(x.rows()[k] * x.features() + x.indices()[k])] = static_cast<double>(x.values()[k]);
  return result;
}

/// Random parameters; weights and attention vectors spread over `levels` (0: dense) and "absent".
void randomise(TrainingNet& network, int levels, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform(-1, 1);
  for (auto* parameter : train::parameters<double>(network)) {
    for (double& value : parameter->value) value = static_cast<double>(static_cast<float>(uniform(random)));
    if (levels == 0 || !parameter->levelled) continue;
    parameter->strata.resize(static_cast<std::size_t>(parameter->value.size()));
    for (auto& stratum : parameter->strata) {
      const auto draw = static_cast<int>(random() % static_cast<unsigned>(levels + 1));
      stratum = draw == levels ? strata::StratumMap::absent : static_cast<std::uint8_t>(draw);
    }
  }
}

std::vector<double> at_level(const train::Parameter<double>& parameter, Level level) {
  std::vector<double> values(parameter.value.begin(), parameter.value.end());
  for (index_t i = 0; i < parameter.value.size(); ++i)
    if (!parameter.contains(i, level)) values[static_cast<std::size_t>(i)] = 0;
  return values;
}

/// The network by the plain reference.
std::vector<double> expected(TrainingNet& network, const GraphInput& input, Level level) {
  std::vector<double> x = dense(input.features);
  const auto apply = [&](auto& layer, std::vector<double> features) {
    const auto& o = layer.options();
    std::vector<double> bias;
    layer.for_each_parameter("", "", [&](auto& p) {
      if (p.name == ".bias") bias.assign(p.value.begin(), p.value.end());
    });
    return strata::kernels::reference::graph_attention<double>(
        input.graph, features, o.in_features, o.heads, o.out_features, at_level(layer.weight(), level),
        at_level(layer.source(), level), at_level(layer.target(), level), bias, o.negative_slope, o.concat,
        o.activation);
  };
  return apply(network.second, apply(network.first, x));
}

double worst_difference(std::span<const float> found, const std::vector<double>& wanted) {
  REQUIRE(found.size() == wanted.size());
  double worst = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const double error = std::abs(static_cast<double>(found[i]) - wanted[i]) / (1 + std::abs(wanted[i]));
    if (!(error <= worst)) worst = error;
  }
  return worst;
}

}  // namespace

TEST_CASE("both families agree with the plain reference on awkward graphs, widths and levels") {
  strata::SerialExecutor serial;
  unsigned seed = 0;
  for (const auto& [name, graph] : graphs())
    for (const index_t heads : {1, 2, 3, 4, 5, 8, 16, 19})
      for (const index_t hidden : {1, 3, 8, 17})
        for (const bool concat : {true, false}) {
          const int levels = static_cast<int>(seed % 3);  // 0: dense
          typename TrainingNet::Config config;
          config.heads = heads;
          config.hidden = hidden;
          config.concat = concat;
          config.output_heads = seed % 2 == 0 ? 1 : 3;
          config.outputs = 1 + seed % 9;
          config.bias = seed % 5 != 0;
          config.features = 1 + seed % 7;
          config.slope = seed % 4 == 0 ? 0.0 : 0.2;
          INFO(name << ", " << heads << " heads of " << hidden << ", concat " << concat << ", levels " << levels
                    << ", outputs " << config.outputs);
          TrainingNet network(config);
          randomise(network, levels, ++seed);
          const GraphInput input{graph, random_features(graph.nodes(), config.features, seed)};
          const auto model = Model::from_archive(strata::to_archive(network, std::max(levels, 1))).value();
          strata::GraphSession<Model> session(model, input);
          train::Context<double> context(serial);
          context.training = false;
          for (int level = 0; level < model.levels(); ++level) {
            const auto wanted = expected(network, input, Level{level});
            CHECK(worst_difference(session.run(Level{level}), wanted) < 2e-5);
            context.begin(Level{level});
            const auto y = network(context, input);
            REQUIRE(static_cast<std::size_t>(y.value().size()) == wanted.size());
            for (std::size_t i = 0; i < wanted.size(); ++i)
              CHECK(std::abs(y.value()[static_cast<index_t>(i)] - wanted[i]) < 1e-10);
          }
        }
}

TEST_CASE("a node whose scores tower above all others leaves their attention as it is") {
  // One bound is subtracted from all scores: those of nodes that are far below it must not get lost.
  const auto graph = graphs()[6].graph;
  for (const index_t heads : {1, 3, 8, 19})
    for (const bool concat : {true, false})
      for (const float height : {50.0F, 300.0F, 3e4F}) {
        typename TrainingNet::Config config;
        config.heads = heads;
        config.concat = concat;
        config.hidden = 8;
        INFO(heads << " heads, concat " << concat << ", height " << height);
        TrainingNet network(config);
        randomise(network, 0, 3);
        const SparseFeatures x = random_features(graph.nodes(), config.features, 4);
        std::vector<float> values(x.values().begin(), x.values().end());
        for (auto k = static_cast<std::size_t>(x.offsets()[5]); k < static_cast<std::size_t>(x.offsets()[6]); ++k)
          values[k] *= height;
        const GraphInput input{graph,
                               SparseFeatures::from_csr(config.features, {x.offsets().begin(), x.offsets().end()},
                                                        {x.indices().begin(), x.indices().end()}, values)};
        const auto model = Model::from_archive(strata::to_archive(network, 1)).value();
        strata::GraphSession<Model> session(model, input);
        const double tolerance = height > 1000 ? 3e-4 : 1e-4;  // large scores have fewer digits behind the point
        CHECK(worst_difference(session.run(Level{0}), expected(network, input, Level{0})) < tolerance);
      }
}

TEST_CASE("graph sessions: the same bits on any number of threads, no allocation, other inputs") {
  TrainingNet network({});
  randomise(network, 2, 5);
  const auto model = Model::from_archive(strata::to_archive(network, 2)).value();
  const auto all = graphs();
  const GraphInput star{all[5].graph, random_features(300, 5, 1)};
  strata::GraphSession<Model> one(model, star);
  strata::GraphSession<Model> three(model, star, {.threads = 3});
  for (const int level : {1, 0}) {
    const auto a = one.run(Level{level});
    const auto b = three.run(Level{level});
    CHECK(std::equal(a.begin(), a.end(), b.begin(), b.end()));
  }
  const auto before = allocations();
  for (const int level : {0, 1, 1, 0}) (void)one.forward(Level{level});
  CHECK(allocations() == before);

  CHECK_THROWS_AS(one.run(Level{2}), strata::Error);
  const std::vector<float> kept(one.output().begin(), one.output().end());
  CHECK_THROWS_AS(one.set_input({all[5].graph, random_features(299, 5, 1)}), strata::Error);
  CHECK_THROWS_AS(one.set_input({all[5].graph, random_features(300, 6, 1)}), strata::Error);
  (void)one.forward(Level{0});
  CHECK(std::equal(kept.begin(), kept.end(), one.output().begin(), one.output().end()));
  one.set_input({all[6].graph, random_features(37, 5, 1)});
  CHECK(one.run(Level{1}).size() == 37U * 3U);
  CHECK_THROWS_AS(strata::GraphSession<Model>(model, star, {.threads = 0}), strata::Error);
}

TEST_CASE("a graph session runs the highest level present") {
  TrainingNet network({});
  randomise(network, 2, 5);
  const std::string path = (std::filesystem::temp_directory_path() / "strata_graph_session").string();
  (void)strata::io::write_model(strata::to_archive(network, 2), path).value();
  const auto model = strata::load<Net>(path);
  strata::GraphSession<Model> session(model, {graphs()[5].graph, random_features(300, 5, 1)});
  std::vector<float> outputs[2];
  for (const int level : {0, 1}) {
    const auto output = session.run(Level{level});
    outputs[level].assign(output.begin(), output.end());
  }
  REQUIRE(outputs[0] != outputs[1]);
  (void)model.release_above(Level{0});
  const auto lower = session.run(Level{1});
  CHECK(session.level() == Level{0});
  CHECK(std::equal(lower.begin(), lower.end(), outputs[0].begin()));
  model.restore(Level{1});
  model.wait_restored();
  const auto upper = session.run(Level{1});
  CHECK(session.level() == Level{1});
  CHECK(std::equal(upper.begin(), upper.end(), outputs[1].begin()));
  std::filesystem::remove(path);
}

TEST_CASE("the model counts weights, bytes and levels of graph attention layers") {
  TrainingNet network({});
  randomise(network, 2, 9);
  const auto model = Model::from_archive(strata::to_archive(network, 2)).value();
  for (const int level : {0, 1}) {
    index_t wanted = 0;
    for (const auto* parameter : train::parameters<double>(network))
      if (parameter->levelled)
        for (index_t i = 0; i < parameter->value.size(); ++i) wanted += parameter->contains(i, Level{level}) ? 1 : 0;
    CHECK(model.nnz(Level{level}) == wanted);
  }
  CHECK(model.bytes(Level{0}) < model.bytes(Level{1}));
}

TEST_CASE("gradients of graph attention agree with finite differences") {
  strata::SerialExecutor serial;
  unsigned seed = 100;
  for (const auto& each : graphs())
    for (const bool concat : {true, false})
      for (const bool dropout : {false, true}) {
        GraphAttentionOptions sparse{.in_features = 4,
                                     .out_features = 3,
                                     .heads = 2,
                                     .concat = concat,
                                     .activation = Activation::elu,
                                     .feature_dropout = dropout ? 0.4 : 0.0,
                                     .attention_dropout = dropout ? 0.5 : 0.0,
                                     .sparse_input = true};
        GraphAttentionOptions next = sparse;
        next.in_features = sparse.output_features();
        next.sparse_input = false;
        next.heads = 3;
        next.activation = Activation::identity;
        train::GraphAttention<double> first(sparse), second(next);
        std::mt19937 random(++seed);
        std::uniform_real_distribution<double> uniform(-1, 1);
        std::vector<train::Parameter<double>*> parameters;
        for (auto* layer : {&first, &second})
          layer->for_each_parameter("layer", "", [&](auto& parameter) {
            parameters.push_back(&parameter);
            for (double& value : parameter.value) value = uniform(random);
            if (!parameter.levelled) return;
            for (index_t i = 0; i < parameter.value.size(); ++i)
              parameter.strata.push_back(i % 4 == 3 ? strata::StratumMap::absent
                                                    : static_cast<std::uint8_t>(i % 4 == 2));
          });
        const auto x = random_features(each.graph.nodes(), 4, seed);
        train::Context<double> context(serial);
        std::vector<double> weights;
        for (const int level : {0, 1}) {
          const auto run = [&] {
            context.begin(Level{level});
            return second(context, first(context, x, each.graph), each.graph);
          };
          auto y = run();
          weights.resize(static_cast<std::size_t>(y.value().size()));
          for (double& w : weights) w = uniform(random);
          for (index_t i = 0; i < y.value().size(); ++i) y.gradient()[i] = weights[static_cast<std::size_t>(i)];
          for (auto* parameter : parameters) parameter->gradient.setZero();
          context.backward();
          const auto sum = [&] {
            const auto z = run();
            double total = 0;
            for (index_t i = 0; i < z.value().size(); ++i) total += z.value()[i] * weights[static_cast<std::size_t>(i)];
            return total;
          };
          double worst = 0;
          for (auto* parameter : parameters)
            for (index_t i = 0; i < parameter->value.size(); i += 1 + parameter->value.size() / 12) {
              constexpr double h = 1e-6;
              const double old = parameter->value[i];
              parameter->value[i] = old + h;
              const double above = sum();
              parameter->value[i] = old - h;
              const double below = sum();
              parameter->value[i] = old;
              const double error = std::abs((above - below) / (2 * h) - parameter->gradient[i]);
              worst = std::max(worst, error / (1 + std::abs(parameter->gradient[i])));
            }
          INFO(each.name << ", concat " << concat << ", dropout " << dropout << ", level " << level);
          CHECK(worst < 1e-5);
        }
      }
}

TEST_CASE("gradients of graph attention are the same bits on any number of threads") {
  std::vector<double> gradients[2];
  const auto all = graphs();
  for (const int threads : {1, 2}) {
    TrainingNet network({});
    randomise(network, 0, 5);
    strata::ThreadPool pool(threads);
    train::Context<double> context(pool);
    context.begin(Level{0});
    const auto y = network(context, GraphInput{all[6].graph, random_features(37, 5, 1)});
    y.gradient().setConstant(0.1);
    context.backward();
    for (auto* parameter : train::parameters<double>(network))
      gradients[threads - 1].insert(gradients[threads - 1].end(), parameter->gradient.begin(),
                                    parameter->gradient.end());
  }
  CHECK(gradients[0] == gradients[1]);
}

TEST_CASE("options and inputs that describe no graph attention layer are refused") {
  const auto refused = [](GraphAttentionOptions options) {
    CHECK_THROWS_AS(train::GraphAttention<float>(options), strata::Error);
    CHECK_THROWS_AS((strata::inference::GraphAttention<float, xsimd::default_arch>(options)), strata::Error);
  };
  refused({.in_features = 0, .out_features = 1});
  refused({.in_features = 1, .out_features = 0});
  refused({.in_features = 1, .out_features = 1, .heads = 0});
  refused({.in_features = 1, .out_features = 1, .negative_slope = 1.5});
  refused({.in_features = 1, .out_features = 1, .negative_slope = -0.1});
  refused({.in_features = 1, .out_features = 1, .feature_dropout = 1});
  refused({.in_features = 1, .out_features = 1, .attention_dropout = -0.1});

  strata::SerialExecutor serial;
  train::Context<float> context(serial);
  const Graph graph = Graph::from_edges(2, {}, {.add_self_loops = true});
  const train::GraphAttention<float> sparse({.in_features = 3, .out_features = 2, .sparse_input = true});
  const train::GraphAttention<float> plain({.in_features = 3, .out_features = 2});
  CHECK_THROWS_AS(sparse(context, random_features(3, 3, 1), graph), strata::Error);
  CHECK_THROWS_AS(sparse(context, random_features(2, 4, 1), graph), strata::Error);
  CHECK_THROWS_AS(sparse(context, context.make(2, {3, 1, 1}, false), graph), strata::Error);
  CHECK_THROWS_AS(plain(context, random_features(2, 3, 1), graph), strata::Error);
}

TEST_CASE("a level can drop between two graph attention layers") {
  TrainingNet network({});
  randomise(network, 2, 11);
  const auto model = Model::from_archive(strata::to_archive(network, 2)).value();
  const GraphInput input{graphs()[6].graph, random_features(37, 5, 2)};
  strata::GraphSession<Model> session(model, input);
  session.context().set_stage_hook([](void*, std::string_view, Level) noexcept { return Level{0}; }, nullptr);
  const auto found = session.run(Level{1});
  strata::SerialExecutor serial;
  train::Context<double> context(serial);
  context.training = false;
  context.drop_at_stage = 0;
  context.drop_to = Level{0};
  context.begin(Level{1});
  const auto wanted = network(context, input);
  for (std::size_t i = 0; i < found.size(); ++i)
    CHECK(std::abs(static_cast<double>(found[i]) - wanted.value()[static_cast<index_t>(i)]) < 1e-5);
}
