// Graphs and sparse feature matrices: order, self-loops, both directions, and everything that they refuse.
#include <limits>

#include <strata/sparse/graph.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"

namespace {

using strata::Graph;
using strata::GraphEdge;
using strata::GraphIndex;
using strata::SparseFeatures;
using Indices = std::vector<GraphIndex>;

Indices list(std::span<const GraphIndex> view) {
  return {view.begin(), view.end()};
}

std::string message(const strata::Result<Graph>& result) {
  return result ? "" : result.error().what();
}
std::string message(const strata::Result<SparseFeatures>& result) {
  return result ? "" : result.error().what();
}

}  // namespace

TEST_CASE("a graph orders its edges by target and by source") {
  const std::vector<GraphEdge> edges = {{2, 0}, {0, 1}, {1, 0}, {3, 3}};
  const Graph graph = Graph::from_edges(4, edges);
  CHECK(graph.nodes() == 4);
  CHECK(graph.edges() == 4);
  CHECK(list(graph.offsets()) == Indices{0, 2, 3, 3, 4});
  CHECK(list(graph.sources()) == Indices{1, 2, 0, 3});
  CHECK(list(graph.targets()) == Indices{0, 0, 1, 3});
  CHECK(list(graph.outgoing_offsets()) == Indices{0, 1, 2, 3, 4});
  CHECK(list(graph.outgoing()) == Indices{2, 0, 1, 3});
}

TEST_CASE("undirected edges hold in both directions, self-loops are added where there is none") {
  const std::vector<GraphEdge> edges = {{0, 1}, {2, 2}};
  const Graph graph = Graph::from_edges(3, edges, {.undirected = true, .add_self_loops = true});
  CHECK(list(graph.sources()) == Indices{0, 1, 0, 1, 2});
  CHECK(list(graph.offsets()) == Indices{0, 2, 4, 5});
  const Graph plain = Graph::from_edges(3, edges, {.undirected = true});
  CHECK(list(plain.sources()) == Indices{1, 0, 2});
}

TEST_CASE("graphs without nodes or edges") {
  CHECK(Graph().nodes() == 0);
  CHECK(Graph::from_edges(0, {}).edges() == 0);
  CHECK(list(Graph::from_edges(2, {}).offsets()) == Indices{0, 0, 0});
  CHECK(Graph::from_edges(2, {}, {.add_self_loops = true}).edges() == 2);
}

TEST_CASE("bad edges are refused by their number") {
  const auto refused = [](strata::index_t nodes, std::vector<GraphEdge> edges, strata::GraphOptions options = {}) {
    return message(Graph::try_from_edges(nodes, edges, options));
  };
  CHECK(refused(-1, {}).find("graph: expected 0 to") == 0);
  CHECK(refused(strata::index_t{1} << 40, {}).find("graph: expected 0 to") == 0);
  CHECK(refused(0, {{0, 0}}) == "graph: edge 0: expected nodes below 0, found 0");
  CHECK(refused(3, {{0, 1}, {1, 3}}) == "graph: edge 1: expected nodes below 3, found 3");
  CHECK(refused(3, {{0, 1}, {-1, 2}}) == "graph: edge 1: expected nodes below 3, found -1");
  CHECK(refused(3, {{0, 1}, {1, 0}}).empty());
  CHECK(refused(3, {{0, 1}, {1, 2}, {0, 1}}) ==
        "graph: edge 2: expected an edge that is not listed yet, found 0 1, which is edge 0");
  CHECK(refused(3, {{0, 1}, {1, 0}}, {.undirected = true}).find("edge 1: expected an edge that is not listed yet in") !=
        std::string::npos);
  CHECK(refused(3, {{1, 1}, {1, 1}}, {.undirected = true}).find("edge 1") != std::string::npos);
  CHECK_THROWS_AS(Graph::from_edges(1, std::vector<GraphEdge>{{0, 1}}), strata::Error);
}

TEST_CASE("sparse features know their entries by node and by feature") {
  const auto x = SparseFeatures::from_csr(4, {0, 2, 2, 3}, {1, 3, 1}, {2.0F, -6.0F, 5.0F});
  CHECK(x.nodes() == 3);
  CHECK(x.features() == 4);
  CHECK(x.entries() == 3);
  CHECK(list(x.feature_offsets()) == Indices{0, 0, 2, 2, 3});
  CHECK(list(x.by_feature()) == Indices{0, 2, 1});
  CHECK(list(x.rows()) == Indices{0, 0, 2});
  const auto y = x.row_normalised();
  CHECK(y.values()[0] == 0.25F);
  CHECK(y.values()[1] == -0.75F);
  CHECK(y.values()[2] == 1.0F);
  CHECK(x.values()[0] == 2.0F);
  CHECK(SparseFeatures().nodes() == 0);
  CHECK(SparseFeatures::from_csr(0, {0, 0}, {}).nodes() == 1);
  CHECK(SparseFeatures::from_csr(2, {0, 1}, {1}).values()[0] == 1.0F);
}

TEST_CASE("bad sparse features are refused by row") {
  const auto refused = [](strata::index_t features, Indices offsets, Indices indices, std::vector<float> values = {}) {
    return message(SparseFeatures::try_from_csr(features, std::move(offsets), std::move(indices), std::move(values)));
  };
  CHECK(refused(-1, {0}, {}).find("columns") != std::string::npos);
  CHECK(refused(2, {}, {}).find("offsets from 0 to 0") != std::string::npos);
  CHECK(refused(2, {1, 1}, {0}).find("offsets from 0 to 1") != std::string::npos);
  CHECK(refused(2, {0, 2}, {0}).find("offsets from 0 to 1") != std::string::npos);
  CHECK(refused(2, {0, 2, 1, 2}, {0, 1}).find("row 1: expected offsets that do not fall") != std::string::npos);
  CHECK(refused(2, {0, 5, 2}, {0, 1}).find("row 0: expected offsets") != std::string::npos);
  CHECK(refused(2, {0, 1}, {2}) == "features: row 0: expected features below 2, found 2");
  CHECK(refused(2, {0, 1}, {-1}) == "features: row 0: expected features below 2, found -1");
  CHECK(refused(3, {0, 0, 2}, {1, 1}) == "features: row 1: expected ascending features, found 1 after 1");
  CHECK(refused(3, {0, 2}, {0, 1}, {1.0F}).find("2 values") != std::string::npos);
  CHECK(refused(3, {0, 1}, {0}, {std::numeric_limits<float>::quiet_NaN()}).find("finite") != std::string::npos);
}

TEST_CASE("memory that cannot be had for a graph or for features is an error") {
  const FailingAllocations failing(std::size_t{1} << 20);
  CHECK(Graph::try_from_edges(1 << 20, {}, {.add_self_loops = true}).error().where() == "memory");
  CHECK(SparseFeatures::try_from_csr(1 << 20, {0}, {}).error().where() == "memory");
}
