// Errors of building and loading: one exception type that names the place, what was expected and what was found, and
// `Result<T>`, its value form, for builds without exceptions. Running a network reports nothing because it cannot fail.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>

namespace strata {

/// What went wrong while building, loading or configuring. `where()` names the file, layer or option.
class Error : public std::runtime_error {
 public:
  Error(std::string where, std::string expected, std::string found)
      : std::runtime_error(where + ": expected " + expected + ", found " + found),
        where_(std::move(where)),
        expected_(std::move(expected)),
        found_(std::move(found)) {}

  [[nodiscard]] const std::string& where() const noexcept { return where_; }
  [[nodiscard]] const std::string& expected() const noexcept { return expected_; }
  [[nodiscard]] const std::string& found() const noexcept { return found_; }

  /// The same error with `prefix` (a file, say) put before the place.
  [[nodiscard]] Error within(const std::string& prefix) const { return {prefix + ": " + where_, expected_, found_}; }

 private:
  std::string where_;
  std::string expected_;
  std::string found_;
};

/// Throws `error`; in a build without exceptions prints it and aborts (such builds use the `try_` functions instead).
[[noreturn]] inline void raise(const Error& error) {
#if defined(__cpp_exceptions)
  throw error;
#else
  std::fprintf(stderr, "strata: %s\n", error.what());
  std::abort();
#endif
}

/// A value or the error that kept it from being made. `T` may be `std::monostate` where only success matters.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}      // NOLINT(google-explicit-constructor)
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT(google-explicit-constructor)

  [[nodiscard]] bool ok() const noexcept { return state_.index() == 0; }
  explicit operator bool() const noexcept { return ok(); }

  /// Precondition: `!ok()`.
  [[nodiscard]] const Error& error() const { return *std::get_if<1>(&state_); }

  /// The value; raises the error if there is none.
  [[nodiscard]] T& value() & {
    if (!ok()) raise(error());
    return *std::get_if<0>(&state_);
  }
  [[nodiscard]] const T& value() const& {
    if (!ok()) raise(error());
    return *std::get_if<0>(&state_);
  }
  [[nodiscard]] T&& value() && {
    if (!ok()) raise(error());
    return std::move(*std::get_if<0>(&state_));
  }

 private:
  std::variant<T, Error> state_;
};

/// Success or an error, where there is no value to return.
using Status = Result<std::monostate>;

[[nodiscard]] inline Status success() {
  return std::monostate{};
}

}  // namespace strata
