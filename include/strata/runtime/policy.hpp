// The usual routing policies. A program's own policy is any type with `Level operator()(const RoutePoint&) noexcept`;
// when and from what it is asked is runtime/router.hpp's business.
#pragma once

#include <cstdint>

#include <strata/core/types.hpp>
#include <strata/runtime/router.hpp>

namespace strata {

/// Always the same level (or the highest present below it), whatever the deadline.
struct StaticLevel {
  Level level;

  Level operator()(const RoutePoint&) const noexcept { return level; }
};

/// The highest level that is predicted to meet the deadline, chosen once, before the run.
struct ChooseAtStart {
  Level operator()(const RoutePoint& point) const noexcept {
    return point.start() ? point.highest_meeting(point.highest()) : point.level();
  }
};

/// Starts at the highest level and drops where it is predicted to be late and the options' patience is at its end. A
/// deadline that has passed before the start runs the lowest.
struct Reroute {
  bool up = false;  ///< whether a level may be raised again

  Level operator()(const RoutePoint& point) const noexcept {
    if (!point.start()) return point.highest_in_time(up ? point.highest() : point.level());
    const bool expired = point.limit() <= Duration::zero() || point.elapsed() >= point.limit();
    return expired && point.limit() != Duration::max() ? Level{0} : point.highest();
  }
};

/// Both: chooses at the start and at every stage boundary. What `Session::run` does if nothing else is asked for.
struct ChooseAndReroute {
  bool up = false;  ///< whether a level may be raised again

  Level operator()(const RoutePoint& point) const noexcept {
    if (point.start()) return point.highest_meeting(point.highest());
    return point.highest_in_time(up ? point.highest() : point.level());
  }
};

/// Any level at the start and any not above it at every stage, from a seed: what accuracy along random paths is worth.
struct RandomLevel {
  explicit RandomLevel(std::uint64_t seed) noexcept : state(seed) {}

  Level operator()(const RoutePoint& point) noexcept {
    // splitmix64 (Steele, Lea, Flood 2014)
    std::uint64_t mixed = state += 0x9E3779B97F4A7C15U;
    mixed = (mixed ^ (mixed >> 30U)) * 0xBF58476D1CE4E5B9U;
    mixed = (mixed ^ (mixed >> 27U)) * 0x94D049BB133111EBU;
    mixed ^= mixed >> 31U;
    return {static_cast<int>((mixed >> 33U) % static_cast<std::uint64_t>(point.level().index + 1))};
  }

  std::uint64_t state;
};

/// Knows the future: `finish(point, level)` says when the run would really finish, since arrival, if it went on at
/// `level` from here. The highest level that meets the deadline, for this request alone: what is left of the deadlines
/// of requests that wait is not its concern. For replayed traces.
template <class Finish>
struct Oracle {
  Finish finish;

  Level operator()(const RoutePoint& point) noexcept {
    for (Level level = point.level(); level.index > 0; --level.index)
      if (finish(point, level) <= point.limit()) return level;
    return {0};
  }
};
template <class Finish>
Oracle(Finish) -> Oracle<Finish>;

}  // namespace strata
