// Errors of building and loading: one exception type that names the place, what was expected and what was found, and
// `Result<T>`, its value form, for builds without exceptions. Running a network reports nothing because it cannot fail.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>

/// Code that runs only when something is wrong, or once while loading: never inlined, optimised for size, kept away
/// from the rest.
#if defined(__GNUC__)
#define STRATA_COLD [[gnu::cold, gnu::noinline]]
#else
#define STRATA_COLD
#endif

namespace strata {

/// A piece of an error's text: a string or a number, put into words only when there is an error. Strings have to
/// live until the end of the expression.
class ErrorText {
 public:
  ErrorText(const char* text) : text_(text) {}         // NOLINT(google-explicit-constructor): a list of them is a text
  ErrorText(std::string_view text) : text_(text) {}    // NOLINT(google-explicit-constructor)
  ErrorText(const std::string& text) : text_(text) {}  // NOLINT(google-explicit-constructor)
  template <std::integral Number>
  ErrorText(Number number)  // NOLINT(google-explicit-constructor)
      : number_(static_cast<std::uint64_t>(number)), kind_(std::is_signed_v<Number> ? Kind::integer : Kind::natural) {}

  template <std::floating_point Number>
  ErrorText(Number number)  // NOLINT(google-explicit-constructor)
      : number_(std::bit_cast<std::uint64_t>(static_cast<double>(number))), kind_(Kind::real) {}

  STRATA_COLD void append_to(std::string& target) const {
    switch (kind_) {
      case Kind::text:
        target += text_;
        break;
      case Kind::integer:
        target += std::to_string(static_cast<std::int64_t>(number_));
        break;
      case Kind::natural:
        target += std::to_string(number_);
        break;
      case Kind::real:
        target += std::to_string(std::bit_cast<double>(number_));
        break;
    }
  }

 private:
  enum class Kind : std::uint8_t { text, integer, natural, real };
  std::string_view text_;
  std::uint64_t number_ = 0;
  Kind kind_ = Kind::text;
};

/// What went wrong while building, loading or configuring. `where()` names the file, layer or option.
///
/// Errors are made in many places and seldom: everything about them is kept out of line.
class Error : public std::runtime_error {
 public:
  using Text = std::initializer_list<ErrorText>;

  STRATA_COLD Error(const ErrorText& where, const ErrorText& expected, const ErrorText& found)
      : Error(Text{where}, Text{expected}, Text{found}) {}
  /// From pieces: `Error({"stratum ", s}, {count, " entries"}, {size})`.
  STRATA_COLD Error(Text where, Text expected, Text found)
      : std::runtime_error(joined(where) + ": expected " + joined(expected) + ", found " + joined(found)),
        where_(joined(where)),
        expected_(joined(expected)),
        found_(joined(found)) {}
  STRATA_COLD Error(const Error& other) = default;
  STRATA_COLD Error(Error&& other) noexcept
      : std::runtime_error(std::move(other)),
        where_(std::move(other.where_)),
        expected_(std::move(other.expected_)),
        found_(std::move(other.found_)) {}
  Error& operator=(const Error& other) = default;
  Error& operator=(Error&& other) = default;
  STRATA_COLD ~Error() override {}  // NOLINT(modernize-use-equals-default): defaulted it would be inline everywhere

  [[nodiscard]] const std::string& where() const noexcept { return where_; }
  [[nodiscard]] const std::string& expected() const noexcept { return expected_; }
  [[nodiscard]] const std::string& found() const noexcept { return found_; }

  /// The same error with `prefix` (a file, say) put before the place.
  [[nodiscard]] STRATA_COLD Error within(const std::string& prefix) const {
    return {prefix + ": " + where_, expected_, found_};
  }

 private:
  STRATA_COLD static std::string joined(Text pieces) {
    std::string text;
    for (const ErrorText& piece : pieces) piece.append_to(text);
    return text;
  }

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
  Result(T value) : value_(std::move(value)) {}      // NOLINT(google-explicit-constructor)
  Result(Error error) : error_(std::move(error)) {}  // NOLINT(google-explicit-constructor)

  [[nodiscard]] bool ok() const noexcept { return value_.has_value(); }
  explicit operator bool() const noexcept { return ok(); }

  /// Precondition: `!ok()`.
  [[nodiscard]] const Error& error() const& { return *error_; }
  [[nodiscard]] Error error() && { return *std::move(error_); }

  /// The value; raises the error if there is none.
  [[nodiscard]] T& value() & {
    if (!ok()) raise(error());
    return *value_;
  }
  [[nodiscard]] const T& value() const& {
    if (!ok()) raise(error());
    return *value_;
  }
  /// Moved out, not a reference: `for (auto& x : f().value())` must not range over a result that is gone.
  [[nodiscard]] T value() && {
    if (!ok()) raise(error());
    return *std::move(value_);
  }

 private:
  // One of the two has a value. A `std::variant` takes compilers much longer.
  std::optional<T> value_;
  std::optional<Error> error_;
};

/// Success or an error, where there is no value to return.
using Status = Result<std::monostate>;

[[nodiscard]] inline Status success() {
  return std::monostate{};
}

/// The result of `f()`, a `Result`; what `f` raises, and memory that cannot be had, is its error. (In a build without
/// exceptions, raising ends the program.)
template <class F>
[[nodiscard]] STRATA_COLD auto returning_errors(const F& f) -> decltype(f()) {
#if defined(__cpp_exceptions)
  try {
    return f();
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return Error("memory", "as much as what is described takes", "less");
  } catch (const std::length_error&) {
    return Error("memory", "sizes that memory can have", "larger ones");
  }
#else
  return f();
#endif
}

}  // namespace strata
