// The words a network knows, learnt from the training text: whole words, or pieces of words by byte-pair encoding.
// Turns lines into numbers and numbers into lines, and has a text form that is kept with the model.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/layers/sequence.hpp>

#include "byte_pairs.hpp"
#include "tokens.hpp"
#include "utf8.hpp"

namespace gnmt {

/// The first number of a word or piece, behind the four special ones.
constexpr std::int32_t first_piece = strata::unknown_token + 1;

/// What stands in a line for a word that is not known.
constexpr std::string_view unknown_text = "\xE2\x81\x87";  // U+2047

struct VocabularyOptions {
  bool byte_pairs = true;           ///< pieces of words; else whole words
  std::int64_t merges = 8000;       ///< of byte pairs, at most
  std::int64_t most_words = 30000;  ///< whole words and signs: the most frequent ones
  std::int64_t least_count = 2;     ///< rarer words, and pairs of neighbours, are not learnt
  bool lower_case = false;          ///< the text is put in lower case first
};

/// Words and signs of a text and how often each occurs.
class WordCounts {
 public:
  void add(std::span<const std::string> lines, bool lower_case) {
    for (const std::string& line : lines)
      for (std::string& token : tokenise(line, lower_case)) ++counts_[std::move(token)];
  }
  [[nodiscard]] const std::map<std::string, std::int64_t>& counts() const noexcept { return counts_; }

 private:
  std::map<std::string, std::int64_t> counts_;
};

class Vocabulary {
 public:
  /// Knows no word.
  Vocabulary() = default;

  /// Learns from lines of text; several lists (both sides of a parallel text, say) make one vocabulary for all. The
  /// same text gives the same vocabulary. Byte pairs: every sign and character of the text is known; words of more than
  /// 100 characters are not learnt from.
  [[nodiscard]] static Vocabulary learn(std::span<const std::span<const std::string>> texts,
                                        const VocabularyOptions& options) {
    WordCounts words;
    for (const auto& lines : texts) words.add(lines, options.lower_case);
    Vocabulary vocabulary;
    vocabulary.byte_pairs_ = options.byte_pairs;
    vocabulary.lower_case_ = options.lower_case;
    if (options.byte_pairs)
      vocabulary.learn_pieces(words.counts(), options);
    else
      vocabulary.learn_words(words.counts(), options);
    return vocabulary;
  }

  /// Words or pieces and the four special numbers.
  [[nodiscard]] std::int32_t size() const noexcept { return first_piece + static_cast<std::int32_t>(pieces_.size()); }
  [[nodiscard]] bool byte_pairs() const noexcept { return byte_pairs_; }
  [[nodiscard]] bool lower_case() const noexcept { return lower_case_; }
  [[nodiscard]] const std::vector<Merge>& merges() const noexcept { return merges_; }
  /// A piece as it is spelt, joiners included. Precondition: first_piece <= id < size().
  [[nodiscard]] const std::string& piece(std::int32_t id) const {
    return pieces_[static_cast<std::size_t>(id - first_piece)];
  }

  /// Appends the numbers of a line to `ids`. Words, or with byte pairs characters, that are not known give
  /// strata::unknown_token each. A line without words appends nothing.
  void encode(std::string_view line, std::vector<std::int32_t>& ids) const {
    for (const std::string& token : tokenise(line, lower_case_)) {
      if (!byte_pairs_ || is_sign(token)) {
        ids.push_back(find(token));
        continue;
      }
      std::vector<Symbol> symbols;
      for_each_character(token, [&](const std::string& spelling) { symbols.push_back(find(spelling)); });
      merger_.apply(symbols);
      ids.insert(ids.end(), symbols.begin(), symbols.end());
    }
  }
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view line) const {
    std::vector<std::int32_t> ids;
    encode(line, ids);
    return ids;
  }

  /// The text of `ids`; padding, begin and end have none, what is not known is U+2047. decode(encode(line)) is
  /// normalise(line) if everything in it is known.
  [[nodiscard]] std::string decode(std::span<const std::int32_t> ids) const {
    Detokeniser text;
    for (const std::int32_t id : ids) {
      if (id == strata::padding_token || id == strata::begin_token || id == strata::end_token) continue;
      text.add(id >= first_piece && id < size() ? std::string_view(piece(id)) : unknown_text);
    }
    return text.text();
  }

  /// The vocabulary as text, which `from_text` reads: a line of what it is, the pieces one a line, the merges as
  /// numbers of their two sides.
  [[nodiscard]] std::string to_text() const {
    std::string text = std::string(title) + "\nunits " + (byte_pairs_ ? "byte-pairs" : "words") + "\nlower_case " +
                       (lower_case_ ? "1" : "0") + "\npieces " + std::to_string(pieces_.size()) + "\n";
    for (const std::string& piece : pieces_) text += piece + "\n";
    text += "merges " + std::to_string(merges_.size()) + "\n";
    for (const Merge& merge : merges_) text += std::to_string(merge.left) + " " + std::to_string(merge.right) + "\n";
    return text;
  }

  /// Errors, which name the line: anything `to_text` does not write.
  [[nodiscard]] static strata::Result<Vocabulary> from_text(std::string_view text) {
    Reader reader{text};
    Vocabulary vocabulary;
    if (reader.line() != title) return reader.error(std::string(title));
    const std::string_view units = reader.line();
    if (units != "units byte-pairs" && units != "units words") return reader.error("units byte-pairs or words");
    vocabulary.byte_pairs_ = units == "units byte-pairs";
    const std::string_view lower = reader.line();
    if (lower != "lower_case 0" && lower != "lower_case 1") return reader.error("lower_case 0 or 1");
    vocabulary.lower_case_ = lower == "lower_case 1";
    std::int64_t count = 0;
    if (!numbered(reader.line(), "pieces ", count) || count > most_pieces)
      return reader.error("pieces and their number, at most " + std::to_string(most_pieces));
    for (std::int64_t i = 0; i < count; ++i) {
      const std::string_view piece = reader.line();
      if (!is_piece(piece)) return reader.error("a piece of text without spaces");
      if (!vocabulary.add(std::string(piece))) return reader.error("each piece once");
    }
    if (!numbered(reader.line(), "merges ", count) || count > most_pieces || (count > 0 && !vocabulary.byte_pairs_))
      return reader.error("merges and their number, at most " + std::to_string(most_pieces) + " and 0 for words");
    std::set<std::uint64_t> seen;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::string_view line = reader.line();
      const std::size_t space = line.find(' ');
      std::int64_t left = 0;
      std::int64_t right = 0;
      if (space == std::string_view::npos || !numbered(line.substr(0, space), "", left) ||
          !numbered(line.substr(space), " ", right) || std::min(left, right) < first_piece ||
          std::max(left, right) >= vocabulary.size())
        return reader.error("two numbers of pieces");
      Merge merge{static_cast<Symbol>(left), static_cast<Symbol>(right), 0};
      merge.result = vocabulary.find(vocabulary.merged(merge.left, merge.right));
      if (merge.result == strata::unknown_token || !vocabulary.piece(merge.left).ends_with(joiner) ||
          !seen.insert(detail::pair_key(merge.left, merge.right)).second)
        return reader.error("a merge that gives a piece, each once");
      vocabulary.merges_.push_back(merge);
    }
    if (!reader.rest.empty()) {
      reader.line();
      return reader.error("the end of the vocabulary");
    }
    vocabulary.merger_ = Merger(vocabulary.merges_);
    return vocabulary;
  }

  friend bool operator==(const Vocabulary& a, const Vocabulary& b) {
    return a.byte_pairs_ == b.byte_pairs_ && a.lower_case_ == b.lower_case_ && a.pieces_ == b.pieces_ &&
           a.merges_ == b.merges_;
  }

 private:
  static constexpr std::string_view title = "gnmt vocabulary 1";
  static constexpr std::int64_t most_pieces = 10'000'000;
  static constexpr std::size_t longest_learnt = 100;

  /// Lines of the text form and the place of the last one, for messages.
  struct Reader {
    std::string_view rest;
    std::string_view last = {};
    std::size_t number = 0;

    std::string_view line() {
      const std::size_t end = std::min(rest.find('\n'), rest.size());
      last = rest.substr(0, end);
      rest.remove_prefix(std::min(end + 1, rest.size()));
      ++number;
      return last;
    }
    [[nodiscard]] strata::Error error(std::string expected) const {
      std::string shown(last.substr(0, 40));
      for (char& c : shown)
        if (static_cast<unsigned char>(c) < 32 || static_cast<unsigned char>(c) > 126) c = '?';
      return {"vocabulary:" + std::to_string(number), std::move(expected),
              "\"" + shown + (last.size() > 40 ? "..." : "") + "\""};
    }
  };

  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const noexcept { return std::hash<std::string_view>()(text); }
  };

  /// Whether `line` is `key` and a whole number from 0.
  static bool numbered(std::string_view line, std::string_view key, std::int64_t& value) {
    if (!line.starts_with(key)) return false;
    line.remove_prefix(key.size());
    const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), value);
    return error == std::errc() && end == line.data() + line.size() && value >= 0;
  }

  static bool is_piece(std::string_view piece) {
    if (piece.empty()) return false;
    for (std::size_t at = 0; at < piece.size();) {
      const utf8::Decoded character = utf8::decode(piece, at);
      if (!character.valid || utf8::is_space(character.value) || utf8::is_control(character.value)) return false;
      at += character.bytes;
    }
    return true;
  }

  /// Calls `f` with every character of a word, joined to the next one.
  template <class F>
  static void for_each_character(std::string_view word, F&& f) {
    std::string spelling;
    for (std::size_t at = 0; at < word.size();) {
      const std::size_t bytes = utf8::decode(word, at).bytes;
      spelling = word.substr(at, bytes);
      at += bytes;
      if (at < word.size()) spelling += joiner;
      f(spelling);
    }
  }

  [[nodiscard]] std::int32_t find(std::string_view spelling) const {
    const auto found = ids_.find(spelling);
    return found == ids_.end() ? strata::unknown_token : found->second;
  }
  /// False if it is there already.
  bool add(std::string spelling) {
    const bool fresh = ids_.emplace(spelling, size()).second;
    if (fresh) pieces_.push_back(std::move(spelling));
    return fresh;
  }
  /// What a merge spells: the left side without its joiner, and the right side.
  [[nodiscard]] std::string merged(Symbol left, Symbol right) const {
    std::string spelling = piece(left);
    if (spelling.ends_with(joiner)) spelling.resize(spelling.size() - joiner.size());
    return spelling + piece(right);
  }

  void learn_words(const std::map<std::string, std::int64_t>& counts, const VocabularyOptions& options) {
    std::vector<std::pair<std::int64_t, std::string_view>> order;
    for (const auto& [token, count] : counts)
      if (count >= options.least_count) order.emplace_back(-count, token);
    std::sort(order.begin(), order.end());  // the most frequent first, then by bytes
    if (static_cast<std::int64_t>(order.size()) > options.most_words)
      order.resize(static_cast<std::size_t>(std::max<std::int64_t>(0, options.most_words)));
    for (const auto& [count, token] : order) add(std::string(token));
  }

  void learn_pieces(const std::map<std::string, std::int64_t>& counts, const VocabularyOptions& options) {
    std::set<std::string> base;
    for (const auto& [token, count] : counts) {
      if (is_sign(token))
        base.insert(token);
      else
        for_each_character(token, [&](const std::string& spelling) { base.insert(spelling); });
    }
    for (const std::string& spelling : base) add(spelling);
    std::vector<CountedWord> words;
    for (const auto& [token, count] : counts) {
      if (is_sign(token)) continue;
      CountedWord word{{}, count};
      for_each_character(token, [&](const std::string& spelling) { word.symbols.push_back(find(spelling)); });
      if (word.symbols.size() > 1 && word.symbols.size() <= longest_learnt) words.push_back(std::move(word));
    }
    merges_ = learn_merges(words, static_cast<std::size_t>(std::max<std::int64_t>(0, options.merges)),
                           options.least_count, [&](Symbol left, Symbol right) {
                             std::string spelling = merged(left, right);
                             add(spelling);  // another merge may have given the same piece
                             return find(spelling);
                           });
    merger_ = Merger(merges_);
  }

  bool byte_pairs_ = true;
  bool lower_case_ = false;
  std::vector<std::string> pieces_;
  std::unordered_map<std::string, std::int32_t, Hash, std::equal_to<>> ids_;
  std::vector<Merge> merges_;
  Merger merger_;
};

}  // namespace gnmt
