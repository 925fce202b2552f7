// Features of a graph's nodes between two layers of an inference run: one padded row a node, in the run's arena.
#pragma once

#include <utility>

#include <strata/core/arena.hpp>
#include <strata/core/types.hpp>

namespace strata::inference {

/// nodes x features numbers, rows `pitch()` apart and 64-byte aligned if the pitch is. A handle: copies share the
/// elements. What lies between the rows is unspecified.
template <class Scalar>
class NodeFeatures {
 public:
  NodeFeatures() = default;
  NodeFeatures(Arena& arena, index_t nodes, index_t features, index_t lanes)
      : nodes_(nodes),
        features_(features),
        pitch_(round_up(features, lanes)),
        block_(arena.take(nodes * pitch_ * static_cast<index_t>(sizeof(Scalar)))) {}

  [[nodiscard]] index_t nodes() const noexcept { return nodes_; }
  [[nodiscard]] index_t features() const noexcept { return features_; }
  [[nodiscard]] index_t pitch() const noexcept { return pitch_; }
  [[nodiscard]] Scalar* data() const noexcept { return reinterpret_cast<Scalar*>(block_.data()); }
  [[nodiscard]] Scalar* row(index_t node) const noexcept { return data() + node * pitch_; }

 private:
  index_t nodes_ = 0;
  index_t features_ = 0;
  index_t pitch_ = 0;
  Block block_;
};

}  // namespace strata::inference
