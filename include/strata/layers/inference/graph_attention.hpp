// Graph attention layer of the inference family: its stored parameters and the two steps of a run (projection with
// scores, fused attention), both spread over threads by nodes.
#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <strata/core/types.hpp>
#include <strata/kernels/graph_attention.hpp>
#include <strata/layers/context.hpp>
#include <strata/layers/graph_attention.hpp>
#include <strata/layers/inference/node_features.hpp>
#include <strata/layers/parameters.hpp>
#include <strata/sparse/graph.hpp>

namespace strata::inference {

namespace detail {

/// Zeroed numbers of a layer's own, 64-byte aligned.
template <class Scalar>
class AlignedArray {
 public:
  AlignedArray() = default;
  explicit AlignedArray(index_t size)
      : data_(static_cast<Scalar*>(
            ::operator new (static_cast<std::size_t>(size) * sizeof(Scalar), std::align_val_t{64}))) {
    std::fill(data_.get(), data_.get() + size, Scalar{0});
  }
  [[nodiscard]] Scalar* get() const noexcept { return data_.get(); }

 private:
  struct Free {
    void operator()(Scalar* memory) const { ::operator delete (memory, std::align_val_t{64}); }
  };
  std::unique_ptr<Scalar, Free> data_;
};

}  // namespace detail

/// The stored parameters of one graph attention layer. Level-sorted arrays are used where they lie; a dense matrix is
/// copied once into the kernel's order.
template <class Scalar, class Arch>
class GraphAttentionWeights {
 public:
  using Matrix = LeveledCsr<Scalar, LinearIndex>;

  /// What the archive holds under `name`: `lin.weight` (dense [heads * out_features, in_features] or level-sorted, by
  /// feature for sparse input), `att_src` and `att_dst` (dense [1, heads, out_features] or level-sorted), `bias`.
  void load(const std::string& name, const GraphAttentionOptions& options, ParameterSource& source) {
    constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
    layout_ = kernels::HeadLayout::make(options.heads, options.out_features, lanes);
    const index_t outputs = options.heads * options.out_features;
    const std::string weight = name + ".lin.weight";
    levels_ = source.levels();
    is_sparse_ = source.has(weight + ".shape");
    dense_size_ = outputs * options.in_features;
    if (is_sparse_) {
      const bool by_feature = options.sparse_input;
      sparse_ = source.leveled_csr<Scalar, LinearIndex>(weight, by_feature ? options.in_features : outputs,
                                                        by_feature ? outputs : options.in_features);
    } else {
      const auto values = source.array<Scalar>(weight, {outputs, options.in_features});
      if (values.empty()) return;  // `source` has the error
      dense_ = detail::AlignedArray<Scalar>(options.in_features * layout_.row);
      for (index_t head = 0; head < options.heads; ++head)
        for (index_t channel = 0; channel < options.out_features; ++channel)
          for (index_t f = 0; f < options.in_features; ++f)
            dense_.get()[f * layout_.row + layout_.position(head, channel)] =
                values[static_cast<std::size_t>((head * options.out_features + channel) * options.in_features + f)];
    }
    load_vector(name + ".att_src", options, source, source_);
    load_vector(name + ".att_dst", options, source, target_);
    has_bias_ = options.bias;
    if (!options.bias) return;
    const auto bias = source.array<Scalar>(name + ".bias", {options.output_features()});
    if (bias.empty()) return;
    bias_ = detail::AlignedArray<Scalar>(std::max(layout_.row, options.output_features()));
    for (std::size_t i = 0; i < bias.size(); ++i) {
      const auto o = static_cast<index_t>(i);
      bias_.get()[options.concat ? layout_.position(o / options.out_features, o % options.out_features) : o] = bias[i];
    }
  }

  [[nodiscard]] bool is_sparse() const noexcept { return is_sparse_; }
  [[nodiscard]] const Matrix& sparse() const noexcept { return sparse_; }
  [[nodiscard]] const Scalar* dense() const noexcept { return dense_.get(); }
  [[nodiscard]] const Scalar* bias() const noexcept { return has_bias_ ? bias_.get() : nullptr; }
  [[nodiscard]] const kernels::HeadLayout& layout() const noexcept { return layout_; }

  /// The attention vectors of `level` in the kernel's order, for one run. Preconditions: [layout().row] each.
  void attention_vectors(Level level, Scalar* source, Scalar* target) const noexcept {
    expand(source_, level, source);
    expand(target_, level, target);
  }

  /// Weights that `level` holds, attention vectors included.
  [[nodiscard]] index_t nnz(Level level) const noexcept {
    return (is_sparse_ ? sparse_.nnz(level) : dense_size_) + source_.nnz(level) + target_.nnz(level);
  }
  /// Bytes that `level` reads.
  [[nodiscard]] index_t bytes(Level level) const noexcept {
    constexpr auto size = static_cast<index_t>(sizeof(Scalar));
    return (is_sparse_ ? sparse_.bytes(level) : dense_size_ * size) + source_.bytes(level) + target_.bytes(level) +
           (has_bias_ ? layout_.heads * layout_.channels * size : 0);
  }

 private:
  using Vector = LeveledCsr<Scalar, LinearIndex>;  ///< heads x out_features

  static void load_vector(const std::string& name, const GraphAttentionOptions& options, ParameterSource& source,
                          Vector& vector) {
    if (source.has(name + ".shape")) {
      vector = source.leveled_csr<Scalar, LinearIndex>(name, options.heads, options.out_features);
      return;
    }
    const auto values = source.array<Scalar>(name, {1, options.heads, options.out_features});
    if (values.empty()) return;
    Result<Vector> made = Vector::try_from_dense(values, StratumMap(options.heads, options.out_features),
                                                 linear_block_columns(options.out_features));
    if (!made) {
      source.fail(made.error().within(name));
    } else {
      vector = std::move(made).value();
    }
  }

  void expand(const Vector& vector, Level level, Scalar* target) const noexcept {
    std::fill(target, target + layout_.row, Scalar{0});
    vector.for_each(
        level, [&](index_t head, index_t channel, Scalar value) { target[layout_.position(head, channel)] = value; });
  }

  int levels_ = 1;
  bool is_sparse_ = false;
  bool has_bias_ = false;
  index_t dense_size_ = 0;
  kernels::HeadLayout layout_;
  Matrix sparse_;
  detail::AlignedArray<Scalar> dense_;
  detail::AlignedArray<Scalar> bias_;
  Vector source_, target_;
};

/// See `GraphAttentionOptions`. Results do not depend on the number of threads.
template <class Scalar, class Arch>
class GraphAttention {
 public:
  static constexpr bool has_parameters = true;

  explicit GraphAttention(const GraphAttentionOptions& options) : options_(options) { require_valid(options); }

  [[nodiscard]] const GraphAttentionOptions& options() const noexcept { return options_; }
  [[nodiscard]] const GraphAttentionWeights<Scalar, Arch>& weights() const noexcept { return weights_; }

  void load(const std::string& name, const std::string& /*norm_name*/, ParameterSource& source) {
    name_ = name;
    weights_.load(name, options_, source);
  }

  /// Precondition: the layer's options say `sparse_input`.
  [[nodiscard]] NodeFeatures<Scalar> operator()(InferenceContext<Scalar, Arch>& context, const SparseFeatures& x,
                                                const Graph& graph) const {
    if (!check(context, true, x.nodes(), x.features(), graph))
      return {context.arena(), graph.nodes(), options_.output_features(), context.lanes};
    const kernels::HeadLayout& layout = weights_.layout();
    Block row_block;
    Block place_block;
    const Scalar* rows = weights_.dense();
    if (weights_.is_sparse()) {
      row_block = take<Scalar>(context, (x.features() + 1) * layout.row);
      place_block = take<GraphIndex>(context, x.features());
      kernels::expand_by_feature(weights_.sparse(), context.level(), layout, as<Scalar>(row_block),
                                 as<GraphIndex>(place_block));
      rows = as<Scalar>(row_block);
    }
    const GraphIndex* const row_of = as<GraphIndex>(place_block);  // null: a row a feature
    return run(context, graph, [&](index_t first, index_t last, Scalar* h) {
      kernels::project_sparse<Arch>(x, first, last, rows, row_of, layout, h);
    });
  }
  /// Precondition: the layer's options do not say `sparse_input`.
  [[nodiscard]] NodeFeatures<Scalar> operator()(InferenceContext<Scalar, Arch>& context, const NodeFeatures<Scalar>& x,
                                                const Graph& graph) const {
    if (!check(context, false, x.nodes(), x.features(), graph))
      return {context.arena(), graph.nodes(), options_.output_features(), context.lanes};
    const kernels::HeadLayout& layout = weights_.layout();
    const Block place_block = take<GraphIndex>(context, x.features());
    auto* const places = as<GraphIndex>(place_block);
    for (index_t f = 0; f < x.features(); ++f) places[f] = static_cast<GraphIndex>(x.place(f));
    Block row_block;
    const Scalar* rows = weights_.dense();
    if (weights_.is_sparse()) {
      row_block = take<Scalar>(context, x.features() * layout.row);
      kernels::expand_by_output(weights_.sparse(), context.level(), layout, as<Scalar>(row_block));
      rows = as<Scalar>(row_block);
    }
    return run(context, graph, [&](index_t first, index_t last, Scalar* h) {
      kernels::project_dense<Arch>(x.data(), x.pitch(), places, x.features(), first, last, rows, layout, h);
    });
  }

 private:
  template <class T>
  [[nodiscard]] static Block take(InferenceContext<Scalar, Arch>& context, index_t count) {
    return context.arena().take(count * static_cast<index_t>(sizeof(T)));
  }
  template <class T>
  [[nodiscard]] static T* as(const Block& block) noexcept {
    return reinterpret_cast<T*>(block.data());
  }
  /// Nodes are cut into so many parts: several a thread, since they differ in degree.
  [[nodiscard]] static index_t tasks(InferenceContext<Scalar, Arch>& context) noexcept {
    const auto threads = static_cast<index_t>(context.executor().threads());
    return threads == 1 ? 1 : 4 * threads;
  }

  [[nodiscard]] bool check(InferenceContext<Scalar, Arch>& context, bool sparse, index_t nodes, index_t features,
                           const Graph& graph) const {
    if (!context.check(!name_.empty(), [&] {
          return strata::detail::left_out(
              {"a graph attention of ", options_.in_features, " to ", options_.output_features(), " features"});
        }))
      return false;
    return context.check(
        sparse == options_.sparse_input && nodes == graph.nodes() && features == options_.in_features, [&] {
          const auto kind = [](bool is_sparse) { return is_sparse ? " sparse" : " dense"; };
          return Error({name_}, {graph.nodes(), " x ", options_.in_features, kind(options_.sparse_input), " features"},
                       {nodes, " x ", features, kind(sparse)});
        });
  }

  template <class Project>
  [[nodiscard]] NodeFeatures<Scalar> run(InferenceContext<Scalar, Arch>& context, const Graph& graph,
                                         const Project& project) const {
    const kernels::HeadLayout& layout = weights_.layout();
    constexpr auto size = static_cast<index_t>(sizeof(Scalar));
    const index_t nodes = graph.nodes();
    const bool concat = options_.concat || layout.heads == 1;  // the mean over one head is that head
    NodeFeatures<Scalar> y = concat ? NodeFeatures<Scalar>(context.arena(), nodes, options_.output_features(),
                                                           layout.row, layout.channels, layout.period)
                                    : NodeFeatures<Scalar>(context.arena(), nodes, layout.channels, context.lanes);
    const Block h_block = take<Scalar>(context, nodes * layout.row);
    const Block source_block = take<Scalar>(context, nodes * layout.score);
    const Block target_block = take<Scalar>(context, nodes * layout.score);
    const Block vector_block = take<Scalar>(context, 2 * layout.row + layout.score);
    auto* const h = as<Scalar>(h_block);
    auto* const source_scores = as<Scalar>(source_block);
    auto* const target_scores = as<Scalar>(target_block);
    auto* const vectors = as<Scalar>(vector_block);
    weights_.attention_vectors(context.level(), vectors, vectors + layout.row);

    const index_t tasks = this->tasks(context);
    const index_t scratch_size = round_up(kernels::attention_scratch<Arch, Scalar>(layout), Block::alignment / size);
    const Block scratch_block = take<Scalar>(context, tasks * scratch_size);
    context.executor().parallel_for(tasks, [&](index_t task) {
      // A few nodes at a time, so that scores find their rows in the L1 cache.
      constexpr index_t step = 32;
      const index_t end = (task + 1) * nodes / tasks;
      for (index_t first = task * nodes / tasks; first < end; first += step) {
        const index_t last = std::min(first + step, end);
        project(first, last, h);
        kernels::attention_scores<Arch>(first, last, h, layout, vectors, vectors + layout.row, source_scores,
                                        target_scores);
      }
    });
    auto* const largest = vectors + 2 * layout.row;
    kernels::largest_scores<Arch>(nodes, layout, source_scores, largest);
    kernels::AttentionOutput<Scalar> output{concat, weights_.bias(), options_.activation, y.data(), y.pitch()};
    const auto slope = static_cast<Scalar>(options_.negative_slope);
    const auto first_node = [&](index_t task) {  // cuts nodes and edges together into equal parts
      const auto offsets = graph.offsets();
      const index_t wanted = task * (nodes + graph.edges()) / tasks;
      index_t low = 0;
      for (index_t high = nodes; low < high;) {
        const index_t middle = low + (high - low) / 2;
        if (middle + offsets[static_cast<std::size_t>(middle)] < wanted) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      return low;
    };
    context.executor().parallel_for(tasks, [&](index_t task) {
      kernels::graph_attention<Arch>(graph, first_node(task), task + 1 == tasks ? nodes : first_node(task + 1), layout,
                                     h, source_scores, target_scores, largest, slope, output,
                                     as<Scalar>(scratch_block) + task * scratch_size);
    });
    return y;
  }

  GraphAttentionOptions options_;
  std::string name_;  ///< empty before `load`
  GraphAttentionWeights<Scalar, Arch> weights_;
};

}  // namespace strata::inference
