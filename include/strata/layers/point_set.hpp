// What the layers over point sets are, apart from their weights, for both module families: options, shapes, and the
// check of a cloud that comes from outside. A set of points is a tensor of channels x 1 x points.
#pragma once

#include <cmath>
#include <span>
#include <string>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/kernels/point_set.hpp>

namespace strata {

/// Farthest point sampling: dimensions x 1 x points -> dimensions x 1 x centroids, the coordinates of the chosen
/// points. The first is point 0; a cloud of fewer points than centroids gives all its points, then point 0 again.
struct SamplingOptions {
  index_t dimensions = 3;  ///< 2 or 3
  index_t centroids = 1;
};

/// Groups around centroids: for each centroid the first `samples` points nearer than `radius`, in the order of the
/// points; if there are fewer, the first of them again. A group's channels are the coordinates relative to the
/// centroid, then the features. The result is (dimensions + features) x samples x centroids: the maximum over the
/// samples of a group is then one over rows.
struct GroupingOptions {
  index_t dimensions = 3;  ///< 2 or 3
  double radius = 0.2;
  index_t samples = 32;
};

namespace detail {

inline void require_dimensions(index_t dimensions, const char* where) {
  if (dimensions != 2 && dimensions != 3) raise(Error(where, "2 or 3 dimensions", dimensions));
}

}  // namespace detail

/// Raises for dimensions other than 2 and 3 and for centroids below 1 or above `kernels::max_points`.
inline void require_valid(const SamplingOptions& options) {
  detail::require_dimensions(options.dimensions, "farthest point sampling");
  if (options.centroids < 1 || options.centroids > kernels::max_points)
    raise(Error({"farthest point sampling"}, {"1 to ", kernels::max_points, " centroids"}, {options.centroids}));
}

/// Raises for dimensions other than 2 and 3, samples below 1 or above `kernels::max_points`, a radius that is not above
/// 0 and finite.
inline void require_valid(const GroupingOptions& options) {
  detail::require_dimensions(options.dimensions, "grouping");
  if (options.samples < 1 || options.samples > kernels::max_points)
    raise(Error({"grouping"}, {"1 to ", kernels::max_points, " samples"}, {options.samples}));
  if (!(options.radius > 0 && std::isfinite(options.radius)))
    raise(Error("grouping", "a radius above 0", options.radius));
}

/// Whether `shape` is a set of points in that many dimensions.
[[nodiscard]] constexpr bool is_point_set(Shape shape, index_t dimensions) noexcept {
  return shape.channels == dimensions && shape.height == 1 && shape.width >= 1 && shape.width <= kernels::max_points;
}

/// Whether `points`, `centroids` and `features` (null: none) of one batch go together.
[[nodiscard]] constexpr bool groups_fit(Shape points, Shape centroids, const Shape* features,
                                        index_t dimensions) noexcept {
  return is_point_set(points, dimensions) && is_point_set(centroids, dimensions) &&
         (features == nullptr || (features->height == 1 && features->width == points.width));
}

/// Errors: no points, numbers that are no whole points, a coordinate that is not finite (names cloud and point).
/// `clouds` holds clouds of `points` points each as dimensions x points, one cloud after the other.
template <class Scalar>
[[nodiscard]] Status check_points(std::span<const Scalar> clouds, index_t dimensions, index_t points) {
  if (points < 1) return Error("point cloud", "at least 1 point", points);
  const index_t size = dimensions * points;
  const auto count = static_cast<index_t>(clouds.size());
  if (count == 0 || count % size != 0) return Error({"point cloud"}, {"a multiple of ", size, " coordinates"}, {count});
  for (index_t i = 0; i < count; ++i)
    if (!std::isfinite(clouds[static_cast<std::size_t>(i)]))
      return Error({"cloud ", i / size, ", point ", i % points}, {"finite coordinates"},
                   {clouds[static_cast<std::size_t>(i)]});
  return success();
}

}  // namespace strata
