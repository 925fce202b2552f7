// Tables in plain text for the terminal and for Markdown's code blocks, and numbers as they stand in them. The numbers
// do not depend on the locale.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace examples {

/// `value` with `digits` (0 .. 17, others are brought into that range) after the point; "nan", "inf" or "-inf" if it is
/// not finite. No minus stands before a zero.
[[nodiscard]] inline std::string fixed(double value, int digits) {
  if (std::isnan(value)) return "nan";
  std::array<char, 352> text{};  // the largest double has 309 digits before the point
  const auto end =
      std::to_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed, std::clamp(digits, 0, 17));
  std::string result(text.data(), end.ptr);
  if (result.find_first_not_of("-0.") == std::string::npos && result.front() == '-') result.erase(0, 1);
  return result;
}

/// `share` (1 is the whole) in percent with `digits` after the point: "12.5 %".
[[nodiscard]] inline std::string percent(double share, int digits) {
  return fixed(100 * share, digits) + " %";
}

/// A number of bytes in the largest binary unit that keeps it at 1 or more: "512 B", "1.5 KiB", "3.0 GiB".
[[nodiscard]] inline std::string bytes(double count) {
  constexpr std::array<const char*, 7> units = {" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"};
  std::size_t unit = 0;
  // The limits are those from which rounding would show 1024.
  while (std::isfinite(count) && unit + 1 < units.size() && std::abs(count) >= (unit == 0 ? 1023.5 : 1023.95)) {
    count /= 1024;
    ++unit;
  }
  return fixed(count, unit == 0 ? 0 : 1) + units[unit];
}

/// Rows of cells under a header; the first column is flush left, the others flush right, two spaces between them.
class Table {
 public:
  explicit Table(std::vector<std::string> header) { rows_.push_back(std::move(header)); }

  /// Missing cells stay empty; cells beyond the header make columns without one.
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }

  /// The header, a line of dashes and the rows, each with a line feed. Widths count UTF-8 characters.
  [[nodiscard]] std::string text() const {
    std::vector<std::size_t> widths;
    for (const auto& row : rows_) {
      widths.resize(std::max(widths.size(), row.size()));
      for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width(row[i]));
    }
    std::string result = line(rows_.front(), widths);
    std::vector<std::string> dashes;
    for (const std::size_t each : widths) dashes.emplace_back(each, '-');
    result += line(dashes, widths);
    for (std::size_t i = 1; i < rows_.size(); ++i) result += line(rows_[i], widths);
    return result;
  }

 private:
  [[nodiscard]] static std::size_t width(const std::string& cell) {
    return static_cast<std::size_t>(std::count_if(
        cell.begin(), cell.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; }));
  }

  [[nodiscard]] static std::string line(const std::vector<std::string>& row, const std::vector<std::size_t>& widths) {
    std::string result;
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::string space(widths[i] - width(row[i]), ' ');
      result += i == 0 ? row[i] + space : "  " + space + row[i];
    }
    result.erase(result.find_last_not_of(' ') + 1);
    return result + "\n";
  }

  std::vector<std::vector<std::string>> rows_;  ///< the header first
};

}  // namespace examples
