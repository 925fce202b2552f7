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

/// target[i] = source[indices[i]] - centre[i] for i < count; `centre` null: nothing is subtracted. One channel of one
/// sample of `count` groups. Preconditions: all indices lie within `source`.
template <class Arch, class Scalar>
void group_row(const Scalar* source, const PointIndex* indices, const Scalar* centre, index_t count,
               Scalar* target) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  index_t i = 0;
  if constexpr (sizeof(Scalar) == sizeof(PointIndex)) {
    using Indices = xsimd::batch<PointIndex, Arch>;
    constexpr auto lanes = static_cast<index_t>(Batch::size);
    for (; i + lanes <= count; i += lanes) {
      Batch values = Batch::gather(source, Indices::load_unaligned(indices + i));
      if (centre != nullptr) values -= Batch::load_unaligned(centre + i);
      values.store_unaligned(target + i);
    }
  }
  for (; i < count; ++i) target[i] = source[indices[i]] - (centre == nullptr ? Scalar{0} : centre[i]);
}

/// The scalar twin of `group_row`.
template <class Scalar>
void group_row_reference(const Scalar* source, const PointIndex* indices, const Scalar* centre, index_t count,
                         Scalar* target) noexcept {
  for (index_t i = 0; i < count; ++i) target[i] = source[indices[i]] - (centre == nullptr ? Scalar{0} : centre[i]);
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
