// A profile as a JSON file beside the model. Reading trusts nothing: every member is checked, none is ignored. Whether
// the profile fits a session is checked where it is used (runtime/profile.hpp).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <strata/core/error.hpp>
#include <strata/io/atomic_file.hpp>
#include <strata/io/mapped_file.hpp>
#include <strata/runtime/profile.hpp>

namespace strata {

namespace io {

inline constexpr std::string_view profile_format = "strata.profile";
inline constexpr int profile_version = 1;
/// No profile is longer; a longer file is refused before it is parsed.
inline constexpr std::size_t max_profile_bytes = 16'000'000;

namespace detail {

/// Parses without exceptions; an error for invalid JSON, a key given twice or nesting deeper than `depth`.
[[nodiscard]] inline Result<nlohmann::json> parse_strictly(std::string_view text, int depth) {
  std::vector<std::set<std::string>> keys;
  std::string twice;
  bool deep = false;
  const auto watch = [&](int at, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    using Event = nlohmann::json::parse_event_t;
    if (at > depth) deep = true;
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end && !keys.empty()) keys.pop_back();
    if (event == Event::key && !keys.empty() && !keys.back().insert(parsed.get<std::string>()).second && twice.empty())
      twice = parsed.get<std::string>();
    return !deep;
  };
  nlohmann::json value = nlohmann::json::parse(text.begin(), text.end(), watch, false);
  if (deep) return Error("JSON", "nesting of at most " + std::to_string(depth), "deeper");
  if (value.is_discarded()) return Error("JSON", "valid JSON", "something else");
  if (!twice.empty()) return Error("JSON", "names given once", "\"" + twice + "\" twice");
  return value;
}

/// Takes members of JSON objects one by one; the first error is kept, and after it everything read is empty.
class StrictReader {
 public:
  /// Error unless `value` is an object with these members and no others.
  void members(const nlohmann::json& value, const std::string& place, const std::vector<const char*>& names) {
    if (error_) return;
    if (!value.is_object()) return fail(Error(place, "an object", "something else"));
    for (const char* name : names)
      if (!value.contains(name)) return fail(Error(place, "a member \"" + std::string(name) + "\"", "none"));
    for (const auto& [name, member] : value.items()) {
      bool known = false;
      for (const char* expected : names) known = known || name == expected;
      if (!known) return fail(Error(place, "no such member", "\"" + name + "\""));
    }
  }
  [[nodiscard]] std::string text(const nlohmann::json& value, const std::string& place) {
    if (error_) return {};
    if (value.is_string() && value.get_ref<const std::string&>().size() <= 1000) return value.get<std::string>();
    fail(Error(place, "text of at most 1000 bytes", "something else"));
    return {};
  }
  [[nodiscard]] std::int64_t whole(const nlohmann::json& value, const std::string& place, std::int64_t least,
                                   std::int64_t most) {
    if (error_) return least;
    if (value.is_number_unsigned() &&
        value.get<std::uint64_t>() <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      const auto number = static_cast<std::int64_t>(value.get<std::uint64_t>());
      if (number >= least && number <= most) return number;
    }
    fail(
        Error(place, "a whole number from " + std::to_string(least) + " to " + std::to_string(most), "something else"));
    return least;
  }
  [[nodiscard]] double time(const nlohmann::json& value, const std::string& place) {
    if (error_) return 0;
    if (value.is_number()) {
      const auto number = value.get<double>();
      if (std::isfinite(number) && number >= 0) return number;
    }
    fail(Error(place, "a time of 0 or more", "something else"));
    return 0;
  }
  /// The elements, between `least` and `most` of them.
  [[nodiscard]] std::vector<nlohmann::json> elements(const nlohmann::json& value, const std::string& place,
                                                     std::size_t least, std::size_t most) {
    if (error_) return {};
    if (value.is_array() && value.size() >= least && value.size() <= most)
      return value.get_ref<const nlohmann::json::array_t&>();
    fail(Error(place, "a list of " + std::to_string(least) + " to " + std::to_string(most), "something else"));
    return {};
  }
  void fail(Error error) {
    if (!error_) error_ = std::move(error);
  }
  [[nodiscard]] const std::optional<Error>& error() const noexcept { return error_; }

 private:
  std::optional<Error> error_;
};

[[nodiscard]] inline nlohmann::json json_of(const TimeDistribution& times) {
  return {{"mean", times.mean}, {"deviation", times.deviation}, {"quantiles", times.quantiles}};
}

[[nodiscard]] inline TimeDistribution distribution_of(const nlohmann::json& value, const std::string& place,
                                                      StrictReader& reader) {
  TimeDistribution times;
  reader.members(value, place, {"mean", "deviation", "quantiles"});
  if (reader.error()) return times;
  times.mean = reader.time(value["mean"], place + " mean");
  times.deviation = reader.time(value["deviation"], place + " deviation");
  const auto quantiles = reader.elements(value["quantiles"], place + " quantiles", profile_probabilities.size(),
                                         profile_probabilities.size());
  for (std::size_t i = 0; i < quantiles.size(); ++i) {
    times.quantiles[i] = reader.time(quantiles[i], place + " quantiles");
    if (i > 0 && times.quantiles[i] < times.quantiles[i - 1])
      reader.fail(Error(place + " quantiles", "ascending times", "others"));
  }
  return times;
}

}  // namespace detail

/// The text of a profile file; times are in nanoseconds.
[[nodiscard]] inline std::string profile_text(const Profile& profile) {
  nlohmann::json stages = nlohmann::json::array();
  for (const auto& stage : profile.stages) {
    nlohmann::json levels = nlohmann::json::array();
    for (const StageTimes& times : stage.levels)
      levels.push_back({{"stage", detail::json_of(times.stage)}, {"rest", detail::json_of(times.rest)}});
    stages.push_back({{"name", stage.name}, {"levels", std::move(levels)}});
  }
  char model[17];
  std::snprintf(model, sizeof(model), "%016llx", static_cast<unsigned long long>(profile.key.model));
  const nlohmann::json file = {{"format", profile_format},
                               {"version", profile_version},
                               {"architecture", profile.key.architecture},
                               {"model", model},
                               {"level_weights", profile.key.level_nnz},
                               {"threads", profile.key.threads},
                               {"batch", profile.key.batch},
                               {"instruction_set", profile.key.instruction_set},
                               {"runs", profile.runs},
                               {"probabilities", profile_probabilities},
                               {"stages", std::move(stages)}};
  return file.dump(1, ' ', true, nlohmann::json::error_handler_t::replace) + "\n";
}

/// The profile that `text` holds. Errors: anything that `profile_text` does not write.
[[nodiscard]] inline Result<Profile> parse_profile(std::string_view text) {
  if (text.size() > max_profile_bytes)
    return Error("profile", "at most " + std::to_string(max_profile_bytes) + " bytes", std::to_string(text.size()));
  Result<nlohmann::json> parsed = detail::parse_strictly(text, 8);
  if (!parsed) return parsed.error();
  const nlohmann::json& file = parsed.value();
  detail::StrictReader reader;
  reader.members(file, "profile",
                 {"format", "version", "architecture", "model", "level_weights", "threads", "batch", "instruction_set",
                  "runs", "probabilities", "stages"});
  if (reader.error()) return *reader.error();
  if (file["format"] != profile_format) return Error("profile: format", std::string(profile_format), "another");
  if (file["version"] != profile_version)
    return Error("profile: version", std::to_string(profile_version), file["version"].dump());
  if (file["probabilities"] != nlohmann::json(profile_probabilities))
    return Error("profile: probabilities", "those of version 1", "others");
  constexpr std::int64_t most = std::int64_t{1} << 53;
  Profile profile;
  profile.key.architecture = reader.text(file["architecture"], "profile: architecture");
  const std::string model = reader.text(file["model"], "profile: model");
  if (model.size() != 16 || model.find_first_not_of("0123456789abcdef") != std::string::npos) {
    reader.fail(Error("profile: model", "16 hexadecimal digits", "something else"));
  } else {
    for (const char digit : model)
      profile.key.model =
          profile.key.model * 16 + static_cast<std::uint64_t>(digit <= '9' ? digit - '0' : digit - 'a' + 10);
  }
  for (const auto& count : reader.elements(file["level_weights"], "profile: level_weights", 1, 255))
    profile.key.level_nnz.push_back(reader.whole(count, "profile: level_weights", 0, most));
  profile.key.threads = static_cast<int>(reader.whole(file["threads"], "profile: threads", 1, 1 << 20));
  profile.key.batch = reader.whole(file["batch"], "profile: batch", 1, most);
  profile.key.instruction_set = reader.text(file["instruction_set"], "profile: instruction_set");
  profile.runs = reader.whole(file["runs"], "profile: runs", 1, most);
  const std::size_t levels = profile.key.level_nnz.size();
  for (const auto& entry : reader.elements(file["stages"], "profile: stages", 1, 10'000)) {
    const std::string place = "profile: stage " + std::to_string(profile.stages.size());
    reader.members(entry, place, {"name", "levels"});
    if (reader.error()) break;
    Profile::Stage stage{reader.text(entry["name"], place + " name"), {}};
    for (const auto& level : reader.elements(entry["levels"], place + " levels", levels, levels)) {
      const std::string at = place + " level " + std::to_string(stage.levels.size());
      reader.members(level, at, {"stage", "rest"});
      if (reader.error()) break;
      StageTimes times;
      times.stage = detail::distribution_of(level["stage"], at + " stage", reader);
      times.rest = detail::distribution_of(level["rest"], at + " rest", reader);
      stage.levels.push_back(times);
    }
    profile.stages.push_back(std::move(stage));
  }
  if (reader.error()) return *reader.error();
  return profile;
}

/// Writes `profile` to `path`, whole or not at all. Error: writing that fails.
[[nodiscard]] inline Status write_profile(const Profile& profile, const std::string& path) {
  const std::string text = profile_text(profile);
  return write_atomically(path, {std::as_bytes(std::span(text))});
}

/// Reads a profile. Errors name the file: not readable, not a profile.
[[nodiscard]] inline Result<Profile> read_profile(const std::string& path) {
  auto file = MappedFile::open(path);
  if (!file) return file.error();
  const auto bytes = file.value()->bytes();
  Result<Profile> profile = parse_profile({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  if (!profile) return profile.error().within(path);
  return profile;
}

/// Where the profile of a model file lies.
[[nodiscard]] inline std::string profile_path(const std::string& model_path) {
  return model_path + ".profile.json";
}

}  // namespace io

/// The profile beside `model_path` if it is there and belongs to `session`; otherwise one measured now and written
/// there. For programs that rather wait at their start than refuse. Raises: writing that fails.
template <class Session>
[[nodiscard]] Profile profile_beside(const std::string& model_path, Session& session,
                                     const ProfileOptions& options = {}) {
  const std::string path = io::profile_path(model_path);
  Result<Profile> stored = io::read_profile(path);
  if (stored && check_profile(stored.value(), session.profile_key(), session.stages())) return stored.value();
  Profile measured = profile(session, options);
  (void)io::write_profile(measured, path).value();
  return measured;
}

}  // namespace strata
