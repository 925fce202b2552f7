// The router and its policies on made-up profiles and times: choices, deadlines of every kind, clocks that misbehave.
#include <cmath>
#include <limits>
#include <utility>

#include <strata/runtime/policy.hpp>
#include <strata/runtime/router.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/staged_net.hpp"

namespace {

using strata::Duration;
using strata::Level;
using strata::Router;
using strata::TimePoint;
using test::flat_profile;

/// Runs one request on `router` whose stages take `times[stage][level]` of the present level; returns its finish.
template <class Policy>
Duration request(Router& router, Policy& policy, TimePoint arrival, Duration limit, TimePoint start,
                 const std::vector<std::vector<double>>& times, Level highest) {
  TimePoint now = start;
  Level level = router.start(policy, arrival, limit, now, highest);
  for (std::size_t s = 0; s < times.size(); ++s) {
    now += Duration(static_cast<std::int64_t>(times[s][static_cast<std::size_t>(level.index)]));
    if (s + 1 < times.size()) level = router.next(policy, now);
  }
  return router.finish(now);
}

std::vector<int> path_of(const Router& router) {
  std::vector<int> levels;
  for (const Level level : router.path()) levels.push_back(level.index);
  return levels;
}

/// Every stage counts in full, however short, no lateness is waited out and nothing guarded: stages of these tests take
/// microseconds.
const strata::RouterOptions no_slice{
    .slice = Duration::zero(), .patience = Duration::zero(), .guard = Duration::zero()};

const TimePoint zero{Duration(5'000'000)};
const std::vector<std::vector<double>> undisturbed(4, {1000, 2000, 4000});

}  // namespace

TEST_CASE("the highest level that meets the deadline is chosen, counted from arrival") {
  Router router(flat_profile(4, {1000, 2000, 4000}), {.margin = 0});
  strata::ChooseAtStart policy;
  for (const auto& [limit, level] : std::vector<std::pair<int, int>>{
           {16000, 2}, {15999, 1}, {8000, 1}, {7999, 0}, {4000, 0}, {3999, 0}, {1, 0}, {0, 0}, {-1, 0}}) {
    INFO(limit);
    CHECK(router.start(policy, zero, Duration(limit), zero, Level{2}) == Level{level});
    CHECK(router.late_at_start() == (limit <= 0));
  }
  // Waiting in a queue counts; an arrival in the future leaves more time.
  CHECK(router.start(policy, zero - Duration(9000), Duration(17000), zero, Level{2}) == Level{1});
  CHECK(router.start(policy, zero - Duration(17000), Duration(17000), zero, Level{2}) == Level{0});
  CHECK(router.late_at_start());
  CHECK(router.start(policy, zero + Duration(9000), Duration(7000), zero, Level{2}) == Level{2});
  // What is not present cannot be chosen.
  CHECK(router.start(policy, zero, Duration::max(), zero, Level{1}) == Level{1});
}

TEST_CASE("margin, reserve and the profile's spread are kept free") {
  const auto profile = flat_profile(4, {1000, 2000});
  strata::ChooseAtStart policy;
  Router margin(profile, {.margin = 0.2});
  CHECK(margin.start(policy, zero, Duration(10000), zero, Level{1}) == Level{1});
  CHECK(margin.start(policy, zero, Duration(9999), zero, Level{1}) == Level{0});
  Router reserve(profile, {.margin = 0, .reserve = Duration(3000)});
  CHECK(reserve.start(policy, zero, Duration(11000), zero, Level{1}) == Level{1});
  CHECK(reserve.start(policy, zero, Duration(10999), zero, Level{1}) == Level{0});
  strata::StageSamples samples(1);
  for (int run = 0; run <= 100; ++run) samples[0].push_back({100.0 + run});
  strata::ProfileKey key;
  key.level_nnz = {1};
  const Router spread(strata::profile_of(samples, std::vector<std::string>{"input"}, key), {.confidence = 0.95});
  CHECK(std::abs(spread.predicted_rest(0, Level{0}) - 195) < 1e-9);
}

TEST_CASE("a run that gets late drops, and comes up again only if asked to") {
  std::vector<std::vector<double>> slow = undisturbed;
  slow[1] = {3000, 6000, 9000};
  const auto profile = flat_profile(4, {1000, 2000, 4000});
  strata::RouterOptions options = no_slice;
  options.slow_down.gain = 0.5;

  Router router(profile, options);
  strata::Reroute down;
  request(router, down, zero, Duration(24000), zero, slow, Level{2});
  CHECK(path_of(router) == std::vector<int>{2, 2, 1, 1});
  CHECK(router.slow_down().mean() > 1);
  CHECK(router.first_prediction() == Duration(16000));

  // Starts full whatever it knows; the first boundary corrects it.
  Router again(profile, options);
  request(again, down, zero, Duration(1), zero, undisturbed, Level{2});
  CHECK(path_of(again) == std::vector<int>{2, 0, 0, 0});

  // The first decision knows of a slow-down that the second one finds gone.
  strata::ChooseAndReroute both{.up = true};
  strata::ChooseAndReroute both_down;
  for (const bool raise : {true, false}) {
    Router late(profile, options);
    for (int i = 0; i < 3; ++i)
      request(late, both, zero, Duration::max(), zero,
              {{4000, 8000, 16000}, {4000, 8000, 16000}, {4000, 8000, 16000}, {4000, 8000, 16000}}, Level{2});
    CHECK(std::abs(late.slow_down().mean() - 4) < 0.1);
    if (raise) {
      request(late, both, zero, Duration(40000), zero, undisturbed, Level{2});
      CHECK(path_of(late).front() < path_of(late).back());
    } else {
      request(late, both_down, zero, Duration(40000), zero, undisturbed, Level{2});
      CHECK(path_of(late).front() == path_of(late).back());
    }
  }
}

TEST_CASE("a single delay is waited out as long as the lowest level stays safe") {
  strata::RouterOptions options = no_slice;
  options.patience = Duration(5000);
  options.patience_reserve = Duration(3000);
  const auto profile = flat_profile(6, {1000, 2000, 4000});
  std::vector<std::vector<double>> delayed(6, {1000, 2000, 4000});
  delayed[1] = {7000, 8000, 10000};
  strata::Reroute policy;
  {  // Behind the delay the run would miss 40 us at its slow-down, but the next stage is as fast as ever.
    Router hasty(profile, no_slice);
    request(hasty, policy, zero, Duration(40000), zero, delayed, Level{2});
    CHECK(path_of(hasty) == std::vector<int>{2, 2, 1, 1, 1, 1});
    Router patient(profile, options);
    CHECK(request(patient, policy, zero, Duration(40000), zero, delayed, Level{2}) == Duration(30000));
    CHECK(path_of(patient) == std::vector<int>(6, 2));
    // One that goes on to be slow is given up once the patience is over.
    delayed[2] = delayed[3] = delayed[1];
    request(patient, policy, zero, Duration(40000), zero, delayed, Level{2});
    CHECK(path_of(patient) == std::vector<int>{2, 2, 2, 0, 0, 0});
    // The next request begins with nothing of it but the slow-down.
    patient.reset();
    delayed.assign(6, {1000, 2000, 4000});
    request(patient, policy, zero, Duration(40000), zero, delayed, Level{2});
    CHECK(path_of(patient) == std::vector<int>(6, 2));
  }
  // No waiting where the lowest level has nothing to spare, for what was late when it began, or while it is slow
  // anyway.
  options.patience_reserve = Duration(20000);
  Router careful(profile, options);
  delayed[1] = {7000, 8000, 10000};
  request(careful, policy, zero, Duration(40000), zero, delayed, Level{2});
  CHECK(path_of(careful) == std::vector<int>{2, 2, 1, 1, 1, 1});
  options.patience_reserve = Duration(3000);
  Router queued(profile, options);
  request(queued, policy, zero, Duration(46000), zero + Duration(25000), std::vector(6, delayed[0]), Level{2});
  CHECK(path_of(queued) == std::vector<int>{2, 1, 1, 1, 1, 1});
  options.slow_down.lasting_gain = 0.3;
  Router slow(profile, options);
  for (int i = 0; i < 10; ++i)
    request(slow, policy, zero, Duration::max(), zero, std::vector(6, std::vector<double>{1300, 2600, 5200}), Level{2});
  CHECK(std::abs(slow.slow_down().lasting() - 1.3) < 0.01);
  delayed.assign(6, {1300, 2600, 5200});
  delayed[1] = {7000, 8000, 10000};
  request(slow, policy, zero, Duration(45000), zero, delayed, Level{2});
  CHECK(path_of(slow)[2] < 2);
}

TEST_CASE("the lowest level keeps its guard: a late delay drops a run that is still predicted to be in time") {
  strata::RouterOptions options = no_slice;
  options.slow_down.gain = 0.01;
  const auto profile = flat_profile(6, {1000, 2000, 4000});
  std::vector<std::vector<double>> delayed(6, {1000, 2000, 4000});
  delayed[4] = {9000, 10000, 12000};
  strata::Reroute policy;
  const std::vector<int> full(6, 2);
  Router bold(profile, options);
  request(bold, policy, zero, Duration(40000), zero, delayed, Level{2});
  CHECK(path_of(bold) == full);
  // 28 us have passed when the last stage begins; 38.8 less 8 are kept.
  options.guard = Duration(8000);
  Router guarded(profile, options);
  CHECK(request(guarded, policy, zero, Duration(40000), zero, delayed, Level{2}) == Duration(30000));
  CHECK(path_of(guarded) == std::vector<int>{2, 2, 2, 2, 2, 1});
  options.guard = Duration(10000);
  Router strict(profile, options);
  request(strict, policy, zero, Duration(40000), zero, delayed, Level{2});
  CHECK(path_of(strict) == std::vector<int>{2, 2, 2, 2, 2, 0});
  // No more than a share of the room, and nothing without a limit.
  options.guard_share = 0.1;
  Router little(profile, options);
  request(little, policy, zero, Duration(40000), zero, delayed, Level{2});
  CHECK(path_of(little) == full);
  options.guard_share = 0.75;
  Router unlimited(profile, options);
  request(unlimited, policy, zero, Duration::max(), zero, delayed, Level{2});
  CHECK(path_of(unlimited) == full);
  // A machine that is slower than the profile all the time has less room; its runs are not delayed.
  Router slow(profile, options);
  delayed.assign(6, {1300, 2600, 5200});
  for (int i = 0; i < 60; ++i) request(slow, policy, zero, Duration::max(), zero, delayed, Level{2});
  CHECK(std::abs(slow.slow_down().usual() - 1.3) < 0.01);
  request(slow, policy, zero, Duration(40000), zero, delayed, Level{2});
  CHECK(path_of(slow) == full);
}

TEST_CASE("the usual slow-down follows the machine and not what takes the core away now and then") {
  strata::SlowDown slow;
  for (int stage = 0; stage < 1000; ++stage) slow.observe(stage % 5 == 0 ? 5 : 1, 1, 0);
  CHECK(slow.lasting() > 1.5);
  CHECK(slow.usual() > 1);
  CHECK(slow.usual() < 1.05);
  for (int stage = 0; stage < 1000; ++stage) slow.observe(1.4, 1, 0);
  CHECK(std::abs(slow.usual() - 1.4) < 0.01);
  for (int stage = 0; stage < 1000; ++stage) slow.observe(0.9, 1, 0);
  CHECK(std::abs(slow.usual() - 0.9) < 0.01);
  slow.reset();
  CHECK(slow.usual() == 1);
}

TEST_CASE("without disturbance every policy but the static and random ones keeps the fullest level at 1.5 x its time") {
  Router router(flat_profile(4, {1000, 2000, 4000}), no_slice);
  strata::Reroute reroute;
  strata::ChooseAtStart start;
  strata::ChooseAndReroute both;
  const std::vector<int> full(4, 2);
  for (int i = 0; i < 100; ++i) {
    request(router, reroute, zero, Duration(24000), zero, undisturbed, Level{2});
    CHECK(path_of(router) == full);
    request(router, start, zero, Duration(24000), zero, undisturbed, Level{2});
    CHECK(path_of(router) == full);
    CHECK(request(router, both, zero, Duration(24000), zero, undisturbed, Level{2}) == Duration(16000));
    CHECK(path_of(router) == full);
  }
}

TEST_CASE("deadlines of every kind have a meaning") {
  using strata::Deadline;
  using strata::saturated;
  using Seconds = std::chrono::duration<double>;
  const double infinity = std::numeric_limits<double>::infinity();
  CHECK(Deadline(std::chrono::milliseconds(12)).limit == Duration(12'000'000));
  CHECK(Deadline(Seconds(0.5)).limit == Duration(500'000'000));
  CHECK(Deadline(Seconds(infinity)).limit == Duration::max());
  CHECK(Deadline(Seconds(-infinity)).limit == Duration::min());
  CHECK(Deadline(Seconds(std::nan(""))).limit == Duration::min());
  CHECK(Deadline(std::chrono::hours::max()).limit == Duration::max());
  CHECK(Deadline(std::chrono::hours::min()).limit == Duration::min());
  CHECK(Deadline(Duration::max()).limit == Duration::max());
  CHECK(Deadline(Duration(9'007'199'254'740'993)).limit == Duration(9'007'199'254'740'993));
  CHECK(Deadline::never().limit == Duration::max());

  strata::ChooseAndReroute both;
  strata::Reroute reroute;
  for (const Duration limit : {Duration::min(), Duration(-1), Duration::zero()}) {
    Router router(flat_profile(4, {1000, 2000, 4000}), no_slice);
    request(router, both, zero, limit, zero, undisturbed, Level{2});
    CHECK(path_of(router) == std::vector<int>(4, 0));
    CHECK(router.late_at_start());
    request(router, reroute, zero, limit, zero, undisturbed, Level{2});
    CHECK(path_of(router) == std::vector<int>(4, 0));
  }
  Router router(flat_profile(4, {1000, 2000, 4000}), no_slice);
  const std::vector<std::vector<double>> crawling(4, {1e9, 2e9, 4e9});
  for (int i = 0; i < 3; ++i) {
    request(router, both, zero, Duration::max(), zero, crawling, Level{2});
    CHECK(path_of(router) == std::vector<int>(4, 2));
    CHECK_FALSE(router.late_at_start());
  }
  // Times at the ends of their range saturate.
  router.start(both, TimePoint::min(), Duration(1000), TimePoint::max(), Level{2});
  CHECK(router.late_at_start());
  CHECK(router.finish(TimePoint::max()) == Duration::max());
  router.start(both, TimePoint::max(), Duration(1000), TimePoint::min(), Level{2});
  CHECK_FALSE(router.late_at_start());
}

TEST_CASE("a clock that stands still or jumps spoils a choice, not the router") {
  Router router(flat_profile(4, {1000, 2000, 4000}), no_slice);
  strata::ChooseAndReroute policy;
  const std::vector<std::vector<double>> still(4, {0, 0, 0});
  CHECK(request(router, policy, zero, Duration(24000), zero, still, Level{2}) == Duration::zero());
  CHECK(path_of(router) == std::vector<int>(4, 2));
  CHECK(router.slow_down().mean() == 1);
  // Back: the time that was known stays.
  auto back = undisturbed;
  back[1] = {-1e6, -1e6, -1e6};
  request(router, policy, zero, Duration(24000), zero, back, Level{2});
  CHECK(path_of(router) == std::vector<int>(4, 2));
  // A day ahead: the rest runs at the lowest level, and a few requests later nothing is left of it.
  auto ahead = undisturbed;
  ahead[1] = {86'400e9, 86'400e9, 86'400e9};
  request(router, policy, zero, Duration(24000), zero, ahead, Level{2});
  CHECK(path_of(router) == std::vector<int>{2, 2, 0, 0});
  CHECK(router.slow_down().mean() <= strata::SlowDown::most);
  for (int i = 0; i < 5; ++i) request(router, policy, zero, Duration(24000), zero, undisturbed, Level{2});
  CHECK(path_of(router) == std::vector<int>(4, 2));
}

TEST_CASE("a model with one level has nothing to choose") {
  Router router(flat_profile(3, {1000}));
  strata::ChooseAndReroute policy;
  for (const Duration limit : {Duration(-1), Duration(10), Duration::max()}) {
    request(router, policy, zero, limit, zero, std::vector<std::vector<double>>(3, {1000.0}), Level{0});
    CHECK(path_of(router) == std::vector<int>(3, 0));
  }
  strata::RandomLevel random(1);
  CHECK(router.start(random, zero, Duration(1), zero, Level{0}) == Level{0});
}

TEST_CASE("policies: static, random from a seed, oracle, and one's own") {
  Router router(flat_profile(4, {1000, 2000, 4000}), no_slice);
  strata::StaticLevel middle{Level{1}};
  request(router, middle, zero, Duration(-5), zero, undisturbed, Level{2});
  CHECK(path_of(router) == std::vector<int>(4, 1));
  request(router, middle, zero, Duration(-5), zero, undisturbed, Level{0});
  CHECK(path_of(router) == std::vector<int>(4, 0));

  std::vector<std::vector<int>> paths[2];
  for (auto& list : paths) {
    strata::RandomLevel random(7);
    for (int i = 0; i < 50; ++i) {
      request(router, random, zero, Duration(1), zero, undisturbed, Level{2});
      list.push_back(path_of(router));
      CHECK(std::is_sorted(list.back().rbegin(), list.back().rend()));
    }
  }
  CHECK(paths[0] == paths[1]);

  // The third stage will take 50 us whatever the level: only the oracle knows before.
  strata::Oracle oracle{[](const strata::RoutePoint& point, Level level) noexcept {
    return point.elapsed() + Duration(point.stage() <= 2 ? 50000 : 0) +
           Duration((4 - point.stage()) * (1000 << level.index));
  }};
  request(router, oracle, zero, Duration(60000), zero, undisturbed, Level{2});
  CHECK(path_of(router) == std::vector<int>{1, 1, 1, 1});

  const auto own = [](const strata::RoutePoint& point) noexcept { return Level{point.stage() == 3 ? -7 : 99}; };
  static_assert(strata::RoutingPolicy<decltype(own)>);
  static_assert(!strata::RoutingPolicy<decltype([](const strata::RoutePoint&) { return Level{0}; })>, "may throw");
  request(router, own, zero, Duration(1), zero, undisturbed, Level{2});
  CHECK(path_of(router) == std::vector<int>{2, 2, 2, 0});
}

TEST_CASE("both estimators find a constant slow-down and forget it") {
  for (const auto estimator : {strata::Estimator::exponential, strata::Estimator::kalman}) {
    strata::RouterOptions options = no_slice;
    options.slow_down.estimator = estimator;
    Router router(flat_profile(4, {1000, 2000, 4000}), options);
    strata::StaticLevel policy{Level{2}};
    std::vector<std::vector<double>> slow = undisturbed;
    for (auto& stage : slow)
      for (double& time : stage) time *= 3;
    for (int i = 0; i < 20; ++i) request(router, policy, zero, Duration(1), zero, slow, Level{2});
    CHECK(std::abs(router.slow_down().mean() - 3) < 0.03);
    CHECK(router.slow_down().deviation() < 0.3);
    CHECK(router.predicted_rest(0, Level{0}) >= 11900);
    for (int i = 0; i < 20; ++i) request(router, policy, zero, Duration(1), zero, undisturbed, Level{2});
    CHECK(std::abs(router.slow_down().mean() - 1) < 0.03);
    router.reset();
    CHECK(router.slow_down().mean() == 1);
  }
  strata::SlowDown slow_down{strata::SlowDownOptions{}};
  for (const double ratio : {0.0, -1.0, std::nan(""), -std::numeric_limits<double>::infinity()})
    slow_down.observe(ratio, 1, 1e-4);
  CHECK(slow_down.mean() == 1);
  slow_down = strata::SlowDown({.gain = 1});
  slow_down.observe(1e300, 1, 1e-4);
  CHECK(slow_down.mean() == strata::SlowDown::most);
}

TEST_CASE("an observation that is not finite is none: the estimate stays one") {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const auto estimator : {strata::Estimator::exponential, strata::Estimator::kalman}) {
    strata::SlowDown slow_down({.estimator = estimator});
    for (const double bad : {std::nan(""), infinity, -infinity}) {
      slow_down.observe(bad, 1, 1e-4);
      slow_down.observe(2, bad, 1e-4);
      slow_down.observe(2, 1, bad);
    }
    CHECK(slow_down.mean() == 1);
    slow_down.observe(2, 0, 0);  // neither length nor noise
    CHECK(slow_down.mean() == 1);
    CHECK(slow_down.deviation() < 1);
    for (int stage = 0; stage < 100; ++stage) slow_down.observe(2, 1, 1e-4);
    CHECK(std::abs(slow_down.mean() - 2) < 0.03);
    CHECK(std::isfinite(slow_down.deviation()));
  }
  strata::SlowDown wild({.estimator = strata::Estimator::kalman, .process_noise = 1e308});
  for (int stage = 0; stage < 3; ++stage) wild.observe(2, 16, 1e-4);
  CHECK(std::abs(wild.mean() - 2) < 1e-3);
}

TEST_CASE("a profile of stages below a nanosecond or of absurd times does not spoil the estimate") {
  for (const double cost : {1e-200, 0.5, 1e160, 1e300}) {
    INFO(cost);
    strata::RouterOptions options = no_slice;
    options.slow_down.estimator = strata::Estimator::kalman;
    Router router(flat_profile(4, {cost, 2 * cost}), options);
    strata::ChooseAndReroute policy;
    const std::vector<std::vector<double>> times(4, {100, 100});
    for (int i = 0; i < 3; ++i) request(router, policy, zero, Duration::max(), zero, times, Level{1});
    CHECK(std::isfinite(router.slow_down().mean()));
    CHECK(std::isfinite(router.slow_down().deviation()));
    CHECK(router.slow_down().usual() > 0);
    CHECK(router.start(policy, zero, Duration(1'000'000'000), zero, Level{1}) == Level{cost < 1 ? 1 : 0});
  }
}

TEST_CASE("stages shorter than half of an average one are observed together") {
  // Two stages, four micro-batches: each stage is a quarter of an average one of the network.
  auto profile = flat_profile(8, {1000, 2000});
  profile.key.batch = 7;
  profile.key.micro_batch = 2;
  Router router(profile, no_slice);
  CHECK(router.micro_batches() == 4);
  strata::StaticLevel policy{Level{1}};
  TimePoint now = zero;
  router.start(policy, zero, Duration::max(), now, Level{1});
  router.next(policy, now += Duration(4000));
  CHECK(router.slow_down().mean() == 1);
  router.next(policy, now += Duration(8000));
  // Both together took three times as long and are half of an average stage.
  CHECK(std::abs(router.slow_down().mean() - (1 + 2 * (1 - std::sqrt(0.3)))) < 1e-9);
  // What is left over at the end of a run counts; at its start nothing of the run before does.
  const double before = router.slow_down().mean();
  router.next(policy, now += Duration(2000));
  CHECK(router.slow_down().mean() == before);
  (void)router.finish(now);
  CHECK(router.slow_down().mean() < before);
  profile.stages.pop_back();
  CHECK_THROWS_AS(Router(profile), strata::Error);
}

TEST_CASE("stages shorter than a slice count for the slow-down as much as they are of one") {
  strata::StaticLevel policy{Level{0}};
  for (const double stage : {1e5, 4e5, 1e6, 8e6}) {
    Router router(flat_profile(4, {stage}), {.slice = Duration(1'000'000)});
    TimePoint now = zero;
    router.start(policy, zero, Duration::max(), now, Level{0});
    router.next(policy, now += Duration(static_cast<std::int64_t>(3 * stage)));
    CHECK(std::abs(router.slow_down().mean() - (1 + 2 * (1 - std::pow(0.3, std::min(stage / 1e6, 1.0))))) < 1e-9);
  }
}

TEST_CASE("decisions allocate nothing") {
  Router router(flat_profile(16, {1000, 2000, 4000}));
  strata::ChooseAndReroute policy{.up = true};
  const std::vector<std::vector<double>> times(16, {1500, 2500, 5000});
  const long before = allocations();
  for (int i = 0; i < 100; ++i) request(router, policy, zero, Duration(50000), zero, times, Level{2});
  CHECK(allocations() == before);
}

TEST_CASE("profiles that are not whole and options out of range are refused") {
  const auto good = flat_profile(3, {1000, 2000});
  CHECK_NOTHROW(Router(good));
  auto profile = good;
  profile.stages.clear();
  CHECK_THROWS_AS(Router(profile), strata::Error);
  profile = good;
  profile.stages[1].levels.pop_back();
  CHECK_THROWS_AS(Router(profile), strata::Error);
  for (const double bad : {-1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    profile = good;
    profile.stages[2].levels[0].stage.mean = bad;
    CHECK_THROWS_AS(Router(profile), strata::Error);
    profile = good;
    profile.stages[2].levels[0].rest.quantiles[4] = bad;
    CHECK_THROWS_AS(Router(profile), strata::Error);
  }
  CHECK_THROWS_AS(Router(good, {.confidence = 0}), strata::Error);
  CHECK_THROWS_AS(Router(good, {.confidence = 1}), strata::Error);
  CHECK_THROWS_AS(Router(good, {.confidence = std::nan("")}), strata::Error);
  CHECK_THROWS_AS(Router(good, {.margin = 1}), strata::Error);
  CHECK_THROWS_AS(Router(good, {.reserve = Duration(-1)}), strata::Error);
  CHECK_THROWS_AS(Router(good, {.slice = Duration(-1)}), strata::Error);
  CHECK_THROWS_AS(Router(good, {.patience = Duration(-1)}), strata::Error);
  CHECK_THROWS_AS(Router(good, {.patience_reserve = Duration(-1)}), strata::Error);
  CHECK_THROWS_AS(Router(good, {.guard = Duration(-1)}), strata::Error);
  CHECK_THROWS_AS(Router(good, {.guard_share = -0.1}), strata::Error);
  CHECK_THROWS_AS(Router(good, {.guard_share = 1.1}), strata::Error);
  CHECK_THROWS_AS(Router(good, {.guard_share = std::nan("")}), strata::Error);
  CHECK_THROWS_AS(Router(good, {.calm = -1}), strata::Error);
  CHECK_THROWS_AS(Router(good, {.calm = std::nan("")}), strata::Error);
  CHECK_THROWS_AS(Router(good, {.slow_down = {.gain = 0}}), strata::Error);
  CHECK_THROWS_AS(Router(good, {.slow_down = {.lasting_gain = 1.5}}), strata::Error);
  CHECK_THROWS_AS(Router(good, {.slow_down = {.process_noise = 0}}), strata::Error);
  CHECK_THROWS_AS(Router(good, {.slow_down = {.adaptation = 2}}), strata::Error);
  for (const double bad : {std::numeric_limits<double>::infinity(), std::nan("")}) {
    CHECK_THROWS_AS(Router(good, {.slow_down = {.process_noise = bad}}), strata::Error);
    CHECK_THROWS_AS(Router(good, {.calm = bad}), strata::Error);
  }
  // Times of zero, as a clock without resolution gives: everything is predicted to take no time.
  Router instant(flat_profile(3, {0, 0}));
  strata::ChooseAndReroute policy;
  request(instant, policy, zero, Duration(10), zero, std::vector<std::vector<double>>(3, {1, 1}), Level{1});
  CHECK(path_of(instant) == std::vector<int>(3, 1));
}

TEST_CASE("numbers of micro-batches that are not those of the stages are refused, however large") {
  auto profile = flat_profile(4, {1000, 2000});
  profile.key.micro_batch = 1;
  for (const std::int64_t batch : {1, 2, 4}) {
    profile.key.batch = batch;
    CHECK(Router(profile).micro_batches() == static_cast<int>(batch));
  }
  const std::int64_t wrap = std::int64_t{1} << 32;  // is 0 in 32 bits
  const std::int64_t most = std::numeric_limits<std::int64_t>::max();
  for (const std::int64_t batch :
       {std::int64_t{3}, std::int64_t{5}, std::int64_t{8}, wrap - 1, wrap, wrap + 1, wrap + 2, 4 * wrap, most}) {
    INFO(batch);
    profile.key.batch = batch;
    CHECK_THROWS_AS(Router(profile), strata::Error);
  }
  profile.key.batch = most;
  profile.key.micro_batch = most;
  CHECK(Router(profile).micro_batches() == 1);
  profile.key.micro_batch = most - 1;
  CHECK(Router(profile).micro_batches() == 2);
}
