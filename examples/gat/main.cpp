// The graph attention experiment: trains dense networks and nested levels on a citation graph over several seeds,
// writes a row for each model and prints tables of what came of it.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <set>
#include <string>
#include <unistd.h>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <strata/io/model_file.hpp>
#include <strata/runtime/graph_session.hpp>

#include "../support/rows.hpp"
#include "../support/rows_report.hpp"
#include "experiment.hpp"
#include "graph_text.hpp"

namespace {

using strata::Level;
using strata::LevelBudget;
namespace train = strata::train;
using Clock = std::chrono::steady_clock;
using Model = strata::Model<gat::GraphAttentionNet>;

constexpr const char* cora = "examples/gat/data";

struct Options {
  std::string data = cora;
  std::vector<std::string> arms = {"dense", "joint", "bottom-up", "single"};
  std::int64_t seeds = 20;
  std::int64_t first_seed = 1;
  int threads = 1;
  bool test = false;
  std::string report;
  std::string models;
  std::string plot;
  bool table_only = false;
  gat::Settings settings;
};

const std::vector<LevelBudget> two_levels = {{0.0538, 0.0447}, {0.1338, 0.1497}};
const std::vector<LevelBudget> four_levels = {{0.025, 0.025}, {0.0538, 0.0447}, {0.1338, 0.1497}, {0.40, 0.40}};

/// What an arm trains: one network for each list of budgets.
struct Arm {
  train::Arm kind = train::Arm::joint;
  std::vector<std::vector<LevelBudget>> networks;
  gat::Settings settings;
  std::vector<int> level_names = {};  ///< what the only level of each network is called, where it is not its number
};

/// Errors: an arm of that name does not exist.
Arm arm_of(const std::string& name, const gat::Settings& settings) {
  Arm arm{train::Arm::joint, {two_levels}, settings};
  if (name == "joint") return arm;
  if (name == "bottom-up") {
    arm.kind = train::Arm::freeze_and_grow;
  } else if (name == "single") {
    arm.networks = {{two_levels[1]}, {two_levels[0]}};
    arm.level_names = {1, 0};
  } else if (name == "four-levels") {
    arm.networks = {four_levels};
  } else if (name == "no-distillation") {
    arm.settings.distillation = 0;
  } else if (name == "no-paths") {  // top and bottom level only, no path between them
    arm.settings.random_paths = 0;
  } else if (name == "no-freezing") {  // the time of tuning goes to training all levels together
    arm.settings.fixed_epochs += arm.settings.tune_epochs;
    arm.settings.tune_epochs = 0;
  } else if (name == "no-floors") {  // one ranking over all layers
    arm.settings.weight_floor = arm.settings.attention_floor = 0;
  } else {
    strata::raise(strata::Error("--arms",
                                "dense, joint, bottom-up, single, four-levels, no-distillation, no-paths, no-freezing "
                                "or no-floors",
                                "\"" + name + "\""));
  }
  return arm;
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Share of `nodes` whose largest logit is that of their label.
double accuracy(std::span<const float> logits, const train::LabelledGraph& data,
                const std::vector<strata::GraphIndex>& nodes) {
  std::size_t correct = 0;
  for (const auto node : nodes) {
    const auto row = logits.begin() + static_cast<std::ptrdiff_t>(node) * data.classes;
    correct += std::max_element(row, row + data.classes) - row == data.labels[static_cast<std::size_t>(node)] ? 1U : 0U;
  }
  return static_cast<double>(correct) / static_cast<double>(nodes.size());
}

/// What a stage hook needs to lower the level once.
Level drop_to(void* object, std::string_view /*stage*/, Level /*level*/) noexcept {
  return *static_cast<Level*>(object);
}

/// A line that is rewritten on a terminal, nothing elsewhere.
class ProgressLine {
 public:
  explicit ProgressLine(std::string what) : what_(std::move(what)) {}
  void operator()(const std::string& phase, std::int64_t step, std::int64_t steps) {
    if (!terminal_ || (step != steps && step % 10 != 0)) return;
    std::fprintf(stderr, "\r\033[K%s: %s, epoch %lld of %lld", what_.c_str(), phase.c_str(),
                 static_cast<long long>(step), static_cast<long long>(steps));
    if (step == steps) std::fputs("\r\033[K", stderr);
  }

 private:
  std::string what_;
  bool terminal_ = isatty(STDERR_FILENO) != 0;
};

class Experiment {
 public:
  Experiment(Options options, std::string command)
      : options_(std::move(options)),
        command_(std::move(command)),
        data_name_(options_.data == cora ? "cora" : examples::data_name(options_.data)),
        data_(std::move(gat::read_graph(options_.data)).value()),
        pool_(options_.threads) {
    if (!options_.report.empty()) rows_ = std::move(examples::read_rows(options_.report)).value();
    if (!options_.table_only) check_rows();
    for (const std::string& name : options_.arms)
      if (name != "dense") (void)arm_of(name, options_.settings);
    if (!options_.models.empty()) std::filesystem::create_directories(options_.models);
  }

  void run() {
    for (std::int64_t seed = options_.first_seed; seed < options_.first_seed + options_.seeds; ++seed) {
      std::optional<gat::TrainingNet> teacher;
      double teacher_seconds = 0;
      for (const std::string& name : options_.arms) {
        if (has_rows(name, seed)) continue;
        if (name == "dense") {
          run_dense(seed);
        } else {
          if (!teacher) {
            const auto start = Clock::now();
            teacher.emplace(gat::train_dense(data_, options_.settings, static_cast<std::uint64_t>(seed),
                                             options_.settings.dense_epochs, pool_,
                                             ProgressLine("seed " + std::to_string(seed) + ", teacher")));
            teacher_seconds = seconds_since(start);
          }
          run_levels(name, seed, *teacher, teacher_seconds);
        }
        if (!options_.report.empty()) (void)examples::write_rows(rows_, options_.report).value();
      }
    }
  }

  [[nodiscard]] const nlohmann::json& rows() const noexcept { return rows_; }

 private:
  /// The command that gives the rows of one run.
  [[nodiscard]] std::string command_of(const std::string& arm, std::int64_t seed) const {
    return command_ + " --arms " + arm + " --first-seed " + std::to_string(seed) + " --seeds 1";
  }

  /// Raises: rows of another graph or with other epochs, which do not belong in one table.
  void check_rows() const {
    for (const auto& row : rows_) {
      const auto expected = command_of(row.at("arm"), row.at("seed"));
      const auto command = row.value("command", "");
      if (row.at("data") != data_name_ || !(command + " ").starts_with(expected + " "))
        strata::raise(strata::Error(options_.report, "rows on " + data_name_ + " such as that of \"" + expected + "\"",
                                    "\"" + command + "\" on " + row.at("data").get<std::string>()));
    }
  }

  [[nodiscard]] bool has_rows(const std::string& arm, std::int64_t seed) const {
    return std::any_of(rows_.begin(), rows_.end(), [&](const auto& row) {
      return row.at("arm").template get<std::string>() == arm && row.at("seed").template get<std::int64_t>() == seed &&
             (!options_.test || row.at("accuracy").is_number());
    });
  }

  /// As many epochs as the joint arm has in all.
  void run_dense(std::int64_t seed) {
    const auto& s = options_.settings;
    const std::int64_t epochs = s.dense_epochs + s.prune_epochs + s.fixed_epochs + s.tune_epochs;
    const auto start = Clock::now();
    auto network = gat::train_dense(data_, s, static_cast<std::uint64_t>(seed), epochs, pool_,
                                    ProgressLine("seed " + std::to_string(seed) + ", dense"));
    add_rows("dense", seed, network, 1, {}, epochs, seconds_since(start));
  }

  void run_levels(const std::string& name, std::int64_t seed, const gat::TrainingNet& teacher, double before) {
    const Arm arm = arm_of(name, options_.settings);
    for (std::size_t n = 0; n < arm.networks.size(); ++n) {
      const auto start = Clock::now();
      std::int64_t sparse_epochs = 0;
      ProgressLine line("seed " + std::to_string(seed) + ", " + name);
      auto network =
          gat::train_levels(teacher, data_, arm.settings, arm.kind, arm.networks[n], static_cast<std::uint64_t>(seed),
                            pool_, [&](const std::string& phase, std::int64_t step, std::int64_t steps) {
                              sparse_epochs = steps;
                              line(phase, step, steps);
                            });
      const std::vector<int> names =
          arm.level_names.empty() ? std::vector<int>() : std::vector<int>{arm.level_names[n]};
      add_rows(name, seed, network, static_cast<int>(arm.networks[n].size()), names,
               arm.settings.dense_epochs + sparse_epochs, before + seconds_since(start));
    }
  }

  /// Measures every level, and every path that drops between the two layers, of the stored network as inference runs
  /// it.
  void add_rows(const std::string& arm, std::int64_t seed, gat::TrainingNet& network, int levels,
                const std::vector<int>& names, std::int64_t epochs, double seconds) {
    strata::Archive archive = strata::to_archive(network, levels);
    (void)strata::add_self_check<gat::GraphAttentionNet>(archive).value();
    if (!options_.models.empty()) {
      std::string file = options_.models + "/" + arm;
      if (!names.empty()) file += "-" + std::to_string(names.front());
      (void)strata::io::write_model(archive, file + "-seed" + std::to_string(seed) + ".safetensors").value();
    }
    strata::GraphSession<Model> session(std::move(Model::from_archive(archive)).value(), data_.input,
                                        {.threads = 1, .executor = &pool_});
    for (int level = levels - 1; level >= 0; --level)
      for (int to = level; to >= 0; --to) {
        Level lowered{to};
        session.context().set_stage_hook(drop_to, &lowered);
        const auto logits = session.run(Level{level});
        session.context().set_stage_hook(nullptr, nullptr);
        const auto cost = gat::cost_of(network, data_.input, Level{level});
        nlohmann::json row = {{"network", "gat"}, {"data", data_name_}, {"seed", seed}, {"arm", arm}};
        if (arm == "dense") {
          row["level"] = "dense";
        } else if (to != level) {
          row["level"] = std::to_string(level) + ">" + std::to_string(to);
        } else {
          row["level"] = names.empty() ? level : names.front();
        }
        row["validation"] = accuracy(logits, data_, data_.val);
        row["accuracy"] = options_.test ? nlohmann::json(accuracy(logits, data_, data_.test)) : nlohmann::json();
        const auto counts = train::count_layers<float>(network, levels);
        const auto count = strata::count_level(counts, Level{level});
        row["weights"] = count.weight_share();
        row["flops"] = count.flop_share();
        row["executed"] = cost.executed_share();
        row["epochs"] = epochs;
        row["seconds"] = std::round(seconds * 10) / 10;
        row["command"] = command_of(arm, seed) + (options_.test ? " --test" : "");
        if (to != level)  // a path's cost lies between those of its levels
          row["weights"] = row["flops"] = row["executed"] = nullptr;
        // One that was measured before, without the test nodes, gives way.
        examples::add_row(rows_, std::move(row));
      }
  }

  Options options_;
  std::string command_;
  std::string data_name_;  ///< of its directory
  train::LabelledGraph data_;
  strata::ThreadPool pool_;
  nlohmann::json rows_ = nlohmann::json::array();
};

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{"Trains nested sparse levels of a graph attention network and compares them with dense ones."};
  app.add_option("--data", options.data, "directory with labels.txt, features.txt, edges.txt and split.txt")
      ->capture_default_str();
  app.add_option("--arms", options.arms,
                 "dense, joint, bottom-up, single, four-levels, no-distillation, no-paths, no-freezing, no-floors")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--seeds", options.seeds, "runs of each arm")->check(CLI::Range(1, 100000))->capture_default_str();
  app.add_option("--first-seed", options.first_seed, "the others follow")->check(CLI::Range(0, 1000000));
  app.add_option("--threads", options.threads, "the result does not depend on them")->check(CLI::Range(1, 256));
  app.add_option("--report", options.report,
                 "JSON file of rows; arms and seeds that it has are not run again, so a stopped run goes on");
  app.add_option("--models", options.models, "directory for the trained models");
  app.add_option("--plot", options.plot, "SVG file");
  app.add_flag("--test", options.test, "measure the test nodes too: once, when all choices are made");
  app.add_flag("--table", options.table_only, "only print the tables of --report");
  app.add_option("--dense-epochs", options.settings.dense_epochs, "of the teacher")->capture_default_str();
  app.add_option("--prune-epochs", options.settings.prune_epochs)->capture_default_str();
  app.add_option("--fixed-epochs", options.settings.fixed_epochs)->capture_default_str();
  app.add_option("--tune-epochs", options.settings.tune_epochs)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    if (options.table_only) options.arms.clear();
    std::string command = "gat";
    if (options.data != cora) command += " --data DIR";
    const gat::Settings usual;
    for (const auto& [name, value, other] :
         {std::tuple("--dense-epochs", options.settings.dense_epochs, usual.dense_epochs),
          std::tuple("--prune-epochs", options.settings.prune_epochs, usual.prune_epochs),
          std::tuple("--fixed-epochs", options.settings.fixed_epochs, usual.fixed_epochs),
          std::tuple("--tune-epochs", options.settings.tune_epochs, usual.tune_epochs)})
      if (value != other) command += " " + std::string(name) + " " + std::to_string(value);
    Experiment experiment(options, command);
    experiment.run();
    std::printf("validation nodes\n");
    std::printf("%s\n", examples::rows_table(experiment.rows(), "validation", true).text().c_str());
    const bool tested = std::any_of(experiment.rows().begin(), experiment.rows().end(),
                                    [](const auto& row) { return row.at("accuracy").is_number(); });
    if (tested) {
      std::printf("test nodes\n");
      std::printf("%s\n", examples::rows_table(experiment.rows(), "accuracy", true).text().c_str());
    }
    if (!options.plot.empty())
      (void)examples::write_svg(
          examples::rows_plot(experiment.rows(), tested ? "accuracy" : "validation",
                              "GAT on " + (options.data == cora ? "Cora" : examples::data_name(options.data)) +
                                  ": accuracy against FLOPs, means over seeds",
                              "accuracy, %"),
          options.plot)
          .value();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gat: %s\n", error.what());
    return 1;
  }
  return 0;
}
