// What graph layers read beside node features: a directed graph and a sparse feature matrix, checked once when they are
// made and shared by both module families. Reading files is the host program's business.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>

namespace strata {

/// Index of a node, an edge or a feature.
using GraphIndex = std::int32_t;

/// The edge along which `target` hears `source`.
struct GraphEdge {
  GraphIndex source = 0;
  GraphIndex target = 0;

  friend constexpr bool operator==(const GraphEdge&, const GraphEdge&) = default;
};

struct GraphOptions {
  bool undirected = false;      ///< every edge holds in both directions and is listed in one of them only
  bool add_self_loops = false;  ///< gives a self-loop to every node that does not have one
};

/// A directed graph of `nodes()` nodes, immutable; copies share the arrays. Edges are numbered target by target, within
/// a target by ascending source: incoming edges of node i are offsets()[i] .. offsets()[i + 1] - 1.
class Graph {
 public:
  /// No node.
  Graph() : Graph(build(0, {}).value()) {}

  /// Errors: more nodes or edges than `GraphIndex` counts, an end that is no node, an edge listed twice (names both
  /// numbers of the edge in `edges`).
  [[nodiscard]] static Result<Graph> try_from_edges(index_t nodes, std::span<const GraphEdge> edges,
                                                    const GraphOptions& options = {}) {
    return returning_errors([&]() -> Result<Graph> {
      constexpr index_t most = std::numeric_limits<GraphIndex>::max();
      if (nodes < 0 || nodes > most) return Error({"graph"}, {"0 to ", most, " nodes"}, {nodes});
      if (2 * static_cast<index_t>(edges.size()) + nodes > most)
        return Error({"graph"}, {"at most ", most, " edges"}, {edges.size()});
      struct Numbered {
        GraphEdge edge;
        std::size_t number;
      };
      std::vector<Numbered> list;
      list.reserve(edges.size() * (options.undirected ? 2 : 1));
      std::vector<bool> looped(options.add_self_loops ? static_cast<std::size_t>(nodes) : 0, false);
      for (std::size_t i = 0; i < edges.size(); ++i) {
        const GraphEdge edge = edges[i];
        for (const GraphIndex end : {edge.source, edge.target})
          if (end < 0 || end >= nodes) return Error({"graph: edge ", i}, {"nodes below ", nodes}, {end});
        list.push_back({edge, i});
        if (edge.source == edge.target) {
          if (options.add_self_loops) looped[static_cast<std::size_t>(edge.source)] = true;
        } else if (options.undirected) {
          list.push_back({{edge.target, edge.source}, i});
        }
      }
      const auto before = [](const Numbered& a, const Numbered& b) {
        if (a.edge.target != b.edge.target) return a.edge.target < b.edge.target;
        return a.edge.source != b.edge.source ? a.edge.source < b.edge.source : a.number < b.number;
      };
      std::sort(list.begin(), list.end(), before);
      for (std::size_t i = 1; i < list.size(); ++i)
        if (list[i].edge == list[i - 1].edge)
          return Error({"graph: edge ", list[i].number},
                       {"an edge that is not listed yet",
                        options.undirected ? " in either direction (the graph is undirected)" : ""},
                       {list[i].edge.source, " ", list[i].edge.target, ", which is edge ", list[i - 1].number});
      std::vector<GraphEdge> sorted;
      sorted.reserve(list.size());
      for (const Numbered& numbered : list) sorted.push_back(numbered.edge);
      for (std::size_t i = 0; i < looped.size(); ++i)
        if (!looped[i]) sorted.push_back({static_cast<GraphIndex>(i), static_cast<GraphIndex>(i)});
      std::sort(sorted.begin(), sorted.end(), [](const GraphEdge& a, const GraphEdge& b) {
        return a.target != b.target ? a.target < b.target : a.source < b.source;
      });
      return build(nodes, sorted);
    });
  }

  /// As `try_from_edges`; raises the error.
  [[nodiscard]] static Graph from_edges(index_t nodes, std::span<const GraphEdge> edges,
                                        const GraphOptions& options = {}) {
    return std::move(try_from_edges(nodes, edges, options)).value();
  }

  [[nodiscard]] index_t nodes() const noexcept { return static_cast<index_t>(arrays_->offsets.size()) - 1; }
  /// Directed edges, self-loops included.
  [[nodiscard]] index_t edges() const noexcept { return static_cast<index_t>(arrays_->sources.size()); }

  /// nodes() + 1 entries: where the incoming edges of each node start.
  [[nodiscard]] std::span<const GraphIndex> offsets() const noexcept { return arrays_->offsets; }
  /// Source and target of each edge.
  [[nodiscard]] std::span<const GraphIndex> sources() const noexcept { return arrays_->sources; }
  [[nodiscard]] std::span<const GraphIndex> targets() const noexcept { return arrays_->targets; }

  /// The same edges source by source, for the way back of training: the edges that leave node i are
  /// outgoing()[outgoing_offsets()[i]] .. , by ascending target.
  [[nodiscard]] std::span<const GraphIndex> outgoing_offsets() const noexcept { return arrays_->outgoing_offsets; }
  [[nodiscard]] std::span<const GraphIndex> outgoing() const noexcept { return arrays_->outgoing; }

 private:
  struct Arrays {
    std::vector<GraphIndex> offsets, sources, targets, outgoing_offsets, outgoing;
  };

  explicit Graph(std::shared_ptr<const Arrays> arrays) : arrays_(std::move(arrays)) {}

  /// Precondition: `edges` are valid, sorted and without duplicates.
  [[nodiscard]] static Result<Graph> build(index_t nodes, const std::vector<GraphEdge>& edges) {
    auto arrays = std::make_shared<Arrays>();
    arrays->offsets.assign(static_cast<std::size_t>(nodes) + 1, 0);
    arrays->outgoing_offsets = arrays->offsets;
    for (const GraphEdge& edge : edges) {
      arrays->sources.push_back(edge.source);
      arrays->targets.push_back(edge.target);
      ++arrays->offsets[static_cast<std::size_t>(edge.target) + 1];
      ++arrays->outgoing_offsets[static_cast<std::size_t>(edge.source) + 1];
    }
    std::partial_sum(arrays->offsets.begin(), arrays->offsets.end(), arrays->offsets.begin());
    std::partial_sum(arrays->outgoing_offsets.begin(), arrays->outgoing_offsets.end(),
                     arrays->outgoing_offsets.begin());
    arrays->outgoing.resize(edges.size());
    std::vector<GraphIndex> next(arrays->outgoing_offsets.begin(), arrays->outgoing_offsets.end() - 1);
    for (std::size_t e = 0; e < edges.size(); ++e)
      arrays->outgoing[static_cast<std::size_t>(next[static_cast<std::size_t>(edges[e].source)]++)] =
          static_cast<GraphIndex>(e);
    return Graph(std::move(arrays));
  }

  std::shared_ptr<const Arrays> arrays_;
};

/// A sparse nodes x features matrix in CSR, immutable; copies share the arrays. Entries are numbered row by row, within
/// a row by ascending feature. Values are kept in float whatever the family computes in.
class SparseFeatures {
 public:
  /// 0 x 0.
  SparseFeatures() : SparseFeatures(0, std::make_shared<Arrays>()) {}

  /// `offsets`: rows + 1 entries; `indices`: the feature of each entry; `values`: one an entry, or none if all are 1.
  /// Errors: offsets that do not start at 0, fall or do not end at the number of entries; features outside 0 ..
  /// features-1 or not ascending within a row (names the row); values that are not finite.
  [[nodiscard]] static Result<SparseFeatures> try_from_csr(index_t features, std::vector<GraphIndex> offsets,
                                                           std::vector<GraphIndex> indices,
                                                           std::vector<float> values = {}) {
    return returning_errors([&]() -> Result<SparseFeatures> {
      constexpr auto most = static_cast<std::size_t>(std::numeric_limits<GraphIndex>::max());
      if (features < 0 || static_cast<std::size_t>(features) > most)
        return Error({"features"}, {"0 to ", most, " columns"}, {features});
      if (indices.size() > most) return Error({"features"}, {"at most ", most, " entries"}, {indices.size()});
      if (values.empty()) values.assign(indices.size(), 1.0F);
      if (values.size() != indices.size())
        return Error({"features"}, {indices.size(), " values, one an entry"}, {values.size()});
      if (offsets.empty() || offsets.front() != 0 || static_cast<std::size_t>(offsets.back()) != indices.size())
        return Error({"features"}, {"offsets from 0 to ", indices.size()}, {"others"});
      for (std::size_t row = 0; row + 1 < offsets.size(); ++row)
        if (offsets[row + 1] < offsets[row] || static_cast<std::size_t>(offsets[row + 1]) > indices.size())
          return Error({"features: row ", row}, {"offsets that do not fall"}, {"others"});
      for (std::size_t row = 0; row + 1 < offsets.size(); ++row)
        for (auto k = static_cast<std::size_t>(offsets[row]); k < static_cast<std::size_t>(offsets[row + 1]); ++k) {
          if (indices[k] < 0 || indices[k] >= features)
            return Error({"features: row ", row}, {"features below ", features}, {indices[k]});
          if (k > static_cast<std::size_t>(offsets[row]) && indices[k] <= indices[k - 1])
            return Error({"features: row ", row}, {"ascending features"}, {indices[k], " after ", indices[k - 1]});
          if (!(values[k] - values[k] == 0.0F)) return Error({"features: row ", row}, {"finite values"}, {"another"});
        }
      auto arrays = std::make_shared<Arrays>();
      arrays->offsets = std::move(offsets);
      arrays->indices = std::move(indices);
      arrays->values = std::move(values);
      arrays->transpose(features);
      return SparseFeatures(features, std::move(arrays));
    });
  }

  /// As `try_from_csr`; raises the error.
  [[nodiscard]] static SparseFeatures from_csr(index_t features, std::vector<GraphIndex> offsets,
                                               std::vector<GraphIndex> indices, std::vector<float> values = {}) {
    return std::move(try_from_csr(features, std::move(offsets), std::move(indices), std::move(values))).value();
  }

  /// The same entries, each divided by the sum of its row's absolute values; rows of zeros stay.
  [[nodiscard]] SparseFeatures row_normalised() const {
    auto arrays = std::make_shared<Arrays>(*arrays_);
    for (std::size_t row = 0; row + 1 < arrays->offsets.size(); ++row) {
      const auto first = arrays->values.begin() + arrays->offsets[row];
      const auto last = arrays->values.begin() + arrays->offsets[row + 1];
      const float sum = std::accumulate(first, last, 0.0F, [](float a, float b) { return a + (b < 0 ? -b : b); });
      if (sum > 0) std::transform(first, last, first, [sum](float value) { return value / sum; });
    }
    return SparseFeatures(features_, std::move(arrays));
  }

  [[nodiscard]] index_t nodes() const noexcept { return static_cast<index_t>(arrays_->offsets.size()) - 1; }
  [[nodiscard]] index_t features() const noexcept { return features_; }
  [[nodiscard]] index_t entries() const noexcept { return static_cast<index_t>(arrays_->indices.size()); }

  [[nodiscard]] std::span<const GraphIndex> offsets() const noexcept { return arrays_->offsets; }
  [[nodiscard]] std::span<const GraphIndex> indices() const noexcept { return arrays_->indices; }
  [[nodiscard]] std::span<const float> values() const noexcept { return arrays_->values; }

  /// The same entries feature by feature: feature f has the entries numbered by_feature()[feature_offsets()[f]] .., by
  /// ascending node.
  [[nodiscard]] std::span<const GraphIndex> feature_offsets() const noexcept { return arrays_->feature_offsets; }
  [[nodiscard]] std::span<const GraphIndex> by_feature() const noexcept { return arrays_->by_feature; }
  /// The node of each entry.
  [[nodiscard]] std::span<const GraphIndex> rows() const noexcept { return arrays_->rows; }

 private:
  struct Arrays {
    std::vector<GraphIndex> offsets = {0}, indices;
    std::vector<float> values;
    std::vector<GraphIndex> feature_offsets = {0}, by_feature, rows;

    void transpose(index_t features) {
      feature_offsets.assign(static_cast<std::size_t>(features) + 1, 0);
      for (const GraphIndex feature : indices) ++feature_offsets[static_cast<std::size_t>(feature) + 1];
      std::partial_sum(feature_offsets.begin(), feature_offsets.end(), feature_offsets.begin());
      std::vector<GraphIndex> next(feature_offsets.begin(), feature_offsets.end() - 1);
      by_feature.resize(indices.size());
      rows.resize(indices.size());
      for (std::size_t row = 0; row + 1 < offsets.size(); ++row)
        for (GraphIndex k = offsets[row]; k < offsets[row + 1]; ++k) {
          const auto at = static_cast<std::size_t>(k);
          rows[at] = static_cast<GraphIndex>(row);
          by_feature[static_cast<std::size_t>(next[static_cast<std::size_t>(indices[at])]++)] = k;
        }
    }
  };

  SparseFeatures(index_t features, std::shared_ptr<const Arrays> arrays)
      : features_(features), arrays_(std::move(arrays)) {}

  index_t features_ = 0;
  std::shared_ptr<const Arrays> arrays_;
};

/// The input of a graph network: one row of features for each node of the graph.
struct GraphInput {
  Graph graph;
  SparseFeatures features;
};

}  // namespace strata
