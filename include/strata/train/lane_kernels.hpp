// Kernels of convolutions in training, with pictures side by side in the lanes of a vector (train/lanes.hpp): every
// value of a vector belongs to another picture, so all kernel sizes, strides and paddings work on whole, aligned
// vectors, dense or sparse, forwards and backwards. Who arranges borders, strides and threads is train/convolution.hpp.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

#include <xsimd/xsimd.hpp>

#include <strata/core/types.hpp>
#include <strata/kernels/lanes.hpp>

namespace strata::kernels {

/// Inputs of a run of output pixels: pixel x of line y meets tap t, channel k of it, in the vector at
/// `source + y * line_step + x * pixel_step + starts[t] + k * lanes`. Steps and starts count elements.
template <class Scalar>
struct LaneInput {
  const Scalar* source = nullptr;
  index_t line_step = 0;
  index_t pixel_step = 0;
  const index_t* starts = nullptr;
  index_t taps = 0;
  index_t depth = 0;  ///< channels of every tap
};

/// Rows (output channels) of the same run: row r of pixel x of line y is the vector at
/// `target + y * line_step + x * pixel_step + r / block * block_step + r % block * lanes`.
template <class Scalar>
struct LaneOutput {
  Scalar* target = nullptr;
  index_t line_step = 0;
  index_t pixel_step = 0;
  index_t rows = 0;
  index_t block = 1;
  index_t block_step = 0;
  index_t lines = 0;
  index_t pixels = 0;  ///< of a line

  [[nodiscard]] index_t row_start(index_t row, index_t lanes) const noexcept {
    return row / block * block_step + row % block * lanes;
  }
};

/// Rows that the dense product computes at a time, and pixels beside them: sums and inputs stay in registers.
template <class Scalar, class Arch>
inline constexpr index_t lane_row_tile = xsimd::batch<Scalar, Arch>::size * sizeof(Scalar) == 64 ? 8 : 4;
inline constexpr index_t lane_pixel_tile = 3;

/// Vectors of rows and columns of weights whose gradients are summed in registers at a time, and the rows of the
/// vectors.
template <class Scalar, class Arch>
inline constexpr index_t lane_gradient_vectors = xsimd::batch<Scalar, Arch>::size * sizeof(Scalar) == 64 ? 1 : 2;
template <class Scalar, class Arch>
inline constexpr index_t lane_gradient_columns = xsimd::batch<Scalar, Arch>::size * sizeof(Scalar) == 64 ? 16 : 6;
template <class Scalar, class Arch>
inline constexpr index_t lane_gradient_rows =
    lane_gradient_vectors<Scalar, Arch>* static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);

/// Most pixels whose sums a sparse product keeps in registers.
inline constexpr index_t lane_sparse_pixels = 8;

namespace detail {

template <class Arch, bool add, class Scalar, std::size_t... v, std::size_t... i>
[[gnu::always_inline]] inline void lane_product_tile(const LaneInput<Scalar>& input, const Scalar* source,
                                                     const Scalar* weights, Scalar* target, index_t pixel_step,
                                                     index_t rows, std::index_sequence<v...>,
                                                     std::index_sequence<i...>) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr std::size_t width = sizeof...(v);
  constexpr auto tile = static_cast<index_t>(sizeof...(i) / width);
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  std::array<Batch, sizeof...(i)> sums;
  ((sums[i] = Batch(Scalar{0})), ...);
  for (index_t t = 0; t < input.taps; ++t) {
    const Scalar* x = source + input.starts[t];
    for (index_t k = 0; k < input.depth; ++k, x += lanes, weights += tile) {
      const std::array<Batch, width> pixels{
          in_register(Batch::load_aligned(x + static_cast<index_t>(v) * input.pixel_step))...};
      ((sums[i] = xsimd::fma(Batch(weights[i / width]), pixels[i % width], sums[i])), ...);
    }
  }
  const auto store = [&](std::size_t at, Batch sum) {
    const auto row = static_cast<index_t>(at / width);
    if (row >= rows) return;
    Scalar* const to = target + static_cast<index_t>(at % width) * pixel_step + row * lanes;
    if constexpr (add) sum += Batch::load_aligned(to);
    sum.store_aligned(to);
  };
  (store(i, sums[i]), ...);
}

template <class Arch, bool add, std::size_t width, class Scalar>
void lane_product_pixels(const LaneInput<Scalar>& input, const Scalar* source, const Scalar* weights, Scalar* target,
                         index_t pixel_step, index_t rows) noexcept {
  lane_product_tile<Arch, add>(input, source, weights, target, pixel_step, rows, std::make_index_sequence<width>(),
                               std::make_index_sequence<width * lane_row_tile<Scalar, Arch>>());
}

/// Calls `f(first, width)` for pieces of 0 .. count-1 of about equal width, at most `most`.
template <class F>
inline void for_pieces(index_t count, index_t most, F&& f) noexcept {
  for (index_t first = 0; first < count;) {
    const index_t width = ceil_div(count - first, ceil_div(count - first, most));
    f(first, width);
    first += width;
  }
}

}  // namespace detail

/// Elements of packed weights of `rows` x `columns`: `lane_row_tile` rows at a time, column by column; what is left
/// over in the last tile is not read into any result but has to be finite.
template <class Arch, class Scalar>
[[nodiscard]] constexpr index_t lane_packed_size(index_t rows, index_t columns) noexcept {
  return round_up(rows, lane_row_tile<Scalar, Arch>) * columns;
}

/// Where the weight of `row` and `column` (tap * depth + channel) is in the packed weights.
template <class Arch, class Scalar>
[[nodiscard]] constexpr index_t lane_packed_at(index_t row, index_t column, index_t columns) noexcept {
  constexpr index_t tile = lane_row_tile<Scalar, Arch>;
  return (row / tile * columns + column) * tile + row % tile;
}

/// output[row] = (or, with `add`, +=) sum over columns of weight[row, column] x input[column], for every pixel.
/// Preconditions: vectors aligned; blocks of output rows are multiples of `lane_row_tile`, or there is one block.
template <class Arch, bool add, class Scalar>
void lane_product(const LaneInput<Scalar>& input, const Scalar* weights, const LaneOutput<Scalar>& output) noexcept {
  constexpr index_t tile = lane_row_tile<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  const index_t tile_size = input.taps * input.depth * tile;
  // The inputs of a few pixels stay in the L1 cache for all rows; the weights, which are read again for the next ones,
  // are fewer numbers for as many products.
  for (index_t y = 0; y < output.lines; ++y)
    detail::for_pieces(output.pixels, lane_pixel_tile, [&](index_t x, index_t width) {
      const Scalar* const source = input.source + y * input.line_step + x * input.pixel_step;
      Scalar* const pixels = output.target + y * output.line_step + x * output.pixel_step;
      for (index_t row = 0; row < output.rows; row += tile) {
        const Scalar* const tile_weights = weights + row / tile * tile_size;
        Scalar* const target = pixels + output.row_start(row, lanes);
        const index_t rows = std::min(tile, output.rows - row);
        if (width == 3) {
          detail::lane_product_pixels<Arch, add, 3>(input, source, tile_weights, target, output.pixel_step, rows);
        } else if (width == 2) {
          detail::lane_product_pixels<Arch, add, 2>(input, source, tile_weights, target, output.pixel_step, rows);
        } else {
          detail::lane_product_pixels<Arch, add, 1>(input, source, tile_weights, target, output.pixel_step, rows);
        }
      }
    });
}

/// The scalar twin of `lane_product`, for weights packed for `Arch` and vectors of its size.
template <class Arch, bool add, class Scalar>
void lane_product_reference(const LaneInput<Scalar>& input, const Scalar* weights,
                            const LaneOutput<Scalar>& output) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  for (index_t y = 0; y < output.lines; ++y)
    for (index_t x = 0; x < output.pixels; ++x)
      for (index_t row = 0; row < output.rows; ++row)
        for (index_t lane = 0; lane < lanes; ++lane) {
          Scalar sum{0};
          for (index_t t = 0; t < input.taps; ++t)
            for (index_t k = 0; k < input.depth; ++k)
              sum += weights[lane_packed_at<Arch, Scalar>(row, t * input.depth + k, input.taps * input.depth)] *
                     input.source[y * input.line_step + x * input.pixel_step + input.starts[t] + k * lanes + lane];
          Scalar& to =
              output.target[y * output.line_step + x * output.pixel_step + output.row_start(row, lanes) + lane];
          to = add ? to + sum : sum;
        }
}

/// Elements of `pixels` pixels of `rows` rows as `lane_turn` leaves them.
template <class Arch, class Scalar>
[[nodiscard]] constexpr index_t lane_turned_size(index_t rows, index_t pixels) noexcept {
  return round_up(rows, lane_gradient_rows<Scalar, Arch>) * pixels *
         static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
}

/// The rows of a run of pixels with the lanes (pictures) outside and the rows inside, `lane_gradient_rows` of them at a
/// time: [row / tile][pixel][lane][row % tile]. A sum over pixels and pictures then is one over vectors of rows, each
/// with a number of its own for every column. Beyond the last row is that row again.
template <class Arch, class Scalar>
void lane_turn(const LaneOutput<const Scalar>& output, Scalar* turned) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  constexpr index_t tile = lane_gradient_rows<Scalar, Arch>;
  for (index_t row = 0; row < output.rows; row += tile) {
    std::array<index_t, static_cast<std::size_t>(tile)> starts;
    for (index_t r = 0; r < tile; ++r)
      starts[static_cast<std::size_t>(r)] = output.row_start(std::min(row + r, output.rows - 1), lanes);
    for (index_t line = 0; line < output.lines; ++line) {
      const Scalar* from = output.target + line * output.line_step;
      for (index_t pixel = 0; pixel < output.pixels; ++pixel, from += output.pixel_step, turned += tile * lanes)
        for (index_t first = 0; first < tile; first += lanes) {
          std::array<Batch, Batch::size> x;
          for (std::size_t r = 0; r < x.size(); ++r)
            x[r] = Batch::load_aligned(from + starts[static_cast<std::size_t>(first) + r]);
          transpose(x);
          for (std::size_t lane = 0; lane < x.size(); ++lane)
            x[lane].store_aligned(turned + static_cast<index_t>(lane) * tile + first);
        }
    }
  }
}

/// The scalar twin of `lane_turn`, for tiles of `Arch` and vectors of its size.
template <class Arch, class Scalar>
void lane_turn_reference(const LaneOutput<const Scalar>& output, Scalar* turned) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  constexpr index_t tile = lane_gradient_rows<Scalar, Arch>;
  for (index_t first = 0; first < output.rows; first += tile)
    for (index_t y = 0; y < output.lines; ++y)
      for (index_t x = 0; x < output.pixels; ++x)
        for (index_t lane = 0; lane < lanes; ++lane)
          for (index_t row = first; row < first + tile; ++row)
            *turned++ = output.target[y * output.line_step + x * output.pixel_step +
                                      output.row_start(std::min(row, output.rows - 1), lanes) + lane];
}

/// Rows of a run of pixels as `lane_turn` leaves them.
template <class Scalar>
struct LaneTurned {
  const Scalar* values = nullptr;
  index_t rows = 0;
  index_t lines = 0;
  index_t pixels = 0;  ///< of a line
};

namespace detail {

template <class Arch, class Scalar, std::size_t... i>
[[gnu::always_inline]] inline void lane_gradient_tile(const LaneInput<Scalar>& input, const Scalar* x,
                                                      const LaneTurned<Scalar>& dy, const Scalar* d, index_t rows,
                                                      Scalar* sums, index_t step, std::index_sequence<i...>) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  constexpr auto vectors = static_cast<std::size_t>(lane_gradient_vectors<Scalar, Arch>);
  constexpr index_t tile = lane_gradient_rows<Scalar, Arch>;
  std::array<Batch, sizeof...(i)> products;
  ((products[i] = Batch(Scalar{0})), ...);
  for (index_t line = 0; line < dy.lines; ++line) {
    const Scalar* pixel = x + line * input.line_step;
    for (index_t p = 0; p < dy.pixels; ++p, pixel += input.pixel_step)
      for (index_t lane = 0; lane < lanes; ++lane, d += tile) {
        std::array<Batch, vectors> rows_of;
        for (std::size_t v = 0; v < vectors; ++v)
          rows_of[v] = in_register(Batch::load_aligned(d + static_cast<index_t>(v) * lanes));
        const auto add_column = [&](std::size_t column) __attribute__((always_inline)) {
          const Batch value(pixel[static_cast<index_t>(column) * lanes + lane]);
          for (std::size_t v = 0; v < vectors; ++v)
            products[column * vectors + v] = xsimd::fma(value, rows_of[v], products[column * vectors + v]);
        };
        ((i % vectors == 0 ? add_column(i / vectors) : void()), ...);
      }
  }
  const auto store = [&](std::size_t at, const Batch& product) {
    const index_t first = static_cast<index_t>(at % vectors) * lanes;
    Scalar* const to = sums + static_cast<index_t>(at / vectors) * step + first;
    if (first + lanes <= rows) {
      (Batch::load_unaligned(to) + product).store_unaligned(to);
    } else {
      alignas(Batch) std::array<Scalar, Batch::size> values;
      product.store_aligned(values.data());
      for (index_t r = 0; r < rows - first; ++r) to[r] += values[static_cast<std::size_t>(r)];
    }
  };
  (store(i, products[i]), ...);
}

template <class Arch, std::size_t width, class Scalar>
void lane_gradient_columns_of(const LaneInput<Scalar>& input, const Scalar* x, const LaneTurned<Scalar>& dy,
                              Scalar* sums, index_t step) noexcept {
  constexpr index_t tile = lane_gradient_rows<Scalar, Arch>;
  const index_t tile_size = lane_turned_size<Arch, Scalar>(tile, dy.lines * dy.pixels);
  for (index_t row = 0; row < dy.rows; row += tile)
    lane_gradient_tile<Arch>(
        input, x, dy, dy.values + row / tile * tile_size, std::min(tile, dy.rows - row), sums + row, step,
        std::make_index_sequence<width* static_cast<std::size_t>(lane_gradient_vectors<Scalar, Arch>)>());
}

template <class Arch, class Scalar, std::size_t... c>
void lane_gradient_of_width(index_t width, const LaneInput<Scalar>& input, const Scalar* x,
                            const LaneTurned<Scalar>& dy, Scalar* sums, index_t step,
                            std::index_sequence<c...>) noexcept {
  using Kernel =
      void (*)(const LaneInput<Scalar>&, const Scalar*, const LaneTurned<Scalar>&, Scalar*, index_t) noexcept;
  static constexpr Kernel kernels[] = {lane_gradient_columns_of<Arch, c + 1, Scalar>...};
  kernels[width - 1](input, x, dy, sums, step);
}

}  // namespace detail

/// sums[column * step + row] += sum over pixels and lanes of dy[row] x input[column].
template <class Arch, class Scalar>
void lane_weight_gradient(const LaneInput<Scalar>& input, const LaneTurned<Scalar>& dy, Scalar* sums,
                          index_t step) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  constexpr index_t most = lane_gradient_columns<Scalar, Arch>;
  for (index_t t = 0; t < input.taps; ++t, sums += input.depth * step)
    detail::for_pieces(input.depth, most, [&](index_t first, index_t width) {
      detail::lane_gradient_of_width<Arch>(width, input, input.source + input.starts[t] + first * lanes, dy,
                                           sums + first * step, step,
                                           std::make_index_sequence<static_cast<std::size_t>(most)>());
    });
}

/// The scalar twin of `lane_turn` and `lane_weight_gradient` together; `output` is where dy lies.
template <class Arch, class Scalar>
void lane_weight_gradient_reference(const LaneInput<Scalar>& input, const LaneOutput<const Scalar>& output,
                                    Scalar* sums, index_t step) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  for (index_t t = 0; t < input.taps; ++t)
    for (index_t k = 0; k < input.depth; ++k)
      for (index_t row = 0; row < output.rows; ++row)
        for (index_t y = 0; y < output.lines; ++y)
          for (index_t x = 0; x < output.pixels; ++x)
            for (index_t lane = 0; lane < lanes; ++lane)
              sums[(t * input.depth + k) * step + row] +=
                  input.source[y * input.line_step + x * input.pixel_step + input.starts[t] + k * lanes + lane] *
                  output.target[y * output.line_step + x * output.pixel_step + output.row_start(row, lanes) + lane];
}

/// Rows of non-zeros whose inputs are in one part of the channels: non-zeros `starts[row]` .. `starts[row + 1] - 1`
/// have their input `offsets[i]` elements from the pixel's.
template <class Scalar>
struct LaneNonZeros {
  const std::uint32_t* starts = nullptr;
  const std::uint32_t* offsets = nullptr;
  const Scalar* values = nullptr;
};

namespace detail {

template <class Arch, class Scalar, std::size_t... v>
void lane_sparse_tile(const Scalar* source, index_t source_step, const LaneNonZeros<Scalar>& weights,
                      const LaneOutput<Scalar>& output, Scalar* target, bool add, std::index_sequence<v...>) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const std::uint32_t* offset = weights.offsets + weights.starts[0];
  const Scalar* value = weights.values + weights.starts[0];
  for (index_t first = 0; first < output.rows; first += output.block, target += output.block_step) {
    const index_t last = std::min(first + output.block, output.rows);
    Scalar* to = target;
    for (index_t row = first; row < last; ++row, to += lanes) {
      const Scalar* const end = weights.values + weights.starts[row + 1];
      if (value == end && add) continue;
      std::array<Batch, sizeof...(v)> sums;
      if (add) {
        ((sums[v] = Batch::load_aligned(to + static_cast<index_t>(v) * output.pixel_step)), ...);
      } else {
        ((sums[v] = Batch(Scalar{0})), ...);
      }
      for (; value != end; ++value, ++offset) {
        const Batch weight(*value);
        const Scalar* const x = source + *offset;
        ((sums[v] = xsimd::fma(weight, Batch::load_aligned(x + static_cast<index_t>(v) * source_step), sums[v])), ...);
      }
      (sums[v].store_aligned(to + static_cast<index_t>(v) * output.pixel_step), ...);
    }
  }
}

/// Products of the pixels of one tile, added to one vector of `sums` a non-zero.
template <class Arch, class Scalar, std::size_t... v>
void lane_sampled_tile(const Scalar* source, index_t source_step, const LaneNonZeros<Scalar>& weights,
                       const LaneOutput<const Scalar>& output, const Scalar* target, Scalar* sums,
                       std::index_sequence<v...>) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const std::uint32_t* offset = weights.offsets + weights.starts[0];
  for (index_t first = 0; first < output.rows; first += output.block, target += output.block_step) {
    const index_t last = std::min(first + output.block, output.rows);
    const Scalar* from = target;
    for (index_t row = first; row < last; ++row, from += lanes) {
      const std::uint32_t* const end = weights.offsets + weights.starts[row + 1];
      if (offset == end) continue;
      const std::array<Batch, sizeof...(v)> dy{
          Batch::load_aligned(from + static_cast<index_t>(v) * output.pixel_step)...};
      for (; offset != end; ++offset, sums += lanes) {
        const Scalar* const x = source + *offset;
        Batch sum = Batch::load_aligned(sums);
        ((sum = xsimd::fma(dy[v], Batch::load_aligned(x + static_cast<index_t>(v) * source_step), sum)), ...);
        sum.store_aligned(sums);
      }
    }
  }
}

template <class Arch, class Scalar, std::size_t... w>
void lane_sparse_of_width(index_t width, const Scalar* source, index_t source_step, const LaneNonZeros<Scalar>& weights,
                          const LaneOutput<Scalar>& output, Scalar* target, bool add,
                          std::index_sequence<w...>) noexcept {
  ((static_cast<index_t>(w) + 1 == width
        ? lane_sparse_tile<Arch>(source, source_step, weights, output, target, add, std::make_index_sequence<w + 1>())
        : void()),
   ...);
}

template <class Arch, class Scalar, std::size_t... w>
void lane_sampled_of_width(index_t width, const Scalar* source, index_t source_step,
                           const LaneNonZeros<Scalar>& weights, const LaneOutput<const Scalar>& output,
                           const Scalar* target, Scalar* sums, std::index_sequence<w...>) noexcept {
  ((static_cast<index_t>(w) + 1 == width
        ? lane_sampled_tile<Arch>(source, source_step, weights, output, target, sums, std::make_index_sequence<w + 1>())
        : void()),
   ...);
}

inline constexpr std::make_index_sequence<static_cast<std::size_t>(lane_sparse_pixels)> lane_sparse_widths{};

}  // namespace detail

/// output[row] = (or, with `add`, +=) sum over the row's non-zeros of value x input, for every pixel.
template <class Arch, class Scalar>
void lane_sparse_product(const Scalar* source, index_t line_step, index_t pixel_step,
                         const LaneNonZeros<Scalar>& weights, const LaneOutput<Scalar>& output, bool add) noexcept {
  for (index_t y = 0; y < output.lines; ++y)
    detail::for_pieces(output.pixels, lane_sparse_pixels, [&](index_t x, index_t width) {
      detail::lane_sparse_of_width<Arch>(width, source + y * line_step + x * pixel_step, pixel_step, weights, output,
                                         output.target + y * output.line_step + x * output.pixel_step, add,
                                         detail::lane_sparse_widths);
    });
}

/// The scalar twin of `lane_sparse_product`.
template <class Arch, class Scalar>
void lane_sparse_product_reference(const Scalar* source, index_t line_step, index_t pixel_step,
                                   const LaneNonZeros<Scalar>& weights, const LaneOutput<Scalar>& output,
                                   bool add) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  for (index_t y = 0; y < output.lines; ++y)
    for (index_t x = 0; x < output.pixels; ++x)
      for (index_t row = 0; row < output.rows; ++row)
        for (index_t lane = 0; lane < lanes; ++lane) {
          Scalar& to =
              output.target[y * output.line_step + x * output.pixel_step + output.row_start(row, lanes) + lane];
          Scalar sum = add ? to : Scalar{0};
          for (std::uint32_t i = weights.starts[row]; i < weights.starts[row + 1]; ++i)
            sum += weights.values[i] *
                   source[y * line_step + x * pixel_step + static_cast<index_t>(weights.offsets[i]) + lane];
          to = sum;
        }
}

/// The gradients of non-zeros only: sums[i - starts[0]], a vector each, += sum over pixels of dy[row] x input. (The
/// product that SparseProp, arXiv 2302.04852, computes for the gradient of sparse weights.) `output` is where dy lies;
/// the lanes are left to be added up.
template <class Arch, class Scalar>
void lane_sampled_product(const Scalar* source, index_t line_step, index_t pixel_step,
                          const LaneNonZeros<Scalar>& weights, const LaneOutput<const Scalar>& output,
                          Scalar* sums) noexcept {
  for (index_t y = 0; y < output.lines; ++y)
    detail::for_pieces(output.pixels, lane_sparse_pixels, [&](index_t x, index_t width) {
      detail::lane_sampled_of_width<Arch>(width, source + y * line_step + x * pixel_step, pixel_step, weights, output,
                                          output.target + y * output.line_step + x * output.pixel_step, sums,
                                          detail::lane_sparse_widths);
    });
}

/// The scalar twin of `lane_sampled_product`.
template <class Arch, class Scalar>
void lane_sampled_product_reference(const Scalar* source, index_t line_step, index_t pixel_step,
                                    const LaneNonZeros<Scalar>& weights, const LaneOutput<const Scalar>& output,
                                    Scalar* sums) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  for (index_t row = 0; row < output.rows; ++row)
    for (std::uint32_t i = weights.starts[row]; i < weights.starts[row + 1]; ++i)
      for (index_t y = 0; y < output.lines; ++y)
        for (index_t x = 0; x < output.pixels; ++x)
          for (index_t lane = 0; lane < lanes; ++lane)
            sums[static_cast<index_t>(i - weights.starts[0]) * lanes + lane] +=
                source[y * line_step + x * pixel_step + static_cast<index_t>(weights.offsets[i]) + lane] *
                output.target[y * output.line_step + x * output.pixel_step + output.row_start(row, lanes) + lane];
}

}  // namespace strata::kernels
