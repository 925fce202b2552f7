// UTF-8 and the few properties of characters that splitting text into words needs. Tables of all of Unicode are left to
// libraries for it: letters of Latin, Greek and Cyrillic know their lower case, signs of the usual blocks are
// punctuation, all else is part of words.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace gnmt::utf8 {

/// What stands in for bytes that are no character.
constexpr char32_t replacement = 0xFFFD;

struct Decoded {
  char32_t value = replacement;
  std::size_t bytes = 1;
  bool valid = false;
};

/// The character that starts at byte `at`. Malformed: overlong forms, surrogates, values beyond U+10FFFF, a sequence
/// cut short, a stray byte; that byte alone is then read as U+FFFD. Precondition: at < text.size().
[[nodiscard]] inline Decoded decode(std::string_view text, std::size_t at) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[at + i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return {first, 1, true};
  const std::size_t length = first >= 0xF0 ? 4 : (first >= 0xE0 ? 3 : 2);
  if (first < 0xC2 || first > 0xF4 || text.size() - at < length) return {};
  char32_t value = first & (0xFFU >> (length + 1));
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0U) != 0x80) return {};
    value = value << 6U | (byte(i) & 0x3FU);
  }
  const bool overlong = value < (length == 4 ? 0x10000U : (length == 3 ? 0x800U : 0x80U));
  if (overlong || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) return {};
  return {value, length, true};
}

/// Appends `value` to `text`. Precondition: a character of Unicode.
inline void append(std::string& text, char32_t value) {
  if (value < 0x80) {
    text.push_back(static_cast<char>(value));
    return;
  }
  const unsigned length = value < 0x800 ? 2 : (value < 0x10000 ? 3 : 4);
  const unsigned head = 0xF00U >> length & 0xFFU;
  text.push_back(static_cast<char>(head | value >> 6U * (length - 1)));
  for (unsigned i = length - 1; i-- > 0;) text.push_back(static_cast<char>(0x80U | (value >> 6U * i & 0x3FU)));
}

/// The place of the first byte that belongs to no character; npos if there is none.
[[nodiscard]] inline std::size_t find_malformed(std::string_view text) noexcept {
  for (std::size_t at = 0; at < text.size();) {
    const Decoded character = decode(text, at);
    if (!character.valid) return at;
    at += character.bytes;
  }
  return std::string_view::npos;
}

/// White space as Python's str.split() sees it, which sacreBLEU splits by.
[[nodiscard]] constexpr bool is_space(char32_t c) noexcept {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

/// Control characters of ASCII and of Latin-1.
[[nodiscard]] constexpr bool is_control(char32_t c) noexcept {
  return c < 0x20 || (c >= 0x7F && c < 0xA0);
}

/// Punctuation, currency, arrows and other signs: what stands by itself between words.
[[nodiscard]] constexpr bool is_punctuation(char32_t c) noexcept {
  if (c < 0x80) {
    const bool letter_or_digit = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
    return c > 0x20 && c < 0x7F && !letter_or_digit;
  }
  if (c < 0x100)  // but for the ordinals, the soft hyphen and micro
    return (c > 0xA0 && c < 0xC0 && c != 0xAA && c != 0xAD && c != 0xB5 && c != 0xBA) || c == 0xD7 || c == 0xF7;
  return (c >= 0x2010 && c <= 0x205E && !is_space(c)) || (c >= 0x20A0 && c <= 0x20CF) || (c >= 0x2190 && c <= 0x2BFF) ||
         (c >= 0x3001 && c <= 0x3020 && c != 0x3005 && c != 0x3006 && c != 0x3007) || (c >= 0xFE30 && c <= 0xFE6F) ||
         (c >= 0xFF01 && c <= 0xFF0F) || (c >= 0xFF1A && c <= 0xFF20) || (c >= 0xFF3B && c <= 0xFF40) ||
         (c >= 0xFF5B && c <= 0xFF65) || (c >= 0xFFE0 && c <= 0xFFEE) || (c >= 0x1F000 && c <= 0x1FAFF) ||
         c == replacement;
}

/// The lower case of letters whose lower case is one character; others as they are. Latin (to U+017F and U+1E00 to
/// U+1EFF), Greek and Cyrillic.
[[nodiscard]] constexpr char32_t to_lower(char32_t c) noexcept {
  const bool even = c % 2 == 0;
  if (c < 0x80) return c >= 'A' && c <= 'Z' ? c + 32 : c;
  if (c < 0x100) return c >= 0xC0 && c <= 0xDE && c != 0xD7 ? c + 32 : c;
  if (c < 0x180) {
    if (c == 0x130 || c == 0x138 || c == 0x149 || c == 0x17F) return c;
    if (c == 0x178) return 0xFF;
    const bool capital_is_odd = (c >= 0x139 && c <= 0x148) || c >= 0x179;
    return even != capital_is_odd ? c + 1 : c;
  }
  if (c == 0x386) return 0x3AC;
  if (c >= 0x388 && c <= 0x38A) return c + 37;
  if (c == 0x38C) return 0x3CC;
  if (c == 0x38E || c == 0x38F) return c + 63;
  if (c >= 0x391 && c <= 0x3AB && c != 0x3A2) return c + 32;
  if (c >= 0x400 && c <= 0x40F) return c + 80;
  if (c >= 0x410 && c <= 0x42F) return c + 32;
  if (c == 0x1E9E) return 0xDF;
  if ((c >= 0x1E00 && c <= 0x1E95) || (c >= 0x1EA0 && c <= 0x1EFF)) return even ? c + 1 : c;
  return c;
}

/// `text` in lower case; bytes that are no character become U+FFFD.
[[nodiscard]] inline std::string to_lower(std::string_view text) {
  std::string lower;
  lower.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const Decoded character = decode(text, at);
    append(lower, to_lower(character.value));
    at += character.bytes;
  }
  return lower;
}

}  // namespace gnmt::utf8
