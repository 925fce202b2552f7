// The task of telling pictures' classes apart: batches, loss and accuracy over a `Dataset`. What `fit` asks of a task
// is what this class has; networks with other inputs bring their own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <strata/core/at_exit.hpp>
#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/layers/exchange.hpp>
#include <strata/train/data.hpp>
#include <strata/train/fingerprint.hpp>
#include <strata/train/loss.hpp>
#include <strata/train/tape.hpp>
#include <strata/train/training.hpp>

namespace strata::train {

/// How pictures are varied in training, and the target's smoothing.
struct ClassificationOptions {
  Variation variation = {};
  /// While levels train; none: `variation`. A sparse level fits its pictures less closely than the dense model, and has
  /// less to gain from harder ones.
  std::optional<Variation> level_variation = {};
  double smoothing = 0;  ///< of labels, in [0, 1)
};

/// A task of `fit`: `size`, `fingerprint`, `load`, `run`, `loss`.
template <class Scalar_>
class Classification {
 public:
  using Scalar = Scalar_;

  /// `data` has to outlive the task. Raises: what `Dataset::check` and `Variation::check` find, smoothing outside [0,
  /// 1).
  explicit Classification(const Dataset& data, const ClassificationOptions& options = {})
      : data_(data), options_(options) {
    (void)data.check().value();
    (void)options.variation.check().value();
    if (options.level_variation) (void)options.level_variation->check().value();
    if (!(options.smoothing >= 0 && options.smoothing < 1))
      raise(Error("classification.smoothing", "at least 0 and below 1", options.smoothing));
  }
  explicit Classification(const Dataset&&,
                          const ClassificationOptions& = {}) = delete;  // it would not outlive the task

  /// Training samples.
  [[nodiscard]] index_t size() const noexcept { return data_.size(); }
  /// Tells runs on other data or with other options apart.
  [[nodiscard]] std::string fingerprint() const {
    Fingerprint hash;
    hash.add_all(data_.pixels);
    hash.add_all(data_.labels);
    const Variation& variation = options_.variation;
    std::string text = std::to_string(data_.size()) + " pictures, " + hash.text() + ", shift " +
                       std::to_string(variation.shift) + ", flip " + std::to_string(variation.flip) + ", smoothing " +
                       std::to_string(options_.smoothing);
    if (std::pair(data_.mean, data_.deviation) != data_.statistics())
      text += ", mean " + strata::detail::number_text(data_.mean) + ", deviation " +
              strata::detail::number_text(data_.deviation);
    for (std::size_t c = 0; c < data_.channel_means.size(); ++c)
      text += ", mean " + std::to_string(c) + " " + strata::detail::number_text(data_.channel_means[c]);
    for (std::size_t c = 0; c < data_.channel_deviations.size(); ++c)
      text += ", deviation " + std::to_string(c) + " " + strata::detail::number_text(data_.channel_deviations[c]);
    if (variation.hole > 0) text += ", hole " + std::to_string(variation.hole);
    if (const auto& levels = options_.level_variation; levels && *levels != variation)
      text += ", level_shift " + std::to_string(levels->shift) + ", level_flip " + std::to_string(levels->flip) +
              ", level_hole " + std::to_string(levels->hole);
    return text;
  }

  /// Makes samples `indices` the current batch; variations follow from `seed` alone. `levels`: for training of levels,
  /// not of the dense model.
  void load(std::span<const std::uint32_t> indices, std::uint64_t seed, bool levels = false) {
    std::mt19937_64 random(seed);
    data_.batch(indices.data(), static_cast<index_t>(indices.size()), pictures_, labels_, &random,
                levels ? options_.level_variation.value_or(options_.variation) : options_.variation);
  }
  /// As `load`, without variations.
  void load_plain(std::span<const std::uint32_t> indices) {
    data_.batch(indices.data(), static_cast<index_t>(indices.size()), pictures_, labels_);
  }

  /// The network's logits for the current batch. Raises: a network for pictures of another shape, or with fewer outputs
  /// than there are classes.
  template <class Network>
  [[nodiscard]] Tensor<Scalar> run(const Network& network, Context<Scalar>& context) const {
    if constexpr (requires { network.input_shape(); })
      if (const Shape wanted = network.input_shape(); wanted != data_.shape)
        raise(Error("dataset", "pictures of " + strata::detail::text(wanted) + ", the network's input",
                    strata::detail::text(data_.shape)));
    Tensor<Scalar> logits =
        network(context, input_tensor(context, pictures_.data(), static_cast<index_t>(labels_.size()), data_.shape));
    detail::require_outputs(logits, data_.classes);
    return logits;
  }

  /// `weight` times the loss of the current batch; adds its derivative to the logits' gradient. With a teacher, whose
  /// logits these are, `share` of the loss is distillation.
  double loss(const Tensor<Scalar>& logits, std::span<const Scalar> teacher, double share, double temperature,
              double weight) const {
    if (teacher.empty()) return cross_entropy(logits, labels_, options_.smoothing, weight);
    double sum = 0;
    if (share < 1) sum += cross_entropy(logits, labels_, options_.smoothing, weight * (1 - share));
    if (share > 0) sum += distillation(logits, teacher, temperature, weight * share);
    return sum;
  }

  [[nodiscard]] index_t correct(const Tensor<Scalar>& logits) const { return count_correct(logits, labels_); }

 private:
  const Dataset& data_;
  ClassificationOptions options_;
  std::vector<float> pictures_;
  std::vector<std::uint8_t> labels_;
};

/// Share of `data` that `network`, of the training family, classifies correctly at `level` with its stored statistics.
/// Raises: a batch below 1, a level below 0 or that the network was not made ready for.
template <class Network, class Scalar>
[[nodiscard]] double accuracy(const Network& network, Context<Scalar>& context, const Dataset& data, Level level,
                              index_t batch = 250) {
  if (batch < 1) raise(Error("accuracy", "a batch of at least 1", batch));
  if (level.index < 0) raise(Error("accuracy", "a level of at least 0", level.index));
  Classification<Scalar> task(data);
  const strata::detail::AtExit reset(
      [&, training = std::exchange(context.training, false)]() noexcept { context.training = training; });
  std::vector<std::uint32_t> indices;
  index_t correct = 0;
  for (index_t first = 0; first < data.size(); first += batch) {
    indices.clear();
    for (index_t i = first; i < std::min(first + batch, data.size()); ++i)
      indices.push_back(static_cast<std::uint32_t>(i));
    task.load_plain(indices);
    context.begin(level);
    correct += task.correct(task.run(network, context));
  }
  return static_cast<double>(correct) / static_cast<double>(data.size());
}

}  // namespace strata::train
