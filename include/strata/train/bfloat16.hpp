// Numbers of 16 bits with the exponent of a float, in which training keeps activations of convolutions and rounds
// operands of products if it is asked to (Context::bfloat16): conversions, one by one and by vectors.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <xsimd/xsimd.hpp>

#include <strata/core/types.hpp>

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#include <immintrin.h>
#define STRATA_BFLOAT16_VECTORS 1
#endif

namespace strata::kernels {

/// The upper half of a float.
using bfloat16 = std::uint16_t;

/// Whether the instruction set that this file is compiled for multiplies such numbers.
#if defined(STRATA_BFLOAT16_VECTORS)
inline constexpr bool has_bfloat16 = true;
#else
inline constexpr bool has_bfloat16 = false;
#endif

/// Whether numbers of type `Scalar` can be multiplied as such here.
template <class Scalar>
inline constexpr bool bfloat16_for = std::is_same_v<Scalar, float>&& has_bfloat16;

/// Rounds to the nearest, ties to even, as the instructions do; subnormal numbers become zero.
[[nodiscard]] inline bfloat16 to_bfloat16(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) return static_cast<bfloat16>((bits >> 16U) | 0x40U);  // not a number: keep it so
  if (magnitude < 0x00800000U) return static_cast<bfloat16>((bits >> 16U) & 0x8000U);
  return static_cast<bfloat16>((bits + 0x7FFFU + (bits >> 16U & 1U)) >> 16U);
}
[[nodiscard]] inline float from_bfloat16(bfloat16 value) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16U);
}

/// A number in another type of storage.
template <class To, class From>
[[nodiscard]] inline To stored_as(From value) noexcept {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (std::is_same_v<To, bfloat16>) {
    return to_bfloat16(static_cast<float>(value));
  } else {
    return static_cast<To>(from_bfloat16(value));
  }
}

#if defined(STRATA_BFLOAT16_VECTORS)
namespace detail {

[[nodiscard]] inline __m512 widened(__m256i numbers) noexcept {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16));
}

}  // namespace detail
#endif

/// A vector of numbers stored as they are or, for single precision, as bfloat16. Precondition: aligned to the vector's
/// size in storage.
template <class Batch, class Stored>
[[nodiscard]] [[gnu::always_inline]] inline Batch load_stored(const Stored* from) noexcept {
  using Scalar = typename Batch::value_type;
  if constexpr (std::is_same_v<Stored, Scalar>) {
    return Batch::load_aligned(from);
  } else {
#if defined(STRATA_BFLOAT16_VECTORS)
    if constexpr (sizeof(Batch) == sizeof(__m512) && std::is_same_v<Scalar, float>) {
      return Batch(detail::widened(_mm256_load_si256(reinterpret_cast<const __m256i*>(from))));
    }
#endif
    alignas(Batch) std::array<Scalar, Batch::size> numbers;
    for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = stored_as<Scalar>(from[i]);
    return Batch::load_aligned(numbers.data());
  }
}
template <class Batch, class Stored>
[[gnu::always_inline]] inline void store_stored(const Batch& batch, Stored* to) noexcept {
  using Scalar = typename Batch::value_type;
  if constexpr (std::is_same_v<Stored, Scalar>) {
    batch.store_aligned(to);
  } else {
#if defined(STRATA_BFLOAT16_VECTORS)
    if constexpr (sizeof(Batch) == sizeof(__m512) && std::is_same_v<Scalar, float>) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(to),
                         std::bit_cast<__m256i>(_mm512_cvtneps_pbh(static_cast<__m512>(batch))));
      return;
    }
#endif
    alignas(Batch) std::array<Scalar, Batch::size> numbers;
    batch.store_aligned(numbers.data());
    for (std::size_t i = 0; i < numbers.size(); ++i) to[i] = stored_as<Stored>(numbers[i]);
  }
}

/// Copies `count` numbers to another type of storage.
template <class To, class From>
void copy_stored(const From* from, index_t count, To* to) noexcept {
  index_t i = 0;
#if defined(STRATA_BFLOAT16_VECTORS)
  if constexpr (std::is_same_v<From, float> && std::is_same_v<To, bfloat16>)
    for (; i + 16 <= count; i += 16) {
      const __m256bh numbers = _mm512_cvtneps_pbh(_mm512_loadu_ps(from + i));
      std::memcpy(to + i, &numbers, sizeof numbers);
    }
#endif
  for (; i < count; ++i) to[i] = stored_as<To>(from[i]);
}

}  // namespace strata::kernels
