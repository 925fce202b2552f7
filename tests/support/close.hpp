// Comparison of numbers that are computed in different orders.
#pragma once

#include <algorithm>
#include <cmath>

#include "support/catch.hpp"

namespace test {

/// Whether two numbers are equal but for rounding.
inline bool close(double a, double b, double tolerance) {
  INFO(a << " and " << b);
  const bool equal = std::abs(a - b) <= tolerance * std::max(std::abs(a), std::abs(b));
  CHECK(equal);
  return equal;
}

}  // namespace test
