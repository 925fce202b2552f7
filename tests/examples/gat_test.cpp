// The GAT example: its reader of graphs against well-formed and hostile files, the stored model's accuracy on a fixed
// set of nodes, and experiments that are stopped and go on.
#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <strata/core/archive.hpp>
#include <strata/io/model_file.hpp>
#include <strata/runtime/graph_session.hpp>
#include <strata/train/graph_attention.hpp>
#include <strata/train/training.hpp>

#include "gat/arms.hpp"
#include "gat/experiment.hpp"
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

/// A graph of two rings of 15 nodes, of 64 features so that the experiment's budgets can be met. Nodes of ring r have
/// label r, but for the validation nodes, which have the other one: the more is learnt the worse they are, and the best
/// epoch of a phase is seldom its last.
class Rings : public Directory {
 public:
  Rings() {
    std::string labels, features, edges;
    for (int i = 0; i < 30; ++i) {
      const int ring = i / 15;
      const bool validation = i % 5 == 1 || i % 5 == 2;
      labels += std::to_string(validation ? 1 - ring : ring) + "\n";
      features += std::to_string(ring) + " " + std::to_string(2 + 2 * i) + (i == 0 ? " 63\n" : "\n");
      edges += std::to_string(i) + " " + std::to_string(ring * 15 + (i + 1) % 15) + "\n";
      (i % 5 == 0 ? train_ : (validation ? validation_ : test_)) += " " + std::to_string(i);
    }
    write("labels.txt", labels);
    write("features.txt", features);
    write("edges.txt", edges);
    write_split();
  }
  /// Makes the test nodes those for validation and the other way round.
  void exchange_parts() {
    std::swap(validation_, test_);
    write_split();
  }

 private:
  void write_split() const { write("split.txt", "train" + train_ + "\nval" + validation_ + "\ntest" + test_ + "\n"); }

  std::string train_, validation_, test_;
};

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

/// An experiment of few steps with its files in a directory of its own: 4 steps of the teacher; joint 12 of pruning, 4
/// of all levels and 4 of tuning; bottom-up twice 15 of ADMM and 7 of retraining; dense 24.
class SmallExperiment {
 public:
  SmallExperiment(const Rings& rings, const std::string& arm) {
    options.data = rings.path();
    options.arms = {arm};
    options.seeds = 1;
    options.report = files_.path() + "/rows.json";
    options.models = files_.path() + "/models";
    options.checkpoint = files_.path() + "/run.checkpoint";
    options.resume = true;
    options.settings.dense_epochs = options.settings.fixed_epochs = options.settings.tune_epochs = 4;
    options.settings.prune_epochs = 12;
    options.settings.rate = options.settings.sparse_rate = options.settings.tune_rate = 0.05;
  }

  /// A sitting that is told to end while its `stop`-th step is under way (0: it is not). Whether it finished.
  bool run(int stop = 0) {
    int steps = 0;
    options.progress = [&](const strata::train::Progress&) {
      if (++steps == stop) std::raise(SIGTERM);
    };
    return gat::Experiment(options, "gat").run();
  }
  /// Where the error of a sitting is; empty if there is none.
  std::string error() {
    try {
      (void)run();
    } catch (const strata::Error& raised) {
      return raised.where();
    }
    return "";
  }

  [[nodiscard]] nlohmann::json rows() const { return examples::read_rows(options.report).value(); }
  /// The rows without what differs from sitting to sitting.
  [[nodiscard]] nlohmann::json results() const {
    nlohmann::json results = rows();
    for (auto& row : results) row.erase("seconds");
    return results;
  }
  /// Every bit of every stored network.
  [[nodiscard]] std::map<std::string, std::string> models() const {
    std::map<std::string, std::string> bits;
    for (const auto& entry : fs::directory_iterator(options.models))
      bits[entry.path().filename().string()] = contents(entry.path().string());
    return bits;
  }
  /// Whether the checkpoint holds values from an earlier epoch, which was better than its own.
  [[nodiscard]] bool holds_better() const {
    const strata::Archive archive = strata::io::read_model(options.checkpoint, false).value();
    const auto* const best = archive.find("gat.best.0");
    const auto* const own = archive.find("conv1.lin.weight");
    REQUIRE(own != nullptr);
    return best != nullptr && !std::ranges::equal(best->bytes, own->bytes);
  }

  gat::ExperimentOptions options;

 private:
  Directory files_;
};

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

  const fs::path labels = fs::path(directory.path()) / "labels.txt";
  fs::remove(labels);
  fs::create_directory(labels);
  CHECK(gat::read_graph(directory.path()).error().where() == labels.string());
  CHECK(examples::read_rows(labels.string()).error().where() == labels.string());
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

TEST_CASE("an experiment that is stopped after any step goes on with the same bits") {
  const Rings rings;
  const std::map<std::string, std::vector<int>> stops = {
      {"dense", {1, 12, 23}},
      // In the teacher and at its end; while masks are chosen, with the first ones and the last; the first and the last
      // step of all levels; the first and the last but one of tuning.
      {"joint", {2, 4, 9, 14, 16, 17, 20, 21, 23}},
      // In ADMM and at its end, the first and the last step of retraining, the same of the next level.
      {"bottom-up", {9, 19, 20, 26, 27, 41, 45}},
      // In the first network, at its end, in the second one.
      {"single", {9, 20, 24, 30}}};
  int better = 0;
  for (const auto& [arm, all] : stops) {
    SmallExperiment whole(rings, arm);
    REQUIRE(whole.run());
    for (const auto& row : whole.rows()) CHECK(row.at("epochs").get<int>() == (arm == "bottom-up" ? 48 : 24));
    for (const int stop : all) {
      INFO(arm << ", stopped after step " << stop);
      SmallExperiment parts(rings, arm);
      REQUIRE_FALSE(parts.run(stop));
      better += parts.holds_better() ? 1 : 0;
      REQUIRE(parts.run());
      CHECK(parts.results() == whole.results());
      const bool same_bits = parts.models() == whole.models();  // not to be printed
      CHECK(same_bits);
    }
  }
  CHECK(better > 0);  // else the choice of epochs would not be tested
}

TEST_CASE("the checkpoint of an experiment is that of one run, with its time, data and settings") {
  Rings rings;
  SmallExperiment joint(rings, "joint");
  REQUIRE_FALSE(joint.run(9));
  const std::string checkpoint = joint.options.checkpoint;
  const std::string saved = contents(checkpoint);
  // The teacher, which is trained again, leaves the checkpoint of the network that it is needed for.
  REQUIRE_FALSE(joint.run(2));
  CHECK(contents(checkpoint) == saved);

  // So does any run that is carried out before its own.
  SmallExperiment two(rings, "joint");
  two.options.arms = {"dense", "joint"};
  REQUIRE_FALSE(two.run(24 + 9));
  const std::string held = contents(two.options.checkpoint);
  fs::remove(two.options.report);
  REQUIRE_FALSE(two.run(5));
  const bool same_file = contents(two.options.checkpoint) == held;
  CHECK(same_file);

  // A run of another name begins anew.
  SmallExperiment whole(rings, "single");
  REQUIRE(whole.run());
  SmallExperiment single(rings, "single");
  fs::copy_file(checkpoint, single.options.checkpoint);
  REQUIRE(single.run());
  CHECK(single.results() == whole.results());
  const bool same_bits = single.models() == whole.models();
  CHECK(same_bits);

  joint.options.settings.tune_epochs = 5;
  CHECK(joint.error() == checkpoint + ": checkpoint");
  joint.options.settings.tune_epochs = 4;
  CHECK(contents(checkpoint) == saved);

  SmallExperiment dense(rings, "dense");
  REQUIRE_FALSE(dense.run(9));
  rings.exchange_parts();
  CHECK(dense.error() == dense.options.checkpoint + ": checkpoint gat.validation");
  rings.exchange_parts();

  strata::Archive archive = strata::io::read_model(checkpoint, false).value();
  archive.metadata()["seconds"] = "1000";
  REQUIRE(strata::io::write_model(archive, checkpoint).ok());
  REQUIRE(joint.run());
  for (const auto& row : joint.rows()) {
    CHECK(row.at("seconds").get<double>() >= 1000);
    CHECK(row.at("seconds").get<double>() < 2000);
  }

  // Rows from before a recipe had other epochs do not mix with today's.
  nlohmann::json older = joint.rows();
  for (auto& row : older) row["epochs"] = 25;
  REQUIRE(examples::write_rows(older, joint.options.report).ok());
  CHECK(joint.error() == joint.options.report);
}

TEST_CASE("what an experiment could not write or go on from is refused before any training") {
  const Rings rings;
  SmallExperiment small(rings, "joint");
  const gat::ExperimentOptions usual = small.options;
  const std::string missing = usual.checkpoint + "/none/file";

  strata::Archive other;
  const std::vector<float> numbers = {1, 2};
  other.add<float>("numbers", {2}, 0, numbers);
  other.metadata()["checkpoint"] = "another program's";
  REQUIRE(strata::io::write_model(other, usual.checkpoint).ok());
  CHECK(small.error() == usual.checkpoint);
  small.options.checkpoint.clear();
  CHECK(small.error() == "--resume");
  small.options.checkpoint = missing;
  CHECK(small.error() == missing);
  small.options = usual;
  small.options.report = missing;
  CHECK(small.error() == "--report");
  small.options.report.clear();
  CHECK(small.error() == "--checkpoint");
  CHECK_FALSE(fs::exists(usual.models));
}
