// The task of telling the classes of a graph's nodes from the labels of a few of them: what train/fit.hpp asks of a
// task, on one graph that every step sees whole.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/sparse/graph.hpp>
#include <strata/train/fingerprint.hpp>
#include <strata/train/loss.hpp>
#include <strata/train/tape.hpp>

namespace strata::train {

/// A graph, a class for each node and the nodes that training may learn from.
struct LabelledGraph {
  GraphInput input;
  index_t classes = 0;
  std::vector<std::uint8_t> labels;          ///< one a node
  std::vector<GraphIndex> train, val, test;  ///< disjoint sets of nodes

  /// Errors: labels or features that are not one a node, more than 256 classes, a label that is no class, a split that
  /// names no node, or a node twice; no node to learn from.
  [[nodiscard]] Status check() const {
    const index_t nodes = input.graph.nodes();
    if (input.features.nodes() != nodes)
      return Error("labelled graph", "features of " + std::to_string(nodes) + " nodes",
                   std::to_string(input.features.nodes()));
    if (static_cast<index_t>(labels.size()) != nodes)
      return Error("labelled graph", std::to_string(nodes) + " labels", std::to_string(labels.size()));
    if (classes < 1 || classes > 256) return Error("labelled graph", "1 to 256 classes", std::to_string(classes));
    for (const std::uint8_t label : labels)
      if (label >= classes)
        return Error("labelled graph", "labels below " + std::to_string(classes), std::to_string(label));
    if (train.empty()) return Error("labelled graph", "at least one node to learn from", "none");
    std::vector<bool> taken(static_cast<std::size_t>(nodes), false);
    for (const auto* part : {&train, &val, &test})
      for (const GraphIndex node : *part) {
        if (node < 0 || node >= nodes)
          return Error("labelled graph", "nodes below " + std::to_string(nodes) + " in the split",
                       std::to_string(node));
        if (taken[static_cast<std::size_t>(node)])
          return Error("labelled graph", "each node once in the split", "node " + std::to_string(node) + " again");
        taken[static_cast<std::size_t>(node)] = true;
      }
    return success();
  }
};

struct NodeClassificationOptions {
  /// Steps that a recipe counts as an epoch; each sees the whole graph. It sets the unit of a recipe's lengths and how
  /// often masks are chosen.
  index_t steps_per_epoch = 10;
  /// Distillation on all nodes, whose features and edges the network sees anyway (transductive learning); otherwise
  /// on the training nodes only. Labels are used of training nodes only, in either case.
  bool distil_all_nodes = true;
};

/// A task of `fit` for networks of a `GraphInput`.
template <class Scalar_>
class NodeClassification {
 public:
  using Scalar = Scalar_;

  /// `data` has to outlive the task. Raises: what `LabelledGraph::check` finds, no step an epoch.
  explicit NodeClassification(const LabelledGraph& data, const NodeClassificationOptions& options = {})
      : data_(data), options_(options) {
    (void)data.check().value();
    if (options.steps_per_epoch < 1)
      raise(Error("node classification", "at least 1 step an epoch", std::to_string(options.steps_per_epoch)));
  }
  explicit NodeClassification(const LabelledGraph&&,
                              const NodeClassificationOptions& = {}) = delete;  // it would not outlive the task

  /// A sample is a pass over the graph: recipes of this task have a batch of 1.
  [[nodiscard]] index_t size() const noexcept { return options_.steps_per_epoch; }
  [[nodiscard]] std::string fingerprint() const {
    Fingerprint hash;
    hash.add_all(data_.input.graph.sources());
    hash.add_all(data_.input.graph.targets());
    hash.add_all(data_.input.features.indices());
    for (const float value : data_.input.features.values()) hash.add(std::llround(static_cast<double>(value) * 1e6));
    hash.add_all(data_.labels);
    hash.add_all(data_.train);
    return std::to_string(data_.input.graph.nodes()) + " nodes, " + hash.text() + ", steps " +
           std::to_string(options_.steps_per_epoch) + ", distil all " + std::to_string(options_.distil_all_nodes);
  }

  void load(std::span<const std::uint32_t> /*indices*/, std::uint64_t /*seed*/) noexcept {}

  /// The network's logits for all nodes. Raises: a network with fewer outputs than there are classes.
  template <class Network>
  [[nodiscard]] Tensor<Scalar> run(const Network& network, Context<Scalar>& context) const {
    Tensor<Scalar> logits = network(context, data_.input);
    detail::require_outputs(logits, data_.classes);
    return logits;
  }

  /// `weight` times the mean cross entropy of the training nodes; with a teacher, whose logits these are for all
  /// nodes, `share` of the loss is distillation.
  double loss(const Tensor<Scalar>& logits, std::span<const Scalar> teacher, double share, double temperature,
              double weight) const {
    if (teacher.empty()) share = 0;
    double sum = 0;
    if (share < 1) sum += cross_entropy(logits, data_.train, weight * (1 - share));
    if (share > 0 && options_.distil_all_nodes) sum += distillation(logits, teacher, temperature, weight * share);
    if (share > 0 && !options_.distil_all_nodes)
      sum += distil(logits, teacher, data_.train, temperature, weight * share);
    return sum;
  }

  /// Mean cross entropy of `nodes`; with `weight` above 0 its derivative is added to the logits' gradient, `weight`
  /// times. Precondition: some nodes.
  double cross_entropy(const Tensor<Scalar>& logits, std::span<const GraphIndex> nodes, double weight) const {
    double sum = 0;
    const auto scale = static_cast<Scalar>(weight / static_cast<double>(nodes.size()));
    for (const GraphIndex node : nodes) {
      const Eigen::Array<Scalar, Eigen::Dynamic, 1> logs = log_softmax(logits.matrix().col(node).array());
      const auto label = static_cast<index_t>(data_.labels[static_cast<std::size_t>(node)]);
      sum -= static_cast<double>(logs[label]);
      if (weight <= 0) continue;
      auto gradient = logits.gradient_matrix();
      gradient.col(node).array() += scale * logs.exp();
      gradient(label, node) -= scale;
    }
    return (weight > 0 ? weight : 1) * sum / static_cast<double>(nodes.size());
  }

  /// Share of `nodes` whose largest logit is that of their label; 0 for no node.
  [[nodiscard]] double accuracy(const Tensor<Scalar>& logits, std::span<const GraphIndex> nodes) const {
    index_t correct = 0;
    for (const GraphIndex node : nodes) {
      index_t best = 0;
      logits.matrix().col(node).maxCoeff(&best);
      correct += static_cast<index_t>(best == static_cast<index_t>(data_.labels[static_cast<std::size_t>(node)]));
    }
    return nodes.empty() ? 0.0 : static_cast<double>(correct) / static_cast<double>(nodes.size());
  }

 private:
  double distil(const Tensor<Scalar>& logits, std::span<const Scalar> teacher, std::span<const GraphIndex> nodes,
                double temperature, double weight) const {
    using Column = Eigen::Array<Scalar, Eigen::Dynamic, 1>;
    const auto t = static_cast<Scalar>(temperature);
    const auto scale = static_cast<Scalar>(weight / static_cast<double>(nodes.size())) * t;
    const index_t outputs = logits.shape().channels;
    auto gradient = logits.gradient_matrix();
    double sum = 0;
    for (const GraphIndex node : nodes) {
      const Eigen::Map<const Column> wanted(teacher.data() + node * outputs, outputs);
      const Column target = log_softmax(wanted / t);
      const Column found = log_softmax(logits.matrix().col(node).array() / t);
      sum += static_cast<double>((target.exp() * (target - found)).sum() * t * t);
      gradient.col(node).array() += scale * (found.exp() - target.exp());
    }
    return weight * sum / static_cast<double>(nodes.size());
  }

  const LabelledGraph& data_;
  NodeClassificationOptions options_;
};

}  // namespace strata::train
