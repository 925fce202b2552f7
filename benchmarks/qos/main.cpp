// Quality of service by policy: miss rates, nines, latencies and delivered accuracy of requests with a deadline, in a
// simulation from recorded stage times and in real time beside co-tenant processes.
//
//   qos record    stage times and accuracy of every path of a model, for simulations
//   qos simulate  all cells of the table in simulated time
//   qos run       rounds of the table in real time; every call adds what is missing, for as long as it is given
//   qos report    table (JSON) and plots from one or more state files
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>

#include <strata/strata.hpp>
#include <strata/train/data.hpp>
#include <strata/train/prune.hpp>

#include "../../examples/quickstart/network.hpp"
#include "../../examples/resnet/network.hpp"
#include "../../examples/resnet/random_model.hpp"
#include "../../examples/support/cifar.hpp"
#include "../../examples/support/idx.hpp"
#include "../../examples/support/levels.hpp"
#include "server.hpp"
#include "simulation.hpp"
#include "state.hpp"

namespace {

using strata::Duration;
using strata::Level;

struct Options {
  std::string network = "fashion";
  std::string model = "quickstart-out/fashion.safetensors";
  std::string data = "/usr/share/datasets/fashion-mnist";
  std::string state = "qos-state.json";
  std::string recording = "benchmarks/qos/recorded/fashion.json";
  std::string out;
  std::string plots;
  std::string arrivals;
  std::vector<std::string> states;
  std::vector<std::string> kinds;
  std::vector<std::string> policies;
  std::vector<double> factors = {1.2, 1.5, 2, 3};
  std::vector<int> cores;
  std::string name;
  std::string levels = examples::paper_levels;
  int real_time = 0;
  int threads = 1;
  strata::index_t batch = 320;
  strata::index_t micro_batch = 0;
  int runs = 300;
  std::size_t requests = 30'000;
  std::size_t round = 50;
  double load = 0.5;
  double seconds = 60;
  double quiet = 0;
  std::uint64_t seed = 1;
  double confidence = strata::RouterOptions{}.confidence;
  double margin = strata::RouterOptions{}.margin;
  double reserve_ms = 0;
  double patience_ms = static_cast<double>(strata::RouterOptions{}.patience.count()) / 1e6;
  double patience_reserve_ms = static_cast<double>(strata::RouterOptions{}.patience_reserve.count()) / 1e6;
  double calm = strata::RouterOptions{}.calm;
  double guard_ms = static_cast<double>(strata::RouterOptions{}.guard.count()) / 1e6;
  double guard_share = strata::RouterOptions{}.guard_share;
  std::string estimator = "exponential";

  [[nodiscard]] strata::RouterOptions router() const {
    strata::RouterOptions result;
    result.confidence = confidence;
    result.margin = margin;
    result.reserve = Duration(static_cast<std::int64_t>(reserve_ms * 1e6));
    result.patience = Duration(static_cast<std::int64_t>(patience_ms * 1e6));
    result.patience_reserve = Duration(static_cast<std::int64_t>(patience_reserve_ms * 1e6));
    result.calm = calm;
    result.guard = Duration(static_cast<std::int64_t>(guard_ms * 1e6));
    result.guard_share = guard_share;
    result.slow_down.estimator = estimator == "kalman" ? strata::Estimator::kalman : strata::Estimator::exponential;
    return result;
  }
  [[nodiscard]] std::vector<qos::Arrivals> arrival_kinds() const {
    if (arrivals == "poisson") return {qos::Arrivals::poisson};
    if (arrivals == "periodic") return {qos::Arrivals::periodic};
    return {qos::Arrivals::poisson, qos::Arrivals::periodic};
  }
  /// What rows call the network.
  [[nodiscard]] std::string row_name() const { return name.empty() ? network : name; }
  /// `whole`: the batch passes each stage as one.
  [[nodiscard]] strata::SessionOptions session(bool whole) const {
    return {.threads = threads, .batch = batch, .micro_batch = whole ? batch : micro_batch};
  }
  /// The policies asked for, of those that the table knows; all of them if none are named.
  [[nodiscard]] std::vector<qos::PolicyName> chosen_policies() const {
    return chosen(qos::policy_names(), policies, "--policies");
  }
  /// What rows that add up have to have in common of the router's options.
  [[nodiscard]] nlohmann::json router_settings() const {
    return {{"confidence", confidence},
            {"margin", margin},
            {"reserve_ms", reserve_ms},
            {"guard_ms", guard_ms},
            {"guard_share", guard_share},
            {"patience_ms", patience_ms},
            {"patience_reserve_ms", patience_reserve_ms},
            {"calm", calm},
            {"estimator", estimator}};
  }
  /// The kinds of interference asked for, over as many cores as the server has.
  [[nodiscard]] std::vector<qos::Interference> interferences(int count) const {
    return chosen(qos::interferences(count), kinds, "--interference");
  }

 private:
  template <class Named>
  static std::vector<Named> chosen(const std::vector<Named>& all, const std::vector<std::string>& names,
                                   const char* option) {
    if (names.empty()) return all;
    std::vector<Named> found;
    for (const std::string& name : names) {
      const auto at = std::find_if(all.begin(), all.end(), [&](const auto& each) { return each.name == name; });
      if (at == all.end()) strata::raise(strata::Error(option, "a name of the table", "\"" + name + "\""));
      found.push_back(*at);
    }
    return found;
  }
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void write_text(const std::string& path, const std::string& text) {
  (void)strata::io::write_atomically(path, {std::as_bytes(std::span(text))}).value();
}

/// Calls `f(server)` with the network that the options name: the quick start's on Fashion-MNIST, one of `resnet_train`
/// on CIFAR-10, or ResNet-50 on noise; in a session as `session` says. Another network is another branch.
template <class F>
void with_server(const Options& options, const strata::SessionOptions& session, F&& f) {
  if (options.network == "fashion") {
    const auto split = std::move(examples::read_mnist_directory(options.data)).value();
    qos::Server server(strata::load<quickstart::FashionNet>(options.model), split.test, session);
    return f(server);
  }
  if (options.network == "resnet-cifar") {
    const auto named = std::move(examples::read_cifar(options.data)).value();
    qos::Server server(strata::load<resnet::ResNet>(options.model), named.split.test, session);
    return f(server);
  }
  if (options.network == "resnet50") {
    // Random weights under random masks, kept beside the states so that profile and model stay together.
    if (!std::filesystem::exists(options.model)) {
      const auto budgets = examples::parse_levels(options.levels);
      resnet::TrainingNet network(resnet::resnet50());
      resnet::randomise(network, options.seed);
      strata::train::count_uses(network);
      resnet::mask_randomly(network, budgets, true);
      if (const auto directory = std::filesystem::path(options.model).parent_path(); !directory.empty())
        std::filesystem::create_directories(directory);
      (void)strata::io::write_model(strata::to_archive(network, static_cast<int>(budgets.size())), options.model)
          .value();
    }
    constexpr std::size_t pictures = 8;
    qos::Server server(strata::load<resnet::ResNet>(options.model), session, pictures, options.seed);
    return f(server);
  }
  strata::raise(strata::Error("--network", "fashion, resnet-cifar or resnet50", "\"" + options.network + "\""));
}

void record(const Options& options) {
  qos::pin_to(options.cores);
  // A stage takes the batch as a whole, so that there are few enough paths to judge each.
  with_server(options, options.session(true), [&](auto& server) {
    qos::Recording recording;
    recording.network = options.row_name();
    recording.stages = server.session().stages();
    recording.samples = strata::sample_stages(server.session(), {.runs = options.runs});
    server.session().set_profile(
        strata::profile_of(recording.samples, recording.stages, server.session().profile_key()));
    recording.accuracy = server.path_accuracy();
    write_text(options.out, qos::recording_text(recording));
    const auto profile = recording.profile();
    for (int level = 0; level < recording.levels(); ++level)
      std::printf("level %d: median %.3f ms\n", level, profile.whole(Level{level}).median() / 1e6);
    for (const auto& [path, accuracy] : recording.accuracy)
      std::printf("path %s: %.2f %%\n", path.c_str(), 100 * accuracy);
  });
}

void simulate(const Options& options) {
  const auto recording = std::move(qos::read_recording(options.recording)).value();
  qos::State state;
  qos::SimulationOptions simulation{options.requests, options.load, options.seed, options.router()};
  for (const auto& kind : options.interferences(2))
    for (const qos::Arrivals arrivals : options.arrival_kinds())
      for (const double factor : options.factors) {
        std::vector<std::string> names;
        for (const auto& policy : qos::policy_names()) names.push_back(policy.name);
        names.emplace_back(qos::oracle_name);
        for (const std::string& name : names)
          state.tally({recording.network, "simulation", qos::name_of(arrivals), kind.name, factor, name}) =
              qos::simulate(recording, kind, arrivals, factor, name, simulation);
        for (const std::string& name : names)
          state.set_done(recording.network + " simulation|" + kind.name + "|" + qos::name_of(arrivals), name, factor);
      }
  nlohmann::json settings = {
      {"requests", options.requests},
      {"load", options.load},
      {"seed", options.seed},
      {"full_median_ms", recording.profile().whole(Level{recording.levels() - 1}).median() / 1e6}};
  settings.update(options.router_settings());
  state.set_settings(recording.network + " simulation", settings);
  if (!options.out.empty()) state.write(options.out);
  std::printf("%s", qos::text_table(state.rows()).c_str());
}

/// One round: the same arrivals and the same schedules of co-tenants for every policy and deadline, in an order that
/// turns with the round. Cells that `name` is part of are passed over.
template <class Server>
void run_round(Server& server, qos::State& state, const Options& options, const qos::Interference& kind,
               qos::Arrivals arrivals, const std::vector<qos::PolicyName>& policies, std::uint64_t round,
               const std::string& name, double median) {
  const auto times =
      qos::make_arrivals(arrivals, options.round, median / options.load, options.seed * 1'000'003 + round);
  for (std::size_t p = 0; p < policies.size(); ++p) {
    const auto& policy = policies[(p + round) % policies.size()];
    const std::uint64_t seed = options.seed * 1'000'003 + round;
    std::vector<double> factors;
    std::vector<Duration> limits;
    std::vector<qos::Tally*> tallies;
    for (const double factor : options.factors) {
      if (state.done(name, policy.name, factor)) continue;
      factors.push_back(factor);
      limits.emplace_back(static_cast<std::int64_t>(factor * median));
      tallies.push_back(
          &state.tally({options.row_name(), "real", qos::name_of(arrivals), kind.name, factor, policy.name}));
    }
    if (factors.empty()) continue;
    qos::with_policy(policy.name, server.session().model().levels(), seed, [&](auto chosen) {
      const std::size_t first_batch = static_cast<std::size_t>(round) * options.round;
      if (!policy.looks_at_deadline) return server.serve(chosen, times, first_batch, kind, seed, limits, tallies);
      for (std::size_t k = 0; k < limits.size(); ++k)
        server.serve(chosen, times, first_batch, kind, seed, {limits[k]}, {tallies[k]});
    });
    for (const double factor : factors) state.set_done(name, policy.name, factor);
  }
}

void run(const Options& options) {
  const auto start = std::chrono::steady_clock::now();
  const auto policies = options.chosen_policies();  // bad names are refused before any work
  qos::pin_to(options.cores);
  if (options.real_time > 0) qos::set_real_time(options.real_time);
  qos::State state = qos::State::read(options.state);
  with_server(options, options.session(false), [&](auto& server) {
    // The profile stays beside the model, so that all calls mean the same median.
    const strata::ProfileOptions profiling{.runs = options.runs};
    const strata::RouterOptions routing = options.router();
    const auto profile = strata::profile_beside(options.model, server.session(), profiling);
    server.session().set_profile(profile, routing);
    const double median = profile.whole(Level{server.session().model().levels() - 1}).median();
    // What else the machine's host does is no part of the experiment: rounds that it disturbs do not count, for any
    // policy, and where it is busy there is no use in going on.
    const int quiet_runs = static_cast<int>(250e6 / median) + 1;
    const auto is_quiet = [&] {
      return options.quiet <= 0 || server.longest_run(quiet_runs) <= (1 + options.quiet) * median;
    };
    const auto becomes_quiet = [&] {
      constexpr int tries = 10;
      for (int i = 0; i < tries; ++i) {
        if (is_quiet()) return true;
        std::this_thread::sleep_for(std::chrono::seconds(1));
      }
      return false;
    };
    int rounds = 0;
    const auto stop = [&](const char* why) {
      std::printf("%d rounds added, not finished: %s: call again\n", rounds, why);
    };
    if (!becomes_quiet()) return stop("the machine is busy");
    const std::string rows = options.row_name() + " real";
    nlohmann::json settings = {{"network", options.network},
                               {"full_median_ms", median / 1e6},
                               {"sparsest_median_ms", profile.whole(Level{0}).median() / 1e6},
                               {"batch", options.batch},
                               {"micro_batch", profile.key.micro_batch},
                               {"threads", options.threads},
                               {"cores", options.cores},
                               {"real_time_priority", options.real_time},
                               {"load", options.load},
                               {"quiet", options.quiet},
                               {"slice_ms", static_cast<double>(routing.slice.count()) / 1e6},
                               {"profile_pause_ms", static_cast<double>(profiling.pause.count()) / 1e6},
                               {"instruction_set", profile.key.instruction_set}};
    settings.update(options.router_settings());
    state.set_settings(rows, settings);
    if (!state.info()[rows].contains("controller")) {
      const auto cost = server.router_cost(100, Duration(static_cast<std::int64_t>(1.5 * median)));
      const double decision = qos::decision_cost(profile);
      state.info()[rows]["controller"] = {
          {"ns_per_decision", decision},
          {"decisions_over_latency", decision * static_cast<double>(profile.stages.size()) / median},
          {"undisturbed_plain_ms", cost.plain / 1e6},
          {"undisturbed_routed_ms", cost.routed / 1e6},
          {"undisturbed_full_level_share_at_1.5", cost.full_share}};
    }
    bool left = false;
    double longest = 0;
    const int cores = static_cast<int>(std::max<std::size_t>(1, options.cores.size()));
    const std::size_t needed = (options.requests + options.round - 1) / options.round;
    for (std::uint64_t round = 0; round < needed; ++round)
      for (const auto& kind : options.interferences(cores))
        for (const qos::Arrivals arrivals : options.arrival_kinds()) {
          const std::string name = options.row_name() + "|" + kind.name + "|" + qos::name_of(arrivals) + "|" +
                                   std::to_string(options.seed) + "|" + std::to_string(options.round) + "|" +
                                   std::to_string(round);
          const bool whole = std::all_of(policies.begin(), policies.end(), [&](const auto& policy) {
            return std::all_of(options.factors.begin(), options.factors.end(),
                               [&](double factor) { return state.done(name, policy.name, factor); });
          });
          if (whole) continue;
          // A round is whole or not there: stop while there is time left for another one.
          if (longest > 0 && seconds_since(start) + longest > options.seconds) {
            return stop("out of time");
          }
          const auto begin = std::chrono::steady_clock::now();
          qos::State with_round = state;
          run_round(server, with_round, options, kind, arrivals, policies, round, name, median);
          longest = std::max(longest, seconds_since(begin));
          const bool counts = is_quiet();
          if (counts) {
            state = std::move(with_round);
            ++rounds;
          } else {
            auto& count = state.info()[rows]["rounds_not_counted"];
            count = (count.is_null() ? 0 : count.get<int>()) + 1;
            left = true;
          }
          state.write(options.state);
          if (!counts && !becomes_quiet()) return stop("the machine is busy");
        }
    if (left) return stop("rounds that did not count are left");
    std::printf("%d rounds added, finished\n", rounds);
  });
}

void report(const Options& options) {
  qos::State state;
  for (const std::string& path : options.states) {
    if (!std::filesystem::exists(path)) strata::raise(strata::Error(path, "a state file", "none"));
    state.merge(qos::State::read(path));
  }
  const nlohmann::json rows = state.rows();
  if (!options.out.empty())
    write_text(options.out, nlohmann::json{{"info", state.info()}, {"rows", rows}}.dump(1) + "\n");
  if (!options.plots.empty()) {
    std::filesystem::create_directories(options.plots);
    qos::write_plots(state, options.plots);
  }
  std::printf("%s", qos::text_table(rows).c_str());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], qos::co_tenant) == 0) return qos::run_co_tenant(argc, argv);
  Options options;
  CLI::App app{"Quality of service of runs with a deadline, by policy and interference."};
  app.require_subcommand(1);
  auto* record_command = app.add_subcommand("record", "records stage times and the accuracy of every path");
  auto* simulate_command = app.add_subcommand("simulate", "simulates every cell of the table from a recording");
  auto* run_command = app.add_subcommand("run", "adds rounds in real time beside co-tenant processes");
  auto* report_command = app.add_subcommand("report", "makes the table and the plots");
  for (auto* command : {record_command, run_command}) {
    command->add_option("--network", options.network, "fashion, resnet-cifar or resnet50")->capture_default_str();
    command->add_option("--model", options.model, "model file; of resnet50 made if it is not there")
        ->capture_default_str();
    command->add_option("--levels", options.levels, "budgets of a model of resnet50 that is made, weights:FLOPs,...")
        ->capture_default_str();
    command->add_option("--data", options.data, "directory of the test pictures: the four idx files, or CIFAR-10")
        ->capture_default_str();
    command->add_option("--threads", options.threads, "of the session")
        ->check(CLI::Range(1, 256))
        ->capture_default_str();
    command->add_option("--batch", options.batch, "pictures a request")
        ->check(CLI::Range(1, 10000))
        ->capture_default_str();
    if (command == run_command)
      command->add_option("--micro-batch", options.micro_batch, "pictures that pass a stage together; 0: a cacheful")
          ->check(CLI::Range(0, 10000))
          ->capture_default_str();
    command->add_option("--cores", options.cores, "cores of the session and of the co-tenants")->delimiter(',');
    command->add_option("--runs", options.runs, "undisturbed runs a level for the profile")
        ->check(CLI::Range(1, 100000))
        ->capture_default_str();
  }
  record_command->add_option("--out", options.out, "file for the recording")->required();
  for (auto* command : {simulate_command, run_command}) {
    command->add_option("--requests", options.requests, "per cell")
        ->check(CLI::Range(std::size_t{1}, std::size_t{100'000'000}))
        ->capture_default_str();
    command->add_option("--load", options.load, "full level's median over the mean time between arrivals")
        ->check(CLI::Range(0.01, 10.0))
        ->capture_default_str();
    command->add_option("--seed", options.seed, "of all traces")->capture_default_str();
    command->add_option("--arrivals", options.arrivals, "poisson or periodic; both if not given");
    command->add_option("--interference", options.kinds, "kinds of co-tenants; all if not given")->delimiter(',');
    command->add_option("--deadlines", options.factors, "over the full level's median")->delimiter(',');
    command->add_option("--confidence", options.confidence, "of predictions")->capture_default_str();
    command->add_option("--margin", options.margin, "share of the limit kept free")->capture_default_str();
    command->add_option("--reserve", options.reserve_ms, "milliseconds kept free")->capture_default_str();
    command
        ->add_option("--patience", options.patience_ms, "milliseconds that a run goes on at its level, late as it is")
        ->capture_default_str();
    command
        ->add_option("--patience-reserve", options.patience_reserve_ms,
                     "milliseconds that the lowest level must have to spare for that")
        ->capture_default_str();
    command->add_option("--calm", options.calm, "lasting slow-down from which on it does not")->capture_default_str();
    command->add_option("--guard", options.guard_ms, "milliseconds that the lowest level must have to spare in mid-run")
        ->capture_default_str();
    command->add_option("--guard-share", options.guard_share, "of a run's room, at most, for that")
        ->capture_default_str();
    command->add_option("--estimator", options.estimator, "of the slow-down")
        ->check(CLI::IsMember({"exponential", "kalman"}))
        ->capture_default_str();
  }
  simulate_command->add_option("--recording", options.recording, "made by record")->capture_default_str();
  simulate_command->add_option("--out", options.out, "state file to write");
  run_command->add_option("--state", options.state, "state file that grows")->capture_default_str();
  run_command->add_option("--policies", options.policies, "all if not given");
  for (auto* command : {record_command, run_command})
    command->add_option("--name", options.name, "what rows call the network, where one is run in several ways");
  run_command->add_option("--real-time", options.real_time, "SCHED_FIFO priority of the server; 0: none")
      ->check(CLI::Range(0, 99))
      ->capture_default_str();
  run_command
      ->add_option("--quiet", options.quiet,
                   "count a round only if runs before and behind it, without co-tenants, take no more than this share "
                   "above the full level's median, and stop else; 0: count all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  run_command->add_option("--seconds", options.seconds, "begin no round that would end later")->capture_default_str();
  run_command->add_option("--round", options.round, "requests of each policy in a round")
      ->check(CLI::Range(std::size_t{1}, std::size_t{1'000'000}))
      ->capture_default_str();
  report_command->add_option("states", options.states, "state files")->required();
  report_command->add_option("--out", options.out, "file for the table as JSON");
  report_command->add_option("--plots", options.plots, "directory for the plots");
  CLI11_PARSE(app, argc, argv);
  try {
    if (record_command->parsed()) record(options);
    if (simulate_command->parsed()) simulate(options);
    if (run_command->parsed()) run(options);
    if (report_command->parsed()) report(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "qos: %s\n", error.what());
    return 1;
  }
  return 0;
}
