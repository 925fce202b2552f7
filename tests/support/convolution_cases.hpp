// Convolutions with every arrangement of borders, strides, blocks of channels and pieces of pictures, small enough to
// be computed several times.
#pragma once

#include <strata/layers/options.hpp>

namespace test {

struct ConvolutionCase {
  strata::Shape shape;
  strata::index_t out;
  strata::Pair kernel, stride, padding, dilation;

  /// A convolution without normalisation.
  [[nodiscard]] strata::Conv2dOptions options() const {
    return {.in_channels = shape.channels,
            .out_channels = out,
            .kernel = kernel,
            .stride = stride,
            .padding = padding,
            .dilation = dilation,
            .norm = false};
  }
  [[nodiscard]] strata::Shape output() const {
    return {out, options().output_height(shape.height), options().output_width(shape.width)};
  }
};

inline const ConvolutionCase convolution_cases[] = {
    {{3, 2, 2}, 1, 1, 1, 0, 1},                      // the fewest pixels
    {{96, 3, 3}, 32, 1, 1, 0, 1},                    // several parts of the channels, lines joined to an odd one
    {{64, 6, 6}, 64, 1, 2, 0, 1},                    // one tap, a stride
    {{32, 5, 4}, 16, 1, 2, 0, 1},                    // phases without taps
    {{16, 4, 20}, 5, 1, 1, 0, 1},                    // lines that are not joined
    {{16, 9, 9}, 48, 3, 1, 1, 1},                    // three blocks of channels from one
    {{32, 20, 70}, 7, 3, 1, 1, 1},                   // several pieces of a picture
    {{32, 21, 67}, 16, 3, 2, 1, 1},                  // phases of unequal size
    {{5, 7, 9}, 33, 5, 3, 3, 1},                     // stride 3, wide borders
    {{4, 6, 11}, 9, {3, 1}, {1, 2}, {1, 0}, 1},      // one direction only
    {{2, 9, 9}, 3, 3, 1, 0, 3},                      // dilated without a border
    {{1, 28, 28}, 8, 3, 2, 1, 1},                    // one channel
    {{2, 3, 3}, 4, 1, 1, 2, 1},                      // a border around 1x1
    {{2, 8, 8}, 4, 2, 4, 0, 1},                      // pixels that no tap meets
    {{3, 4, 4}, 2, {2, 3}, {1, 1}, {0, 2}, {2, 1}},  // all different
};

}  // namespace test
