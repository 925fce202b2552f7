// Layouts of activations: every pixel has a place of its own, tiles do not depend on channels; and tensors to and from
// row-major pictures.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <strata/core/tensor.hpp>
#include <strata/core/tile_layout.hpp>

#include "support/catch.hpp"

namespace {

using strata::index_t;
using strata::Shape;
using strata::TileLayout;

constexpr index_t extents[] = {1, 2, 3, 5, 7, 8, 9, 14, 16, 17, 28, 31, 56, 113, 250};

std::string text(const TileLayout& l) {
  return std::to_string(l.batch) + " x " + std::to_string(l.channels) + " x " + std::to_string(l.height) + " x " +
         std::to_string(l.width) + ", row pitch " + std::to_string(l.row_pitch) + ", tile rows " +
         std::to_string(l.tile_rows) + ", images per tile " + std::to_string(l.images_per_tile) + ", tile pitch " +
         std::to_string(l.tile_pitch) + ", tiles " + std::to_string(l.tiles);
}

/// Calls `f(layout, lanes)` for batches and pictures of many extents, also none.
template <class F>
void for_layouts(index_t channels, F&& f) {
  for (const index_t lanes : {1, 2, 4, 8, 16})
    for (const index_t batch : {0, 1, 2, 3, 19})
      for (const index_t height : extents)
        for (const index_t width : extents)
          if (height * width * batch < 20000) f(TileLayout::make(batch, {channels, height, width}, lanes), lanes);
}

}  // namespace

TEST_CASE("every pixel of a layout has a place of its own") {
  for_layouts(3, [](const TileLayout& layout, index_t lanes) {
    INFO(text(layout) << ", lanes " << lanes);
    std::vector<std::uint8_t> taken(static_cast<std::size_t>(layout.size()), 0);
    bool inside = true;
    bool apart = true;
    for (index_t image = 0; image < layout.batch; ++image)
      for (index_t channel = 0; channel < layout.channels; ++channel)
        for (index_t y = 0; y < layout.height; ++y) {
          const index_t row = layout.row_offset(image, channel, y);
          inside = inside && row >= 0 && row + layout.width <= layout.size();
          if (!inside) break;
          for (index_t x = row; x < row + layout.width; ++x) {
            apart = apart && taken[static_cast<std::size_t>(x)] == 0;
            taken[static_cast<std::size_t>(x)] = 1;
          }
        }
    REQUIRE(inside);
    REQUIRE(apart);
    REQUIRE(layout.shape() == Shape{3, layout.height, layout.width});
  });
}

TEST_CASE("channels of a tile start at whole vectors, one tile pitch apart") {
  for_layouts(5, [](const TileLayout& layout, index_t lanes) {
    INFO(text(layout) << ", lanes " << lanes);
    const bool one_vector = layout.batch == 1 && layout.height == 1 && layout.width == 1;
    if (one_vector) {
      REQUIRE(layout.tile_pitch == 1);
      REQUIRE(layout.size() == layout.channels);
    } else {
      REQUIRE(layout.tile_pitch % lanes == 0);
    }
    REQUIRE(layout.tile_size() == layout.channels * layout.tile_pitch);
    REQUIRE(layout.size() == layout.tiles * layout.tile_size());
    bool even = true;
    for (index_t image = 0; image < layout.batch; ++image)
      for (index_t y = 0; y < layout.height; ++y)
        for (index_t channel = 1; channel < layout.channels; ++channel)
          even = even &&
                 layout.row_offset(image, channel, y) - layout.row_offset(image, channel - 1, y) == layout.tile_pitch;
    REQUIRE(even);
  });
}

TEST_CASE("rows waste at most a sixth of their lanes and pictures of a tile lie whole in it") {
  for_layouts(2, [](const TileLayout& layout, index_t lanes) {
    INFO(text(layout) << ", lanes " << lanes);
    if (layout.batch == 0) {
      REQUIRE(layout.size() == 0);
      return;
    }
    REQUIRE(layout.row_pitch >= layout.width);
    REQUIRE(6 * (layout.row_pitch - layout.width) <= layout.row_pitch);
    REQUIRE(layout.images_per_tile >= 1);
    if (layout.images_per_tile > 1) {
      REQUIRE(layout.tile_rows == layout.height);
      REQUIRE(layout.tiles * layout.images_per_tile >= layout.batch);
      REQUIRE((layout.tiles - 1) * layout.images_per_tile < layout.batch);  // no tile without a picture
      REQUIRE(layout.tile_pitch <= TileLayout::max_vectors * lanes);
      REQUIRE(layout.tiles_per_image() == 1);
    } else {
      REQUIRE(layout.tiles == layout.batch * layout.tiles_per_image());
      REQUIRE((layout.tiles_per_image() - 1) * layout.tile_rows < layout.height);  // no tile without a row
    }
  });
}

TEST_CASE("tiles do not depend on the number of channels") {
  for_layouts(1, [](const TileLayout& one, index_t lanes) {
    for (const index_t channels : {0, 7, 64}) {
      TileLayout other = TileLayout::make(one.batch, {channels, one.height, one.width}, lanes);
      INFO(text(other) << ", lanes " << lanes);
      REQUIRE(other.size() == channels * one.size());
      other.channels = 1;
      REQUIRE(other == one);
    }
  });
}

TEST_CASE("layouts are known at compile time and empty for empty pictures") {
  constexpr TileLayout vector = TileLayout::make(1, {10, 1, 1}, 8);
  STATIC_REQUIRE(vector.size() == 10);
  STATIC_REQUIRE(vector.row_offset(0, 9, 0) == 9);
  constexpr TileLayout samples = TileLayout::make(3, {10, 1, 1}, 8);  // side by side in the lanes
  STATIC_REQUIRE(samples.size() == 80);
  STATIC_REQUIRE(samples.row_offset(2, 1, 0) == 10);
  for (const Shape& shape : {Shape{3, 0, 5}, Shape{3, 5, 0}, Shape{3, 0, 0}, Shape{0, 5, 5}})
    for (const index_t batch : {0, 1, 3}) {
      const TileLayout layout = TileLayout::make(batch, shape, 8);
      INFO(text(layout));
      CHECK(layout.size() == 0);
      CHECK(layout.shape() == shape);
      CHECK(layout.tiles_per_image() >= 1);
    }
}

TEMPLATE_TEST_CASE("row-major pictures come back from a tensor unchanged", "", float, double) {
  strata::Arena arena;
  for (const index_t channels : {0, 1, 3})
    for_layouts(channels, [&](const TileLayout& layout, index_t lanes) {
      INFO(text(layout) << ", lanes " << lanes);
      const strata::Tensor<TestType> tensor(arena, layout);
      for (index_t i = 0; i < layout.size(); ++i) tensor.data()[i] = TestType{-1};
      std::vector<TestType> pictures(static_cast<std::size_t>(layout.batch * layout.shape().size()));
      for (std::size_t i = 0; i < pictures.size(); ++i) pictures[i] = static_cast<TestType>(i);
      strata::read_rows(pictures.data(), tensor);
      // The idle lanes are nobody's: as many as there are elements beyond the pixels.
      index_t idle = 0;
      for (index_t i = 0; i < layout.size(); ++i) idle += tensor.data()[i] < 0 ? 1 : 0;
      REQUIRE(idle == layout.size() - static_cast<index_t>(pictures.size()));
      // One element more on both sides, which nothing may touch.
      std::vector<TestType> found(pictures.size() + 2, TestType{-2});
      strata::write_rows(tensor, found.data() + 1);
      REQUIRE(found.front() == -2);
      REQUIRE(found.back() == -2);
      found.erase(found.begin());
      found.pop_back();
      REQUIRE(found == pictures);
    });
}

TEST_CASE("rows of a tensor hold the pixels of their picture, channel and row") {
  strata::Arena arena;
  for (const index_t batch : {1, 3, 19})
    for (const Shape& shape : {Shape{2, 3, 5}, Shape{4, 1, 1}, Shape{2, 28, 28}, Shape{1, 9, 113}}) {
      const TileLayout layout = TileLayout::make(batch, shape, 8);
      INFO(text(layout));
      const strata::Tensor<float> tensor(arena, layout);
      std::vector<float> pictures(static_cast<std::size_t>(batch * shape.size()));
      for (std::size_t i = 0; i < pictures.size(); ++i) pictures[i] = static_cast<float>(i);
      strata::read_rows(pictures.data(), tensor);
      bool right = true;
      for (index_t image = 0; image < batch; ++image)
        for (index_t channel = 0; channel < shape.channels; ++channel)
          for (index_t y = 0; y < shape.height; ++y)
            for (index_t x = 0; x < shape.width; ++x)
              right = right &&
                      tensor.row(image, channel, y)[x] ==
                          static_cast<float>(((image * shape.channels + channel) * shape.height + y) * shape.width + x);
      CHECK(right);
    }
}

TEST_CASE("copies and views of a tensor share its elements and keep them") {
  strata::Arena arena;
  const TileLayout layout = TileLayout::make(1, {6, 1, 1}, 8);
  strata::Tensor<float> tensor(arena, layout);
  for (index_t i = 0; i < 6; ++i) tensor.data()[i] = static_cast<float>(i);
  const strata::Tensor<float> copy = tensor;
  const strata::Tensor<float> view(tensor, TileLayout::make(1, {3, 1, 1}, 8));
  float* const place = tensor.data();
  tensor = strata::Tensor<float>();
  CHECK(tensor.data() == nullptr);
  CHECK(tensor.shape().size() == 0);
  CHECK(copy.data() == place);
  CHECK(view.data() == place);
  CHECK(view.shape() == Shape{3, 1, 1});
  CHECK(strata::Tensor<float>(arena, layout).data() != place);
  CHECK(*copy.row(0, 5, 0) == 5);
}
