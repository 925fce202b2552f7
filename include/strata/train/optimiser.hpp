// Optimisers: SGD with momentum and AdamW, with the formulas and defaults of PyTorch. They leave pruned weights at zero
// and frozen strata untouched, and give the same bits on any number of threads.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <strata/core/types.hpp>
#include <strata/train/parameter.hpp>
#include <strata/train/tape.hpp>

namespace strata::train {

/// Which weights a step may change.
struct Trainable {
  /// Everything that levels below this one use stays as it is, bit for bit: weights of lower strata, their levels'
  /// normalisations, and what all levels share.
  int frozen_below = 0;
};

namespace detail {

/// Calls `f(first, last)` for ranges of 0 .. count-1, side by side where there are enough of them.
template <class Scalar, class F>
void for_ranges(Context<Scalar>& context, index_t count, F&& f) {
  constexpr index_t least = index_t{1} << 14U;
  if (count < least) return f(index_t{0}, count);
  context.for_parts(count, [&](index_t, index_t first, index_t last) { f(first, last); });
}

/// Calls `update(part of each array...)` until it has had all weights that may change: with references to single
/// numbers or with segments of the arrays, which fit the L1 cache, so that an update may go over them several times.
template <class Scalar, class F, class... Arrays>
void for_trainable(Context<Scalar>& context, const Parameter<Scalar>& parameter, const Trainable& trainable,
                   const F& update, Arrays&... arrays) {
  constexpr index_t longest = 1024;
  if (parameter.strata.empty()) {
    if (trainable.frozen_below > 0 && parameter.level < trainable.frozen_below) return;
    return for_ranges(context, parameter.value.size(), [&](index_t first, index_t last) {
      for (; first < last; first += longest) update(arrays.segment(first, std::min(longest, last - first))...);
    });
  }
  // Weights of a level are scattered: one at a time is faster than segments of a few.
  for_ranges(context, parameter.value.size(), [&](index_t first, index_t last) {
    for (index_t i = first; i < last; ++i) {
      const std::uint8_t stratum = parameter.strata[static_cast<std::size_t>(i)];
      if (stratum != StratumMap::absent && stratum >= trainable.frozen_below) update(arrays[i]...);
    }
  });
}

}  // namespace detail

/// v = momentum * v + g + decay * w;  w -= rate * (nesterov ? g + decay * w + momentum * v : v).
template <class Scalar>
class Sgd {
 public:
  struct Options {
    double momentum = 0.9;
    double decay = 0;
    bool nesterov = false;
  };

  Sgd(std::vector<Parameter<Scalar>*> parameters, const Options& options)
      : parameters_(std::move(parameters)), options_(options) {
    for (const auto* parameter : parameters_)
      velocity_.push_back(Parameter<Scalar>::Array::Zero(parameter->value.size()));
  }

  void step(Context<Scalar>& context, double rate, const Trainable& trainable = {}) {
    const auto momentum = static_cast<Scalar>(options_.momentum);
    for (std::size_t p = 0; p < parameters_.size(); ++p) {
      Parameter<Scalar>& parameter = *parameters_[p];
      const auto decay = static_cast<Scalar>(parameter.decay ? options_.decay : 0);
      const auto speed = static_cast<Scalar>(rate);
      const bool nesterov = options_.nesterov;
      const auto update = [=](auto&& w, auto&& v, const auto& g) {
        const auto gradient = g + decay * w;
        v = momentum * v + gradient;
        if (nesterov) {
          w -= speed * (gradient + momentum * v);
        } else {
          w -= speed * v;
        }
      };
      detail::for_trainable(context, parameter, trainable, update, parameter.value, velocity_[p], parameter.gradient);
    }
  }

  /// Calls `f(name, arrays)` for what a checkpoint keeps, one array a parameter.
  template <class F>
  void visit_state(F&& f) {
    f("velocity", velocity_);
  }
  /// The number of steps taken, for a state that was restored.
  void set_steps(std::int64_t /*steps*/) noexcept {}

 private:
  std::vector<Parameter<Scalar>*> parameters_;
  Options options_;
  std::vector<typename Parameter<Scalar>::Array> velocity_;
};

/// Adam (arXiv 1412.6980) with decoupled weight decay (arXiv 1711.05101), or with the decay added to the gradient as in
/// PyTorch's Adam.
template <class Scalar>
class AdamW {
 public:
  struct Options {
    double beta1 = 0.9;
    double beta2 = 0.999;
    double epsilon = 1e-8;
    double decay = 0.01;
    bool decoupled = true;  ///< false: decay * w is part of the gradient, so that it passes through the moments
  };

  AdamW(std::vector<Parameter<Scalar>*> parameters, const Options& options)
      : parameters_(std::move(parameters)), options_(options) {
    for (const auto* parameter : parameters_) {
      mean_.push_back(Parameter<Scalar>::Array::Zero(parameter->value.size()));
      square_.push_back(Parameter<Scalar>::Array::Zero(parameter->value.size()));
    }
  }

  void step(Context<Scalar>& context, double rate, const Trainable& trainable = {}) {
    ++steps_;
    const double correction1 = 1 - std::pow(options_.beta1, static_cast<double>(steps_));
    const double correction2 = 1 - std::pow(options_.beta2, static_cast<double>(steps_));
    const auto beta1 = static_cast<Scalar>(options_.beta1);
    const auto beta2 = static_cast<Scalar>(options_.beta2);
    const auto size = static_cast<Scalar>(rate / correction1);
    const auto root = static_cast<Scalar>(1 / std::sqrt(correction2));
    for (std::size_t p = 0; p < parameters_.size(); ++p) {
      Parameter<Scalar>& parameter = *parameters_[p];
      const bool decays = parameter.decay;
      const auto shrink = static_cast<Scalar>(decays && options_.decoupled ? 1 - rate * options_.decay : 1);
      const auto pull = static_cast<Scalar>(decays && !options_.decoupled ? options_.decay : 0);
      const auto epsilon = static_cast<Scalar>(options_.epsilon);
      const auto update = [=](auto&& w, auto&& mean, auto&& square, const auto& g) {
        using std::sqrt;
        const auto gradient = g + pull * w;
        mean += (1 - beta1) * (gradient - mean);
        square += (1 - beta2) * (gradient * gradient - square);
        w = w * shrink - size * mean / (sqrt(square) * root + epsilon);
      };
      detail::for_trainable(context, parameter, trainable, update, parameter.value, mean_[p], square_[p],
                            parameter.gradient);
    }
  }

  template <class F>
  void visit_state(F&& f) {
    f("mean", mean_);
    f("square", square_);
  }
  void set_steps(std::int64_t steps) noexcept { steps_ = steps; }

 private:
  std::vector<Parameter<Scalar>*> parameters_;
  Options options_;
  std::vector<typename Parameter<Scalar>::Array> mean_, square_;
  std::int64_t steps_ = 0;
};

/// Zeroes all gradients before a step's backward passes.
template <class Scalar>
void clear_gradients(Context<Scalar>& context, const std::vector<Parameter<Scalar>*>& parameters) {
  for (auto* parameter : parameters)
    detail::for_ranges(context, parameter->gradient.size(), [&](index_t first, index_t last) {
      parameter->gradient.segment(first, last - first).setZero();
    });
}

/// Scales all gradients down so that their norm, taken together, is at most `largest`; returns what it was (arXiv
/// 1211.5063). The same bits on any number of threads.
template <class Scalar>
double clip_gradients(Context<Scalar>& context, const std::vector<Parameter<Scalar>*>& parameters, double largest) {
  double total = 0;
  for (const auto* parameter : parameters) {
    std::array<double, static_cast<std::size_t>(Context<Scalar>::parts)> sums{};
    context.for_parts(parameter->gradient.size(), [&](index_t part, index_t first, index_t last) {
      sums[static_cast<std::size_t>(part)] =
          static_cast<double>(parameter->gradient.segment(first, last - first).square().sum());
    });
    for (const double sum : sums) total += sum;
  }
  const double norm = std::sqrt(total);
  if (!(norm > largest)) return norm;
  const auto factor = static_cast<Scalar>(largest / norm);
  for (auto* parameter : parameters)
    context.for_parts(parameter->gradient.size(), [&](index_t, index_t first, index_t last) {
      parameter->gradient.segment(first, last - first) *= factor;
    });
  return norm;
}

}  // namespace strata::train
