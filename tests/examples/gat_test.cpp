// The GAT example: its reader of graphs against well-formed and hostile files, and the stored model's accuracy on a
// fixed set of nodes.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include <strata/io/model_file.hpp>
#include <strata/runtime/graph_session.hpp>
#include <strata/train/graph_attention.hpp>
#include <strata/train/training.hpp>

#include "gat/graph_text.hpp"
#include "gat/network.hpp"
#include "support/catch.hpp"
#include "support/rows.hpp"

namespace {

namespace fs = std::filesystem;

/// A directory with a graph of four nodes; the constructor's arguments replace one file.
class Directory {
 public:
  explicit Directory(const std::string& file = "", const std::string& text = "")
      : path_(fs::temp_directory_path() / ("strata_gat_test" + std::to_string(++number))) {
    fs::create_directories(path_);
    write("labels.txt", "0\n1\n2\n0\n");
    write("features.txt", "0 2\n\n4 1\n3\n");
    write("edges.txt", "0 1\n1 2\n");
    write("split.txt", "train 0\nval 1\ntest 2 3\n");
    if (!file.empty()) write(file, text);
  }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  ~Directory() { fs::remove_all(path_); }

  void write(const std::string& file, const std::string& text) const {
    std::ofstream(path_ / file, std::ios::binary) << text;
  }
  [[nodiscard]] std::string path() const { return path_.string(); }

 private:
  static inline int number = 0;
  fs::path path_;
};

/// The error of reading with one file replaced, without the directory; empty if there is none.
std::string refused(const std::string& file, const std::string& text) {
  const Directory directory(file, text);
  const auto data = gat::read_graph(directory.path());
  if (data) return "";
  const std::string message = data.error().what();
  REQUIRE(message.find(directory.path() + "/") == 0);
  return message.substr(directory.path().size() + 1);
}

}  // namespace

TEST_CASE("a graph in text is read with self-loops, both directions and normalised features") {
  const Directory directory;
  const auto data = gat::read_graph(directory.path()).value();
  CHECK(data.input.graph.nodes() == 4);
  CHECK(data.input.graph.edges() == 8);
  CHECK(data.input.features.features() == 5);
  CHECK(data.input.features.entries() == 5);
  CHECK(data.input.features.values()[0] == 0.5F);
  CHECK(data.input.features.indices()[2] == 1);  // sorted
  CHECK(data.classes == 3);
  CHECK(data.train == std::vector<strata::GraphIndex>{0});
  CHECK(data.test == std::vector<strata::GraphIndex>{2, 3});
  CHECK(refused("labels.txt", "0\r\n1\r\n2\r\n0").empty());
  CHECK(refused("edges.txt", "").empty());
  CHECK(refused("edges.txt", "2 1\n1\t0\n3 3\n").empty());
}

TEST_CASE("malformed graph files are refused by file and line") {
  CHECK(refused("labels.txt", "") == "labels.txt: expected a line for each node, found no line");
  CHECK(refused("labels.txt", "0\nx\n2\n0\n") == "labels.txt:2: expected a class from 0 to 255, found \"x\"");
  CHECK(refused("labels.txt", "0\n1\n256\n0\n") == "labels.txt:3: expected a class from 0 to 255, found \"256\"");
  CHECK(refused("labels.txt", "0\n1\n-2\n0\n") == "labels.txt:3: expected a class from 0 to 255, found \"-2\"");
  CHECK(refused("labels.txt", "0\n\n2\n0\n") == "labels.txt:2: expected a class from 0 to 255, found \"\"");
  CHECK(refused("labels.txt", "0\n1 2\n2\n0\n").find("labels.txt:2: expected one class") == 0);
  CHECK(refused("labels.txt", std::string("0\n\0\n2\n0\n", 8)).find("labels.txt:2: ") == 0);

  CHECK(refused("features.txt", "0\n1\n") ==
        "features.txt:2: expected as many lines as the 4 of labels.txt, found the end of the file");
  CHECK(refused("features.txt", "0\n1\n2\n3\n4\n").find("features.txt:5: expected no more lines than the 4") == 0);
  CHECK(refused("features.txt", "0\n1\n2 7 2\n3\n") == "features.txt:3: expected each feature once, found \"2\"");
  CHECK(refused("features.txt", "0\n1\n2147483648\n3\n").find("features.txt:3: expected a feature from 0 to") == 0);
  CHECK(refused("features.txt", "0\n1\n99999999999999999999999999\n3\n").find("features.txt:3: ") == 0);
  CHECK(refused("features.txt", "0\n1.5\n2\n3\n").find("features.txt:2: ") == 0);
  CHECK(refused("features.txt", "\n\n\n\n") == "features.txt: expected at least one feature, found none");

  CHECK(refused("edges.txt", "0 1\n1\n") == "edges.txt:2: expected two nodes from 0 to 3, found \"\"");
  CHECK(refused("edges.txt", "0 4\n") == "edges.txt:1: expected two nodes from 0 to 3, found \"4\"");
  CHECK(refused("edges.txt", "0 1 2\n").find("edges.txt:1: expected two nodes and the end of the line") == 0);
  CHECK(refused("edges.txt", "0 1\n1 2\n1 0\n") ==
        "edges.txt:3: expected an edge that is not listed yet, found 1 0, which is line 1");
  CHECK(refused("edges.txt", "\n").find("edges.txt:1: ") == 0);
  CHECK(refused("edges.txt", std::string(100000, 'a')).size() < 200);

  CHECK(refused("split.txt", "train 0\nval 1\n") == "split.txt: expected at least one node after \"test\", found none");
  CHECK(refused("split.txt", "train 0\nval 1\nrest 2\n").find("split.txt:3: expected train, val or test") == 0);
  CHECK(refused("split.txt", "train 0\ntrain 1\n").find("split.txt:2: expected each part once") == 0);
  CHECK(refused("split.txt", "train 0\nval 1\ntest 0\n") ==
        "split.txt:3: expected each node once, found node 0, which line 1 has");
  CHECK(refused("split.txt", "train 0\nval 1\ntest 9\n").find("split.txt:3: expected a node from 0 to 3") == 0);

  const Directory directory;
  fs::remove(fs::path(directory.path()) / "edges.txt");
  CHECK(gat::read_graph(directory.path()).error().where() == directory.path() + "/edges.txt");
  CHECK_FALSE(gat::read_graph(directory.path() + "/none").ok());
}

TEST_CASE("the stored model keeps its accuracy on validation nodes at every level") {
  const auto data = gat::read_graph(STRATA_SOURCE_DIR "/examples/gat/data").value();
  CHECK(data.input.graph.nodes() == 2708);
  CHECK(data.input.graph.edges() == 13264);
  CHECK(data.input.features.entries() == 49216);
  const auto model = strata::load<gat::GraphAttentionNet>(STRATA_SOURCE_DIR "/examples/gat/models/joint.safetensors",
                                                          {.self_check = true});
  REQUIRE(model.levels() == 2);
  CHECK(static_cast<double>(model.nnz(strata::Level{1})) <= 0.1338 * 92302);
  CHECK(static_cast<double>(model.nnz(strata::Level{0})) <= 0.0447 * 92302);
  strata::GraphSession<strata::Model<gat::GraphAttentionNet>> session(model, data.input);
  const auto rows = examples::read_rows(STRATA_SOURCE_DIR "/docs/results/gat.json").value();
  for (const int level : {0, 1}) {
    const auto logits = session.run(strata::Level{level});
    int correct = 0;
    for (const auto node : data.val) {
      const auto row = logits.begin() + node * data.classes;
      correct += std::max_element(row, row + data.classes) - row == data.labels[static_cast<std::size_t>(node)] ? 1 : 0;
    }
    // Instruction sets round differently: a node or two may lie on the edge between classes.
    const auto reported = examples::by_seed(rows, "joint", std::to_string(level), "validation").at(1);
    CHECK(std::abs(static_cast<double>(correct) / 500 - reported) < 0.005);
  }
}

TEST_CASE("self-checks of graph networks notice changed weights, and inputs that are none") {
  strata::SerialExecutor executor;
  gat::GraphAttentionNet<strata::train::Training<float>> network(
      {.features = 5, .classes = 3, .hidden = 4, .heads = 2, .output_heads = 1, .dropout = 0});
  strata::train::initialise(network, 1);
  strata::Archive archive = strata::to_archive(network, 1);
  using Model = strata::Model<gat::GraphAttentionNet>;
  CHECK(strata::run_self_check(Model::from_archive(archive).value(), archive).error().where() == "self_check.edges");
  REQUIRE(strata::add_self_check<gat::GraphAttentionNet>(archive).ok());
  CHECK_FALSE(strata::add_self_check<gat::GraphAttentionNet>(archive).ok());  // it has one
  CHECK(strata::run_self_check(Model::from_archive(archive).value(), archive).ok());

  network.conv1.weight().value[3] += 0.1F;
  const auto other = Model::from_archive(strata::to_archive(network, 1)).value();
  CHECK(strata::run_self_check(other, archive).error().where().starts_with("self-check of level 0"));

  // What is stored is not trusted.
  const auto where = [&](const std::string& name, strata::GraphIndex number) {
    strata::Archive damaged;
    damaged.set_levels(1);
    damaged.metadata() = archive.metadata();
    for (const auto& view : archive.arrays()) {
      if (view.name != "self_check." + name) {
        damaged.add_view(view);
        continue;
      }
      std::vector<strata::GraphIndex> numbers(view.as<strata::GraphIndex>().begin(),
                                              view.as<strata::GraphIndex>().end());
      numbers[2] = number;
      damaged.add<strata::GraphIndex>(view.name, view.shape, 0, numbers);
    }
    for (const auto& owner : archive.owners()) damaged.keep(owner);
    const auto status = strata::run_self_check(Model::from_archive(damaged).value(), damaged);
    return status ? std::string("accepted") : status.error().where();
  };
  CHECK(where("edges", 5).starts_with("self-check of level 0"));
  for (const strata::GraphIndex number : {-1, 7, std::numeric_limits<strata::GraphIndex>::max()})
    CHECK(where("edges", number) == "graph: edge 1");
  for (const strata::GraphIndex number : {-1, 1000}) {
    CHECK(where("features.offsets", number).starts_with("features: row"));
    CHECK(where("features.indices", number).starts_with("features: row"));
  }
}
