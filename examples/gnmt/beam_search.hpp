// Greedy and beam search for the most probable translation, with the length normalisation and the coverage penalty of
// GNMT (arXiv 1609.08144, equation 14). The network is behind an interface of three functions; the search itself
// allocates nothing once it has seen a sentence of the size.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>

#include "vocabulary.hpp"

namespace gnmt {

using strata::index_t;

/// What the search asks of a network.
///   encode(source)              takes a sentence in; decoding starts anew with no word said
///   step(last_words, parents)   the logits [hypothesis][vocabulary] of the next word. Hypothesis h goes on from
///                               hypothesis parents[h] of the last step, its last word is last_words[h]; the first step
///                               has one hypothesis, parent 0 and strata::begin_token
///   attention()                 of that step, [hypothesis][source word], at least 0 and with sum 1 over a sentence;
///                               asked for only if there is a coverage penalty
/// The numbers behind a span may change with the next call.
template <class T>
concept Scorer = requires(T scorer, std::span<const std::int32_t> words) {
  scorer.encode(words);
  { scorer.step(words, words) } -> std::convertible_to<std::span<const float>>;
  { scorer.attention() } -> std::convertible_to<std::span<const float>>;
};

struct BeamOptions {
  index_t beam = 5;             ///< hypotheses kept; 1: greedy search
  double length_penalty = 1;    ///< alpha
  double coverage_penalty = 0;  ///< beta
  index_t longest = 100;        ///< words of a translation at most, its end included
};

/// ((5 + words) / 6)^alpha, words with the end of the sentence.
[[nodiscard]] inline double length_normaliser(index_t words, double alpha) noexcept {
  return std::pow((5.0 + static_cast<double>(words)) / 6.0, alpha);
}

/// beta times the sum over source words of log(min(attention they got in all, 1)). Less than 1e-9 counts as that, so
/// that scores stay finite.
[[nodiscard]] inline double coverage_score(std::span<const float> coverage, double beta) noexcept {
  double sum = 0;
  for (const float share : coverage) sum += std::log(std::clamp(static_cast<double>(share), 1e-9, 1.0));
  return beta * sum;
}

/// A translation that `BeamSearch` found.
struct Translation {
  std::span<const std::int32_t> words;  ///< without begin and end; valid until the next search
  double log_probability = 0;           ///< natural logarithm, of the end too
  double score = 0;                     ///< log_probability / length_normaliser + coverage_score
};

/// Hypotheses of equal length compete by their probability; those that end compete by their score. Of the 2 x beam best
/// continuations of a step those that end count if they are among the first `beam`, and the best `beam` others go on.
/// The search is over when `beam` hypotheses have ended, when no other can score better any more, or at the longest
/// length, where only the end is let in. Equal probabilities: the earlier hypothesis, then the lower word.
/// strata::padding_token, strata::begin_token and strata::unknown_token are never said. Logits that are no number count
/// as minus infinity, and a hypothesis whose largest logit is not finite does not go on; if none does, no translation
/// is found: it is empty, its score minus infinity.
template <Scorer Network>
class BeamSearch {
 public:
  /// Raises: a beam or longest length below 1 or beyond all use, penalties that are negative or not finite. `network`
  /// has to outlive the search.
  BeamSearch(Network& network, const BeamOptions& options) : network_(network), options_(options) {
    if (options.beam < 1 || options.beam > 4096)
      strata::raise(strata::Error("beam search", "a beam of 1 to 4096", std::to_string(options.beam)));
    if (options.longest < 1 || options.longest > 65536)
      strata::raise(strata::Error("beam search", "a longest length of 1 to 65536", std::to_string(options.longest)));
    for (const auto& [name, value] :
         {std::pair("length penalty", options.length_penalty), std::pair("coverage penalty", options.coverage_penalty)})
      if (!std::isfinite(value) || value < 0)
        strata::raise(strata::Error("beam search", std::string("a ") + name + " of at least 0", std::to_string(value)));
    const auto beam = static_cast<std::size_t>(options.beam);
    candidates_.reserve(2 * beam);
    history_.reserve(beam * static_cast<std::size_t>(options.longest));
    best_.reserve(static_cast<std::size_t>(options.longest));
    for (auto* list : {&last_words_, &parents_}) list->reserve(beam);
    for (auto* list : {&probabilities_, &next_probabilities_}) list->reserve(beam);
  }

  /// The best translation of `source`. A sentence without words has an empty one, and the network is not asked.
  Translation translate(std::span<const std::int32_t> source) {
    best_.clear();
    if (source.empty()) return {best_, 0, 0};
    constexpr double nothing = -std::numeric_limits<double>::infinity();
    Translation best{best_, nothing, nothing};
    const bool covers = options_.coverage_penalty > 0;
    const auto beam = static_cast<std::size_t>(options_.beam);
    history_.clear();
    last_words_.assign(1, strata::begin_token);
    parents_.assign(1, 0);
    probabilities_.assign(1, 0.0);
    if (covers) {
      for (auto* list : {&coverage_, &next_coverage_}) list->reserve(beam * source.size());
      coverage_.assign(source.size(), 0.0F);
    }
    network_.encode(source);
    std::size_t ended = 0;
    std::size_t best_end = none;
    std::size_t last_start = 0;  // where in the history the words of the last step begin
    for (index_t length = 1; length <= options_.longest && !last_words_.empty() && ended < beam; ++length) {
      const std::span<const float> logits = network_.step(last_words_, parents_);
      if (covers) add_attention(network_.attention(), source.size());
      choose(logits, length == options_.longest);
      last_words_.clear();
      parents_.clear();
      next_probabilities_.clear();
      const std::size_t start = history_.size();
      const auto before = [&](std::uint32_t h) { return length == 1 ? none : last_start + h; };
      for (std::size_t rank = 0; rank < candidates_.size(); ++rank) {
        const Candidate& candidate = candidates_[rank];
        if (candidate.word != strata::end_token) {
          if (last_words_.size() == beam) continue;
          history_.push_back({candidate.word, before(candidate.parent)});
          last_words_.push_back(candidate.word);
          parents_.push_back(static_cast<std::int32_t>(candidate.parent));
          next_probabilities_.push_back(candidate.log_probability);
        } else if (rank < beam) {
          ++ended;
          double score = candidate.log_probability / length_normaliser(length, options_.length_penalty);
          if (covers) score += coverage_score(coverage_of(candidate.parent, source.size()), options_.coverage_penalty);
          if (score > best.score) {
            best.score = score;
            best.log_probability = candidate.log_probability;
            best_end = before(candidate.parent);
          }
        }
      }
      probabilities_.swap(next_probabilities_);
      last_start = start;
      if (covers) reorder_coverage(source.size());
      // Probabilities only fall and coverage adds at most 0, so this is the most that any other could still score.
      const double hope = probabilities_.empty()
                              ? nothing
                              : probabilities_[0] / length_normaliser(options_.longest, options_.length_penalty);
      if (best.score > nothing && hope <= best.score) break;
    }
    if (best.score > nothing)
      for (std::size_t at = best_end; at != none; at = history_[at].before) best_.push_back(history_[at].word);
    std::reverse(best_.begin(), best_.end());
    best.words = best_;
    return best;
  }

 private:
  static constexpr std::size_t none = static_cast<std::size_t>(-1);
  struct Candidate {
    double log_probability;
    std::uint32_t parent;
    std::int32_t word;
  };
  struct Said {
    std::int32_t word;
    std::size_t before;  ///< place in the history of the word before; none: the first
  };

  [[nodiscard]] std::span<const float> coverage_of(std::uint32_t h, std::size_t words) const noexcept {
    return std::span(coverage_).subspan(h * words, words);
  }

  void add_attention(std::span<const float> attention, std::size_t words) noexcept {
    const std::size_t count = std::min(attention.size(), probabilities_.size() * words);
    for (std::size_t i = 0; i < count; ++i) coverage_[i] += attention[i];
  }
  void reorder_coverage(std::size_t words) {
    next_coverage_.resize(parents_.size() * words);
    for (std::size_t h = 0; h < parents_.size(); ++h)
      std::copy_n(coverage_.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(parents_[h]) * words), words,
                  next_coverage_.begin() + static_cast<std::ptrdiff_t>(h * words));
    coverage_.swap(next_coverage_);
  }

  /// Makes `candidates_` the 2 x beam best continuations, the best first.
  void choose(std::span<const float> logits, bool only_end) {
    candidates_.clear();
    const std::size_t most = 2 * static_cast<std::size_t>(options_.beam);
    const std::size_t vocabulary = logits.size() / probabilities_.size();
    for (std::size_t h = 0; h < probabilities_.size(); ++h) {
      const float* const row = logits.data() + h * vocabulary;
      const double base = probabilities_[h] - log_sum(row, vocabulary);
      if (!std::isfinite(base)) continue;
      const auto consider = [&](std::size_t word) {
        const double value = base + static_cast<double>(row[word]);
        if (std::isnan(value) || value == -std::numeric_limits<double>::infinity()) return;
        if (candidates_.size() == most && !(value > candidates_.back().log_probability)) return;
        if (candidates_.size() == most) candidates_.pop_back();
        // Behind all that are as good, since those come earlier.
        const auto place = std::find_if(candidates_.begin(), candidates_.end(),
                                        [&](const Candidate& other) { return other.log_probability < value; });
        candidates_.insert(place, {value, static_cast<std::uint32_t>(h), static_cast<std::int32_t>(word)});
      };
      if (only_end) {
        if (vocabulary > strata::end_token) consider(strata::end_token);
        continue;
      }
      // Few words of a large vocabulary come near: whole runs are passed over by their largest.
      constexpr std::size_t run = 64;
      for (std::size_t first = 0; first < vocabulary; first += run) {
        const std::size_t last = std::min(first + run, vocabulary);
        if (candidates_.size() == most) {
          const double largest = base + static_cast<double>(largest_of(row + first, last - first));
          if (!(largest > candidates_.back().log_probability)) continue;
        }
        for (std::size_t word = first; word < last; ++word)
          if (word == strata::end_token || word >= first_piece) consider(word);
      }
    }
  }

  using Row = Eigen::Map<const Eigen::ArrayXf>;

  /// Passes over what is no number.
  static float largest_of(const float* values, std::size_t count) {
    return Row(values, static_cast<index_t>(count)).maxCoeff<Eigen::PropagateNumbers>();
  }
  /// log(sum(exp(values))); what is no number adds nothing. Not finite if nothing is left.
  static double log_sum(const float* values, std::size_t count) {
    if (count == 0) return std::numeric_limits<double>::quiet_NaN();
    const float largest = largest_of(values, count);
    if (!std::isfinite(largest)) return std::numeric_limits<double>::quiet_NaN();
    const Row row(values, static_cast<index_t>(count));
    float sum = (row - largest).exp().sum();
    if (std::isnan(sum)) sum = row.isNaN().select(0.0F, (row - largest).exp()).sum();
    return static_cast<double>(largest) + std::log(static_cast<double>(sum));
  }

  Network& network_;
  BeamOptions options_;
  std::vector<std::int32_t> last_words_, parents_, best_;
  std::vector<double> probabilities_, next_probabilities_;  ///< of the hypotheses, as logarithms
  std::vector<Candidate> candidates_;
  std::vector<Said> history_;                    ///< the words of all steps
  std::vector<float> coverage_, next_coverage_;  ///< [hypothesis][source word]
};

}  // namespace gnmt
