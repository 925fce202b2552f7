// A small convolutional network for 28x28 pictures, one text for training and inference.
#pragma once

#include <string_view>

#include <strata/core/types.hpp>
#include <strata/layers/options.hpp>

namespace quickstart {

/// Three 3x3 convolutions of stride 2, global average pooling and a classifier.
template <class Family>
struct FashionNet {
  struct Config {
    strata::index_t width = 32;  ///< channels of the first convolution; the others have 3 and 6 times as many
    strata::index_t classes = 10;
    template <class V>
    void visit(V&& v) {
      v("width", width);
      v("classes", classes);
    }
  };
  static constexpr std::string_view architecture = "quickstart.FashionNet";

  explicit FashionNet(const Config& config)
      : config_(config),
        conv1(convolution(1, config.width)),
        conv2(convolution(config.width, 3 * config.width)),
        conv3(convolution(3 * config.width, 6 * config.width)),
        fc({.in_features = 6 * config.width, .out_features = config.classes}) {}

  [[nodiscard]] const Config& config() const { return config_; }
  [[nodiscard]] strata::Shape input_shape() const { return {1, 28, 28}; }

  auto operator()(typename Family::Context& context, const typename Family::Tensor& x) const {
    auto y = conv1(context, x);
    context.stage("conv2");
    y = conv2(context, y);
    context.stage("conv3");
    y = conv3(context, y);
    return fc(context, average(context, y));
  }

  template <class V>
  void visit(V&& v) {
    v("conv1", conv1, "bn1");
    v("conv2", conv2, "bn2");
    v("conv3", conv3, "bn3");
    v("fc", fc);
  }

  [[nodiscard]] static strata::Conv2dOptions convolution(strata::index_t in, strata::index_t out) {
    return {.in_channels = in,
            .out_channels = out,
            .kernel = 3,
            .stride = 2,
            .padding = 1,
            .activation = strata::Activation::relu};
  }

  Config config_;
  typename Family::Conv2d conv1, conv2, conv3;
  typename Family::GlobalAvgPool2d average;
  typename Family::Linear fc;
};

}  // namespace quickstart
