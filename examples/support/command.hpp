// The command that reproduces a row of a report.
#pragma once

#include <algorithm>
#include <iterator>
#include <string>
#include <string_view>

namespace examples {

/// The command line for a report: without what does not change the result (where files are, threads, what this sitting
/// does), and with DIR for the directory of the data. A dense model that was taken from a dense arm has recalibrated
/// statistics, so that --dense-from stays, with FILE for the checkpoint.
[[nodiscard]] inline std::string command_of(const std::string& program, int argc, char** argv) {
  static constexpr std::string_view left_out[] = {"--stop-after", "--checkpoint-seconds", "--out", "--report",
                                                  "--threads"};
  std::string command = program;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    const std::string_view option = argument.substr(0, argument.find('='));
    const bool has_next = option == argument && i + 1 < argc;
    if (option == "--resume") continue;
    if (std::find(std::begin(left_out), std::end(left_out), option) != std::end(left_out)) {
      if (has_next) ++i;
      continue;
    }
    if (option == "--data" || option == "--dense-from") {
      command += option == "--data" ? " --data DIR" : " --dense-from FILE";
      if (has_next) ++i;
      continue;
    }
    command += " ";
    command += argument;
  }
  return command;
}

}  // namespace examples
