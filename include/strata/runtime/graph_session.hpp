// One thread's way to run a graph network: the graph, its features, the output, the arena and the threads. After
// construction a run neither allocates nor throws. runtime/session.hpp is the same for pictures and vectors.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/executor.hpp>
#include <strata/core/types.hpp>
#include <strata/runtime/model.hpp>
#include <strata/runtime/sample_run.hpp>
#include <strata/runtime/thread_pool.hpp>
#include <strata/sparse/graph.hpp>

namespace strata {

struct GraphSessionOptions {
  int threads = 1;               ///< threads of the session's own pool, the calling one included
  Executor* executor = nullptr;  ///< threads of the host program instead; has to outlive the session
};

/// Runs a model on one graph at a level chosen per call: all nodes at once. A session belongs to one thread at a time;
/// several sessions may run the same model at once.
template <class Model>
class GraphSession {
 public:
  using Family = typename Model::Family;
  using Scalar = typename Family::Scalar;
  using Context = typename Family::Context;

  /// Runs every level once: shapes are checked and the arena gets all memory it will need.
  /// Raises: threads below 1, a graph, features and model that do not fit together (names the layer).
  GraphSession(Model model, GraphInput input, const GraphSessionOptions& options = {})
      : model_(std::move(model)),
        pool_(options.executor == nullptr ? std::make_unique<ThreadPool>(options.threads) : nullptr),
        executor_(options.executor == nullptr ? *pool_ : *options.executor) {
    if (options.threads < 1) raise(Error("graph session", "at least 1 thread", options.threads));
    set_input(std::move(input));
  }

  [[nodiscard]] const Model& model() const noexcept { return model_; }
  [[nodiscard]] const GraphInput& input() const noexcept { return input_; }
  /// For stage hooks.
  [[nodiscard]] Context& context() noexcept { return *context_; }

  /// Another graph or other features from now on; allocates, and forgets stage hooks. Raises: as the constructor, and
  /// then the session stays as it was.
  void set_input(GraphInput input) {
    auto context = std::make_unique<Context>(executor_);
    std::vector<Scalar> output;
    context->set_checking(true);
    do {
      for (int level = 0; level < model_.levels(); ++level) {
        context->set_level(Level{level});
        const auto y = model_.network()(*context, input);
        if (context->error()) raise(*context->error());
        output.resize(static_cast<std::size_t>(y.nodes() * y.features()));
      }
    } while (context->arena().unite());
    context->set_checking(false);
    model_.residency().forget_absent();
    input_ = std::move(input);
    context_ = std::move(context);
    output_ = std::move(output);
  }

  /// The level of the last run: below the one asked for if that one's memory was not there.
  [[nodiscard]] Level level() const noexcept { return level_; }
  /// The output of the last run, nodes x features row-major.
  [[nodiscard]] std::span<const Scalar> output() const noexcept { return output_; }

  /// Runs `level`, or the highest one present below it. Neither allocates nor throws nor locks (beyond what the
  /// executor does). Precondition: 0 <= level.index < model().levels().
  std::span<const Scalar> forward(Level level) noexcept {
    const LevelGuard guard(model_.residency(), level);
    level_ = guard.level();
    context_->set_level(level_);
    write_rows(model_.network()(*context_, input_), output_.data());
    return output_;
  }

  /// `forward`; the result stays valid until the next run. Raises: a level that the model does not have.
  std::span<const Scalar> run(Level level) {
    if (level.index < 0 || level.index >= model_.levels())
      raise(Error({"level"}, {"0 to ", model_.levels() - 1}, {level.index}));
    return forward(level);
  }

 private:
  Model model_;
  GraphInput input_;
  std::unique_ptr<ThreadPool> pool_;
  Executor& executor_;
  std::unique_ptr<Context> context_;
  std::vector<Scalar> output_;
  Level level_;
};

/// A network that a `GraphSession` runs.
template <class Network, class Context>
concept GraphNetwork = requires(const Network& network, Context& context, const GraphInput& input) {
  network(context, input);
};

/// A few nodes, each with a few features, in a ring with chords. The network's config tells the number of `features`.
template <class Model>
requires GraphNetwork<typename Model::Network, typename Model::Family::Context>
class SampleRun<Model> {
 public:
  using Scalar = typename Model::Family::Scalar;

  explicit SampleRun(Model model) : model_(std::move(model)), features_(model_.network().config().features) {
    const index_t each = std::min<index_t>(features_, 6);  // of a node
    for (GraphIndex node = 0; node < nodes; ++node) {
      edges_.insert(edges_.end(), {node, (node + 1) % nodes, node, (node + 3) % nodes});
      offsets_.push_back(static_cast<GraphIndex>(each * (node + 1)));
      for (index_t i = 0; i < each; ++i) indices_.push_back(static_cast<GraphIndex>(i * features_ / each));
    }
    values_.resize(indices_.size());
    sample_numbers(values_);
  }

  /// As in the primary template: ends of edges (source and target), and features in CSR.
  template <class F>
  void visit_input(F&& f) {
    session_.reset();
    f("edges", edges_);
    f("features.offsets", offsets_);
    f("features.indices", indices_);
    f("features.values", values_);
  }

  [[nodiscard]] Result<std::span<const Scalar>> run(Level level) {
    if (!session_)
      if (const Status status = begin(); !status) return status.error();
    return session_->run(level);
  }

 private:
  static constexpr GraphIndex nodes = 7;

  [[nodiscard]] Status begin() {
    std::vector<GraphEdge> edges;
    for (std::size_t i = 0; i < edges_.size(); i += 2) edges.push_back({edges_[i], edges_[i + 1]});
    Result<Graph> graph = Graph::try_from_edges(nodes, edges, {.add_self_loops = true});
    if (!graph) return graph.error();
    Result<SparseFeatures> features = SparseFeatures::try_from_csr(features_, offsets_, indices_, values_);
    if (!features) return features.error();
    session_.emplace(model_, GraphInput{std::move(graph).value(), std::move(features).value()});
    return success();
  }

  Model model_;
  index_t features_;
  std::vector<GraphIndex> edges_, offsets_ = {0}, indices_;
  std::vector<float> values_;
  std::optional<GraphSession<Model>> session_;  ///< none: the input may have changed
};

}  // namespace strata
