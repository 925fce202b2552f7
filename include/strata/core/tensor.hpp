// Activations of an inference run: a tile layout and a block of the run's arena. Conversion from and to plain row-major
// pictures happens here and nowhere else.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include <strata/core/arena.hpp>
#include <strata/core/tile_layout.hpp>
#include <strata/core/types.hpp>

namespace strata {

/// A batch of activations. A handle: copies share the elements, and the memory goes back to the arena with the last
/// copy, so it must not outlive the context it came from.
template <class Scalar>
class Tensor {
 public:
  Tensor() = default;
  Tensor(Arena& arena, const TileLayout& layout)
      : layout_(layout), block_(arena.take(layout.size() * static_cast<index_t>(sizeof(Scalar)))) {}
  /// The same elements seen in another layout. Precondition: `layout.size()` is not above this one's.
  Tensor(const Tensor& other, const TileLayout& layout) : layout_(layout), block_(other.block_) {}

  [[nodiscard]] const TileLayout& layout() const noexcept { return layout_; }
  [[nodiscard]] Shape shape() const noexcept { return layout_.shape(); }
  [[nodiscard]] index_t batch() const noexcept { return layout_.batch; }
  [[nodiscard]] Scalar* data() const noexcept { return reinterpret_cast<Scalar*>(block_.data()); }

  /// No other tensor sees this one's memory.
  [[nodiscard]] bool unique() const noexcept { return block_.unique(); }

  [[nodiscard]] Scalar* row(index_t image, index_t channel, index_t y) const noexcept {
    return data() + layout_.row_offset(image, channel, y);
  }

 private:
  TileLayout layout_;
  Block block_;
};

/// Copies the row-major batch x channels x height x width `source` into `target`. Precondition: it has that many
/// elements.
template <class Scalar>
void read_rows(const Scalar* source, const Tensor<Scalar>& target) noexcept {
  const TileLayout& layout = target.layout();
  for (index_t image = 0; image < layout.batch; ++image)
    for (index_t channel = 0; channel < layout.channels; ++channel)
      for (index_t y = 0; y < layout.height; ++y, source += layout.width)
        std::copy_n(source, layout.width, target.row(image, channel, y));
}

/// Copies `source` to the row-major batch x channels x height x width `target`.
template <class Scalar>
void write_rows(const Tensor<Scalar>& source, Scalar* target) noexcept {
  const TileLayout& layout = source.layout();
  for (index_t image = 0; image < layout.batch; ++image)
    for (index_t channel = 0; channel < layout.channels; ++channel)
      for (index_t y = 0; y < layout.height; ++y, target += layout.width)
        std::copy_n(source.row(image, channel, y), layout.width, target);
}

}  // namespace strata
