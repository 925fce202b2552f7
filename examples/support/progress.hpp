// A line of progress that is rewritten on a terminal and absent elsewhere, where each phase gets one plain line.
#pragma once

#include <chrono>
#include <cstdio>
#include <string>
#include <unistd.h>

#include <strata/train/fit.hpp>

namespace examples {

class ProgressLine {
 public:
  void operator()(const strata::train::Progress& progress) {
    const auto now = std::chrono::steady_clock::now();
    const bool new_phase = progress.phase != phase_;
    phase_ = progress.phase;
    if (!terminal_) {
      if (new_phase) std::fprintf(stderr, "training: %s (%.0f s so far)\n", phase_.c_str(), progress.seconds);
      return;
    }
    const bool finished = progress.step == progress.steps;
    if (!new_phase && !finished && now - shown_ < std::chrono::milliseconds(200)) return;
    shown_ = now;
    std::fprintf(stderr, "\r\033[K%5.1f %%  %-16s loss %.3f  %.0f samples/s  %.0f s left",
                 100 * static_cast<double>(progress.step) / static_cast<double>(progress.steps), phase_.c_str(),
                 progress.loss, progress.samples_per_second, progress.seconds_left);
    if (finished) std::fputc('\n', stderr);
  }

 private:
  bool terminal_ = isatty(STDERR_FILENO) != 0;
  std::string phase_;
  std::chrono::steady_clock::time_point shown_{};
};

}  // namespace examples
