// What an LSTM layer is, apart from its weights: the options that both module families build it from. The layers
// themselves are layers/inference/lstm.hpp and train/lstm.hpp.
#pragma once

#include <string>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/layers/options.hpp>
#include <strata/layers/sequence.hpp>

namespace strata {

/// One LSTM layer over a batch of sequences (Hochreiter and Schmidhuber 1997, with forget gate), as torch.nn.LSTM:
///   [i; f; g; o] = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh
///   c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g),   h_t = sigmoid(o) tanh(c_t).
/// A bidirectional layer has a second set of weights that reads every sequence from its end, and gives both hidden
/// states, one after the other. Behind a sequence's end the state stays as it is and the output is zero.
///
/// Parameters, named as in torch.nn.LSTM: `weight_ih_l0` [4 * hidden, in], `weight_hh_l0` [4 * hidden, hidden],
/// `bias_ih_l0` and `bias_hh_l0` [4 * hidden]; those of the backward direction end with `_reverse`.
struct LstmOptions {
  index_t in_features = 0;
  index_t hidden_features = 0;
  bool bias = true;
  bool bidirectional = false;
  bool levelled = true;  ///< false: all weights belong to level 0

  [[nodiscard]] index_t directions() const noexcept { return bidirectional ? 2 : 1; }
  /// Features of a position behind the layer.
  [[nodiscard]] index_t output_features() const noexcept { return directions() * hidden_features; }
};

/// Raises for features below 1 and for more weights than `max_elements`.
inline void require_valid(const LstmOptions& options) {
  if (options.in_features < 1 || options.hidden_features < 1)
    raise(Error({"LSTM"}, {"features (in x hidden) of at least 1"},
                {options.in_features, " x ", options.hidden_features}));
  detail::require_array_size({4, options.in_features, options.hidden_features}, "LSTM", "input weights");
  detail::require_array_size({4, options.hidden_features, options.hidden_features}, "LSTM", "hidden weights");
}

namespace detail {

/// The end of the parameters' names of a direction.
[[nodiscard]] inline std::string lstm_suffix(index_t direction) {
  return direction == 0 ? "_l0" : "_l0_reverse";
}

}  // namespace detail

}  // namespace strata
