// How long every stage of a network takes at every level on this machine, undisturbed: what the router predicts from.
// Measuring is here; the file beside the model is io/profile_file.hpp's business.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/runtime/clock.hpp>

namespace strata {

/// Probabilities of the quantiles that a profile keeps.
inline constexpr std::array<double, 10> profile_probabilities = {0, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1};

/// A measured distribution of times, in nanoseconds.
struct TimeDistribution {
  double mean = 0;
  double deviation = 0;  ///< standard deviation
  std::array<double, profile_probabilities.size()> quantiles{};

  /// Linear between the kept quantiles. `probability` is cut to 0 .. 1.
  [[nodiscard]] double quantile(double probability) const noexcept {
    if (!(probability > 0)) return quantiles.front();
    for (std::size_t i = 1; i < quantiles.size(); ++i)
      if (probability <= profile_probabilities[i]) {
        const double share =
            (probability - profile_probabilities[i - 1]) / (profile_probabilities[i] - profile_probabilities[i - 1]);
        return quantiles[i - 1] + share * (quantiles[i] - quantiles[i - 1]);
      }
    return quantiles.back();
  }
  [[nodiscard]] double median() const noexcept { return quantiles[3]; }

  /// Of `samples`, which are sorted; all zero if there are none.
  [[nodiscard]] static TimeDistribution of(std::vector<double>& samples) {
    TimeDistribution result;
    if (samples.empty()) return result;
    std::sort(samples.begin(), samples.end());
    const auto count = static_cast<double>(samples.size());
    for (const double sample : samples) result.mean += sample / count;
    for (const double sample : samples) result.deviation += (sample - result.mean) * (sample - result.mean) / count;
    result.deviation = std::sqrt(result.deviation);
    for (std::size_t i = 0; i < profile_probabilities.size(); ++i) {
      const double place = profile_probabilities[i] * (count - 1);
      const auto below = static_cast<std::size_t>(place);
      const std::size_t above = std::min(below + 1, samples.size() - 1);
      result.quantiles[i] = samples[below] + (place - static_cast<double>(below)) * (samples[above] - samples[below]);
    }
    return result;
  }

  friend bool operator==(const TimeDistribution&, const TimeDistribution&) = default;
};

/// Times of one stage at one level.
struct StageTimes {
  TimeDistribution stage;  ///< of the stage itself
  TimeDistribution rest;   ///< from the stage's start to the end of the run, all at this level

  friend bool operator==(const StageTimes&, const StageTimes&) = default;
};

/// What a profile belongs to. One measured for anything else says nothing about this.
struct ProfileKey {
  std::string architecture;
  std::uint64_t model = 0;              ///< `Model::fingerprint`
  std::vector<std::int64_t> level_nnz;  ///< weights of every level
  /// What every level reads of its weights, in bytes: other paths through the layers (`Session::choose_paths`) take
  /// other times, and all but a few read another number of bytes.
  std::vector<std::int64_t> level_bytes;
  int threads = 1;
  std::int64_t batch = 1;
  std::int64_t micro_batch = 1;  ///< pictures that pass a stage together
  std::string instruction_set;

  /// Parts in which a batch passes the network, one after the other; the last one may be smaller.
  [[nodiscard]] std::int64_t micro_batches() const noexcept {
    return micro_batch < 1 || batch < 1 ? 1 : (batch - 1) / micro_batch + 1;
  }

  friend bool operator==(const ProfileKey&, const ProfileKey&) = default;
};

/// The times of a model in a session. Stage 0 runs from the input to the first marker in the network, `first_stage`;
/// the others are named by their markers. The stages of all micro-batches follow each other (`stage_name`).
struct Profile {
  struct Stage {
    std::string name;
    std::vector<StageTimes> levels;

    friend bool operator==(const Stage&, const Stage&) = default;
  };

  ProfileKey key;
  std::int64_t runs = 0;  ///< measured, per level
  std::vector<Stage> stages;

  /// Times of `stage` at `level`. Precondition: both exist.
  [[nodiscard]] const StageTimes& times(std::size_t stage, Level level) const noexcept {
    return stages[stage].levels[static_cast<std::size_t>(level.index)];
  }
  /// A whole run at `level`. Precondition: it exists.
  [[nodiscard]] const TimeDistribution& whole(Level level) const noexcept { return times(0, level).rest; }

  friend bool operator==(const Profile&, const Profile&) = default;
};

/// Name of stage 0.
inline constexpr std::string_view first_stage = "input";

/// Name of a stage of micro-batch `part`, counted from 0: that of the network's stage, and which part it is from the
/// second one on.
[[nodiscard]] inline std::string stage_name(std::string_view stage, std::int64_t part) {
  return part == 0 ? std::string(stage) : std::string(stage) + " #" + std::to_string(part + 1);
}

/// A model's fingerprint as profile files have it: 16 hexadecimal digits.
[[nodiscard]] inline std::string fingerprint_text(std::uint64_t fingerprint) {
  std::string text(16, '0');
  for (auto digit = text.rbegin(); digit != text.rend(); ++digit, fingerprint >>= 4U)
    *digit = "0123456789abcdef"[fingerprint & 15U];
  return text;
}

/// Success if `profile` is whole and belongs to `key` with the stages `names`. Errors, in this order: another model,
/// level set, paths through the layers, thread count, batch, micro-batch, instruction set; stages or levels missing,
/// left over or of another name; times that are no times.
[[nodiscard]] inline Status check_profile(const Profile& profile, const ProfileKey& key,
                                          std::span<const std::string> names) {
  const auto list = [](const std::vector<std::int64_t>& counts, const char* unit) {
    std::string text = std::to_string(counts.size()) + " levels of";
    for (const std::int64_t count : counts) text += " " + std::to_string(count);
    return text + unit;
  };
  if (profile.key.architecture != key.architecture)
    return Error("profile: architecture", key.architecture, profile.key.architecture);
  if (profile.key.model != key.model)
    return Error({"profile: model"}, {"the model of fingerprint ", fingerprint_text(key.model)},
                 {fingerprint_text(profile.key.model), ": measured with another model"});
  if (profile.key.level_nnz != key.level_nnz)
    return Error("profile: level set", list(key.level_nnz, " weights"), list(profile.key.level_nnz, " weights"));
  if (profile.key.level_bytes != key.level_bytes)
    return Error("profile: paths through the layers", list(key.level_bytes, " bytes"),
                 list(profile.key.level_bytes, " bytes"));
  if (profile.key.threads != key.threads) return Error("profile: threads", key.threads, profile.key.threads);
  if (profile.key.batch != key.batch) return Error("profile: batch", key.batch, profile.key.batch);
  if (profile.key.micro_batch != key.micro_batch)
    return Error("profile: micro-batch", key.micro_batch, profile.key.micro_batch);
  if (profile.key.instruction_set != key.instruction_set)
    return Error("profile: instruction set", key.instruction_set, profile.key.instruction_set);
  if (profile.runs < 1) return Error("profile: runs", "at least 1", profile.runs);
  for (std::size_t s = 0; s < names.size(); ++s) {
    const std::string place = "profile: stage " + std::to_string(s);
    if (s >= profile.stages.size()) return Error({place}, {"\"", names[s], "\""}, {"none: the stage is missing"});
    if (profile.stages[s].name != names[s])
      return Error({place}, {"\"", names[s], "\""}, {"\"", profile.stages[s].name, "\""});
    if (profile.stages[s].levels.size() != key.level_nnz.size())
      return Error({place}, {key.level_nnz.size(), " levels"}, {profile.stages[s].levels.size()});
    for (const StageTimes& times : profile.stages[s].levels)
      for (const TimeDistribution* distribution : {&times.stage, &times.rest}) {
        bool good = std::isfinite(distribution->mean) && distribution->mean >= 0 &&
                    std::isfinite(distribution->deviation) && distribution->deviation >= 0 &&
                    distribution->quantiles.front() >= 0 && std::isfinite(distribution->quantiles.back());
        for (std::size_t i = 1; i < profile_probabilities.size(); ++i)
          good = good && distribution->quantiles[i - 1] <= distribution->quantiles[i];
        if (!good) return Error(place, "finite times of 0 or more and ascending quantiles", "others");
      }
  }
  if (profile.stages.size() > names.size()) return Error("profile: stages", names.size(), profile.stages.size());
  return success();
}

/// How a profile is measured.
struct ProfileOptions {
  index_t runs = 200;    ///< measured per level
  index_t warm_up = 10;  ///< before them, per level
  /// Before every run. A program that waits for requests begins each with caches that others have used meanwhile, and
  /// its first stages take longer than those of runs without a break would make a router believe.
  Duration pause = std::chrono::milliseconds(2);
  Clock clock{};
};

/// When the stages of single runs began and ended: `times[level][run][stage]` in nanoseconds.
using StageSamples = std::vector<std::vector<std::vector<double>>>;

/// Times of `options.runs` runs of every level, in turns, on input of fixed pseudo-random numbers. Do it with nothing
/// else running and with the priority and cores that the program will have. Raises: fewer than 1 run, levels whose
/// memory was given back, before or meanwhile. The session's input buffer is overwritten.
template <class Session>
[[nodiscard]] StageSamples sample_stages(Session& session, const ProfileOptions& options = {}) {
  if (options.runs < 1) raise(Error("profile: runs", "at least 1", options.runs));
  const int levels = session.model().levels();
  if (session.model().present().index < levels - 1)
    raise(Error({"profile"}, {"all ", levels, " levels in memory"}, {session.model().present().index + 1}));
  std::uint32_t state = 1;
  for (auto& value : session.input()) {
    state = state * 1664525U + 1013904223U;
    value = static_cast<std::remove_reference_t<decltype(value)>>(static_cast<double>(state) / 4294967296.0);
  }
  const std::size_t stages = session.stages().size();
  std::vector<TimePoint> starts(stages + 1);
  StageSamples samples(static_cast<std::size_t>(levels));
  for (auto& runs : samples) runs.reserve(static_cast<std::size_t>(options.runs));
  const index_t warm_up = options.warm_up < 0 ? 0 : options.warm_up;
  for (index_t run = -warm_up; run < options.runs; ++run)
    for (int level = 0; level < levels; ++level) {
      if (options.pause > Duration::zero()) std::this_thread::sleep_for(options.pause);
      session.forward_timed(Level{level}, options.clock, starts);
      if (session.level() != Level{level})
        raise(Error({"profile"}, {"all ", levels, " levels in memory until the end"}, {session.level().index + 1}));
      if (run < 0) continue;
      std::vector<double> times(stages);
      for (std::size_t s = 0; s < stages; ++s)
        times[s] = std::max(0.0, static_cast<double>(detail::since(starts[s], starts[s + 1]).count()));
      samples[static_cast<std::size_t>(level)].push_back(std::move(times));
    }
  return samples;
}

/// The distributions of `samples`; `names` and `key` are those of the session that gave them.
[[nodiscard]] inline Profile profile_of(const StageSamples& samples, std::span<const std::string> names,
                                        ProfileKey key) {
  Profile profile;
  profile.key = std::move(key);
  profile.runs = samples.empty() ? 0 : static_cast<std::int64_t>(samples.front().size());
  for (std::size_t s = 0; s < names.size(); ++s) {
    Profile::Stage stage{names[s], {}};
    for (const auto& runs : samples) {
      std::vector<double> alone;
      std::vector<double> rest;
      for (const auto& times : runs) {
        alone.push_back(times[s]);
        double sum = 0;
        for (std::size_t later = s; later < times.size(); ++later) sum += times[later];
        rest.push_back(sum);
      }
      stage.levels.push_back({TimeDistribution::of(alone), TimeDistribution::of(rest)});
    }
    profile.stages.push_back(std::move(stage));
  }
  return profile;
}

/// Measures `session` as `sample_stages` does.
template <class Session>
[[nodiscard]] Profile profile(Session& session, const ProfileOptions& options = {}) {
  return profile_of(sample_stages(session, options), session.stages(), session.profile_key());
}

}  // namespace strata
