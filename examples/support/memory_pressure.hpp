// How short memory is, from what Linux tells: pressure-stall information (Documentation/accounting/psi.rst) and the
// limits of a control group (cgroup v2). What to do about it is the program's decision.
#pragma once

#include <charconv>
#include <cstdint>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>

namespace examples {

/// Contents of a small file; empty if it cannot be read.
[[nodiscard]] inline std::string read_small_file(const std::string& path) {
  std::ifstream stream(path);
  std::stringstream text;
  text << stream.rdbuf();
  return text.str().substr(0, 4096);
}

/// The share of the last ten seconds, in percent, in which some task waited for memory: "avg10" of the line "some".
/// Nothing if `text` is no pressure file.
[[nodiscard]] inline std::optional<double> pressure_of(std::string_view text) {
  constexpr std::string_view start = "some avg10=";
  if (!text.starts_with(start)) return std::nullopt;
  text.remove_prefix(start.size());
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end == text.data() + text.size() || *end != ' ' || !(value >= 0 && value <= 100))
    return std::nullopt;
  return value;
}

/// The number in a control group's file such as memory.current; nothing for "max" (no limit) and anything else.
[[nodiscard]] inline std::optional<std::uint64_t> cgroup_bytes(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string_view rest(end, static_cast<std::size_t>(text.data() + text.size() - end));
  if (error != std::errc() || (!rest.empty() && rest != "\n")) return std::nullopt;
  return value;
}

/// memory.current over the lower of memory.high and memory.max in `directory`; nothing without a limit.
[[nodiscard]] inline std::optional<double> cgroup_use(const std::string& directory) {
  const auto current = cgroup_bytes(read_small_file(directory + "/memory.current"));
  std::optional<std::uint64_t> limit;
  for (const char* name : {"/memory.high", "/memory.max"})
    if (const auto value = cgroup_bytes(read_small_file(directory + name)); value && (!limit || *value < *limit))
      limit = value;
  if (!current || !limit || *limit == 0) return std::nullopt;
  return static_cast<double>(*current) / static_cast<double>(*limit);
}

/// The directory of this process's control group; empty without cgroup v2.
[[nodiscard]] inline std::string own_cgroup() {
  const std::string text = read_small_file("/proc/self/cgroup");
  if (!text.starts_with("0::")) return {};
  return "/sys/fs/cgroup" + text.substr(3, text.find('\n') - 3);
}

/// Decides how many levels to keep: one less each time memory is short, one more after it was plentiful for a while.
class LevelKeeper {
 public:
  struct Limits {
    double pressure_high = 10;  ///< percent of PSI's avg10 above which memory is short
    double pressure_low = 1;    ///< below which it is plentiful
    double use_high = 0.95;     ///< share of the control group's limit above which memory is short
    double use_low = 0.8;       ///< below which it is plentiful
    int patience = 10;          ///< looks in a row at plenty before a level comes back
  };

  LevelKeeper(int levels, const Limits& limits) : top_(levels - 1), level_(top_), limits_(limits) {}

  /// The highest level to keep after a look; unknown values count neither way.
  int look(std::optional<double> pressure, std::optional<double> use) {
    const bool is_short = (pressure && *pressure > limits_.pressure_high) || (use && *use > limits_.use_high);
    const bool plenty = (!pressure || *pressure < limits_.pressure_low) && (!use || *use < limits_.use_low);
    calm_ = plenty ? calm_ + 1 : 0;
    if (is_short && level_ > 0) --level_;
    if (calm_ >= limits_.patience && level_ < top_) {
      ++level_;
      calm_ = 0;
    }
    return level_;
  }
  [[nodiscard]] int level() const { return level_; }

 private:
  int top_;
  int level_;
  Limits limits_;
  int calm_ = 0;
};

}  // namespace examples
