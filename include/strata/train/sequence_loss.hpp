// What training on sequences minimises: cross entropy with label smoothing over a vocabulary and distillation from a
// teacher's logits, both over the words that are there, not the padding. See train/loss.hpp for the formulas.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include <Eigen/Core>

#include <strata/core/types.hpp>
#include <strata/layers/sequence.hpp>
#include <strata/train/tape.hpp>

namespace strata::train {

namespace detail {

/// Sum over the parts, in their order, of `f(position)` for positions whose target is not padding.
template <class Scalar, class F>
double sum_over_words(Context<Scalar>& context, std::span<const TokenId> targets, F&& f) {
  std::array<double, static_cast<std::size_t>(Context<Scalar>::parts)> sums{};
  context.for_parts(static_cast<index_t>(targets.size()), [&](index_t part, index_t first, index_t last) {
    double sum = 0;
    for (index_t n = first; n < last; ++n)
      if (targets[static_cast<std::size_t>(n)] != padding_token) sum += f(n);
    sums[static_cast<std::size_t>(part)] = sum;
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

/// Words that are not padding; at least 1, as a divisor.
[[nodiscard]] inline double count_words(std::span<const TokenId> targets) {
  const auto padding = std::count(targets.begin(), targets.end(), padding_token);
  return std::max(1.0, static_cast<double>(targets.size()) - static_cast<double>(padding));
}

}  // namespace detail

/// Mean over the target words that are not padding of the cross entropy of `logits` (vocabulary x 1 x 1, a sample a
/// position) with `targets`, smoothed by `smoothing`. Adds `weight` times its derivative to the logits' gradient if
/// `weight` is above 0, and returns `weight` times the loss; else the plain loss. Preconditions: a target a position,
/// below the vocabulary.
template <class Scalar>
double sequence_cross_entropy(Context<Scalar>& context, const Tensor<Scalar>& logits, std::span<const TokenId> targets,
                              double smoothing, double weight) {
  using Array = Eigen::Array<Scalar, Eigen::Dynamic, 1>;
  const index_t words = logits.shape().channels;
  const double count = detail::count_words(targets);
  const auto scale = static_cast<Scalar>(weight / count);
  const auto floor = static_cast<Scalar>(smoothing / static_cast<double>(words));
  const auto peak = static_cast<Scalar>(1 - smoothing);
  const Scalar* const values = logits.value().data();
  Scalar* const gradient = weight > 0 ? logits.gradient().data() : nullptr;
  const double sum = detail::sum_over_words(context, targets, [&](index_t n) {
    const Eigen::Map<const Array> z(values + n * words, words);
    const auto target = static_cast<index_t>(targets[static_cast<std::size_t>(n)]);
    const Scalar largest = z.maxCoeff();
    Scalar total = 0;
    if (gradient == nullptr) {
      total = (z - largest).exp().sum();
    } else {
      // A block at a time, so that each exponential is computed once and found in the cache again.
      thread_local Array exponentials;
      if (exponentials.size() < words) exponentials.resize(words);
      exponentials.head(words) = (z - largest).exp();
      total = exponentials.head(words).sum();
      Eigen::Map<Array> d(gradient + n * words, words);
      d += exponentials.head(words) * (scale / total) - scale * floor;
      d[target] -= scale * peak;
    }
    const Scalar log_total = largest + std::log(total);
    double loss = static_cast<double>(peak) * static_cast<double>(log_total - z[target]);
    if (smoothing > 0)
      loss += static_cast<double>(floor) *
              (static_cast<double>(words) * static_cast<double>(log_total) - static_cast<double>(z.sum()));
    return loss;
  });
  return (weight > 0 ? weight : 1) * sum / count;
}

/// Mean over the target words that are not padding of temperature^2 * KL(softmax(teacher / temperature) ||
/// softmax(logits / temperature)). `teacher` holds the teacher's logits, position by position. Adds `weight` times its
/// derivative to the logits' gradient. Precondition: as many teacher logits as logits.
template <class Scalar>
double sequence_distillation(Context<Scalar>& context, const Tensor<Scalar>& logits, std::span<const Scalar> teacher,
                             std::span<const TokenId> targets, double temperature, double weight) {
  using Array = Eigen::Array<Scalar, Eigen::Dynamic, 1>;
  const index_t words = logits.shape().channels;
  const double count = detail::count_words(targets);
  const auto inverse = static_cast<Scalar>(1 / temperature);
  const auto scale = static_cast<Scalar>(weight / count * temperature);
  const Scalar* const values = logits.value().data();
  Scalar* const gradient = logits.gradient().data();
  const double sum = detail::sum_over_words(context, targets, [&](index_t n) {
    const Eigen::Map<const Array> z(values + n * words, words);
    const Eigen::Map<const Array> wanted(teacher.data() + n * words, words);
    thread_local Array found_part, wanted_part;
    if (found_part.size() < words) found_part.resize(words);
    if (wanted_part.size() < words) wanted_part.resize(words);
    auto p = found_part.head(words);
    auto q = wanted_part.head(words);
    const Scalar z_top = z.maxCoeff();
    const Scalar wanted_top = wanted.maxCoeff();
    p = ((z - z_top) * inverse).exp();
    q = ((wanted - wanted_top) * inverse).exp();
    const Scalar p_sum = p.sum();
    const Scalar q_sum = q.sum();
    Eigen::Map<Array>(gradient + n * words, words) += p * (scale / p_sum) - q * (scale / q_sum);
    // sum of q (log q - log p), the logarithms taken apart
    const Scalar cross = (q * (wanted - z)).sum() / q_sum * inverse;
    const double shift = static_cast<double>((z_top - wanted_top) * inverse) + std::log(static_cast<double>(p_sum)) -
                         std::log(static_cast<double>(q_sum));
    return static_cast<double>(cross) + shift;
  });
  return weight * temperature * temperature * sum / count;
}

/// Target words that are not padding and are the most probable ones of their positions.
template <class Scalar>
[[nodiscard]] index_t count_correct_words(const Tensor<Scalar>& logits, std::span<const TokenId> targets) {
  index_t correct = 0;
  for (std::size_t n = 0; n < targets.size(); ++n) {
    if (targets[n] == padding_token) continue;
    index_t best = 0;
    logits.matrix().col(static_cast<index_t>(n)).maxCoeff(&best);
    correct += static_cast<index_t>(best == static_cast<index_t>(targets[n]));
  }
  return correct;
}

}  // namespace strata::train
