// Point sets: farthest point sampling, ball query, grouping and the maximum over a group, each with its scalar twin.
// What a network makes of them is the layers' business (layers/point_set.hpp).
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include <xsimd/xsimd.hpp>

#include <strata/core/types.hpp>

namespace strata::kernels {

/// Indices of points.
using PointIndex = std::int32_t;

/// Most points of a set: farthest point sampling carries indices in lanes of `float`, which is exact up to here.
inline constexpr index_t max_points = index_t{1} << 24U;

/// Coordinates of a set of points, one array per dimension, `pitch` elements apart. Up to a vector of elements behind
/// the last point of each array is read (and ignored), so that memory has to be there.
template <class Scalar>
struct PointView {
  const Scalar* coordinates = nullptr;
  index_t pitch = 0;
  index_t count = 0;

  [[nodiscard]] const Scalar* dimension(index_t d) const noexcept { return coordinates + d * pitch; }
};

namespace detail {

/// Squared distances of a vector of points from `centre`. The multiply-adds are explicit, so that every machine that
/// has them computes the same bits and the same ties whatever the compiler contracts.
template <int dimensions, class Scalar, class Arch>
[[gnu::always_inline]] inline xsimd::batch<Scalar, Arch> squared_distance(
    const PointView<Scalar>& points, index_t at,
    const std::array<xsimd::batch<Scalar, Arch>, static_cast<std::size_t>(dimensions)>& centre) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  Batch difference = Batch::load_unaligned(points.coordinates + at) - centre[0];
  Batch sum = difference * difference;
  for (int d = 1; d < dimensions; ++d) {
    difference = Batch::load_unaligned(points.dimension(d) + at) - centre[static_cast<std::size_t>(d)];
    sum = xsimd::fma(difference, difference, sum);
  }
  return sum;
}

template <int dimensions, class Scalar, class Arch>
[[gnu::always_inline]] inline std::array<xsimd::batch<Scalar, Arch>, static_cast<std::size_t>(dimensions)> broadcast(
    const PointView<Scalar>& points, index_t at) noexcept {
  std::array<xsimd::batch<Scalar, Arch>, static_cast<std::size_t>(dimensions)> result;
  for (int d = 0; d < dimensions; ++d)
    result[static_cast<std::size_t>(d)] = xsimd::batch<Scalar, Arch>(points.dimension(d)[at]);
  return result;
}

/// 0, 1, 2, ... as numbers of the vector's type.
template <class Batch>
[[nodiscard]] inline Batch lane_numbers() noexcept {
  std::array<typename Batch::value_type, Batch::size> numbers{};
  for (std::size_t i = 0; i < Batch::size; ++i) numbers[i] = static_cast<typename Batch::value_type>(i);
  return Batch::load_unaligned(numbers.data());
}

/// Writes `first` + the number of every lane that is set to `out`, in ascending order, and returns how many there were.
/// Writes up to a vector of entries, whatever is set.
template <class Scalar, class Arch>
[[gnu::always_inline]] inline index_t append_set_lanes(const xsimd::batch_bool<Scalar, Arch>& set, index_t first,
                                                       PointIndex* out) noexcept {
  constexpr std::size_t lanes = xsimd::batch_bool<Scalar, Arch>::size;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<std::remove_cvref_t<decltype(set.data)>, __mmask16>) {
    const __m512i numbers = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first)),
                                             _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    // Compressed in a register: the form that compresses into memory is slow on some processors.
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(set.data, numbers));
    return std::popcount(static_cast<unsigned>(set.data));
  }
#endif
  if (!xsimd::any(set)) return 0;
  std::array<bool, lanes> flags{};
  set.store_unaligned(flags.data());
  index_t count = 0;
  for (std::size_t i = 0; i < lanes; ++i) {  // no branch: which lanes are set cannot be foreseen
    out[count] = static_cast<PointIndex>(first) + static_cast<PointIndex>(i);
    count += flags[i] ? 1 : 0;
  }
  return count;
}

template <class Arch, int dimensions, class Scalar>
void farthest_point_sampling(const PointView<Scalar>& points, index_t samples, Scalar* distances,
                             PointIndex* indices) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const index_t padded = round_up(points.count, lanes);
  for (index_t i = 0; i < points.count; ++i) distances[i] = std::numeric_limits<Scalar>::infinity();
  for (index_t i = points.count; i < padded; ++i) distances[i] = Scalar{-1};  // never the farthest
  const Batch numbers = lane_numbers<Batch>();
  const Batch step(static_cast<Scalar>(lanes));
  index_t chosen = 0;
  for (index_t s = 0; s < samples; ++s) {
    indices[s] = static_cast<PointIndex>(chosen);
    if (s + 1 == samples) return;
    const auto centre = broadcast<dimensions, Scalar, Arch>(points, chosen);
    Batch best(Scalar{-1});
    Batch best_number(Scalar{0});
    Batch number = numbers;
    for (index_t i = 0; i < padded; i += lanes, number += step) {
      const Batch found = squared_distance<dimensions, Scalar, Arch>(points, i, centre);
      const Batch before = Batch::load_unaligned(distances + i);
      const Batch nearest = xsimd::select(found < before, found, before);  // what is no number changes nothing
      nearest.store_unaligned(distances + i);
      const auto farther = nearest > best;  // strictly: the first of equals stays
      best = xsimd::select(farther, nearest, best);
      best_number = xsimd::select(farther, number, best_number);
    }
    std::array<Scalar, Batch::size> values{};
    std::array<Scalar, Batch::size> places{};
    best.store_unaligned(values.data());
    best_number.store_unaligned(places.data());
    Scalar farthest = values[0];
    Scalar place = places[0];
    for (std::size_t l = 1; l < Batch::size; ++l) {
      const bool better = values[l] > farthest || (values[l] == farthest && places[l] < place);
      farthest = better ? values[l] : farthest;
      place = better ? places[l] : place;
    }
    chosen = static_cast<index_t>(place);
    if (!(farthest > 0)) {  // every point is chosen or lies on one that is: all that follows is the first point
      for (index_t rest = s + 1; rest < samples; ++rest) indices[rest] = 0;
      return;
    }
  }
}

template <class Arch, int dimensions, class Scalar>
void ball_query(const PointView<Scalar>& points, const PointView<Scalar>& centroids, index_t first, index_t last,
                Scalar radius, index_t samples, PointIndex* found, PointIndex* indices, index_t pitch) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const Batch limit(radius * radius);
  const Batch numbers = lane_numbers<Batch>();
  const index_t whole = points.count / lanes * lanes;
  for (index_t m = first; m < last; ++m) {
    const auto centre = broadcast<dimensions, Scalar, Arch>(centroids, m);
    index_t count = 0;
    index_t i = 0;
    for (; i < whole && count < samples; i += lanes)
      count += append_set_lanes<Scalar, Arch>(squared_distance<dimensions, Scalar, Arch>(points, i, centre) < limit, i,
                                              found + count);
    if (i < points.count && count < samples) {
      const auto inside = squared_distance<dimensions, Scalar, Arch>(points, i, centre) < limit;
      const auto real = numbers < Batch(static_cast<Scalar>(points.count - i));
      count += append_set_lanes<Scalar, Arch>(inside & real, i, found + count);
    }
    if (count == 0) found[count++] = 0;
    const index_t kept = count < samples ? count : samples;
    for (index_t s = 0; s < kept; ++s) indices[s * pitch + m] = found[s];
    for (index_t s = kept; s < samples; ++s) indices[s * pitch + m] = found[0];
  }
}

}  // namespace detail

/// Farthest point sampling (arXiv 1706.02413): `indices` becomes `samples` points of which each is the farthest from
/// those before it. The first is point 0, of equally far ones the first wins; once every point is chosen or lies on a
/// chosen one, the rest is point 0. Points whose coordinates are not finite make the choice meaningless, never out of
/// range. `distances`: scratch of `points.count` elements rounded up to whole vectors.
/// Preconditions: 1 <= points.count <= max_points, dimensions 2 or 3.
template <class Arch, class Scalar>
void farthest_point_sampling(index_t dimensions, const PointView<Scalar>& points, index_t samples, Scalar* distances,
                             PointIndex* indices) noexcept {
  if (dimensions == 2) {
    detail::farthest_point_sampling<Arch, 2>(points, samples, distances, indices);
  } else {
    detail::farthest_point_sampling<Arch, 3>(points, samples, distances, indices);
  }
}

/// The scalar twin of `farthest_point_sampling`.
template <class Scalar>
void farthest_point_sampling_reference(index_t dimensions, const PointView<Scalar>& points, index_t samples,
                                       Scalar* distances, PointIndex* indices) noexcept {
  for (index_t i = 0; i < points.count; ++i) distances[i] = std::numeric_limits<Scalar>::infinity();
  index_t chosen = 0;
  for (index_t s = 0; s < samples; ++s) {
    indices[s] = static_cast<PointIndex>(chosen);
    index_t farthest = 0;
    for (index_t i = 0; i < points.count; ++i) {
      Scalar sum{0};
      for (index_t d = 0; d < dimensions; ++d) {
        const Scalar difference = points.dimension(d)[i] - points.dimension(d)[chosen];
        sum += difference * difference;
      }
      if (sum < distances[i]) distances[i] = sum;
      if (distances[i] > distances[farthest]) farthest = i;
    }
    chosen = farthest;
  }
}

/// Entries of the scratch `found` of `ball_query`.
template <class Arch, class Scalar>
[[nodiscard]] constexpr index_t ball_query_scratch(index_t samples) noexcept {
  return samples + 2 * static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
}

/// The points nearer than `radius` to each of the centroids first .. last-1: of centroid m the first `samples` in the
/// order of the points at indices[s * pitch + m]; if there are fewer, the first of them again, and point 0 if there is
/// none (arXiv 1706.02413). Points that are not finite are in no ball.
/// `found`: scratch of `ball_query_scratch` entries.
/// Preconditions: 1 <= points.count <= max_points, samples >= 1, dimensions 2 or 3.
template <class Arch, class Scalar>
void ball_query(index_t dimensions, const PointView<Scalar>& points, const PointView<Scalar>& centroids, index_t first,
                index_t last, Scalar radius, index_t samples, PointIndex* found, PointIndex* indices,
                index_t pitch) noexcept {
  if (dimensions == 2) {
    detail::ball_query<Arch, 2>(points, centroids, first, last, radius, samples, found, indices, pitch);
  } else {
    detail::ball_query<Arch, 3>(points, centroids, first, last, radius, samples, found, indices, pitch);
  }
}

/// The scalar twin of `ball_query`.
template <class Scalar>
void ball_query_reference(index_t dimensions, const PointView<Scalar>& points, const PointView<Scalar>& centroids,
                          index_t first, index_t last, Scalar radius, index_t samples, PointIndex* indices,
                          index_t pitch) noexcept {
  for (index_t m = first; m < last; ++m) {
    index_t count = 0;
    for (index_t i = 0; i < points.count && count < samples; ++i) {
      Scalar sum{0};
      for (index_t d = 0; d < dimensions; ++d) {
        const Scalar difference = points.dimension(d)[i] - centroids.dimension(d)[m];
        sum += difference * difference;
      }
      if (sum < radius * radius) indices[count++ * pitch + m] = static_cast<PointIndex>(i);
    }
    if (count == 0) indices[count++ * pitch + m] = 0;
    for (index_t s = count; s < samples; ++s) indices[s * pitch + m] = indices[m];
  }
}

/// target[i] = source[indices[i]] for i < count. Preconditions: all indices lie within `source`.
template <class Scalar>
void gather_row(const Scalar* source, const PointIndex* indices, index_t count, Scalar* target) noexcept {
  for (index_t i = 0; i < count; ++i) target[i] = source[indices[i]];
}

namespace detail {

/// Vectors of four numbers, in which small transpositions are the same everywhere; void where there are none.
template <class Scalar>
using Four = xsimd::make_sized_batch_t<Scalar, 4>;

/// Column i of the four rows becomes row i, i < 4.
template <class Batch>
[[gnu::always_inline]] inline void transpose(std::array<Batch, 4>& rows) noexcept {
  const Batch even_low = xsimd::zip_lo(rows[0], rows[2]);
  const Batch odd_low = xsimd::zip_lo(rows[1], rows[3]);
  const Batch even_high = xsimd::zip_hi(rows[0], rows[2]);
  const Batch odd_high = xsimd::zip_hi(rows[1], rows[3]);
  rows = {xsimd::zip_lo(even_low, odd_low), xsimd::zip_hi(even_low, odd_low), xsimd::zip_lo(even_high, odd_high),
          xsimd::zip_hi(even_high, odd_high)};
}

/// Whether transpositions in registers serve this type: four numbers in 16 bytes need no lane crossed.
template <class Scalar>
inline constexpr bool transposes_in_registers = [] {
  if constexpr (std::is_void_v<Four<Scalar>>) {
    return false;
  } else {
    return sizeof(Scalar) * 4 == 16;
  }
}();

}  // namespace detail

/// From a point to the next one in the arrangement point by point of `channels` channels.
[[nodiscard]] constexpr index_t point_pitch(index_t channels) noexcept {
  return round_up(channels, 4);
}

/// Rearranges `channels` arrays of `count` points, `pitch` apart, point by point: target[i * point_pitch(all) + first +
/// c] = source[c * pitch + i], where `all` are the channels of a point in the target, of which `first` come before.
template <class Scalar>
void points_from_channels(const Scalar* source, index_t pitch, index_t channels, index_t count, index_t first,
                          index_t all, Scalar* target) noexcept {
  const index_t step = point_pitch(all);
  target += first;
  index_t c = 0;
  if constexpr (detail::transposes_in_registers<Scalar>) {
    using Batch = detail::Four<Scalar>;
    for (; c + 4 <= channels; c += 4) {
      index_t i = 0;
      for (; i + 4 <= count; i += 4) {
        const Scalar* from = source + c * pitch + i;
        std::array<Batch, 4> block = {Batch::load_unaligned(from), Batch::load_unaligned(from + pitch),
                                      Batch::load_unaligned(from + 2 * pitch), Batch::load_unaligned(from + 3 * pitch)};
        detail::transpose(block);
        for (index_t k = 0; k < 4; ++k) block[static_cast<std::size_t>(k)].store_unaligned(target + (i + k) * step + c);
      }
      for (; i < count; ++i)
        for (index_t k = 0; k < 4; ++k) target[i * step + c + k] = source[(c + k) * pitch + i];
    }
  }
  for (; c < channels; ++c)
    for (index_t i = 0; i < count; ++i) target[i * step + c] = source[c * pitch + i];
}

/// One sample of `count` groups: target[c * pitch + m] = points[indices[m] * point_pitch(channels) + c], m < count,
/// c < channels. Reads points in whole, in blocks of four that are transposed in registers: gathering instructions, one
/// channel at a time, take several times as long.
/// Preconditions: all indices are those of points; `points` has point_pitch(channels) elements for each.
template <class Scalar>
void group_points(const Scalar* points, index_t channels, const PointIndex* indices, index_t count, Scalar* target,
                  index_t pitch) noexcept {
  const index_t step = point_pitch(channels);
  index_t m = 0;
  if constexpr (detail::transposes_in_registers<Scalar>) {
    using Batch = detail::Four<Scalar>;
    const index_t whole = count / 4 * 4;
    for (; m < whole; m += 4) {
      const std::array<const Scalar*, 4> from = {
          points + static_cast<index_t>(indices[m]) * step, points + static_cast<index_t>(indices[m + 1]) * step,
          points + static_cast<index_t>(indices[m + 2]) * step, points + static_cast<index_t>(indices[m + 3]) * step};
      Scalar* to = target + m;
      for (index_t c = 0; c < channels; c += 4, to += 4 * pitch) {
        std::array<Batch, 4> block = {Batch::load_unaligned(from[0] + c), Batch::load_unaligned(from[1] + c),
                                      Batch::load_unaligned(from[2] + c), Batch::load_unaligned(from[3] + c)};
        detail::transpose(block);
        const index_t rest = channels - c;  // the last block may hold fewer channels
        block[0].store_unaligned(to);
        if (rest > 1) block[1].store_unaligned(to + pitch);
        if (rest > 2) block[2].store_unaligned(to + 2 * pitch);
        if (rest > 3) block[3].store_unaligned(to + 3 * pitch);
      }
    }
  }
  for (; m < count; ++m) {
    const Scalar* from = points + static_cast<index_t>(indices[m]) * step;
    for (index_t c = 0; c < channels; ++c) target[c * pitch + m] = from[c];
  }
}

/// The scalar twin of `group_points`.
template <class Scalar>
void group_points_reference(const Scalar* points, index_t channels, const PointIndex* indices, index_t count,
                            Scalar* target, index_t pitch) noexcept {
  for (index_t m = 0; m < count; ++m)
    for (index_t c = 0; c < channels; ++c)
      target[c * pitch + m] = points[static_cast<index_t>(indices[m]) * point_pitch(channels) + c];
}

/// target[i] = max(target[i], source[r * pitch + i] for all r < rows), i < count.
template <class Arch, class Scalar>
void max_rows(const Scalar* source, index_t rows, index_t pitch, index_t count, Scalar* target) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  index_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    Batch largest = Batch::load_unaligned(target + i);
    for (index_t r = 0; r < rows; ++r) largest = xsimd::max(largest, Batch::load_unaligned(source + r * pitch + i));
    largest.store_unaligned(target + i);
  }
  for (; i < count; ++i)
    for (index_t r = 0; r < rows; ++r)
      target[i] = source[r * pitch + i] > target[i] ? source[r * pitch + i] : target[i];
}

/// The scalar twin of `max_rows`.
template <class Scalar>
void max_rows_reference(const Scalar* source, index_t rows, index_t pitch, index_t count, Scalar* target) noexcept {
  for (index_t i = 0; i < count; ++i)
    for (index_t r = 0; r < rows; ++r)
      if (source[r * pitch + i] > target[i]) target[i] = source[r * pitch + i];
}

/// The largest of `count` >= 1 numbers.
template <class Arch, class Scalar>
[[nodiscard]] Scalar max_of(const Scalar* source, index_t count) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  Scalar result = source[0];
  index_t i = 0;
  if (count >= lanes) {
    Batch largest = Batch::load_unaligned(source);
    for (i = lanes; i + lanes <= count; i += lanes) largest = xsimd::max(largest, Batch::load_unaligned(source + i));
    std::array<Scalar, Batch::size> values{};
    largest.store_unaligned(values.data());
    for (const Scalar value : values) result = value > result ? value : result;
  }
  for (; i < count; ++i) result = source[i] > result ? source[i] : result;
  return result;
}

}  // namespace strata::kernels
