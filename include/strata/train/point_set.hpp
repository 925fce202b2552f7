// Point sets on the tape: sampling, grouping and maxima, with the kernels that the inference family uses, so that both
// choose the same points. Which points are chosen has no derivative; where they lie and what they carry has.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/kernels/point_set.hpp>
#include <strata/layers/point_set.hpp>
#include <strata/train/bfloat16.hpp>
#include <strata/train/tape.hpp>

namespace strata::train {

namespace detail {

/// Elements of a set of points as one array per dimension, with the room behind that `PointView` asks for.
template <class Scalar>
[[nodiscard]] index_t split_size(index_t dimensions, index_t points) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar>::size);
  return dimensions * round_up(points, lanes) + lanes;
}

/// The points of one sample, which lie point by point, as one array per dimension in `target`.
template <class Scalar>
[[nodiscard]] kernels::PointView<Scalar> split(const Tensor<Scalar>& x, index_t image, Scalar* target) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar>::size);
  const index_t dimensions = x.shape().channels;
  const index_t count = x.shape().width;
  const index_t pitch = round_up(count, lanes);
  const Scalar* source = x.value().data() + image * count * dimensions;
  for (index_t i = 0; i < count; ++i)
    for (index_t d = 0; d < dimensions; ++d) target[d * pitch + i] = *source++;
  return {target, pitch, count};
}

}  // namespace detail

/// See `SamplingOptions`.
template <class Scalar>
[[nodiscard]] Tensor<Scalar> farthest_points(Context<Scalar>& context, const Tensor<Scalar>& x,
                                             const SamplingOptions& options) {
  const Shape in = x.shape();
  const index_t dimensions = options.dimensions;
  if (!is_point_set(in, dimensions))
    raise(Error("farthest point sampling", std::to_string(dimensions) + " x 1 x points", strata::detail::text(in)));
  const index_t count = options.centroids;
  Tensor<Scalar> y = context.make(x.batch(), {dimensions, 1, count}, x.needs_gradient());
  auto chosen = std::make_shared<std::vector<kernels::PointIndex>>(static_cast<std::size_t>(x.batch() * count));
  const index_t distances = round_up(in.width, static_cast<index_t>(xsimd::batch<Scalar>::size));
  context.for_parts(x.batch(), [&](index_t part, index_t first, index_t last) {
    Scalar* const scratch = context.scratch(part, distances + detail::split_size<Scalar>(dimensions, in.width));
    for (index_t image = first; image < last; ++image) {
      kernels::PointIndex* const indices = chosen->data() + image * count;
      kernels::farthest_point_sampling<xsimd::default_arch>(dimensions, detail::split(x, image, scratch + distances),
                                                            count, scratch, indices);
      for (index_t m = 0; m < count; ++m)
        std::copy_n(x.value().data() + (image * in.width + indices[m]) * dimensions, dimensions,
                    y.value().data() + (image * count + m) * dimensions);
    }
  });
  context.record([=] {
    if (!x.needs_gradient()) return;
    auto dx = x.gradient_matrix();
    const auto dy = y.gradient_matrix();
    for (index_t image = 0; image < x.batch(); ++image)
      for (index_t m = 0; m < count; ++m)
        dx.col(image * in.width + (*chosen)[static_cast<std::size_t>(image * count + m)]) += dy.col(image * count + m);
  });
  return y;
}

/// See `GroupingOptions`; `features` null: none.
template <class Scalar>
[[nodiscard]] Tensor<Scalar> ball_groups(Context<Scalar>& context, const Tensor<Scalar>& points,
                                         const Tensor<Scalar>& centroids, const Tensor<Scalar>* features,
                                         const GroupingOptions& options) {
  const index_t dimensions = options.dimensions;
  const index_t samples = options.samples;
  const Shape feature_shape = features == nullptr ? Shape() : features->shape();
  if (!groups_fit(points.shape(), centroids.shape(), features == nullptr ? nullptr : &feature_shape, dimensions) ||
      points.batch() != centroids.batch() || (features != nullptr && features->batch() != points.batch()))
    raise(Error("grouping",
                "points and centroids in " + std::to_string(dimensions) + " dimensions, features of every point",
                strata::detail::text(points.shape()) + ", " + strata::detail::text(centroids.shape()) +
                    (features == nullptr ? "" : ", " + strata::detail::text(feature_shape))));
  const index_t count = points.shape().width;
  const index_t groups = centroids.shape().width;
  const index_t extra = features == nullptr ? 0 : feature_shape.channels;
  const index_t channels = dimensions + extra;
  const bool needs_gradient =
      points.needs_gradient() || centroids.needs_gradient() || (features != nullptr && features->needs_gradient());
  Tensor<Scalar> y = context.make(points.batch(), {channels, samples, groups}, needs_gradient);
  const Tensor<Scalar> carried = features == nullptr ? Tensor<Scalar>() : *features;
  const bool has_features = features != nullptr;
  const index_t size = samples * groups;
  auto members = std::make_shared<std::vector<kernels::PointIndex>>(static_cast<std::size_t>(points.batch() * size));
  const index_t point_size = detail::split_size<Scalar>(dimensions, count);
  context.for_parts(points.batch(), [&](index_t part, index_t first, index_t last) {
    std::vector<kernels::PointIndex> found(
        static_cast<std::size_t>(kernels::ball_query_scratch<xsimd::default_arch, Scalar>(samples)));
    Scalar* const scratch = context.scratch(part, point_size + detail::split_size<Scalar>(dimensions, groups));
    for (index_t image = first; image < last; ++image) {
      kernels::PointIndex* const indices = members->data() + image * size;
      kernels::ball_query<xsimd::default_arch>(
          dimensions, detail::split(points, image, scratch), detail::split(centroids, image, scratch + point_size), 0,
          groups, static_cast<Scalar>(options.radius), samples, found.data(), indices, groups);
      Scalar* target = y.value().data() + image * size * channels;
      for (index_t i = 0; i < size; ++i, target += channels) {
        const index_t from = image * count + indices[i];
        const Scalar* point = points.value().data() + from * dimensions;
        const Scalar* centre = centroids.value().data() + (image * groups + i % groups) * dimensions;
        for (index_t d = 0; d < dimensions; ++d) target[d] = point[d] - centre[d];
        if (has_features) std::copy_n(carried.value().data() + from * extra, extra, target + dimensions);
      }
    }
  });
  context.record([=, &context] {
    if (!needs_gradient) return;
    const auto dy = y.gradient_matrix();
    // Gradients are made before the parts begin: they allocate when first asked for.
    Scalar* const d_points = points.needs_gradient() ? points.gradient().data() : nullptr;
    Scalar* const d_centroids = centroids.needs_gradient() ? centroids.gradient().data() : nullptr;
    Scalar* const d_features = has_features && carried.needs_gradient() ? carried.gradient().data() : nullptr;
    context.for_parts(points.batch(), [&](index_t, index_t first, index_t last) {
      for (index_t image = first; image < last; ++image)
        for (index_t i = 0; i < size; ++i) {
          const Scalar* source = dy.data() + (image * size + i) * channels;
          const index_t to = image * count + (*members)[static_cast<std::size_t>(image * size + i)];
          const index_t centre = image * groups + i % groups;
          for (index_t d = 0; d < dimensions; ++d) {
            if (d_points != nullptr) d_points[to * dimensions + d] += source[d];
            if (d_centroids != nullptr) d_centroids[centre * dimensions + d] -= source[d];
          }
          if (d_features == nullptr) continue;
          Scalar* const target = d_features + to * extra;
          for (index_t c = 0; c < extra; ++c) target[c] += source[dimensions + c];
        }
    });
  });
  return y;
}

/// The channels of `a`, then those of `b`, which agree in batch, height and width.
template <class Scalar>
[[nodiscard]] Tensor<Scalar> concatenate(Context<Scalar>& context, const Tensor<Scalar>& a, const Tensor<Scalar>& b) {
  const Shape first = a.shape();
  const Shape second = b.shape();
  if (a.batch() != b.batch() || first.height != second.height || first.width != second.width)
    raise(Error("concatenation", "pictures of one size",
                strata::detail::text(first) + " and " + strata::detail::text(second)));
  Tensor<Scalar> y = context.make(a.batch(), {first.channels + second.channels, first.height, first.width},
                                  a.needs_gradient() || b.needs_gradient());
  y.matrix().topRows(first.channels) = a.matrix();
  y.matrix().bottomRows(second.channels) = b.matrix();
  context.record([=] {
    if (a.needs_gradient()) a.gradient_matrix() += y.gradient_matrix().topRows(first.channels);
    if (b.needs_gradient()) b.gradient_matrix() += y.gradient_matrix().bottomRows(second.channels);
  });
  return y;
}

namespace detail {

/// Maximum over the first of [samples][size] in every picture, or, of activations in lanes (stored as they are or as
/// bfloat16), in every block of channels of a group of pictures: there too one sample lies behind the other. Equals go
/// to the first.
template <class Stored, class Scalar>
[[nodiscard]] Tensor<Scalar> max_over_stored(Context<Scalar>& context, const Tensor<Scalar>& x, index_t samples,
                                             Shape out, bool in_lanes) {
  constexpr bool whole = std::is_same_v<Stored, Scalar>;
  const Layout made = !in_lanes ? Layout::channels_last : whole ? Layout::lanes : Layout::half_lanes;
  Tensor<Scalar> y = context.make(x.batch(), out, x.needs_gradient(), made);
  const LaneLayout layout = y.lane_layout();
  const index_t units = in_lanes ? layout.groups * layout.blocks() : x.batch();
  const index_t size = in_lanes ? layout.block_step() : out.size();
  const auto numbers = [=](const Tensor<Scalar>& tensor) -> Stored* {
    if constexpr (whole)
      if (!in_lanes) return tensor.value().data();
    return tensor.template lanes<Stored>();
  };
  const Stored* const values = numbers(x);
  Stored* const maxima = numbers(y);
  const std::shared_ptr<std::int32_t[]> winners(new std::int32_t[static_cast<std::size_t>(x.batch() * out.size())]);
  // Calls f(where a piece of a unit starts in y, where its first sample does in x, numbers of the piece); what is known
  // of a piece stays in the L1 cache while its samples pass by in long runs.
  const auto for_pieces = [&context, units, size, samples](auto&& f) {
    constexpr index_t piece = 8192;
    context.for_parts(units, [&](index_t, index_t first, index_t last) {
      for (index_t unit = first; unit < last; ++unit)
        for (index_t i = 0; i < size; i += piece)
          f(unit * size + i, unit * samples * size + i, std::min(piece, size - i));
    });
  };
  for_pieces([&](index_t at, index_t source_at, index_t count) {
    const Stored* source = values + source_at;
    Stored* const best = maxima + at;
    std::int32_t* const winner = winners.get() + at;
    std::copy_n(source, count, best);
    std::fill_n(winner, count, 0);
    for (index_t s = 1; s < samples; ++s) {
      source += size;
      for (index_t i = 0; i < count; ++i) {
        const bool larger = kernels::stored_as<Scalar>(source[i]) > kernels::stored_as<Scalar>(best[i]);
        best[i] = larger ? source[i] : best[i];
        winner[i] = larger ? static_cast<std::int32_t>(s) : winner[i];
      }
    }
  });
  context.record([=] {
    if (!x.needs_gradient()) return;
    const Stored* dy = nullptr;
    typename Tensor<Scalar>::template LaneGradient<Stored> dx;
    if constexpr (whole)
      if (!in_lanes) {
        dy = y.gradient().data();
        dx = {x.gradient().data(), false};
      }
    if (dy == nullptr) {
      dy = y.template whole_lane_gradient<Stored>();
      dx = x.template lane_gradient<Stored>();
    }
    for_pieces([&](index_t at, index_t source_at, index_t count) {
      const Stored* const from = dy + at;
      const std::int32_t* const winner = winners.get() + at;
      Stored* to = dx.data + source_at;
      if (dx.fresh) {
        for (index_t s = 0; s < samples; ++s, to += size)
          for (index_t i = 0; i < count; ++i) to[i] = winner[i] == s ? from[i] : Stored{0};
        return;
      }
      for (index_t i = 0; i < count; ++i) {
        Stored& sum = to[winner[i] * size + i];
        sum = kernels::stored_as<Stored>(kernels::stored_as<Scalar>(sum) + kernels::stored_as<Scalar>(from[i]));
      }
    });
  });
  return y;
}

template <class Scalar>
[[nodiscard]] Tensor<Scalar> max_over(Context<Scalar>& context, const Tensor<Scalar>& x, index_t samples, Shape out) {
  if constexpr (kernels::bfloat16_for<Scalar>)
    if (x.has(Layout::half_lanes)) return max_over_stored<kernels::bfloat16>(context, x, samples, out, true);
  return max_over_stored<Scalar>(context, x, samples, out, x.has(Layout::lanes));
}

}  // namespace detail

/// Maximum over the samples of each group: channels x samples x centroids -> channels x 1 x centroids.
template <class Scalar>
[[nodiscard]] Tensor<Scalar> group_max(Context<Scalar>& context, const Tensor<Scalar>& x) {
  const Shape in = x.shape();
  if (in.height < 1 || in.width < 1) raise(Error("maximum over groups", "at least 1 sample", strata::detail::text(in)));
  return detail::max_over(context, x, in.height, {in.channels, 1, in.width});
}

/// Maximum of each channel: channels x height x width -> channels x 1 x 1.
template <class Scalar>
[[nodiscard]] Tensor<Scalar> global_max(Context<Scalar>& context, const Tensor<Scalar>& x) {
  const Shape in = x.shape();
  if (in.height < 1 || in.width < 1) raise(Error("global maximum", "at least 1 pixel", strata::detail::text(in)));
  return detail::max_over(context, x, in.height * in.width, {in.channels, 1, 1});
}

/// The layers of the training family; the inference family's have the same calls (layers/inference/point_set.hpp).
template <class Scalar>
class FarthestPointSampling {
 public:
  static constexpr bool has_parameters = false;
  explicit FarthestPointSampling(const SamplingOptions& options) : options_(options) { require_valid(options); }
  [[nodiscard]] Tensor<Scalar> operator()(Context<Scalar>& context, const Tensor<Scalar>& x) const {
    return farthest_points(context, x, options_);
  }

 private:
  SamplingOptions options_;
};

template <class Scalar>
class BallGrouping {
 public:
  static constexpr bool has_parameters = false;
  explicit BallGrouping(const GroupingOptions& options) : options_(options) { require_valid(options); }
  /// All groups of the batch at once: normalisation wants the statistics of all.
  template <class Perceptron>
  [[nodiscard]] Tensor<Scalar> operator()(Context<Scalar>& context, const Tensor<Scalar>& points,
                                          const Tensor<Scalar>& centroids, const Tensor<Scalar>* features,
                                          Perceptron&& perceptron) const {
    Tensor<Scalar> y = perceptron(ball_groups(context, points, centroids, features, options_));
    const Shape expected{y.shape().channels, 1, centroids.shape().width};
    if (y.shape() != expected)
      raise(Error("grouping", "a perceptron that ends in a maximum: " + strata::detail::text(expected),
                  strata::detail::text(y.shape())));
    return y;
  }

 private:
  GroupingOptions options_;
};

template <class Scalar>
class Concatenate {
 public:
  static constexpr bool has_parameters = false;
  [[nodiscard]] Tensor<Scalar> operator()(Context<Scalar>& context, const Tensor<Scalar>& a,
                                          const Tensor<Scalar>& b) const {
    return concatenate(context, a, b);
  }
};

template <class Scalar>
class GroupMax {
 public:
  static constexpr bool has_parameters = false;
  [[nodiscard]] Tensor<Scalar> operator()(Context<Scalar>& context, const Tensor<Scalar>& x) const {
    return group_max(context, x);
  }
};

template <class Scalar>
class GlobalMaxPool2d {
 public:
  static constexpr bool has_parameters = false;
  [[nodiscard]] Tensor<Scalar> operator()(Context<Scalar>& context, const Tensor<Scalar>& x) const {
    return global_max(context, x);
  }
};

}  // namespace strata::train
