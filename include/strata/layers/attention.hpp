// What attention layers over sequences are, apart from their weights: the options that both module families build them
// from. The layers themselves are layers/inference/attention.hpp and train/attention.hpp.
#pragma once

#include <span>
#include <string>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/layers/options.hpp>
#include <strata/layers/sequence.hpp>

namespace strata {

/// Additive attention (Bahdanau et al., arXiv 1409.0473) in the normalised form of GNMT: for query q and memory m_s
///   score_s = g v/|v| . tanh(W_q q + W_k m_s + b),   context = sum_s softmax_s(score) m_s,
/// the softmax over the positions of the query's sequence only. W_k m_s + b is computed once a memory. A query of a
/// memory without positions gets zeros.
///
/// Parameters: `linear_q.weight` [units, query], `linear_k.weight` [units, memory], `linear_att` v [units],
/// `normalize_scalar` g [1], `normalize_bias` b [units].
struct BahdanauOptions {
  index_t query_features = 0;
  index_t memory_features = 0;
  index_t units = 0;
  bool levelled = true;  ///< false: both projections belong to level 0
};

/// Multi-head scaled dot-product attention, as torch.nn.MultiheadAttention (arXiv 1706.03762) without dropout: per head
///   softmax(q k^T / sqrt(features / heads) + mask) v
/// with q, k, v projected from the inputs, heads side by side, then an output projection. Keys behind a sequence's
/// end are left out. A query that may look at nothing gets the sum of nothing (PyTorch: NaN).
///
/// Parameters: `in_proj_weight` [3 * features, features] and `in_proj_bias` (queries, keys, values), `out_proj.weight`,
/// `out_proj.bias`.
struct MultiHeadAttentionOptions {
  index_t features = 0;
  index_t heads = 1;
  bool bias = true;
  bool causal = false;   ///< query position t looks at key positions 0 .. t only
  bool levelled = true;  ///< false: both projections belong to level 0
};

/// Raises for features or units below 1 and for more weights than `max_elements`.
inline void require_valid(const BahdanauOptions& options) {
  if (options.query_features < 1 || options.memory_features < 1 || options.units < 1)
    raise(Error({"Bahdanau attention"}, {"query features, memory features and units of at least 1"},
                {options.query_features, ", ", options.memory_features, ", ", options.units}));
  detail::require_array_size({options.query_features, options.units}, "Bahdanau attention", "query weights");
  detail::require_array_size({options.memory_features, options.units}, "Bahdanau attention", "memory weights");
}

/// Raises for features or heads below 1, for heads that do not divide the features, for more weights than
/// `max_elements`.
inline void require_valid(const MultiHeadAttentionOptions& options) {
  if (options.features < 1 || options.heads < 1 || options.features % options.heads != 0)
    raise(Error({"multi-head attention"}, {"at least 1 head and features that the heads divide"},
                {options.features, " features, ", options.heads, " heads"}));
  detail::require_array_size({3, options.features, options.features}, "multi-head attention", "projections");
}

}  // namespace strata
