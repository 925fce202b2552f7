// Kernels of convolutions in training whose operands are rounded to bfloat16 and whose sums are single precision, for
// pictures side by side in lanes (train/lanes.hpp): one product of a 16x32 with a 32x16 block, on a matrix unit (AMX)
// or with vectors (AVX-512 BF16), and the arrangements of activations that it reads. Who arranges borders, strides and
// threads is train/bfloat16_convolution.hpp.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include <strata/core/types.hpp>
#include <strata/train/bfloat16.hpp>
#include <strata/train/lane_kernels.hpp>

#if defined(STRATA_BFLOAT16_VECTORS) && defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define STRATA_BFLOAT16_TILES 1
#endif

namespace strata::kernels {

/// What multiplies bfloat16 numbers. `scalar` is the twin that tests compare with.
enum class Bfloat16Unit : std::uint8_t { scalar, vectors, tiles };

/// The fastest unit of this instruction set that the system lets the process use.
[[nodiscard]] inline Bfloat16Unit bfloat16_unit() noexcept {
#if defined(STRATA_BFLOAT16_TILES)
  // Linux gives the tiles' registers to processes that ask (ARCH_REQ_XCOMP_PERM for XFEATURE_XTILEDATA).
  static const bool permitted = ::syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  if (permitted) return Bfloat16Unit::tiles;
#endif
  return has_bfloat16 ? Bfloat16Unit::vectors : Bfloat16Unit::scalar;
}

/// Calls `f<unit>()` with that unit; false: there is none but the scalar twin, and nothing was called.
template <class F>
bool with_bfloat16_unit(F&& f) {
  if constexpr (has_bfloat16) {
    if (bfloat16_unit() == Bfloat16Unit::tiles) {
      f.template operator()<Bfloat16Unit::tiles>();
    } else {
      f.template operator()<Bfloat16Unit::vectors>();
    }
  }
  return has_bfloat16;
}

/// The block product c[row][lane] += sum over k of a[row][k] x b[k][lane]: 16 rows, 16 lanes, 32 numbers k, which lie
/// in pairs in `b`: [k / 2][lane][k % 2].
inline constexpr index_t bfloat16_rows = 16;
inline constexpr index_t bfloat16_lanes = 16;
inline constexpr index_t bfloat16_depth = 32;
inline constexpr index_t bfloat16_block = bfloat16_rows * bfloat16_depth;  ///< elements of a or b

/// A sum of block products: `count` of them, the i-th a at `a + a_starts[i]` and the i-th b at `b + b_starts[i]`, or
/// blocks side by side where starts are null. Steps and starts count elements.
struct Bfloat16Sum {
  const bfloat16* a = nullptr;
  index_t a_row_step = bfloat16_depth;
  const index_t* a_starts = nullptr;
  const bfloat16* b = nullptr;
  const index_t* b_starts = nullptr;
  index_t count = 0;

  [[nodiscard]] index_t a_row_bytes() const noexcept { return a_row_step * static_cast<index_t>(sizeof(bfloat16)); }
  [[nodiscard]] index_t a_start(index_t i) const noexcept {
    return a_starts == nullptr ? i * bfloat16_block : a_starts[i];
  }
  [[nodiscard]] index_t b_start(index_t i) const noexcept {
    return b_starts == nullptr ? i * bfloat16_block : b_starts[i];
  }
};

namespace detail {

/// Rows and lanes of a block of sums that are wanted; `row_step` elements from row to row.
struct Bfloat16Target {
  float* c = nullptr;
  index_t row_step = bfloat16_lanes;
  index_t rows = bfloat16_rows;
  index_t lanes = bfloat16_lanes;

  [[nodiscard]] index_t row_bytes() const noexcept { return row_step * static_cast<index_t>(sizeof(float)); }
  [[nodiscard]] bool whole() const noexcept { return rows >= bfloat16_rows && lanes >= bfloat16_lanes; }
};

/// c = (or, with `add`, +=) the sum of block products.
template <bool add>
void bfloat16_scalar(const Bfloat16Sum& sum, const Bfloat16Target& target) noexcept {
  for (index_t row = 0; row < target.rows; ++row)
    for (index_t lane = 0; lane < target.lanes; ++lane) {
      float total = 0;
      for (index_t i = 0; i < sum.count; ++i)
        for (index_t k = 0; k < bfloat16_depth; ++k)
          total += from_bfloat16(sum.a[sum.a_start(i) + row * sum.a_row_step + k]) *
                   from_bfloat16(sum.b[sum.b_start(i) + (k / 2 * bfloat16_lanes + lane) * 2 + k % 2]);
      float& c = target.c[row * target.row_step + lane];
      c = add ? c + total : total;
    }
}

/// Calls `f(whole target)`; what it writes is cut to the rows and lanes that are wanted.
template <bool add, class F>
void with_whole_target(const Bfloat16Target& target, F&& f) noexcept {
  if (target.whole()) return f(target);
  alignas(64) std::array<float, static_cast<std::size_t>(bfloat16_rows * bfloat16_lanes)> block{};
  const auto for_wanted = [&](auto&& g) {
    for (index_t row = 0; row < target.rows; ++row)
      for (index_t lane = 0; lane < target.lanes; ++lane)
        g(block[static_cast<std::size_t>(row * bfloat16_lanes + lane)], target.c[row * target.row_step + lane]);
  };
  if (add) for_wanted([](float& inside, const float& outside) { inside = outside; });
  f(Bfloat16Target{block.data()});
  for_wanted([](const float& inside, float& outside) { outside = inside; });
}

#if defined(STRATA_BFLOAT16_VECTORS)

/// For `_mm512_permutexvar_epi16`: the two halves of a vector, number by number in turn.
[[nodiscard]] inline __m512i pair_order() noexcept {
  alignas(64) std::array<std::uint16_t, 32> order{};
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::uint16_t>(i / 2 + i % 2 * 16);
  return _mm512_load_si512(order.data());
}

/// Transposes the 4x4 pairs of numbers in every quarter of four vectors.
[[gnu::always_inline]] inline void transpose_quads(const __m512i* rows, __m512i (&quads)[4]) noexcept {
  const __m512i a = _mm512_unpacklo_epi32(rows[0], rows[1]);
  const __m512i b = _mm512_unpackhi_epi32(rows[0], rows[1]);
  const __m512i c = _mm512_unpacklo_epi32(rows[2], rows[3]);
  const __m512i d = _mm512_unpackhi_epi32(rows[2], rows[3]);
  quads[0] = _mm512_unpacklo_epi64(a, c);
  quads[1] = _mm512_unpackhi_epi64(a, c);
  quads[2] = _mm512_unpacklo_epi64(b, d);
  quads[3] = _mm512_unpackhi_epi64(b, d);
}

template <bool add>
void bfloat16_vectors(const Bfloat16Sum& sum, const Bfloat16Target& wanted) noexcept {
  with_whole_target<add>(wanted, [&](const Bfloat16Target& target) {
    constexpr std::size_t rows = static_cast<std::size_t>(bfloat16_rows);
    __m512 sums[rows];
#pragma GCC unroll 16
    for (std::size_t row = 0; row < rows; ++row)
      sums[row] = add ? _mm512_loadu_ps(target.c + static_cast<index_t>(row) * target.row_step) : _mm512_setzero_ps();
    for (index_t i = 0; i < sum.count; ++i) {
      const bfloat16* const a = sum.a + sum.a_start(i);
      const bfloat16* const b = sum.b + sum.b_start(i);
      for (index_t pair = 0; pair < bfloat16_depth / 2; ++pair) {
        const auto inputs = std::bit_cast<__m512bh>(_mm512_loadu_si512(b + pair * 2 * bfloat16_lanes));
#pragma GCC unroll 16
        for (std::size_t row = 0; row < rows; ++row) {
          std::int32_t weights = 0;
          std::memcpy(&weights, a + static_cast<index_t>(row) * sum.a_row_step + 2 * pair, sizeof weights);
          sums[row] = _mm512_dpbf16_ps(sums[row], std::bit_cast<__m512bh>(_mm512_set1_epi32(weights)), inputs);
        }
      }
    }
#pragma GCC unroll 16
    for (std::size_t row = 0; row < rows; ++row)
      _mm512_storeu_ps(target.c + static_cast<index_t>(row) * target.row_step, sums[row]);
  });
}

#endif

#if defined(STRATA_BFLOAT16_TILES)

/// Eight tile registers of 16 rows of 64 bytes while it lives, on this thread.
class TileRegisters {
 public:
  TileRegisters() noexcept {
    struct alignas(64) Configuration {
      std::uint8_t palette = 1;
      std::uint8_t start_row = 0;
      std::uint8_t reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static constexpr Configuration configuration;
    _tile_loadconfig(&configuration);
  }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
  ~TileRegisters() { _tile_release(); }
};

inline constexpr index_t tile_bytes_of_row = 64;

// The instructions take registers by number only. Loads are not ordered after stores by GCC's own header, hence the
// fence.

/// Registers 0 to 3 begin as the targets hold or as zeros.
template <bool add>
[[gnu::always_inline]] inline void begin_tiles(const std::array<Bfloat16Target, 4>& targets) noexcept {
  asm volatile("" ::: "memory");
  if constexpr (add) {
    _tile_loadd(0, targets[0].c, targets[0].row_bytes());
    _tile_loadd(1, targets[1].c, targets[1].row_bytes());
    _tile_loadd(2, targets[2].c, targets[2].row_bytes());
    _tile_loadd(3, targets[3].c, targets[3].row_bytes());
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
}
[[gnu::always_inline]] inline void end_tiles(const std::array<Bfloat16Target, 4>& targets) noexcept {
  _tile_stored(0, targets[0].c, targets[0].row_bytes());
  _tile_stored(1, targets[1].c, targets[1].row_bytes());
  _tile_stored(2, targets[2].c, targets[2].row_bytes());
  _tile_stored(3, targets[3].c, targets[3].row_bytes());
}

/// One sum.
template <bool add>
void bfloat16_tile(const Bfloat16Sum& sum, const Bfloat16Target& wanted) noexcept {
  with_whole_target<add>(wanted, [&](const Bfloat16Target& target) {
    asm volatile("" ::: "memory");
    if constexpr (add) {
      _tile_loadd(0, target.c, target.row_bytes());
    } else {
      _tile_zero(0);
    }
    for (index_t i = 0; i < sum.count; ++i) {
      _tile_loadd(4, sum.a + sum.a_start(i), sum.a_row_bytes());
      _tile_loadd(6, sum.b + sum.b_start(i), tile_bytes_of_row);
      _tile_dpbf16ps(0, 4, 6);
    }
    _tile_stored(0, target.c, target.row_bytes());
  });
}

/// Four sums with one a, whose b's begin at `b`: pixels of a product, or taps of a gradient.
template <bool add>
void bfloat16_tile_row(const Bfloat16Sum& sum, const std::array<const bfloat16*, 4>& b,
                       const std::array<Bfloat16Target, 4>& targets) noexcept {
  begin_tiles<add>(targets);
  for (index_t i = 0; i < sum.count; ++i) {
    const index_t at = sum.b_start(i);
    _tile_loadd(4, sum.a + sum.a_start(i), sum.a_row_bytes());
    _tile_loadd(5, b[0] + at, tile_bytes_of_row);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, b[1] + at, tile_bytes_of_row);
    _tile_dpbf16ps(1, 4, 6);
    _tile_loadd(7, b[2] + at, tile_bytes_of_row);
    _tile_dpbf16ps(2, 4, 7);
    _tile_loadd(5, b[3] + at, tile_bytes_of_row);
    _tile_dpbf16ps(3, 4, 5);
  }
  end_tiles(targets);
}

/// Two a's, the second `a_second` elements behind the first, by two b's `b_step` apart; targets a by a.
template <bool add>
void bfloat16_tile_square(const Bfloat16Sum& sum, index_t a_second, index_t b_step,
                          const std::array<Bfloat16Target, 4>& targets) noexcept {
  begin_tiles<add>(targets);
  for (index_t i = 0; i < sum.count; ++i) {
    const bfloat16* const a = sum.a + sum.a_start(i);
    const bfloat16* const b = sum.b + sum.b_start(i);
    _tile_loadd(4, a, sum.a_row_bytes());
    _tile_loadd(6, b, tile_bytes_of_row);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + b_step, tile_bytes_of_row);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a + a_second, sum.a_row_bytes());
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  end_tiles(targets);
}

#endif

/// What a unit needs on a thread while it multiplies: nothing, or tile registers.
template <Bfloat16Unit unit>
struct Bfloat16Registers {
  Bfloat16Registers() {}  // NOLINT(modernize-use-equals-default): lest a variable of it count as unused
};
#if defined(STRATA_BFLOAT16_TILES)
template <>
struct Bfloat16Registers<Bfloat16Unit::tiles> : TileRegisters {};
#endif

template <Bfloat16Unit unit, bool add>
void bfloat16_one(const Bfloat16Sum& sum, const Bfloat16Target& target) noexcept {
#if defined(STRATA_BFLOAT16_TILES)
  if constexpr (unit == Bfloat16Unit::tiles) return bfloat16_tile<add>(sum, target);
#endif
#if defined(STRATA_BFLOAT16_VECTORS)
  if constexpr (unit == Bfloat16Unit::vectors) return bfloat16_vectors<add>(sum, target);
#endif
  bfloat16_scalar<add>(sum, target);
}

}  // namespace detail

using detail::Bfloat16Registers;

/// Inputs of a run of output pixels, arranged by `to_channel_pairs`: pixel x of line y meets the i-th block of 32 of
/// its inputs (channels of one tap or of taps beside each other) at `source + y * line_step + x * pixel_step +
/// starts[i]`. Steps and starts count elements.
struct Bfloat16Input {
  const bfloat16* source = nullptr;
  index_t line_step = 0;
  index_t pixel_step = 0;
  const index_t* starts = nullptr;
  index_t blocks = 0;
};

/// Elements of the packed weights of so many rows: 16 rows at a time, block by block, each [row][32]; zeros beyond the
/// last row.
[[nodiscard]] constexpr index_t bfloat16_packed_size(index_t rows, index_t blocks) noexcept {
  return ceil_div(rows, bfloat16_rows) * blocks * bfloat16_block;
}
[[nodiscard]] constexpr index_t bfloat16_packed_at(index_t row, index_t block, index_t k, index_t blocks) noexcept {
  return ((row / bfloat16_rows * blocks + block) * bfloat16_rows + row % bfloat16_rows) * bfloat16_depth + k;
}

namespace detail {

/// target = (or, with `add`, +=) `rows` rows of sums, rounded.
template <Bfloat16Unit unit, bool add>
void store_rows(const float* sums, index_t rows, bfloat16* target) noexcept {
  index_t row = 0;
#if defined(STRATA_BFLOAT16_VECTORS)
  if constexpr (unit != Bfloat16Unit::scalar) {
    const auto sum = [&](index_t at) {
      __m512 result = _mm512_load_ps(sums + at * bfloat16_lanes);
      if constexpr (add) {
        __m256i before;
        std::memcpy(&before, target + at * bfloat16_lanes, sizeof before);
        result = _mm512_add_ps(result, widened(before));
      }
      return result;
    };
    for (; row + 2 <= rows; row += 2)
      _mm512_storeu_si512(target + row * bfloat16_lanes,
                          std::bit_cast<__m512i>(_mm512_cvtne2ps_pbh(sum(row + 1), sum(row))));
  }
#endif
  for (index_t i = row * bfloat16_lanes; i < rows * bfloat16_lanes; ++i)
    target[i] = to_bfloat16(add ? from_bfloat16(target[i]) + sums[i] : sums[i]);
}

}  // namespace detail

/// output[row] = (or, with `add`, +=) sum over blocks of weights x inputs, for every pixel. Precondition: blocks of
/// output rows are multiples of 16, or there is one block. A `Bfloat16Registers<unit>` lives meanwhile.
template <Bfloat16Unit unit, bool add>
void bfloat16_product(const Bfloat16Input& input, const bfloat16* weights,
                      const LaneOutput<bfloat16>& output) noexcept {
  const index_t row_block = input.blocks * bfloat16_block;
  alignas(64) std::array<std::array<float, static_cast<std::size_t>(bfloat16_rows * bfloat16_lanes)>, 4> sums;
  [[maybe_unused]] const std::array<detail::Bfloat16Target, 4> targets{
      detail::Bfloat16Target{sums[0].data()}, detail::Bfloat16Target{sums[1].data()},
      detail::Bfloat16Target{sums[2].data()}, detail::Bfloat16Target{sums[3].data()}};
  const auto store = [&](std::size_t i, index_t row, index_t y, index_t x) {
    detail::store_rows<unit, add>(
        sums[i].data(), std::min(bfloat16_rows, output.rows - row),
        output.target + y * output.line_step + x * output.pixel_step + output.row_start(row, bfloat16_lanes));
  };
  for (index_t row = 0; row < output.rows;) {
    constexpr bool tiles = unit == Bfloat16Unit::tiles;
    const bool two = tiles && row + bfloat16_rows < output.rows;
    for (index_t y = 0; y < output.lines; ++y) {
      Bfloat16Sum sum;
      sum.a = weights;
      sum.b_starts = input.starts;
      sum.count = input.blocks;
      index_t x = 0;
      const auto at = [&](index_t pixel) { sum.b = input.source + y * input.line_step + pixel * input.pixel_step; };
#if defined(STRATA_BFLOAT16_TILES)
      if constexpr (tiles) {
        for (; two && x + 2 <= output.pixels; x += 2) {
          at(x);
          detail::bfloat16_tile_square<false>(sum, row_block, input.pixel_step, targets);
          store(0, row, y, x);
          store(1, row, y, x + 1);
          store(2, row + bfloat16_rows, y, x);
          store(3, row + bfloat16_rows, y, x + 1);
        }
        for (; !two && x + 4 <= output.pixels; x += 4) {
          at(x);
          detail::bfloat16_tile_row<false>(
              sum, {sum.b, sum.b + input.pixel_step, sum.b + 2 * input.pixel_step, sum.b + 3 * input.pixel_step},
              targets);
          for (std::size_t i = 0; i < 4; ++i) store(i, row, y, x + static_cast<index_t>(i));
        }
      }
#endif
      for (; x < output.pixels; ++x) {
        at(x);
        detail::bfloat16_one<unit, false>(sum, targets[0]);
        store(0, row, y, x);
        if (!two) continue;
        Bfloat16Sum second = sum;
        second.a += row_block;
        detail::bfloat16_one<unit, false>(second, targets[1]);
        store(1, row + bfloat16_rows, y, x);
      }
    }
    const index_t done = two ? 2 : 1;
    row += done * bfloat16_rows;
    weights += done * row_block;
  }
}

/// A gradient by outputs and the inputs that it meets, in pairs of pixels side by side. The i-th pair of row r of `dy`,
/// arranged by `to_planes`, is at `dy + dy_starts[i] + r * dy_row_step`; what it meets through a tap, up to 16 channels
/// arranged by `to_picture_pairs`, at `x + taps[tap] + x_starts[i]`, the next 16 channels `x_step` further.
struct Bfloat16Pixels {
  const bfloat16* dy = nullptr;
  index_t dy_row_step = 0;
  const index_t* dy_starts = nullptr;
  const bfloat16* x = nullptr;
  index_t x_step = 0;
  const index_t* x_starts = nullptr;
  index_t pairs = 0;
  const index_t* taps = nullptr;
  index_t tap_count = 0;
};

/// sums[row * row_step + tap * tap_step + channel] += sum over pixels and lanes of dy[row] x input[tap, channel]. Up to
/// 16 rows and channels, or 32 of both. A `Bfloat16Registers<unit>` lives meanwhile.
template <Bfloat16Unit unit>
void bfloat16_weight_gradient(const Bfloat16Pixels& pixels, index_t rows, index_t channels, float* sums,
                              index_t row_step, index_t tap_step) noexcept {
  Bfloat16Sum sum;
  sum.a = pixels.dy;
  sum.a_row_step = pixels.dy_row_step;
  sum.a_starts = pixels.dy_starts;
  sum.b_starts = pixels.x_starts;
  sum.count = pixels.pairs;
  const auto b = [&](index_t tap) { return pixels.x + pixels.taps[tap]; };
  const auto target = [&](index_t tap, index_t row, index_t channel) {
    return detail::Bfloat16Target{sums + row * row_step + tap * tap_step + channel, row_step,
                                  std::min(bfloat16_rows, rows - row), std::min(bfloat16_lanes, channels - channel)};
  };
  index_t tap = 0;
#if defined(STRATA_BFLOAT16_TILES)
  if constexpr (unit == Bfloat16Unit::tiles) {
    if (rows > bfloat16_rows) {
      for (; tap < pixels.tap_count; ++tap) {
        sum.b = b(tap);
        detail::bfloat16_tile_square<true>(sum, bfloat16_rows * pixels.dy_row_step, pixels.x_step,
                                           {target(tap, 0, 0), target(tap, 0, bfloat16_lanes),
                                            target(tap, bfloat16_rows, 0), target(tap, bfloat16_rows, bfloat16_lanes)});
      }
      return;
    }
    for (; tap + 4 <= pixels.tap_count && target(tap, 0, 0).whole(); tap += 4)
      detail::bfloat16_tile_row<true>(
          sum, {b(tap), b(tap + 1), b(tap + 2), b(tap + 3)},
          {target(tap, 0, 0), target(tap + 1, 0, 0), target(tap + 2, 0, 0), target(tap + 3, 0, 0)});
  }
#endif
  for (; tap < pixels.tap_count; ++tap)
    for (index_t row = 0; row < rows; row += bfloat16_rows)
      for (index_t channel = 0; channel < channels; channel += bfloat16_lanes) {
        sum.a = pixels.dy + row * pixels.dy_row_step;
        sum.b = b(tap) + channel / bfloat16_lanes * pixels.x_step;
        detail::bfloat16_one<unit, true>(sum, target(tap, row, channel));
      }
}

/// Arranges `channels` vectors of 16 pictures, of pixels `pixel_step` apart, as [channel / 2][picture][channel % 2],
/// pixels `target_step` apart; a channel that is missing in a pair is zero.
template <Bfloat16Unit unit>
void to_channel_pairs(const bfloat16* source, index_t pixel_step, index_t pixels, index_t channels, bfloat16* target,
                      index_t target_step) noexcept {
#if defined(STRATA_BFLOAT16_VECTORS)
  if constexpr (unit != Bfloat16Unit::scalar) {
    const __m512i pairs = detail::pair_order();
    for (index_t p = 0; p < pixels; ++p, source += pixel_step, target += target_step)
      for (index_t c = 0; c < channels; c += 2) {
        const __mmask32 there = c + 1 < channels ? 0xFFFFFFFFU : 0xFFFFU;
        const __m512i both = _mm512_maskz_loadu_epi16(there, source + c * bfloat16_lanes);
        _mm512_storeu_si512(target + c * bfloat16_lanes, _mm512_permutexvar_epi16(pairs, both));
      }
    return;
  }
#endif
  for (index_t p = 0; p < pixels; ++p, source += pixel_step, target += target_step)
    for (index_t c = 0; c < round_up(channels, 2); ++c)
      for (index_t lane = 0; lane < bfloat16_lanes; ++lane)
        target[(c / 2 * bfloat16_lanes + lane) * 2 + c % 2] =
            c < channels ? source[c * bfloat16_lanes + lane] : bfloat16{0};
}

/// Arranges `channels` vectors of 16 pictures, of pixels `pixel_step` apart, as planes of [pixel][picture],
/// `plane_step` apart.
inline void to_planes(const bfloat16* source, index_t pixel_step, index_t pixels, index_t channels, bfloat16* target,
                      index_t plane_step) noexcept {
  for (index_t p = 0; p < pixels; ++p)
    for (index_t c = 0; c < channels; ++c)
      std::memcpy(target + c * plane_step + p * bfloat16_lanes, source + p * pixel_step + c * bfloat16_lanes,
                  static_cast<std::size_t>(bfloat16_lanes) * sizeof(bfloat16));
}

/// Arranges up to 16 `channels` of pixels `pixel_step` apart as [picture / 2][channel][picture % 2] for 16 channels,
/// those that are missing as zeros; pixels lie side by side.
template <Bfloat16Unit unit>
void to_picture_pairs(const bfloat16* source, index_t pixel_step, index_t pixels, index_t channels,
                      bfloat16* target) noexcept {
  constexpr index_t size = bfloat16_rows * bfloat16_lanes;
#if defined(STRATA_BFLOAT16_VECTORS)
  if constexpr (unit != Bfloat16Unit::scalar) {
    const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    const __m512i high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    for (index_t p = 0; p < pixels; ++p, source += pixel_step, target += size) {
      const auto channel = [&](std::size_t c) {
        __m256i pictures = _mm256_setzero_si256();
        if (static_cast<index_t>(c) < channels)
          std::memcpy(&pictures, source + static_cast<index_t>(c) * bfloat16_lanes, sizeof pictures);
        return pictures;
      };
      // Channel c beside channel c + 8, eight pairs of pictures each; then both 8x8 matrices of pairs are transposed.
      __m512i v[8];
#pragma GCC unroll 8
      for (std::size_t c = 0; c < 8; ++c)
        v[c] = _mm512_inserti64x4(_mm512_castsi256_si512(channel(c)), channel(c + 8), 1);
      __m512i front[4];  // of channels 0-3 and 8-11
      __m512i back[4];   // of channels 4-7 and 12-15
      detail::transpose_quads(v, front);
      detail::transpose_quads(v + 4, back);
#pragma GCC unroll 4
      for (std::size_t pair = 0; pair < 4; ++pair) {
        const auto at = static_cast<index_t>(pair) * 2 * bfloat16_rows;
        _mm512_storeu_si512(target + at, _mm512_permutex2var_epi64(front[pair], low, back[pair]));
        _mm512_storeu_si512(target + at + size / 2, _mm512_permutex2var_epi64(front[pair], high, back[pair]));
      }
    }
    return;
  }
#endif
  for (index_t p = 0; p < pixels; ++p, source += pixel_step, target += size)
    for (index_t c = 0; c < bfloat16_rows; ++c)
      for (index_t lane = 0; lane < bfloat16_lanes; ++lane)
        target[(lane / 2 * bfloat16_rows + c) * 2 + lane % 2] =
            c < channels ? source[c * bfloat16_lanes + lane] : bfloat16{0};
}

/// Arranges `rows` rows of `depth` numbers side by side, up to 16 x 32 of them, as an a of a block product; zeros fill
/// it up.
template <Bfloat16Unit unit>
void to_block_rows(const float* source, index_t row_step, index_t rows, index_t depth, bfloat16* block) noexcept {
  for (index_t row = 0; row < bfloat16_rows; ++row, source += row_step, block += bfloat16_depth) {
    const index_t count = row < rows ? depth : 0;
#if defined(STRATA_BFLOAT16_VECTORS)
    if constexpr (unit != Bfloat16Unit::scalar) {
      const auto mask = static_cast<std::uint32_t>((std::uint64_t{1} << static_cast<unsigned>(count)) - 1);
      const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask & 0xFFFFU), source);
      const __m512 high = count <= bfloat16_lanes
                              ? _mm512_setzero_ps()
                              : _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16U), source + bfloat16_lanes);
      _mm512_storeu_si512(block, std::bit_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
      continue;
    }
#endif
    for (index_t k = 0; k < bfloat16_depth; ++k) block[k] = k < count ? to_bfloat16(source[k]) : bfloat16{0};
  }
}

/// Arranges `depth` rows of `lanes` numbers side by side, up to 32 x 16 of them, as a b of a block product; zeros fill
/// it up.
template <Bfloat16Unit unit>
void to_block_pairs(const float* source, index_t depth_step, index_t lanes, index_t depth, bfloat16* block) noexcept {
#if defined(STRATA_BFLOAT16_VECTORS)
  if constexpr (unit != Bfloat16Unit::scalar) {
    const __m512i pairs = detail::pair_order();
    const auto mask = static_cast<__mmask16>((1U << static_cast<unsigned>(lanes)) - 1U);
    const auto row = [&](index_t k) {
      return k < depth ? _mm512_maskz_loadu_ps(mask, source + k * depth_step) : _mm512_setzero_ps();
    };
    for (index_t k = 0; k < bfloat16_depth; k += 2) {
      const auto both = std::bit_cast<__m512i>(_mm512_cvtne2ps_pbh(row(k + 1), row(k)));
      _mm512_storeu_si512(block + k * bfloat16_lanes, _mm512_permutexvar_epi16(pairs, both));
    }
    return;
  }
#endif
  for (index_t k = 0; k < bfloat16_depth; ++k)
    for (index_t lane = 0; lane < bfloat16_lanes; ++lane)
      block[(k / 2 * bfloat16_lanes + lane) * 2 + k % 2] =
          k < depth && lane < lanes ? to_bfloat16(source[k * depth_step + lane]) : bfloat16{0};
}

/// Transposes the 16x16 pairs of a block: makes an a of a product's b and the other way round.
template <Bfloat16Unit unit>
void transpose_block(bfloat16* block) noexcept {
#if defined(STRATA_BFLOAT16_VECTORS)
  if constexpr (unit != Bfloat16Unit::scalar) {
    __m512i rows[16];
    __m512i quads[4][4];
#pragma GCC unroll 16
    for (std::size_t i = 0; i < 16; ++i) rows[i] = _mm512_loadu_si512(block + static_cast<index_t>(i) * 32);
      // 4x4 pairs within each quarter of four rows, then the quarters.
#pragma GCC unroll 4
    for (std::size_t i = 0; i < 4; ++i) detail::transpose_quads(rows + 4 * i, quads[i]);
#pragma GCC unroll 4
    for (std::size_t i = 0; i < 4; ++i) {
      const __m512i even_top = _mm512_shuffle_i32x4(quads[0][i], quads[1][i], 0x88);
      const __m512i odd_top = _mm512_shuffle_i32x4(quads[0][i], quads[1][i], 0xDD);
      const __m512i even_bottom = _mm512_shuffle_i32x4(quads[2][i], quads[3][i], 0x88);
      const __m512i odd_bottom = _mm512_shuffle_i32x4(quads[2][i], quads[3][i], 0xDD);
      bfloat16* const to = block + static_cast<index_t>(i) * 32;
      _mm512_storeu_si512(to, _mm512_shuffle_i32x4(even_top, even_bottom, 0x88));
      _mm512_storeu_si512(to + 4 * 32, _mm512_shuffle_i32x4(odd_top, odd_bottom, 0x88));
      _mm512_storeu_si512(to + 8 * 32, _mm512_shuffle_i32x4(even_top, even_bottom, 0xDD));
      _mm512_storeu_si512(to + 12 * 32, _mm512_shuffle_i32x4(odd_top, odd_bottom, 0xDD));
    }
    return;
  }
#endif
  for (index_t row = 0; row < bfloat16_rows; ++row)
    for (index_t column = 0; column < row; ++column)
      for (index_t i = 0; i < 2; ++i)
        std::swap(block[row * bfloat16_depth + 2 * column + i], block[column * bfloat16_depth + 2 * row + i]);
}

/// c[i * step + j] += sum over k of a[i][k] x b[k][j] for `rows` x `lanes` of them: `a` and `b` are blocks of 16 rows
/// and of 16 lanes, each `depth` blocks one behind the other. A `Bfloat16Registers<unit>` lives meanwhile.
template <Bfloat16Unit unit>
void bfloat16_add_product(const bfloat16* a, const bfloat16* b, index_t depth, index_t rows, index_t lanes, float* c,
                          index_t step) noexcept {
  const index_t panel = depth * bfloat16_block;
  const auto target = [&](index_t i, index_t j) {
    return detail::Bfloat16Target{c + i * step + j, step, std::min(bfloat16_rows, rows - i),
                                  std::min(bfloat16_lanes, lanes - j)};
  };
  Bfloat16Sum sum;
  sum.count = depth;
  // Two blocks of lanes by all rows: those two stay in the cache.
  for (index_t j = 0; j < lanes; j += 2 * bfloat16_lanes)
    for (index_t i = 0; i < rows; i += 2 * bfloat16_rows) {
#if defined(STRATA_BFLOAT16_TILES)
      if constexpr (unit == Bfloat16Unit::tiles)
        if (i + 2 * bfloat16_rows <= rows && j + 2 * bfloat16_lanes <= lanes) {
          sum.a = a + i / bfloat16_rows * panel;
          sum.b = b + j / bfloat16_lanes * panel;
          detail::bfloat16_tile_square<true>(sum, panel, panel,
                                             {target(i, j), target(i, j + bfloat16_lanes), target(i + bfloat16_rows, j),
                                              target(i + bfloat16_rows, j + bfloat16_lanes)});
          continue;
        }
#endif
      for (index_t i2 = i; i2 < std::min(i + 2 * bfloat16_rows, rows); i2 += bfloat16_rows)
        for (index_t j2 = j; j2 < std::min(j + 2 * bfloat16_lanes, lanes); j2 += bfloat16_lanes) {
          sum.a = a + i2 / bfloat16_rows * panel;
          sum.b = b + j2 / bfloat16_lanes * panel;
          detail::bfloat16_one<unit, true>(sum, target(i2, j2));
        }
    }
}

}  // namespace strata::kernels
