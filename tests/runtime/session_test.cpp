// Sessions: levels per call, no allocation after construction, concurrent sessions on one model, clear errors.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include <strata/runtime/session.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/small_net.hpp"
#include "support/staged_net.hpp"

namespace {

using strata::index_t;
using strata::Level;
using test::small_archive;
using test::SmallModel;

}  // namespace

TEST_CASE("a run allocates nothing, gives the same result every time and switches level at no cost") {
  auto model = SmallModel::from_archive(small_archive()).value();
  for (const int threads : {1, 2})
    for (const index_t batch : {index_t{1}, index_t{5}}) {
      strata::Session<SmallModel> session(model, {.threads = threads, .batch = batch});
      std::vector<float> input(static_cast<std::size_t>(batch * 81));
      for (std::size_t i = 0; i < input.size(); ++i) input[i] = static_cast<float>(i % 17) / 17.0F;
      std::vector<float> first[2];
      for (int level : {0, 1}) {
        const auto output = session.run(input, Level{level});
        first[level].assign(output.begin(), output.end());
      }
      CHECK(first[0] != first[1]);
      const long before = allocations();
      bool same = true;
      for (int i = 0; i < 20; ++i) {
        const auto output = session.run(input, Level{i % 2});
        same = same && std::equal(output.begin(), output.end(), first[i % 2].begin());
      }
      CHECK(allocations() == before);
      CHECK(same);
    }
}

TEST_CASE("a session tells the shape of an output and the memory that it holds") {
  auto model = SmallModel::from_archive(small_archive()).value();
  strata::Session<SmallModel> one(model);
  CHECK(one.output_shape().size() == static_cast<index_t>(one.output().size()));
  CHECK(one.output_shape().height == 1);
  strata::Session<SmallModel> five(model, {.threads = 2, .batch = 5, .micro_batch = 2});
  CHECK(five.output_shape() == one.output_shape());
  CHECK(five.output().size() == 5 * one.output().size());
  const auto numbers = [](const auto& session) {
    return static_cast<index_t>((session.output().size() + static_cast<std::size_t>(81 * session.batch())) * 4);
  };
  CHECK(one.bytes() > numbers(one));
  CHECK(five.bytes() > numbers(five));
  const index_t before = five.bytes();
  const strata::Clock clock;
  std::vector<strata::TimePoint> starts(five.stages().size() + 1);
  five.forward_timed(Level{0}, clock, starts);  // by stages, which takes memory of its own once
  CHECK(five.bytes() > before);

  // A session that was moved goes on where it was.
  const std::vector<float> input(5 * 81, 0.5F);
  const auto expected = five.run(input, Level{1});
  const std::vector<float> first(expected.begin(), expected.end());
  strata::Session<SmallModel> moved = std::move(five);
  const auto output = moved.run(input, Level{1});
  CHECK(std::equal(output.begin(), output.end(), first.begin(), first.end()));
}

TEST_CASE("a dense path gives what the sparse one gives, at the levels that it was chosen for") {
  auto model = SmallModel::from_archive(small_archive()).value();
  for (const auto& [batch, micro_batch] : {std::pair<index_t, index_t>{1, 0}, {5, 2}, {5, 5}}) {
    strata::Session<SmallModel> session(model, {.threads = 2, .batch = batch, .micro_batch = micro_batch});
    std::vector<float> input(static_cast<std::size_t>(batch * 81));
    for (std::size_t i = 0; i < input.size(); ++i) input[i] = static_cast<float>(i % 17) / 17.0F;
    std::vector<float> sparse[2];
    for (int level : {0, 1}) {
      const auto output = session.run(input, Level{level});
      sparse[level].assign(output.begin(), output.end());
    }
    const index_t bytes[2] = {model.bytes(Level{0}), model.bytes(Level{1})};
    const double any_gain = -1e9;
    const double no_gain = 1;
    // Level 1 holds half of the weights, level 0 a quarter.
    const auto paths = session.choose_paths({.least_density = 0.3, .repetitions = 1, .least_gain = any_gain});
    REQUIRE(paths.size() == 2);
    CHECK(paths[0].layer == "conv");
    CHECK(paths[1].layer == "fc");
    for (const auto& path : paths) {
      CHECK(path.level == Level{1});
      CHECK(std::abs(path.density - 0.5) < 0.02);
      CHECK(path.dense);
    }
    CHECK(model.bytes(Level{0}) == bytes[0]);
    CHECK(model.bytes(Level{1}) != bytes[1]);
    const long before = allocations();
    for (int level : {1, 0, 1}) {
      const auto output = session.run(input, Level{level});
      bool close = true;
      for (std::size_t i = 0; i < output.size(); ++i) close = close && std::abs(output[i] - sparse[level][i]) < 1e-5F;
      CHECK(close);
      if (level == 0) CHECK(std::equal(output.begin(), output.end(), sparse[0].begin()));
    }
    CHECK(allocations() == before);
    CHECK(session.choose_paths({.least_density = 0, .repetitions = 1, .least_gain = no_gain}).size() == 4);
    CHECK(model.bytes(Level{1}) == bytes[1]);
    const auto output = session.run(input, Level{1});
    CHECK(std::equal(output.begin(), output.end(), sparse[1].begin()));
  }
}

TEST_CASE("a batch in micro-batches gives what the whole batch gives, without allocating") {
  auto model = SmallModel::from_archive(small_archive()).value();
  constexpr index_t batch = 7;
  std::vector<float> input(static_cast<std::size_t>(batch * 81));
  for (std::size_t i = 0; i < input.size(); ++i) input[i] = static_cast<float>(i % 23) / 23.0F;
  strata::Session<SmallModel> whole(model, {.batch = batch, .micro_batch = batch});
  CHECK(whole.micro_batch() == batch);
  for (const int threads : {1, 2, 3})
    for (const index_t micro_batch : {1, 2, 3, 5, 100}) {
      strata::Session<SmallModel> session(model, {.threads = threads, .batch = batch, .micro_batch = micro_batch});
      CHECK(session.micro_batch() == std::min(micro_batch, batch));
      for (int level : {0, 1}) {
        const auto expected = whole.run(input, Level{level});
        const long before = allocations();
        const auto output = session.run(input, Level{level});
        CHECK(allocations() == before);
        REQUIRE(output.size() == expected.size());
        bool close = true;
        for (std::size_t i = 0; i < output.size(); ++i) close = close && std::abs(output[i] - expected[i]) < 1e-5F;
        CHECK(close);
      }
      // By stages the threads share each micro-batch, and only the first such run takes memory.
      const index_t parts = (batch + session.micro_batch() * threads - 1) / (session.micro_batch() * threads);
      CHECK(session.stages().size() == 2 * static_cast<std::size_t>(parts));
      const strata::Clock clock;
      std::vector<strata::TimePoint> starts(session.stages().size() + 1);
      session.forward_timed(Level{0}, clock, starts);
      const long before = allocations();
      for (int level : {1, 0}) session.forward_timed(Level{level}, clock, starts);
      CHECK(allocations() == before);
      session.set_profile(strata::profile(session, {.runs = 3, .warm_up = 1}));
      const auto by_deadline = session.run(input, strata::Deadline{std::chrono::seconds(60)});
      CHECK(by_deadline.path.size() == session.stages().size());
      const auto expected = whole.run(input, Level{1});
      bool close = true;
      for (std::size_t i = 0; i < expected.size(); ++i)
        close = close && std::abs(by_deadline.output[i] - expected[i]) < 1e-5F;
      CHECK(close);
    }
}

TEST_CASE("the size of micro-batches follows from the activations' size") {
  auto model = SmallModel::from_archive(small_archive()).value();
  CHECK(strata::Session<SmallModel>(model, {.batch = 4}).micro_batch() == 4);
  const index_t large = strata::cached_activations / (index_t{81} * 4);  // the pictures alone fill the caches
  strata::Session<SmallModel> session(model, {.threads = 2, .batch = large});
  CHECK(session.micro_batch() >= 1);
  CHECK(session.micro_batch() <= large / 2);
  CHECK_THROWS_AS(strata::Session<SmallModel>(model, {.micro_batch = -1}), strata::Error);
  // Runs by stages take no more than so many parts, however small the micro-batches are.
  strata::Session<SmallModel> many(model, {.batch = 1000, .micro_batch = 1});
  CHECK(many.stages().size() <= 2 * static_cast<std::size_t>(strata::max_micro_batches));
  CHECK(many.stages().size() > static_cast<std::size_t>(strata::max_micro_batches));
}

TEST_CASE("sessions at different levels run one model at once") {
  auto model = SmallModel::from_archive(small_archive()).value();
  const std::vector<float> input(81, 0.5F);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int level : {0, 1})
    threads.emplace_back([&, level] {
      strata::Session<SmallModel> session(model);
      const auto output = session.run(input, Level{level});
      const std::vector<float> expected(output.begin(), output.end());
      for (int i = 0; i < 200; ++i) {
        const auto again = session.run(input, Level{level});
        if (!std::equal(again.begin(), again.end(), expected.begin())) ++wrong;
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}

TEST_CASE("want of memory while paths are chosen leaves a session that runs") {
  const auto model = test::StagedModel::from_archive(test::staged_archive(128, 3, 2)).value();
  strata::Session<test::StagedModel> session(model);
  const std::vector<float> input(128, 0.5F);
  const auto output = session.run(input, Level{1});
  const std::vector<float> expected(output.begin(), output.end());
  {
    const FailingAllocations failing(std::size_t{128} * 128 * sizeof(float));
    CHECK_THROWS_AS(session.choose_paths({.least_density = 0}), std::bad_alloc);
  }
  const auto again = session.run(input, Level{1});
  CHECK(std::equal(again.begin(), again.end(), expected.begin()));
}

TEST_CASE("wrong inputs, levels and archives are errors that say what was expected") {
  auto archive = small_archive();
  auto model = SmallModel::from_archive(archive).value();
  strata::Session<SmallModel> session(model);
  CHECK_THROWS_AS(session.run(std::vector<float>(80), Level{0}), strata::Error);
  CHECK_THROWS_AS(session.run(std::vector<float>(81), Level{2}), strata::Error);
  CHECK_THROWS_AS(session.run(std::vector<float>(81), Level{-1}), strata::Error);
  archive.metadata()["config.width"] = "9";
  CHECK_FALSE(SmallModel::from_archive(archive).ok());
  archive.metadata()["config.width"] = "8";
  archive.metadata()["architecture"] = "other";
  CHECK(SmallModel::from_archive(archive).error().where() == "architecture");
  archive.metadata()["architecture"] = "small";
  archive.set_levels(17);
  CHECK(SmallModel::from_archive(archive).error().expected() == "at most 16 levels");
}
