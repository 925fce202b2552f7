// Co-tenant processes that work on the server's cores at the times of a trace. Linux only: processes, affinity.
#pragma once

#include <array>
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <string>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/runtime/clock.hpp>

#include "trace.hpp"

namespace qos {

/// Confines the process, and what it starts from now on, to `cores`; empty: leaves it. Raises: not permitted.
inline void pin_to(const std::vector<int>& cores) {
  if (cores.empty()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int core : cores)
    if (core >= 0 && core < CPU_SETSIZE) CPU_SET(static_cast<std::size_t>(core), &set);
  if (sched_setaffinity(0, sizeof(set), &set) != 0)
    strata::raise(strata::Error("cores", "cores that this process may use", "others"));
}

/// Gives the calling thread, and threads that it starts from now on, real-time priority `priority` (SCHED_FIFO): it
/// runs before every ordinary process. Raises: not permitted.
inline void set_real_time(int priority) {
  sched_param parameters{};
  parameters.sched_priority = priority;
  if (sched_setscheduler(0, SCHED_FIFO, &parameters) != 0)
    strata::raise(strata::Error("real-time priority", "a priority that this process may have", "others"));
}

namespace detail {

inline void sleep_until(std::int64_t nanoseconds) noexcept {
  timespec time{};
  time.tv_sec = nanoseconds / 1'000'000'000;
  time.tv_nsec = nanoseconds % 1'000'000'000;
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nullptr) == EINTR) {
  }
}

inline void work(const std::vector<Interval>& schedule, bool memory, std::int64_t start) {
  constexpr std::size_t bytes = 96U << 20U;  // more than the last-level cache of most machines
  constexpr std::size_t piece = 1U << 20U;
  // Not touched before its time.
  const std::unique_ptr<void, void (*)(void*)> data(memory ? std::calloc(bytes, 1) : nullptr, std::free);
  auto* const words = static_cast<volatile std::uint64_t*>(data.get());
  if (memory && words == nullptr) return;
  const strata::Clock clock;
  std::size_t at = 0;
  volatile std::uint64_t sink = 0;
  for (const Interval& interval : schedule) {
    sleep_until(start + static_cast<std::int64_t>(interval.begin));
    const std::int64_t end = start + static_cast<std::int64_t>(interval.end);
    while (clock().time_since_epoch().count() < end) {
      if (memory) {
        for (std::size_t i = 0; i < piece / 8; i += 8) words[at / 8 + i] = words[at / 8 + i] + 1;
        at = (at + piece) % bytes;
      } else {
        for (int i = 0; i < 2000; ++i) sink = sink * 6364136223846793005U + 1;
      }
    }
  }
}

}  // namespace detail

/// The first argument of a program that is to be a co-tenant: see `Hogs`.
inline constexpr const char* co_tenant = "co-tenant";

/// What such a program does, with the arguments that `Hogs` gives it; its exit code.
inline int run_co_tenant(int argc, char** argv) {
  if (argc != 9) return 2;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const sched_param ordinary{};
  sched_setscheduler(0, SCHED_OTHER, &ordinary);
  Interference kind;
  kind.memory = std::strcmp(argv[2], "memory") == 0;
  kind.on_ms = std::strtod(argv[3], nullptr);
  kind.off_ms = std::strtod(argv[4], nullptr);
  const auto process = static_cast<int>(std::strtol(argv[5], nullptr, 10));
  const double until = std::strtod(argv[6], nullptr);
  const std::uint64_t seed = std::strtoull(argv[7], nullptr, 10);
  detail::work(make_schedule(kind, process, until, seed), kind.memory, std::strtoll(argv[8], nullptr, 10));
  return 0;
}

/// Processes of ordinary priority that live as long as the object. They die with the program, however it ends. They are
/// this program started anew, whose `main` has to call `run_co_tenant`: copies of it made by `fork` would share its
/// memory, and the server would pay with a copy for the first write to every page.
class Hogs {
 public:
  /// Starts `kind.processes` processes whose schedules count from `start` on the steady clock. Raises: not possible.
  Hogs(const Interference& kind, strata::TimePoint start, double until, std::uint64_t seed) {
    for (int process = 0; process < kind.processes; ++process) {
      std::vector<std::string> arguments = {"qos", co_tenant, kind.memory ? "memory" : "compute"};
      for (const double number : {kind.on_ms, kind.off_ms}) arguments.push_back(exact(number));
      arguments.push_back(std::to_string(process));
      arguments.push_back(exact(until));
      arguments.push_back(std::to_string(seed));
      arguments.push_back(std::to_string(start.time_since_epoch().count()));
      std::vector<char*> pointers;
      for (std::string& argument : arguments) pointers.push_back(argument.data());
      pointers.push_back(nullptr);
      pid_t child = 0;
      if (const int failure = posix_spawn(&child, "/proc/self/exe", nullptr, nullptr, pointers.data(), environ);
          failure != 0) {
        end();
        strata::raise(strata::Error("co-tenants", "a process", std::strerror(failure)));
      }
      children_.push_back(child);
    }
  }
  Hogs(const Hogs&) = delete;
  Hogs& operator=(const Hogs&) = delete;
  ~Hogs() { end(); }

 private:
  [[nodiscard]] static std::string exact(double number) {
    std::array<char, 32> digits{};
    const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), number);
    return {digits.data(), end.ptr};
  }

  void end() noexcept {
    for (const pid_t child : children_) {
      kill(child, SIGKILL);
      while (waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
      }
    }
    children_.clear();
  }

  std::vector<pid_t> children_;
};

}  // namespace qos
