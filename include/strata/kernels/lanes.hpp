// Lanes of vectors in another order: every other pixel for strided convolutions and pooling, halves and rotations for
// graph attention, one of four values in all lanes, rows in the place of columns. xsimd has no permutation of two
// vectors for every architecture.
// Beside them, vectors that compilers have to keep in a register.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <type_traits>
#include <utility>

#include <xsimd/xsimd.hpp>

static_assert(XSIMD_VERSION_MAJOR == 8, "strata is written for xsimd 8; later versions have other names");

namespace strata::kernels {

namespace detail {

/// `x`, loaded once. Where vectors are few, compilers load a value anew in every product that takes it, and two loads a
/// cycle are what two products a cycle have to share.
template <class Batch>
[[nodiscard]] [[gnu::always_inline]] inline Batch in_register(Batch x) noexcept {
#if defined(__x86_64__) && defined(__GNUC__)
  if constexpr (sizeof(Batch) < 64) asm("" : "+x"(x.data));
#endif
  return x;
}

/// Lane i is lane from[i] of the two vectors seen as one.
template <class Batch, std::size_t... from>
[[nodiscard]] [[gnu::always_inline]] inline Batch select_lanes(const Batch& first, const Batch& second,
                                                               std::index_sequence<from...>) noexcept {
#if defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 12)
  return Batch(__builtin_shufflevector(first.data, second.data, static_cast<int>(from)...));
#else
  alignas(64) std::array<typename Batch::value_type, 2 * Batch::size> both;
  first.store_aligned(both.data());
  second.store_aligned(both.data() + Batch::size);
  return Batch(both[from]...);
#endif
}

/// 0 .. Batch::size-1, mapped by `index`.
template <class Batch, class Index>
[[nodiscard]] [[gnu::always_inline]] inline Batch map_lanes(const Batch& first, const Batch& second, Index) noexcept {
  return [&]<std::size_t... lane>(std::index_sequence<lane...>) __attribute__((always_inline)) {
    return select_lanes(first, second, std::index_sequence<Index::of(lane)...>());
  }
  (std::make_index_sequence<Batch::size>());
}

template <std::size_t parity>
struct EveryOther {
  static constexpr std::size_t of(std::size_t lane) { return 2 * lane + parity; }
};
template <std::size_t size, std::size_t by>
struct Rotated {
  static constexpr std::size_t of(std::size_t lane) { return (lane + by) % size; }
};
/// Of two vectors the lanes whose `bit` is not set, the second's beside the first's, and those whose bit is set.
template <std::size_t size, std::size_t bit, bool set>
struct ByBit {
  static constexpr std::size_t of(std::size_t lane) {
    return (lane & bit) != 0 ? size + lane - (set ? 0 : bit) : lane + (set ? bit : 0);
  }
};
template <std::size_t size>
struct LowAndHigh {
  static constexpr std::size_t of(std::size_t lane) { return lane < size / 2 ? lane : size + lane; }
};
template <std::size_t size, bool high>
struct HalfTwice {
  static constexpr std::size_t of(std::size_t lane) { return lane % (size / 2) + (high ? size / 2 : 0); }
};

}  // namespace detail

/// pixels[0], pixels[2], pixels[4], ...: a vector of them. Reads two whole vectors.
template <class Batch>
[[nodiscard]] Batch even_lanes(const typename Batch::value_type* pixels) noexcept {
  return detail::map_lanes(Batch::load_unaligned(pixels), Batch::load_unaligned(pixels + Batch::size),
                           detail::EveryOther<0>());
}

/// Elements 0, 2, 4, ... and 1, 3, 5, ... of a run of pixels.
template <class Batch>
struct Parted {
  Batch even;
  Batch odd;
};

/// Two vectors parted into every other element and the rest.
template <class Batch>
[[nodiscard]] Parted<Batch> part_lanes(const typename Batch::value_type* pixels) noexcept {
  const Batch first = Batch::load_unaligned(pixels);
  const Batch second = Batch::load_unaligned(pixels + Batch::size);
  return {detail::map_lanes(first, second, detail::EveryOther<0>()),
          detail::map_lanes(first, second, detail::EveryOther<1>())};
}

/// Lane i is lane i + `by`, those that fall off the end first.
template <std::size_t by, class Batch>
[[nodiscard]] Batch rotate_lanes(const Batch& x) noexcept {
  return detail::map_lanes(x, x, detail::Rotated<Batch::size, by>());
}

/// The lower half of one vector with the upper half of another.
template <class Batch>
[[nodiscard]] Batch low_and_high(const Batch& low, const Batch& high) noexcept {
  return detail::map_lanes(low, high, detail::LowAndHigh<Batch::size>());
}

/// The lower half of a vector in both halves, and the upper half.
template <class Batch>
[[nodiscard]] Batch low_twice(const Batch& x) noexcept {
  return detail::map_lanes(x, x, detail::HalfTwice<Batch::size, false>());
}
template <class Batch>
[[nodiscard]] Batch high_twice(const Batch& x) noexcept {
  return detail::map_lanes(x, x, detail::HalfTwice<Batch::size, true>());
}

/// Swaps rows and columns: lane i of vector k goes to lane k of vector i. (Eklundh's method: for every bit of the
/// index, pairs of vectors swap the lanes in which that bit differs from the vector's.)
template <class Batch, std::size_t bit = 1>
[[gnu::always_inline]] inline void transpose(std::array<Batch, Batch::size>& rows) noexcept {
  if constexpr (bit < Batch::size) {
    for (std::size_t i = 0; i < Batch::size; ++i) {
      if ((i & bit) != 0) continue;
      const Batch low = rows[i];
      const Batch high = rows[i | bit];
      rows[i] = detail::map_lanes(low, high, detail::ByBit<Batch::size, bit, false>());
      rows[i | bit] = detail::map_lanes(low, high, detail::ByBit<Batch::size, bit, true>());
    }
    transpose<Batch, 2 * bit>(rows);
  }
}

namespace detail {

template <std::size_t of_four>
struct OfEveryFour {
  static constexpr std::size_t of(std::size_t lane) { return lane / 4 * 4 + of_four; }
};

/// Whether one load and four shuffles within halves of a vector beat four loads that each fill a vector. With vectors
/// of eight they do (measured on Zen 4: loads are what kernels with few sums a row are short of), with sixteen they do
/// not.
#if defined(__AVX__) && (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 12))
template <class Batch>
inline constexpr bool four_by_shuffles = std::is_same_v<typename Batch::value_type, float>&& Batch::size == 8;
#else
template <class Batch>
inline constexpr bool four_by_shuffles = false;
#endif

}  // namespace detail

/// Four consecutive values, `broadcast<i>()` the i-th in all lanes.
template <class Batch>
class FourValues {
 public:
  using Scalar = typename Batch::value_type;

  [[gnu::always_inline]] explicit FourValues(const Scalar* values) noexcept {
    if constexpr (in_lanes) {
      repeated_ = repeat(values, std::make_index_sequence<Batch::size>());
    } else {
      values_ = values;
    }
  }

  template <std::size_t i>
  [[nodiscard]] [[gnu::always_inline]] Batch broadcast() const noexcept {
    if constexpr (in_lanes) {
      return detail::map_lanes(repeated_, repeated_, detail::OfEveryFour<i>());
    } else {
      return Batch(values_[i]);
    }
  }

 private:
  static constexpr bool in_lanes = detail::four_by_shuffles<Batch>;
  struct Nothing {};

  template <std::size_t... lane>
  [[nodiscard]] [[gnu::always_inline]] static Batch repeat(const Scalar* values,
                                                           std::index_sequence<lane...>) noexcept {
    using Four [[gnu::vector_size(4 * sizeof(Scalar))]] = Scalar;
    Four four;
    std::memcpy(&four, values, sizeof(four));
    return Batch(__builtin_shufflevector(four, four, static_cast<int>(lane % 4)...));
  }

  std::conditional_t<in_lanes, Batch, Nothing> repeated_{};
  std::conditional_t<in_lanes, Nothing, const Scalar*> values_{};
};

}  // namespace strata::kernels
