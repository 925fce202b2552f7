// Beam search over scorers small enough to look at every translation there is.
#include "gnmt/beam_search.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/close.hpp"

namespace {

using gnmt::BeamOptions;
using gnmt::BeamSearch;
using gnmt::index_t;
using Words = std::vector<std::int32_t>;

constexpr std::int32_t vocabulary = 7;  // four special ones and three words

/// Logits and attention that follow from the source and all words so far, by a hash; the hypotheses' prefixes are
/// followed by their parents, as a network's states are.
class ToyScorer {
 public:
  explicit ToyScorer(std::uint64_t seed, std::int32_t words = vocabulary, float end_bonus = 0)
      : seed_(seed), words_(words), end_bonus_(end_bonus) {}

  void encode(std::span<const std::int32_t> source) {
    source_ = source.size();
    std::uint64_t hash = seed_;
    for (const std::int32_t word : source) hash = mix(hash, word);
    states_.assign(1, hash);
    first_ = true;
    ++encoded;
  }
  std::span<const float> step(std::span<const std::int32_t> last_words, std::span<const std::int32_t> parents) {
    if (first_) CHECK((last_words.size() == 1 && last_words[0] == strata::begin_token && parents[0] == 0));
    first_ = false;
    next_.clear();
    for (std::size_t h = 0; h < last_words.size(); ++h)
      next_.push_back(mix(states_[static_cast<std::size_t>(parents[h])], last_words[h]));
    states_.swap(next_);
    logits_.clear();
    attention_.clear();
    for (const std::uint64_t state : states_) {
      append_logits(state, logits_);
      append_attention(state, attention_);
    }
    ++steps;
    return logits_;
  }
  std::span<const float> attention() const { return attention_; }

  /// For going through all translations without a search.
  std::uint64_t start(std::span<const std::int32_t> source) const {
    std::uint64_t hash = seed_;
    for (const std::int32_t word : source) hash = mix(hash, word);
    return hash;
  }
  static std::uint64_t mix(std::uint64_t state, std::int32_t word) {
    state = (state ^ (static_cast<std::uint64_t>(word) + 0x9E3779B97F4A7C15U)) * 0xBF58476D1CE4E5B9U;
    return state ^ state >> 29U;
  }
  void append_logits(std::uint64_t state, std::vector<float>& logits) const {
    for (std::int32_t word = 0; word < words_; ++word) {
      const auto noise = static_cast<float>(mix(state, word + 1000) >> 40U) * 0x1p-24F;
      logits.push_back(6 * noise + (word == strata::end_token ? end_bonus_ : 0));
    }
  }
  void append_attention(std::uint64_t state, std::vector<float>& attention) const {
    float sum = 0;
    for (std::size_t i = 0; i < source_; ++i) {
      attention.push_back(0.05F +
                          static_cast<float>(mix(state, static_cast<std::int32_t>(i) + 2000) >> 40U) * 0x1p-24F);
      sum += attention.back();
    }
    for (std::size_t i = attention.size() - source_; i < attention.size(); ++i) attention[i] /= sum;
  }

  int encoded = 0;
  int steps = 0;

 private:
  std::uint64_t seed_;
  std::int32_t words_;
  float end_bonus_;
  std::size_t source_ = 0;
  bool first_ = true;
  std::vector<std::uint64_t> states_, next_;
  std::vector<float> logits_, attention_;
};

double log_softmax(const std::vector<float>& logits, std::int32_t word) {
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  return static_cast<double>(logits[static_cast<std::size_t>(word)]) - std::log(sum);
}

/// Every translation of at most `options.longest` words, end included, and the best of them by equation 14.
struct Exhaustive {
  const ToyScorer& scorer;
  const BeamOptions& options;
  std::size_t source;
  double best = -std::numeric_limits<double>::infinity();
  double best_log = 0;
  Words best_words = {};
  Words words = {};

  void visit(std::uint64_t state, double log_probability, std::vector<double> coverage) {
    std::vector<float> logits, attention;
    scorer.append_logits(state, logits);
    scorer.append_attention(state, attention);
    double covered = 0;
    for (std::size_t i = 0; i < source; ++i) {
      coverage[i] += static_cast<double>(attention[i]);
      covered += std::log(std::min(coverage[i], 1.0));
    }
    const auto length = static_cast<double>(words.size() + 1);
    const double ended = log_probability + log_softmax(logits, strata::end_token);
    const double score = ended * std::pow(6.0, options.length_penalty) / std::pow(5 + length, options.length_penalty) +
                         options.coverage_penalty * covered;
    if (score > best) {
      best = score;
      best_log = ended;
      best_words = words;
    }
    if (length == static_cast<double>(options.longest)) return;
    for (std::int32_t word = gnmt::first_piece; word < vocabulary; ++word) {
      words.push_back(word);
      visit(ToyScorer::mix(state, word), log_probability + log_softmax(logits, word), coverage);
      words.pop_back();
    }
  }
};

}  // namespace

TEST_CASE("a beam that holds everything finds the best of all translations") {
  for (std::uint64_t seed = 1; seed <= 40; ++seed)
    for (const auto& [alpha, beta] : {std::pair(0.0, 0.0), {0.2, 0.2}, {1.0, 0.0}, {0.6, 1.5}, {2.0, 0.4}}) {
      ToyScorer scorer(seed);
      const Words source(1 + seed % 4, static_cast<std::int32_t>(seed));
      const BeamOptions options{.beam = 243, .length_penalty = alpha, .coverage_penalty = beta, .longest = 5};
      BeamSearch search(scorer, options);
      const auto found = search.translate(source);
      Exhaustive all{scorer, options, source.size()};
      all.visit(ToyScorer::mix(scorer.start(source), strata::begin_token), 0, std::vector<double>(source.size()));
      INFO("seed " << seed << ", alpha " << alpha << ", beta " << beta);
      CHECK(test::close(found.score, all.best, 1e-5));
      CHECK(test::close(found.log_probability, all.best_log, 1e-5));
      CHECK(Words(found.words.begin(), found.words.end()) == all.best_words);
    }
}

TEST_CASE("a wider beam does not lose by more than chance, and a small one finds plain translations") {
  double narrow = 0;
  double wide = 0;
  for (std::uint64_t seed = 1; seed <= 100; ++seed) {
    ToyScorer scorer(seed, 50);
    BeamSearch small(scorer, {.beam = 1, .length_penalty = 0, .longest = 12});
    BeamSearch large(scorer, {.beam = 8, .length_penalty = 0, .longest = 12});
    narrow += small.translate(Words{4, 5}).score;
    wide += large.translate(Words{4, 5}).score;
  }
  CHECK(wide > narrow);
}

TEST_CASE("a beam of one is greedy search") {
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    ToyScorer scorer(seed, 9 + static_cast<std::int32_t>(seed), 2);
    const Words source{7, static_cast<std::int32_t>(seed)};
    BeamSearch search(scorer, {.beam = 1, .length_penalty = 0.7, .longest = 20});
    const auto found = search.translate(source);
    Words words;
    std::uint64_t state = ToyScorer::mix(scorer.start(source), strata::begin_token);
    while (words.size() < 19) {
      std::vector<float> logits;
      scorer.append_logits(state, logits);
      std::int32_t best = strata::end_token;
      for (std::int32_t word = gnmt::first_piece; word < static_cast<std::int32_t>(logits.size()); ++word)
        if (logits[static_cast<std::size_t>(word)] > logits[static_cast<std::size_t>(best)]) best = word;
      if (best == strata::end_token) break;
      words.push_back(best);
      state = ToyScorer::mix(state, best);
    }
    INFO("seed " << seed);
    CHECK(Words(found.words.begin(), found.words.end()) == words);
  }
}

namespace {

/// The same logits at every step.
struct ConstantScorer {
  std::vector<float> logits;
  std::vector<float> all = {};
  std::vector<float> shares = {};
  std::size_t source = 0;
  void encode(std::span<const std::int32_t> words) { source = words.size(); }
  std::span<const float> step(std::span<const std::int32_t> last_words, std::span<const std::int32_t> /*parents*/) {
    all.clear();
    shares.assign(last_words.size() * source, 0.0F);
    for (std::size_t h = 0; h < last_words.size(); ++h) {
      all.insert(all.end(), logits.begin(), logits.end());
      if (source > 0) shares[h * source] = 1;
    }
    return all;
  }
  std::span<const float> attention() const { return shares; }
};

}  // namespace

TEST_CASE("equal probabilities are decided by the earlier hypothesis and the lower word") {
  ConstantScorer scorer{std::vector<float>(200, 1.0F)};
  scorer.logits[strata::end_token] = -5;
  BeamSearch search(scorer, {.beam = 3, .length_penalty = 1, .longest = 4});
  const auto found = search.translate(Words{4});
  CHECK(Words(found.words.begin(), found.words.end()) == Words{4, 4, 4});
}

TEST_CASE("padding, begin and unknown are never said, and logits that are no number do not matter") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  ConstantScorer scorer{{9, 9, 0, 9, 2, nan, 1, -infinity}};
  BeamSearch search(scorer, {.beam = 2, .length_penalty = 3, .coverage_penalty = 0.1, .longest = 6});
  const auto found = search.translate(Words{4, 5});
  CHECK(found.words.size() == 5);
  for (const std::int32_t word : found.words) CHECK((word == 4 || word == 6));
  CHECK(std::isfinite(found.score));

  for (const float value : {nan, -infinity, infinity}) {
    ConstantScorer hopeless{std::vector<float>(100, value)};
    BeamSearch none(hopeless, {.beam = 3, .coverage_penalty = 0.5, .longest = 9});
    const auto nothing = none.translate(Words{4, 5});
    CHECK(nothing.words.empty());
    CHECK(nothing.score == -infinity);
  }
  ConstantScorer tiny{{1, 2}};  // not even an end
  BeamSearch none(tiny, {.longest = 9});
  CHECK(none.translate(Words{4}).words.empty());
}

TEST_CASE("source words without attention lower the score by a finite amount") {
  ConstantScorer scorer{{0, 0, 1, 0, 2}};
  BeamSearch search(scorer, {.beam = 2, .length_penalty = 0, .coverage_penalty = 1, .longest = 3});
  const auto found = search.translate(Words{4, 5, 6});
  CHECK(test::close(found.score, found.log_probability + 2 * std::log(1e-9), 1e-9));
}

TEST_CASE("a sentence without words and the shortest limit") {
  ToyScorer scorer(3);
  BeamSearch search(scorer, {.beam = 4, .longest = 1});
  CHECK(search.translate(Words{}).words.empty());
  CHECK(scorer.encoded == 0);
  CHECK(search.translate(Words{4}).words.empty());
  CHECK(scorer.steps == 1);
}

TEST_CASE("a sentence of 10,000 words is translated") {
  ToyScorer scorer(5, 30);
  BeamSearch search(scorer, {.beam = 5, .length_penalty = 1, .coverage_penalty = 0.2, .longest = 40});
  const Words source(10000, 6);
  CHECK(search.translate(source).words.size() < 40);
}

TEST_CASE("the search allocates nothing for a sentence of a size it has seen, and repeats itself") {
  ToyScorer scorer(11, 300);
  BeamSearch search(scorer, {.beam = 5, .length_penalty = 1, .coverage_penalty = 0.2, .longest = 30});
  const Words first = {4, 5, 6, 7, 8};
  const Words second = {9, 9, 4};
  const auto once = search.translate(first);
  const Words words(once.words.begin(), once.words.end());
  const double score = once.score;
  (void)search.translate(second);
  const long before = allocations();
  const auto again = search.translate(first);
  const bool same =
      again.score == score && std::equal(words.begin(), words.end(), again.words.begin(), again.words.end());
  (void)search.translate(second);
  CHECK(allocations() == before);
  CHECK(same);
}

TEST_CASE("options that make no sense are refused") {
  ToyScorer scorer(1);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const BeamOptions& options :
       {BeamOptions{.beam = 0}, BeamOptions{.beam = 1 << 20}, BeamOptions{.longest = 0},
        BeamOptions{.longest = 1 << 20}, BeamOptions{.length_penalty = -1}, BeamOptions{.coverage_penalty = nan}})
    CHECK_THROWS_AS(BeamSearch(scorer, options), strata::Error);
}
