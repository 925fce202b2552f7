// The two-layer graph attention network of Velickovic et al. (2018), one text for training and inference.
#pragma once

#include <string_view>

#include <strata/core/types.hpp>
#include <strata/layers/graph_attention.hpp>
#include <strata/sparse/graph.hpp>

namespace gat {

/// `heads` heads of `hidden` features side by side with ELU, then the mean of `output_heads` heads of a logit a class.
template <class Family>
struct GraphAttentionNet {
  struct Config {
    strata::index_t features = 1433;
    strata::index_t classes = 7;
    strata::index_t hidden = 8;
    strata::index_t heads = 8;
    strata::index_t output_heads = 1;
    double dropout = 0.6;  ///< of features and attention weights, in training
    template <class V>
    void visit(V&& v) {
      v("features", features);
      v("classes", classes);
      v("hidden", hidden);
      v("heads", heads);
      v("output_heads", output_heads);
      v("dropout", dropout);
    }
  };
  static constexpr std::string_view architecture = "gat.GraphAttentionNet";

  explicit GraphAttentionNet(const Config& config)
      : config_(config),
        conv1({.in_features = config.features,
               .out_features = config.hidden,
               .heads = config.heads,
               .activation = strata::Activation::elu,
               .feature_dropout = config.dropout,
               .attention_dropout = config.dropout,
               .sparse_input = true}),
        conv2({.in_features = config.hidden * config.heads,
               .out_features = config.classes,
               .heads = config.output_heads,
               .concat = false,
               .feature_dropout = config.dropout,
               .attention_dropout = config.dropout}) {}

  [[nodiscard]] const Config& config() const { return config_; }

  /// A row of logits for each node.
  auto operator()(typename Family::Context& context, const strata::GraphInput& input) const {
    auto y = conv1(context, input.features, input.graph);
    context.stage("conv2");
    return conv2(context, y, input.graph);
  }

  template <class V>
  void visit(V&& v) {
    v("conv1", conv1);
    v("conv2", conv2);
  }

  Config config_;
  typename Family::GraphAttention conv1, conv2;
};

}  // namespace gat
