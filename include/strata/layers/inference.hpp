// The inference family: compressed, fused, read-only layers over the kernels. One header per kind of layer.
#pragma once

#include <strata/layers/context.hpp>
#include <strata/layers/inference/attention.hpp>
#include <strata/layers/inference/conv2d.hpp>
#include <strata/layers/inference/embedding.hpp>
#include <strata/layers/inference/graph_attention.hpp>
#include <strata/layers/inference/linear.hpp>
#include <strata/layers/inference/lstm.hpp>
#include <strata/layers/inference/node_features.hpp>
#include <strata/layers/inference/point_set.hpp>
#include <strata/layers/inference/pooling.hpp>
#include <strata/layers/inference/shape.hpp>

namespace strata {

/// Layers that compute with stored parameters and nothing else. `Arch`: an xsimd architecture.
template <class Scalar_ = float, class Arch_ = xsimd::default_arch>
struct Inference {
  using Scalar = Scalar_;
  using Arch = Arch_;
  using Context = InferenceContext<Scalar, Arch>;
  using Tensor = strata::Tensor<Scalar>;
  using Conv2d = inference::Conv2d<Scalar, Arch>;
  using Linear = inference::Linear<Scalar, Arch>;
  using NodeFeatures = inference::NodeFeatures<Scalar>;
  using GraphAttention = inference::GraphAttention<Scalar, Arch>;
  using MaxPool2d = inference::MaxPool2d<Scalar, Arch>;
  using AvgPool2d = inference::AvgPool2d<Scalar, Arch>;
  using GlobalAvgPool2d = inference::GlobalAvgPool2d<Scalar, Arch>;
  using Flatten = inference::Flatten<Scalar, Arch>;
  using Dropout = inference::Dropout<Scalar, Arch>;
  using ActivationLayer = inference::ActivationLayer<Scalar, Arch>;
  using FarthestPointSampling = inference::FarthestPointSampling<Scalar, Arch>;
  using BallGrouping = inference::BallGrouping<Scalar, Arch>;
  using GroupMax = inference::GroupMax<Scalar, Arch>;
  using GlobalMaxPool2d = inference::GlobalMaxPool2d<Scalar, Arch>;
  using Concatenate = inference::Concatenate<Scalar, Arch>;
  using Embedding = inference::Embedding<Scalar, Arch>;
  using Lstm = inference::Lstm<Scalar, Arch>;
  using AttentionMemory = inference::AttentionMemory<Scalar>;
  using BahdanauAttention = inference::BahdanauAttention<Scalar, Arch>;
  using MultiHeadAttention = inference::MultiHeadAttention<Scalar, Arch>;
};

}  // namespace strata
