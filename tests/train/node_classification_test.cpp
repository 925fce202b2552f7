// The node classification task: loss and its derivative, what it refuses, and a small graph that is learnt in both arms
// with nested levels; Adam with coupled decay against its formula.
#include <cmath>

#include <strata/train/fit.hpp>
#include <strata/train/node_classification.hpp>

#include "../../examples/gat/network.hpp"
#include "support/catch.hpp"

namespace {

using strata::GraphEdge;
using strata::GraphIndex;
using strata::index_t;
using strata::Level;
namespace train = strata::train;
using Net = gat::GraphAttentionNet<train::Training<double>>;
using Task = train::NodeClassification<double>;

/// Two rings of 15 nodes; a node of ring r has feature r, one of a few shared ones, and label r.
train::LabelledGraph two_rings() {
  train::LabelledGraph data;
  std::vector<GraphEdge> edges;
  std::vector<GraphIndex> offsets = {0}, indices;
  for (GraphIndex i = 0; i < 30; ++i) {
    const GraphIndex ring = i / 15;
    edges.push_back({i, ring * 15 + (i + 1) % 15});
    indices.insert(indices.end(), {ring, 2 + i % 4});
    offsets.push_back(static_cast<GraphIndex>(indices.size()));
    data.labels.push_back(static_cast<std::uint8_t>(ring));
    (i % 5 == 0 ? data.train : (i % 5 < 3 ? data.val : data.test)).push_back(i);
  }
  data.classes = 2;
  data.input = {strata::Graph::from_edges(30, edges, {.undirected = true, .add_self_loops = true}),
                strata::SparseFeatures::from_csr(6, offsets, indices)};
  return data;
}

}  // namespace

TEST_CASE("node classification: both arms learn nested levels within their budgets") {
  const auto data = two_rings();
  for (const auto arm : {train::Arm::joint, train::Arm::freeze_and_grow}) {
    Net network({.features = 6, .classes = 2, .hidden = 4, .heads = 2, .dropout = 0.2});
    train::initialise(network, 1);
    Task task(data, {.steps_per_epoch = 10});
    train::Recipe recipe;
    recipe.levels = {{0.4, 0.4}, {0.7, 0.7}};
    recipe.arm = arm;
    recipe.batch = 1;
    recipe.dense_epochs = recipe.prune_epochs = recipe.fixed_epochs = 6;
    recipe.warm_up_epochs = 0;
    recipe.dense_rate = recipe.sparse_rate = 0.02;
    recipe.adamw = recipe.coupled_decay = true;
    recipe.recalibration_batches = 0;
    strata::SerialExecutor executor;
    (void)train::fit(network, task, recipe, executor);
    (void)strata::check_within(train::count_layers<double>(network, 2), recipe.levels).value();
    train::Context<double> context(executor);
    context.training = false;
    for (const int level : {0, 1}) {
      context.begin(Level{level});
      CHECK(task.accuracy(task.run(network, context), data.test) > 0.9);
    }
  }
}

TEST_CASE("node classification: factors of dropout change how levels train, and nothing of the dense phase") {
  const auto data = two_rings();
  strata::SerialExecutor executor;
  const auto train_with = [&](std::vector<double> factors) {
    Net network({.features = 6, .classes = 2, .hidden = 4, .heads = 2, .dropout = 0.4});
    train::initialise(network, 1);
    Task task(data, {.steps_per_epoch = 4});
    train::Recipe recipe;
    recipe.levels = {{0.4, 0.4}, {0.7, 0.7}};
    recipe.batch = 1;
    recipe.dense_epochs = recipe.prune_epochs = recipe.fixed_epochs = 1;
    recipe.dropout_factors = std::move(factors);
    recipe.adamw = true;
    auto report = train::fit(network, task, recipe, executor);
    std::vector<double> dense, levels;
    for (const auto* parameter : train::parameters<double>(*report.dense))
      dense.insert(dense.end(), parameter->value.begin(), parameter->value.end());
    for (const auto* parameter : train::parameters<double>(network))
      levels.insert(levels.end(), parameter->value.begin(), parameter->value.end());
    return std::pair(dense, levels);
  };
  const auto [dense, levels] = train_with({});
  const auto [same_dense, same_levels] = train_with({1, 1});
  const auto [other_dense, other_levels] = train_with({0, 0.5});
  CHECK(dense == same_dense);
  CHECK(levels == same_levels);
  CHECK(dense == other_dense);
  CHECK(levels != other_levels);
}

TEST_CASE("node classification: the loss and its derivative") {
  const auto data = two_rings();
  strata::SerialExecutor executor;
  train::Context<double> context(executor);
  std::vector<double> teacher(60);
  for (std::size_t i = 0; i < teacher.size(); ++i) teacher[i] = std::sin(static_cast<double>(i));
  for (const bool all : {true, false})
    for (const double share : {0.0, 0.6, 1.0}) {
      const Task task(data, {.steps_per_epoch = 1, .distil_all_nodes = all});
      const auto logits = context.make(30, {2, 1, 1}, true);
      for (index_t i = 0; i < 60; ++i) logits.value()[i] = std::cos(static_cast<double>(3 * i));
      const auto loss = [&] {
        const auto copy = context.make(30, {2, 1, 1}, true);
        copy.value() = logits.value();
        return task.loss(copy, teacher, share, 2, 0.7);
      };
      (void)task.loss(logits, teacher, share, 2, 0.7);
      double worst = 0;
      for (index_t i = 0; i < 60; ++i) {
        const double old = logits.value()[i];
        logits.value()[i] = old + 1e-6;
        const double above = loss();
        logits.value()[i] = old - 1e-6;
        const double below = loss();
        logits.value()[i] = old;
        worst = std::max(worst, std::abs((above - below) / 2e-6 - logits.gradient()[i]));
      }
      INFO("share " << share << ", all nodes " << all);
      CHECK(worst < 1e-7);
    }
}

TEST_CASE("labelled graphs that do not fit together are refused") {
  const auto refused = [](auto&& change) {
    auto data = two_rings();
    change(data);
    CHECK_THROWS_AS(Task(data), strata::Error);
  };
  refused([](auto& data) { data.labels.pop_back(); });
  refused([](auto& data) { data.labels[3] = 2; });
  refused([](auto& data) { data.classes = 0; });
  refused([](auto& data) { data.train.clear(); });
  refused([](auto& data) { data.val.push_back(data.train.front()); });
  refused([](auto& data) { data.test.push_back(30); });
  refused([](auto& data) { data.test.push_back(-1); });
  refused([](auto& data) { data.input.features = strata::SparseFeatures(); });
  const auto data = two_rings();
  CHECK_THROWS_AS(Task(data, {.steps_per_epoch = 0}), strata::Error);
}

TEST_CASE("Adam with coupled decay moves as PyTorch's Adam does") {
  strata::SerialExecutor executor;
  train::Context<double> context(executor);
  train::Parameter<double> w({1}, 0.5);
  w.decay = true;
  train::AdamW<double> adam({&w}, {.decay = 0.1, .decoupled = false});
  double value = 0.5, mean = 0, square = 0;
  for (int step = 1; step <= 5; ++step) {
    w.gradient[0] = 0.3 * step;
    const double g = 0.3 * step + 0.1 * value;
    mean = 0.9 * mean + 0.1 * g;
    square = 0.999 * square + 0.001 * g * g;
    value -= 0.01 * (mean / (1 - std::pow(0.9, step))) / (std::sqrt(square / (1 - std::pow(0.999, step))) + 1e-8);
    adam.step(context, 0.01);
    CHECK(std::abs(w.value[0] - value) < 1e-12);
  }
}
