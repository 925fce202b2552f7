// Learning rates over a run: constant, cosine and steps, each after a linear warm-up.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace strata::train {

/// How the learning rate goes from `rate` down.
struct Schedule {
  enum class Shape : std::uint8_t { constant, cosine, step };

  Shape shape = Shape::cosine;
  double rate = 0.1;
  double last_rate = 0;        ///< cosine: where it ends (arXiv 1608.03983)
  std::int64_t warm_up = 0;    ///< steps over which the rate rises from 0
  std::int64_t steps = 1;      ///< length of the run, warm-up included
  std::int64_t first = 0;      ///< steps of the run that were taken before counting began
  std::int64_t step_size = 1;  ///< step: the rate is multiplied by `factor` every so many steps after the warm-up
  double factor = 0.1;

  /// The rate of step `at`, counted from 0, which is step `first` of the run. After the run's end: that of its last
  /// step.
  [[nodiscard]] double operator()(std::int64_t at) const {
    at += first;
    if (at >= steps) at = steps - 1;
    if (at < warm_up) return rate * static_cast<double>(at + 1) / static_cast<double>(warm_up);
    const std::int64_t done = at - warm_up;
    switch (shape) {
      case Shape::constant:
        return rate;
      case Shape::cosine: {
        const std::int64_t length = steps - warm_up;
        const double share = length < 1 ? 1 : static_cast<double>(done) / static_cast<double>(length);
        return last_rate + (rate - last_rate) * (1 + std::cos(std::numbers::pi * share)) / 2;
      }
      case Shape::step: {
        const std::int64_t drops = done / (step_size < 1 ? 1 : step_size);
        return rate * std::pow(factor, static_cast<double>(drops));
      }
    }
    return rate;
  }
};

}  // namespace strata::train
