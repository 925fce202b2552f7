// Which levels of a model have their memory: pages of upper strata go back to the system while runs at lower levels go
// on, and come again from the file. When to do so is the host program's decision (examples/deadline/memory.cpp).
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <strata/core/archive.hpp>
#include <strata/core/error.hpp>
#include <strata/core/types.hpp>

#if __has_include(<sys/mman.h>)
#define STRATA_HAS_MADVISE 1
#include <cerrno>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace strata {

/// The ledger of one model's memory. Runs enter at a level and leave; releasing first lowers what may be entered, then
/// waits for the runs above it, so that no run ever meets a page that is about to go. Pages are those of a private
/// read-only mapping: even a reader outside the ledger would get the same bytes, again from the file.
class Residency {
 public:
  /// Of the model that `archive` holds. Keeps the archive's memory alive.
  explicit Residency(const Archive& archive)
      : owners_(archive.owners()),
        top_(archive.levels() - 1),
        present_(top_),
        runs_(static_cast<std::size_t>(archive.levels())) {
    const std::span<const std::byte> mapped = archive.mapped();
    if (mapped.empty()) return;
    strata_.resize(static_cast<std::size_t>(archive.levels()));
    const auto first = reinterpret_cast<std::uintptr_t>(mapped.data());
    end_ = first + mapped.size();
    for (const ArrayView& view : archive.arrays()) {
      const auto begin = reinterpret_cast<std::uintptr_t>(view.bytes.data());
      if (view.bytes.empty() || begin < first || begin >= end_) continue;
      Range& range = strata_[static_cast<std::size_t>(view.stratum)];
      if (range.begin == 0 || begin < range.begin) range.begin = begin;
      if (begin + view.bytes.size() > range.end) range.end = begin + view.bytes.size();
    }
  }
  Residency(const Residency&) = delete;
  Residency& operator=(const Residency&) = delete;
  ~Residency() { stop(); }

  [[nodiscard]] Level present() const noexcept { return {present_.load(std::memory_order_acquire)}; }

  /// Begins a run at `wanted` or the highest level present below it, which is returned and to be passed to `leave`.
  /// Two atomic steps, no waiting.
  [[nodiscard]] Level enter(Level wanted) noexcept {
    for (;;) {
      const int present = present_.load();
      const int level = wanted.index < present ? wanted.index : present;
      std::atomic<int>& runs = runs_[static_cast<std::size_t>(level)].count;
      runs.fetch_add(1);
      // A release that came in between either sees this run or is seen here.
      if (present_.load() >= level) return {level};
      runs.fetch_sub(1);
    }
  }
  void leave(Level level) noexcept {
    runs_[static_cast<std::size_t>(level.index)].count.fetch_sub(1, std::memory_order_release);
  }

  /// See `Model::release_above`; the errors as values.
  [[nodiscard]] Result<index_t> release_above(Level level) {
    if (Status status = check(level); !status) return status.error();
#if defined(STRATA_HAS_MADVISE)
    if (strata_.empty()) return Error("release_above", "a model mapped from a file", "one in memory of its own");
    const std::lock_guard lock(control_);
    const bool interrupts = target_ > level.index;  // a restore, which has read some of what it was to make present
    if (interrupts) stop();
    const int before = present_.load();
    if (level.index >= before) return interrupts ? give_back(level.index + 1) : index_t{0};
    present_.store(level.index);
    for (std::size_t above = static_cast<std::size_t>(level.index) + 1; above < runs_.size(); ++above)
      while (runs_[above].count.load() != 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
    Result<index_t> released = give_back(level.index + 1);
    if (!released) present_.store(before);
    return released;
#else
    return Error("release_above", "a system with madvise", "another");
#endif
  }

  /// Gives pages of absent levels back that came in past the ledger.
  void forget_absent() {
#if defined(STRATA_HAS_MADVISE)
    if (strata_.empty() || present_.load() == top_) return;
    const std::lock_guard lock(control_);
    // One that is being restored is wanted.
    // `reading_` first: once it is false, `present_` has all that was restored.
    const bool reading = reading_.load();
    const int wanted = std::max(present_.load(), reading ? target_ : 0);
    if (wanted < top_) (void)give_back(wanted + 1);
#endif
  }

  /// See `Model::restore`; the errors as values. Errors: no such level, a thread that cannot be started.
  [[nodiscard]] Status restore(Level level) {
    if (Status status = check(level); !status) return status;
    const std::lock_guard lock(control_);
    if (level.index <= present_.load() || (reading_.load() && level.index <= target_)) return success();
    stop();
    cancel_.store(false);
    reading_.store(true);
    target_ = level.index;
    Status started = start([this, level] {
      read_again(level.index);
      reading_.store(false);
      reading_.notify_all();
    });
    if (!started) {
      target_ = 0;
      reading_.store(false);
      reading_.notify_all();
    }
    return started;
  }

  /// Waits until a `restore` under way is done or was ended by a release. Does not keep others from either.
  void wait() {
    reading_.wait(true);
  }

 private:
  struct Range {
    std::uintptr_t begin = 0;
    std::uintptr_t end = 0;
  };
  struct alignas(64) Runs {
    std::atomic<int> count{0};
  };

  [[nodiscard]] Status check(Level level) const {
    if (level.index >= 0 && level.index <= top_) return success();
    return Error({"level"}, {"0 to ", top_}, {level.index});
  }

#if defined(STRATA_HAS_MADVISE)
  /// The pages of strata `first` and above go back to the system; how many bytes they were. Precondition: `control_` is
  /// held.
  [[nodiscard]] Result<index_t> give_back(int first) const {
    const Range range = pages(first, top_);
    if (range.begin >= range.end) return index_t{0};
    void* begin = reinterpret_cast<void*>(range.begin);  // NOLINT(performance-no-int-to-ptr): pages of a mapping
#if defined(MADV_PAGEOUT)
    // Gives back the page cache as well where nobody else maps the file; where that is not allowed, nothing is lost.
    (void)::madvise(begin, range.end - range.begin, MADV_PAGEOUT);
#endif
    if (::madvise(begin, range.end - range.begin, MADV_DONTNEED) != 0)
      return Error("release_above", "pages that can be given back", std::strerror(errno));
    return static_cast<index_t>(range.end - range.begin);
  }
#endif

  /// The whole pages of strata first .. last: pages shared with a neighbour stay. What follows the file's end on its
  /// last page belongs to nobody.
  [[nodiscard]] Range pages(int first, int last) const {
    Range range;
    for (int s = first; s <= last; ++s) {
      const Range& stratum = strata_[static_cast<std::size_t>(s)];
      if (stratum.end == 0) continue;
      if (range.begin == 0) range.begin = stratum.begin;
      range.end = stratum.end;
    }
    const std::uintptr_t page = page_bytes();
    range.begin = (range.begin + page - 1) / page * page;
    range.end = (range.end == end_ ? range.end + page - 1 : range.end) / page * page;
    return range;
  }

  [[nodiscard]] static std::uintptr_t page_bytes() {
#if defined(STRATA_HAS_MADVISE)
    return static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
#else
    return 4096;
#endif
  }

  /// Touches the pages of each stratum, then lets runs enter it.
  void read_again(int level) noexcept {
    const std::uintptr_t page = page_bytes();
    for (int s = present_.load() + 1; s <= level; ++s) {
      const Range& range = strata_[static_cast<std::size_t>(s)];
#if defined(STRATA_HAS_MADVISE)
      const std::uintptr_t aligned = range.begin / page * page;
      if (range.begin < range.end)
        // NOLINTNEXTLINE(performance-no-int-to-ptr): pages of a mapping
        (void)::madvise(reinterpret_cast<void*>(aligned), range.end - aligned, MADV_WILLNEED);
#endif
      for (std::uintptr_t at = range.begin; at < range.end; at = (at / page + 1) * page) {
        if (cancel_.load(std::memory_order_relaxed)) return;
        // NOLINTNEXTLINE(performance-no-int-to-ptr): pages of a mapping
        (void)*reinterpret_cast<const volatile unsigned char*>(at);
      }
      present_.store(s);
    }
  }

  /// Makes `reader_` a thread that calls `f`.
  template <class F>
  [[nodiscard]] Status start(F&& f) {
#if defined(__cpp_exceptions)
    try {
#endif
      reader_ = std::thread(std::forward<F>(f));
#if defined(__cpp_exceptions)
    } catch (const std::system_error& error) {
      return Error("restore", "a thread that reads", error.what());
    }
#endif
    return success();
  }

  /// Ends a `restore` under way early. Precondition: `control_` is held, or nobody else has the object.
  void stop() {
    cancel_.store(true);
    if (reader_.joinable()) reader_.join();
    target_ = 0;
  }

  std::vector<std::shared_ptr<const void>> owners_;
  std::vector<Range> strata_;  ///< bytes of each stratum's arrays in the mapping; empty: not mapped
  std::uintptr_t end_ = 0;     ///< of the mapping
  int top_;
  std::atomic<int> present_;
  std::vector<Runs> runs_;
  std::mutex control_;
  std::thread reader_;
  int target_ = 0;                    ///< of the last `restore` that was not ended
  std::atomic<bool> reading_{false};  ///< a `restore` is under way
  std::atomic<bool> cancel_{false};
};

/// A run's entry in the ledger, for as long as the object lives.
class LevelGuard {
 public:
  LevelGuard(Residency& residency, Level wanted) noexcept : residency_(residency), level_(residency.enter(wanted)) {}
  LevelGuard(const LevelGuard&) = delete;
  LevelGuard& operator=(const LevelGuard&) = delete;
  ~LevelGuard() { residency_.leave(level_); }

  /// The level that may run.
  [[nodiscard]] Level level() const noexcept { return level_; }

 private:
  Residency& residency_;
  Level level_;
};

}  // namespace strata
