// Chooses the level of every stage of a run that has a deadline: predicts the finish at each level from the time since
// arrival, the profile and the present slow-down, and asks a policy. It is given the time; clocks and networks are
// runtime/session.hpp's business, policies runtime/policy.hpp's.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/runtime/clock.hpp>
#include <strata/runtime/profile.hpp>
#include <strata/runtime/slow_down.hpp>

namespace strata {

struct RouterOptions {
  /// Probability with which a predicted finish shall hold: of the profile's spread and of the slow-down's.
  double confidence = 0.9;
  double margin = 0.03;                 ///< share of the time limit that is kept free
  Duration reserve = Duration::zero();  ///< kept free besides: where a lost time slice (3-5 ms) is much of the limit
  /// Work that has the slow-down's full `gain`, if an average stage is shorter: what disturbs comes in slices of about
  /// a millisecond and more, and the time of a stage of 0.1 ms says more about jitter than about the rest of the run.
  Duration slice = std::chrono::milliseconds(1);
  /// A run that began in time and gets late goes on at its level for so long, as a single delay is often over when it
  /// is seen; but only while the lasting slow-down is below `calm` and the lowest level would still be in time with
  /// `patience_reserve` to spare: two time slices of the scheduler. Zero: it drops at once.
  Duration patience = std::chrono::milliseconds(4);
  Duration patience_reserve = std::chrono::milliseconds(6);
  double calm = 1.2;
  /// A level is kept, or chosen in mid-run, only if the lowest level from the next stage on would be in time with so
  /// much to spare, two time slices of the scheduler: the later in a run a delay comes, the less is left to drop. At
  /// most `guard_share` of the room between an undisturbed run at the highest level and the limit.
  Duration guard = std::chrono::milliseconds(8);
  double guard_share = 0.75;
  SlowDownOptions slow_down{};
};

class Router;

/// What a policy decides from: a stage is about to begin.
class RoutePoint {
 public:
  RoutePoint(const Router& router, int step, Level level, Level highest, Duration elapsed, Duration limit,
             Duration late_for = Duration::zero()) noexcept
      : router_(router),
        step_(step),
        level_(level),
        highest_(highest),
        elapsed_(elapsed),
        limit_(limit),
        late_for_(late_for) {}

  [[nodiscard]] bool start() const noexcept { return step_ == 0; }   ///< of the run
  [[nodiscard]] int stage() const noexcept;                          ///< of the network, about to begin
  [[nodiscard]] int stages() const noexcept;                         ///< of the network
  [[nodiscard]] int micro_batch() const noexcept;                    ///< about to pass the stage, counted from 0
  [[nodiscard]] int micro_batches() const noexcept;                  ///< that pass the network one after the other
  [[nodiscard]] Level level() const noexcept { return level_; }      ///< of the stage before; `highest()` at the start
  [[nodiscard]] Level highest() const noexcept { return highest_; }  ///< that may be chosen
  [[nodiscard]] Duration elapsed() const noexcept { return elapsed_; }  ///< since arrival
  [[nodiscard]] Duration limit() const noexcept { return limit_; }      ///< since arrival, as the request came with it

  /// For how long this run has been predicted to miss the limit at `level()`; zero where it first is, and if it is not.
  [[nodiscard]] Duration late_for() const noexcept { return late_for_; }

  /// When the run will finish, since arrival, if all stages from here on run at `level`: at the options' confidence.
  [[nodiscard]] Duration predicted_finish(Level level) const noexcept;
  /// Whether that keeps the limit less margin and reserve.
  [[nodiscard]] bool meets(Level level) const noexcept;
  /// Whether the lowest level behind a stage at `level` would be in time with the options' guard to spare, if nothing
  /// else disturbs than has for long.
  [[nodiscard]] bool guarded(Level level) const noexcept;
  /// Whether the options' patience allows `level()` for the stage that is about to begin, late as it is.
  [[nodiscard]] bool may_wait() const noexcept;
  /// The highest level up to `cap` that meets the limit, otherwise the lowest.
  [[nodiscard]] Level highest_meeting(Level cap) const noexcept {
    for (Level level = cap; level.index > 0; --level.index)
      if (meets(level)) return level;
    return {0};
  }
  /// The same, but does not drop below `level()` while it may wait: for all but the start of a run.
  [[nodiscard]] Level highest_in_time(Level cap) const noexcept {
    Level level = cap;
    while (level.index > 0 && !(meets(level) && guarded(level))) --level.index;
    return level < level_ && guarded(level_) && may_wait() ? level_ : level;
  }

 private:
  const Router& router_;
  int step_;  ///< stages of this and earlier micro-batches that have begun
  Level level_;
  Level highest_;
  Duration elapsed_;
  Duration limit_;
  Duration late_for_;
};

/// Chooses the level of the stage that is about to begin; what is outside 0 .. `point.highest()` is cut to it. Called
/// at the start of a run and at every stage, with no allocation and no waiting.
template <class P>
concept RoutingPolicy = requires(P& policy, const RoutePoint& point) {
  { policy(point) }
  noexcept->std::same_as<Level>;
};

/// One session's routing: tables from its profile and the state of the present run. Times are given to it, so that a
/// simulation runs the same code. Everything but construction is noexcept and allocates nothing.
class Router {
 public:
  /// A stage whose median is below a nanosecond counts as one that takes no time. Raises: a profile without stages or
  /// levels, with times that are none, or whose stages are not those of its micro-batches; options outside their range
  /// or not finite.
  explicit Router(const Profile& profile, const RouterOptions& options = {})
      : options_(options),
        levels_(static_cast<int>(profile.key.level_nnz.size())),
        stages_(static_cast<int>(profile.stages.size())),
        slow_down_(options.slow_down) {
    const auto require = [](bool good, const char* option, const char* expected, double found) {
      if (!good || !std::isfinite(found)) raise(Error({"router: ", option}, {expected}, {found}));
    };
    const SlowDownOptions& slow = options.slow_down;
    require(options.confidence > 0 && options.confidence < 1, "confidence", "above 0 and below 1", options.confidence);
    require(options.margin >= 0 && options.margin < 1, "margin", "0 or more and below 1", options.margin);
    require(options.reserve >= Duration::zero(), "reserve", "0 or more", static_cast<double>(options.reserve.count()));
    require(options.slice >= Duration::zero(), "slice", "0 or more", static_cast<double>(options.slice.count()));
    require(options.patience >= Duration::zero(), "patience", "0 or more",
            static_cast<double>(options.patience.count()));
    require(options.patience_reserve >= Duration::zero(), "patience_reserve", "0 or more",
            static_cast<double>(options.patience_reserve.count()));
    require(options.calm >= 0, "calm", "0 or more and finite", options.calm);
    require(options.guard >= Duration::zero(), "guard", "0 or more", static_cast<double>(options.guard.count()));
    require(options.guard_share >= 0 && options.guard_share <= 1, "guard_share", "0 to 1", options.guard_share);
    require(slow.gain > 0 && slow.gain <= 1, "slow_down.gain", "above 0, at most 1", slow.gain);
    require(slow.lasting_gain >= 0 && slow.lasting_gain <= 1, "slow_down.lasting_gain", "0 to 1", slow.lasting_gain);
    require(slow.process_noise > 0, "slow_down.process_noise", "above 0 and finite", slow.process_noise);
    require(slow.adaptation >= 0 && slow.adaptation <= 1, "slow_down.adaptation", "0 to 1", slow.adaptation);
    if (stages_ == 0 || levels_ == 0) raise(Error("profile", "stages and levels", "none"));
    std::vector<std::string> names;
    for (const auto& stage : profile.stages) names.push_back(stage.name);
    (void)check_profile(profile, profile.key, names).value();
    const std::int64_t parts = profile.key.micro_batches();
    if (parts < 1 || parts > stages_ || stages_ % parts != 0)
      raise(Error({"profile: stages"}, {"a multiple of the ", parts, " micro-batches"}, {stages_}));
    micro_batches_ = static_cast<int>(parts);

    normal_quantile_ = std::max(0.0, normal_quantile(options.confidence));
    for (const auto& stage : profile.stages)
      for (int level = 0; level < levels_; ++level) {
        const StageTimes& times = stage.levels[static_cast<std::size_t>(level)];
        const double average = profile.whole(Level{level}).median() * micro_batches_ / stages_;
        Entry entry;
        entry.rest = times.rest.median();
        entry.spread = std::max(0.0, times.rest.quantile(options.confidence) - entry.rest);
        entry.stage = times.stage.median() < 1 ? 0 : times.stage.median();
        entry.length = average > 0 ? std::min(entry.stage / average, 16.0) : 1;
        const double unit = std::max(average, static_cast<double>(options.slice.count()));
        entry.weight = unit > 0 ? std::min(entry.stage / unit, 16.0) : 1;
        // The quartiles: an outlier or two in the profile must not make every observation worthless.
        const double quartiles = (times.stage.quantiles[4] - times.stage.quantiles[2]) / 1.349;
        const double relative = entry.stage > 0 ? quartiles / entry.stage : 0;
        entry.variance = (relative * relative + 1e-4) * entry.stage * entry.stage;
        table_.push_back(entry);
      }
    path_.resize(static_cast<std::size_t>(stages_));
  }

  [[nodiscard]] int levels() const noexcept { return levels_; }
  [[nodiscard]] int stages() const noexcept { return stages_; }  ///< of all micro-batches
  [[nodiscard]] int micro_batches() const noexcept { return micro_batches_; }
  [[nodiscard]] const RouterOptions& options() const noexcept { return options_; }
  [[nodiscard]] const SlowDown& slow_down() const noexcept { return slow_down_; }
  /// Forgets the slow-down of earlier requests.
  void reset() noexcept { slow_down_.reset(); }

  /// A request that arrived at `arrival` begins to run `now`; levels up to `highest` may be chosen. The level of stage
  /// 0. Precondition: 0 <= highest.index < levels().
  template <RoutingPolicy Policy>
  Level start(Policy& policy, TimePoint arrival, Duration limit, TimePoint now, Level highest) noexcept {
    arrival_ = arrival;
    limit_ = limit;
    highest_ = highest;
    next_stage_ = 0;
    last_ = now;
    observed_ = {};
    late_since_ = never_late;
    late_at_start_ = expired(elapsed());
    const RoutePoint point = make_point(highest);
    const Entry& whole = at(0, highest);
    const double room = kept_until(limit_) - static_cast<double>(elapsed().count()) - slow_down_.usual() * whole.rest;
    guard_ = std::clamp(options_.guard_share * room, 0.0, static_cast<double>(options_.guard.count()));
    in_time_at_start_ = keeps(static_cast<double>(elapsed().count()) + whole.rest + whole.spread, limit_);
    const Level level = choose(policy, point);
    first_prediction_ = point.predicted_finish(level);
    return level;
  }

  /// The stage before has ended and the next one begins `now`: its level. Does nothing beyond the profile's stages.
  template <RoutingPolicy Policy>
  Level next(Policy& policy, TimePoint now) noexcept {
    const Level level = path_[static_cast<std::size_t>(next_stage_ - 1)];
    observe(now);
    if (next_stage_ >= stages_) return level;
    if (keeps(static_cast<double>(elapsed().count()) + predicted_rest(next_stage_, level), limit_)) {
      late_since_ = never_late;
    } else if (late_since_ == never_late) {
      late_since_ = elapsed();
    }
    const Level chosen = choose(policy, make_point(level));
    if (chosen != level) late_since_ = never_late;
    return chosen;
  }

  /// The last stage has ended: the time since arrival.
  Duration finish(TimePoint now) noexcept {
    observe(now);
    learn(0);
    return elapsed();
  }

  /// Levels of the stages that have begun.
  [[nodiscard]] std::span<const Level> path() const noexcept {
    return {path_.data(), static_cast<std::size_t>(next_stage_)};
  }
  /// Finish since arrival as predicted at the start for the level chosen there, and at the last decision.
  [[nodiscard]] Duration first_prediction() const noexcept { return first_prediction_; }
  [[nodiscard]] Duration last_prediction() const noexcept { return last_prediction_; }
  /// Whether the present run may wait out a delay, if its lowest level allows.
  [[nodiscard]] bool patient() const noexcept { return in_time_at_start_ && slow_down_.lasting() < options_.calm; }
  /// Whether the limit had passed before the run began.
  [[nodiscard]] bool late_at_start() const noexcept { return late_at_start_; }

  /// Nanoseconds that stages `stage` .. (of all micro-batches) will take at `level`, at the options' confidence.
  [[nodiscard]] double predicted_rest(int stage, Level level) const noexcept {
    const Entry& entry = at(stage, level);
    const double spread = slow_down_.mean() * entry.spread;
    const double drift = normal_quantile_ * slow_down_.deviation() * entry.rest;
    return slow_down_.mean() * entry.rest + std::sqrt(spread * spread + drift * drift);
  }
  /// The same if stage `stage` runs at `level` and all behind it at the lowest.
  [[nodiscard]] double predicted_drop(int stage, Level level) const noexcept {
    const double next = slow_down_.mean() * at(stage, level).stage;
    return stage + 1 < stages_ ? next + predicted_rest(stage + 1, Level{0}) : next;
  }

  /// The same at the lasting slow-down, the stages' medians and with the present run's guard on top.
  [[nodiscard]] double guarded_drop(int stage, Level level) const noexcept {
    const double rest = stage + 1 < stages_ ? at(stage + 1, Level{0}).rest : 0;
    return slow_down_.usual() * (at(stage, level).stage + rest) + guard_;
  }

  /// Whether `finish` nanoseconds after arrival keep `limit` less margin and reserve.
  [[nodiscard]] bool keeps(double finish, Duration limit) const noexcept {
    return limit == Duration::max() || finish <= kept_until(limit);
  }

 private:
  struct Entry {
    double rest = 0;      ///< median from the stage's start to the end
    double spread = 0;    ///< what the confidence adds to it
    double stage = 0;     ///< median of the stage
    double length = 1;    ///< of the stage, over that of an average one of the network with all pictures
    double weight = 1;    ///< the same over a slice, if that is longer: what the stage counts for the slow-down
    double variance = 0;  ///< of the stage's time when nothing disturbs
  };

  [[nodiscard]] const Entry& at(int stage, Level level) const noexcept {
    return table_[static_cast<std::size_t>(stage) * static_cast<std::size_t>(levels_) +
                  static_cast<std::size_t>(level.index)];
  }
  [[nodiscard]] Duration elapsed() const noexcept { return detail::since(arrival_, last_); }
  /// `limit` less margin and reserve, in nanoseconds.
  [[nodiscard]] double kept_until(Duration limit) const noexcept {
    return static_cast<double>(limit.count()) * (1 - options_.margin) - static_cast<double>(options_.reserve.count());
  }
  [[nodiscard]] bool expired(Duration elapsed) const noexcept {
    return limit_ != Duration::max() && (limit_ <= Duration::zero() || elapsed >= limit_);
  }
  [[nodiscard]] RoutePoint make_point(Level level) const noexcept {
    const Duration late_for =
        late_since_ != never_late ? detail::saturated_difference(elapsed(), late_since_) : Duration::zero();
    return {*this, next_stage_, level, highest_, elapsed(), limit_, late_for};
  }

  template <RoutingPolicy Policy>
  Level choose(Policy& policy, const RoutePoint& point) noexcept {
    Level level = policy(point);
    level.index = std::clamp(level.index, 0, highest_.index);
    last_prediction_ = point.predicted_finish(level);
    path_[static_cast<std::size_t>(next_stage_++)] = level;
    return level;
  }

  /// Takes the time of the stage that just ended. A clock that went back counts as one that stood still.
  void observe(TimePoint now) noexcept {
    const TimePoint start = last_;
    if (now > last_) last_ = now;
    const Entry& entry = at(next_stage_ - 1, path_[static_cast<std::size_t>(next_stage_ - 1)]);
    if (!(entry.stage > 0)) return;
    observed_.time += static_cast<double>(detail::since(start, last_).count());
    observed_.expected += entry.stage;
    observed_.length += entry.length;
    observed_.weight += entry.weight;
    observed_.variance += entry.variance;
    learn(least_length);
  }
  /// Gives what was observed to the estimate, if it is at least so long.
  void learn(double least) noexcept {
    if (!(observed_.expected > 0) || observed_.length < least) return;
    slow_down_.observe(observed_.time / observed_.expected, observed_.weight,
                       observed_.variance / (observed_.expected * observed_.expected));
    observed_ = {};
  }

  /// x with P(X <= x) = probability for a standard normal X, by bisection.
  [[nodiscard]] static double normal_quantile(double probability) noexcept {
    double low = -9;
    double high = 9;
    for (int i = 0; i < 60; ++i) {
      const double middle = (low + high) / 2;
      (0.5 * std::erfc(-middle / std::sqrt(2.0)) < probability ? low : high) = middle;
    }
    return (low + high) / 2;
  }

  /// Stages shorter than this, over an average one, are observed together: those of micro-batches are so short that
  /// their times say more about jitter than about the rest of the run.
  static constexpr double least_length = 0.5;

  RouterOptions options_;
  int levels_;
  int stages_;
  int micro_batches_ = 1;
  SlowDown slow_down_;
  double normal_quantile_ = 0;
  /// Stages of this run that the slow-down has not been told about.
  struct Observed {
    double time = 0;
    double expected = 0;
    double length = 0;
    double weight = 0;
    double variance = 0;
  } observed_;
  std::vector<Entry> table_;
  std::vector<Level> path_;
  int next_stage_ = 0;  ///< that has not begun
  TimePoint arrival_{};
  TimePoint last_{};  ///< the latest time known
  Duration limit_ = Duration::max();
  Level highest_;
  static constexpr Duration never_late = Duration::max();
  Duration late_since_ =
      never_late;     ///< time since arrival from which on staying at the level was predicted to be late
  double guard_ = 0;  ///< nanoseconds, of the present run
  Duration first_prediction_{};
  Duration last_prediction_{};
  bool late_at_start_ = false;
  bool in_time_at_start_ = false;  ///< at the highest level, if nothing disturbed
};

inline int RoutePoint::stages() const noexcept {
  return router_.stages() / router_.micro_batches();
}

inline int RoutePoint::stage() const noexcept {
  return step_ % stages();
}

inline int RoutePoint::micro_batch() const noexcept {
  return step_ / stages();
}

inline int RoutePoint::micro_batches() const noexcept {
  return router_.micro_batches();
}

inline Duration RoutePoint::predicted_finish(Level level) const noexcept {
  return saturated(std::chrono::duration<double, std::nano>(static_cast<double>(elapsed_.count()) +
                                                            router_.predicted_rest(step_, level)));
}

inline bool RoutePoint::meets(Level level) const noexcept {
  return router_.keeps(static_cast<double>(elapsed_.count()) + router_.predicted_rest(step_, level), limit_);
}

inline bool RoutePoint::guarded(Level level) const noexcept {
  return router_.keeps(static_cast<double>(elapsed_.count()) + router_.guarded_drop(step_, level), limit_);
}

inline bool RoutePoint::may_wait() const noexcept {
  const RouterOptions& options = router_.options();
  return router_.patient() && late_for_ < options.patience &&
         router_.keeps(static_cast<double>(elapsed_.count()) + static_cast<double>(options.patience_reserve.count()) +
                           router_.predicted_drop(step_, level_),
                       limit_);
}

}  // namespace strata
