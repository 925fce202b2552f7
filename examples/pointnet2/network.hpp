// PointNet++ for classification (Qi et al., arXiv 1706.02413), one text for training and inference, with single-scale
// or multi-scale grouping. Names are those of the usual PyTorch definition; coordinates come before features.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <strata/core/types.hpp>
#include <strata/layers/options.hpp>
#include <strata/layers/point_set.hpp>

namespace pointnet2 {

using strata::index_t;

/// A perceptron that all points share: three 1x1 convolutions.
template <class Family>
struct SharedPerceptron {
  using Tensor = typename Family::Tensor;

  SharedPerceptron(index_t in, const std::array<index_t, 3>& widths)
      : convs{typename Family::Conv2d(pointwise(in, widths[0])),
              typename Family::Conv2d(pointwise(widths[0], widths[1])),
              typename Family::Conv2d(pointwise(widths[1], widths[2]))} {}

  [[nodiscard]] static strata::Conv2dOptions pointwise(index_t in, index_t out) {
    return {.in_channels = in, .out_channels = out, .kernel = 1, .activation = strata::Activation::relu};
  }
  Tensor operator()(typename Family::Context& context, const Tensor& x) const {
    return convs[2](context, convs[1](context, convs[0](context, x)));
  }

  std::array<typename Family::Conv2d, 3> convs;
};

/// Groups of one radius and what is made of them.
struct Scale {
  double radius;
  index_t samples;
  std::array<index_t, 3> widths;
};

/// Centroids, and the features of the groups around them at one or several scales, side by side.
template <class Family>
struct SetAbstraction {
  using Tensor = typename Family::Tensor;
  using Context = typename Family::Context;

  struct Branch {
    typename Family::BallGrouping grouping;
    SharedPerceptron<Family> perceptron;
  };

  SetAbstraction(index_t dimensions, index_t in_features, index_t centroids, const std::vector<Scale>& scales)
      : sampling({.dimensions = dimensions, .centroids = centroids}) {
    for (const Scale& scale : scales) {
      branches.push_back(
          {typename Family::BallGrouping({.dimensions = dimensions, .radius = scale.radius, .samples = scale.samples}),
           SharedPerceptron<Family>(dimensions + in_features, scale.widths)});
      out_features += scale.widths[2];
    }
  }

  /// Replaces points and features by centroids and theirs.
  void operator()(Context& context, Tensor& points, Tensor& features, bool has_features) const {
    const Tensor centroids = sampling(context, points);
    Tensor all;
    for (std::size_t i = 0; i < branches.size(); ++i) {
      const Branch& branch = branches[i];
      const Tensor y =
          branch.grouping(context, points, centroids, has_features ? &features : nullptr,
                          [&](const Tensor& groups) { return maximum(context, branch.perceptron(context, groups)); });
      all = i == 0 ? y : beside(context, all, y);
    }
    points = centroids;
    features = all;
  }

  template <class V>
  void visit(V&& v) {
    for (std::size_t b = 0; b < branches.size(); ++b)
      for (std::size_t i = 0; i < 3; ++i) {
        const std::string scale = branches.size() == 1 ? "" : std::to_string(b) + ".";
        const std::string conv = (branches.size() == 1 ? "mlp_convs." : "conv_blocks.") + scale + std::to_string(i);
        const std::string norm = (branches.size() == 1 ? "mlp_bns." : "bn_blocks.") + scale + std::to_string(i);
        v(conv.c_str(), branches[b].perceptron.convs[i], norm);
      }
  }

  typename Family::FarthestPointSampling sampling;
  std::vector<Branch> branches;
  typename Family::GroupMax maximum;
  typename Family::Concatenate beside;
  index_t out_features = 0;
};

/// The perceptron over all centroids as one group.
template <class Family>
struct WholeSet {
  WholeSet(index_t in, const std::array<index_t, 3>& widths) : perceptron(in, widths) {}

  auto operator()(typename Family::Context& context, const typename Family::Tensor& points,
                  const typename Family::Tensor& features) const {
    return maximum(context, perceptron(context, beside(context, points, features)));
  }
  template <class V>
  void visit(V&& v) {
    for (std::size_t i = 0; i < 3; ++i)
      v(("mlp_convs." + std::to_string(i)).c_str(), perceptron.convs[i], "mlp_bns." + std::to_string(i));
  }

  SharedPerceptron<Family> perceptron;
  typename Family::Concatenate beside;
  typename Family::GlobalMaxPool2d maximum;
};

/// Two set abstractions, one over the whole set, three fully connected layers.
template <class Family>
struct PointNet2 {
  struct Config {
    index_t dimensions = 3;
    index_t points = 1024;
    index_t classes = 13;
    index_t width = 64;        ///< channels of the first perceptron; all others are multiples of it
    bool multi_scale = false;  ///< three radii instead of one at both abstractions
    index_t centroids1 = 512;
    index_t samples1 = 32;
    double radius1 = 0.2;
    index_t centroids2 = 128;
    index_t samples2 = 64;
    double radius2 = 0.4;
    double dropout = 0.5;

    template <class V>
    void visit(V&& v) {
      v("dimensions", dimensions);
      v("points", points);
      v("classes", classes);
      v("width", width);
      v("multi_scale", multi_scale);
      v("centroids1", centroids1);
      v("samples1", samples1);
      v("radius1", radius1);
      v("centroids2", centroids2);
      v("samples2", samples2);
      v("radius2", radius2);
      v("dropout", dropout);
    }
  };
  static constexpr std::string_view architecture = "pointnet2.PointNet2";
  using Tensor = typename Family::Tensor;

  explicit PointNet2(const Config& config)
      : config_(config),
        sa1(config.dimensions, 0, config.centroids1, scales1(config)),
        sa2(config.dimensions, sa1.out_features, config.centroids2, scales2(config)),
        sa3(config.dimensions + sa2.out_features, {4 * config.width, 8 * config.width, 16 * config.width}),
        fc1(hidden(16 * config.width, 8 * config.width)),
        fc2(hidden(8 * config.width, 4 * config.width)),
        fc3({.in_features = 4 * config.width, .out_features = config.classes}),
        drop(config.dropout) {}

  [[nodiscard]] const Config& config() const { return config_; }
  [[nodiscard]] strata::Shape input_shape() const { return {config_.dimensions, 1, config_.points}; }
  /// A session asks before every run.
  template <class Scalar>
  [[nodiscard]] strata::Status check_input(std::span<const Scalar> clouds) const {
    return strata::check_points(clouds, config_.dimensions, config_.points);
  }

  /// Clouds (dimensions x 1 x points) to logits.
  auto operator()(typename Family::Context& context, const Tensor& x) const {
    Tensor points = x;
    Tensor features;
    sa1(context, points, features, false);
    context.stage("sa2");
    sa2(context, points, features, true);
    context.stage("sa3");
    Tensor y = sa3(context, points, features);
    context.stage("fc");
    y = drop(context, fc1(context, y));
    y = drop(context, fc2(context, y));
    return fc3(context, y);
  }

  template <class V>
  void visit(V&& v) {
    v("sa1", sa1);
    v("sa2", sa2);
    v("sa3", sa3);
    v("fc1", fc1, "bn1");
    v("fc2", fc2, "bn2");
    v("fc3", fc3);
  }

  Config config_;
  SetAbstraction<Family> sa1, sa2;
  WholeSet<Family> sa3;
  typename Family::Linear fc1, fc2, fc3;
  typename Family::Dropout drop;

 private:
  [[nodiscard]] static strata::LinearOptions hidden(index_t in, index_t out) {
    return {
        .in_features = in, .out_features = out, .bias = false, .norm = true, .activation = strata::Activation::relu};
  }
  /// Multi-scale: half, one and two times the radius; the widths and samples of the paper's classifier.
  [[nodiscard]] static std::vector<Scale> scales1(const Config& c) {
    const index_t w = c.width;
    if (!c.multi_scale) return {{c.radius1, c.samples1, {w, w, 2 * w}}};
    return {{c.radius1 / 2, at_least_1(c.samples1 / 2), {w / 2, w / 2, w}},
            {c.radius1, c.samples1, {w, w, 2 * w}},
            {c.radius1 * 2, c.samples1 * 4, {w, w + w / 2, 2 * w}}};
  }
  [[nodiscard]] static std::vector<Scale> scales2(const Config& c) {
    const index_t w = c.width;
    if (!c.multi_scale) return {{c.radius2, c.samples2, {2 * w, 2 * w, 4 * w}}};
    return {{c.radius2 / 2, at_least_1(c.samples2 / 2), {w, w, 2 * w}},
            {c.radius2, c.samples2, {2 * w, 2 * w, 4 * w}},
            {c.radius2 * 2, c.samples2 * 2, {2 * w, 2 * w, 4 * w}}};
  }
  [[nodiscard]] static index_t at_least_1(index_t count) { return count < 1 ? 1 : count; }
};

}  // namespace pointnet2
