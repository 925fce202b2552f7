// What training minimises: cross entropy with label smoothing, and distillation from a teacher's logits. Both start the
// way back by filling the gradient of the logits.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>

#include <Eigen/Core>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/train/tape.hpp>

namespace strata::train {

namespace detail {

/// Raises for fewer logits a sample than `classes`, the labels' bound, and for pictures of logits.
template <class Scalar>
void require_outputs(const Tensor<Scalar>& logits, index_t classes) {
  const Shape shape = logits.shape();
  if (shape.channels < classes)
    raise(Error({"network"}, {"at least ", classes, " outputs, one a class"}, {shape.channels}));
  if (shape.height != 1 || shape.width != 1)
    raise(Error({"network"}, {"an output of ", shape.channels, " x 1 x 1"}, {strata::detail::text(shape)}));
}

}  // namespace detail

/// log(softmax(logits)) of one sample.
template <class Derived>
[[nodiscard]] Eigen::Array<typename Derived::Scalar, Eigen::Dynamic, 1> log_softmax(
    const Eigen::ArrayBase<Derived>& logits) {
  const auto largest = logits.maxCoeff();
  return logits - largest - std::log((logits - largest).exp().sum());
}

/// Mean over the batch of the cross entropy of `logits` (classes x 1 x 1) with `labels`; the target is 1 -
/// `smoothing` + smoothing / classes for the label and smoothing / classes for the others (arXiv 1512.00567). Adds
/// `weight` times its derivative to the logits' gradient. Preconditions: one label a sample, each below the number of
/// classes.
template <class Scalar>
double cross_entropy(const Tensor<Scalar>& logits, std::span<const std::uint8_t> labels, double smoothing = 0,
                     double weight = 1) {
  const index_t classes = logits.shape().channels;
  const auto values = logits.matrix();
  auto gradient = logits.gradient_matrix();
  const auto scale = static_cast<Scalar>(weight / static_cast<double>(logits.batch()));
  const auto floor = static_cast<Scalar>(smoothing / static_cast<double>(classes));
  double sum = 0;
  for (index_t i = 0; i < logits.batch(); ++i) {
    const Eigen::Array<Scalar, Eigen::Dynamic, 1> logs = log_softmax(values.col(i).array());
    const auto label = static_cast<index_t>(labels[static_cast<std::size_t>(i)]);
    sum -= static_cast<double>(static_cast<Scalar>(1 - smoothing) * logs[label] + floor * logs.sum());
    gradient.col(i).array() += scale * (logs.exp() - floor);
    gradient(label, i) -= scale * static_cast<Scalar>(1 - smoothing);
  }
  return weight * sum / static_cast<double>(logits.batch());
}

/// Mean over the batch of temperature^2 * KL(softmax(teacher / temperature) || softmax(logits / temperature)) (arXiv
/// 1503.02531). `teacher` holds the teacher's logits, sample by sample. Adds `weight` times its derivative to the
/// logits' gradient. Precondition: as many teacher logits as logits.
template <class Scalar>
double distillation(const Tensor<Scalar>& logits, std::span<const Scalar> teacher, double temperature,
                    double weight = 1) {
  using Column = Eigen::Array<Scalar, Eigen::Dynamic, 1>;
  const index_t classes = logits.shape().channels;
  const auto values = logits.matrix();
  auto gradient = logits.gradient_matrix();
  const auto t = static_cast<Scalar>(temperature);
  const auto scale = static_cast<Scalar>(weight / static_cast<double>(logits.batch())) * t;
  double sum = 0;
  for (index_t i = 0; i < logits.batch(); ++i) {
    const Eigen::Map<const Column> wanted(teacher.data() + i * classes, classes);
    const Column target = log_softmax(wanted / t);
    const Column found = log_softmax(values.col(i).array() / t);
    sum += static_cast<double>((target.exp() * (target - found)).sum() * t * t);
    gradient.col(i).array() += scale * (found.exp() - target.exp());
  }
  return weight * sum / static_cast<double>(logits.batch());
}

/// Samples whose largest logit is that of their label.
template <class Scalar>
[[nodiscard]] index_t count_correct(const Tensor<Scalar>& logits, std::span<const std::uint8_t> labels) {
  index_t correct = 0;
  for (index_t i = 0; i < logits.batch(); ++i) {
    index_t best = 0;
    logits.matrix().col(i).maxCoeff(&best);
    correct += static_cast<index_t>(best == static_cast<index_t>(labels[static_cast<std::size_t>(i)]));
  }
  return correct;
}

}  // namespace strata::train
