// Text tables for terminals, and numbers as people read them.
#pragma once

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

namespace examples {

[[nodiscard]] inline std::string fixed(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.*f", digits, value);
  return text;
}

[[nodiscard]] inline std::string percent(double share, int digits = 2) {
  return fixed(100 * share, digits) + " %";
}

/// Aligned columns, the first to the left, the others to the right. Rows have as many cells as the header.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }

  [[nodiscard]] std::string text() const {
    std::vector<std::size_t> widths(rows_.front().size());
    for (const auto& row : rows_)
      for (std::size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
    std::string result;
    for (std::size_t r = 0; r < rows_.size(); ++r) {
      std::string line;
      for (std::size_t c = 0; c < widths.size(); ++c) {
        const std::string gap(widths[c] - rows_[r][c].size(), ' ');
        line += (c == 0 ? "" : "  ") + (c == 0 ? rows_[r][c] + gap : gap + rows_[r][c]);
      }
      result += line + "\n";
      if (r == 0) result += std::string(line.size(), '-') + "\n";
    }
    return result;
  }

 private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace examples
