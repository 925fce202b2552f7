// The seam to threads: kernels and training ask an `Executor` to run a numbered set of independent tasks. Which threads
// do so is the host program's business; runtime/thread_pool.hpp has the usual one.
#pragma once

#include <memory>
#include <type_traits>

#include <strata/core/types.hpp>

namespace strata {

/// A non-owning reference to a callable `void(index_t task)`; lives as long as the callable it was made from.
class TaskRef {
 public:
  template <class F>  // NOLINTNEXTLINE(bugprone-forwarding-reference-overload): the constraint keeps copies out
  requires(!std::is_same_v<std::remove_cvref_t<F>, TaskRef>) TaskRef(F&& function)
  noexcept  // NOLINT(google-explicit-constructor): call sites pass lambdas
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(function)))),
        call_([](void* object, index_t task) { (*static_cast<std::remove_reference_t<F>*>(object))(task); }) {}

  void operator()(index_t task) const { call_(object_, task); }

 private:
  void* object_;
  void (*call_)(void*, index_t);
};

/// Runs tasks 0 .. count-1, each once, in any order, possibly side by side; returns when all are done.
/// Neither allocates nor throws. Tasks do not throw and do not call `parallel_for` of the same executor. Sessions that
/// share one may call it from several threads at once. What tasks wrote is visible to the caller afterwards.
class Executor {
 public:
  Executor() = default;
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;
  virtual ~Executor() = default;

  /// Threads that work at once, the calling one included; at least 1, and the same as long as a session uses it.
  [[nodiscard]] virtual int threads() const noexcept = 0;
  virtual void parallel_for(index_t count, TaskRef task) noexcept = 0;
};

/// All tasks on the calling thread.
class SerialExecutor final : public Executor {
 public:
  [[nodiscard]] int threads() const noexcept override { return 1; }
  void parallel_for(index_t count, TaskRef task) noexcept override {
    for (index_t i = 0; i < count; ++i) task(i);
  }
};

}  // namespace strata
