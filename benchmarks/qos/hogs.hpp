// Co-tenant processes that work on the server's cores at the times of a trace. Linux only: processes, affinity.
#pragma once

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <ctime>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <utility>
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

/// Processes of ordinary priority that live as long as the object. They die with the program, however it ends.
class Hogs {
 public:
  /// Starts `kind.processes` processes whose schedules count from `start` on the steady clock.
  Hogs(const Interference& kind, strata::TimePoint start, double until, std::uint64_t seed) {
    for (int process = 0; process < kind.processes; ++process) {
      const auto schedule = make_schedule(kind, process, until, seed);
      const pid_t child = fork();
      if (child < 0) strata::raise(strata::Error("co-tenants", "a process", "that none can be started"));
      if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        const sched_param ordinary{};
        sched_setscheduler(0, SCHED_OTHER, &ordinary);
        work(schedule, kind.memory, start);
        _exit(0);
      }
      children_.push_back(child);
    }
  }
  Hogs(const Hogs&) = delete;
  Hogs& operator=(const Hogs&) = delete;
  ~Hogs() {
    for (const pid_t child : children_) {
      kill(child, SIGKILL);
      while (waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
      }
    }
  }

 private:
  static void sleep_until(std::int64_t nanoseconds) noexcept {
    timespec time{};
    time.tv_sec = nanoseconds / 1'000'000'000;
    time.tv_nsec = nanoseconds % 1'000'000'000;
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nullptr) == EINTR) {
    }
  }

  /// In a child of a program with threads: nothing here allocates from the heap or takes a lock.
  static void work(const std::vector<Interval>& schedule, bool memory, strata::TimePoint start) noexcept {
    constexpr std::size_t bytes = 96U << 20U;  // more than the last-level cache of most machines
    constexpr std::size_t piece = 1U << 20U;
    volatile std::uint64_t* data = nullptr;
    if (memory) {
      void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (mapped == MAP_FAILED) _exit(1);
      data = static_cast<volatile std::uint64_t*>(mapped);
    }
    const strata::Clock clock;
    const std::int64_t base = start.time_since_epoch().count();
    std::size_t at = 0;
    volatile std::uint64_t sink = 0;
    for (const Interval& interval : schedule) {
      sleep_until(base + static_cast<std::int64_t>(interval.begin));
      const std::int64_t end = base + static_cast<std::int64_t>(interval.end);
      while (clock().time_since_epoch().count() < end) {
        if (memory) {
          for (std::size_t i = 0; i < piece / 8; i += 8) data[at / 8 + i] = data[at / 8 + i] + 1;
          at = (at + piece) % bytes;
        } else {
          for (int i = 0; i < 2000; ++i) sink = sink * 6364136223846793005U + 1;
        }
      }
    }
  }

  std::vector<pid_t> children_;
};

}  // namespace qos
