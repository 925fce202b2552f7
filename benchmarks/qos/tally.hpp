// What became of many requests under one policy: counts that add up over rounds and programs, and the row of the result
// table that follows from them.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>

namespace qos {

/// Wilson's score interval of a share (J. Am. Stat. Assoc. 22, 1927); `z` = 1.96 for 95 %.
inline std::pair<double, double> wilson(std::int64_t hits, std::int64_t trials, double z = 1.959963984540054) {
  if (trials <= 0) return {0, 1};
  const auto n = static_cast<double>(trials);
  const double share = static_cast<double>(hits) / n;
  const double middle = (share + z * z / (2 * n)) / (1 + z * z / n);
  const double half = z / (1 + z * z / n) * std::sqrt(share * (1 - share) / n + z * z / (4 * n * n));
  return {hits == 0 ? 0 : std::max(0.0, middle - half), hits == trials ? 1 : std::min(1.0, middle + half)};
}

/// -log10 of a miss rate; nothing for a rate of 0, whose nines have no upper end.
inline std::optional<double> nines(double miss_rate) {
  if (miss_rate <= 0) return std::nullopt;
  return -std::log10(miss_rate);
}

/// Latencies in buckets that are half a percent wide: adds up, and gives percentiles to that precision.
class Histogram {
 public:
  void add(double nanoseconds, std::int64_t count = 1) {
    buckets_[bucket(nanoseconds)] += count;
    count_ += count;
  }
  void add(const Histogram& other) {
    for (const auto& [bucket, count] : other.buckets_) buckets_[bucket] += count;
    count_ += other.count_;
  }
  [[nodiscard]] std::int64_t count() const { return count_; }

  /// The middle of the bucket in which the smallest `share` of the latencies ends; 0 if there are none.
  [[nodiscard]] double percentile(double share) const {
    const auto rank = static_cast<std::int64_t>(std::ceil(share * static_cast<double>(count_)));
    std::int64_t seen = 0;
    for (const auto& [bucket, count] : buckets_) {
      seen += count;
      if (seen >= rank && count > 0) return std::pow(1.005, bucket + 0.5);
    }
    return 0;
  }

  [[nodiscard]] nlohmann::json json() const {
    nlohmann::json list = nlohmann::json::array();
    for (const auto& entry : buckets_) list.push_back({entry.first, entry.second});
    return list;
  }
  void read(const nlohmann::json& list) {
    for (const auto& entry : list) {
      buckets_[entry.at(0).get<int>()] += entry.at(1).get<std::int64_t>();
      count_ += entry.at(1).get<std::int64_t>();
    }
  }

 private:
  [[nodiscard]] static int bucket(double nanoseconds) {
    return nanoseconds <= 1 ? 0 : static_cast<int>(std::log(nanoseconds) / std::log(1.005));
  }

  std::map<int, std::int64_t> buckets_;
  std::int64_t count_ = 0;
};

/// Paths that a tally tells apart: a random policy over many micro-batches would never end.
inline constexpr std::size_t max_paths = 1000;

/// Counts of one cell of the table.
struct Tally {
  std::int64_t requests = 0;
  std::int64_t misses = 0;
  std::int64_t rerouted = 0;
  std::vector<std::int64_t> stages_at_level;  ///< stages run, by level
  std::map<std::string, std::int64_t> paths;  ///< requests, by path ("1110": the level of each stage); "other" ones
  double pictures = 0;                        ///< classified; in a simulation 1 a request
  double correct = 0;                         ///< of them; in a simulation the expectation for the path
  double correct_in_time = 0;                 ///< of them within the deadline
  Histogram latency;

  /// `levels` of the model, so that levels which never ran have a share of 0.
  void add(const std::string& path, int levels, double latency_ns, bool met, double classified, double right) {
    if (stages_at_level.size() < static_cast<std::size_t>(levels))
      stages_at_level.resize(static_cast<std::size_t>(levels));
    ++requests;
    misses += met ? 0 : 1;
    rerouted += path.find_first_not_of(path.empty() ? '0' : path.front()) != std::string::npos ? 1 : 0;
    for (const char level : path) ++stages_at_level[static_cast<std::size_t>(level - '0')];
    count_path(path, 1);
    pictures += classified;
    correct += right;
    correct_in_time += met ? right : 0;
    latency.add(latency_ns);
  }

  void count_path(const std::string& path, std::int64_t count) {
    const bool known = paths.size() < max_paths || paths.contains(path);
    paths[known ? path : "other"] += count;
  }

  [[nodiscard]] nlohmann::json json() const {
    return {{"requests", requests},     {"misses", misses},
            {"rerouted", rerouted},     {"stages_at_level", stages_at_level},
            {"paths", paths},           {"pictures", pictures},
            {"correct", correct},       {"correct_in_time", correct_in_time},
            {"latency", latency.json()}};
  }
  /// Adds what `json` gave. Throws what nlohmann::json throws for other contents.
  void read(const nlohmann::json& value) {
    requests += value.at("requests").get<std::int64_t>();
    misses += value.at("misses").get<std::int64_t>();
    rerouted += value.at("rerouted").get<std::int64_t>();
    const auto stages = value.at("stages_at_level").get<std::vector<std::int64_t>>();
    if (stages_at_level.size() < stages.size()) stages_at_level.resize(stages.size());
    for (std::size_t i = 0; i < stages.size(); ++i) stages_at_level[i] += stages[i];
    for (const auto& [path, count] : value.at("paths").items()) count_path(path, count.get<std::int64_t>());
    pictures += value.at("pictures").get<double>();
    correct += value.at("correct").get<double>();
    correct_in_time += value.at("correct_in_time").get<double>();
    latency.read(value.at("latency"));
  }
};

/// The levels of a path, each as the character that many places after '0'.
inline std::string path_text(std::span<const strata::Level> path) {
  std::string text;
  for (const strata::Level level : path) text += static_cast<char>('0' + level.index);
  return text;
}

/// What a cell of the table stands for.
struct Cell {
  std::string network;
  std::string source;  ///< "simulation" or "real"
  std::string arrivals;
  std::string interference;
  double deadline_over_median = 0;
  std::string policy;

  [[nodiscard]] std::string key() const {
    char factor[32];
    std::snprintf(factor, sizeof(factor), "%g", deadline_over_median);
    return network + "|" + source + "|" + arrivals + "|" + interference + "|" + factor + "|" + policy;
  }
  /// Throws what nlohmann::json throws for other contents.
  [[nodiscard]] static Cell from(const nlohmann::json& value) {
    return {value.at("network").get<std::string>(),         value.at("source").get<std::string>(),
            value.at("arrivals").get<std::string>(),        value.at("interference").get<std::string>(),
            value.at("deadline_over_median").get<double>(), value.at("policy").get<std::string>()};
  }
  [[nodiscard]] nlohmann::json json() const {
    return {{"network", network},
            {"source", source},
            {"arrivals", arrivals},
            {"interference", interference},
            {"deadline_over_median", deadline_over_median},
            {"policy", policy}};
  }
};

/// One row of the published table; times in milliseconds.
inline nlohmann::json row_of(const Cell& cell, const Tally& tally) {
  const auto optional = [](const std::optional<double>& value) {
    return value ? nlohmann::json(*value) : nlohmann::json(nullptr);
  };
  const auto [low, high] = wilson(tally.misses, tally.requests);
  const double rate = tally.requests == 0 ? 0 : static_cast<double>(tally.misses) / static_cast<double>(tally.requests);
  std::int64_t stages = 0;
  for (const std::int64_t count : tally.stages_at_level) stages += count;
  nlohmann::json shares = nlohmann::json::array();
  for (const std::int64_t count : tally.stages_at_level)
    shares.push_back(stages == 0 ? 0 : static_cast<double>(count) / static_cast<double>(stages));
  nlohmann::json row = cell.json();
  row["requests"] = tally.requests;
  row["misses"] = tally.misses;
  row["miss_rate"] = rate;
  row["miss_rate_95"] = {low, high};
  row["nines"] = optional(nines(rate));
  row["nines_95"] = {optional(nines(high)), optional(nines(low))};
  for (const auto& [name, share] : {std::pair{"p50_ms", 0.5},
                                    {"p90_ms", 0.9},
                                    {"p99_ms", 0.99},
                                    {"p99.9_ms", 0.999},
                                    {"p99.99_ms", 0.9999},
                                    {"max_ms", 1.0}})
    row[name] = tally.latency.percentile(share) / 1e6;
  row["stage_share_by_level"] = std::move(shares);
  row["rerouted_share"] =
      tally.requests == 0 ? 0 : static_cast<double>(tally.rerouted) / static_cast<double>(tally.requests);
  // A recording does not know the accuracy of all paths: that of some requests would not be the accuracy of all.
  const bool known = tally.pictures > 0 && tally.pictures >= static_cast<double>(tally.requests);
  row["accuracy"] = known ? nlohmann::json(tally.correct / tally.pictures) : nlohmann::json(nullptr);
  row["accuracy_in_time"] = known ? nlohmann::json(tally.correct_in_time / tally.pictures) : nlohmann::json(nullptr);
  return row;
}

}  // namespace qos
