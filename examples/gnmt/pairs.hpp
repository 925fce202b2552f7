// Text as the network sees it: sentence pairs to learn from, sources to translate. Batches are the training task's
// business (strata/train/translation.hpp).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include <strata/core/types.hpp>
#include <strata/layers/sequence.hpp>
#include <strata/train/translation.hpp>

#include "corpus.hpp"
#include "vocabulary.hpp"

namespace gnmt {

using strata::index_t;

/// A source sentence as the network reads it: words or pieces, at most `longest` of them, and the end token. A line
/// without words gives nothing. `cut` tells whether there were more.
[[nodiscard]] inline std::vector<std::int32_t> source_of(const Vocabulary& vocabulary, std::string_view line,
                                                         index_t longest, bool* cut = nullptr) {
  std::vector<std::int32_t> words = vocabulary.encode(line);
  const bool too_long = static_cast<index_t>(words.size()) > longest;
  if (too_long) words.resize(static_cast<std::size_t>(longest));
  if (!words.empty()) words.push_back(strata::end_token);
  if (cut != nullptr) *cut = too_long;
  return words;
}

/// The pairs of a text that can be learnt from, and how many cannot.
struct LearntPairs {
  strata::train::SentencePairs pairs;
  index_t empty = 0;     ///< pairs left out because a side has no word
  index_t too_long = 0;  ///< pairs left out because a side has more words or pieces than allowed
};

/// Pairs with 1 to `longest` words or pieces on either side.
[[nodiscard]] inline LearntPairs encode_pairs(const ParallelText& text, const Vocabulary& source,
                                              const Vocabulary& target, index_t longest) {
  LearntPairs result;
  result.pairs.source_words = source.size();
  result.pairs.target_words = target.size();
  for (std::size_t i = 0; i < text.source.size(); ++i) {
    bool cut = false;
    auto from = source_of(source, text.source[i], longest, &cut);
    auto to = target.encode(text.target[i]);
    if (from.empty() || to.empty()) {
      ++result.empty;
    } else if (cut || static_cast<index_t>(to.size()) > longest) {
      ++result.too_long;
    } else {
      result.pairs.source.push_back(std::move(from));
      result.pairs.target.push_back(std::move(to));
    }
  }
  return result;
}

}  // namespace gnmt
