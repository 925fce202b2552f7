// The usual executor: a fork-join pool whose waiting threads spin for a moment before they sleep, because a layer takes
// 50 to 300 us and waking a sleeping thread 20 to 50 us. The calling thread takes part in the work.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/executor.hpp>
#include <strata/core/types.hpp>

namespace strata {

namespace detail {

/// Tells the processor that this is a loop that waits: saves power and leaves the core to its other hardware thread.
inline void pause_briefly() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  __asm__ volatile("yield");
#endif
}

/// Waits for `ready()` without sleeping: some microseconds with the processor held, then for about a tenth of a
/// millisecond offering it to others, so that more threads than cores do no harm. Whether it came true.
template <class Ready>
[[nodiscard]] bool spin_until(const Ready& ready) noexcept {
  constexpr int pauses = 200;
  constexpr int yields = 200;
  for (int i = 0; i < pauses; ++i) {
    if (ready()) return true;
    pause_briefly();
  }
  for (int i = 0; i < yields; ++i) {
    if (ready()) return true;
    std::this_thread::yield();
  }
  return ready();
}

}  // namespace detail

/// `threads` threads, the calling one included; with 1 or less it starts none. Tasks are taken in ascending order. A
/// `parallel_for` while another one of this pool runs (from one of its tasks or from another thread) does all its
/// tasks on the calling thread.
class ThreadPool final : public Executor {
 public:
  /// Raises: the system has no more threads.
  explicit ThreadPool(int threads) : ThreadPool(Unstarted{}, threads < 1 ? 1 : threads) {
    // The object is complete: should a thread not start, the destructor ends those before it.
    workers_.reserve(static_cast<std::size_t>(threads_ - 1));
    const auto start = [this] {
      for (int i = 1; i < threads_; ++i) workers_.emplace_back([this] { serve(); });
    };
#if defined(__cpp_exceptions)
    try {
      start();
    } catch (const std::system_error& error) {
      raise(Error({"thread pool"}, {threads_, " threads"}, {workers_.size() + 1, ": ", error.what()}));
    }
#else
    start();
#endif
  }

  ~ThreadPool() override {
    stop_.store(true);
    wake_.fetch_add(1);
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  [[nodiscard]] int threads() const noexcept override {
    return threads_;
  }

  void parallel_for(index_t count, TaskRef task) noexcept override {
    if (threads_ == 1 || count < 2 || busy_.exchange(true, std::memory_order_acquire)) {
      for (index_t i = 0; i < count; ++i) task(i);
      return;
    }
    task_ = &task;
    count_ = count;
    remaining_.store(count);
    wake(count - 1);
    work();
    // No task is left, so whoever has one counts as active, and only those are waited for: a worker that sleeps or is
    // kept from its core holds up nobody.
    const auto done = [this] { return active_.load() == 0; };
    if (!detail::spin_until(done)) {
      caller_sleeps_.store(true);
      for (std::uint32_t active = active_.load(); active != 0; active = active_.load()) active_.wait(active);
      caller_sleeps_.store(false);
    }
    busy_.store(false, std::memory_order_release);
  }

 private:
  struct Unstarted {};
  ThreadPool(Unstarted, int threads) : threads_(threads) {}

  /// Wakes those who sleep, as many as there is work for. A worker counts itself as sleeping before it looks for work
  /// one last time, and work is there before sleepers are counted, so one of the two sees the other.
  void wake(index_t helpers) noexcept {
    const auto sleepers = static_cast<index_t>(sleepers_.load());
    if (sleepers == 0) return;
    wake_.fetch_add(1);
    if (helpers < sleepers) {
      for (index_t i = 0; i < helpers; ++i) wake_.notify_one();
    } else {
      wake_.notify_all();
    }
  }

  /// Takes tasks until none is left. `task_` and `count_` are read only with a task in hand, while they are fixed.
  void work() noexcept {
    index_t left = remaining_.load();
    while (left > 0)
      if (remaining_.compare_exchange_weak(left, left - 1)) {
        (*task_)(count_ - left);
        left = remaining_.load();
      }
  }

  /// What a worker does all its life.
  void serve() noexcept {
    const auto called = [this] { return remaining_.load() > 0 || stop_.load(); };
    while (!stop_.load()) {
      if (!detail::spin_until(called)) {
        sleepers_.fetch_add(1);
        const std::uint32_t before = wake_.load();
        if (!called()) wake_.wait(before);
        sleepers_.fetch_sub(1);
        continue;
      }
      // Active before the first task is taken: the caller that sees no task left sees all who have one.
      active_.fetch_add(1);
      work();
      if (active_.fetch_sub(1) == 1 && caller_sleeps_.load()) active_.notify_one();
    }
  }

  // The counters lie apart, so that threads that spin on one do not slow down those who change another.
  alignas(64) std::atomic<index_t> remaining_{0};  ///< tasks that nobody has taken yet
  const TaskRef* task_ = nullptr;
  index_t count_ = 0;
  alignas(64) std::atomic<std::uint32_t> active_{0};  ///< workers that take tasks or try to
  std::atomic<bool> caller_sleeps_{false};
  alignas(64) std::atomic<std::uint32_t> wake_{0};  ///< changes when sleepers shall look for work
  std::atomic<std::uint32_t> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::atomic<bool> busy_{false};
  const int threads_;
  std::vector<std::thread> workers_;
};

}  // namespace strata
