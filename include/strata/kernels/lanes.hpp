// Lanes of vectors in another order: every other pixel for strided convolutions and pooling, halves and rotations for
// graph attention. xsimd has no permutation of two vectors for every architecture.
#pragma once

#include <array>
#include <cstddef>
#include <utility>

#include <xsimd/xsimd.hpp>

namespace strata::kernels {

namespace detail {

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

}  // namespace strata::kernels
