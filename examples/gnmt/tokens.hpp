// Splits lines into words and signs and puts them together again. The split is by rules alone and loses nothing but
// what `normalise` says: a mark on a sign tells on which side no space was.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "utf8.hpp"

namespace gnmt {

/// U+FFED: where a token or a piece of a word carries it at an end, no space parts it from its neighbour there.
constexpr std::string_view joiner = "\xEF\xBF\xAD";

/// What `tokenise` sees of a line: runs of white space and control characters are one space, none at the ends; bytes
/// that are no character are U+FFFD; U+FFED, which is taken, is U+25AA; letters are in lower case if asked for.
[[nodiscard]] inline std::string normalise(std::string_view line, bool lower_case = false) {
  std::string text;
  text.reserve(line.size());
  bool space = false;
  for (std::size_t at = 0; at < line.size();) {
    const utf8::Decoded character = utf8::decode(line, at);
    at += character.bytes;
    const char32_t c = character.value;
    if (utf8::is_space(c) || utf8::is_control(c)) {
      space = !text.empty();
      continue;
    }
    if (space) text.push_back(' ');
    space = false;
    utf8::append(text, c == 0xFFED ? U'\u25AA' : (lower_case ? utf8::to_lower(c) : c));
  }
  return text;
}

/// Whether `token` of `tokenise` is a sign rather than a word.
[[nodiscard]] inline bool is_sign(std::string_view token) noexcept {
  if (token.starts_with(joiner)) return true;
  return !token.empty() && utf8::is_punctuation(utf8::decode(token, 0).value);
}

/// The tokens of a line: words (runs of letters, digits and all else that is no sign) and signs, each one by itself.
/// Where two tokens touch without a space, the right one has a joiner in front if it is a sign, else the left one,
/// which then is a sign, has it at its end: "(a-b)." gives "(J", "a", "J-J", "b", "J)", "J." with J for the joiner.
[[nodiscard]] inline std::vector<std::string> tokenise(std::string_view line, bool lower_case = false) {
  std::vector<std::string> tokens;
  const std::string text = normalise(line, lower_case);
  enum class Before { space, word, sign } before = Before::space;
  for (std::size_t at = 0; at < text.size();) {
    const utf8::Decoded character = utf8::decode(text, at);
    const std::string_view bytes = std::string_view(text).substr(at, character.bytes);
    at += character.bytes;
    if (character.value == ' ') {
      before = Before::space;
    } else if (utf8::is_punctuation(character.value)) {
      tokens.emplace_back(before == Before::space ? "" : joiner);
      tokens.back() += bytes;
      before = Before::sign;
    } else {
      if (before == Before::sign) tokens.back() += joiner;
      if (before != Before::word) tokens.emplace_back();
      tokens.back() += bytes;
      before = Before::word;
    }
  }
  return tokens;
}

/// Puts tokens, or pieces of tokens, together one after the other.
class Detokeniser {
 public:
  void add(std::string_view token) {
    if (token.empty()) return;
    const bool joined_left = token.starts_with(joiner);
    const bool joined_right = token.ends_with(joiner);
    if (joined_left) token.remove_prefix(joiner.size());
    if (joined_right && !token.empty()) token.remove_suffix(joiner.size());
    if (!text_.empty() && !joined_ && !joined_left) text_.push_back(' ');
    text_ += token;
    joined_ = joined_right;
  }
  [[nodiscard]] const std::string& text() const noexcept { return text_; }

 private:
  std::string text_;
  bool joined_ = false;
};

/// The text of `tokens`. detokenise(tokenise(line)) == normalise(line) for every line; any other sequence of tokens has
/// a text as well.
[[nodiscard]] inline std::string detokenise(const std::vector<std::string>& tokens) {
  Detokeniser detokeniser;
  for (const std::string& token : tokens) detokeniser.add(token);
  return detokeniser.text();
}

}  // namespace gnmt
