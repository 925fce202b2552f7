// The little JSON (RFC 8259) that model files and profiles need, without templates, because every program that loads a
// model compiles it: a text is checked once as a whole, then values are looked up in it where they stand. Nothing is
// copied but what is asked for, so a hostile text costs no more memory than its own length, some times over.
#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>

#if defined(_LIBCPP_VERSION) && _LIBCPP_VERSION < 200000
#error "strata expects std::from_chars for double: libstdc++, or libc++ from LLVM 20 on"
#endif

namespace strata::io {

namespace detail {

/// Bytes of the UTF-8 sequence (RFC 3629: shortest form, no surrogates) at the start of `text`; 0 if there is none.
[[nodiscard]] inline std::size_t utf8_length(std::string_view text) noexcept {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
  const auto follows = [&](std::size_t i) { return (byte(i) & 0xC0U) == 0x80U; };
  const unsigned first = byte(0);
  if (text.empty()) return 0;
  if (first < 0x80) return 1;
  if (first < 0xC2 || first > 0xF4 || !follows(1)) return 0;
  if (first < 0xE0) return 2;
  const unsigned second = byte(1);
  if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) || (first == 0xF0 && second < 0x90) ||
      (first == 0xF4 && second > 0x8F) || !follows(2))
    return 0;
  if (first < 0xF0) return 3;
  return follows(3) ? 4 : 0;
}

[[nodiscard]] inline bool is_utf8(std::string_view text) noexcept {
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

/// Appends a code point as UTF-8.
STRATA_COLD inline void append_utf8(std::string& text, std::uint32_t code) {
  const auto tail = [&](unsigned shift) { text += static_cast<char>(0x80U | ((code >> shift) & 0x3FU)); };
  if (code < 0x80) {
    text += static_cast<char>(code);
  } else if (code < 0x800) {
    text += static_cast<char>(0xC0U | (code >> 6U));
    tail(0);
  } else if (code < 0x10000) {
    text += static_cast<char>(0xE0U | (code >> 12U));
    tail(6);
    tail(0);
  } else {
    text += static_cast<char>(0xF0U | (code >> 18U));
    tail(12);
    tail(6);
    tail(0);
  }
}

/// Walks over a JSON text. Every function that takes something returns false, and has no more to say, if it is not
/// there.
class JsonScanner {
 public:
  explicit JsonScanner(std::string_view text) noexcept : text_(text) {}

  [[nodiscard]] std::size_t at() const noexcept { return at_; }
  [[nodiscard]] bool at_end() const noexcept { return at_ == text_.size(); }
  /// Whether a value was nested deeper than allowed.
  [[nodiscard]] bool too_deep() const noexcept { return too_deep_; }
  /// A name that an object has twice.
  [[nodiscard]] const std::optional<std::string>& twice() const noexcept { return twice_; }

  void skip_space() noexcept {
    while (!at_end() && (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r')) ++at_;
  }

  [[nodiscard]] bool take(char expected) noexcept {
    if (at_end() || text_[at_] != expected) return false;
    ++at_;
    return true;
  }

  /// A string; what it stands for is appended to `result` unless that is null.
  [[nodiscard]] bool take_string(std::string* result) {
    if (!take('"')) return false;
    while (!at_end() && peek() != '"') {
      if (peek() == '\\') {
        if (!take_escape(result)) return false;
        continue;
      }
      const std::size_t length = utf8_length(text_.substr(at_));
      if (length == 0 || static_cast<unsigned char>(peek()) < 0x20) return false;
      if (result != nullptr) result->append(text_.substr(at_, length));
      at_ += length;
    }
    return take('"');
  }

  /// A number that a double can hold.
  [[nodiscard]] bool take_number() noexcept {
    const std::size_t start = at_;
    (void)take('-');
    if (!take('0') && !take_digits()) return false;
    if (take('.') && !take_digits()) return false;
    if (take('e') || take('E')) {
      if (!take('+')) (void)take('-');
      if (!take_digits()) return false;
    }
    double number = 0;
    return std::from_chars(text_.data() + start, text_.data() + at_, number).ec == std::errc();
  }

  /// Any value, in which objects and lists are nested at most `depth` deep.
  [[nodiscard]] bool take_value(int depth) {
    if (at_end()) return false;
    switch (peek()) {
      case '{':
      case '[':
        too_deep_ = too_deep_ || depth == 0;
        return !too_deep_ && (peek() == '{' ? take_object(depth) : take_list(depth));
      case '"':
        return take_string(nullptr);
      case 't':
        return take_word("true");
      case 'f':
        return take_word("false");
      case 'n':
        return take_word("null");
      default:
        return take_number();
    }
  }

 private:
  [[nodiscard]] char peek() const noexcept { return text_[at_]; }

  [[nodiscard]] bool take_digits() noexcept {
    const std::size_t start = at_;
    while (!at_end() && peek() >= '0' && peek() <= '9') ++at_;
    return at_ > start;
  }

  [[nodiscard]] bool take_word(std::string_view word) noexcept {
    if (!text_.substr(at_).starts_with(word)) return false;
    at_ += word.size();
    return true;
  }

  /// The four digits of \uXXXX.
  [[nodiscard]] bool take_unit(std::uint32_t& unit) noexcept {
    const char* const first = text_.data() + at_;
    if (text_.size() - at_ < 4) return false;
    unit = 0;
    const auto [end, error] = std::from_chars(first, first + 4, unit, 16);
    if (error != std::errc() || end != first + 4) return false;
    at_ += 4;
    return true;
  }

  [[nodiscard]] bool take_escape(std::string* result) {
    if (!take('\\') || at_end()) return false;
    constexpr std::string_view names = "\"\\/bfnrt";
    constexpr std::string_view meanings = "\"\\/\b\f\n\r\t";
    const char name = text_[at_++];
    std::uint32_t code = 0;
    if (name == 'u') {
      if (!take_unit(code)) return false;
      if (code >= 0xDC00 && code < 0xE000) return false;
      if (code >= 0xD800 && code < 0xDC00) {
        std::uint32_t low = 0;
        if (!take('\\') || !take('u') || !take_unit(low) || low < 0xDC00 || low >= 0xE000) return false;
        code = 0x10000 + ((code - 0xD800) << 10U) + (low - 0xDC00);
      }
    } else {
      const std::size_t which = names.find(name);
      if (which == std::string_view::npos) return false;
      code = static_cast<unsigned char>(meanings[which]);
    }
    if (result != nullptr) append_utf8(*result, code);
    return true;
  }

  [[nodiscard]] bool take_list(int depth) {
    (void)take('[');
    skip_space();
    if (take(']')) return true;
    do {
      skip_space();
      if (!take_value(depth - 1)) return false;
      skip_space();
    } while (take(','));
    return take(']');
  }

  [[nodiscard]] bool take_object(int depth) {
    (void)take('{');
    skip_space();
    if (take('}')) return true;
    std::set<std::string> names;
    do {
      skip_space();
      std::string name;
      if (!take_string(&name)) return false;
      if (!names.insert(name).second) twice_ = std::move(name);
      skip_space();
      if (!take(':')) return false;
      skip_space();
      if (!take_value(depth - 1)) return false;
      skip_space();
    } while (take(','));
    return take('}');
  }

  std::string_view text_;
  std::size_t at_ = 0;
  bool too_deep_ = false;
  std::optional<std::string> twice_;
};

}  // namespace detail

struct JsonMember;

/// A value in a JSON text that was found valid. A view: the text has to outlive it.
class JsonValue {
 public:
  /// The value that is all of `text`. Errors: invalid JSON, numbers beyond a double's range, a name given twice in an
  /// object, objects and lists nested more than `depth` deep.
  [[nodiscard]] static Result<JsonValue> parse(std::string_view text, int depth) {
    detail::JsonScanner scanner(text);
    scanner.skip_space();
    const std::size_t start = scanner.at();
    const bool good = scanner.take_value(depth);
    if (scanner.too_deep()) return Error({"JSON"}, {"nesting of at most ", depth}, {"deeper"});
    const std::size_t end = scanner.at();
    scanner.skip_space();
    if (!good || !scanner.at_end()) return Error({"JSON"}, {"valid JSON"}, {"something else at byte ", scanner.at()});
    if (scanner.twice()) return Error({"JSON"}, {"names given once"}, {"\"", *scanner.twice(), "\" twice"});
    return JsonValue(text.substr(start, end - start));
  }

  /// As it stands in the text.
  [[nodiscard]] std::string_view source() const noexcept { return source_; }
  [[nodiscard]] bool is_object() const noexcept { return source_.front() == '{'; }
  [[nodiscard]] bool is_list() const noexcept { return source_.front() == '['; }

  /// What a string stands for; none for anything else.
  [[nodiscard]] std::optional<std::string> text() const {
    std::optional<std::string> result{std::in_place};
    if (!detail::JsonScanner(source_).take_string(&*result)) result.reset();
    return result;
  }
  /// A number written without sign, point and exponent, below 2^64.
  [[nodiscard]] std::optional<std::uint64_t> whole() const noexcept {
    std::uint64_t number = 0;
    const auto [end, error] = std::from_chars(source_.data(), source_.data() + source_.size(), number);
    if (error != std::errc() || end != source_.data() + source_.size()) return std::nullopt;
    return number;
  }
  [[nodiscard]] std::optional<double> number() const noexcept {
    double number = 0;
    if (source_.front() != '-' && (source_.front() < '0' || source_.front() > '9')) return std::nullopt;
    std::from_chars(source_.data(), source_.data() + source_.size(), number);
    return number;
  }
  /// The elements of a list of at most `most`; none for a longer one and anything else.
  [[nodiscard]] inline std::optional<std::vector<JsonValue>> elements(std::size_t most) const;
  /// The members of an object as they stand; empty for anything else.
  [[nodiscard]] inline std::vector<JsonMember> members() const;

 private:
  explicit JsonValue(std::string_view source) noexcept : source_(source) {}

  /// Takes the value at which `scanner` stands, which walks over `source_`.
  [[nodiscard]] JsonValue next(detail::JsonScanner& scanner) const {
    constexpr int any_depth = 1 << 20;
    const std::size_t start = scanner.at();
    (void)scanner.take_value(any_depth);
    return JsonValue(source_.substr(start, scanner.at() - start));
  }

  std::string_view source_;
};

struct JsonMember {
  std::string name;
  JsonValue value;
};

inline std::optional<std::vector<JsonValue>> JsonValue::elements(std::size_t most) const {
  std::optional<std::vector<JsonValue>> list;
  detail::JsonScanner scanner(source_);
  if (!scanner.take('[')) return list;
  list.emplace();
  scanner.skip_space();
  while (!scanner.take(']')) {
    if (list->size() == most) return std::nullopt;
    list->push_back(next(scanner));
    scanner.skip_space();
    (void)scanner.take(',');
    scanner.skip_space();
  }
  return list;
}

inline std::vector<JsonMember> JsonValue::members() const {
  std::vector<JsonMember> list;
  detail::JsonScanner scanner(source_);
  if (!scanner.take('{')) return list;
  scanner.skip_space();
  while (!scanner.take('}')) {
    std::string name;
    (void)scanner.take_string(&name);
    scanner.skip_space();
    (void)scanner.take(':');
    scanner.skip_space();
    list.push_back({std::move(name), next(scanner)});
    scanner.skip_space();
    (void)scanner.take(',');
    scanner.skip_space();
  }
  return list;
}

/// Appends `value` as a JSON string. Bytes that are not UTF-8 become U+FFFD.
inline void append_json(std::string& text, std::string_view value) {
  text += '"';
  while (!value.empty()) {
    const std::size_t length = detail::utf8_length(value);
    const char first = value.front();
    if (length == 0) {
      detail::append_utf8(text, 0xFFFD);
    } else if (static_cast<unsigned char>(first) < 0x20) {
      constexpr std::string_view digits = "0123456789abcdef";
      text += "\\u00";
      text += digits[static_cast<unsigned char>(first) >> 4U];
      text += digits[static_cast<unsigned char>(first) & 15U];
    } else {
      if (first == '"' || first == '\\') text += '\\';
      text.append(value.substr(0, length));
    }
    value.remove_prefix(length == 0 ? 1 : length);
  }
  text += '"';
}

/// Appends `number` with as many digits as reading it back takes. Precondition: finite.
inline void append_json(std::string& text, double number) {
  char buffer[32];
  text.append(buffer, std::to_chars(buffer, buffer + sizeof(buffer), number).ptr);
}

}  // namespace strata::io
