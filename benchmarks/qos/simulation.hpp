// A server on one core in simulated time: recorded stage times, co-tenants that take the core for time slices or slow
// it down, the library's own router and policies. The same numbers on every machine, without a quiet one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <strata/core/error.hpp>
#include <strata/io/atomic_file.hpp>
#include <strata/io/json.hpp>
#include <strata/io/mapped_file.hpp>
#include <strata/io/profile_file.hpp>
#include <strata/runtime/policy.hpp>
#include <strata/runtime/profile.hpp>
#include <strata/runtime/router.hpp>

#include "policies.hpp"
#include "tally.hpp"
#include "trace.hpp"

namespace qos {

/// Stage times of single undisturbed runs of one network, and the accuracy of the paths through it.
struct Recording {
  std::string network;
  std::vector<std::string> stages;
  strata::StageSamples samples;            ///< nanoseconds, [level][run][stage]
  std::map<std::string, double> accuracy;  ///< by path

  [[nodiscard]] int levels() const { return static_cast<int>(samples.size()); }
  /// The profile that a session would have measured.
  [[nodiscard]] strata::Profile profile() const {
    strata::ProfileKey key;
    key.architecture = network;
    key.level_nnz.assign(samples.size(), 0);
    return strata::profile_of(samples, stages, key);
  }
};

inline std::string recording_text(const Recording& recording) {
  nlohmann::json samples = nlohmann::json::array();
  for (const auto& level : recording.samples) {
    samples.push_back(nlohmann::json::array());
    for (const auto& run : level) {
      nlohmann::json times = nlohmann::json::array();
      for (const double time : run) times.push_back(static_cast<std::int64_t>(time));
      samples.back().push_back(std::move(times));
    }
  }
  const nlohmann::json file = {{"network", recording.network},
                               {"stages", recording.stages},
                               {"accuracy", recording.accuracy},
                               {"nanoseconds_by_level_run_stage", std::move(samples)}};
  return file.dump() + "\n";
}

/// Error: not readable, members missing or of another kind, runs with other stages than the rest.
inline strata::Result<Recording> read_recording(const std::string& path) {
  auto file = strata::io::MappedFile::open(path);
  if (!file) return file.error();
  const auto bytes = file.value()->bytes();
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (const auto checked = strata::io::JsonValue::parse(text, 6); !checked) return checked.error().within(path);
  Recording recording;
  try {
    const nlohmann::json value = nlohmann::json::parse(text);
    recording.network = value.at("network").get<std::string>();
    recording.stages = value.at("stages").get<std::vector<std::string>>();
    recording.accuracy = value.at("accuracy").get<std::map<std::string, double>>();
    recording.samples = value.at("nanoseconds_by_level_run_stage").get<strata::StageSamples>();
  } catch (const nlohmann::json::exception& error) {
    return strata::Error(path, "a recording", error.what());
  }
  if (recording.samples.empty() || recording.samples.front().empty() || recording.stages.empty())
    return strata::Error(path, "levels, runs and stages", "none");
  for (const auto& level : recording.samples) {
    if (level.size() != recording.samples.front().size())
      return strata::Error(path, "as many runs at every level", "others");
    for (const auto& run : level) {
      if (run.size() != recording.stages.size()) return strata::Error(path, "a time for every stage", "others");
      for (const double time : run)
        if (!(time >= 0 && time < 1e15)) return strata::Error(path, "times of 0 or more", "others");
    }
  }
  return recording;
}

/// How fast the core works at which time: a function of the trace alone, whatever the policy does.
class Core {
 public:
  /// Compute hogs take turns with the server: after a slice of its own it loses one to each hog that works. A memory
  /// hog slows it by `memory_slow_down`. `processes` are those on this core.
  Core(const Interference& kind, int processes, double until, std::uint64_t seed, double slice = 3e6,
       double memory_slow_down = 1.6) {
    std::vector<std::pair<double, int>> changes;
    for (int process = 0; process < processes; ++process)
      for (const Interval& interval : make_schedule(kind, process, until, seed)) {
        changes.emplace_back(interval.begin, 1);
        changes.emplace_back(interval.end, -1);
      }
    std::sort(changes.begin(), changes.end());
    auto random = generator(seed, 2);
    int active = 0;
    for (std::size_t i = 0; i < changes.size(); ++i) {
      active += changes[i].second;
      const double begin = changes[i].first;
      const double end = i + 1 < changes.size() ? changes[i + 1].first : begin;
      if (active == 0 || end <= begin) continue;
      if (kind.memory) {
        pieces_.push_back({begin, end, 1 / (1 + (memory_slow_down - 1) * active)});
        continue;
      }
      double now = begin + slice * uniform(random);
      while (now < end) {
        const double back = std::min(end, now + slice * active);
        pieces_.push_back({now, back, 0});
        now = back + slice;
      }
    }
  }

  /// When `work` nanoseconds of undisturbed computing that begin at `start` are done.
  [[nodiscard]] double finish(double start, double work) const {
    auto piece = std::upper_bound(pieces_.begin(), pieces_.end(), start,
                                  [](double time, const Piece& other) { return time < other.end; });
    for (; piece != pieces_.end(); ++piece) {
      const double free = std::max(0.0, piece->begin - start);
      if (work <= free) return start + work;
      work -= free;
      start = std::max(start, piece->begin);
      const double done = (piece->end - start) * piece->speed;
      if (work <= done) return start + work / piece->speed;
      work -= done;
      start = piece->end;
    }
    return start + work;
  }

 private:
  struct Piece {
    double begin;
    double end;
    double speed;
  };
  std::vector<Piece> pieces_;  ///< ascending, not overlapping; full speed between them
};

struct SimulationOptions {
  std::size_t requests = 30'000;
  double load = 0.5;  ///< full level's median over the mean time between arrivals
  std::uint64_t seed = 1;
  strata::RouterOptions router{};
};

/// The requests of one cell: one server, first come, first served.
inline Tally simulate(const Recording& recording, const Interference& kind, Arrivals arrivals,
                      double deadline_over_median, const std::string& policy_name, const SimulationOptions& options) {
  using strata::Level;
  const strata::Profile profile = recording.profile();
  const Level top{recording.levels() - 1};
  const double median = profile.whole(top).median();
  const double interval = median / options.load;
  const auto times = make_arrivals(arrivals, options.requests, interval, options.seed);
  const double until = (times.empty() ? 0 : times.back()) + 1000 * interval;
  // The kinds count processes over two cores; this is one of them.
  const Core core(kind, (kind.processes + 1) / 2, until, options.seed);
  const auto limit = strata::Duration(static_cast<std::int64_t>(deadline_over_median * median));
  strata::Router router(profile, options.router);
  const std::size_t stages = recording.stages.size();
  const auto point_in_time = [](double ns) {
    return strata::TimePoint(strata::Duration(static_cast<std::int64_t>(ns)));
  };
  auto random = generator(options.seed, 3);
  Tally tally;
  double now = 0;
  double arrival = 0;
  std::size_t run = 0;
  const auto stage_time = [&](std::size_t stage, Level level) {
    return recording.samples[static_cast<std::size_t>(level.index)][run][stage];
  };
  const auto serve = [&](auto& policy) {
    for (const double at : times) {
      arrival = at;
      now = std::max(now, at);
      run = static_cast<std::size_t>(random() % recording.samples.front().size());
      Level level = router.start(policy, point_in_time(arrival), limit, point_in_time(now), top);
      for (std::size_t stage = 0; stage < stages; ++stage) {
        now = core.finish(now, stage_time(stage, level));
        if (stage + 1 < stages) level = router.next(policy, point_in_time(now));
      }
      const strata::Duration finish = router.finish(point_in_time(now));
      const std::string path = path_text(router.path());
      const auto accuracy = recording.accuracy.find(path);
      const bool known = accuracy != recording.accuracy.end();
      tally.add(path, recording.levels(), static_cast<double>(finish.count()), finish <= limit, known ? 1 : 0,
                known ? accuracy->second : 0);
    }
  };
  if (policy_name == oracle_name) {
    strata::Oracle oracle{[&](const strata::RoutePoint& point, Level level) noexcept {
      double work = 0;
      for (auto stage = static_cast<std::size_t>(point.stage()); stage < stages; ++stage)
        work += stage_time(stage, level);
      return strata::Duration(static_cast<std::int64_t>(core.finish(now, work) - arrival));
    }};
    serve(oracle);
  } else {
    with_policy(policy_name, recording.levels(), options.seed, serve);
  }
  return tally;
}

}  // namespace qos
