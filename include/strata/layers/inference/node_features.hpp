// Features of a graph's nodes between two layers of an inference run: one padded row a node, in the run's arena.
#pragma once

#include <utility>

#include <strata/core/arena.hpp>
#include <strata/core/types.hpp>

namespace strata::inference {

/// nodes x features numbers, rows `pitch()` apart and whole vectors long. A layer that sets heads side by side leaves
/// them as its kernel has them, channel by channel with the heads innermost: feature f of a row lies at `place(f)`. A
/// handle: copies share the elements. What belongs to no feature is unspecified.
template <class Scalar>
class NodeFeatures {
 public:
  NodeFeatures() = default;
  /// Rows with the features in order.
  NodeFeatures(Arena& arena, index_t nodes, index_t features, index_t lanes)
      : NodeFeatures(arena, nodes, features, round_up(features, lanes), features, 1) {}
  /// Rows of heads with `channels` features each, one channel `period` behind the other.
  NodeFeatures(Arena& arena, index_t nodes, index_t features, index_t pitch, index_t channels, index_t period)
      : nodes_(nodes),
        features_(features),
        pitch_(pitch),
        channels_(channels),
        period_(period),
        block_(arena.take(nodes * pitch * static_cast<index_t>(sizeof(Scalar)))) {}

  [[nodiscard]] index_t nodes() const noexcept { return nodes_; }
  [[nodiscard]] index_t features() const noexcept { return features_; }
  [[nodiscard]] index_t pitch() const noexcept { return pitch_; }
  /// Where feature `f` lies in a row.
  [[nodiscard]] index_t place(index_t f) const noexcept { return f % channels_ * period_ + f / channels_; }
  [[nodiscard]] index_t channels() const noexcept { return channels_; }  ///< of a head
  [[nodiscard]] index_t period() const noexcept { return period_; }      ///< from a channel of a head to the next one
  [[nodiscard]] Scalar* data() const noexcept { return reinterpret_cast<Scalar*>(block_.data()); }
  [[nodiscard]] Scalar* row(index_t node) const noexcept { return data() + node * pitch_; }

 private:
  index_t nodes_ = 0;
  index_t features_ = 0;
  index_t pitch_ = 0;
  index_t channels_ = 1;
  index_t period_ = 1;
  Block block_;
};

/// Copies `source` to the row-major nodes x features `target`.
template <class Scalar>
void write_rows(const NodeFeatures<Scalar>& source, Scalar* target) noexcept {
  for (index_t node = 0; node < source.nodes(); ++node)
    for (index_t first = 0; first < source.features(); first += source.channels()) {
      const Scalar* const head = source.row(node) + source.place(first);
      for (index_t channel = 0; channel < source.channels(); ++channel) *target++ = head[channel * source.period()];
    }
}

}  // namespace strata::inference
