// The file in which tallies grow over many short runs, and the table and plots that are made from one or more of them.
#pragma once

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <strata/core/error.hpp>
#include <strata/io/atomic_file.hpp>

#include "../../examples/support/plot.hpp"
#include "../../examples/support/table.hpp"
#include "tally.hpp"

namespace qos {

/// Tallies by cell, the rounds that are in them, and what was measured once for each network.
class State {
 public:
  /// What `path` holds; empty if there is no such file. Raises: a file that is no state or cannot be read.
  static State read(const std::string& path) {
    State state;
    std::ifstream stream(path, std::ios::binary);
    if (std::error_code unknown; !stream && !std::filesystem::exists(path, unknown) && !unknown) return state;
    if (!stream) strata::raise(strata::Error(path, "a readable file", "none"));
    std::stringstream text;
    text << stream.rdbuf();
    try {
      const nlohmann::json value = nlohmann::json::parse(text.str());
      for (const auto& entry : value.at("cells")) {
        const Cell cell = Cell::from(entry.at("cell"));
        state.cells_[cell.key()].first = cell;
        state.cells_[cell.key()].second.read(entry.at("tally"));
      }
      state.done_ = value.at("done").get<std::set<std::string>>();
      state.info_ = value.at("info");
    } catch (const nlohmann::json::exception& error) {
      strata::raise(strata::Error(path, "a state file of this program", error.what()));
    }
    return state;
  }

  void write(const std::string& path) const {
    nlohmann::json cells = nlohmann::json::array();
    for (const auto& [key, entry] : cells_)
      cells.push_back({{"cell", entry.first.json()}, {"tally", entry.second.json()}});
    const nlohmann::json value = {{"cells", std::move(cells)}, {"done", done_}, {"info", info_}};
    const std::string text = value.dump() + "\n";
    (void)strata::io::write_atomically(path, {std::as_bytes(std::span(text))}).value();
  }

  [[nodiscard]] Tally& tally(const Cell& cell) {
    auto& entry = cells_[cell.key()];
    entry.first = cell;
    return entry.second;
  }
  /// Whether `policy` has served `round` with that deadline over the median, alone or with all other policies (as
  /// rounds were once named).
  [[nodiscard]] bool done(const std::string& round, const std::string& policy, double deadline) const {
    return done_.contains(round) || done_.contains(part(round, policy, deadline));
  }
  void set_done(const std::string& round, const std::string& policy, double deadline) {
    done_.insert(part(round, policy, deadline));
  }
  [[nodiscard]] nlohmann::json& info() { return info_; }
  /// Takes what all rows of `name` have in common. Raises: rows that are there already were measured with others.
  void set_settings(const std::string& name, const nlohmann::json& settings) {
    nlohmann::json& known = info_[name];
    const bool first = known.empty();
    for (const auto& [key, value] : settings.items()) {
      // A setting that is newer than the rows was not there when they were measured.
      const std::string held = known.contains(key) ? known.at(key).dump() : "none";
      if (!first && held != value.dump())
        strata::raise(strata::Error("state: " + name + ", " + key, held + " as in its rows", value.dump()));
      known[key] = value;
    }
  }

  /// Adds all of `other`. Raises, with nothing added: rounds that are here already, rows of the same name that were
  /// measured with other settings.
  void merge(const State& other) {
    for (const auto* round : {first_of(done_, other.done_), first_of(other.done_, done_)})
      if (round != nullptr) strata::raise(strata::Error("state", "rounds that are not there yet", *round));
    State checked;
    checked.info_ = info_;
    for (const auto& [name, settings] : other.info_.items()) {
      nlohmann::json shared = settings;
      for (const char* measured : {"controller", "rounds_not_counted"}) shared.erase(measured);
      checked.set_settings(name, shared);
    }
    for (const auto& [key, entry] : other.cells_) {
      cells_[key].first = entry.first;
      cells_[key].second.read(entry.second.json());
    }
    done_.insert(other.done_.begin(), other.done_.end());
    for (const auto& [name, settings] : other.info_.items()) {
      constexpr const char* left_out = "rounds_not_counted";
      nlohmann::json& known = info_[name];
      if (known.is_null()) known = nlohmann::json::object();
      const int left = known.value(left_out, 0) + settings.value(left_out, 0);
      known.update(settings);
      if (left > 0) known[left_out] = left;
    }
  }

  [[nodiscard]] nlohmann::json rows() const {
    nlohmann::json rows = nlohmann::json::array();
    for (const auto& [key, entry] : cells_) rows.push_back(row_of(entry.first, entry.second));
    return rows;
  }
  [[nodiscard]] const std::map<std::string, std::pair<Cell, Tally>>& cells() const { return cells_; }

 private:
  [[nodiscard]] static std::string part(const std::string& round, const std::string& policy, double deadline) {
    return Cell{round, "", "", "", deadline, policy}.key();
  }

  /// One of `rounds` that `parts` has too, as it is or in part: the name of a round of all policies is the beginning of
  /// those of its parts. Null: none.
  [[nodiscard]] static const std::string* first_of(const std::set<std::string>& parts,
                                                   const std::set<std::string>& rounds) {
    for (const std::string& round : rounds) {
      const auto next = parts.lower_bound(round);
      if (next != parts.end() && (*next == round || next->starts_with(round + "|"))) return &round;
    }
    return nullptr;
  }

  std::map<std::string, std::pair<Cell, Tally>> cells_;
  std::set<std::string> done_;
  nlohmann::json info_ = nlohmann::json::object();
};

/// One plot per network, source, arrivals and interference: nines over the deadline, a line per policy, with the lower
/// half of the 95 % interval as error bar. A row without a miss is drawn at the lower end of its interval.
inline void write_plots(const State& state, const std::string& directory) {
  std::map<std::string, std::vector<nlohmann::json>> groups;
  for (const auto& [key, entry] : state.cells()) {
    const Cell& cell = entry.first;
    groups[cell.network + " " + cell.source + " " + cell.arrivals + " " + cell.interference].push_back(
        row_of(cell, entry.second));
  }
  for (const auto& [group, rows] : groups) {
    examples::Plot plot;
    plot.title = group;
    plot.x_label = "deadline over the full level's undisturbed median";
    plot.y_label = "nines: -log10(miss rate)";
    std::map<std::string, std::vector<examples::PlotPoint>> lines;
    for (const auto& row : rows) {
      const auto& low = row.at("nines_95").at(0);
      if (low.is_null()) continue;
      const double least = low.get<double>();
      const bool bound = row.at("nines").is_null();
      const double value = bound ? least : row.at("nines").get<double>();
      lines[row.at("policy").get<std::string>()].push_back(
          {row.at("deadline_over_median").get<double>(), value, bound ? "no miss" : "", bound ? 0 : value - least});
    }
    for (auto& [policy, points] : lines) {
      std::sort(points.begin(), points.end(), [](const auto& a, const auto& b) { return a.x < b.x; });
      plot.series.push_back({policy, points});
    }
    std::string name = "qos-" + group;
    for (char& letter : name)
      if (letter == ' ' || letter == '/' || letter == ',') letter = '-';
    (void)examples::write_svg(plot, directory + "/" + name + ".svg").value();
  }
}

/// The rows as text, for the terminal.
inline std::string text_table(const nlohmann::json& rows) {
  examples::Table table({"network", "source", "arrivals", "interference", "deadline", "policy", "requests", "misses",
                         "nines", "95 %", "p50 ms", "p99 ms", "p99.9 ms", "full", "rerouted", "accuracy", "in time"});
  const auto number = [](const nlohmann::json& value, int digits) {
    return value.is_null() ? std::string("-") : examples::fixed(value.get<double>(), digits);
  };
  for (const auto& row : rows)
    table.add(
        {row.at("network").get<std::string>(), row.at("source").get<std::string>(),
         row.at("arrivals").get<std::string>(), row.at("interference").get<std::string>(),
         number(row.at("deadline_over_median"), 1), row.at("policy").get<std::string>(),
         std::to_string(row.at("requests").get<long long>()), std::to_string(row.at("misses").get<long long>()),
         number(row.at("nines"), 2), number(row.at("nines_95").at(0), 2) + "-" + number(row.at("nines_95").at(1), 2),
         number(row.at("p50_ms"), 2), number(row.at("p99_ms"), 2), number(row.at("p99.9_ms"), 2),
         row.at("stage_share_by_level").empty()
             ? "-"
             : examples::percent(row.at("stage_share_by_level").back().get<double>(), 1),
         examples::percent(row.at("rerouted_share").get<double>(), 1),
         row.at("accuracy").is_null() ? "-" : examples::percent(row.at("accuracy").get<double>(), 2),
         row.at("accuracy_in_time").is_null() ? "-" : examples::percent(row.at("accuracy_in_time").get<double>(), 2)});
  return table.text();
}

}  // namespace qos
