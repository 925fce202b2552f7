// What handing two tasks to two threads costs: strata's pool and Eigen's behind the same seam, empty tasks and tasks of
// 50 us, at once one after the other or with serial work between, as between the layers of a network.
#include <atomic>
#include <chrono>

#include <benchmark/benchmark.h>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include <strata/core/executor.hpp>
#include <strata/runtime/thread_pool.hpp>

namespace {

using strata::index_t;

/// Eigen's pool as an executor. The calling thread takes part in the work.
class EigenPool final : public strata::Executor {
 public:
  explicit EigenPool(int threads) : pool_(threads - 1) {}

  [[nodiscard]] int threads() const noexcept override { return pool_.NumThreads() + 1; }
  void parallel_for(index_t count, strata::TaskRef task) noexcept override {
    const int helpers = pool_.NumThreads();
    Job job{task, count, {0}, Eigen::Barrier(static_cast<unsigned>(helpers))};
    for (int i = 0; i < helpers; ++i)
      pool_.Schedule([shared = &job] {
        shared->work();
        shared->done.Notify();
      });
    job.work();
    job.done.Wait();
  }

 private:
  struct Job {
    strata::TaskRef task;
    index_t count;
    std::atomic<index_t> next;
    Eigen::Barrier done;

    void work() {
      for (index_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) task(i);
    }
  };
  Eigen::ThreadPool pool_;
};

void busy_for(std::chrono::microseconds time) {
  if (time.count() == 0) return;
  const auto end = std::chrono::steady_clock::now() + time;
  while (std::chrono::steady_clock::now() < end) {
  }
}

/// Arguments: microseconds of a task, microseconds between two calls (both are part of the time reported).
template <class Pool>
void fork_join(benchmark::State& state) {
  Pool pool(2);
  const std::chrono::microseconds task(state.range(0));
  const std::chrono::microseconds between(state.range(1));
  for (auto _ : state) {
    pool.parallel_for(2, [&](index_t) { busy_for(task); });
    busy_for(between);
  }
}

BENCHMARK_TEMPLATE(fork_join, strata::ThreadPool)
    ->ArgNames({"task_us", "between_us"})
    ->ArgsProduct({{0, 50}, {0, 20}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_TEMPLATE(fork_join, EigenPool)
    ->ArgNames({"task_us", "between_us"})
    ->ArgsProduct({{0, 50}, {0, 20}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace

BENCHMARK_MAIN();
