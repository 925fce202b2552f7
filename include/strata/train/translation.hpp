// The task of turning one sequence of words into another: batches of sentence pairs of about equal length, teacher
// forcing, smoothed cross entropy without the padding. What train/fit.hpp asks of a task, for networks of
// `SequencePairs`. Reading texts and making vocabularies is the host program's business.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <strata/core/at_exit.hpp>
#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/layers/sequence.hpp>
#include <strata/train/data.hpp>
#include <strata/train/fingerprint.hpp>
#include <strata/train/loss.hpp>
#include <strata/train/sequence_loss.hpp>
#include <strata/train/tape.hpp>

namespace strata::train {

/// Sentence pairs as numbers of words. A source is what the network is to read, as given to its `encode` later; a
/// target has neither begin nor end token: the task sets them.
struct SentencePairs {
  std::vector<std::vector<TokenId>> source, target;
  index_t source_words = 0;  ///< size of the source's vocabulary
  index_t target_words = 0;

  [[nodiscard]] index_t size() const noexcept { return static_cast<index_t>(source.size()); }

  /// Errors: no pairs, sources that are not one a target, an empty source, words that are padding or beyond the
  /// vocabulary (names the pair).
  [[nodiscard]] Status check() const {
    if (source.empty()) return Error("sentence pairs", "at least one pair", "none");
    if (source.size() != target.size())
      return Error("sentence pairs", std::to_string(source.size()) + " targets", std::to_string(target.size()));
    if (target_words <= unknown_token)
      return Error("sentence pairs", "a target vocabulary with the four special tokens", std::to_string(target_words));
    for (std::size_t i = 0; i < source.size(); ++i) {
      if (source[i].empty()) return Error("sentence pair " + std::to_string(i), "a source of at least 1 word", "none");
      for (const auto& [sentence, words] : {std::pair(&source[i], source_words), std::pair(&target[i], target_words)})
        for (const TokenId word : *sentence)
          if (word <= padding_token || word >= words)
            return Error("sentence pair " + std::to_string(i), "words from 1 to " + std::to_string(words - 1),
                         std::to_string(word));
    }
    return success();
  }
};

struct TranslationOptions {
  double smoothing = 0.1;  ///< of the target words, in [0, 1)
  /// Steps of a batch are rounded up to a multiple of it, so that there are few sizes of buffers.
  index_t step_multiple = 2;
};

/// A task of `fit` for networks that are called with `SequencePairs` and give logits for every target position.
template <class Scalar_>
class Translation {
 public:
  using Scalar = Scalar_;

  /// `data` has to outlive the task. Raises: what `SentencePairs::check` finds, options out of range.
  explicit Translation(const SentencePairs& data, const TranslationOptions& options = {})
      : data_(data), options_(options) {
    (void)data.check().value();
    if (!(options.smoothing >= 0 && options.smoothing < 1))
      raise(Error("translation", "a smoothing of at least 0 and below 1", std::to_string(options.smoothing)));
    if (options.step_multiple < 1)
      raise(Error("translation", "a step multiple of at least 1", std::to_string(options.step_multiple)));
  }
  explicit Translation(const SentencePairs&&,
                       const TranslationOptions& = {}) = delete;  // it would not outlive the task

  /// Training samples: sentence pairs.
  [[nodiscard]] index_t size() const noexcept { return data_.size(); }
  /// Tells runs on other data or with other options apart.
  [[nodiscard]] std::string fingerprint() const {
    Fingerprint hash;
    for (const auto* side : {&data_.source, &data_.target})
      for (const auto& sentence : *side) {
        hash.add_all(sentence);
        hash.add(sentence.size());
      }
    return std::to_string(size()) + " sentence pairs, " + hash.text() + ", smoothing " +
           std::to_string(options_.smoothing) + ", step multiple " + std::to_string(options_.step_multiple);
  }

  /// The samples of an epoch in an order that follows from seed and epoch alone: batches of about equal length, the
  /// batches shuffled. The last one of the order may be smaller than `batch`.
  [[nodiscard]] std::vector<std::uint32_t> order(std::uint64_t seed, std::uint64_t epoch, index_t batch) const {
    std::vector<std::uint32_t> all = shuffled(size(), seed, epoch);
    // Sorted within so many batches only, so that a batch does not meet the same sentences every epoch.
    const auto chunk = static_cast<std::size_t>(50 * batch);
    for (std::size_t first = 0; first < all.size(); first += chunk)
      std::stable_sort(all.begin() + static_cast<std::ptrdiff_t>(first),
                       all.begin() + static_cast<std::ptrdiff_t>(std::min(first + chunk, all.size())),
                       [&](std::uint32_t a, std::uint32_t b) {
                         const auto length = [&](std::uint32_t i) {
                           return std::pair(data_.target[i].size(), data_.source[i].size());
                         };
                         return length(a) < length(b);
                       });
    const auto size_of_batch = static_cast<std::size_t>(batch);
    std::vector<std::size_t> batches(all.size() / size_of_batch);
    for (std::size_t i = 0; i < batches.size(); ++i) batches[i] = i * size_of_batch;
    std::mt19937_64 random((seed ^ 0x9E3779B97F4A7C15U) * 1000003U + epoch);
    for (std::size_t i = batches.size(); i > 1; --i) std::swap(batches[i - 1], batches[random() % i]);
    std::vector<std::uint32_t> result;
    result.reserve(all.size());
    for (const std::size_t first : batches)
      for (std::size_t i = first; i < first + size_of_batch; ++i) result.push_back(all[i]);
    for (std::size_t i = batches.size() * size_of_batch; i < all.size(); ++i) result.push_back(all[i]);
    return result;
  }

  /// Makes pairs `indices` the current batch.
  void load(std::span<const std::uint32_t> indices, std::uint64_t /*seed*/ = 0) {
    const auto count = indices.size();
    std::size_t source_steps = 0;
    std::size_t steps = 0;
    for (const std::uint32_t i : indices) {
      source_steps = std::max(source_steps, data_.source[i].size());
      steps = std::max(steps, data_.target[i].size() + 1);
    }
    const auto rounded = [&](std::size_t value) {
      return static_cast<std::size_t>(round_up(static_cast<index_t>(value), options_.step_multiple));
    };
    source_steps = rounded(source_steps);
    steps = rounded(steps);
    source_.assign(source_steps * count, padding_token);
    words_.assign(steps * count, padding_token);
    targets_.assign(steps * count, padding_token);
    lengths_.resize(count);
    for (std::size_t b = 0; b < count; ++b) {
      const auto& source = data_.source[indices[b]];
      const auto& target = data_.target[indices[b]];
      lengths_[b] = static_cast<std::int32_t>(source.size());
      for (std::size_t s = 0; s < source.size(); ++s) source_[s * count + b] = source[s];
      for (std::size_t t = 0; t <= target.size(); ++t) {
        words_[t * count + b] = t == 0 ? begin_token : target[t - 1];
        targets_[t * count + b] = t == target.size() ? end_token : target[t];
      }
    }
    batch_ = static_cast<index_t>(count);
    pairs_ = {source_,
              {static_cast<index_t>(source_steps), batch_, lengths_},
              words_,
              {static_cast<index_t>(steps), batch_, {}}};
  }

  /// The current batch, as the network reads it, and the words that it should find.
  [[nodiscard]] const SequencePairs& pairs() const noexcept { return pairs_; }
  [[nodiscard]] std::span<const TokenId> targets() const noexcept { return targets_; }

  /// The network's logits for the current batch. Raises: a network with fewer outputs than the target's vocabulary.
  template <class Network>
  [[nodiscard]] Tensor<Scalar> run(const Network& network, Context<Scalar>& context) const {
    context_ = &context;
    Tensor<Scalar> logits = network(context, pairs_);
    detail::require_outputs(logits, data_.target_words);
    return logits;
  }

  /// `weight` times the loss of the current batch, whose logits `run` gave; adds its derivative to the logits'
  /// gradient. With a teacher, whose logits these are, `share` of the loss is distillation.
  double loss(const Tensor<Scalar>& logits, std::span<const Scalar> teacher, double share, double temperature,
              double weight) const {
    if (teacher.empty()) share = 0;
    double sum = 0;
    if (share < 1) sum += sequence_cross_entropy(*context_, logits, targets_, options_.smoothing, weight * (1 - share));
    if (share > 0) sum += sequence_distillation(*context_, logits, teacher, targets_, temperature, weight * share);
    return sum;
  }

  /// Mean cross entropy a target word, not smoothed, of the current batch; the exponential is the perplexity.
  [[nodiscard]] double plain_loss(const Tensor<Scalar>& logits) const {
    return sequence_cross_entropy(*context_, logits, targets_, 0, 0);
  }

 private:
  const SentencePairs& data_;
  TranslationOptions options_;
  index_t batch_ = 0;
  std::vector<TokenId> source_, words_, targets_;
  std::vector<std::int32_t> lengths_;
  SequencePairs pairs_;
  mutable Context<Scalar>* context_ = nullptr;  ///< of the last run: its threads compute the loss
};

/// Mean cross entropy a target word of `network` at `level` over all of `data`, without dropout. Raises: a level below
/// 0, batches of fewer than 1 pair.
template <class Network, class Scalar>
[[nodiscard]] double translation_loss(const Network& network, Context<Scalar>& context, const SentencePairs& data,
                                      Level level, index_t batch = 64) {
  if (level.index < 0) raise(Error("translation_loss", "a level of 0 or more", level.index));
  if (batch < 1) raise(Error("translation_loss", "batches of at least 1 pair", batch));
  Translation<Scalar> task(data);
  const strata::detail::AtExit reset(
      [&, training = std::exchange(context.training, false)]() noexcept { context.training = training; });
  const std::vector<std::uint32_t> order = task.order(0, 0, batch);
  double sum = 0;
  double words = 0;
  for (std::size_t first = 0; first < order.size(); first += static_cast<std::size_t>(batch)) {
    task.load(std::span(order).subspan(first, std::min(static_cast<std::size_t>(batch), order.size() - first)));
    context.begin(level);
    const double count = detail::count_words(task.targets());
    sum += count * task.plain_loss(task.run(network, context));
    words += count;
  }
  return sum / words;
}

}  // namespace strata::train
