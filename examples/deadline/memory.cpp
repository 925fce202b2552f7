// Gives the memory of upper levels back while memory is short and reads it again afterwards, with requests going on all
// the time: pressure-stall information and the control group's limit decide.
#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include <strata/strata.hpp>

#include "../quickstart/network.hpp"
#include "../support/memory_pressure.hpp"
#include "../support/table.hpp"

namespace {

using strata::Level;
using Model = strata::Model<quickstart::FashionNet>;

struct Options {
  std::string model = "quickstart-out/fashion.safetensors";
  std::string pressure = "/proc/pressure/memory";
  std::string cgroup = examples::own_cgroup();
  double seconds = 30;
  double interval = 1;
  examples::LevelKeeper::Limits limits;
};

void run(const Options& options) {
  const auto model = strata::load<quickstart::FashionNet>(options.model);
  std::atomic<bool> stop{false};
  std::atomic<long> runs{0};
  std::atomic<int> level{-1};
  std::thread server([&] {
    strata::Session<Model> session(model);
    while (!stop.load()) {
      session.forward(Level{model.levels() - 1});  // the highest present one runs
      level.store(session.level().index);
      ++runs;
    }
  });
  examples::LevelKeeper keeper(model.levels(), options.limits);
  if (!examples::pressure_of(examples::read_small_file(options.pressure)) && !examples::cgroup_use(options.cgroup))
    std::printf("neither %s nor a memory limit in \"%s\" can be read: nothing will happen\n", options.pressure.c_str(),
                options.cgroup.c_str());
  const auto looks = static_cast<int>(options.seconds / options.interval);
  for (int look = 0; look < looks; ++look) {
    std::this_thread::sleep_for(std::chrono::duration<double>(options.interval));
    const auto pressure = examples::pressure_of(examples::read_small_file(options.pressure));
    const auto use = examples::cgroup_use(options.cgroup);
    const int before = keeper.level();
    const int keep = keeper.look(pressure, use);
    std::string action;
    if (keep < before) action = "gave back " + examples::bytes(static_cast<double>(model.release_above(Level{keep})));
    if (keep > before) {
      model.restore(Level{keep});
      action = "reads level " + std::to_string(keep) + " again";
    }
    std::printf("pressure %s, use %s, present level %d, last run at %d, %ld runs  %s\n",
                pressure ? (examples::fixed(*pressure, 1) + " %").c_str() : "-",
                use ? examples::percent(*use, 0).c_str() : "-", model.present().index, level.load(), runs.exchange(0),
                action.c_str());
    std::fflush(stdout);
  }
  stop.store(true);
  server.join();
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{"Gives memory of upper levels back while memory is short."};
  app.add_option("--model", options.model, "the quick start's model file")->capture_default_str();
  app.add_option("--pressure", options.pressure, "pressure file; any file in its format will do to try it out")
      ->capture_default_str();
  app.add_option("--cgroup", options.cgroup, "directory of the control group")->capture_default_str();
  app.add_option("--seconds", options.seconds, "to run")->check(CLI::Range(0.0, 1e9))->capture_default_str();
  app.add_option("--interval", options.interval, "seconds between looks")
      ->check(CLI::Range(0.01, 3600.0))
      ->capture_default_str();
  app.add_option("--pressure-high", options.limits.pressure_high, "percent")->capture_default_str();
  app.add_option("--pressure-low", options.limits.pressure_low, "percent")->capture_default_str();
  app.add_option("--use-high", options.limits.use_high, "share of the group's limit")->capture_default_str();
  app.add_option("--use-low", options.limits.use_low, "share of the group's limit")->capture_default_str();
  app.add_option("--patience", options.limits.patience, "looks at plenty before a level comes back")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "memory: %s\n(scripts/quickstart makes the model)\n", error.what());
    return 1;
  }
  return 0;
}
