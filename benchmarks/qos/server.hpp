// The real run: a session on its cores, requests that come at the times of a trace, co-tenants beside it. What is
// counted is qos/tally.hpp's business, when it is done main.cpp's.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <strata/runtime/session.hpp>
#include <strata/train/data.hpp>

#include "hogs.hpp"
#include "policies.hpp"
#include "simulation.hpp"
#include "tally.hpp"
#include "trace.hpp"

namespace qos {

/// A model, a session over it and batches of test pictures with their labels, in a random order that is always the same
/// (files have them by class).
template <class Model>
class Server {
 public:
  Server(const Model& model, const strata::train::Dataset& data, const strata::SessionOptions& options)
      : session_(model, options), batch_(options.batch) {
    const strata::index_t batch = batch_;
    const strata::index_t count = std::max<strata::index_t>(1, data.size() / batch);
    const auto order = strata::train::shuffled(data.size(), 1, 0);
    for (strata::index_t b = 0; b < count; ++b) {
      std::vector<std::uint32_t> indices;
      for (strata::index_t i = 0; i < batch; ++i)
        indices.push_back(order[static_cast<std::size_t>((b * batch + i) % data.size())]);
      std::vector<std::uint8_t> labels;
      data.batch(indices.data(), batch, pictures_.emplace_back(), labels);
      labels_.emplace_back(labels.begin(), labels.end());
    }
  }
  /// Without data: `count` batches of noise, whose true classes are what the full level says. For latency; what is
  /// counted as accuracy is then agreement with the full level.
  Server(const Model& model, const strata::SessionOptions& options, std::size_t count, std::uint64_t seed)
      : session_(model, options), batch_(options.batch) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    for (std::size_t b = 0; b < count; ++b) {
      auto& pictures = pictures_.emplace_back(static_cast<std::size_t>(batch_ * model.input_shape().size()));
      std::generate(pictures.begin(), pictures.end(), [&] { return normal(random); });
      const auto logits = session_.run(pictures, strata::Level{model.levels() - 1});
      auto& labels = labels_.emplace_back();
      for (strata::index_t i = 0; i < batch_; ++i) labels.push_back(best_class(logits, i));
    }
  }

  [[nodiscard]] strata::Session<Model>& session() { return session_; }
  [[nodiscard]] std::size_t batches() const { return pictures_.size(); }
  [[nodiscard]] const std::vector<float>& pictures(std::size_t b) const { return pictures_[b % pictures_.size()]; }

  /// Pictures of batch `b` that `logits` classify correctly.
  [[nodiscard]] strata::index_t correct(std::span<const float> logits, std::size_t b) const {
    const auto& labels = labels_[b % labels_.size()];
    strata::index_t count = 0;
    for (strata::index_t i = 0; i < batch_; ++i)
      count += best_class(logits, i) == labels[static_cast<std::size_t>(i)] ? 1 : 0;
    return count;
  }

  /// The accuracy of every path on all batches; of those that never go up if there would be more than 64. Precondition:
  /// the batch is one micro-batch.
  [[nodiscard]] std::map<std::string, double> path_accuracy() {
    const int levels = session_.model().levels();
    const std::size_t stages = session_.stages().size();
    const bool all = std::pow(levels, static_cast<double>(stages)) <= 64;
    std::map<std::string, double> accuracy;
    std::vector<strata::Level> path(stages);
    const auto run = [&](auto&& self, std::size_t stage) -> void {
      if (stage == stages) {
        const auto script = [&](const strata::RoutePoint& point) noexcept {
          return path[static_cast<std::size_t>(point.stage())];
        };
        strata::index_t right = 0;
        for (std::size_t b = 0; b < batches(); ++b)
          right += correct(session_.run(pictures(b), strata::Deadline::never(), script).output, b);
        accuracy[path_text(path)] =
            static_cast<double>(right) / static_cast<double>(batch_ * static_cast<strata::index_t>(batches()));
        return;
      }
      const int highest = stage == 0 || all ? levels - 1 : path[stage - 1].index;
      for (int level = 0; level <= highest; ++level) {
        path[stage] = strata::Level{level};
        self(self, stage + 1);
      }
    };
    run(run, 0);
    return accuracy;
  }

  /// Serves the arrivals of one trace, with batches from `first_batch` on, with one policy beside `kind` and adds what
  /// came of it to `tallies`, one for each of `limits`. The policy works against the first limit; more than one make
  /// sense if it does not look at it.
  template <class Policy>
  void serve(Policy policy, const std::vector<double>& arrivals, std::size_t first_batch, const Interference& kind,
             std::uint64_t seed, const std::vector<strata::Duration>& limits, const std::vector<Tally*>& tallies) {
    const strata::Clock clock;
    session_.router()->reset();
    const strata::TimePoint start = clock() + std::chrono::milliseconds(20);
    const double until = (arrivals.empty() ? 0 : arrivals.back()) + 5e9;
    const Hogs hogs(kind, start, until, seed);
    for (std::size_t i = 0; i < arrivals.size(); ++i) {
      const strata::TimePoint arrival = start + strata::Duration(static_cast<std::int64_t>(arrivals[i]));
      std::this_thread::sleep_until(arrival);
      const std::size_t batch = first_batch + i;
      const auto result = session_.run(pictures(batch), strata::Deadline(limits.front(), arrival), policy);
      const std::string path = path_text(result.path);
      const auto right = static_cast<double>(correct(result.output, batch));
      for (std::size_t k = 0; k < limits.size(); ++k)
        tallies[k]->add(path, session_.model().levels(), static_cast<double>(result.finish.count()),
                        result.finish <= limits[k], static_cast<double>(batch_), right);
    }
  }

  /// The longest of `runs` runs at the full level, in nanoseconds: tells whether the machine is busy with other things.
  [[nodiscard]] double longest_run(int runs) {
    const strata::Clock clock;
    const strata::Level top{session_.model().levels() - 1};
    double longest = 0;
    session_.forward(top);
    for (int i = 0; i < runs; ++i) {
      const auto begin = clock();
      session_.forward(top);
      longest = std::max(longest, static_cast<double>((clock() - begin).count()));
    }
    return longest;
  }

  /// Medians in nanoseconds of undisturbed runs, in turns: at the full level without a router, and routed with a
  /// deadline of `factor` x the full level's median, of which `full_share` ran at the full level throughout.
  struct Cost {
    double plain = 0;
    double routed = 0;
    double full_share = 0;
  };
  [[nodiscard]] Cost router_cost(int runs, const strata::Duration& limit) {
    const strata::Clock clock;
    std::vector<double> times[2];
    int full = 0;
    const strata::Level top{session_.model().levels() - 1};
    strata::ChooseAndReroute policy;
    session_.router()->reset();
    for (int i = -3; i < runs; ++i) {
      const auto begin = clock();
      session_.forward(top);
      const auto middle = clock();
      const auto result = session_.forward(strata::Deadline(limit), policy);
      const auto end = clock();
      if (i < 0) continue;
      times[0].push_back(static_cast<double>((middle - begin).count()));
      times[1].push_back(static_cast<double>((end - middle).count()));
      full += std::all_of(result.path.begin(), result.path.end(), [&](auto level) { return level == top; }) ? 1 : 0;
    }
    return {strata::TimeDistribution::of(times[0]).median(), strata::TimeDistribution::of(times[1]).median(),
            static_cast<double>(full) / runs};
  }

 private:
  /// The class of picture `i` of a batch.
  [[nodiscard]] std::ptrdiff_t best_class(std::span<const float> logits, strata::index_t i) const {
    const auto classes = static_cast<std::ptrdiff_t>(logits.size()) / batch_;
    const auto row = logits.begin() + i * classes;
    return std::max_element(row, row + classes) - row;
  }

  strata::Session<Model> session_;
  strata::index_t batch_;
  std::vector<std::vector<float>> pictures_;
  std::vector<std::vector<std::ptrdiff_t>> labels_;
};

/// Nanoseconds of one decision at a start or stage boundary that looks at all levels, the look at the clock included:
/// the mean over many.
inline double decision_cost(const strata::Profile& profile) {
  strata::Router router(profile);
  // One that may go up again, and a limit that none will meet: every decision looks at every level.
  strata::ChooseAndReroute policy{.up = true};
  const strata::Clock clock;
  const strata::Level top{router.levels() - 1};
  const strata::Duration limit(1);
  std::int64_t decisions = 0;
  const auto begin = clock();
  while (decisions < 200'000) {
    router.start(policy, clock(), limit, clock(), top);
    for (int stage = 1; stage < router.stages(); ++stage) router.next(policy, clock());
    (void)router.finish(clock());
    decisions += router.stages();
  }
  return static_cast<double>((clock() - begin).count()) / static_cast<double>(decisions);
}

}  // namespace qos
