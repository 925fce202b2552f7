// Corpus BLEU as sacreBLEU computes it by default: one reference, tokens as mteval-v13a makes them, n-grams up to four,
// exponential smoothing, brevity penalty (Papineni et al. 2002; Post, arXiv 1804.08771).
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "utf8.hpp"

namespace gnmt {

struct BleuScore {
  double score = 0;                       ///< 0 to 100
  std::array<double, 4> precisions = {};  ///< of n-grams, 0 to 100, smoothed
  double brevity_penalty = 0;
  std::array<std::int64_t, 4> correct = {};
  std::array<std::int64_t, 4> total = {};
  std::int64_t words = 0;            ///< of the translations
  std::int64_t reference_words = 0;  ///< of the references
};

namespace detail {

inline void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (std::size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
}

/// `line` up to its last character that is no white space.
inline std::string without_space_at_end(std::string_view line) {
  std::size_t end = 0;
  for (std::size_t at = 0; at < line.size();) {
    const utf8::Decoded character = utf8::decode(line, at);
    at += character.bytes;
    if (!utf8::is_space(character.value)) end = at;
  }
  return std::string(line.substr(0, end));
}

/// One rewriting of 13a: where `matches(a, b)` holds of two neighbouring bytes, `write(a, b)` stands for both. The
/// search goes on behind them, as that of regular expressions does.
template <class Matches, class Write>
std::string rewrite_pairs(const std::string& text, Matches&& matches, Write&& write) {
  std::string result;
  result.reserve(text.size() + text.size() / 4);
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (i + 1 < text.size() && matches(text[i], text[i + 1])) {
      write(result, text[i], text[i + 1]);
      ++i;
    } else {
      result.push_back(text[i]);
    }
  }
  return result;
}

}  // namespace detail

/// The words of a line as sacreBLEU's tokeniser "13a" gives them. Signs outside ASCII are not split off.
[[nodiscard]] inline std::vector<std::string> tokenise_13a(std::string_view line) {
  std::string text = detail::without_space_at_end(line);
  detail::replace_all(text, "<skipped>", "");
  detail::replace_all(text, "-\n", "");
  for (char& c : text) c = c == '\n' ? ' ' : c;
  for (const auto& [entity, sign] :
       {std::pair("&quot;", "\""), std::pair("&amp;", "&"), std::pair("&lt;", "<"), std::pair("&gt;", ">")})
    detail::replace_all(text, entity, sign);
  const auto digit = [](char c) { return c >= '0' && c <= '9'; };
  const auto point = [](char c) { return c == '.' || c == ','; };
  std::string spaced = " ";
  for (const char c : text) {
    const bool sign = (c >= '{' && c <= '~') || (c >= '[' && c <= '`') || (c >= ' ' && c <= '&') ||
                      (c >= '(' && c <= '+') || (c >= ':' && c <= '@') || c == '/';
    if (sign) spaced += ' ';
    spaced += c;
    if (sign) spaced += ' ';
  }
  spaced += ' ';
  // Bytes serve as well as characters: only the last byte of one can stand before a sign, only the first behind it.
  spaced = detail::rewrite_pairs(
      spaced, [&](char a, char b) { return !digit(a) && point(b); },
      [](std::string& result, char a, char b) {
        (result += {a, ' ', b, ' '});
      });
  spaced = detail::rewrite_pairs(
      spaced, [&](char a, char b) { return point(a) && !digit(b); },
      [](std::string& result, char a, char b) {
        (result += {' ', a, ' ', b});
      });
  spaced = detail::rewrite_pairs(
      spaced, [&](char a, char b) { return digit(a) && b == '-'; },
      [](std::string& result, char a, char b) {
        (result += {a, ' ', b, ' '});
      });
  std::vector<std::string> words;
  bool inside = false;
  for (std::size_t at = 0; at < spaced.size();) {
    const utf8::Decoded character = utf8::decode(spaced, at);
    if (utf8::is_space(character.value)) {
      inside = false;
    } else {
      if (!inside) words.emplace_back();
      words.back().append(spaced, at, character.bytes);
      inside = true;
    }
    at += character.bytes;
  }
  return words;
}

/// Gathers a corpus and scores it.
class Bleu {
 public:
  /// With `lower_case` both sides are put in lower case first ("case:lc"), as a model that writes lower case needs;
  /// letters beyond Latin, Greek and Cyrillic stay as they are.
  explicit Bleu(bool lower_case = false) : lower_case_(lower_case) {}

  /// sacreBLEU's description of the figure.
  [[nodiscard]] std::string signature() const {
    return std::string("nrefs:1|case:") + (lower_case_ ? "lc" : "mixed") + "|eff:no|tok:13a|smooth:exp|version:2.6.0";
  }

  void add(std::string_view translation, std::string_view reference) {
    const std::vector<std::int32_t> found = numbers(translation);
    const std::vector<std::int32_t> wanted = numbers(reference);
    words_ += static_cast<std::int64_t>(found.size());
    reference_words_ += static_cast<std::int64_t>(wanted.size());
    for (std::size_t n = 1; n <= orders; ++n) {
      const std::vector<Ngram> a = ngrams(found, n);
      const std::vector<Ngram> b = ngrams(wanted, n);
      total_[n - 1] += static_cast<std::int64_t>(a.size());
      // Of sorted lists with repetitions the common part counts each n-gram as often as the rarer side has it.
      std::vector<Ngram> common;
      std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(common));
      correct_[n - 1] += static_cast<std::int64_t>(common.size());
    }
  }

  [[nodiscard]] BleuScore score() const {
    BleuScore result;
    result.correct = correct_;
    result.total = total_;
    result.words = words_;
    result.reference_words = reference_words_;
    result.brevity_penalty = 1;
    if (words_ < reference_words_)
      result.brevity_penalty =
          words_ == 0 ? 0 : std::exp(1 - static_cast<double>(reference_words_) / static_cast<double>(words_));
    if (std::all_of(correct_.begin(), correct_.end(), [](std::int64_t count) { return count == 0; })) return result;
    double smoothing = 1;
    double logs = 0;
    for (std::size_t n = 0; n < orders; ++n) {
      if (total_[n] == 0) return result;  // a precision of 0: so is the score
      if (correct_[n] == 0) {
        smoothing *= 2;
        result.precisions[n] = 100 / (smoothing * static_cast<double>(total_[n]));
      } else {
        result.precisions[n] = 100 * static_cast<double>(correct_[n]) / static_cast<double>(total_[n]);
      }
      logs += std::log(result.precisions[n]);
    }
    result.score = result.brevity_penalty * std::exp(logs / static_cast<double>(orders));
    return result;
  }

 private:
  static constexpr std::size_t orders = 4;
  using Ngram = std::array<std::int32_t, orders>;

  [[nodiscard]] std::vector<std::int32_t> numbers(std::string_view line) {
    std::vector<std::int32_t> result;
    for (std::string& word : lower_case_ ? tokenise_13a(utf8::to_lower(line)) : tokenise_13a(line))
      result.push_back(
          words_seen_.try_emplace(std::move(word), static_cast<std::int32_t>(words_seen_.size())).first->second);
    return result;
  }
  [[nodiscard]] static std::vector<Ngram> ngrams(const std::vector<std::int32_t>& words, std::size_t n) {
    std::vector<Ngram> result;
    for (std::size_t first = 0; first + n <= words.size(); ++first) {
      Ngram ngram{-1, -1, -1, -1};
      std::copy_n(words.begin() + static_cast<std::ptrdiff_t>(first), n, ngram.begin());
      result.push_back(ngram);
    }
    std::sort(result.begin(), result.end());
    return result;
  }

  bool lower_case_;
  std::unordered_map<std::string, std::int32_t> words_seen_;
  std::array<std::int64_t, orders> correct_ = {};
  std::array<std::int64_t, orders> total_ = {};
  std::int64_t words_ = 0;
  std::int64_t reference_words_ = 0;
};

}  // namespace gnmt
