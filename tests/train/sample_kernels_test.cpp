// The kernels of sparse matrices over tiles of samples against their scalar twins, over awkward shapes.
#include <cstdint>
#include <random>
#include <vector>

#include <strata/train/sample_kernels.hpp>

#include "support/arrays.hpp"
#include "support/catch.hpp"

namespace {

using strata::index_t;
using Arch = xsimd::default_arch;
namespace kernels = strata::kernels;

template <class Scalar>
void check(double tolerance) {
  constexpr index_t width = kernels::sample_tile<Scalar, Arch>;
  std::mt19937 random(4);
  for (const index_t features : {1, 3, 8, 16, 29})
    for (const index_t samples : {index_t{1}, index_t{3}, width / 8, width / 8 + 1, width / 2, width - 1, width}) {
      INFO("features " << features << " samples " << samples);
      const index_t stride = features + 5;
      const Array<Scalar> x = numbers<Scalar>(random, samples * stride);
      const Array<Scalar> before = numbers<Scalar>(random, features * width);
      Array<Scalar> tile = before;
      Array<Scalar> expected_tile = before;
      kernels::samples_to_tile<Arch>(x.data(), stride, features, samples, tile.data());
      kernels::samples_to_tile_reference<Arch>(x.data(), stride, features, samples, expected_tile.data());
      CHECK(difference(tile, expected_tile) == 0);

      Array<Scalar> found = x;
      Array<Scalar> expected = x;
      kernels::add_tile_to_samples<Arch>(before.data(), features, samples, found.data(), stride);
      kernels::add_tile_to_samples_reference<Arch>(before.data(), features, samples, expected.data(), stride);
      CHECK(difference(found, expected) == 0);

      const index_t rows = 7;
      std::vector<std::uint32_t> starts{2};  // as the second part of a list: numbers before it
      std::vector<std::uint32_t> offsets{0, 0};
      for (index_t row = 0; row < rows; ++row) {  // the second, fifth and so on are empty
        for (index_t k = 0; row % 3 != 1 && k < features; ++k)
          if (row == 0 || random() % 2 == 0) offsets.push_back(static_cast<std::uint32_t>(k * width));
        starts.push_back(static_cast<std::uint32_t>(offsets.size()));
      }
      Array<Scalar> dy(rows * width);
      const Array<Scalar> d = numbers<Scalar>(random, samples * rows);
      kernels::samples_to_tile<Arch>(d.data(), rows, rows, samples, dy.data());
      Array<Scalar> sums = numbers<Scalar>(random, static_cast<index_t>(offsets.size()));
      Array<Scalar> expected_sums = sums;
      const index_t vectors = kernels::sample_vectors<Scalar, Arch>(samples);
      kernels::sample_gradients<Arch>(tile.data(), starts.data(), offsets.data(), rows, dy.data(), vectors,
                                      sums.data());
      kernels::sample_gradients_reference<Arch>(tile.data(), starts.data(), offsets.data(), rows, dy.data(), vectors,
                                                expected_sums.data());
      CHECK(difference(sums, expected_sums) < tolerance);
    }
}

}  // namespace

TEST_CASE("kernels over tiles of samples agree with their scalar twins") {
  check<float>(1e-4);
  check<double>(1e-12);
}
