// Labelled pictures in memory and the batches of an epoch. Reading files is the host program's business.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>

namespace strata::train {

/// How pictures are varied in training.
struct Variation {
  index_t shift = 0;  ///< pixels, at most, in every direction; zeros come in
  bool flip = false;  ///< left and right, half the time
  index_t hole = 0;   ///< side of a square of the mean value, its centre anywhere in the picture (arXiv 1708.04552)

  /// Errors: a negative number.
  [[nodiscard]] Status check() const {
    if (shift < 0) return Error("variation.shift", "at least 0", shift);
    if (hole < 0) return Error("variation.hole", "at least 0", hole);
    return success();
  }
  friend bool operator==(const Variation&, const Variation&) = default;
};

namespace detail {

/// Sets a square of `picture` to the mean, which is zero once normalised. What of it lies outside is lost.
inline void cut_hole(float* picture, const Shape& shape, index_t hole, std::mt19937_64& random) {
  const auto anywhere = [&](index_t extent) {
    return static_cast<index_t>(random() % static_cast<std::uint64_t>(extent)) - hole / 2;
  };
  const index_t top = anywhere(shape.height);
  const index_t left = anywhere(shape.width);
  const index_t first = std::max<index_t>(0, left);
  const index_t last = std::min(shape.width, left + hole);
  for (index_t c = 0; c < shape.channels; ++c)
    for (index_t y = std::max<index_t>(0, top); y < std::min(shape.height, top + hole); ++y) {
      float* row = picture + (c * shape.height + y) * shape.width;
      std::fill(row + first, row + last, 0.0F);
    }
}

}  // namespace detail

/// Pictures of bytes, [picture][channel][row][column], and a label each.
struct Dataset {
  Shape shape = {};
  index_t classes = 0;
  std::vector<std::uint8_t> pixels = {};
  std::vector<std::uint8_t> labels = {};
  double mean = 0;       ///< subtracted from pixel / 255
  double deviation = 1;  ///< what the difference is divided by
  /// The same for each channel apart, as checkpoints of others may want it (ImageNet's are normalised so); empty: the
  /// two above for all.
  std::vector<double> channel_means = {};
  std::vector<double> channel_deviations = {};

  [[nodiscard]] index_t size() const noexcept { return static_cast<index_t>(labels.size()); }
  /// What `channel` is normalised by. Precondition: there are as many numbers as channels, or none.
  [[nodiscard]] double mean_of(index_t channel) const {
    return channel_means.empty() ? mean : channel_means[static_cast<std::size_t>(channel)];
  }
  [[nodiscard]] double deviation_of(index_t channel) const {
    return channel_deviations.empty() ? deviation : channel_deviations[static_cast<std::size_t>(channel)];
  }

  /// Errors: no pictures, no shape, as many pixels as the shape does not give, classes below 1 or above 256, a label
  /// that is no class, a mean that is not finite, a deviation that is not or not above 0, means or deviations of some
  /// channels only.
  [[nodiscard]] Status check() const {
    if (labels.empty()) return Error("dataset", "at least one picture", "none");
    if (shape.channels < 1 || shape.height < 1 || shape.width < 1)
      return Error("dataset", "a shape of at least 1 x 1 x 1", strata::detail::text(shape));
    if (static_cast<index_t>(pixels.size()) != size() * shape.size())
      return Error("dataset", std::to_string(size() * shape.size()) + " pixels", std::to_string(pixels.size()));
    if (classes < 1 || classes > 256) return Error("dataset", "1 to 256 classes", classes);
    for (const std::uint8_t label : labels)
      if (label >= classes) return Error("dataset", "labels below " + std::to_string(classes), std::to_string(label));
    if (Status status = check_channels(); !status) return status;
    for (index_t channel = 0; channel < shape.channels; ++channel) {
      if (!std::isfinite(mean_of(channel))) return Error("dataset", "a finite mean", mean_of(channel));
      if (!std::isfinite(deviation_of(channel)) || deviation_of(channel) <= 0)
        return Error("dataset", "a finite deviation above 0", deviation_of(channel));
    }
    return success();
  }

  /// Errors: means or deviations of some channels only.
  [[nodiscard]] Status check_channels() const {
    for (const auto* numbers : {&channel_means, &channel_deviations})
      if (!numbers->empty() && static_cast<index_t>(numbers->size()) != shape.channels)
        return Error({"dataset"}, {"a mean and a deviation for each of ", shape.channels, " channels, or none"},
                     {channel_means.size(), " and ", channel_deviations.size()});
    return success();
  }

  /// Takes mean and deviation from the pixels, of all channels together.
  void normalise() {
    std::tie(mean, deviation) = statistics();
    channel_means.clear();
    channel_deviations.clear();
  }

  /// Mean and deviation of the pixels.
  [[nodiscard]] std::pair<double, double> statistics() const {
    double sum = 0;
    double squares = 0;
    for (const std::uint8_t pixel : pixels) {
      const double value = pixel / 255.0;
      sum += value;
      squares += value * value;
    }
    const auto n = static_cast<double>(pixels.size());
    const double average = sum / n;
    return {average, std::sqrt(std::max(squares / n - average * average, 1e-12))};
  }

  /// Pictures first .. last-1 as a dataset of their own. Raises: a range that is not within the pictures.
  [[nodiscard]] Dataset slice(index_t first, index_t last) const {
    if (first < 0 || last < first || last > size())
      raise(Error({"slice of a dataset"}, {"a range within 0 to ", size()}, {first, " to ", last}));
    Dataset part{shape, classes, {}, {}, mean, deviation, channel_means, channel_deviations};
    part.pixels.assign(pixels.begin() + first * shape.size(), pixels.begin() + last * shape.size());
    part.labels.assign(labels.begin() + first, labels.begin() + last);
    return part;
  }

  /// The `count` pictures `indices`, normalised, as batch x channels x height x width, and their labels; with `random`
  /// each is varied. Raises: an index that no picture has, means or deviations of some channels only.
  void batch(const std::uint32_t* indices, index_t count, std::vector<float>& pictures,
             std::vector<std::uint8_t>& batch_labels, std::mt19937_64* random = nullptr,
             const Variation& variation = {}) const {
    for (index_t i = 0; i < count; ++i)
      if (indices[i] >= labels.size())
        raise(Error({"batch of a dataset"}, {"pictures 0 to ", size() - 1}, {indices[i]}));
    (void)check_channels().value();
    pictures.resize(static_cast<std::size_t>(count * shape.size()));
    batch_labels.resize(static_cast<std::size_t>(count));
    std::vector<std::array<float, 256>> values(static_cast<std::size_t>(shape.channels));  // by channel and pixel
    for (index_t c = 0; c < shape.channels; ++c)
      for (std::size_t pixel = 0; pixel < 256; ++pixel)
        values[static_cast<std::size_t>(c)][pixel] =
            static_cast<float>((static_cast<double>(pixel) / 255.0 - mean_of(c)) / deviation_of(c));
    for (index_t i = 0; i < count; ++i) {
      const index_t source = static_cast<index_t>(indices[i]) * shape.size();
      batch_labels[static_cast<std::size_t>(i)] = labels[indices[i]];
      const auto span = static_cast<std::uint64_t>(2 * variation.shift + 1);
      const index_t dy = random == nullptr ? 0 : static_cast<index_t>((*random)() % span) - variation.shift;
      const index_t dx = random == nullptr ? 0 : static_cast<index_t>((*random)() % span) - variation.shift;
      const bool mirrored = random != nullptr && variation.flip && (*random)() % 2 == 0;
      for (index_t c = 0; c < shape.channels; ++c) {
        const std::array<float, 256>& value = values[static_cast<std::size_t>(c)];
        float* const plane = pictures.data() + (i * shape.channels + c) * shape.height * shape.width;
        std::fill(plane, plane + shape.height * shape.width, value[0]);
        for (index_t y = std::max<index_t>(0, dy); y < std::min(shape.height, shape.height + dy); ++y)
          for (index_t x = std::max<index_t>(0, dx); x < std::min(shape.width, shape.width + dx); ++x) {
            const index_t sx = mirrored ? shape.width - 1 - (x - dx) : x - dx;
            const index_t from = source + (c * shape.height + y - dy) * shape.width + sx;
            plane[y * shape.width + x] = value[pixels[static_cast<std::size_t>(from)]];
          }
      }
      if (random != nullptr && variation.hole > 0)
        detail::cut_hole(pictures.data() + i * shape.size(), shape, variation.hole, *random);
    }
  }
};

/// The numbers 0 .. size-1 in an order that follows from `seed` and `epoch` alone.
[[nodiscard]] inline std::vector<std::uint32_t> shuffled(index_t size, std::uint64_t seed, std::uint64_t epoch) {
  std::vector<std::uint32_t> order(static_cast<std::size_t>(size));
  std::iota(order.begin(), order.end(), 0U);
  std::mt19937_64 random(seed * 1000003U + epoch);
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  return order;
}

namespace detail {

/// Makes samples `indices` the current batch of `task`, for training of levels or of the dense model: a task may vary
/// the two differently.
template <class Task>
void load_samples(Task& task, std::span<const std::uint32_t> indices, std::uint64_t seed, bool levels) {
  if constexpr (requires { task.load(indices, seed, levels); }) {
    task.load(indices, seed, levels);
  } else {
    task.load(indices, seed);
  }
}

/// Batches of a task for measurements of levels: its samples in an order that follows from a seed, over and over.
template <class Task>
class BatchesInTurn {
 public:
  /// `task` has to outlive it. Batches are as large as the task has samples, `batch` at most. Precondition: both are
  /// at least 1.
  BatchesInTurn(Task& task, index_t batch, std::uint64_t seed)
      : task_(task),
        seed_(seed),
        order_(shuffled(task.size(), seed, 0)),
        count_(std::min(order_.size(), static_cast<std::size_t>(batch))) {}

  /// Makes batch number `batch` the task's current one.
  void load(index_t batch) const {
    const std::size_t first = static_cast<std::size_t>(batch) * count_ % (order_.size() - count_ + 1);
    load_samples(task_, {order_.data() + first, count_}, seed_ * 1'000'003U + static_cast<std::uint64_t>(batch), true);
  }

 private:
  Task& task_;
  std::uint64_t seed_;
  std::vector<std::uint32_t> order_;
  std::size_t count_;
};

}  // namespace detail

}  // namespace strata::train
