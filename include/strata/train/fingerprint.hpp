// A hash that tells data of runs apart, for the fingerprints of tasks and checkpoints. It is no protection against
// anyone who wants two to be alike.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

namespace strata::train {

/// The step of FNV-1a (http://www.isthe.com/chongo/tech/comp/fnv), number by number, from a beginning of its own.
class Fingerprint {
 public:
  template <class Number>
  void add(Number number) noexcept {
    static_assert(std::is_integral_v<Number>, "floating-point numbers go by their bytes, or rounded");
    hash_ = (hash_ ^ static_cast<std::uint64_t>(number)) * 1099511628211U;
  }
  template <class Numbers>
  void add_all(const Numbers& numbers) noexcept {
    for (const auto number : numbers) add(number);
  }
  void add_bytes(const void* data, std::size_t size) noexcept {
    const auto* const bytes = static_cast<const unsigned char*>(data);
    for (std::size_t i = 0; i < size; ++i) add(bytes[i]);
  }

  [[nodiscard]] std::uint64_t value() const noexcept { return hash_; }
  [[nodiscard]] std::string text() const { return std::to_string(hash_); }

 private:
  std::uint64_t hash_ = 1469598103934665603U;  // checkpoints know it
};

}  // namespace strata::train
