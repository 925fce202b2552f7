// What a convolution computes, and what is the same for all ways to arrange its input.
#pragma once

#include <cstdint>
#include <cstring>

#include <strata/core/tile_layout.hpp>
#include <strata/core/types.hpp>

namespace strata::kernels {

/// Extents of a 2-D convolution; weights are out_channels x (in_channels / groups * kernel.h * kernel.w).
struct ConvolutionShape {
  index_t in_channels = 1;
  index_t out_channels = 1;
  Pair kernel = 1;
  Pair stride = 1;
  Pair padding = 0;
  Pair dilation = 1;
  index_t groups = 1;

  [[nodiscard]] constexpr index_t taps() const noexcept { return kernel.h * kernel.w; }
  [[nodiscard]] constexpr index_t columns() const noexcept { return in_channels / groups * taps(); }
  /// Input and output pixels are the same ones: no panel needed.
  [[nodiscard]] constexpr bool pointwise() const noexcept {
    return kernel == Pair(1) && stride == Pair(1) && padding == Pair(0);
  }
};

/// What a panel is built for: columns `first` .. `first`+`count`-1 of the weights of a group of channels, for the
/// elements `begin` .. of output tile `tile`, `pitch` of them (whole vectors).
struct PanelPart {
  index_t tile = 0;
  index_t group = 0;
  index_t first = 0;
  index_t count = 0;
  index_t begin = 0;
  index_t pitch = 0;
};

/// Ones where the horizontal tap `kx` of an element of an output tile lies in its row of the input, zeros elsewhere.
template <class Scalar>
void fill_column_mask(const ConvolutionShape& shape, const TileLayout& output, index_t input_width, index_t kx,
                      Scalar* mask) noexcept {
  const auto set = [](Scalar* start, index_t count, bool inside) {
    std::memset(start, inside ? 0xFF : 0, static_cast<std::size_t>(count) * sizeof(Scalar));
  };
  const index_t width = output.width;
  const index_t step = shape.stride.w;
  const index_t shift = kx * shape.dilation.w - shape.padding.w;
  const index_t first = shift >= 0 ? 0 : ceil_div(-shift, step);
  const index_t last = input_width <= shift ? 0 : ceil_div(input_width - shift, step);
  index_t at = 0;
  for (; at + width <= output.tile_pitch; at += width) {
    set(mask + at, width, false);
    if (first < width && last > first) set(mask + at + first, (last < width ? last : width) - first, true);
  }
  set(mask + at, output.tile_pitch - at, false);
}

}  // namespace strata::kernels
