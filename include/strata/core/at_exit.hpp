// What has to be undone when a scope is left.
#pragma once

#include <utility>

namespace strata::detail {

/// Calls a function when the scope is left, by an exception too.
template <class F>
class AtExit {
 public:
  explicit AtExit(F f) noexcept : f_(std::move(f)) {}
  AtExit(const AtExit&) = delete;
  AtExit& operator=(const AtExit&) = delete;
  ~AtExit() { f_(); }

 private:
  F f_;
};

}  // namespace strata::detail
