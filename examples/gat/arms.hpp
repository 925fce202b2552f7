// The arms of the GAT experiment over several seeds: which networks each trains, their rows, and the report and the
// checkpoint that a stopped experiment goes on from. How one network is trained is in experiment.hpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <strata/core/archive.hpp>
#include <strata/core/error.hpp>
#include <strata/io/model_file.hpp>
#include <strata/runtime/graph_session.hpp>
#include <strata/runtime/thread_pool.hpp>
#include <strata/sparse/budget.hpp>
#include <strata/train/fit.hpp>
#include <strata/train/node_classification.hpp>

#include "../support/progress.hpp"
#include "../support/rows.hpp"
#include "../support/training_run.hpp"
#include "experiment.hpp"
#include "graph_text.hpp"
#include "network.hpp"

namespace gat {

inline constexpr const char* cora = "examples/gat/data";  ///< directory of the graph that is there

struct ExperimentOptions {
  std::string data = cora;
  std::vector<std::string> arms = {"dense", "joint", "bottom-up", "single"};
  std::int64_t seeds = 20;
  std::int64_t first_seed = 1;
  int threads = 1;
  bool test = false;            ///< measure the test nodes too
  std::string report = {};      ///< file of rows; empty: none
  std::string models = {};      ///< directory for the trained models; empty: none
  bool table_only = false;      ///< nothing will be trained
  std::string checkpoint = {};  ///< file that the run under way is saved to; empty: none, and signals do what they did
  bool resume = false;          ///< go on from the checkpoint if it is there
  std::function<void(const strata::train::Progress&)> progress = {};  ///< empty: lines on stderr
  Settings settings = {};
};

/// What an arm trains: one network for each list of budgets.
struct Arm {
  strata::train::Arm kind = strata::train::Arm::joint;
  std::vector<std::vector<strata::LevelBudget>> networks;
  Settings settings;
  std::vector<int> level_names = {};  ///< what the only level of each network is called, where it is not its number
};

/// Errors: an arm of that name does not exist.
[[nodiscard]] inline Arm arm_of(const std::string& name, const Settings& settings) {
  using Budgets = std::vector<strata::LevelBudget>;
  const Budgets two_levels = {{0.0538, 0.0447}, {0.1338, 0.1497}};
  const Budgets four_levels = {{0.025, 0.025}, {0.0538, 0.0447}, {0.1338, 0.1497}, {0.40, 0.40}};
  Arm arm{strata::train::Arm::joint, {two_levels}, settings};
  if (name == "joint") return arm;
  if (name == "bottom-up") {
    arm.kind = strata::train::Arm::freeze_and_grow;
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

/// Arms and seeds one after the other, each with its rows. A seed's teacher, dense network and each network of an arm
/// is a run of its own, by whose name a checkpoint says whose it is.
class Experiment {
 public:
  /// Raises, before any training: a graph or report that cannot be read, rows of other runs, an arm that does not
  /// exist, a report or checkpoint that could not be written, a checkpoint that is none of this experiment.
  Experiment(ExperimentOptions options, std::string command)
      : options_(std::move(options)),
        command_(std::move(command)),
        data_name_(options_.data == cora ? "cora" : examples::data_name(options_.data)),
        data_(std::move(read_graph(options_.data)).value()),
        pool_(options_.threads) {
    if (!options_.table_only) {
      examples::check_report(options_.report);
      open_checkpoint();
    }
    if (!options_.report.empty()) rows_ = std::move(examples::read_rows(options_.report)).value();
    if (!options_.table_only) check_rows();
    for (const std::string& name : options_.arms)
      if (name != "dense") (void)arm_of(name, options_.settings);
    if (!options_.models.empty()) std::filesystem::create_directories(options_.models);
  }

  /// Trains and measures all that has no rows. With a checkpoint an interrupt or a signal to end stops the run under
  /// way, which saves itself after its step; false then.
  [[nodiscard]] bool run() {
    watching_.emplace(!options_.checkpoint.empty());
    const bool finished = run_seeds();
    watching_.reset();
    return finished;
  }

  [[nodiscard]] const nlohmann::json& rows() const noexcept { return rows_; }

 private:
  using Model = strata::Model<GraphAttentionNet>;

  void open_checkpoint() {
    if (options_.checkpoint.empty()) {
      if (options_.resume) strata::raise(strata::Error("--resume", "--checkpoint with a file to go on from", "none"));
      return;
    }
    if (options_.report.empty())
      strata::raise(strata::Error("--checkpoint", "--report with a file that keeps the rows of finished runs", "none"));
    strata::train::check_checkpoint_path(options_.checkpoint, options_.resume);
    std::error_code unknown;  // such as a directory that may not be searched: the error is that of reading
    if (!options_.resume || (!std::filesystem::exists(options_.checkpoint, unknown) && !unknown)) return;
    // Read, not mapped: other runs may replace the file before the one that it is of comes.
    held_ = strata::io::read_model(options_.checkpoint, false).value();
    if (run_name(*held_).empty())
      strata::raise(strata::Error(options_.checkpoint, "a checkpoint of the GAT experiment", "another file"));
  }

  [[nodiscard]] bool stopped() const noexcept { return watching_ && watching_->stop_requested(); }

  /// The command that gives the rows of one run.
  [[nodiscard]] std::string command_of(const std::string& arm, std::int64_t seed) const {
    return command_ + " --arms " + arm + " --first-seed " + std::to_string(seed) + " --seeds 1";
  }

  /// Raises: rows of another graph, by other commands or with other epochs, which do not belong in one table.
  void check_rows() const {
    for (const auto& row : rows_) {
      const auto expected = command_of(row.at("arm"), row.at("seed"));
      const auto command = row.value("command", "");
      if (row.at("data") != data_name_ || !(command + " ").starts_with(expected + " "))
        strata::raise(strata::Error(options_.report, "rows on " + data_name_ + " such as that of \"" + expected + "\"",
                                    "\"" + command + "\" on " + row.at("data").get<std::string>()));
      if (const std::int64_t epochs = epochs_of_arm(row.at("arm")); row.at("epochs") != epochs)
        strata::raise(strata::Error(options_.report,
                                    "rows of " + row.at("arm").get<std::string>() + " with " + std::to_string(epochs) +
                                        " epochs, as runs have today",
                                    row.at("epochs").dump()));
    }
  }

  /// Of a network, its dense model's included.
  [[nodiscard]] std::int64_t epochs_of_arm(const std::string& name) const {
    const auto& s = options_.settings;
    if (name == "dense") return s.dense_epochs + s.prune_epochs + s.fixed_epochs + s.tune_epochs;
    const Arm arm = arm_of(name, s);
    return s.dense_epochs + epochs_of(level_recipe(arm.settings, arm.kind, arm.networks.front(), 0));
  }

  /// Whether there are the rows of the network with that level; those of a network are added all together.
  [[nodiscard]] bool has_rows(const std::string& arm, std::int64_t seed, const nlohmann::json& level) const {
    return std::any_of(rows_.begin(), rows_.end(), [&](const auto& row) {
      return row.at("arm").template get<std::string>() == arm && row.at("seed").template get<std::int64_t>() == seed &&
             row.at("level") == level && (!options_.test || row.at("accuracy").is_number());
    });
  }

  [[nodiscard]] bool run_seeds() {
    for (std::int64_t seed = options_.first_seed; seed < options_.first_seed + options_.seeds; ++seed) {
      std::optional<Trained> teacher;
      for (const std::string& name : options_.arms)
        if (!(name == "dense" ? run_dense(seed) : run_levels(name, seed, teacher))) return false;
      if (held_ && run_name(*held_).starts_with(prefix_of(seed))) held_.reset();  // its run did not come
    }
    return true;
  }

  [[nodiscard]] static std::string prefix_of(std::int64_t seed) { return "seed " + std::to_string(seed) + ", "; }

  /// Carries out the run of that name, as `train` does with its options: from the checkpoint if that is this run's,
  /// else from the beginning. A checkpoint of a run that is still to come is left as it is.
  template <class Train>
  [[nodiscard]] Trained carry_out(const std::string& name, const Train& train) {
    RunOptions run;
    run.name = name;
    run.stop = [this] { return stopped(); };
    run.progress = options_.progress;
    if (!run.progress) {
      std::fprintf(stderr, "%s\n", name.c_str());
      run.progress = examples::ProgressLine();
    }
    if (held_ && run_name(*held_) == name) run.resume_from = &*held_;
    if (!held_ || run.resume_from != nullptr) run.checkpoint = options_.checkpoint;
    Trained trained = train(run);
    if (run.resume_from != nullptr) held_.reset();
    return trained;
  }

  /// Lets go of the checkpoint of that run, which is not to be gone on with: its rows are there. True.
  bool forget(const std::string& name) {
    if (held_ && run_name(*held_) == name) held_.reset();
    return true;
  }

  /// As many epochs as the joint arm has in all. False if it was stopped, as below.
  [[nodiscard]] bool run_dense(std::int64_t seed) {
    if (has_rows("dense", seed, "dense")) return forget(prefix_of(seed) + "dense");
    if (stopped()) return false;
    Trained trained = carry_out(prefix_of(seed) + "dense", [&](const RunOptions& run) {
      return train_dense(data_, options_.settings, static_cast<std::uint64_t>(seed), epochs_of_arm("dense"), pool_,
                         run);
    });
    if (!trained.run.finished) return false;
    add_rows("dense", seed, trained.network, 1, {}, trained.run.epochs, trained.run.seconds);
    return true;
  }

  [[nodiscard]] bool train_teacher(std::int64_t seed, std::optional<Trained>& teacher) {
    teacher = carry_out(prefix_of(seed) + "teacher", [&](const RunOptions& run) {
      return train_dense(data_, options_.settings, static_cast<std::uint64_t>(seed), options_.settings.dense_epochs,
                         pool_, run);
    });
    return teacher->run.finished;
  }

  [[nodiscard]] bool run_levels(const std::string& name, std::int64_t seed, std::optional<Trained>& teacher) {
    const Arm arm = arm_of(name, options_.settings);
    for (std::size_t n = 0; n < arm.networks.size(); ++n) {
      const int levels = static_cast<int>(arm.networks[n].size());
      const std::vector<int> names =
          arm.level_names.empty() ? std::vector<int>() : std::vector<int>{arm.level_names[n]};
      const std::string run_of =
          prefix_of(seed) + name + (names.empty() ? "" : ", level " + std::to_string(names.front()));
      if (has_rows(name, seed, names.empty() ? levels - 1 : names.front()) && forget(run_of)) continue;
      if (stopped()) return false;
      if (!teacher && !train_teacher(seed, teacher)) return false;
      if (stopped()) return false;
      Trained trained = carry_out(run_of, [&](const RunOptions& run) {
        return train_levels(teacher->network, data_, arm.settings, arm.kind, arm.networks[n],
                            static_cast<std::uint64_t>(seed), pool_, run);
      });
      if (!trained.run.finished) return false;
      add_rows(name, seed, trained.network, levels, names, arm.settings.dense_epochs + trained.run.epochs,
               teacher->run.seconds + trained.run.seconds);
    }
    return true;
  }

  /// Share of `nodes` whose largest logit is that of their label.
  [[nodiscard]] double accuracy(std::span<const float> logits, const std::vector<strata::GraphIndex>& nodes) const {
    std::size_t correct = 0;
    for (const auto node : nodes) {
      const auto row = logits.begin() + static_cast<std::ptrdiff_t>(node) * data_.classes;
      const auto largest = std::max_element(row, row + data_.classes) - row;
      correct += largest == data_.labels[static_cast<std::size_t>(node)] ? 1U : 0U;
    }
    return static_cast<double>(correct) / static_cast<double>(nodes.size());
  }

  /// What a stage hook needs to lower the level once.
  [[nodiscard]] static strata::Level drop_to(void* object, std::string_view /*stage*/,
                                             strata::Level /*level*/) noexcept {
    return *static_cast<strata::Level*>(object);
  }

  /// Measures every level, and every path that drops between the two layers, of the stored network as inference runs
  /// it, and writes the report.
  void add_rows(const std::string& arm, std::int64_t seed, TrainingNet& network, int levels,
                const std::vector<int>& names, std::int64_t epochs, double seconds) {
    using strata::Level;
    strata::Archive archive = strata::to_archive(network, levels);
    (void)strata::add_self_check<GraphAttentionNet>(archive).value();
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
        const auto cost = cost_of(network, data_.input, Level{level});
        nlohmann::json row = {{"network", "gat"}, {"data", data_name_}, {"seed", seed}, {"arm", arm}};
        if (arm == "dense") {
          row["level"] = "dense";
        } else if (to != level) {
          row["level"] = std::to_string(level) + ">" + std::to_string(to);
        } else {
          row["level"] = names.empty() ? level : names.front();
        }
        row["validation"] = accuracy(logits, data_.val);
        row["accuracy"] = options_.test ? nlohmann::json(accuracy(logits, data_.test)) : nlohmann::json();
        const auto counts = strata::train::count_layers<float>(network, levels);
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
    if (!options_.report.empty()) (void)examples::write_rows(rows_, options_.report).value();
  }

  ExperimentOptions options_;
  std::string command_;
  std::string data_name_;  ///< of its directory
  strata::train::LabelledGraph data_;
  strata::ThreadPool pool_;
  nlohmann::json rows_ = nlohmann::json::array();
  std::optional<strata::Archive> held_;  ///< the checkpoint to go on from, until its run comes
  std::optional<examples::WatchSignals> watching_;
};

}  // namespace gat
