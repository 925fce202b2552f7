// What is shown of an experiment's rows: means over seeds against the dense arm, accuracy against FLOPs, and the line
// of a network in the table over all networks.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "plot.hpp"
#include "rows.hpp"
#include "table.hpp"

namespace examples {

/// The arms and levels of `rows`, each once, in the order in which they come.
[[nodiscard]] inline std::vector<std::pair<std::string, std::string>> arms_and_levels(const nlohmann::json& rows) {
  std::vector<std::pair<std::string, std::string>> order;
  for (const auto& row : rows) {
    std::pair<std::string, std::string> place(row.at("arm"), level_text(row));
    if (std::find(order.begin(), order.end(), place) == order.end()) order.push_back(std::move(place));
  }
  return order;
}

/// Means of `key`, a share of 1, over the seeds of every arm and level, with the difference to the dense arm of the
/// same seeds. `executed`: with the column of that name.
[[nodiscard]] inline Table rows_table(const nlohmann::json& rows, const char* key, bool executed = false) {
  std::vector<std::string> columns = {"arm",      "level",         "seeds",   key,    "s.d.",
                                      "to dense", "95 % interval", "weights", "FLOPs"};
  if (executed) columns.emplace_back("executed");
  columns.insert(columns.end(), {"epochs", "s"});
  Table table(std::move(columns));
  const auto points = [](double share) { return fixed(100 * share, 2); };
  const auto dense = by_seed(rows, "dense", "dense", key);
  for (const auto& [arm, level] : arms_and_levels(rows)) {
    const auto values = by_seed(rows, arm, level, key);
    if (values.empty()) continue;
    const auto summary = summarise(values_of(values));
    const auto difference = summarise(differences(values, dense));
    const double half = half_interval(difference);
    const auto mean = [&, arm = arm, level = level](const char* what, int digits, bool share) {
      const auto list = values_of(by_seed(rows, arm, level, what));
      if (list.empty()) return std::string();
      return share ? percent(summarise(list).mean, digits) : fixed(summarise(list).mean, digits);
    };
    std::vector<std::string> cells = {arm,
                                      level,
                                      std::to_string(summary.count),
                                      points(summary.mean),
                                      points(summary.deviation),
                                      arm == "dense" || difference.count == 0 ? "" : points(difference.mean),
                                      arm == "dense" || difference.count < 2
                                          ? ""
                                          : points(difference.mean - half) + " .. " + points(difference.mean + half),
                                      mean("weights", 2, true),
                                      mean("flops", 2, true)};
    if (executed) cells.push_back(mean("executed", 1, true));
    cells.push_back(mean("epochs", 0, false));
    cells.push_back(mean("seconds", 1, false));
    table.add(std::move(cells));
  }
  return table;
}

/// Means of `key` over seeds against the share of FLOPs, a line for each arm, with 95 % intervals.
[[nodiscard]] inline Plot rows_plot(const nlohmann::json& rows, const char* key, const std::string& title,
                                    const std::string& y_label) {
  Plot plot;
  plot.title = title;
  plot.x_label = "share of the dense network's FLOPs, %";
  plot.y_label = y_label;
  plot.x_logarithmic = true;
  std::vector<std::string> arms;
  for (const std::string arm : {"dense", "joint", "bottom-up", "single", "four-levels"}) {
    arms.push_back(arm);
    for (const auto& [other, level] : arms_and_levels(rows))  // with other settings (`with_settings_as_arms`)
      if (other.starts_with(arm + " ") && std::find(arms.begin(), arms.end(), other) == arms.end())
        arms.push_back(other);
  }
  for (const std::string& arm : arms) {
    PlotSeries series{arm};
    // One cosine over all phases leaves the dense model of an arm with levels in the middle of its training.
    const bool unfinished = arm != "dense" && std::any_of(rows.begin(), rows.end(), [&](const auto& row) {
                              return row.at("arm") == arm && level_text(row) == "dense" &&
                                     row.value("command", "").find("--one-cosine") != std::string::npos;
                            });
    for (const char* level : {"0", "1", "2", "3", "dense"}) {
      if (unfinished && level == std::string_view("dense")) continue;
      const auto values = values_of(by_seed(rows, arm, level, key));
      const auto flops = values_of(by_seed(rows, arm, level, "flops"));
      if (values.empty() || flops.empty()) continue;
      const auto summary = summarise(values);
      series.points.push_back(
          {100 * summarise(flops).mean, 100 * summary.mean, "", summary.count < 2 ? 0 : 100 * half_interval(summary)});
    }
    if (!series.points.empty()) plot.series.push_back(std::move(series));
  }
  return plot;
}

/// A level of a network beside its dense model.
struct HeadlineLevel {
  std::size_t seeds = 0;
  double accuracy = 0;       ///< mean over seeds
  double relative_loss = 0;  ///< 1 - accuracy / dense, mean over seeds; below 0: better than dense
  double half = INFINITY;    ///< half of the 95 % interval of the relative loss
  double weights = 0, flops = 0;
  std::string command;  ///< of the first seed
};

/// What the table over all networks says of one network and data set: the joint arm's levels 1 and 0. Dense models and
/// levels are those of the seeds that both have.
struct Headline {
  std::string network, data, metric;
  double dense = 0;         ///< mean over seeds
  bool full_epochs = true;  ///< the dense arm; else the dense models that the levels come from, which had fewer epochs
  HeadlineLevel levels[2];  ///< by level
};

/// Errors: rows of more than one network or data set, without a dense model, or without levels 1 and 0 of the joint
/// arm; a dense arm with other epochs than the levels have.
[[nodiscard]] inline strata::Result<Headline> headline_of(const nlohmann::json& rows, const std::string& where) {
  if (rows.empty()) return strata::Error(where, "rows of an experiment", "none");
  Headline headline;
  const auto& first = rows.front();
  headline.network = first.at("network");
  headline.data = first.at("data");
  headline.metric = first.value("metric", "accuracy");
  for (const auto& row : rows)
    if (row.at("network") != headline.network || row.at("data") != headline.data)
      return strata::Error(where, "rows of " + headline.network + " on " + headline.data,
                           std::string(row.at("network")) + " on " + std::string(row.at("data")));
  auto dense = by_seed(rows, "dense", "dense", "accuracy");
  if (dense.empty()) {
    headline.full_epochs = false;
    dense = by_seed(rows, "joint", "dense", "accuracy");
  }
  if (dense.empty()) return strata::Error(where, "a dense model", "none");
  const auto of_levels = by_seed(rows, "joint", "1", "accuracy");
  auto shared = dense;
  std::erase_if(shared, [&](const auto& of_seed) { return !of_levels.contains(of_seed.first); });
  if (!shared.empty()) dense = std::move(shared);
  headline.dense = summarise(values_of(dense)).mean;
  for (int level = 0; level < 2; ++level) {
    const std::string name = std::to_string(level);
    const auto of_dense_seeds = [&](const char* key) {
      const auto all = by_seed(rows, "joint", name, key);
      auto kept = all;
      std::erase_if(kept, [&](const auto& of_seed) { return !dense.contains(of_seed.first); });
      return kept.empty() ? all : kept;
    };
    const auto values = of_dense_seeds("accuracy");
    if (values.empty()) return strata::Error(where, "level " + name + " of the joint arm", "none");
    if (headline.full_epochs) {
      const double epochs_of_dense = summarise(values_of(by_seed(rows, "dense", "dense", "epochs"))).mean;
      const double epochs = summarise(values_of(of_dense_seeds("epochs"))).mean;
      if (std::abs(epochs_of_dense - epochs) > 0.01 * epochs)
        return strata::Error(where, "a dense arm of " + fixed(epochs, 1) + " epochs, as level " + name + " has",
                             fixed(epochs_of_dense, 1));
    }
    HeadlineLevel& found = headline.levels[level];
    found.seeds = values.size();
    found.accuracy = summarise(values_of(values)).mean;
    std::vector<double> losses;
    for (const auto& [seed, value] : values)
      if (const auto other = dense.find(seed); other != dense.end()) losses.push_back(1 - value / other->second);
    found.relative_loss = losses.empty() ? 1 - found.accuracy / headline.dense : summarise(losses).mean;
    found.half = half_interval(summarise(losses));
    found.weights = summarise(values_of(of_dense_seeds("weights"))).mean;
    found.flops = summarise(values_of(of_dense_seeds("flops"))).mean;
    for (const auto& row : rows)
      if (found.command.empty() && row.at("arm") == "joint" && level_text(row) == name)
        found.command = row.value("command", "");
  }
  return headline;
}

}  // namespace examples
