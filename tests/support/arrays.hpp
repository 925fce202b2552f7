// Arrays of random numbers for tests of kernels, and how far two of them differ.
#pragma once

#include <random>

#include <Eigen/Core>

#include <strata/core/types.hpp>

template <class Scalar>
using Array = Eigen::Array<Scalar, Eigen::Dynamic, 1>;

/// Between -1 and 1.
template <class Scalar>
Array<Scalar> numbers(std::mt19937& random, strata::index_t count) {
  std::uniform_real_distribution<double> uniform(-1, 1);
  Array<Scalar> result(count);
  for (Scalar& number : result) number = static_cast<Scalar>(uniform(random));
  return result;
}

template <class Scalar>
double difference(const Array<Scalar>& a, const Array<Scalar>& b) {
  return a.size() == 0 ? 0.0 : static_cast<double>((a - b).abs().maxCoeff());
}
