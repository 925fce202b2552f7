// Executors: every task once, all done on return, nothing allocated, pools that do not disturb each other.
#include <atomic>
#include <chrono>
#include <numeric>
#include <thread>
#include <vector>

#include <strata/core/executor.hpp>
#include <strata/runtime/thread_pool.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"

namespace {

using strata::index_t;

/// Whether `executor` runs each of `count` tasks once and is done on return; plain counters, so that a task that still
/// runs after the return is a race that a thread sanitizer sees.
bool runs_each_once(strata::Executor& executor, index_t count) {
  std::vector<int> runs(static_cast<std::size_t>(count), 0);
  executor.parallel_for(count, [&](index_t task) { ++runs.at(static_cast<std::size_t>(task)); });
  for (const int r : runs)
    if (r != 1) return false;
  return true;
}

}  // namespace

TEST_CASE("an executor runs every task once") {
  for (const int threads : {1, 2, 3, 8}) {
    strata::ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    for (const index_t count : {0, 1, 2, 3, 7, 8, 9, 64, 1000}) {
      INFO(threads << " threads, " << count << " tasks");
      bool once = true;
      for (int repeat = 0; repeat < 20; ++repeat) once = once && runs_each_once(pool, count);
      CHECK(once);
    }
  }
  strata::SerialExecutor serial;
  CHECK(serial.threads() == 1);
  for (const index_t count : {0, 1, 9}) CHECK(runs_each_once(serial, count));
}

TEST_CASE("a pool of fewer than one thread is one of one") {
  for (const int threads : {0, -1, -100}) {
    INFO(threads << " threads");
    strata::ThreadPool pool(threads);
    CHECK(pool.threads() == 1);
    CHECK(runs_each_once(pool, 10));
  }
}

TEST_CASE("one thread means the calling thread, in order") {
  strata::ThreadPool pool(1);
  strata::SerialExecutor serial;
  for (strata::Executor* executor : {static_cast<strata::Executor*>(&pool), static_cast<strata::Executor*>(&serial)}) {
    std::vector<index_t> order;
    bool here = true;
    const auto caller = std::this_thread::get_id();
    executor->parallel_for(50, [&](index_t task) {
      order.push_back(task);
      here = here && std::this_thread::get_id() == caller;
    });
    std::vector<index_t> expected(50);
    std::iota(expected.begin(), expected.end(), index_t{0});
    CHECK(order == expected);
    CHECK(here);
  }
}

TEST_CASE("all threads of a pool can work at once") {
  for (const int threads : {2, 4}) {
    INFO(threads << " threads");
    strata::ThreadPool pool(threads);
    std::atomic<int> arrived{0};
    // Each task waits for all others: this ends only if every thread, the calling one too, takes one.
    pool.parallel_for(threads, [&](index_t) {
      ++arrived;
      while (arrived < threads) std::this_thread::yield();
    });
    CHECK(arrived == threads);
  }
}

TEST_CASE("running tasks allocates nothing") {
  for (const int threads : {1, 2, 3}) {
    INFO(threads << " threads");
    strata::ThreadPool pool(threads);
    std::atomic<index_t> sum{0};
    const auto add = [&](index_t task) { sum += task; };
    for (int i = 0; i < 10; ++i) pool.parallel_for(100, add);
    const long before = allocations();
    for (int i = 0; i < 200; ++i) pool.parallel_for(100, add);
    CHECK(allocations() == before);
    CHECK(sum == 210 * 4950);
  }
}

TEST_CASE("a task reference calls the callable it was made from") {
  index_t sum = 0;
  auto add = [&sum](index_t task) mutable { sum += task; };
  const strata::TaskRef reference(add);
  const strata::TaskRef copy = reference;
  reference(3);
  copy(4);
  CHECK(sum == 7);
  strata::ThreadPool pool(2);
  std::atomic<index_t> total{0};
  const auto count = [&](index_t task) { total += task + 1; };
  pool.parallel_for(4, count);
  strata::Executor& executor = pool;
  executor.parallel_for(4, strata::TaskRef(count));
  CHECK(total == 20);
}

TEST_CASE("pools of several threads run at once without disturbing each other") {
  std::atomic<int> wrong{0};
  std::vector<std::thread> hosts;
  for (int host = 0; host < 3; ++host)
    hosts.emplace_back([&wrong, host] {
      strata::ThreadPool pool(1 + host);
      for (index_t i = 0; i < 300; ++i)
        if (!runs_each_once(pool, i % 20)) ++wrong;
    });
  for (std::thread& host : hosts) host.join();
  CHECK(wrong == 0);
}

TEST_CASE("workers that fell asleep are woken, and a caller that waits long sleeps") {
  using namespace std::chrono_literals;
  for (const int threads : {2, 4}) {
    INFO(threads << " threads");
    strata::ThreadPool pool(threads);
    for (int repeat = 0; repeat < 5; ++repeat) {
      std::this_thread::sleep_for(5ms);  // longer than anybody spins
      std::atomic<int> arrived{0};
      pool.parallel_for(threads, [&](index_t) {
        ++arrived;
        while (arrived < threads) std::this_thread::yield();
      });
      CHECK(arrived == threads);
    }
    // Of two tasks the caller has the first or the second; the other thread's takes long in every second round.
    const auto caller = std::this_thread::get_id();
    std::vector<int> runs(2, 0);
    for (int repeat = 0; repeat < 10; ++repeat)
      pool.parallel_for(2, [&](index_t task) {
        if (std::this_thread::get_id() != caller) std::this_thread::sleep_for(repeat % 2 == 0 ? 3ms : 0ms);
        ++runs[static_cast<std::size_t>(task)];
      });
    CHECK(runs == std::vector<int>{10, 10});
  }
}

TEST_CASE("tasks may use the pool that runs them") {
  strata::ThreadPool pool(3);
  std::atomic<index_t> sum{0};
  for (int repeat = 0; repeat < 20; ++repeat)
    pool.parallel_for(6,
                      [&](index_t outer) { pool.parallel_for(5, [&](index_t inner) { sum += 5 * outer + inner; }); });
  CHECK(sum == index_t{20} * 435);
}

TEST_CASE("threads may share a pool") {
  strata::ThreadPool pool(3);
  std::atomic<int> wrong{0};
  std::vector<std::thread> hosts;
  for (int host = 0; host < 3; ++host)
    hosts.emplace_back([&] {
      for (index_t i = 0; i < 300; ++i)
        if (!runs_each_once(pool, i % 20)) ++wrong;
    });
  for (std::thread& host : hosts) host.join();
  CHECK(wrong == 0);
}

TEST_CASE("what tasks write is there when parallel_for returns, however many threads there are") {
  for (const int threads : {2, 3, 16}) {
    INFO(threads << " threads");
    strata::ThreadPool pool(threads);
    std::vector<index_t> values(40, 0);
    bool good = true;
    for (index_t round = 1; round <= 500; ++round) {
      pool.parallel_for(40, [&](index_t task) { values[static_cast<std::size_t>(task)] += task; });
      for (index_t i = 0; i < 40; ++i) good = good && values[static_cast<std::size_t>(i)] == round * i;
    }
    CHECK(good);
  }
}

TEST_CASE("pools come and go") {
  for (int i = 0; i < 50; ++i) {
    INFO("pool " << i);
    strata::ThreadPool pool(1 + i % 4);
    if (i % 2 == 0) CHECK(runs_each_once(pool, i));
  }
}
