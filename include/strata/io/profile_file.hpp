// A profile as a JSON file beside the model. Reading trusts nothing: every member is checked, none is ignored. Whether
// the profile fits a session is checked where it is used (runtime/profile.hpp).
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/io/atomic_file.hpp>
#include <strata/io/json.hpp>
#include <strata/io/mapped_file.hpp>
#include <strata/runtime/profile.hpp>

namespace strata {

namespace io {

inline constexpr std::string_view profile_format = "strata.profile";
inline constexpr int profile_version = 3;
/// No profile is longer; a longer file is refused before it is parsed.
inline constexpr std::size_t max_profile_bytes = 100'000'000;
/// Most stages of a profile: those of all micro-batches.
inline constexpr std::size_t max_profile_stages = 1'000'000;

namespace detail {

/// Takes members of JSON objects one by one; the first error is kept, and after it everything read is empty.
class StrictReader {
 public:
  /// The values of these members, in their order. Error unless `value` is an object with them and no others.
  [[nodiscard]] std::vector<JsonValue> members(const JsonValue& value, const std::string& place,
                                               std::span<const std::string_view> names) {
    if (error_) return {};
    std::vector<JsonValue> values;
    const std::vector<JsonMember> found = value.members();
    if (!value.is_object()) fail(Error(place, "an object", "something else"));
    for (const std::string_view name : names) {
      const auto member =
          std::find_if(found.begin(), found.end(), [&](const JsonMember& candidate) { return candidate.name == name; });
      if (member == found.end()) {
        fail(Error({place}, {"a member \"", name, "\""}, {"none"}));
      } else {
        values.push_back(member->value);
      }
    }
    for (const JsonMember& member : found)
      if (std::find(names.begin(), names.end(), member.name) == names.end())
        fail(Error({place}, {"no such member"}, {"\"", member.name, "\""}));
    if (error_) values.clear();
    return values;
  }
  [[nodiscard]] std::string text(const JsonValue& value, const std::string& place) {
    if (error_) return {};
    if (std::optional<std::string> text = value.text(); text && text->size() <= 1000) return *std::move(text);
    fail(Error(place, "text of at most 1000 bytes", "something else"));
    return {};
  }
  [[nodiscard]] std::int64_t whole(const JsonValue& value, const std::string& place, std::int64_t least,
                                   std::int64_t most) {
    if (error_) return least;
    const std::optional<std::uint64_t> number = value.whole();
    if (number && *number <= static_cast<std::uint64_t>(most) && static_cast<std::int64_t>(*number) >= least)
      return static_cast<std::int64_t>(*number);
    fail(Error({place}, {"a whole number from ", least, " to ", most}, {"something else"}));
    return least;
  }
  [[nodiscard]] double time(const JsonValue& value, const std::string& place) {
    if (error_) return 0;
    if (const std::optional<double> number = value.number(); number && *number >= 0) return *number;
    fail(Error(place, "a time of 0 or more", "something else"));
    return 0;
  }
  /// The elements, between `least` and `most` of them.
  [[nodiscard]] std::vector<JsonValue> elements(const JsonValue& value, const std::string& place, std::size_t least,
                                                std::size_t most) {
    if (error_) return {};
    if (auto list = value.elements(most); list && list->size() >= least) return *std::move(list);
    fail(Error({place}, {"a list of ", least, " to ", most}, {"something else"}));
    return {};
  }
  void fail(Error error) {
    if (!error_) error_ = std::move(error);
  }
  [[nodiscard]] const std::optional<Error>& error() const noexcept { return error_; }

 private:
  std::optional<Error> error_;
};

inline constexpr std::string_view profile_members[] = {
    "format", "version",     "architecture",    "model", "level_weights", "level_bytes", "threads",
    "batch",  "micro_batch", "instruction_set", "runs",  "probabilities", "stages"};
inline constexpr std::string_view stage_members[] = {"name", "levels"};
inline constexpr std::string_view times_members[] = {"stage", "rest"};
inline constexpr std::string_view distribution_members[] = {"mean", "deviation", "quantiles"};

inline void append_list(std::string& text, std::span<const double> numbers) {
  text += '[';
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    if (i > 0) text += ", ";
    append_json(text, numbers[i]);
  }
  text += ']';
}

inline void append_distribution(std::string& text, const TimeDistribution& times) {
  text += "{\"mean\": ";
  append_json(text, times.mean);
  text += ", \"deviation\": ";
  append_json(text, times.deviation);
  text += ", \"quantiles\": ";
  append_list(text, times.quantiles);
  text += '}';
}

[[nodiscard]] inline TimeDistribution distribution_of(const JsonValue& value, const std::string& place,
                                                      StrictReader& reader) {
  TimeDistribution times;
  const auto members = reader.members(value, place, distribution_members);
  if (reader.error()) return times;
  times.mean = reader.time(members[0], place + " mean");
  times.deviation = reader.time(members[1], place + " deviation");
  const auto quantiles =
      reader.elements(members[2], place + " quantiles", profile_probabilities.size(), profile_probabilities.size());
  for (std::size_t i = 0; i < quantiles.size(); ++i) {
    times.quantiles[i] = reader.time(quantiles[i], place + " quantiles");
    if (i > 0 && times.quantiles[i] < times.quantiles[i - 1])
      reader.fail(Error({place, " quantiles"}, {"ascending times"}, {"others"}));
  }
  return times;
}

}  // namespace detail

/// The text of a profile file; times are in nanoseconds. Precondition: they are finite.
[[nodiscard]] inline std::string profile_text(const Profile& profile) {
  std::string text = "{\n";
  const auto member = [&](std::string_view name) -> std::string& {
    if (text.back() != '\n') text += ",\n";
    append_json(text, name);
    return text += ": ";
  };
  append_json(member("format"), profile_format);
  member("version") += std::to_string(profile_version);
  append_json(member("architecture"), profile.key.architecture);
  append_json(member("model"), fingerprint_text(profile.key.model));
  for (const auto& [name, counts] :
       {std::pair("level_weights", &profile.key.level_nnz), std::pair("level_bytes", &profile.key.level_bytes)}) {
    member(name) += '[';
    for (std::size_t i = 0; i < counts->size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string((*counts)[i]);
    text += ']';
  }
  member("threads") += std::to_string(profile.key.threads);
  member("batch") += std::to_string(profile.key.batch);
  member("micro_batch") += std::to_string(profile.key.micro_batch);
  append_json(member("instruction_set"), profile.key.instruction_set);
  member("runs") += std::to_string(profile.runs);
  detail::append_list(member("probabilities"), profile_probabilities);
  member("stages") += '[';
  for (std::size_t s = 0; s < profile.stages.size(); ++s) {
    text += s == 0 ? "\n{\"name\": " : ",\n{\"name\": ";
    append_json(text, profile.stages[s].name);
    text += ", \"levels\": [";
    for (std::size_t level = 0; level < profile.stages[s].levels.size(); ++level) {
      text += level == 0 ? "\n{\"stage\": " : ",\n{\"stage\": ";
      detail::append_distribution(text, profile.stages[s].levels[level].stage);
      text += ",\n\"rest\": ";
      detail::append_distribution(text, profile.stages[s].levels[level].rest);
      text += '}';
    }
    text += "]}";
  }
  return text += "]\n}\n";
}

/// The profile that `text` holds. Errors: anything that `profile_text` does not write.
[[nodiscard]] inline Result<Profile> parse_profile(std::string_view text) {
  return returning_errors([&]() -> Result<Profile> {
    if (text.size() > max_profile_bytes)
      return Error({"profile"}, {"at most ", max_profile_bytes, " bytes"}, {text.size()});
    const Result<JsonValue> parsed = JsonValue::parse(text, 8);
    if (!parsed) return parsed.error();
    detail::StrictReader reader;
    const std::vector<JsonValue> members = reader.members(parsed.value(), "profile", detail::profile_members);
    if (reader.error()) return *reader.error();
    if (members[0].text() != profile_format) return Error("profile: format", profile_format, "another");
    if (members[1].whole() != std::uint64_t{profile_version})
      return Error("profile: version", profile_version, members[1].source().substr(0, 200));
    const auto probabilities = reader.elements(members[11], "profile: probabilities", 0, profile_probabilities.size());
    bool same = probabilities.size() == profile_probabilities.size();
    for (std::size_t i = 0; same && i < probabilities.size(); ++i)
      same = probabilities[i].number() == profile_probabilities[i];
    if (!same) return Error("profile: probabilities", "those of version 3", "others");
    constexpr std::int64_t most = std::int64_t{1} << 53;
    Profile profile;
    profile.key.architecture = reader.text(members[2], "profile: architecture");
    const std::string model = reader.text(members[3], "profile: model");
    if (model.size() != 16 || model.find_first_not_of("0123456789abcdef") != std::string::npos) {
      reader.fail(Error("profile: model", "16 hexadecimal digits", "something else"));
    } else {
      for (const char digit : model)
        profile.key.model =
            profile.key.model * 16 + static_cast<std::uint64_t>(digit <= '9' ? digit - '0' : digit - 'a' + 10);
    }
    for (const JsonValue& count : reader.elements(members[4], "profile: level_weights", 1, 255))
      profile.key.level_nnz.push_back(reader.whole(count, "profile: level_weights", 0, most));
    const std::size_t levels = profile.key.level_nnz.size();
    for (const JsonValue& count : reader.elements(members[5], "profile: level_bytes", levels, levels))
      profile.key.level_bytes.push_back(reader.whole(count, "profile: level_bytes", 0, most));
    profile.key.threads = static_cast<int>(reader.whole(members[6], "profile: threads", 1, 1 << 20));
    profile.key.batch = reader.whole(members[7], "profile: batch", 1, most);
    profile.key.micro_batch = reader.whole(members[8], "profile: micro_batch", 1, most);
    profile.key.instruction_set = reader.text(members[9], "profile: instruction_set");
    profile.runs = reader.whole(members[10], "profile: runs", 1, most);
    for (const JsonValue& entry : reader.elements(members[12], "profile: stages", 1, max_profile_stages)) {
      const std::string place = "profile: stage " + std::to_string(profile.stages.size());
      const auto parts = reader.members(entry, place, detail::stage_members);
      if (reader.error()) break;
      Profile::Stage stage{reader.text(parts[0], place + " name"), {}};
      for (const JsonValue& level : reader.elements(parts[1], place + " levels", levels, levels)) {
        const std::string at = place + " level " + std::to_string(stage.levels.size());
        const auto times = reader.members(level, at, detail::times_members);
        if (reader.error()) break;
        stage.levels.push_back({detail::distribution_of(times[0], at + " stage", reader),
                                detail::distribution_of(times[1], at + " rest", reader)});
      }
      profile.stages.push_back(std::move(stage));
    }
    if (reader.error()) return *reader.error();
    return profile;
  });
}

/// Writes `profile` to `path`, whole or not at all. Errors name the file: a profile that is not whole (`check_profile`)
/// or would not come back as it is, such as one with names that are not UTF-8, before anything is written; writing that
/// fails.
[[nodiscard]] inline Status write_profile(const Profile& profile, const std::string& path) {
  return returning_errors([&]() -> Status {
    std::vector<std::string> names;
    for (const Profile::Stage& stage : profile.stages) names.push_back(stage.name);
    if (const Status whole = check_profile(profile, profile.key, names); !whole) return whole.error().within(path);
    names.push_back(profile.key.architecture);
    names.push_back(profile.key.instruction_set);
    for (const std::string& name : names)
      if (!detail::is_utf8(name)) return Error({path, ": profile"}, {"names in UTF-8"}, {"\"", name, "\""});
    const std::string text = profile_text(profile);
    const Result<Profile> again = parse_profile(text);
    if (!again) return again.error().within(path);
    if (!(again.value() == profile)) return Error(path, "a profile that comes back as it is", "another");
    return write_atomically(path, {std::as_bytes(std::span(text))});
  });
}

/// Reads a profile. Errors name the file: not readable, not a profile.
[[nodiscard]] inline Result<Profile> read_profile(const std::string& path) {
  return returning_errors([&]() -> Result<Profile> {
    auto file = MappedFile::open(path);
    if (!file) return file.error();
    const auto bytes = file.value()->bytes();
    Result<Profile> profile = parse_profile({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    if (!profile) return profile.error().within(path);
    return profile;
  });
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
