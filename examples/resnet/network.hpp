// Residual networks (arXiv 1512.03385), one text for training and inference: basic and bottleneck blocks, the stem for
// photographs and the one for 32x32 pictures. Names of layers are those of torchvision's state_dict.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/layers/options.hpp>

namespace resnet {

using strata::index_t;

/// What stands before the first block.
enum class Stem : int {
  photograph = 0,  ///< 7x7 convolution of stride 2, 3x3 maximum of stride 2
  small = 1,       ///< 3x3 convolution of stride 1, for pictures of about 32x32
  halving = 2      ///< 3x3 convolution of stride 2, for the same pictures at a quarter of the work
};

/// The numbers that tell one network of the family from another.
struct Config {
  std::array<index_t, 4> blocks{3, 4, 6, 3};  ///< per stage; a stage of 0 ends the network
  index_t width = 64;                         ///< channels of the stem; every stage doubles the width of its 3x3s
  bool bottleneck = true;                     ///< 1x1, 3x3, 1x1 to four times the width; else two 3x3
  Stem stem = Stem::photograph;
  index_t classes = 1000;
  index_t picture_channels = 3;
  index_t picture_height = 224;
  index_t picture_width = 224;

  template <class V>
  void visit(V&& v) {
    v("blocks1", blocks[0]);
    v("blocks2", blocks[1]);
    v("blocks3", blocks[2]);
    v("blocks4", blocks[3]);
    v("width", width);
    v("bottleneck", bottleneck);
    v("stem", stem);
    v("classes", classes);
    v("picture_channels", picture_channels);
    v("picture_height", picture_height);
    v("picture_width", picture_width);
  }

  /// Errors: numbers that describe no network, or one far beyond what any machine runs (names the number).
  [[nodiscard]] strata::Status check() const {
    const auto within = [](const char* name, index_t value, index_t least, index_t most) -> strata::Status {
      if (value >= least && value <= most) return strata::success();
      return strata::Error(name, std::to_string(least) + " to " + std::to_string(most), std::to_string(value));
    };
    bool ended = false;
    for (std::size_t stage = 0; stage < blocks.size(); ++stage) {
      const std::string name = "blocks" + std::to_string(stage + 1);
      if (auto status = within(name.c_str(), blocks[stage], stage == 0 ? 1 : 0, 1000); !status) return status;
      if (ended && blocks[stage] > 0) return strata::Error(name, "0 after a stage of 0", std::to_string(blocks[stage]));
      ended = ended || blocks[stage] == 0;
    }
    if (auto status = within("width", width, 1, 4096); !status) return status;
    if (auto status = within("stem", static_cast<index_t>(stem), 0, 2); !status) return status;
    if (auto status = within("classes", classes, 1, 1'000'000); !status) return status;
    if (auto status = within("picture_channels", picture_channels, 1, 4096); !status) return status;
    if (auto status = within("picture_height", picture_height, 1, 16384); !status) return status;
    return within("picture_width", picture_width, 1, 16384);
  }
};

/// The networks that programs know by name, as torchvision and the paper call them; "-small": behind the stem for small
/// pictures, "-halving": behind the one that halves them. Errors: another name.
[[nodiscard]] inline strata::Result<Config> config_named(const std::string& name, index_t classes,
                                                         strata::Shape picture) {
  struct Known {
    std::string_view name;
    std::array<index_t, 4> blocks;
    bool bottleneck;
  };
  static constexpr std::array known = {
      Known{"resnet18", {2, 2, 2, 2}, false},       Known{"resnet34", {3, 4, 6, 3}, false},
      Known{"resnet50", {3, 4, 6, 3}, true},        Known{"resnet101", {3, 4, 23, 3}, true},
      Known{"resnet152", {3, 8, 36, 3}, true},      Known{"resnet20", {3, 3, 3, 0}, false},
      Known{"resnet32", {5, 5, 5, 0}, false},       Known{"resnet44", {7, 7, 7, 0}, false},
      Known{"resnet56", {9, 9, 9, 0}, false},       Known{"resnet110", {18, 18, 18, 0}, false},
      Known{"resnet18-small", {2, 2, 2, 2}, false}, Known{"resnet50-small", {3, 4, 6, 3}, true},
      Known{"resnet50-halving", {3, 4, 6, 3}, true}};
  std::string names;
  for (const Known& network : known) {
    names += (names.empty() ? "" : ", ") + std::string(network.name);
    if (network.name != name) continue;
    const bool three = network.blocks[3] == 0;
    return Config{.blocks = network.blocks,
                  .width = three ? 16 : 64,
                  .bottleneck = network.bottleneck,
                  .stem = three || name.ends_with("-small") ? Stem::small
                          : name.ends_with("-halving")      ? Stem::halving
                                                            : Stem::photograph,
                  .classes = classes,
                  .picture_channels = picture.channels,
                  .picture_height = picture.height,
                  .picture_width = picture.width};
  }
  return strata::Error("network", "one of " + names, "\"" + name + "\"");
}

/// ResNet-20 of section 4.2 of the paper for 32x32 pictures, with 1x1 convolutions where a shortcut changes its shape.
[[nodiscard]] inline Config resnet20(index_t classes = 10, strata::Shape picture = {3, 32, 32}) {
  return config_named("resnet20", classes, picture).value();
}
[[nodiscard]] inline Config resnet56(index_t classes = 10, strata::Shape picture = {3, 32, 32}) {
  return config_named("resnet56", classes, picture).value();
}
/// ResNet-50 v1.5 (stride in the 3x3, as torchvision's resnet50) for `size` x `size` photographs.
[[nodiscard]] inline Config resnet50(index_t size = 224, index_t classes = 1000) {
  return config_named("resnet50", classes, {3, size, size}).value();
}
/// ResNet-50's blocks behind the stem for small pictures.
[[nodiscard]] inline Config resnet50_small(index_t classes = 10, strata::Shape picture = {3, 32, 32}) {
  return config_named("resnet50-small", classes, picture).value();
}

/// relu(F(x) + shortcut(x)); the sum and the activation are the epilogue of the last convolution.
template <class Family>
struct Block {
  using Conv2d = typename Family::Conv2d;
  using Tensor = typename Family::Tensor;

  /// `in` and `out` count channels; `width` are those of the 3x3.
  Block(index_t in, index_t width, index_t out, index_t stride, bool bottleneck)
      : conv1(bottleneck ? convolution(in, width, 1, 1) : convolution(in, width, 3, stride)),
        conv2(bottleneck ? convolution(width, width, 3, stride) : convolution(width, out, 3, 1)) {
    if (bottleneck) conv3.emplace(convolution(width, out, 1, 1));
    if (stride != 1 || in != out) {
      strata::Conv2dOptions options = convolution(in, out, 1, stride);
      options.activation = strata::Activation::identity;
      downsample.emplace(options);
    }
  }

  /// The result may take the place of `x`.
  Tensor operator()(typename Family::Context& context, Tensor x) const {
    Tensor shortcut = downsample ? (*downsample)(context, x) : x;
    Tensor y = conv1(context, x);
    x = {};
    if (conv3) y = conv2(context, y);
    const Conv2d& last = conv3 ? *conv3 : conv2;
    return last(context, y, std::move(shortcut));
  }

  template <class V>
  void visit(V&& v) {
    v("conv1", conv1, "bn1");
    v("conv2", conv2, "bn2");
    v("conv3", conv3, "bn3");
    v("downsample.0", downsample, "downsample.1");
  }

  [[nodiscard]] static strata::Conv2dOptions convolution(index_t in, index_t out, index_t kernel, index_t stride) {
    return {.in_channels = in,
            .out_channels = out,
            .kernel = kernel,
            .stride = stride,
            .padding = kernel / 2,
            .activation = strata::Activation::relu};
  }

  Conv2d conv1, conv2;
  std::optional<Conv2d> conv3, downsample;
};

/// Stem, stages of blocks, global average, classifier. Every block begins at a stage of the context, "layer1.0" and so
/// on, where the level may drop.
template <class Family>
struct ResNet {
  using Config = resnet::Config;
  using Tensor = typename Family::Tensor;
  static constexpr std::string_view architecture = "resnet.ResNet";

  /// Raises: what `Config::check` refuses.
  explicit ResNet(const Config& config)
      : config_(checked(config)),
        conv1(stem(config)),
        pool({.kernel = 3, .stride = 2, .padding = 1}),
        fc({.in_features = features(config), .out_features = config.classes}) {
    index_t in = config.width;
    for (std::size_t stage = 0; stage < stages.size(); ++stage) {
      const index_t width = config.width << stage;
      const index_t out = config.bottleneck ? 4 * width : width;
      stages[stage].reserve(static_cast<std::size_t>(config.blocks[stage]));
      for (index_t b = 0; b < config.blocks[stage]; ++b) {
        stages[stage].emplace_back(in, width, out, b == 0 && stage > 0 ? 2 : 1, config.bottleneck);
        stage_names.push_back("layer" + std::to_string(stage + 1) + "." + std::to_string(b));
        in = out;
      }
    }
  }

  [[nodiscard]] const Config& config() const { return config_; }
  [[nodiscard]] strata::Shape input_shape() const {
    return {config_.picture_channels, config_.picture_height, config_.picture_width};
  }

  auto operator()(typename Family::Context& context, const Tensor& x) const {
    Tensor y = conv1(context, x);
    if (config_.stem == Stem::photograph) y = pool(context, y);
    auto name = stage_names.begin();
    for (const auto& stage : stages)
      for (const auto& block : stage) {
        context.stage(*name++);
        y = block(context, std::move(y));
      }
    return fc(context, average(context, y));
  }

  template <class V>
  void visit(V&& v) {
    v("conv1", conv1, "bn1");
    v("layer1", stages[0]);
    v("layer2", stages[1]);
    v("layer3", stages[2]);
    v("layer4", stages[3]);
    v("fc", fc);
  }

  [[nodiscard]] static const Config& checked(const Config& config) {
    (void)config.check().value();
    return config;
  }
  [[nodiscard]] static strata::Conv2dOptions stem(const Config& config) {
    const bool photograph = config.stem == Stem::photograph;
    return Block<Family>::convolution(config.picture_channels, config.width, photograph ? 7 : 3,
                                      config.stem == Stem::small ? 1 : 2);
  }
  /// Channels that reach the classifier.
  [[nodiscard]] static index_t features(const Config& config) {
    std::size_t last = 0;
    while (last + 1 < config.blocks.size() && config.blocks[last + 1] > 0) ++last;
    return (config.width << last) * (config.bottleneck ? 4 : 1);
  }

  Config config_;
  typename Family::Conv2d conv1;
  typename Family::MaxPool2d pool;
  std::array<std::vector<Block<Family>>, 4> stages;
  std::vector<std::string> stage_names;  ///< of all blocks; made once, since a run allocates nothing
  typename Family::GlobalAvgPool2d average;
  typename Family::Linear fc;
};

}  // namespace resnet
