// How much slower than its profile a run goes at present: an estimate from the stages that ran, kept across requests.
// What follows from it for the choice of levels is runtime/router.hpp's business.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace strata {

/// How the slow-down is estimated.
enum class Estimator : std::uint8_t {
  exponential,  ///< exponentially weighted mean and variance
  kalman        ///< scalar Kalman filter with adaptive process noise, as in ALERT (USENIX ATC 2020)
};

struct SlowDownOptions {
  Estimator estimator = Estimator::exponential;
  /// Share of the new ratio in the exponentially weighted mean after a stage of length 1, which is the router's
  /// business.
  double gain = 0.7;
  /// The same for the lasting slow-down.
  double lasting_gain = 0.02;
  /// Kalman filter: least variance that the slow-down gains in a stage of length 1.
  double process_noise = 1e-3;
  /// Kalman filter: share of the last innovation in the process noise.
  double adaptation = 0.3;
};

/// Mean and deviation of the ratio between the time a stage takes and its profile's median. Starts at 1. Values, no
/// memory: `observe` is safe in a real-time thread.
class SlowDown {
 public:
  /// Ratios are cut to this range: a clock that jumped must not spoil the estimate for long.
  static constexpr double least = 1.0 / 16;
  static constexpr double most = 64;
  /// See `usual`: above the jitter of a stage, below what a lost time slice does to one.
  static constexpr double usual_step = 0.1;

  SlowDown() = default;
  explicit SlowDown(const SlowDownOptions& options) noexcept
      : options_(options), process_noise_(options.process_noise) {}

  [[nodiscard]] double mean() const noexcept { return mean_; }
  /// The mean over some 50 stages of length 1 instead of the last one or two: what a single delay does not move.
  [[nodiscard]] double lasting() const noexcept { return lasting_; }
  /// The same, but a stage moves it as if its ratio were at most `usual_step` away (Huber's estimate of location): how
  /// slow the machine is at present, whatever takes the core away now and then.
  [[nodiscard]] double usual() const noexcept { return usual_; }
  /// Of the slow-down that the next stage will meet.
  [[nodiscard]] double deviation() const noexcept {
    return std::sqrt(options_.estimator == Estimator::kalman ? variance_ + process_noise_ : variance_);
  }

  /// A stage took `ratio` times its median. `length` is its undisturbed time in the router's unit: the exponentially
  /// weighted mean keeps (1 - gain)^length of the old value; `noise` the variance of the ratio when nothing disturbs. A
  /// ratio that is not above zero (the clock stood still or went back) tells nothing, nor does anything that is not
  /// finite.
  void observe(double ratio, double length, double noise) noexcept {
    if (!(ratio > 0 && length >= 0 && noise >= 0 && std::isfinite(ratio) && std::isfinite(length) &&
          std::isfinite(noise)))
      return;
    ratio = ratio < least ? least : (ratio > most ? most : ratio);
    const double lasting_gain = 1 - std::pow(1 - options_.lasting_gain, length);
    lasting_ += lasting_gain * (ratio - lasting_);
    usual_ += lasting_gain * std::clamp(ratio - usual_, -usual_step, usual_step);
    const double innovation = ratio - mean_;
    if (options_.estimator == Estimator::exponential) {
      const double retained = std::pow(1 - options_.gain, length);
      mean_ += (1 - retained) * innovation;
      variance_ = retained * (variance_ + (1 - retained) * innovation * innovation);
      return;
    }
    // No ratio varies by more; and 0/0 and infinities would stay.
    const double predicted = std::min(variance_ + process_noise_ * length, most * most);
    const double gain = predicted > 0 ? predicted / (predicted + noise) : 0;
    const double step = gain * innovation;
    mean_ += step;
    variance_ = (1 - gain) * predicted;
    const double adapted = (1 - options_.adaptation) * process_noise_ + options_.adaptation * step * step;
    process_noise_ = adapted > options_.process_noise ? adapted : options_.process_noise;
  }

  /// Forgets everything observed.
  void reset() noexcept { *this = SlowDown(options_); }

 private:
  SlowDownOptions options_{};
  double mean_ = 1;
  double lasting_ = 1;
  double usual_ = 1;
  double variance_ = 0;
  double process_noise_ = 0;
};

}  // namespace strata
