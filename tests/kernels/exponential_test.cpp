// The bounded exponential and what is made of it against the C library's.
#include <algorithm>
#include <cmath>
#include <vector>

#include <strata/kernels/epilogue.hpp>
#include <strata/kernels/exponential.hpp>

#include "support/catch.hpp"

namespace {

using Arch = xsimd::default_arch;

/// `f` of every one of `numbers`, by vectors.
template <class Scalar, class F>
std::vector<Scalar> by_vectors(std::vector<Scalar> numbers, const F& f) {
  using Batch = xsimd::batch<Scalar, Arch>;
  const std::size_t count = numbers.size();
  numbers.resize((count + Batch::size - 1) / Batch::size * Batch::size);
  for (std::size_t i = 0; i < numbers.size(); i += Batch::size)
    f(Batch::load_unaligned(&numbers[i])).store_unaligned(&numbers[i]);
  numbers.resize(count);
  return numbers;
}

template <class Scalar>
void check(Scalar least, Scalar most, double tolerance) {
  std::vector<Scalar> numbers;
  for (int i = 0; i <= 200'000; ++i) numbers.push_back(least + (most - least) * static_cast<Scalar>(i) / 200'000);
  const auto found = by_vectors(numbers, [](const auto& x) { return strata::kernels::bounded_exp(x); });
  double worst = 0;
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const double wanted = std::exp(static_cast<double>(numbers[i]));
    worst = std::max(worst, std::abs(static_cast<double>(found[i]) / wanted - 1));
  }
  CHECK(worst < tolerance);
}

}  // namespace

TEST_CASE("the bounded exponential is exact to rounding, and exactly 1 for 0") {
  check<float>(-87, 88, 1.5e-7);
  check<float>(-1, 1, 1.5e-7);
  check<double>(-87, 88, 1e-15);
  const auto ends =
      by_vectors<float>({0.0F, -0.0F, -1e30F, -88.0F}, [](const auto& x) { return strata::kernels::bounded_exp(x); });
  CHECK(ends[0] == 1.0F);
  CHECK(ends[1] == 1.0F);
  CHECK(ends[2] == ends[3]);
  CHECK((ends[2] > 0 && ends[2] < 2e-38F));
}

TEST_CASE("ELU by vectors agrees with the scalar form") {
  std::vector<float> numbers;
  for (int i = -3000; i <= 1000; ++i) numbers.push_back(static_cast<float>(i) / 100);
  const auto found = by_vectors(numbers, [](const auto& x) { return strata::kernels::elu(x); });
  for (std::size_t i = 0; i < numbers.size(); ++i)
    CHECK(std::abs(found[i] - strata::kernels::activate(numbers[i], strata::Activation::elu)) < 2e-7F);
}
