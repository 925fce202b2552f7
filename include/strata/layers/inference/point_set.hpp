// Point sets in the inference family: sampling, grouping, the maximum over the samples of a group, and sets put side by
// side. The shared multi-layer perceptrons in between are 1x1 convolutions (layers/inference/conv2d.hpp).
#pragma once

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include <strata/kernels/point_set.hpp>
#include <strata/layers/context.hpp>
#include <strata/layers/point_set.hpp>

namespace strata::inference {

namespace detail {

/// The points of one picture. Blocks of the arena can be read beyond their end, as `PointView` asks.
template <class Scalar>
[[nodiscard]] kernels::PointView<Scalar> point_view(const Tensor<Scalar>& x, index_t image) noexcept {
  return {x.row(image, 0, 0), x.layout().tile_pitch, x.shape().width};
}

/// Calls `f(first, last)` for one range of 0 .. count-1 a thread.
template <class F>
void in_parallel(Executor& executor, index_t count, F&& f) {
  const auto threads = static_cast<index_t>(executor.threads());
  executor.parallel_for(threads, [&](index_t task) {
    const index_t first = task * count / threads;
    const index_t last = (task + 1) * count / threads;
    if (first < last) f(task, first, last);
  });
}

}  // namespace detail

/// See `SamplingOptions`.
template <class Scalar, class Arch>
class FarthestPointSampling {
 public:
  static constexpr bool has_parameters = false;
  explicit FarthestPointSampling(const SamplingOptions& options) : options_(options) { require_valid(options); }

  [[nodiscard]] Tensor<Scalar> operator()(InferenceContext<Scalar, Arch>& context, const Tensor<Scalar>& x) const {
    const Shape in = x.shape();
    Tensor<Scalar> y = context.make(x.batch(), {options_.dimensions, 1, options_.centroids});
    if (!context.check(is_point_set(in, options_.dimensions), [&] {
          return Error({"farthest point sampling"}, {options_.dimensions, " x 1 x points"}, {strata::detail::text(in)});
        }))
      return y;
    const index_t padded = round_up(in.width, InferenceContext<Scalar, Arch>::lanes);
    const index_t distance_bytes =
        round_up(padded * static_cast<index_t>(sizeof(Scalar)), static_cast<index_t>(Block::alignment));
    const index_t bytes = distance_bytes + round_up(options_.centroids * static_cast<index_t>(sizeof(PointIndex)),
                                                    static_cast<index_t>(Block::alignment));
    const auto threads = static_cast<index_t>(context.executor().threads());
    const Block scratch = context.arena().take(threads * bytes);
    detail::in_parallel(context.executor(), x.batch(), [&](index_t task, index_t first, index_t last) {
      auto* const distances = reinterpret_cast<Scalar*>(scratch.data() + task * bytes);
      auto* const chosen = reinterpret_cast<PointIndex*>(scratch.data() + task * bytes + distance_bytes);
      for (index_t image = first; image < last; ++image) {
        kernels::farthest_point_sampling<Arch>(options_.dimensions, detail::point_view(x, image), options_.centroids,
                                               distances, chosen);
        for (index_t d = 0; d < options_.dimensions; ++d)
          kernels::gather_row(x.row(image, d, 0), chosen, options_.centroids, y.row(image, d, 0));
      }
    });
    return y;
  }

 private:
  using PointIndex = kernels::PointIndex;
  SamplingOptions options_;
};

/// See `GroupingOptions`. The groups are made and used a few centroids at a time, so that what a shared perceptron does
/// with them stays in the cache: the layer takes a function that is applied to each part.
template <class Scalar, class Arch>
class BallGrouping {
 public:
  static constexpr bool has_parameters = false;
  explicit BallGrouping(const GroupingOptions& options) : options_(options) { require_valid(options); }

  /// `points` and `centroids` are dimensions x 1 x their number, `features` (null: none) channels x 1 x points.
  /// `perceptron` maps a tensor (dimensions + channels) x samples x some centroids to outputs x 1 x as many; the result
  /// is outputs x 1 x centroids.
  template <class Perceptron>
  [[nodiscard]] Tensor<Scalar> operator()(InferenceContext<Scalar, Arch>& context, const Tensor<Scalar>& points,
                                          const Tensor<Scalar>& centroids, const Tensor<Scalar>* features,
                                          Perceptron&& perceptron) const {
    const index_t dimensions = options_.dimensions;
    const index_t samples = options_.samples;
    const index_t count = centroids.shape().width;
    const index_t channels = dimensions + (features == nullptr ? 0 : features->shape().channels);
    const Shape feature_shape = features == nullptr ? Shape() : features->shape();
    const bool fits =
        groups_fit(points.shape(), centroids.shape(), features == nullptr ? nullptr : &feature_shape, dimensions) &&
        points.batch() == centroids.batch() && (features == nullptr || features->batch() == points.batch());
    if (!context.check(fits, [&] {
          return Error({"grouping"}, {"points and centroids in ", dimensions, " dimensions, features of every point"},
                       {strata::detail::text(points.shape()), ", ", strata::detail::text(centroids.shape()),
                        (features == nullptr ? "" : ", " + strata::detail::text(feature_shape))});
        })) {
      const Tensor<Scalar> part = perceptron(context.make(1, {channels, samples, 1}));
      return context.make(points.batch(), {part.shape().channels, 1, count});
    }
    const auto threads = static_cast<index_t>(context.executor().threads());
    const index_t pitch = round_up(count, lanes);
    const index_t found_bytes =
        round_up(kernels::ball_query_scratch<Arch, Scalar>(samples) * static_cast<index_t>(sizeof(PointIndex)),
                 static_cast<index_t>(Block::alignment));
    const Block found = context.arena().take(threads * found_bytes);
    const Block index_block = context.arena().take(pitch * samples * static_cast<index_t>(sizeof(PointIndex)));
    auto* const indices = reinterpret_cast<PointIndex*>(index_block.data());
    const Block point_block = context.arena().take(points.shape().width * kernels::point_pitch(channels) *
                                                   static_cast<index_t>(sizeof(Scalar)));
    auto* const by_point = reinterpret_cast<Scalar*>(point_block.data());
    const index_t part = std::min(count, centroids_at_once(threads));
    Tensor<Scalar> y;
    for (index_t image = 0; image < points.batch(); ++image) {
      const auto cloud = detail::point_view(points, image);
      const auto centres = detail::point_view(centroids, image);
      detail::in_parallel(context.executor(), count, [&](index_t task, index_t first, index_t last) {
        kernels::ball_query<Arch>(dimensions, cloud, centres, first, last, static_cast<Scalar>(options_.radius),
                                  samples, reinterpret_cast<PointIndex*>(found.data() + task * found_bytes), indices,
                                  pitch);
      });
      kernels::points_from_channels(points.row(image, 0, 0), points.layout().tile_pitch, dimensions, cloud.count, 0,
                                    channels, by_point);
      if (features != nullptr)
        kernels::points_from_channels(features->row(image, 0, 0), features->layout().tile_pitch, feature_shape.channels,
                                      cloud.count, dimensions, channels, by_point);
      for (index_t first = 0; first < count; first += part) {
        const index_t width = std::min(part, count - first);
        const Tensor<Scalar> groups = context.make(1, {channels, samples, width});
        const index_t group_pitch = groups.layout().tile_pitch;
        detail::in_parallel(context.executor(), samples, [&](index_t, index_t begin, index_t end) {
          for (index_t s = begin; s < end; ++s) {
            kernels::group_points(by_point, channels, indices + s * pitch + first, width, groups.row(0, 0, s),
                                  group_pitch);
            for (index_t d = 0; d < dimensions; ++d) {
              const Scalar* const centre = centroids.row(image, d, 0) + first;
              Scalar* const row = groups.row(0, d, s);
              for (index_t m = 0; m < width; ++m) row[m] -= centre[m];
            }
          }
        });
        const Tensor<Scalar> result = perceptron(groups);
        const index_t outputs = result.shape().channels;
        if (!context.check(result.shape() == Shape{outputs, 1, width}, [&] {
              return Error({"grouping"},
                           {"a perceptron that ends in a maximum: ", strata::detail::text({outputs, 1, width})},
                           {strata::detail::text(result.shape())});
            }))
          return context.make(points.batch(), {outputs, 1, count});
        if (image == 0 && first == 0) y = context.make(points.batch(), {outputs, 1, count});
        for (index_t c = 0; c < outputs; ++c) std::copy_n(result.row(0, c, 0), width, y.row(image, c, 0) + first);
      }
    }
    return y;
  }

 private:
  using PointIndex = kernels::PointIndex;
  static constexpr index_t lanes = InferenceContext<Scalar, Arch>::lanes;

  /// Whole vectors of centroids with about 512 samples a thread: with 256 channels they are half a MiB.
  [[nodiscard]] index_t centroids_at_once(index_t threads) const noexcept {
    return round_up(std::max<index_t>(1, 512 * threads / options_.samples), lanes);
  }

  GroupingOptions options_;
};

/// Two tensors side by side. All points of a set as one group are their coordinates beside their features: the maximum
/// over them is `GlobalMaxPool2d`.
template <class Scalar, class Arch>
class Concatenate {
 public:
  static constexpr bool has_parameters = false;

  /// The channels of `a`, then those of `b`. They agree in batch, height and width.
  [[nodiscard]] Tensor<Scalar> operator()(InferenceContext<Scalar, Arch>& context, const Tensor<Scalar>& a,
                                          const Tensor<Scalar>& b) const {
    const Shape first = a.shape();
    const Shape second = b.shape();
    Tensor<Scalar> y = context.make(a.batch(), {first.channels + second.channels, first.height, first.width});
    if (!context.check(a.batch() == b.batch() && first.height == second.height && first.width == second.width, [&] {
          return Error({"concatenation"}, {"pictures of one size"},
                       {strata::detail::text(first), " and ", strata::detail::text(second)});
        }))
      return y;
    // Tiles do not depend on the channels, so those of a tile are one run of memory.
    const index_t size_a = a.layout().tile_size();
    const index_t size_b = b.layout().tile_size();
    for (index_t tile = 0; tile < y.layout().tiles; ++tile) {
      Scalar* const target = y.data() + tile * y.layout().tile_size();
      std::copy_n(a.data() + tile * size_a, size_a, target);
      std::copy_n(b.data() + tile * size_b, size_b, target + size_a);
    }
    return y;
  }
};

/// Maximum over the samples of each group: channels x samples x centroids -> channels x 1 x centroids.
template <class Scalar, class Arch>
class GroupMax {
 public:
  static constexpr bool has_parameters = false;

  [[nodiscard]] Tensor<Scalar> operator()(InferenceContext<Scalar, Arch>& context, const Tensor<Scalar>& x) const {
    const Shape in = x.shape();
    const Tensor<Scalar> y = context.make(x.batch(), {in.channels, 1, in.width});
    if (!context.check(in.height >= 1 && in.width >= 1,
                       [&] { return Error("maximum over groups", "at least 1 sample", strata::detail::text(in)); }))
      return y;
    const TileLayout& layout = x.layout();
    const index_t rows = layout.images_per_tile > 1 ? in.height : layout.tile_rows;
    detail::in_parallel(context.executor(), x.batch() * in.channels, [&](index_t, index_t first, index_t last) {
      for (index_t plane = first; plane < last; ++plane) {
        const index_t image = plane / in.channels;
        const index_t channel = plane % in.channels;
        Scalar* const target = y.row(image, channel, 0);
        std::copy_n(x.row(image, channel, 0), in.width, target);
        for (index_t top = 0; top < in.height; top += rows)
          kernels::max_rows<Arch>(x.row(image, channel, top), std::min(rows, in.height - top), layout.row_pitch,
                                  in.width, target);
      }
    });
    return y;
  }
};

/// Maximum of each channel: channels x height x width -> channels x 1 x 1.
template <class Scalar, class Arch>
class GlobalMaxPool2d {
 public:
  static constexpr bool has_parameters = false;

  [[nodiscard]] Tensor<Scalar> operator()(InferenceContext<Scalar, Arch>& context, const Tensor<Scalar>& x) const {
    const Shape in = x.shape();
    const Tensor<Scalar> y = context.make(x.batch(), {in.channels, 1, 1});
    if (!context.check(in.height >= 1 && in.width >= 1,
                       [&] { return Error("global maximum", "at least 1 pixel", strata::detail::text(in)); }))
      return y;
    detail::in_parallel(context.executor(), x.batch() * in.channels, [&](index_t, index_t first, index_t last) {
      for (index_t plane = first; plane < last; ++plane) {
        const index_t image = plane / in.channels;
        const index_t channel = plane % in.channels;
        Scalar largest = -std::numeric_limits<Scalar>::infinity();
        for (index_t row = 0; row < in.height; ++row)
          largest = std::max(largest, kernels::max_of<Arch>(x.row(image, channel, row), in.width));
        *y.row(image, channel, 0) = largest;
      }
    });
    return y;
  }
};

}  // namespace strata::inference
