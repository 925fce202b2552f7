// The task of telling point clouds apart: what `train::fit` and `train::Trainer` ask for, over `Clouds`.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <strata/train/fingerprint.hpp>
#include <strata/train/loss.hpp>
#include <strata/train/tape.hpp>
#include <strata/train/training.hpp>

#include "clouds.hpp"

namespace pointnet2 {

struct TaskOptions {
  Variation variation = {};
  double smoothing = 0;     ///< of labels, in [0, 1)
  index_t least_batch = 8;  ///< a smaller last batch is filled up: statistics over one or two clouds are worth nothing
};

template <class Scalar_>
class CloudTask {
 public:
  using Scalar = Scalar_;

  /// `data` has to outlive the task.
  explicit CloudTask(const Clouds& data, const TaskOptions& options = {}) : data_(data), options_(options) {}

  [[nodiscard]] index_t size() const noexcept { return data_.size(); }
  /// Tells runs on other data or with other options apart.
  [[nodiscard]] std::string fingerprint() const {
    strata::train::Fingerprint hash;
    hash.add_bytes(data_.coordinates.data(), data_.coordinates.size() * sizeof(float));
    hash.add_all(data_.labels);
    const Variation& v = options_.variation;
    return std::to_string(data_.size()) + " clouds, " + hash.text() + ", scale " + std::to_string(v.least_scale) +
           " to " + std::to_string(v.most_scale) + ", shift " + std::to_string(v.shift) + ", drop " +
           std::to_string(v.drop) + ", mirror " + std::to_string(v.mirror) + ", smoothing " +
           std::to_string(options_.smoothing) + ", least batch " + std::to_string(options_.least_batch);
  }

  /// Makes clouds `indices` the current batch, filled up with others if there are too few; these and the variations
  /// follow from `seed` alone.
  void load(std::span<const std::uint32_t> indices, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    indices_.assign(indices.begin(), indices.end());
    while (static_cast<index_t>(indices_.size()) < options_.least_batch)
      indices_.push_back(static_cast<std::uint32_t>(random() % static_cast<std::uint64_t>(size())));
    load_clouds(data_, indices_.data(), static_cast<index_t>(indices_.size()), clouds_, labels_, &random,
                options_.variation);
  }

  /// The network's logits for the current batch.
  template <class Network>
  [[nodiscard]] strata::train::Tensor<Scalar> run(const Network& network,
                                                  strata::train::Context<Scalar>& context) const {
    return network(context, strata::train::input_tensor(context, clouds_.data(), static_cast<index_t>(labels_.size()),
                                                        {data_.dimensions, 1, data_.points}));
  }

  /// `weight` times the loss of the current batch; adds its derivative to the logits' gradient. With a teacher, whose
  /// logits these are, `share` of the loss is distillation.
  double loss(const strata::train::Tensor<Scalar>& logits, std::span<const Scalar> teacher, double share,
              double temperature, double weight) const {
    using strata::train::cross_entropy;
    if (teacher.empty()) return cross_entropy(logits, labels_, options_.smoothing, weight);
    double sum = 0;
    if (share < 1) sum += cross_entropy(logits, labels_, options_.smoothing, weight * (1 - share));
    if (share > 0) sum += strata::train::distillation(logits, teacher, temperature, weight * share);
    return sum;
  }

 private:
  const Clouds& data_;
  TaskOptions options_;
  std::vector<std::uint32_t> indices_;
  std::vector<float> clouds_;
  std::vector<std::uint8_t> labels_;
};

}  // namespace pointnet2
