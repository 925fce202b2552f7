// Sessions that run by a deadline: stages, statistics of rerouted paths, what a run reports, refusals.
#include <iterator>
#include <limits>
#include <random>
#include <utility>

#include <strata/runtime/session.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/small_net.hpp"
#include "support/staged_net.hpp"

namespace {

using strata::Deadline;
using strata::Duration;
using strata::Level;
using test::ScriptedPath;
using test::staged_archive;
using test::StagedModel;

const std::vector<float> input(16, 0.75F);

std::vector<float> copied(std::span<const float> values) {
  return {values.begin(), values.end()};
}

/// The session's profile with every stage taking `costs[level]`.
strata::Profile profile_for(const strata::Session<StagedModel>& session, const std::vector<double>& costs) {
  auto profile = test::flat_profile(static_cast<int>(session.stages().size()), costs);
  profile.key = session.profile_key();
  for (std::size_t s = 0; s < profile.stages.size(); ++s) profile.stages[s].name = session.stages()[s];
  return profile;
}

std::vector<int> levels_of(std::span<const Level> path) {
  std::vector<int> levels;
  for (const Level level : path) levels.push_back(level.index);
  return levels;
}

/// 1x1 convolutions of which two write over their residual where they may, and a large one at the end, for which there
/// is one gap only if they lie where they lay when the arena was filled.
template <class Family>
struct InPlaceNet {
  struct Config {
    template <class V>
    void visit(V&&) {}
  };
  static constexpr std::string_view architecture = "in place";

  explicit InPlaceNet(const Config&) {
    for (const auto& [in, out] : sizes) convs.emplace_back(conv(in, out));
  }
  static strata::Conv2dOptions conv(strata::index_t in, strata::index_t out) {
    return {.in_channels = in, .out_channels = out, .kernel = 1, .norm = false};
  }

  [[nodiscard]] strata::Shape input_shape() const { return {8, 16, 16}; }
  auto operator()(typename Family::Context& context, const typename Family::Tensor& x) const {
    auto y = convs[0](context, x);
    context.stage("first");
    y = convs[2](context, convs[1](context, y), std::move(y));
    context.stage("second");
    y = convs[4](context, convs[3](context, y), std::move(y));
    return convs[5](context, y);
  }
  template <class V>
  void visit(V&& v) {
    v("convs", convs);
  }

  static constexpr std::pair<strata::index_t, strata::index_t> sizes[] = {{8, 16},  {16, 64}, {64, 16},
                                                                          {16, 16}, {16, 16}, {16, 128}};
  std::vector<typename Family::Conv2d> convs;
};

using InPlaceModel = strata::Model<InPlaceNet>;

strata::Archive in_place_archive(int levels) {
  strata::Archive archive;
  archive.set_levels(levels);
  archive.metadata()["architecture"] = "in place";
  strata::ParameterSink sink(archive);
  std::mt19937 random(3);
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (std::size_t i = 0; i < std::size(InPlaceNet<strata::Inference<>>::sizes); ++i) {
    const auto [in, out] = InPlaceNet<strata::Inference<>>::sizes[i];
    std::vector<float> weights(static_cast<std::size_t>(in * out));
    std::vector<std::uint8_t> strata(weights.size());
    for (std::size_t w = 0; w < weights.size(); ++w) {
      weights[w] = uniform(random) / static_cast<float>(in);
      strata[w] = static_cast<std::uint8_t>(w % static_cast<std::size_t>(levels));
    }
    sink.leveled_csr("convs." + std::to_string(i) + ".weight",
                     strata::LeveledCsr<float, strata::ConvIndex>::from_dense(
                         weights, strata::StratumMap::from_strata(out, in, levels, strata).value(),
                         strata::conv_block_columns(1, in)));
  }
  return archive;
}

}  // namespace

TEST_CASE("a session knows its stages") {
  const strata::Session<StagedModel> session(StagedModel::from_archive(staged_archive(16, 4, 3)).value());
  CHECK(session.stages() == std::vector<std::string>{"input", "layer1", "layer2", "layer3"});
  const strata::Session<test::SmallModel> small(test::SmallModel::from_archive(test::small_archive()).value());
  CHECK(small.stages() == std::vector<std::string>{"input", "head"});
}

TEST_CASE("every stage of a path runs with its own level's statistics") {
  // Layer 1 at level 0 has the norm of `other`; the model with a transition 1 -> 0 holds `other` only there.
  const auto other = test::random_norm(16, 99);
  strata::Session<StagedModel> plain(StagedModel::from_archive(staged_archive(16, 4, 2)).value());
  strata::Session<StagedModel> changed(StagedModel::from_archive(staged_archive(16, 4, 2, &other)).value());
  strata::Session<StagedModel> with(StagedModel::from_archive(staged_archive(16, 4, 2, nullptr, &other)).value());
  for (auto* session : {&plain, &changed, &with}) session->set_profile(profile_for(*session, {1000, 2000}));
  const auto run = [](strata::Session<StagedModel>& session, std::vector<int> path) {
    const auto result = session.run(input, Deadline::never(), ScriptedPath{path});
    CHECK(levels_of(result.path) == path);
    return copied(result.output);
  };
  // Paths of one level are what `run` gives at that level.
  for (int level : {0, 1}) CHECK(run(plain, std::vector<int>(4, level)) == copied(plain.run(input, Level{level})));
  // The switch into layer 1 uses the transition's statistics, nothing else does.
  CHECK(run(with, {1, 0, 0, 0}) == run(changed, {1, 0, 0, 0}));
  CHECK(run(with, {1, 0, 0, 0}) != run(plain, {1, 0, 0, 0}));
  for (const std::vector<int>& path : std::vector<std::vector<int>>{
           {0, 0, 0, 0}, {1, 1, 1, 1}, {1, 1, 0, 0}, {1, 1, 1, 0}, {0, 1, 1, 1}, {0, 1, 0, 1}})
    CHECK(run(with, path) == run(plain, path));
  // The stage after the first one is back at the level's own statistics: layers 2 and 3 have no say here, so a path
  // that stays down gives the same as one whose later stages are told the level again.
  CHECK(run(with, {1, 0, 1, 0}) == run(changed, {1, 0, 1, 0}));
}

TEST_CASE("statistics of later stages after a switch are used where they are, those of the last switch only") {
  const auto first = test::random_norm(16, 98);
  const auto later = test::random_norm(16, 99);
  const auto with = [&](std::vector<const test::NormValues*> stages) {
    auto archive = staged_archive(16, 4, 3);
    strata::ParameterSink sink(archive);
    for (std::size_t since = 0; since < stages.size(); ++since)
      sink.transition<float>("layers.2.norm", Level{2}, Level{1}, static_cast<int>(since), stages[since]->scale,
                             stages[since]->bias);
    strata::Session<StagedModel> session(StagedModel::from_archive(archive).value());
    session.set_profile(profile_for(session, {1000, 2000, 3000}));
    return session;
  };
  auto plain = with({});
  auto one = with({&first});
  auto two = with({&first, &later});
  auto swapped = with({&later, &first});
  const auto run = [](strata::Session<StagedModel>& session, std::vector<int> path) {
    return copied(session.run(input, Deadline::never(), ScriptedPath{path}).output);
  };
  // Layer 2 one stage after the switch, as if it were the first stage with those statistics; and in the first stage.
  CHECK(run(two, {2, 1, 1, 1}) != run(plain, {2, 1, 1, 1}));
  CHECK(run(two, {2, 1, 1, 1}) != run(swapped, {2, 1, 1, 1}));
  CHECK(run(two, {2, 2, 1, 1}) != run(plain, {2, 2, 1, 1}));
  CHECK(run(two, {2, 2, 1, 1}) == run(one, {2, 2, 1, 1}));
  CHECK(run(one, {2, 1, 1, 1}) == run(plain, {2, 1, 1, 1}));
  // No switch, one that comes later, another pair of levels, and a later switch that takes the place of the first.
  for (const std::vector<int>& path : std::vector<std::vector<int>>{
           {1, 1, 1, 1}, {2, 2, 2, 1}, {2, 0, 0, 0}, {1, 2, 2, 2}, {2, 1, 0, 0}, {2, 0, 1, 1}})
    CHECK(run(two, path) == run(plain, path));
  // A run does not remember the one before.
  CHECK(copied(two.run(input, Level{1})) == copied(plain.run(input, Level{1})));
}

TEST_CASE("a transition that is half there or of another size is refused") {
  auto archive = staged_archive(16, 2, 2);
  strata::ParameterSink sink(archive);
  const std::vector<float> ones(16, 1.0F);
  sink.array<float>("layers.1.norm.transition.1.0.scale", {16}, 1, ones);
  const auto half = StagedModel::from_archive(archive);
  CHECK(half.error().where() == "layers.1.norm.transition.1.0.bias");
  sink.array<float>("layers.1.norm.transition.1.0.bias", {8}, 1, std::span(ones).first(8));
  CHECK(StagedModel::from_archive(archive).error().expected() == "shape [16]");
  auto unknown = staged_archive(16, 2, 2);
  strata::ParameterSink(unknown).transition<float>("layers.1.norm", Level{1}, Level{1}, 0, ones, ones);
  CHECK_FALSE(StagedModel::from_archive(unknown).ok());
  // Later stages without the first one.
  auto without = staged_archive(16, 2, 2);
  strata::ParameterSink(without).transition<float>("layers.1.norm", Level{1}, Level{0}, 1, ones, ones);
  CHECK_FALSE(StagedModel::from_archive(without).ok());
}

TEST_CASE("a run by a deadline reports path, predictions and what became of them") {
  strata::Session<StagedModel> session(StagedModel::from_archive(staged_archive(16, 4, 3)).value());
  const auto profile = profile_for(session, {1000, 2000, 4000});
  // Looks: arrival, start, three stages, the end.
  test::FakeClock undisturbed{{0, 0, 4000, 4000, 4000, 4000}};
  session.set_profile(profile, {}, undisturbed.clock());
  auto result = session.run(input, Deadline(Duration(24000)));
  CHECK(levels_of(result.path) == std::vector<int>{2, 2, 2, 2});
  CHECK(result.first_prediction == Duration(16000));
  CHECK(result.last_prediction == Duration(16000));
  CHECK(result.finish == Duration(16000));
  CHECK(result.met);
  CHECK_FALSE(result.late_at_start);
  CHECK_FALSE(result.rerouted());
  CHECK_FALSE(result.absent);
  CHECK(result.highest == Level{2});
  CHECK(session.level() == Level{2});
  CHECK(copied(result.output) == copied(session.run(input, Level{2})));

  test::FakeClock disturbed{{0, 0, 4000, 14000, 1000, 1500}};
  session.set_profile(profile, {.slice = Duration::zero()}, disturbed.clock());
  result = session.run(input, Deadline(Duration(24000)));
  CHECK(levels_of(result.path) == std::vector<int>{2, 2, 0, 0});
  CHECK(result.rerouted());
  CHECK(result.finish == Duration(20500));
  CHECK(result.met);

  test::FakeClock late{{0, 1000}, 1000};
  session.set_profile(profile, {}, late.clock());
  for (const Deadline& deadline : {Deadline(Duration(-5)), Deadline(Duration(0)), Deadline(Duration(1000)),
                                   Deadline(Duration(10), strata::TimePoint(Duration(5)))}) {
    result = session.run(input, deadline);
    CHECK(result.late_at_start);
    CHECK_FALSE(result.met);
    CHECK(levels_of(result.path) == std::vector<int>{0, 0, 0, 0});
    CHECK(copied(result.output) == copied(session.run(input, Level{0})));
  }
  result = session.run(input, Deadline::never());
  CHECK(result.met);
  CHECK(levels_of(result.path) == std::vector<int>{2, 2, 2, 2});

  // A clock that stands still: every deadline above zero is met.
  test::FakeClock still;
  session.set_profile(profile, {}, still.clock());
  result = session.run(input, Deadline(Duration(20000)));
  CHECK(result.met);
  CHECK(result.finish == Duration::zero());
  // One that goes back.
  test::FakeClock back{{0, 0, 4000, -100'000, 4000, 4000}};
  session.set_profile(profile, {}, back.clock());
  result = session.run(input, Deadline(Duration(24000)));
  CHECK(result.finish == Duration(4000));
  CHECK(copied(result.output) == copied(session.run(input, Level{2})));
}

TEST_CASE("the level may change between micro-batches as well as between stages") {
  const auto model = StagedModel::from_archive(staged_archive(16, 3, 2)).value();
  strata::Session<StagedModel> session(model, {.batch = 5, .micro_batch = 2});
  CHECK(session.stages() == std::vector<std::string>{"input", "layer1", "layer2", "input #2", "layer1 #2", "layer2 #2",
                                                     "input #3", "layer1 #3", "layer2 #3"});
  session.set_profile(profile_for(session, {1000, 2000}));
  std::vector<float> pictures(5 * 16);
  for (std::size_t i = 0; i < pictures.size(); ++i) pictures[i] = static_cast<float>(i % 7) / 7;

  // What the policy is told, and a path of its own for every micro-batch.
  const std::vector<std::vector<int>> script = {{1, 1, 1}, {1, 0, 0}, {0, 1, 0}};
  std::vector<std::vector<int>> told;
  const auto policy = [&](const strata::RoutePoint& point) noexcept {
    told.push_back({point.start() ? 1 : 0, point.micro_batch(), point.micro_batches(), point.stage(), point.stages()});
    return Level{script[static_cast<std::size_t>(point.micro_batch())][static_cast<std::size_t>(point.stage())]};
  };
  const auto result = session.run(pictures, Deadline::never(), policy);
  CHECK(levels_of(result.path) == std::vector<int>{1, 1, 1, 1, 0, 0, 0, 1, 0});
  REQUIRE(told.size() == 9);
  for (int step = 0; step < 9; ++step)
    CHECK(told[static_cast<std::size_t>(step)] == std::vector<int>{step == 0 ? 1 : 0, step / 3, 3, step % 3, 3});

  // Every picture has what it gets alone on its micro-batch's path.
  strata::Session<StagedModel> single(model);
  single.set_profile(profile_for(single, {1000, 2000}));
  const auto output = copied(result.output);
  const std::size_t width = output.size() / 5;
  for (std::size_t i = 0; i < 5; ++i) {
    const auto alone =
        single.run(std::span(pictures).subspan(i * 16, 16), Deadline::never(), ScriptedPath{script[i / 2]});
    for (std::size_t k = 0; k < width; ++k) CHECK(std::abs(output[i * width + k] - alone.output[k]) < 1e-5F);
  }

  // A level that was chosen at the start, or dropped to, stays for the micro-batches that follow.
  const auto profile = profile_for(session, {1000, 2000});
  for (const bool drops : {false, true}) {
    // Looks: arrival, start, eight further stages, the end. The second micro-batch's second stage takes 5000 ns more.
    test::FakeClock clock{{0, 0, 2000, 2000, 2000, 2000, drops ? 7000 : 2000}, 1000};
    session.set_profile(profile, {}, clock.clock());
    const auto run = session.run(pictures, Deadline(Duration(20000)), strata::Reroute{});
    CHECK(levels_of(run.path) == (drops ? std::vector<int>{1, 1, 1, 1, 1, 0, 0, 0, 0} : std::vector<int>(9, 1)));
  }
}

TEST_CASE("runs by a deadline allocate nothing, whatever their path") {
  strata::Session<StagedModel> session(StagedModel::from_archive(staged_archive(16, 4, 3)).value(),
                                       {.threads = 2, .batch = 5, .micro_batch = 1});
  session.set_profile(strata::profile(session, {.runs = 3, .warm_up = 0}));
  std::vector<float> pictures(5 * 16, 0.5F);
  strata::RandomLevel policy(3);
  const std::vector<float> first = copied(session.run(pictures, Deadline::never()).output);
  const long before = allocations();
  for (int i = 0; i < 50; ++i) (void)session.run(pictures, Deadline(Duration(1)), policy);
  const auto result = session.run(pictures, Deadline::never());
  CHECK(allocations() == before);
  CHECK(copied(result.output) == first);
}

TEST_CASE("what a layer takes from the arena does not depend on its level, so that every path fits") {
  for (const int levels : {2, 3}) {
    strata::Session<InPlaceModel> session(InPlaceModel::from_archive(in_place_archive(levels)).value());
    session.set_profile(strata::profile(session, {.runs = 1, .warm_up = 0}));
    const std::vector<float> picture(8 * 16 * 16, 0.5F);
    for (int path = 0; path < levels * levels * levels; ++path) {
      ScriptedPath policy{{path % levels, path / levels % levels, path / levels / levels}};
      INFO("path " << policy.levels[0] << policy.levels[1] << policy.levels[2]);
      const long before = allocations();
      (void)session.run(picture, Deadline::never(), policy);
      CHECK(allocations() == before);
    }
  }
}

TEST_CASE("a model with one level, and one without stages, run by a deadline") {
  for (const strata::index_t depth : {1, 3}) {
    strata::Session<StagedModel> session(StagedModel::from_archive(staged_archive(16, depth, 1)).value());
    session.set_profile(strata::profile(session, {.runs = 2}));
    for (const Duration limit : {Duration(-1), Duration(1), Duration::max()}) {
      const auto result = session.run(input, Deadline(limit));
      CHECK(levels_of(result.path) == std::vector<int>(static_cast<std::size_t>(depth), 0));
      CHECK(copied(result.output) == copied(session.run(input, Level{0})));
      CHECK(result.met == (limit == Duration::max()));
    }
  }
}

TEST_CASE("a deadline without a profile, or with another session's, is an error") {
  auto model = StagedModel::from_archive(staged_archive(16, 4, 2)).value();
  strata::Session<StagedModel> session(model);
  CHECK_THROWS_AS(session.run(input, Deadline::never()), strata::Error);
  const auto good = strata::profile(session, {.runs = 2});
  CHECK_NOTHROW(session.set_profile(good));
  CHECK_THROWS_AS(session.run(std::vector<float>(15), Deadline::never()), strata::Error);

  const auto refused = [&](const char* where, auto&& change) {
    auto profile = good;
    change(profile);
    try {
      session.set_profile(profile);
      FAIL("not refused: " << where);
    } catch (const strata::Error& error) {
      CHECK(error.where() == std::string("profile: ") + where);
    }
  };
  refused("architecture", [](auto& p) { p.key.architecture = "other"; });
  refused("model", [](auto& p) { ++p.key.model; });
  refused("level set", [](auto& p) { ++p.key.level_nnz[1]; });
  refused("level set", [](auto& p) { p.key.level_nnz.pop_back(); });
  refused("paths through the layers", [](auto& p) { ++p.key.level_bytes[1]; });
  refused("threads", [](auto& p) { p.key.threads = 2; });
  refused("batch", [](auto& p) { p.key.batch = 2; });
  refused("micro-batch", [](auto& p) { p.key.micro_batch = 2; });
  refused("instruction set", [](auto& p) { p.key.instruction_set = "abacus"; });
  refused("runs", [](auto& p) { p.runs = 0; });
  refused("stage 3", [](auto& p) { p.stages.pop_back(); });
  refused("stage 1", [](auto& p) { p.stages.erase(p.stages.begin() + 1); });
  refused("stage 2", [](auto& p) { p.stages[2].levels.pop_back(); });
  refused("stage 2", [](auto& p) { p.stages[2].levels[1].stage.quantiles[3] = -1; });
  refused("stages", [](auto& p) { p.stages.push_back(p.stages.back()); });

  // Another session of the same model, with other threads or batch, has another profile; a copy of the model has not.
  CHECK_NOTHROW(strata::Session<StagedModel>(model).set_profile(good));
  strata::Session<StagedModel> two(model, {.threads = 2});
  CHECK_THROWS_AS(two.set_profile(good), strata::Error);
  const auto norm = test::random_norm(16, 1);
  strata::Session<StagedModel> other(StagedModel::from_archive(staged_archive(16, 4, 2, &norm)).value());
  CHECK_THROWS_AS(other.set_profile(good), strata::Error);
}
