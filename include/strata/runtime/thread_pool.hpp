// The usual executor: Eigen's thread pool behind the library's seam. The calling thread takes part in the work.
#pragma once

#include <atomic>

#include <unsupported/Eigen/CXX11/ThreadPool>

#include <strata/core/executor.hpp>
#include <strata/core/types.hpp>

namespace strata {

/// `threads` threads, the calling one included; with 1 it starts none. One `parallel_for` at a time.
class ThreadPool final : public Executor {
 public:
  explicit ThreadPool(int threads) : threads_(threads < 1 ? 1 : threads), pool_(threads_ - 1) {}

  [[nodiscard]] int threads() const noexcept override { return threads_; }

  void parallel_for(index_t count, TaskRef task) noexcept override {
    const index_t helpers = count - 1 < threads_ - 1 ? count - 1 : threads_ - 1;
    if (helpers < 1) {
      for (index_t i = 0; i < count; ++i) task(i);
      return;
    }
    Job job{task, count, {0}, Eigen::Barrier(static_cast<unsigned>(helpers))};
    // The closure is one pointer, which std::function holds without allocating.
    for (index_t i = 0; i < helpers; ++i)
      pool_.Schedule([shared = &job] {
        shared->work();
        shared->done.Notify();
      });
    job.work();
    job.done.Wait();
  }

 private:
  struct Job {
    TaskRef task;
    index_t count;
    std::atomic<index_t> next;
    Eigen::Barrier done;

    void work() {
      for (index_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) task(i);
    }
  };

  int threads_;
  Eigen::ThreadPool pool_;
};

}  // namespace strata
