// A training run of hours: goes on from its checkpoint, saves itself, stops when asked to, and knows the time it took
// in all. What a step does is the library's `Trainer`.
#pragma once

#include <algorithm>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>

#include <strata/core/error.hpp>
#include <strata/io/model_file.hpp>
#include <strata/train/fit.hpp>

#include "progress.hpp"

namespace examples {

/// Exit code of a program whose run stopped in time and wants to be resumed.
inline constexpr int unfinished = 3;

/// Raises if the report of a run that is about to begin could not be written at its end: a directory that is not there.
inline void check_report(const std::string& path) {
  const std::filesystem::path directory = std::filesystem::path(path).parent_path();
  std::error_code unknown;
  if (!directory.empty() && !std::filesystem::is_directory(directory, unknown))
    strata::raise(strata::Error("--report", "a file in a directory that exists", path));
}

struct TrainingRunOptions {
  std::string checkpoint;           ///< file; its directory exists
  bool resume = false;              ///< go on from the checkpoint if it is there
  std::string dense_from = {};      ///< if there is none: checkpoint of another run, whose dense model is taken
  double checkpoint_seconds = 300;  ///< between two saves
  double stop_after = 0;            ///< seconds after which the run saves itself and returns; 0: at its end only
  std::int64_t steps_per_epoch = 1;
};

struct TrainingRunResult {
  bool finished = false;
  double seconds = 0;        ///< of training, those before the checkpoint included, without suspended time
  double dense_seconds = 0;  ///< of them, before there was a dense model to go on from
};

namespace detail {

inline volatile std::sig_atomic_t stop_requested = 0;
inline volatile std::sig_atomic_t went_on = 0;

}  // namespace detail

/// Seconds that steps took. One in which the process was suspended counts as much as the mean of those before it.
class StepClock {
 public:
  void step() {
    const auto now = Clock::now();
    double seconds = std::chrono::duration<double>(now - last_).count();
    if (detail::went_on != 0 && steps_ > 0) seconds = std::min(seconds, seconds_ / steps_);
    detail::went_on = 0;
    last_ = now;
    seconds_ += seconds;
    ++steps_;
  }
  [[nodiscard]] double seconds() const noexcept { return seconds_; }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_ = Clock::now();
  double seconds_ = 0;
  double steps_ = 0;
};

/// While it lives, an interrupt or a signal to end asks for a stop, and going on after a suspension is noted.
class WatchSignals {
 public:
  /// `stops` false: only suspensions are watched, and signals to end do what they did.
  explicit WatchSignals(bool stops = true) : stops_(stops) {
    detail::stop_requested = 0;
    if (stops_) {
      interrupt_ = std::signal(SIGINT, stop);
      end_ = std::signal(SIGTERM, stop);
    }
#if defined(SIGCONT)
    going_on_ = std::signal(SIGCONT, [](int) { detail::went_on = 1; });
#endif
  }
  WatchSignals(const WatchSignals&) = delete;
  WatchSignals& operator=(const WatchSignals&) = delete;
  ~WatchSignals() {
    if (stops_) {
      std::signal(SIGINT, interrupt_);
      std::signal(SIGTERM, end_);
    }
#if defined(SIGCONT)
    std::signal(SIGCONT, going_on_);
#endif
  }

  /// Whether a stop was asked for since the watch began.
  [[nodiscard]] bool stop_requested() const noexcept {
    return detail::stop_requested != 0;
  }

 private:
  using Handler = void (*)(int);
  static void stop(int /*signal*/) {
    detail::stop_requested = 1;
  }

  bool stops_;
  Handler interrupt_ = nullptr;
  Handler end_ = nullptr;
#if defined(SIGCONT)
  Handler going_on_ = nullptr;
#endif
};

/// Takes steps until the run is done or stopped; prints a line per epoch, and one that says how far a stopped run came.
/// An interrupt or a signal to end stops it after the step under way; before and after they do what they did.
/// Raises: a checkpoint of another run or that cannot be read or written, another file in its place.
template <class Network, class Task>
TrainingRunResult run_training(strata::train::Trainer<Network, Task>& trainer, strata::index_t batch,
                               const TrainingRunOptions& options) {
  using Clock = std::chrono::steady_clock;
  const WatchSignals watching;
  strata::train::check_checkpoint_path(options.checkpoint, options.resume);
  TrainingRunResult result;
  const auto seconds_of = [](const strata::Archive& archive, const char* key, double& value) {
    if (const auto found = archive.metadata().find(key); found != archive.metadata().end())
      std::from_chars(found->second.data(), found->second.data() + found->second.size(), value);
  };
  std::error_code unknown;  // such as a directory that may not be searched: the error is that of reading
  if (options.resume && (std::filesystem::exists(options.checkpoint, unknown) || unknown)) {
    const strata::Archive archive = strata::io::read_model(options.checkpoint).value();
    if (strata::Status status = trainer.restore(archive); !status)
      strata::raise(status.error().within(options.checkpoint));
    seconds_of(archive, "seconds", result.seconds);
    seconds_of(archive, "dense_seconds", result.dense_seconds);
  } else if (!options.dense_from.empty()) {
    const strata::Archive archive = strata::io::read_model(options.dense_from).value();
    if (strata::Status status = trainer.start_from_dense(archive); !status)
      strata::raise(status.error().within(options.dense_from));
    seconds_of(archive, "dense_seconds", result.dense_seconds);
    result.seconds = result.dense_seconds;
  }
  const double before = result.seconds;
  const auto start = Clock::now();
  StepClock clock;
  const auto since = [](Clock::time_point then) { return std::chrono::duration<double>(Clock::now() - then).count(); };
  const auto save = [&] {
    strata::Archive archive = trainer.state();
    archive.metadata()["seconds"] = std::to_string(before + clock.seconds());
    archive.metadata()["dense_seconds"] = std::to_string(result.dense_seconds);
    (void)strata::io::write_model(archive, options.checkpoint).value();
  };
  const std::int64_t first = trainer.steps_done();
  auto saved = Clock::now();
  double epoch_start = 0;
  double passes = 0;
  double epoch_loss = 0;
  std::int64_t epoch_steps = 0;
  ProgressLine line;
  bool stop = false;
  while (!trainer.done() && !stop) {
    strata::train::Progress progress;
    progress.phase = trainer.phase_name();
    passes += trainer.passes_of_step();
    const bool is_dense = progress.phase == "dense";
    progress.loss = trainer.step();
    clock.step();
    progress.step = trainer.steps_done();
    progress.steps = trainer.steps();
    progress.seconds = clock.seconds();
    progress.seconds_left = progress.seconds / passes * trainer.passes_left();
    progress.samples_per_second = static_cast<double>((progress.step - first) * batch) / progress.seconds;
    if (is_dense) result.dense_seconds = before + progress.seconds;
    line(progress);
    epoch_loss += progress.loss;
    ++epoch_steps;
    stop = watching.stop_requested() || (options.stop_after > 0 && since(start) >= options.stop_after);
    if (progress.step % options.steps_per_epoch == 0 || stop || trainer.done()) {
      std::fprintf(stderr, "\repoch %.2f of %.2f, %s: mean loss %.4f, %.1f ms a step, %.0f s left\n",
                   static_cast<double>(progress.step) / static_cast<double>(options.steps_per_epoch),
                   static_cast<double>(progress.steps) / static_cast<double>(options.steps_per_epoch),
                   progress.phase.c_str(), epoch_loss / static_cast<double>(epoch_steps),
                   1e3 * (clock.seconds() - epoch_start) / static_cast<double>(epoch_steps), progress.seconds_left);
      epoch_loss = 0;
      epoch_steps = 0;
      epoch_start = clock.seconds();
    }
    if (stop || trainer.done() || since(saved) >= options.checkpoint_seconds) {
      save();
      saved = Clock::now();
    }
  }
  result.finished = trainer.done();
  if (!result.finished)
    std::fprintf(stderr, "stopped after step %lld of %lld: --resume\n", static_cast<long long>(trainer.steps_done()),
                 static_cast<long long>(trainer.steps()));
  result.seconds = before + clock.seconds();
  return result;
}

}  // namespace examples
