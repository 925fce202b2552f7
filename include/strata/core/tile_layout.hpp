// Where the elements of an activation tensor lie: tiles of whole image rows, in a tile channel by channel, so that a
// kernel that works on one tile streams contiguous vectors. Shapes only; memory is core/tensor.hpp's business.
#pragma once

#include <strata/core/types.hpp>

namespace strata {

/// Layout of a batch of pictures as [tile][channel][rows of the tile][row]. A tile is a few whole rows of one picture,
/// or several whole small pictures; `tile_pitch` elements apart lie the channels of a tile. Rows follow each other
/// without gaps, so that a tile wastes less than one SIMD vector, at its end. Lanes that belong to no pixel hold
/// unspecified values.
///
/// Vectors (height = width = 1) are the special case: a batch of one is a plain array of channels, a larger batch lies
/// with its samples side by side in the lanes.
///
/// Two tensors of the same batch, height and width have the same tiles whatever their channels, because everything but
/// `channels` follows from batch, height, width and the SIMD width alone.
struct TileLayout {
  index_t batch = 0;
  index_t channels = 0;
  index_t height = 0;
  index_t width = 0;
  index_t row_pitch = 0;        ///< from a row to the next one in a tile: its width
  index_t tile_rows = 0;        ///< rows of a picture in a tile; `height` if a tile holds whole pictures
  index_t images_per_tile = 1;  ///< more than 1 only if a tile holds whole pictures
  index_t tile_pitch = 0;       ///< from a channel to the next one in a tile
  index_t tiles = 0;

  /// Most SIMD vectors of a tile, unless a single row is wider: a block of channels of it stays in the L2 cache.
  static constexpr index_t max_vectors = 14;

  /// The layout for SIMD vectors of `lanes` elements. Preconditions: extents >= 0, lanes >= 1.
  [[nodiscard]] static constexpr TileLayout make(index_t batch, Shape shape, index_t lanes) noexcept {
    TileLayout layout;
    layout.batch = batch;
    layout.channels = shape.channels;
    layout.height = shape.height;
    layout.width = shape.width;
    layout.tile_rows = shape.height;
    if (batch == 0 || shape.height == 0 || shape.width == 0) return layout;
    if (batch == 1 && shape.height == 1 && shape.width == 1) {
      layout.row_pitch = layout.tile_pitch = layout.tiles = 1;
      return layout;
    }
    layout.row_pitch = shape.width;
    const index_t most = max_vectors * lanes;
    const index_t picture = layout.row_pitch * shape.height;
    if (2 * picture <= most && batch > 1) {  // whole pictures side by side, evenly spread over the tiles
      const index_t fit = most / picture;
      layout.tiles = ceil_div(batch, fit);
      layout.images_per_tile = ceil_div(batch, layout.tiles);
      layout.tiles = ceil_div(batch, layout.images_per_tile);
      layout.tile_pitch = round_up(layout.images_per_tile * picture, lanes);
      return layout;
    }
    const index_t rows = picture <= most ? shape.height : rows_of_tile(shape, lanes);
    layout.tile_rows = rows;
    layout.tile_pitch = round_up(rows * layout.row_pitch, lanes);
    layout.tiles = batch * ceil_div(shape.height, rows);
    return layout;
  }

  /// Rows of a tile of a picture that is larger than a tile: those that waste the fewest lanes, and as many as possible
  /// of them.
  [[nodiscard]] static constexpr index_t rows_of_tile(Shape shape, index_t lanes) noexcept {
    index_t best = 1;
    index_t least = shape.height * ceil_div(shape.width, lanes);
    for (index_t rows = 2; rows * shape.width <= max_vectors * lanes; ++rows) {
      const index_t vectors = shape.height / rows * ceil_div(rows * shape.width, lanes) +
                              ceil_div(shape.height % rows * shape.width, lanes);
      if (vectors > least) continue;
      least = vectors;
      best = rows;
    }
    return best;
  }

  [[nodiscard]] constexpr Shape shape() const noexcept { return {channels, height, width}; }
  [[nodiscard]] constexpr index_t tiles_per_image() const noexcept {
    return images_per_tile > 1 || tile_rows == 0 ? 1 : ceil_div(height, tile_rows);
  }
  /// From a tile to the next one.
  [[nodiscard]] constexpr index_t tile_size() const noexcept { return channels * tile_pitch; }
  /// Elements of a channel in `tile` that belong to pixels; the first so many, without gaps.
  [[nodiscard]] constexpr index_t tile_width(index_t tile) const noexcept {
    if (images_per_tile > 1) {
      const index_t rest = batch - tile * images_per_tile;
      return (rest < images_per_tile ? rest : images_per_tile) * height * row_pitch;
    }
    const index_t rest = height - tile % tiles_per_image() * tile_rows;
    return (rest < tile_rows ? rest : tile_rows) * row_pitch;
  }
  /// Elements of the whole tensor, idle lanes included.
  [[nodiscard]] constexpr index_t size() const noexcept { return tiles * tile_size(); }

  /// Where row `y` of a channel of a picture starts. Preconditions: all within the shape.
  [[nodiscard]] constexpr index_t row_offset(index_t image, index_t channel, index_t y) const noexcept {
    if (images_per_tile > 1) {
      const index_t tile = image / images_per_tile;
      const index_t slot = image % images_per_tile;
      return (tile * channels + channel) * tile_pitch + (slot * height + y) * row_pitch;
    }
    const index_t tile = image * tiles_per_image() + y / tile_rows;
    return (tile * channels + channel) * tile_pitch + y % tile_rows * row_pitch;
  }

  friend constexpr bool operator==(const TileLayout&, const TileLayout&) = default;
};

}  // namespace strata
