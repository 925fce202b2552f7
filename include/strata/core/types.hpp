// Small vocabulary types that every part of the library shares: sizes, levels and pairs of spatial extents.
#pragma once

#if !defined(__GNUC__) || defined(_WIN32)
#error "strata expects g++ 12 or clang++ 14, or later ones, on Linux or another POSIX system"
#endif

#include <compare>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

namespace strata {

/// Signed size and index type, the same as `Eigen::Index`.
using index_t = std::ptrdiff_t;

/// One of the nested models. `Level{0}` is the sparsest and cheapest; every higher level holds all non-zeros of the
/// level below and more.
struct Level {
  int index = 0;

  friend constexpr bool operator==(Level, Level) = default;
  friend constexpr auto operator<=>(Level, Level) = default;  // NOLINT(modernize-use-nullptr): clang-tidy 14 errs
};

/// Most levels of a model: kernels pass over the strata of a row side by side.
inline constexpr int max_levels = 16;

/// The last switch of level in a run; without one from the level to itself.
struct LevelSwitch {
  Level from;
  int stages = 0;  ///< that have begun since; 0 in the first stage at the new level
};

/// A (vertical, horizontal) pair. Converts from one number that then holds for both directions.
struct Pair {
  index_t h = 1;
  index_t w = 1;

  constexpr Pair() = default;
  constexpr Pair(index_t both) : h(both), w(both) {}  // NOLINT(google-explicit-constructor): `.kernel = 3` is the point
  constexpr Pair(index_t vertical, index_t horizontal) : h(vertical), w(horizontal) {}

  friend constexpr bool operator==(const Pair&, const Pair&) = default;
};

/// Shape of one input or output picture (or vector: height and width 1), without the batch.
struct Shape {
  index_t channels = 0;
  index_t height = 1;
  index_t width = 1;

  [[nodiscard]] constexpr index_t size() const noexcept { return channels * height * width; }
  friend constexpr bool operator==(const Shape&, const Shape&) = default;
};

/// `value` rounded up to a multiple of `step`; `step` > 0.
[[nodiscard]] constexpr index_t round_up(index_t value, index_t step) noexcept {
  return (value + step - 1) / step * step;
}

/// Smallest integer not below `numerator / denominator`; `denominator` > 0.
[[nodiscard]] constexpr index_t ceil_div(index_t numerator, index_t denominator) noexcept {
  return (numerator + denominator - 1) / denominator;
}

/// Most elements of one array or tensor: beyond any machine's memory, and so few that bytes, paddings and sums of such
/// numbers do not overflow. Sizes that come from a file are held against it.
inline constexpr index_t max_elements = index_t{1} << 40U;

/// Whether `extents` are those of an array of at most `max_elements`: none is negative, and neither they nor their
/// product are larger.
[[nodiscard]] constexpr bool is_array_size(std::initializer_list<index_t> extents) noexcept {
  index_t product = 1;
  for (const index_t extent : extents) {
    if (extent < 0 || extent > max_elements / product) return false;
    product *= extent > 0 ? extent : 1;
  }
  return true;
}

namespace detail {

/// "channels x height x width", for messages.
[[nodiscard]] inline std::string text(Shape shape) {
  std::string text;
  for (const index_t extent : {shape.channels, shape.height, shape.width}) {
    if (!text.empty()) text += " x ";
    text += std::to_string(extent);
  }
  return text;
}

}  // namespace detail

}  // namespace strata
