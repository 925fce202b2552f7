// The quality-of-service tables: their statistics, traces and simulation, and what the simulation says of policies.
#include <cmath>
#include <filesystem>

#include "qos/simulation.hpp"
#include "qos/state.hpp"
#include "support/catch.hpp"

namespace {

using qos::Arrivals;

/// 16 stages of 1.25 ms at the full level, 0.5 ms at the sparse one, with 2 % of jitter.
qos::Recording sixteen_stages() {
  qos::Recording recording;
  recording.network = "sixteen";
  auto random = qos::generator(1, 1);
  for (int s = 0; s < 16; ++s) recording.stages.push_back("stage" + std::to_string(s));
  for (const double cost : {0.5e6, 1.25e6}) {
    recording.samples.emplace_back();
    for (int run = 0; run < 100; ++run) {
      recording.samples.back().emplace_back();
      for (int s = 0; s < 16; ++s) recording.samples.back().back().push_back(cost * (1 + 0.02 * qos::uniform(random)));
    }
  }
  // Made up: from 0.90 at the sparse level to 0.92, by the stages that ran at the full one.
  for (int full = 0; full <= 16; ++full)
    recording.accuracy[std::string(static_cast<std::size_t>(full), '1') +
                       std::string(static_cast<std::size_t>(16 - full), '0')] = 0.90 + 0.02 * full / 16;
  return recording;
}

qos::Interference kind_named(const std::string& name) {
  for (const auto& kind : qos::interferences(2))
    if (kind.name == name) return kind;
  FAIL("no kind " << name);
  return {};
}

double rate(const qos::Tally& tally) {
  return static_cast<double>(tally.misses) / static_cast<double>(tally.requests);
}
double delivered(const qos::Tally& tally) {
  return tally.correct_in_time / tally.pictures;
}

}  // namespace

TEST_CASE("Wilson's interval and nines") {
  // Values of the formula at z = 1.96, worked out by hand for 10 of 100.
  const auto [low, high] = qos::wilson(10, 100);
  CHECK(std::abs(low - 0.05523) < 1e-4);
  CHECK(std::abs(high - 0.17437) < 1e-4);
  CHECK(qos::wilson(0, 0) == std::pair(0.0, 1.0));
  CHECK(qos::wilson(0, 30'000).first == 0);
  CHECK(std::abs(qos::wilson(0, 30'000).second - 1.28e-4) < 1e-6);
  CHECK(qos::wilson(5, 5).second == 1);
  CHECK(std::abs(*qos::nines(0.001) - 3) < 1e-12);
  CHECK_FALSE(qos::nines(0).has_value());
}

TEST_CASE("percentiles are right to half a percent and histograms add up") {
  qos::Histogram all;
  qos::Histogram parts[2];
  for (int i = 1; i <= 10'000; ++i) {
    all.add(i * 1e3);
    parts[i % 2].add(i * 1e3);
  }
  for (const double share : {0.5, 0.9, 0.99, 0.9999, 1.0})
    CHECK(std::abs(all.percentile(share) / (share * 1e7) - 1) < 0.005);
  parts[0].add(parts[1]);
  CHECK(parts[0].json() == all.json());
  CHECK(qos::Histogram().percentile(0.5) == 0);
}

TEST_CASE("traces follow from the seed") {
  for (const auto kind : {Arrivals::poisson, Arrivals::periodic}) {
    const auto times = qos::make_arrivals(kind, 20'000, 1e6, 3);
    CHECK(times == qos::make_arrivals(kind, 20'000, 1e6, 3));
    CHECK(times != qos::make_arrivals(kind, 20'000, 1e6, 4));
    CHECK(std::is_sorted(times.begin(), times.end()));
    CHECK(std::abs(times.back() / 20e9 - 1) < 0.03);
  }
  const auto kind = kind_named("compute");
  double on = 0;
  double last = 0;
  for (const auto& interval : qos::make_schedule(kind, 0, 100e9, 5)) {
    CHECK(interval.begin >= last);
    CHECK(interval.end >= interval.begin);
    last = interval.end;
    on += interval.end - interval.begin;
  }
  CHECK(std::abs(on / 100e9 - 0.2) < 0.03);
}

TEST_CASE("a core works at full speed alone and at half speed beside a hog") {
  const qos::Interference none = kind_named("none");
  const qos::Core free(none, 0, 1e9, 1);
  CHECK(free.finish(5, 100) == 105);
  qos::Interference always{"always", 1, false, 1e12, 1e-9};
  const qos::Core shared(always, 1, 1e9, 1);
  CHECK(std::abs(shared.finish(0, 100e6) / 200e6 - 1) < 0.04);
  always.memory = true;
  const qos::Core slowed(always, 1, 1e9, 1);
  CHECK(std::abs(slowed.finish(1e6, 100e6) - 161e6) < 1);
  // Two halves take as long as the whole.
  const qos::Core hogged(kind_named("bursts"), 2, 1e9, 1);
  for (double start = 0; start < 5e8; start += 3.7e6)
    CHECK(std::abs(hogged.finish(hogged.finish(start, 3e6), 5e6) - hogged.finish(start, 8e6)) < 1);
}

TEST_CASE("in the simulation rerouting beats choosing at the start, which beats the full level") {
  const auto recording = sixteen_stages();
  qos::SimulationOptions options;
  options.requests = 6000;
  options.seed = 11;
  for (const char* name : {"compute", "compute x2"}) {
    const auto run = [&](const char* policy) {
      return qos::simulate(recording, kind_named(name), Arrivals::periodic, 1.5, policy, options);
    };
    const auto full = run("static full");
    const auto start = run("start");
    const auto reroute = run("reroute");
    const auto both = run("both");
    const auto sparsest = run("static sparsest");
    const auto oracle = run("oracle");
    INFO(name << ": full " << full.misses << ", start " << start.misses << ", reroute " << reroute.misses << ", both "
              << both.misses << ", oracle " << oracle.misses << ", sparsest " << sparsest.misses << " of 6000");
    CHECK(rate(start) < rate(full));
    CHECK(rate(reroute) < rate(start) / 2);
    CHECK(rate(both) <= rate(reroute));
    CHECK(rate(both) < rate(full) / 5);
    CHECK(rate(oracle) <= rate(both));
    CHECK(delivered(both) > delivered(full));
    CHECK(delivered(both) > delivered(sparsest) - 0.001);
    CHECK(reroute.rerouted > 0);
    CHECK(start.rerouted == 0);
    CHECK(full.stages_at_level.front() == 0);
    CHECK(sparsest.stages_at_level.back() == 0);
  }
  // Undisturbed, the full level is kept.
  const auto quiet = qos::simulate(recording, kind_named("none"), Arrivals::periodic, 1.5, "both", options);
  CHECK(quiet.misses == 0);
  CHECK(quiet.paths.size() == 1);
  CHECK(quiet.paths.begin()->first == std::string(16, '1'));
}

TEST_CASE("a simulation is the same every time, from the recording of the quick start's network") {
  const auto recording = qos::read_recording(STRATA_SOURCE_DIR "/benchmarks/qos/recorded/fashion.json").value();
  CHECK(recording.levels() == 2);
  qos::SimulationOptions options;
  options.requests = 1000;
  for (const char* policy :
       {"static full", "static sparsest", "random", "start", "reroute", "both", "both, up", "oracle"}) {
    const auto once = qos::simulate(recording, kind_named("memory"), Arrivals::poisson, 2, policy, options);
    CHECK(once.requests == 1000);
    CHECK(once.pictures == 1000);
    CHECK(once.json() == qos::simulate(recording, kind_named("memory"), Arrivals::poisson, 2, policy, options).json());
  }
  CHECK_THROWS_AS(qos::simulate(recording, kind_named("none"), Arrivals::poisson, 2, "no such", options),
                  strata::Error);
}

TEST_CASE("state files add up and rows say what they have to") {
  const std::string path = (std::filesystem::temp_directory_path() / "strata_qos_state.json").string();
  std::filesystem::remove(path);
  qos::State state = qos::State::read(path);
  const qos::Cell cell{"net", "real", "poisson", "none", 1.5, "both"};
  for (int i = 0; i < 1000; ++i)
    state.tally(cell).add(i % 4 == 0 ? "110" : "111", 2, 1e6 + i, i % 100 != 0, 10, i % 2 == 0 ? 9 : 8);
  state.set_done("round", "both", 1.5);
  state.set_settings("net real", {{"batch", 8}, {"load", 0.5}});
  state.write(path);
  qos::State twice = qos::State::read(path);
  CHECK(twice.done("round", "both", 1.5));
  CHECK_FALSE(twice.done("round", "both", 2));
  CHECK_FALSE(twice.done("round", "start", 1.5));
  CHECK_FALSE(twice.done("other", "both", 1.5));
  // Rows of other settings under the same name would add up to nothing.
  CHECK_NOTHROW(twice.set_settings("net real", {{"batch", 8}, {"load", 0.5}}));
  CHECK_THROWS_AS(twice.set_settings("net real", {{"batch", 8}, {"threads", 1}}), strata::Error);
  CHECK_NOTHROW(twice.set_settings("other real", {{"batch", 4}}));
  CHECK_THROWS_AS(twice.set_settings("net real", {{"batch", 4}}), strata::Error);
  CHECK(twice.rows() == state.rows());
  CHECK_THROWS_AS(twice.merge(qos::State::read(path)), strata::Error);  // the same rounds again
  CHECK(twice.rows() == state.rows());
  qos::State more;
  for (int i = 0; i < 1000; ++i)
    more.tally(cell).add(i % 4 == 0 ? "110" : "111", 2, 1e6 + i, i % 100 != 0, 10, i % 2 == 0 ? 9 : 8);
  more.set_done("another round", "both", 1.5);
  more.set_settings("net real", {{"batch", 4}});
  CHECK_THROWS_AS(twice.merge(more), strata::Error);
  qos::State fitting;
  fitting.tally(cell).read(more.tally(cell).json());
  fitting.set_done("another round", "both", 1.5);
  fitting.set_settings("net real", {{"batch", 8}});
  twice.merge(fitting);
  std::filesystem::remove(path);
  const auto row = twice.rows().at(0);
  CHECK(row.at("requests") == 2000);
  CHECK(row.at("misses") == 20);
  CHECK(std::abs(row.at("nines").get<double>() - 2) < 1e-12);
  CHECK(row.at("nines_95").at(0).get<double>() < 2);
  CHECK(row.at("nines_95").at(1).get<double>() > 2);
  CHECK(std::abs(row.at("rerouted_share").get<double>() - 0.25) < 1e-12);
  CHECK(std::abs(row.at("stage_share_by_level").at(0).get<double>() - 1.0 / 12) < 1e-12);
  CHECK(std::abs(row.at("accuracy").get<double>() - 0.85) < 1e-12);
  CHECK(row.at("accuracy_in_time").get<double>() < 0.85);
  CHECK(row.at("policy") == "both");
  // The accuracy of one path, if a recording does not know it, leaves that of all open.
  qos::State simulated;
  for (const double known : {1.0, 0.0}) simulated.tally(cell).add("111", 2, 1e6, true, known, known);
  CHECK(simulated.rows().at(0).at("accuracy").is_null());
  CHECK(simulated.rows().at(0).at("accuracy_in_time").is_null());
  // A policy with a new path every time does not make the state endless, and no request is lost.
  qos::Tally random;
  for (int i = 0; i < 3000; ++i) random.add(std::string(i % 1500 + 1, '1'), 2, 1e6, true, 1, 1);
  CHECK(random.paths.size() == qos::max_paths + 1);
  CHECK(random.paths.at("other") == 1000);
}
