// What happens to a server from outside, from a seed: when requests arrive and when co-tenants work. The same trace is
// replayed against every policy, by the simulation and by the real run.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace qos {

/// A number in [0, 1), the same on every machine (the distributions of the standard library are not).
inline double uniform(std::mt19937_64& random) {
  return static_cast<double>(random() >> 11U) * 0x1p-53;
}
inline double exponential(std::mt19937_64& random, double mean) {
  return -mean * std::log1p(-uniform(random));
}
/// A generator for one purpose out of many.
inline std::mt19937_64 generator(std::uint64_t seed, std::uint64_t purpose) {
  std::seed_seq sequence{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32U),
                         static_cast<std::uint32_t>(purpose), 0x716F73U};
  return std::mt19937_64(sequence);
}

enum class Arrivals : std::uint8_t { poisson, periodic };

inline std::string name_of(Arrivals arrivals) {
  return arrivals == Arrivals::poisson ? "poisson" : "periodic";
}

/// Arrival times in nanoseconds from the start, ascending, open-loop: nobody waits for a result before the next
/// request.
inline std::vector<double> make_arrivals(Arrivals kind, std::size_t count, double interval, std::uint64_t seed) {
  auto random = generator(seed, 1);
  std::vector<double> times;
  double now = interval * uniform(random);
  for (std::size_t i = 0; i < count; ++i) {
    times.push_back(now);
    now += kind == Arrivals::poisson ? exponential(random, interval) : interval;
  }
  return times;
}

/// Co-tenants of one kind: `processes` of them, each working and idling for exponentially distributed times.
struct Interference {
  std::string name;
  int processes = 0;
  bool memory = false;  ///< streams through memory instead of computing
  double on_ms = 30;
  double off_ms = 120;
};

/// The kinds that the tables have. "compute" is that of the rough experiment the project started from.
inline std::vector<Interference> interferences(int cores) {
  return {{"none", 0, false, 1, 1},
          {"compute", cores, false, 30, 120},
          {"compute x2", 2 * cores, false, 30, 120},
          {"memory", cores, true, 60, 120},
          {"bursts", 2 * cores, false, 8, 40}};
}

struct Interval {
  double begin = 0;
  double end = 0;
};

/// When one co-tenant works, up to `until` nanoseconds.
inline std::vector<Interval> make_schedule(const Interference& kind, int process, double until, std::uint64_t seed) {
  auto random = generator(seed, 1000 + static_cast<std::uint64_t>(process));
  std::vector<Interval> intervals;
  double now = exponential(random, kind.off_ms * 1e6);
  while (now < until) {
    const double end = now + exponential(random, kind.on_ms * 1e6);
    intervals.push_back({now, std::min(end, until)});
    now = end + exponential(random, kind.off_ms * 1e6);
  }
  return intervals;
}

}  // namespace qos
