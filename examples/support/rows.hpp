// The rows of an experiment: one measured model each, kept as JSON, and the statistics over seeds that tables and
// comparisons are made of.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <map>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <strata/core/error.hpp>
#include <strata/io/atomic_file.hpp>
#include <strata/io/mapped_file.hpp>

namespace examples {

/// Whether two rows are of one model: of the same network, data, arm, seed and level.
[[nodiscard]] inline bool same_model(const nlohmann::json& a, const nlohmann::json& b) {
  for (const char* key : {"network", "data", "arm", "seed", "level"})
    if (a.at(key) != b.at(key)) return false;
  return true;
}

/// Adds a row, which takes the place of an older one of the same model.
inline void add_row(nlohmann::json& rows, nlohmann::json row) {
  const auto found = std::find_if(rows.begin(), rows.end(), [&](const auto& old) { return same_model(old, row); });
  if (found == rows.end())
    rows.push_back(std::move(row));
  else
    *found = std::move(row);
}

/// The part of the data that a row was judged by, "test" or "validation".
[[nodiscard]] inline std::string part_of(const nlohmann::json& row) {
  return row.value("split", row.value("part", "test"));
}

namespace detail {

/// The program of a command, then its options with their values in alphabetical order, those for which `keep(name)`.
template <class Keep>
[[nodiscard]] std::vector<std::string> options_of(const nlohmann::json& row, const Keep& keep) {
  std::istringstream words(row.value("command", ""));
  std::vector<std::string> options;
  for (std::string word; words >> word;) {
    if (!options.empty() && !word.starts_with("--")) {
      options.back() += " " + word;
      continue;
    }
    if (const std::size_t sign = word.find('='); sign != std::string::npos) word[sign] = ' ';
    options.push_back(std::move(word));
  }
  if (options.empty()) return options;
  std::sort(options.begin() + 1, options.end());
  options.erase(std::remove_if(options.begin() + 1, options.end(),
                               [&](const std::string& option) {
                                 return !keep(std::string_view(option).substr(0, option.find(' ')));
                               }),
                options.end());
  return options;
}

[[nodiscard]] inline std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

/// `settings_of`, one by one.
[[nodiscard]] inline std::vector<std::string> setting_list(const nlohmann::json& row) {
  static constexpr std::string_view left_out[] = {"--seed",  "--first-seed", "--seeds",      "--test",
                                                  "--arm",   "--arms",       "--data",       "--data-name",
                                                  "--level", "--switches",   "--dense-from", "--single-level"};
  return options_of(row, [](std::string_view name) {
    return std::find(std::begin(left_out), std::end(left_out), name) == std::end(left_out);
  });
}

}  // namespace detail

/// What the run of a row was told, without what the row itself says (data, arm, level), what tells runs of the same
/// settings apart (seeds), what changes what is judged and not what is learnt (--test, --switches), and where the dense
/// model was taken from.
[[nodiscard]] inline std::string settings_of(const nlohmann::json& row) {
  return detail::joined(detail::setting_list(row));
}

/// What of it makes another network or other data, which no two arms of one table differ in.
[[nodiscard]] inline std::string shape_of(const nlohmann::json& row) {
  static constexpr std::string_view kept[] = {"--width",     "--encoder-layers", "--decoder-layers", "--points",
                                              "--samples1",  "--samples2",       "--centroids1",     "--centroids2",
                                              "--limit",     "--merges",         "--multi-scale",    "--whole-words",
                                              "--lower-case"};
  return detail::joined(detail::options_of(
      row, [](std::string_view name) { return std::find(std::begin(kept), std::end(kept), name) != std::end(kept); }));
}

/// Adds `more`, the rows of file `where`, as `add_row` does. Errors, with nothing changed: rows judged by another part
/// of the data, or not judged where those are that they would replace; rows of a network and data whose runs had a
/// network of another shape than rows which are there; rows of an arm and level whose run was told something else or
/// had other epochs: they would take their place, or a mean be over both.
[[nodiscard]] inline strata::Status merge_rows(nlohmann::json& rows, const nlohmann::json& more,
                                               const std::string& where) {
  nlohmann::json merged = rows;
  for (const auto& row : more) {
    if (!merged.empty() && part_of(row) != part_of(merged.front()))
      return strata::Error(where, "rows judged by " + part_of(merged.front()) + " data", "one by " + part_of(row));
    for (const auto& old : merged) {
      const auto same = [&](const char* key) { return old.at(key) == row.at(key); };
      if (!same("network") || !same("data")) continue;
      if (shape_of(old) != shape_of(row))
        return strata::Error(where, "runs of \"" + shape_of(old) + "\", as those which are there",
                             "one of \"" + shape_of(row) + "\"");
      if (!same("arm") || !same("level")) continue;
      if (settings_of(old) != settings_of(row))
        return strata::Error(where, "runs of \"" + settings_of(old) + "\", as those of that arm which are there",
                             "one of \"" + settings_of(row) + "\"");
      if (old.value("epochs", nlohmann::json()) != row.value("epochs", nlohmann::json()))
        return strata::Error(where,
                             "runs of " + old.value("epochs", nlohmann::json()).dump() + " epochs, as those of " +
                                 std::string(row.at("arm")) + " which are there",
                             "one of " + row.value("epochs", nlohmann::json()).dump());
      if (same("seed") && old.value("accuracy", nlohmann::json()).is_number() &&
          !row.value("accuracy", nlohmann::json()).is_number())
        return strata::Error(where,
                             "rows with an accuracy, as those of seed " + row.at("seed").dump() + " which are there",
                             "one without");
    }
    add_row(merged, row);
  }
  rows = std::move(merged);
  return strata::success();
}

/// What rows call the data of a directory: its last name.
[[nodiscard]] inline std::string data_name(const std::string& directory) {
  std::filesystem::path path = std::filesystem::weakly_canonical(directory);
  if (path.filename().empty()) path = path.parent_path();
  return path.filename().string();
}

/// Rows of which an arm may have been run with several settings, each of these as an arm of its own: to the name of
/// such an arm those options are added that not all of its runs had.
[[nodiscard]] inline nlohmann::json with_settings_as_arms(nlohmann::json rows) {
  std::map<std::string, std::vector<std::string>> common;  // to all settings of an arm
  for (const auto& row : rows) {
    std::vector<std::string> settings = detail::setting_list(row);
    const auto [known, first] = common.try_emplace(row.at("arm"), settings);
    if (!first)
      std::erase_if(known->second,
                    [&](const std::string& option) { return std::ranges::find(settings, option) == settings.end(); });
  }
  for (auto& row : rows) {
    const std::vector<std::string>& shared = common.at(row.at("arm"));
    std::string arm = row.at("arm");
    for (const std::string& option : detail::setting_list(row))
      if (std::ranges::find(shared, option) == shared.end()) arm += " " + option;
    row["arm"] = std::move(arm);
  }
  return rows;
}

/// What `read_rows` takes: one run for each arm and seed, or runs of an arm with other settings as well, which become
/// arms of their own (`with_settings_as_arms`).
enum class Settings : std::uint8_t { one_an_arm, several };

/// Reads a file of rows, a JSON array of objects; none if there is no such file. Errors: a file that cannot be read,
/// another content, rows judged by different parts of the data, two rows of one model.
[[nodiscard]] inline strata::Result<nlohmann::json> read_rows(const std::string& path,
                                                              Settings settings = Settings::one_an_arm) {
  std::error_code unknown;  // such as a directory that may not be searched: the error is that of reading
  if (!std::filesystem::exists(path, unknown) && !unknown) return nlohmann::json::array();
  const auto file = strata::io::MappedFile::open(path, false);
  if (!file) return file.error();
  const auto* const text = reinterpret_cast<const char*>(file.value()->bytes().data());
  nlohmann::json rows = nlohmann::json::parse(text, text + file.value()->bytes().size(), nullptr, false);
  if (!rows.is_array() || !std::all_of(rows.begin(), rows.end(), [](const auto& row) { return row.is_object(); }))
    return strata::Error(path, "rows of an experiment as a JSON array of objects", "something else");
  for (const auto& row : rows)
    for (const char* key : {"network", "data", "arm", "level", "seed", "accuracy", "weights", "flops"})
      if (!row.contains(key)) return strata::Error(path, std::string("rows with \"") + key + "\"", "one without");
  for (const auto& row : rows)
    if (part_of(row) != part_of(rows.front()))
      return strata::Error(path, "rows judged by " + part_of(rows.front()) + " data", "one by " + part_of(row));
  if (settings == Settings::several) rows = with_settings_as_arms(std::move(rows));
  for (auto row = rows.begin(); row != rows.end(); ++row)
    if (std::any_of(rows.begin(), row, [&](const auto& other) { return same_model(other, *row); }))
      return strata::Error(path, "one row a network, data, arm, seed and level", "two like " + row->dump());
  return rows;
}

/// Writes one row a line, whole or not at all.
[[nodiscard]] inline strata::Status write_rows(const nlohmann::json& rows, const std::string& path) {
  std::string text = "[";
  for (std::size_t i = 0; i < rows.size(); ++i) text += (i == 0 ? "\n" : ",\n") + rows[i].dump();
  text += "\n]\n";
  return strata::io::write_atomically(path, {std::as_bytes(std::span(text))});
}

/// Mean and standard deviation (of a sample) of some numbers.
struct Summary {
  std::size_t count = 0;
  double mean = 0;
  double deviation = 0;
};

[[nodiscard]] inline Summary summarise(const std::vector<double>& values) {
  Summary summary{values.size(), 0, 0};
  for (const double value : values) summary.mean += value / static_cast<double>(values.size());
  for (const double value : values) summary.deviation += (value - summary.mean) * (value - summary.mean);
  summary.deviation = values.size() < 2 ? 0 : std::sqrt(summary.deviation / static_cast<double>(values.size() - 1));
  return summary;
}

/// The 97.5 % quantile of Student's t with `freedom` degrees (at least 1): from a table up to 10 degrees, beyond them
/// by Cornish and Fisher's expansion (2.093 for 19).
[[nodiscard]] inline double student_quantile(std::size_t freedom) {
  constexpr std::array<double, 10> exact = {12.7062, 4.3027, 3.1824, 2.7764, 2.5706,
                                            2.4469,  2.3646, 2.3060, 2.2622, 2.2281};
  if (freedom <= exact.size()) return exact[std::max<std::size_t>(freedom, 1) - 1];
  constexpr double z = 1.959964;
  const auto n = static_cast<double>(freedom);
  return z + (z * z * z + z) / (4 * n) + (5 * std::pow(z, 5) + 16 * std::pow(z, 3) + 3 * z) / (96 * n * n);
}

/// Half of the two-sided 95 % confidence interval of a mean; infinite for fewer than two values.
[[nodiscard]] inline double half_interval(const Summary& summary) {
  if (summary.count < 2) return INFINITY;
  return student_quantile(summary.count - 1) * summary.deviation / std::sqrt(static_cast<double>(summary.count));
}

/// A level's name in tables and keys: "dense", "1", or "1>0" for a path that drops.
[[nodiscard]] inline std::string level_text(const nlohmann::json& row) {
  const auto& level = row.at("level");
  return level.is_string() ? level.get<std::string>() : std::to_string(level.get<int>());
}

/// `key` of the rows of one arm and level by seed; rows without it, or where it is null, are left out.
[[nodiscard]] inline std::map<std::int64_t, double> by_seed(const nlohmann::json& rows, const std::string& arm,
                                                            const std::string& level, const char* key) {
  std::map<std::int64_t, double> values;
  for (const auto& row : rows)
    if (row.at("arm") == arm && level_text(row) == level && row.contains(key) && row.at(key).is_number())
      values[row.at("seed").get<std::int64_t>()] = row.at(key).get<double>();
  return values;
}

/// a - b for the seeds that both have.
[[nodiscard]] inline std::vector<double> differences(const std::map<std::int64_t, double>& a,
                                                     const std::map<std::int64_t, double>& b) {
  std::vector<double> result;
  for (const auto& [seed, value] : a)
    if (const auto other = b.find(seed); other != b.end()) result.push_back(value - other->second);
  return result;
}

[[nodiscard]] inline std::vector<double> values_of(const std::map<std::int64_t, double>& map) {
  std::vector<double> result;
  for (const auto& [seed, value] : map) result.push_back(value);
  return result;
}

}  // namespace examples
