// The training family: layers with dense weights, a level per weight and one normalisation per level, on a tape. The
// network text is the one of the inference family.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <strata/layers/module.hpp>
#include <strata/layers/options.hpp>
#include <strata/layers/parameters.hpp>
#include <strata/train/attention.hpp>
#include <strata/train/embedding.hpp>
#include <strata/train/graph_attention.hpp>
#include <strata/train/lstm.hpp>
#include <strata/train/operations.hpp>
#include <strata/train/parameter.hpp>
#include <strata/train/point_set.hpp>
#include <strata/train/product.hpp>
#include <strata/train/store.hpp>
#include <strata/train/tape.hpp>

namespace strata::train {

/// Weights, bias and normalisation of a layer; what the convolution and linear layers share.
template <class Scalar>
class WeightedLayer {
 public:
  static constexpr bool has_parameters = true;

  explicit WeightedLayer(const Conv2dOptions& options)
      : options_(validated(options)),
        weight_({options.out_channels, options.in_channels / options.groups, options.kernel.h, options.kernel.w}, 0) {
    weight_.levelled = options.levelled;
    weight_.decay = true;
    if (options.bias) bias_.push_back(Parameter<Scalar>({options.out_channels}, 0));
    if (options.norm) norms_.emplace_back(options.out_channels);
    initialise(0);
  }

  /// He initialisation (arXiv 1502.01852) from a seed.
  void initialise(std::uint64_t seed) {
    std::mt19937_64 random(seed);
    const double bound = std::sqrt(6.0 / static_cast<double>(options_.columns()));
    for (Scalar& w : weight_.value)
      w = static_cast<Scalar>((static_cast<double>(random() >> 11U) * 0x1p-53 * 2 - 1) * bound);
  }

  [[nodiscard]] Parameter<Scalar>& weight() noexcept { return weight_; }
  [[nodiscard]] const Parameter<Scalar>& weight() const noexcept { return weight_; }
  [[nodiscard]] std::vector<NormSet<Scalar>>& norms() noexcept { return norms_; }
  /// Null if the layer has none.
  [[nodiscard]] Parameter<Scalar>* bias() noexcept { return bias_.empty() ? nullptr : &bias_.front(); }

  /// One normalisation per level, new ones as copies of the last.
  void set_levels(int levels) {
    if (!norms_.empty()) norms_.resize(static_cast<std::size_t>(levels), norms_.back());
    if (bias_.size() > 1) bias_.resize(1);
  }

  /// Calls `f(parameter)` for all parameters.
  template <class F>
  void for_each_parameter(const std::string& name, const std::string& norm_name, F&& f) {
    weight_.name = name + ".weight";
    f(weight_);
    for (auto& bias : bias_) {
      bias.name = name + ".bias";
      f(bias);
    }
    for (std::size_t level = 0; level < norms_.size(); ++level) {
      norms_[level].gamma.name = norm_name + ".weight." + std::to_string(level);
      norms_[level].beta.name = norm_name + ".bias." + std::to_string(level);
      // A normalisation that all levels share belongs to none.
      norms_[level].gamma.level = norms_[level].beta.level = norms_.size() == 1 ? -1 : static_cast<int>(level);
      f(norms_[level].gamma);
      f(norms_[level].beta);
    }
  }

 protected:
  [[nodiscard]] Tensor<Scalar> run(Context<Scalar>& context, const Tensor<Scalar>& x,
                                   const Tensor<Scalar>* residual) const {
    // Operations write gradients and running statistics: a forward pass of training is const in form only.
    auto& self = const_cast<WeightedLayer&>(*this);
    const Tensor<Scalar> y = conv2d(context, x, self.weight_, options_);
    detail::check_residual(y, residual, weight_.name.empty() ? std::string_view("residual") : weight_.name);
    const auto level = static_cast<std::size_t>(context.level.index);
    if (norms_.size() > 1 && level >= norms_.size())
      raise(Error({weight_.name}, {"a level of 0 to ", norms_.size() - 1}, {context.level.index}));
    NormSet<Scalar>* norm = norms_.empty() ? nullptr : &self.norms_[norms_.size() == 1 ? 0 : level];
    return finish(context, y, norm, bias_.empty() ? nullptr : &self.bias_.front(), residual, options_.activation);
  }

  template <class Index>
  void store_as(const std::string& name, const std::string& norm_name, std::vector<index_t> shape,
                index_t block_columns, index_t row_group, ParameterSink& sink) const {
    const std::vector<float> weights = floats(weight_.value);
    bool dense = true;
    for (const std::uint8_t stratum : weight_.strata) dense = dense && stratum == 0;
    if (dense) {
      sink.array<float>(name + ".weight", std::move(shape), 0, weights);
    } else {
      const StratumMap map =
          detail::stratum_map(name + ".weight", options_.out_channels, options_.columns(), weight_.strata, sink);
      sink.leveled_csr(name + ".weight", LeveledCsr<float, Index>::from_dense(weights, map, block_columns, row_group));
    }
    if (norms_.empty()) {
      if (!bias_.empty()) sink.array<float>(name + ".bias", {options_.out_channels}, 0, floats(bias_.front().value));
      return;
    }
    if (norms_.size() > 1 && static_cast<int>(norms_.size()) != sink.levels())
      raise(Error({norm_name}, {"statistics of ", sink.levels(), " levels, as many as are to be stored"},
                  {"of ", norms_.size()}));
    for (int level = 0; level < sink.levels(); ++level) {
      const NormSet<Scalar>& norm = norms_[norms_.size() == 1 ? 0 : static_cast<std::size_t>(level)];
      const detail::Affine<Scalar> affine(options_.out_channels, &norm, bias_.empty() ? nullptr : &bias_.front());
      sink.per_level<float>(norm_name + ".scale", level, floats(affine.scale));
      sink.per_level<float>(norm_name + ".bias", level, floats(affine.offset));
    }
  }

  Conv2dOptions options_;

 private:
  [[nodiscard]] static const Conv2dOptions& validated(const Conv2dOptions& options) {
    require_valid(options);
    return options;
  }

  template <class Array>
  [[nodiscard]] static std::vector<float> floats(const Array& values) {
    std::vector<float> result;
    for (const auto value : values) result.push_back(static_cast<float>(value));
    return result;
  }

  Parameter<Scalar> weight_;
  std::vector<Parameter<Scalar>> bias_;  ///< none or one
  std::vector<NormSet<Scalar>> norms_;   ///< none, one for all levels, or one per level
};

/// See `Conv2dOptions`.
template <class Scalar>
class Conv2d : public WeightedLayer<Scalar> {
 public:
  using WeightedLayer<Scalar>::WeightedLayer;
  [[nodiscard]] Tensor<Scalar> operator()(Context<Scalar>& context, const Tensor<Scalar>& x) const {
    return this->run(context, x, nullptr);
  }
  [[nodiscard]] Tensor<Scalar> operator()(Context<Scalar>& context, const Tensor<Scalar>& x,
                                          const Tensor<Scalar>& residual) const {
    return this->run(context, x, &residual);
  }
  void store(const std::string& name, const std::string& norm_name, ParameterSink& sink) const {
    const Conv2dOptions& o = this->options_;
    this->template store_as<ConvIndex>(
        name, norm_name, {o.out_channels, o.in_channels / o.groups, o.kernel.h, o.kernel.w},
        conv_block_columns(o.kernel.h * o.kernel.w, o.in_channels), conv_row_group(o.out_channels, o.groups), sink);
  }
};

/// See `LinearOptions`; a 1x1 convolution of one pixel.
template <class Scalar>
class Linear : public WeightedLayer<Scalar> {
 public:
  explicit Linear(const LinearOptions& options) : WeightedLayer<Scalar>(as_convolution(options)) {
    this->weight().shape = {options.out_features, options.in_features};
  }
  [[nodiscard]] Tensor<Scalar> operator()(Context<Scalar>& context, const Tensor<Scalar>& x) const {
    if (!this->options_.norm && this->options_.activation == Activation::identity) {
      auto& self = const_cast<Linear&>(*this);  // a forward pass of training is const in form only
      return linear(context, checked(x), self.weight(), self.bias());
    }
    return this->run(context, checked(x), nullptr);
  }
  [[nodiscard]] Tensor<Scalar> operator()(Context<Scalar>& context, const Tensor<Scalar>& x,
                                          const Tensor<Scalar>& residual) const {
    return this->run(context, checked(x), &residual);
  }
  void store(const std::string& name, const std::string& norm_name, ParameterSink& sink) const {
    const Conv2dOptions& o = this->options_;
    this->template store_as<LinearIndex>(name, norm_name, {o.out_channels, o.in_channels},
                                         linear_block_columns(o.in_channels),
                                         LeveledCsr<float, LinearIndex>::default_row_group, sink);
  }

 private:
  /// A 1x1 convolution would take pictures of any size.
  [[nodiscard]] const Tensor<Scalar>& checked(const Tensor<Scalar>& x) const {
    const Shape in{this->options_.in_channels, 1, 1};
    if (x.shape() != in)
      raise(Error(this->weight().name.empty() ? "linear layer" : this->weight().name, strata::detail::text(in),
                  strata::detail::text(x.shape())));
    return x;
  }

  [[nodiscard]] static Conv2dOptions as_convolution(const LinearOptions& options) {
    require_valid(options);
    Conv2dOptions result;
    result.in_channels = options.in_features;
    result.out_channels = options.out_features;
    result.kernel = 1;
    result.bias = options.bias;
    result.norm = options.norm;
    result.activation = options.activation;
    result.levelled = options.levelled;
    return result;
  }
};

/// Layers without parameters.
template <class Scalar, bool maximum>
class WindowPool {
 public:
  static constexpr bool has_parameters = false;
  explicit WindowPool(const PoolOptions& options = {}) : options_(options) { require_valid(options); }
  [[nodiscard]] Tensor<Scalar> operator()(Context<Scalar>& context, const Tensor<Scalar>& x) const {
    return pool<maximum>(context, x, options_);
  }

 private:
  PoolOptions options_;
};

template <class Scalar>
class GlobalAvgPool2d {
 public:
  static constexpr bool has_parameters = false;
  [[nodiscard]] Tensor<Scalar> operator()(Context<Scalar>& context, const Tensor<Scalar>& x) const {
    PoolOptions options;
    options.kernel = options.stride = Pair(x.shape().height, x.shape().width);
    return pool<false>(context, x, options);
  }
};

template <class Scalar>
class Flatten {
 public:
  static constexpr bool has_parameters = false;
  [[nodiscard]] Tensor<Scalar> operator()(Context<Scalar>& context, const Tensor<Scalar>& x) const {
    return flatten(context, x);
  }
};

template <class Scalar>
class Dropout {
 public:
  static constexpr bool has_parameters = false;
  /// `rate` in [0, 1).
  explicit Dropout(double rate = 0.5) : rate_(rate) {
    if (!(rate >= 0 && rate < 1)) raise(Error("dropout", "a rate of at least 0 and below 1", std::to_string(rate)));
  }
  [[nodiscard]] Tensor<Scalar> operator()(Context<Scalar>& context, const Tensor<Scalar>& x) const {
    return dropout(context, x, rate_);
  }

 private:
  double rate_;
};

template <class Scalar>
class ActivationLayer {
 public:
  static constexpr bool has_parameters = false;
  explicit ActivationLayer(Activation activation) : activation_(activation) {}
  [[nodiscard]] Tensor<Scalar> operator()(Context<Scalar>& context, const Tensor<Scalar>& x) const {
    return finish<Scalar>(context, x, nullptr, nullptr, nullptr, activation_);
  }

 private:
  Activation activation_;
};

/// The family that trains.
template <class Scalar_ = float>
struct Training {
  using Scalar = Scalar_;
  using Context = train::Context<Scalar>;
  using Tensor = train::Tensor<Scalar>;
  using Conv2d = train::Conv2d<Scalar>;
  using Linear = train::Linear<Scalar>;
  using NodeFeatures = train::Tensor<Scalar>;
  using GraphAttention = train::GraphAttention<Scalar>;
  using MaxPool2d = WindowPool<Scalar, true>;
  using AvgPool2d = WindowPool<Scalar, false>;
  using GlobalAvgPool2d = train::GlobalAvgPool2d<Scalar>;
  using Flatten = train::Flatten<Scalar>;
  using Dropout = train::Dropout<Scalar>;
  using ActivationLayer = train::ActivationLayer<Scalar>;
  using FarthestPointSampling = train::FarthestPointSampling<Scalar>;
  using BallGrouping = train::BallGrouping<Scalar>;
  using GroupMax = train::GroupMax<Scalar>;
  using GlobalMaxPool2d = train::GlobalMaxPool2d<Scalar>;
  using Concatenate = train::Concatenate<Scalar>;
  using Embedding = train::Embedding<Scalar>;
  using Lstm = train::Lstm<Scalar>;
  using AttentionMemory = train::AttentionMemory<Scalar>;
  using BahdanauAttention = train::BahdanauAttention<Scalar>;
  using MultiHeadAttention = train::MultiHeadAttention<Scalar>;
};

/// All parameters of `network` in the order of its layers, named as in state_dict (norms with their level behind).
template <class Scalar, class Network>
[[nodiscard]] std::vector<Parameter<Scalar>*> parameters(Network& network) {
  std::vector<Parameter<Scalar>*> result;
  for_each_layer(network, [&](const std::string& name, const std::string& norm_name, auto& layer) {
    if constexpr (std::remove_cvref_t<decltype(layer)>::has_parameters)
      layer.for_each_parameter(name, norm_name, [&](auto& parameter) { result.push_back(&parameter); });
  });
  return result;
}

/// Draws the weights of all layers anew, each from numbers of its own that follow from `seed`. A network that was only
/// constructed has the same draw in all its layers. Strata and normalisations stay as they are.
template <class Network>
void initialise(Network& network, std::uint64_t seed) {
  std::uint64_t layer_seed = seed * 0x9E3779B97F4A7C15U;
  for_each_layer(network, [&](const std::string&, const std::string&, auto& layer) {
    if constexpr (std::remove_cvref_t<decltype(layer)>::has_parameters) layer.initialise(++layer_seed);
  });
}

/// Makes every layer ready for levels 0 .. levels-1: one normalisation each. Raises: levels below 1 or above
/// `max_levels`.
template <class Network>
void set_levels(Network& network, int levels) {
  if (levels < 1 || levels > max_levels) raise(Error({"levels"}, {"1 to ", max_levels}, {levels}));
  for_each_layer(network, [&](const std::string&, const std::string&, auto& layer) {
    if constexpr (std::remove_cvref_t<decltype(layer)>::has_parameters) layer.set_levels(levels);
  });
}

/// Copies row-major batch x channels x height x width `pictures` to a tensor of the tape.
template <class Scalar, class Source>
[[nodiscard]] Tensor<Scalar> input_tensor(Context<Scalar>& context, const Source* pictures, index_t batch,
                                          Shape shape) {
  Tensor<Scalar> x = context.make(batch, shape, false);
  const index_t pixels = shape.height * shape.width;
  for (index_t image = 0; image < batch; ++image)
    for (index_t c = 0; c < shape.channels; ++c)
      for (index_t p = 0; p < pixels; ++p)
        x.value()[(image * pixels + p) * shape.channels + c] =
            static_cast<Scalar>(pictures[(image * shape.channels + c) * pixels + p]);
  return x;
}

}  // namespace strata::train
