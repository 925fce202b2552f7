// A camera-like loop: frames of a fixed rate, each to be classified by its deadline, while other processes take the
// core away now and then. On a terminal the state is drawn live; elsewhere there is a plain line a second.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <sched.h>
#include <signal.h>
#include <string>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <utility>
#include <vector>

#include <strata/strata.hpp>
#include <strata/train/data.hpp>

#include "../quickstart/network.hpp"
#include "../support/idx.hpp"
#include "../support/table.hpp"

namespace {

using strata::index_t;
using strata::Level;
using Model = strata::Model<quickstart::FashionNet>;
using Milliseconds = std::chrono::duration<double, std::milli>;

struct Options {
  std::string model = "quickstart-out/fashion.safetensors";
  std::string data = "/usr/share/datasets/fashion-mnist";
  std::string policy = "both";
  double rate = 25;
  double deadline = 0;
  double seconds = 20;
  double hog_seconds = 2;
  int hogs = 1;
  int core = -1;
  int threads = 1;
  index_t batch = 0;
};

/// Processes that compute and nothing else, stopped and continued by signal. They die with the program.
class Hogs {
 public:
  explicit Hogs(int count) {
    for (int i = 0; i < count; ++i) {
      const pid_t child = fork();
      if (child < 0) strata::raise(strata::Error("--hogs", "a process", "that none can be started"));
      if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        const strata::Clock clock;
        while (clock() != strata::TimePoint::min()) {
        }
      }
      children_.push_back(child);
    }
    turn(false);
  }
  Hogs(const Hogs&) = delete;
  Hogs& operator=(const Hogs&) = delete;
  ~Hogs() {
    for (const pid_t child : children_) {
      kill(child, SIGKILL);
      while (waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
      }
    }
  }
  void turn(bool on) {
    for (const pid_t child : children_) kill(child, on ? SIGCONT : SIGSTOP);
  }

 private:
  std::vector<pid_t> children_;
};

/// Pictures a frame with which the full level takes about 20 ms, from a measured run of 32.
index_t frame_size(const Model& model, int threads) {
  strata::Session<Model> session(model, {.threads = threads, .batch = 32});
  const auto profile = strata::profile(session, {.runs = 20, .warm_up = 3});
  const double each = profile.whole(Level{model.levels() - 1}).median() / 32;
  return std::clamp<index_t>(static_cast<index_t>(20e6 / each) / 16 * 16, 16, 4096);
}

/// What is shown: totals, and what happened since the last line.
struct Counts {
  int frames = 0;
  int misses = 0;
  int dropped = 0;
  int rerouted = 0;
  double full_stages = 0;
  double pictures = 0;
  double correct = 0;
  double slowest = 0;
};

/// The levels of a run's stages, such as "1 x 20, 0 x 4": there are as many as micro-batches times stages.
std::string path_text(std::span<const Level> path) {
  std::string text;
  for (auto first = path.begin(); first != path.end();) {
    const auto last = std::find_if(first, path.end(), [&](Level level) { return level != *first; });
    text += (text.empty() ? "" : ", ") + std::to_string(first->index) + " x " + std::to_string(last - first);
    first = last;
  }
  return text;
}

class Display {
 public:
  Display(double deadline_ms, int levels) : deadline_(deadline_ms), levels_(levels) {}
  /// Leaves the drawn lines and says what came of it all.
  void finish(const Counts& all) const {
    if (terminal_ && drawn_) std::printf("\033[%dB\n", rows);
    std::printf("In all: %s, slowest %.1f ms\n", totals(all).c_str(), all.slowest);
  }

  /// `since` is what happened since the last plain line; true if it was shown and starts again.
  bool show(double seconds, bool hogged, const strata::DeadlineRun<float>& run, const Counts& all,
            const Counts& since) {
    const double latency = Milliseconds(run.finish).count();
    if (terminal_) {
      // A bar that is full at the deadline; what is beyond it is drawn in another letter.
      constexpr int width = 40;
      const int filled = std::clamp(static_cast<int>(latency / deadline_ * width), 0, width * 3 / 2);
      std::string bar(static_cast<std::size_t>(std::min(filled, width)), '=');
      bar.resize(width, ' ');
      bar += '|' + std::string(static_cast<std::size_t>(std::max(0, filled - width)), '#');
      std::printf("\r\033[K%6.1f s  hog %s\n\033[Klevels of the stages  %s\n\033[Klatency %6.1f ms  [%s\n\033[K%s",
                  seconds, hogged ? "ON " : "off", path_text(run.path).c_str(), latency, bar.c_str(),
                  totals(all).c_str());
      std::printf("\033[%dA\r", rows);
      std::fflush(stdout);
      drawn_ = true;
      return false;
    }
    if (seconds - shown_ < 1) return false;
    shown_ = seconds;
    std::printf("%5.1f s  hog %-3s  slowest %6.1f ms  %s\n", seconds, hogged ? "on" : "off", since.slowest,
                totals(since).c_str());
    std::fflush(stdout);
    return true;
  }

  [[nodiscard]] std::string totals(const Counts& counts) const {
    const double frames = std::max(1, counts.frames);
    return std::to_string(counts.frames) + " frames, " + std::to_string(counts.misses) + " late, " +
           std::to_string(counts.dropped) + " dropped, " + std::to_string(counts.rerouted) + " rerouted, " +
           examples::percent(counts.full_stages / frames, 0) + " of stages at level " + std::to_string(levels_ - 1) +
           ", accuracy " + examples::percent(counts.correct / std::max(1.0, counts.pictures), 2);
  }

 private:
  static constexpr int rows = 3;

  double deadline_;
  int levels_;
  bool terminal_ = isatty(STDOUT_FILENO) != 0;
  bool drawn_ = false;
  double shown_ = 0;
};

template <class Policy>
void loop(const Options& options, strata::Session<Model>& session, const strata::train::Dataset& test,
          strata::Duration limit, Policy policy) {
  const Level top{session.model().levels() - 1};
  const index_t batch = session.batch();
  // Frames are made ready beforehand: a camera would fill `session.input()`.
  std::vector<std::vector<float>> frames;
  std::vector<std::vector<std::uint8_t>> labels;
  for (index_t first = 0; first < test.size() && frames.size() < 32; first += batch) {
    std::vector<std::uint32_t> indices;
    for (index_t i = 0; i < batch; ++i) indices.push_back(static_cast<std::uint32_t>((first + i) % test.size()));
    test.batch(indices.data(), batch, frames.emplace_back(), labels.emplace_back());
  }
  Hogs hogs(options.hogs);
  Display display(Milliseconds(limit).count(), session.model().levels());
  Counts all;
  Counts since;
  const strata::Clock clock;
  const strata::TimePoint start = clock();
  const strata::Duration period = strata::saturated(std::chrono::duration<double>(1 / options.rate));
  bool hogged = false;
  for (std::int64_t frame = 0;; ++frame) {
    strata::TimePoint arrival = start + frame * period;
    // A camera keeps one frame; those before it are lost.
    while (arrival + period < clock()) {
      ++all.dropped;
      ++since.dropped;
      arrival = start + ++frame * period;
    }
    std::this_thread::sleep_until(arrival);
    const double seconds = std::chrono::duration<double>(arrival - start).count();
    if (seconds >= options.seconds) break;
    if (const bool on = static_cast<std::int64_t>(seconds / options.hog_seconds) % 2 == 1; on != hogged)
      hogs.turn(hogged = on);

    const std::size_t at = static_cast<std::size_t>(frame) % frames.size();
    const auto run = session.run(frames[at], strata::Deadline(limit, arrival), policy);

    const auto classes = static_cast<std::ptrdiff_t>(run.output.size()) / batch;
    double correct = 0;
    for (index_t i = 0; i < batch; ++i) {
      const auto row = run.output.begin() + i * classes;
      correct += std::max_element(row, row + classes) - row == labels[at][static_cast<std::size_t>(i)] ? 1 : 0;
    }
    for (Counts* counts : {&all, &since}) {
      ++counts->frames;
      counts->misses += run.met ? 0 : 1;
      counts->rerouted += run.rerouted() ? 1 : 0;
      counts->full_stages +=
          static_cast<double>(std::count(run.path.begin(), run.path.end(), top)) / static_cast<double>(run.path.size());
      counts->pictures += static_cast<double>(batch);
      counts->correct += correct;
      counts->slowest = std::max(counts->slowest, Milliseconds(run.finish).count());
    }
    if (display.show(seconds, hogged, run, all, since)) since = {};
  }
  display.finish(all);
}

void run(const Options& options) {
  if (options.core >= 0) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(static_cast<std::size_t>(options.core), &set);
    if (sched_setaffinity(0, sizeof(set), &set) != 0)
      strata::raise(strata::Error("--core", "a core that this process may use", std::to_string(options.core)));
  }
  const auto split = std::move(examples::read_mnist_directory(options.data)).value();
  const auto model = strata::load<quickstart::FashionNet>(options.model);
  const index_t batch = options.batch > 0 ? options.batch : frame_size(model, options.threads);
  strata::Session<Model> session(model, {.threads = options.threads, .batch = batch});
  std::fprintf(stderr, "measuring %d levels of %td pictures a frame\n", model.levels(), batch);
  const auto profile = strata::profile(session, {.runs = 60});
  session.set_profile(profile);
  const double full = profile.whole(Level{model.levels() - 1}).median() / 1e6;
  const double deadline = options.deadline > 0 ? options.deadline : 1.5 * full;
  std::printf("undisturbed: level %d %.1f ms, level 0 %.1f ms; a frame every %.1f ms, deadline %.1f ms, policy %s\n",
              model.levels() - 1, full, profile.whole(Level{0}).median() / 1e6, 1000 / options.rate, deadline,
              options.policy.c_str());
  const auto limit = strata::saturated(Milliseconds(deadline));
  if (options.policy == "full")
    return loop(options, session, split.test, limit, strata::StaticLevel{Level{model.levels() - 1}});
  if (options.policy == "sparsest") return loop(options, session, split.test, limit, strata::StaticLevel{Level{0}});
  if (options.policy == "start") return loop(options, session, split.test, limit, strata::ChooseAtStart{});
  if (options.policy == "reroute") return loop(options, session, split.test, limit, strata::Reroute{});
  loop(options, session, split.test, limit, strata::ChooseAndReroute{});
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{"Classifies frames of Fashion-MNIST pictures by a deadline while a hog is switched on and off."};
  app.add_option("--model", options.model, "the quick start's model file")->capture_default_str();
  app.add_option("--data", options.data, "directory with the four idx files")->capture_default_str();
  app.add_option("--policy", options.policy, "both, reroute, start, full or sparsest")
      ->check(CLI::IsMember({"both", "reroute", "start", "full", "sparsest"}))
      ->capture_default_str();
  app.add_option("--rate", options.rate, "frames a second")->check(CLI::Range(0.1, 1000.0))->capture_default_str();
  app.add_option("--deadline", options.deadline, "milliseconds; 0: 1.5 x the full level's median")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "to run")->check(CLI::Range(0.1, 1e6))->capture_default_str();
  app.add_option("--hogs", options.hogs, "processes that take the core")
      ->check(CLI::Range(0, 64))
      ->capture_default_str();
  app.add_option("--hog-seconds", options.hog_seconds, "the hogs are off, then on, for so long")
      ->check(CLI::Range(0.01, 1e6))
      ->capture_default_str();
  app.add_option("--core", options.core, "core of the program and its hogs; -1: any")
      ->check(CLI::Range(-1, 1023))
      ->capture_default_str();
  app.add_option("--threads", options.threads, "of the session")->check(CLI::Range(1, 256))->capture_default_str();
  app.add_option("--batch", options.batch, "pictures a frame; 0: as many as take about 20 ms")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "deadline: %s\n(scripts/quickstart makes the model)\n", error.what());
    return 1;
  }
  return 0;
}
