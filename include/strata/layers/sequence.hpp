// Sequences as both module families see them: a batch of sequences is one tensor with a sample for every position, time
// step by time step, so that layers without memory (linear, dropout, ...) take them as they are.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>

namespace strata {

/// Number of a word in a vocabulary, as stored in batches.
using TokenId = std::int32_t;

/// The numbers that every vocabulary gives to the same four tokens.
inline constexpr TokenId padding_token = 0;
inline constexpr TokenId begin_token = 1;
inline constexpr TokenId end_token = 2;
inline constexpr TokenId unknown_token = 3;

/// `batch` sequences of up to `steps` positions. In a tensor of such a batch, position t of sequence b is sample
/// t * batch + b (shape: features x 1 x 1). `lengths` has the positions of each sequence, 0 .. steps; empty: all are
/// `steps` long. What lies behind a sequence's end is padding. The lengths belong to the caller and have to stay there
/// as long as the result of a call is used (in training: until the backward pass).
struct SequenceShape {
  index_t steps = 0;
  index_t batch = 1;
  std::span<const std::int32_t> lengths{};

  [[nodiscard]] constexpr index_t positions() const noexcept { return steps * batch; }
  [[nodiscard]] constexpr index_t length(index_t sequence) const noexcept {
    return lengths.empty() ? steps : static_cast<index_t>(lengths[static_cast<std::size_t>(sequence)]);
  }
  /// Whether the lengths are one a sequence and none is negative or above `steps`.
  [[nodiscard]] constexpr bool valid() const noexcept {
    if (steps < 0 || batch < 0) return false;
    if (!lengths.empty() && static_cast<index_t>(lengths.size()) != batch) return false;
    for (const std::int32_t length : lengths)
      if (length < 0 || length > steps) return false;
    return true;
  }
  /// Whether a sequence ends before the last step.
  [[nodiscard]] constexpr bool has_padding() const noexcept {
    for (const std::int32_t length : lengths)
      if (length != steps) return true;
    return false;
  }
};

namespace detail {

/// "steps x batch positions", for messages.
[[nodiscard]] inline std::string text(const SequenceShape& shape) {
  return std::to_string(shape.steps) + " x " + std::to_string(shape.batch) + " positions";
}

}  // namespace detail

/// The memory of a recurrent layer between two calls, a value like any other: hidden and cell state of every sequence
/// (`features` x 1 x 1, batch: sequences) for the forward and, of a bidirectional layer, the backward direction. Empty:
/// zeros. It does not depend on the level, so that a sequence may go on at another one.
template <class Tensor>
struct LstmState {
  std::array<Tensor, 2> hidden;
  std::array<Tensor, 2> cell;
  bool empty = true;
};

/// A batch of pairs of sequences for a network that turns one into the other: the source's words and the words that the
/// network has written before each position of the target, both as `SequenceShape` lays them out.
struct SequencePairs {
  std::span<const TokenId> source;
  SequenceShape source_shape;
  std::span<const TokenId> words;
  SequenceShape shape;
};

/// What attention gives: the weighted sum of the memory's values for each query and the weights themselves
/// (steps of the memory x 1 x 1, zero for padding).
template <class Tensor>
struct Attended {
  Tensor context;
  Tensor weights;
};

}  // namespace strata
