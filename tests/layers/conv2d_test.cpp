// Convolutions and linear layers of the inference family against the plain loops, at every level, over awkward shapes.
#include <cmath>
#include <random>
#include <utility>

#include <strata/layers/inference.hpp>
#include <strata/runtime/thread_pool.hpp>

#include "support/catch.hpp"

namespace {

using strata::index_t;
using strata::Level;
using Context = strata::Inference<float>::Context;

struct Case {
  strata::Conv2dOptions options;
  index_t height, width, batch;
  double density;  // of the fullest level; the others keep equal parts of it; 1: dense weights
  bool residual;
  int threads;
  int levels = 2;
};

std::vector<float> random_numbers(std::mt19937& random, index_t count) {
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (float& number : numbers) number = uniform(random);
  return numbers;
}

/// Largest difference of the layer to `convolution_reference` over all levels.
float difference(const Case& c) {
  std::mt19937 random(7);
  const auto& o = c.options;
  const index_t rows = o.out_channels;
  const index_t columns = o.columns();
  const std::vector<float> weights = random_numbers(random, rows * columns);
  std::vector<std::uint8_t> strata(weights.size());
  std::uniform_real_distribution<double> uniform(0, 1);
  for (auto& stratum : strata) {
    const double u = uniform(random);
    stratum = u < c.density ? static_cast<std::uint8_t>(u / c.density * c.levels) : strata::StratumMap::absent;
  }
  if (rows > 2)
    for (index_t i = 0; i < columns; ++i) strata[static_cast<std::size_t>(i)] = strata::StratumMap::absent;
  const bool dense = c.density >= 1;
  if (dense) strata.assign(strata.size(), 0);
  const auto map = strata::StratumMap::from_strata(rows, columns, c.levels, strata).value();
  const auto matrix = strata::LeveledCsr<float, strata::ConvIndex>::from_dense(
      weights, map, strata::conv_block_columns(o.kernel.h * o.kernel.w, o.in_channels),
      strata::conv_row_group(o.out_channels, o.groups));
  strata::Archive archive;
  archive.set_levels(c.levels);
  strata::ParameterSink sink(archive);
  if (dense) {
    sink.array<float>("conv.weight", {rows, o.in_channels / o.groups, o.kernel.h, o.kernel.w}, 0, weights);
  } else {
    sink.leveled_csr("conv.weight", matrix);
  }
  std::vector<std::vector<float>> scale, bias;
  for (int level = 0; level < c.levels; ++level) {
    scale.push_back(random_numbers(random, rows));
    bias.push_back(random_numbers(random, rows));
    if (o.norm) {
      sink.per_level<float>("bn.scale", level, scale.back());
      sink.per_level<float>("bn.bias", level, bias.back());
    }
  }
  if (!o.norm && o.bias) sink.array<float>("conv.bias", {rows}, 0, bias[0]);
  strata::inference::Conv2d<float, xsimd::default_arch> layer(o);
  strata::ParameterSource source(archive);
  layer.load("conv", "bn", source);
  REQUIRE(source.finish("").ok());

  const index_t oh = o.output_height(c.height);
  const index_t ow = o.output_width(c.width);
  const std::vector<float> input = random_numbers(random, c.batch * o.in_channels * c.height * c.width);
  const std::vector<float> residual = random_numbers(random, c.batch * rows * oh * ow);
  strata::ThreadPool pool(c.threads);
  Context context(pool);
  context.set_checking(true);
  float worst = 0;
  for (int level = 0; level < c.levels; ++level) {
    context.set_level(Level{level});
    auto x = context.make(c.batch, {o.in_channels, c.height, c.width});
    for (index_t i = 0; i < x.layout().size(); ++i) x.data()[i] = NAN;  // idle lanes must not leak into pixels
    strata::read_rows(input.data(), x);
    auto r = context.make(c.batch, {rows, oh, ow});
    strata::read_rows(residual.data(), r);
    const auto y = c.residual ? layer(context, x, r) : layer(context, x);
    REQUIRE_FALSE(context.error());
    std::vector<float> found(static_cast<std::size_t>(c.batch * rows * oh * ow));
    strata::write_rows(y, found.data());
    if (c.residual) {
      const auto shared = r;
      CHECK(layer(context, x, std::move(r)).data() != shared.data());
      r = context.make(c.batch, {rows, oh, ow});
      strata::read_rows(residual.data(), r);
      std::vector<float> again(found.size());
      strata::write_rows(layer(context, x, std::move(r)), again.data());
      CHECK(again == found);
    }
    const std::vector<float> effective = dense ? weights : matrix.to_dense(Level{level});
    const strata::kernels::ConvolutionShape shape{o.in_channels, rows,       o.kernel, o.stride,
                                                  o.padding,     o.dilation, o.groups};
    for (index_t image = 0; image < c.batch; ++image) {
      std::vector<float> expected(static_cast<std::size_t>(rows * oh * ow));
      const auto at = static_cast<std::size_t>(level);
      strata::kernels::Epilogue<float> epilogue;
      if (o.norm) epilogue.scale = scale[at].data();
      if (o.norm) epilogue.bias = bias[at].data();
      if (!o.norm && o.bias) epilogue.bias = bias[0].data();
      if (c.residual) epilogue.residual = residual.data() + image * rows * oh * ow;
      epilogue.activation = o.activation;
      strata::kernels::convolution_reference(effective.data(), shape, c.height, c.width,
                                             input.data() + image * o.in_channels * c.height * c.width, oh, ow,
                                             expected.data(), epilogue);
      for (std::size_t i = 0; i < expected.size(); ++i) {
        const float error = std::abs(expected[i] - found[static_cast<std::size_t>(image) * expected.size() + i]);
        if (!(error <= worst)) worst = error;
        if (std::isnan(worst)) return worst;
      }
    }
  }
  return worst;
}

}  // namespace

TEST_CASE("convolutions agree with the plain loops") {
  int combinations = 0;
  for (const auto& [height, width] :
       {std::pair<index_t, index_t>{1, 1}, {7, 7}, {14, 14}, {5, 9}, {28, 28}, {3, 250}, {45, 61}})
    for (const index_t kernel : {1, 3, 5})
      for (const index_t stride : {1, 2, 3})
        for (const index_t batch : {1, 3})
          for (const double density : {0.0, 0.2, 1.0}) {
            for (int variant = 0; variant < 3; ++variant) {
              // Large: only what takes several tiles to show.
              if (height == 45 && (stride == 3 || batch > 1 || density == 0)) continue;
              if (height == 45 && variant == 2 && kernel != 3) continue;
              strata::Conv2dOptions o;
              o.in_channels = variant == 0 ? 3 : (variant == 1 ? 20 : 70);
              o.out_channels = variant == 0 ? 1 : (variant == 1 ? 12 : 37);
              if (variant == 1) o.groups = 4;
              o.kernel = kernel;
              o.stride = stride;
              o.padding = variant == 2 && kernel == 3 ? index_t{0} : kernel / 2;
              o.dilation = variant == 1 && kernel == 3 ? 2 : 1;
              if (o.dilation.h == 2) o.padding = 2;
              o.norm = variant != 1;
              o.bias = true;
              o.activation = static_cast<strata::Activation>(combinations % 8);
              if (o.output_height(height) < 1 || o.output_width(width) < 1 ||
                  height + 2 * o.padding.h <= o.dilation.h * (kernel - 1))
                continue;
              const Case c{
                  o, height, width, batch, density, combinations % 3 == 0, 1 + combinations % 2, 2 + combinations % 4};
              ++combinations;
              INFO(height << "x" << width << " kernel " << kernel << " stride " << stride << " batch " << batch
                          << " density " << density << " variant " << variant << " threads " << c.threads
                          << " activation " << static_cast<int>(o.activation) << " residual " << c.residual
                          << " levels " << c.levels);
              CHECK(difference(c) < 2e-4F);
            }
          }
  CHECK(combinations > 300);
}

TEST_CASE("rows of whole vectors agree with the plain loops") {
  // Heights of several tiles, the last one short; taps that reach beyond a tile, kernels of one row and one column;
  // channels of one block of columns, of several, and too many for a panel by rows.
  struct Geometry {
    strata::Pair kernel, padding, dilation;
  };
  const Geometry geometries[] = {{3, 1, 1},           {5, 2, 1},           {3, 2, 2}, {{3, 1}, {1, 0}, 1},
                                 {{1, 3}, {0, 1}, 1}, {{2, 4}, {0, 0}, 1}, {3, 0, 1}, {7, 3, 1}};
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<float>::size);
  const auto by_rows = [&](index_t channels, index_t size, index_t kernel) {
    strata::kernels::ConvolutionShape shape;
    shape.in_channels = channels;
    shape.kernel = kernel;
    shape.padding = kernel / 2;
    const auto layout = strata::TileLayout::make(1, {channels, size, size}, lanes);
    return strata::kernels::RowPanel(shape, layout, layout, lanes, 4, sizeof(float)).applies();
  };
  CHECK(by_rows(16, 32, 3));
  CHECK(by_rows(16, 16, 3));
  CHECK_FALSE(by_rows(16, 30, 3));
  CHECK_FALSE(by_rows(16, 32, 1));
  CHECK_FALSE(by_rows(512, 32, 3));
  int combinations = 0;
  for (const auto& [height, width] :
       {std::pair<index_t, index_t>{32, 32}, {16, 16}, {1, 48}, {3, 16}, {33, 64}, {40, 16}})
    for (const Geometry& geometry : geometries)
      for (const auto& [in, out] : {std::pair<index_t, index_t>{3, 5}, {16, 16}, {33, 20}, {70, 9}}) {
        strata::Conv2dOptions o;
        o.in_channels = in;
        o.out_channels = out;
        o.kernel = geometry.kernel;
        o.padding = geometry.padding;
        o.dilation = geometry.dilation;
        o.norm = true;
        o.activation = strata::Activation::relu;
        if (o.output_height(height) < 1 || o.output_width(width) < 1) continue;
        const Case c{o, height, width, 1 + combinations % 2, 0.2, combinations % 3 == 0, 1 + combinations % 3};
        ++combinations;
        INFO(height << "x" << width << " kernel " << o.kernel.h << "x" << o.kernel.w << " dilation " << o.dilation.h
                    << " channels " << in << " to " << out << " batch " << c.batch << " threads " << c.threads);
        CHECK(difference(c) < 4e-4F);
      }
  CHECK(combinations > 150);
}

TEST_CASE("a residual is written over at all levels, in several groups of rows and passes over strata") {
  for (const index_t width : {1, 4, 14, 49, 81})
    for (const index_t rows : {12, 64, 65, 150})
      for (int levels = 1; levels <= 6; ++levels) {
        INFO("width " << width << " rows " << rows << " levels " << levels);
        const strata::Conv2dOptions o{.in_channels = 30, .out_channels = rows, .kernel = 1};
        CHECK(difference({o, 3, width, 1, 0.5, true, 1 + levels % 2, levels}) < 2e-4F);
      }
}

TEST_CASE("borders wider than the picture agree with the plain loops") {
  for (const index_t padding : {20, 36, 60, 200})
    for (const index_t width : {1, 4, 9})
      for (const double density : {0.3, 1.0}) {
        INFO("padding " << padding << " width " << width << " density " << density);
        strata::Conv2dOptions o;
        o.in_channels = 2;
        o.out_channels = 3;
        o.stride = 2;
        o.padding = {1, padding};
        CHECK(difference({o, 4, width, 1, density, false, 1}) < 2e-4F);
      }
}

TEST_CASE("a picture that is its own residual is still read while the result is written") {
  std::mt19937 random(3);
  const strata::Conv2dOptions o{.in_channels = 4, .out_channels = 4, .padding = 1, .norm = false};
  strata::Archive archive;
  archive.set_levels(1);
  strata::ParameterSink(archive).array<float>("conv.weight", {4, 4, 3, 3}, 0, random_numbers(random, 4 * 4 * 9));
  strata::inference::Conv2d<float, xsimd::default_arch> layer(o);
  strata::ParameterSource source(archive);
  layer.load("conv", "", source);
  REQUIRE(source.finish("").ok());
  const std::vector<float> input = random_numbers(random, 4 * 40 * 40);
  strata::SerialExecutor executor;
  Context context(executor);
  std::vector<float> results[2];
  for (const bool moved : {false, true}) {
    auto x = context.make(1, {4, 40, 40});
    strata::read_rows(input.data(), x);
    results[moved].resize(input.size());
    strata::write_rows(moved ? layer(context, x, std::move(x)) : layer(context, x, x), results[moved].data());
  }
  CHECK(results[0] == results[1]);
}
