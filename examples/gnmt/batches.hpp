// Sentence pairs as numbers, put into batches of similar length, so that little is padded.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>

#include "corpus.hpp"
#include "vocabulary.hpp"

namespace gnmt {

using strata::index_t;

/// Pairs of sentences as numbers of their vocabularies, without begin and end.
struct Pairs {
  std::vector<std::vector<std::int32_t>> source;
  std::vector<std::vector<std::int32_t>> target;  ///< as many as of `source`
  index_t empty = 0;                              ///< pairs left out because a side has no word
  index_t too_long = 0;                           ///< pairs left out because a side is too long

  [[nodiscard]] index_t size() const noexcept { return static_cast<index_t>(source.size()); }
};

/// The pairs of `text` that can be learnt from: with at least one and at most `longest` words or pieces on either side.
[[nodiscard]] inline Pairs encode_pairs(const ParallelText& text, const Vocabulary& source, const Vocabulary& target,
                                        index_t longest) {
  Pairs pairs;
  for (std::size_t i = 0; i < text.source.size(); ++i) {
    auto from = source.encode(text.source[i]);
    auto to = target.encode(text.target[i]);
    const auto most = static_cast<index_t>(std::max(from.size(), to.size()));
    if (from.empty() || to.empty()) {
      ++pairs.empty;
    } else if (most > longest) {
      ++pairs.too_long;
    } else {
      pairs.source.push_back(std::move(from));
      pairs.target.push_back(std::move(to));
    }
  }
  return pairs;
}

/// Pairs 0 .. size-1 in batches of `batch` (the last may be smaller): ordered by the length of the target, then of the
/// source, and where both are equal by chance. The same seed gives the same batches. Precondition: batch >= 1.
[[nodiscard]] inline std::vector<std::vector<std::uint32_t>> batches_by_length(const Pairs& pairs, index_t batch,
                                                                               std::uint64_t seed) {
  std::vector<std::uint32_t> order(pairs.source.size());
  std::iota(order.begin(), order.end(), 0U);
  std::mt19937_64 random(seed);
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  std::stable_sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
    const auto& [sources, targets, empty, too_long] = pairs;
    return targets[a].size() != targets[b].size() ? targets[a].size() < targets[b].size()
                                                  : sources[a].size() < sources[b].size();
  });
  std::vector<std::vector<std::uint32_t>> batches;
  const auto size = static_cast<std::size_t>(batch);
  for (std::size_t first = 0; first < order.size(); first += size) {
    const std::size_t last = std::min(order.size(), first + size);
    batches.emplace_back(order.begin() + static_cast<std::ptrdiff_t>(first),
                         order.begin() + static_cast<std::ptrdiff_t>(last));
  }
  return batches;
}

/// One batch for teacher forcing; sentences are rows, filled up with padding_id at their end.
struct Batch {
  index_t size = 0;
  index_t source_length = 0;                 ///< of the longest source, end included
  index_t target_length = 0;                 ///< of the longest target, end included
  std::vector<std::int32_t> source;          ///< [sentence][source_length], each ends with end_id
  std::vector<std::int32_t> input;           ///< [sentence][target_length]: begin_id and the target
  std::vector<std::int32_t> output;          ///< [sentence][target_length]: the target and end_id
  std::vector<std::int32_t> source_lengths;  ///< of each sentence, end included
  std::vector<std::int32_t> target_lengths;

  /// Makes pairs `indices` the batch. Memory is kept from one call to the next.
  void fill(const Pairs& pairs, std::span<const std::uint32_t> indices) {
    size = static_cast<index_t>(indices.size());
    source_lengths.clear();
    target_lengths.clear();
    for (const std::uint32_t i : indices) {
      source_lengths.push_back(static_cast<std::int32_t>(pairs.source[i].size() + 1));
      target_lengths.push_back(static_cast<std::int32_t>(pairs.target[i].size() + 1));
    }
    const auto longest = [](const std::vector<std::int32_t>& lengths) {
      return lengths.empty() ? 0 : static_cast<index_t>(*std::max_element(lengths.begin(), lengths.end()));
    };
    source_length = longest(source_lengths);
    target_length = longest(target_lengths);
    source.assign(static_cast<std::size_t>(size * source_length), padding_id);
    input.assign(static_cast<std::size_t>(size * target_length), padding_id);
    output.assign(input.size(), padding_id);
    for (index_t row = 0; row < size; ++row) {
      const auto& from = pairs.source[indices[static_cast<std::size_t>(row)]];
      const auto& to = pairs.target[indices[static_cast<std::size_t>(row)]];
      *std::copy(from.begin(), from.end(), source.begin() + row * source_length) = end_id;
      input[static_cast<std::size_t>(row * target_length)] = begin_id;
      std::copy(to.begin(), to.end(), input.begin() + row * target_length + 1);
      *std::copy(to.begin(), to.end(), output.begin() + row * target_length) = end_id;
    }
  }

  /// Words and ends of the targets, padding left out.
  [[nodiscard]] index_t target_words() const noexcept {
    return std::accumulate(target_lengths.begin(), target_lengths.end(), index_t{0});
  }
};

}  // namespace gnmt
