// The kernels of linear layers for one vector and for a few, against their plain twins and against themselves over
// other cuts of the rows: lengths around multiples of the unrolled loops, several blocks of columns, strata and empty
// rows.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <strata/core/arena.hpp>
#include <strata/kernels/sparse_narrow.hpp>
#include <strata/kernels/sparse_vector.hpp>

#include "support/catch.hpp"

namespace {

using strata::index_t;
using strata::Level;
using strata::StratumMap;
using strata::kernels::Epilogue;
using Arch = xsimd::default_arch;

struct Case {
  index_t rows;
  index_t columns;
  index_t block_columns;
  index_t row_group;
  int levels;
  unsigned kept_of_ten;
};

const Case cases[] = {{0, 5, 5, 64, 1, 5},     {3, 0, 1, 64, 1, 5},    {1, 1, 1, 64, 1, 10},   {1, 3, 3, 64, 2, 10},
                      {5, 7, 7, 2, 3, 6},      {17, 33, 8, 4, 2, 4},   {64, 64, 64, 64, 2, 1}, {65, 40, 40, 64, 1, 9},
                      {130, 100, 33, 7, 3, 5}, {97, 31, 31, 16, 2, 0}, {70, 129, 64, 32, 2, 7}};

std::string text(const Case& c) {
  return std::to_string(c.rows) + " x " + std::to_string(c.columns) + ", blocks of " + std::to_string(c.block_columns) +
         ", groups of " + std::to_string(c.row_group) + ", " + std::to_string(c.levels) + " levels, " +
         std::to_string(c.kept_of_ten) + " of 10 kept";
}

template <class Scalar, class Index>
strata::LeveledCsr<Scalar, Index> random_matrix(const Case& c, std::mt19937& random) {
  std::uniform_real_distribution<Scalar> uniform(-1, 1);
  std::vector<Scalar> weights(static_cast<std::size_t>(c.rows * c.columns));
  std::vector<std::uint8_t> strata(weights.size(), StratumMap::absent);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    weights[i] = uniform(random);
    const bool empty_row = i / static_cast<std::size_t>(c.columns) % 6 == 4;
    if (!empty_row && random() % 10 < c.kept_of_ten)
      strata[i] = static_cast<std::uint8_t>(random() % static_cast<unsigned>(c.levels));
  }
  const auto map = StratumMap::from_strata(c.rows, c.columns, c.levels, strata).value();
  return strata::LeveledCsr<Scalar, Index>::from_dense(weights, map, c.block_columns, c.row_group);
}

template <class Scalar>
std::vector<Scalar> numbers(index_t count, std::mt19937& random) {
  std::uniform_real_distribution<Scalar> uniform(-1, 1);
  std::vector<Scalar> result(static_cast<std::size_t>(count));
  for (Scalar& number : result) number = uniform(random);
  return result;
}

/// An aligned copy with the bytes around that SIMD loads may touch.
template <class Scalar>
class Aligned {
 public:
  explicit Aligned(index_t count) : block_(arena_.take(count * static_cast<index_t>(sizeof(Scalar)))) {
    std::fill_n(data(), count, std::numeric_limits<Scalar>::quiet_NaN());
  }
  Scalar* data() { return reinterpret_cast<Scalar*>(block_.data()); }

 private:
  strata::Arena arena_;
  strata::Block block_;
};

constexpr strata::Activation activations[] = {strata::Activation::identity, strata::Activation::relu,
                                              strata::Activation::tanh};

template <class Scalar, class Index>
void check_vector() {
  std::mt19937 random(7);
  for (const Case& c : cases) {
    const auto matrix = random_matrix<Scalar, Index>(c, random);
    const auto x = numbers<Scalar>(c.columns, random);
    const auto scale = numbers<Scalar>(c.rows, random);
    const auto bias = numbers<Scalar>(c.rows, random);
    const auto residual = numbers<Scalar>(c.rows, random);
    for (int level = 0; level < c.levels; ++level)
      for (const strata::Activation activation : activations) {
        INFO(text(c) << ", level " << level << ", activation " << static_cast<int>(activation));
        const bool bare = activation == strata::Activation::identity;
        const Epilogue<Scalar> epilogue{bare ? nullptr : scale.data(), bare ? nullptr : bias.data(),
                                        bare ? nullptr : residual.data(), activation};
        std::vector<Scalar> expected(static_cast<std::size_t>(c.rows));
        std::vector<Scalar> whole(expected), parts(expected);
        strata::kernels::sparse_vector_reference(matrix, Level{level}, x.data(), expected.data(), epilogue);
        strata::kernels::sparse_vector<Arch>(matrix, Level{level}, 0, c.rows, x.data(), whole.data(), epilogue);
        for (index_t row = 0; row < c.rows; row += c.row_group)
          strata::kernels::sparse_vector<Arch>(matrix, Level{level}, row, std::min(c.rows, row + c.row_group), x.data(),
                                               parts.data(), epilogue);
        double worst = 0;
        for (std::size_t i = 0; i < expected.size(); ++i)
          worst = std::max(worst, std::abs(static_cast<double>(expected[i]) - static_cast<double>(whole[i])));
        CHECK(worst < 2e-5);
        CHECK(whole == parts);
      }
  }
}

template <class Scalar, class Index>
void check_narrow() {
  using strata::kernels::narrow_width;
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  std::mt19937 random(9);
  for (const Case& c : cases) {
    const auto matrix = random_matrix<Scalar, Index>(c, random);
    const auto scale = numbers<Scalar>(c.rows, random);
    const auto bias = numbers<Scalar>(c.rows, random);
    for (index_t batch = 1; batch <= 2 * lanes; batch = batch < 4 ? batch + 1 : batch * 2 - batch / 3) {
      const index_t width = narrow_width<Scalar, Arch>(batch);
      const index_t pitch = batch <= lanes ? lanes : 2 * lanes;
      REQUIRE(width >= batch);
      REQUIRE(width <= pitch);
      Aligned<Scalar> x(c.columns * pitch), packed(c.columns * width), residual(c.rows * pitch);
      for (index_t column = 0; column < c.columns; ++column)  // idle lanes stay NaN
        std::ranges::copy(numbers<Scalar>(batch, random), x.data() + column * pitch);
      for (index_t row = 0; row < c.rows; ++row)
        std::ranges::copy(numbers<Scalar>(batch, random), residual.data() + row * pitch);
      if (width < pitch)
        strata::kernels::pack_narrow<Arch>(x.data(), pitch, c.columns, width, packed.data());
      else
        std::copy_n(x.data(), c.columns * width, packed.data());
      for (int level = 0; level < c.levels; ++level)
        for (const strata::Activation activation : activations) {
          INFO(text(c) << ", batch " << batch << ", level " << level << ", activation "
                       << static_cast<int>(activation));
          Aligned<Scalar> expected(c.rows * pitch), whole(c.rows * pitch), parts(c.rows * pitch);
          const bool bare = activation == strata::Activation::identity;
          strata::kernels::NarrowJob<Scalar> job{0,
                                                 c.rows,
                                                 packed.data(),
                                                 expected.data(),
                                                 pitch,
                                                 {bare ? nullptr : scale.data(), bare ? nullptr : bias.data(),
                                                  bare ? nullptr : residual.data(), activation}};
          strata::kernels::sparse_narrow_reference(matrix, Level{level}, width, job);
          job.output = whole.data();
          strata::kernels::sparse_narrow<Arch>(matrix, Level{level}, width, job);
          job.output = parts.data();
          for (index_t row = 0; row < c.rows; row += c.row_group) {
            job.first_row = row;
            job.last_row = std::min(c.rows, row + c.row_group);
            strata::kernels::sparse_narrow<Arch>(matrix, Level{level}, width, job);
          }
          double worst = 0;
          bool same = true;
          for (index_t row = 0; row < c.rows; ++row)
            for (index_t i = row * pitch; i < row * pitch + batch; ++i) {
              worst = std::max(
                  worst, std::abs(static_cast<double>(expected.data()[i]) - static_cast<double>(whole.data()[i])));
              same = same && whole.data()[i] == parts.data()[i];
            }
          CHECK(worst < 2e-5);
          CHECK(same);
        }
    }
  }
}

}  // namespace

TEST_CASE("one vector equals the plain twin, whatever the cut of rows") {
  check_vector<float, std::uint16_t>();
  check_vector<float, std::uint8_t>();
  check_vector<double, std::uint16_t>();
}

TEST_CASE("a few vectors equal the plain twin, whatever the cut of rows") {
  check_narrow<float, std::uint16_t>();
  check_narrow<float, std::uint8_t>();
  check_narrow<double, std::uint16_t>();
}

TEST_CASE("the last columns of the widest blocks, and of wider ones, are found for every number of vectors") {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<float, Arch>::size);
  constexpr index_t widest = strata::kernels::max_narrow_columns;
  for (const index_t columns : {widest - 1, widest, widest + 1, index_t{65535}}) {
    std::vector<std::uint8_t> strata(static_cast<std::size_t>(columns), StratumMap::absent);
    std::vector<float> weights(strata.size());
    for (index_t column = columns - 9; column < columns; ++column) {
      strata[static_cast<std::size_t>(column)] = 0;
      weights[static_cast<std::size_t>(column)] = static_cast<float>(column);
    }
    const auto map = StratumMap::from_strata(1, columns, 1, strata).value();
    const auto matrix = strata::LeveledCsr<float, std::uint16_t>::from_dense(weights, map, columns);
    for (const index_t batch : {index_t{1}, index_t{5}, lanes, 2 * lanes}) {
      INFO(columns << " columns, batch " << batch);
      const index_t width = strata::kernels::narrow_width<float, Arch>(batch);
      Aligned<float> panel(columns * width), found(width), expected(width);
      for (index_t i = 0; i < columns * width; ++i) panel.data()[i] = static_cast<float>(i / width % 100);
      strata::kernels::NarrowJob<float> job{0, 1, panel.data(), expected.data(), width, {}};
      strata::kernels::sparse_narrow_reference(matrix, Level{0}, width, job);
      job.output = found.data();
      strata::kernels::sparse_narrow<Arch>(matrix, Level{0}, width, job);
      for (index_t i = 0; i < width; ++i)
        CHECK(std::abs(found.data()[i] - expected.data()[i]) <= 1e-6F * std::abs(expected.data()[i]));
    }
  }
}

TEST_CASE("an input that a row does not use does not reach it") {
  const auto map = StratumMap::from_strata(2, 3, 1, {0, StratumMap::absent, 0, StratumMap::absent, 0, 0}).value();
  const auto matrix = strata::LeveledCsr<float, std::uint16_t>::from_dense(std::vector<float>(6, 1.0F), map, 3);
  const float x[] = {1, std::numeric_limits<float>::infinity(), 2};
  float y[2];
  strata::kernels::sparse_vector<Arch>(matrix, Level{0}, 0, 2, x, y, {});
  CHECK(y[0] == 3.0F);
  CHECK(std::isinf(y[1]));
}
