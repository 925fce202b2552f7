// What a graph attention layer is, apart from its weights: the options that both module families build it from. The
// layers themselves are layers/inference/graph_attention.hpp and train/graph_attention.hpp.
#pragma once

#include <string>

#include <strata/core/activation.hpp>
#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/layers/options.hpp>

namespace strata {

/// Graph attention (Velickovic et al. 2018, arXiv 1710.10903). With h_i = W x_i cut into `heads` vectors of
/// `out_features`, per head
///   e_ij = leaky_relu(source . h_j + target . h_i, negative_slope) for every edge j -> i,
///   y_i  = sum_j softmax_j(e_ij) h_j,
/// the heads side by side (`concat`) or their mean, then bias and activation. A node without incoming edges gets the
/// sum of nothing; networks usually give every node a self-loop.
///
/// Parameters, named as in PyTorch Geometric's GATConv: `lin.weight` [heads * out_features, in_features], `att_src` and
/// `att_dst` [1, heads, out_features], `bias`.
struct GraphAttentionOptions {
  index_t in_features = 0;
  index_t out_features = 0;  ///< of each head
  index_t heads = 1;
  bool concat = true;  ///< false: mean over the heads
  bool bias = true;
  Activation activation = Activation::identity;
  double negative_slope = 0.2;
  double feature_dropout = 0;    ///< share of input features dropped in training, in [0, 1)
  double attention_dropout = 0;  ///< share of attention weights dropped in training, in [0, 1)
  /// The layer reads `SparseFeatures`; otherwise the features that another graph layer wrote. Decides how weights are
  /// stored: by input feature or by output.
  bool sparse_input = false;
  bool levelled = true;  ///< false: all weights and attention vectors belong to level 0

  /// Features of a node behind the layer.
  [[nodiscard]] index_t output_features() const noexcept { return concat ? heads * out_features : out_features; }
};

/// Raises for options that describe no layer: features or heads below 1, more weights than `max_elements`, dropout
/// outside [0, 1), a slope outside [0, 1].
inline void require_valid(const GraphAttentionOptions& options) {
  if (options.in_features < 1 || options.out_features < 1 || options.heads < 1)
    raise(Error({"graph attention"}, {"features (in x out) and heads of at least 1"},
                {options.in_features, " x ", options.out_features, ", ", options.heads, " heads"}));
  detail::require_array_size({options.in_features, options.out_features, options.heads}, "graph attention",
                             "in_features x out_features x heads");
  for (const double rate : {options.feature_dropout, options.attention_dropout})
    if (!(rate >= 0 && rate < 1)) raise(Error("graph attention", "a dropout of at least 0 and below 1", rate));
  // Above 1 the scores' order would turn around below zero, which the kernel's maximum relies on.
  if (!(options.negative_slope >= 0 && options.negative_slope <= 1))
    raise(Error("graph attention", "a negative slope from 0 to 1", options.negative_slope));
}

}  // namespace strata
