// Every other element of two vectors: what strided convolutions and pooling make of rows of pixels.
#pragma once

#include <cstddef>
#include <utility>

#include <xsimd/xsimd.hpp>

namespace strata::kernels {

/// Elements 0, 2, 4, ... and 1, 3, 5, ... of a run of pixels.
template <class Batch>
struct Parted {
  Batch even;
  Batch odd;
};

namespace detail {

/// Elements `parity`, `parity` + 2, ... of two vectors that lie one after the other from `pixels`.
template <std::size_t parity, class Batch, std::size_t... lane>
[[nodiscard]] Batch alternate_lanes(const Batch& first, const Batch& second, const typename Batch::value_type* pixels,
                                    std::index_sequence<lane...>) noexcept {
#if defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 12)
  (void)pixels;
  return Batch(__builtin_shufflevector(first.data, second.data, static_cast<int>(2 * lane + parity)...));
#else
  (void)first;
  (void)second;
  return Batch(pixels[2 * lane + parity]...);
#endif
}

}  // namespace detail

/// pixels[0], pixels[2], pixels[4], ...: a vector of them. Reads two whole vectors.
template <class Batch>
[[nodiscard]] Batch even_lanes(const typename Batch::value_type* pixels) noexcept {
  return detail::alternate_lanes<0>(Batch::load_unaligned(pixels), Batch::load_unaligned(pixels + Batch::size), pixels,
                                    std::make_index_sequence<Batch::size>());
}

/// Two vectors parted into every other element and the rest.
template <class Batch>
[[nodiscard]] Parted<Batch> part_lanes(const typename Batch::value_type* pixels) noexcept {
  constexpr std::make_index_sequence<Batch::size> lanes{};
  const Batch first = Batch::load_unaligned(pixels);
  const Batch second = Batch::load_unaligned(pixels + Batch::size);
  return {detail::alternate_lanes<0>(first, second, pixels, lanes),
          detail::alternate_lanes<1>(first, second, pixels, lanes)};
}

}  // namespace strata::kernels
