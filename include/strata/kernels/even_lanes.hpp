// Every other element of two vectors: what strided convolutions and pooling make of rows of pixels.
#pragma once

#include <cstddef>
#include <utility>

#include <xsimd/xsimd.hpp>

namespace strata::kernels {

namespace detail {

template <class Batch, std::size_t... lane>
[[nodiscard]] Batch even_lanes(const typename Batch::value_type* pixels, std::index_sequence<lane...>) noexcept {
#if defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 12)
  const Batch first = Batch::load_unaligned(pixels);
  const Batch second = Batch::load_unaligned(pixels + Batch::size);
  return Batch(__builtin_shufflevector(first.data, second.data, static_cast<int>(2 * lane)...));
#else
  return Batch(pixels[2 * lane]...);
#endif
}

}  // namespace detail

/// pixels[0], pixels[2], pixels[4], ...: a vector of them. Reads two whole vectors.
template <class Batch>
[[nodiscard]] Batch even_lanes(const typename Batch::value_type* pixels) noexcept {
  return detail::even_lanes<Batch>(pixels, std::make_index_sequence<Batch::size>());
}

}  // namespace strata::kernels
