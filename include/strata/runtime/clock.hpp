// Time as deadlines use it: nanoseconds that saturate instead of overflowing, a clock that tests can replace, and the
// deadline of a request. What is done about a deadline is runtime/router.hpp's business.
#pragma once

#include <chrono>
#include <limits>
#include <optional>
#include <type_traits>

namespace strata {

using Duration = std::chrono::nanoseconds;
using TimePoint = std::chrono::time_point<std::chrono::steady_clock, Duration>;

/// Any duration in nanoseconds, cut at the range of `Duration`; not-a-number becomes the shortest one.
template <class Rep, class Period>
[[nodiscard]] constexpr Duration saturated(std::chrono::duration<Rep, Period> duration) noexcept {
  using Wide = std::chrono::duration<long double, std::nano>;
  const long double count = std::chrono::duration_cast<Wide>(duration).count();
  if (count >= static_cast<long double>(Duration::max().count())) return Duration::max();
  if (!(count > static_cast<long double>(Duration::min().count()))) return Duration::min();
  // Whole numbers that fit are taken exactly: long double has no more bits than double on some machines.
  if constexpr (std::is_integral_v<Rep>) return std::chrono::duration_cast<Duration>(duration);
  return Duration(static_cast<Duration::rep>(count));
}

namespace detail {

/// a - b, cut at the range of `Duration`.
[[nodiscard]] constexpr Duration saturated_difference(Duration a, Duration b) noexcept {
  if (b < Duration::zero() && a > Duration::max() + b) return Duration::max();
  if (b > Duration::zero() && a < Duration::min() + b) return Duration::min();
  return a - b;
}

[[nodiscard]] constexpr Duration since(TimePoint start, TimePoint now) noexcept {
  return saturated_difference(now.time_since_epoch(), start.time_since_epoch());
}

}  // namespace detail

/// Where the time comes from. The default is `std::chrono::steady_clock`; a test passes a function of its own.
/// A clock may stand still or jump: a run stays correct, only its choice of levels suffers.
struct Clock {
  TimePoint (*now)(void* object) noexcept = [](void*) noexcept {
    return std::chrono::time_point_cast<Duration>(std::chrono::steady_clock::now());
  };
  void* object = nullptr;

  [[nodiscard]] TimePoint operator()() const noexcept { return now(object); }
};

/// By when a result is wanted, counted from the arrival of the request, so that waiting in a queue counts.
struct Deadline {
  Duration limit = Duration::max();    ///< from arrival; zero or less has passed already, the longest one never does
  std::optional<TimePoint> arrival{};  ///< on the session's clock; none: the moment `run` is called

  constexpr Deadline() = default;
  /// Durations of any unit, floating-point ones included; infinite ones never pass, not-a-number has passed.
  template <class Rep, class Period>
  constexpr explicit Deadline(std::chrono::duration<Rep, Period> after, std::optional<TimePoint> arrived = {}) noexcept
      : limit(saturated(after)), arrival(arrived) {}

  [[nodiscard]] static constexpr Deadline never() noexcept { return Deadline(); }
};

}  // namespace strata
