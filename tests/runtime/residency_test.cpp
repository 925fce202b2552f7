// Memory of upper levels: given back and read again while other threads run, requests for what is absent, refusals.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <strata/io/model_file.hpp>
#include <strata/runtime/session.hpp>
#include <strata/train/training.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/staged_net.hpp"

namespace {

using strata::index_t;
using strata::Level;
using test::StagedModel;

/// A model file of its own for a test, removed at the end.
struct ModelFile {
  ModelFile(const char* name, index_t width, int levels)
      : path((std::filesystem::temp_directory_path() / (std::string("strata_residency_") + name)).string()) {
    REQUIRE(strata::io::write_model(test::staged_archive(width, 3, levels), path).ok());
  }
  ModelFile(const ModelFile&) = delete;
  ModelFile& operator=(const ModelFile&) = delete;
  ~ModelFile() { std::filesystem::remove(path); }

  std::string path;
};

std::vector<float> copied(std::span<const float> values) {
  return {values.begin(), values.end()};
}

/// Resident bytes of the mappings of `path` in this process.
[[maybe_unused]] index_t resident_bytes(const std::string& path) {
  std::ifstream smaps("/proc/self/smaps");
  std::string line;
  bool ours = false;
  index_t kilobytes = 0;
  while (std::getline(smaps, line)) {
    unsigned long long begin = 0;
    unsigned long long end = 0;
    if (std::sscanf(line.c_str(), "%llx-%llx ", &begin, &end) == 2) ours = line.ends_with(path);
    long long size = 0;
    if (ours && std::sscanf(line.c_str(), "Rss: %lld kB", &size) == 1) kilobytes += size;
  }
  return kilobytes * 1024;
}

constexpr index_t width = 768;

/// Convolutions of which the last may write where its residual is, at some levels: not all need the same memory.
template <class Family>
struct ResidualNet {
  struct Config {
    template <class V>
    void visit(V&&) {}
  };
  static constexpr std::string_view architecture = "residual";

  explicit ResidualNet(const Config&) {}
  [[nodiscard]] static Config config() { return {}; }
  [[nodiscard]] static strata::Shape input_shape() { return {1, 40, 40}; }

  auto operator()(typename Family::Context& context, const typename Family::Tensor& x) const {
    auto y = first(context, x);
    const auto narrow = down(context, y);
    return average(context, up(context, narrow, std::move(y)));
  }
  template <class V>
  void visit(V&& v) {
    v("first", first);
    v("down", down);
    v("up", up);
  }

  typename Family::Conv2d first{strata::Conv2dOptions{.in_channels = 1, .out_channels = 32, .norm = false}};
  typename Family::Conv2d down{strata::Conv2dOptions{.in_channels = 32, .out_channels = 4, .kernel = 1, .norm = false}};
  typename Family::Conv2d up{strata::Conv2dOptions{.in_channels = 4, .out_channels = 32, .kernel = 1, .norm = false}};
  typename Family::GlobalAvgPool2d average;
};

}  // namespace

TEST_CASE("an absent level runs as the highest present one, and says so") {
  const ModelFile file("absent", width, 3);
  auto model = strata::load<test::StagedNet>(file.path);
  strata::Session<StagedModel> session(model);
  session.set_profile(strata::profile(session, {.runs = 2}));
  const std::vector<float> input(width, 0.25F);
  std::vector<std::vector<float>> expected;
  for (int level = 0; level < 3; ++level) expected.push_back(copied(session.run(input, Level{level})));
  CHECK(expected[0] != expected[1]);
  CHECK(expected[1] != expected[2]);

  CHECK(model.present() == Level{2});
  CHECK(model.release_above(Level{2}) == 0);
  for (const int level : {1, 0}) {
    CHECK(model.release_above(Level{level}) > 0);
    CHECK(model.release_above(Level{level}) == 0);
    CHECK(model.release_above(Level{2}) == 0);
    CHECK(model.present() == Level{level});
    for (int wanted = 0; wanted < 3; ++wanted) {
      CHECK(copied(session.run(input, Level{wanted})) == expected[static_cast<std::size_t>(std::min(wanted, level))]);
      CHECK(session.level() == Level{std::min(wanted, level)});
    }
    const auto result = session.run(input, strata::Deadline::never());
    CHECK(result.absent);
    CHECK(result.highest == Level{level});
    CHECK(result.path.front() == Level{level});
    CHECK(copied(result.output) == expected[static_cast<std::size_t>(level)]);
    CHECK_THROWS_AS(strata::profile(session, {.runs = 2}), strata::Error);
    // A session made now knows what it needs and finds the upper levels once they are back.
    strata::Session<StagedModel> later(model);
    CHECK(later.stages() == session.stages());
  }
  model.restore(Level{1});
  model.wait_restored();
  CHECK(model.present() == Level{1});
  strata::Session<StagedModel> later(model);
  model.restore(Level{2});
  model.restore(Level{0});  // already there: the one under way goes on
  CHECK(model.present() >= Level{1});
  model.wait_restored();
  CHECK(model.present() == Level{2});
  CHECK(copied(session.run(input, Level{2})) == expected[2]);
  CHECK(copied(later.run(input, Level{2})) == expected[2]);
  CHECK_FALSE(session.run(input, strata::Deadline::never()).absent);
  // A copy is the same model.
  const StagedModel copy = model;
  CHECK(copy.release_above(Level{0}) > 0);
  CHECK(model.present() == Level{0});
}

TEST_CASE("levels that do not exist and memory that no file backs are refused") {
  const ModelFile file("refused", 64, 2);
  const auto model = strata::load<test::StagedNet>(file.path);
  for (const int level : {-1, 2}) {
    CHECK_THROWS_AS(model.release_above(Level{level}), strata::Error);
    CHECK_THROWS_AS(model.restore(Level{level}), strata::Error);
  }
  const auto in_memory = StagedModel::from_archive(test::staged_archive(16, 2, 2)).value();
  CHECK_THROWS_AS(in_memory.release_above(Level{0}), strata::Error);
  CHECK(in_memory.present() == Level{1});
  CHECK_NOTHROW(in_memory.restore(Level{1}));
}

TEST_CASE("restores that go less far do not end one under way, whether or not somebody waits") {
  const ModelFile file("restores", width, 3);
  const auto model = strata::load<test::StagedNet>(file.path);
  for (const int other : {0, 1, 2}) {
    (void)model.release_above(Level{0});
    model.restore(Level{2});
    model.restore(Level{other});
    CHECK(model.release_above(Level{2}) == 0);
    model.wait_restored();
    CHECK(model.present() == Level{2});
  }
  // A release ends it, while another thread waits for it.
  (void)model.release_above(Level{0});
  model.restore(Level{2});
  std::thread waiting([&] { model.wait_restored(); });
  (void)model.release_above(Level{0});
  waiting.join();
  CHECK(model.present() == Level{0});
  model.wait_restored();
}

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // those lock nothing
TEST_CASE("memory that cannot be given back stays what it was") {
  const ModelFile file("locked", 256, 3);
  const auto archive = strata::io::read_model(file.path).value();
  const auto model = StagedModel::from_archive(archive).value();
  const auto mapped = archive.mapped();
  if (mlock(mapped.data(), mapped.size()) != 0) {
    WARN("not tested: this system locks no memory");
    return;
  }
  CHECK_THROWS_AS(model.release_above(Level{0}), strata::Error);
  CHECK(model.present() == Level{2});
  munlock(mapped.data(), mapped.size());
  CHECK(model.release_above(Level{0}) > 0);
}
#endif

TEST_CASE("a session made while levels are absent has the memory that they need once they are back") {
  ResidualNet<strata::train::Training<float>> network({});
  strata::train::initialise(network, 1);
  const std::string path = (std::filesystem::temp_directory_path() / "strata_residency_residual").string();
  strata::save(network, 3, path);
  const auto model = strata::load<ResidualNet>(path);
  (void)model.release_above(Level{0});
  strata::Session<strata::Model<ResidualNet>> session(model);
  CHECK(model.present() == Level{0});
  model.restore(Level{2});
  model.wait_restored();
  const long before = allocations();
  for (const int level : {0, 1, 2}) (void)session.forward(Level{level});
  CHECK(allocations() == before);
  CHECK(session.level() == Level{2});
  std::filesystem::remove(path);
}

TEST_CASE("the fingerprint tells models apart and survives files and truncation") {
  const ModelFile file("fingerprint", 64, 3);
  const auto archive = test::staged_archive(64, 3, 3);
  const auto fingerprint = StagedModel::from_archive(archive).value().fingerprint();
  CHECK(strata::load<test::StagedNet>(file.path).fingerprint() == fingerprint);
  const std::string cut = file.path + ".cut";
  REQUIRE(strata::io::write_truncated(file.path, Level{0}, cut).ok());
  CHECK(strata::load<test::StagedNet>(cut).fingerprint() == fingerprint);
  std::filesystem::remove(cut);
  const auto other = test::random_norm(64, 77);
  CHECK(StagedModel::from_archive(test::staged_archive(64, 3, 3, &other)).value().fingerprint() != fingerprint);
  CHECK(StagedModel::from_archive(test::staged_archive(64, 2, 3)).value().fingerprint() != fingerprint);
}

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_CASE("resident memory falls by what was given back and returns on restore") {
  const ModelFile file("resident", width, 3);
  const auto model = strata::load<test::StagedNet>(file.path);
  strata::Session<StagedModel> session(model);
  const std::vector<float> input(width, 0.25F);
  (void)session.run(input, Level{2});
  const index_t before = resident_bytes(file.path);
  REQUIRE(before > 0);
  const index_t released = model.release_above(Level{0});
  (void)session.run(input, Level{2});
  const index_t after = resident_bytes(file.path);
  INFO(before << " bytes before, " << after << " after, " << released << " released");
  // Two thirds of the weights: 6 bytes for each of 768 x 768 / 2 weights of 3 layers.
  CHECK(released > 3 * width * width / 2 * 6 * 6 / 10);
  CHECK(static_cast<double>(before - after) >= 0.9 * static_cast<double>(released));
  model.restore(Level{2});
  model.wait_restored();
  CHECK(static_cast<double>(resident_bytes(file.path) - after) >= 0.9 * static_cast<double>(released));
}

TEST_CASE("a restore that is interrupted leaves nothing resident of what it read") {
  const ModelFile file("interrupted", 2048, 3);
  const auto model = strata::load<test::StagedNet>(file.path);
  (void)model.release_above(Level{0});
  const index_t before = resident_bytes(file.path);
  for (int wait = 0; wait < 8; ++wait) {
    model.restore(Level{2});
    std::this_thread::sleep_for(std::chrono::microseconds(300 * wait));
    (void)model.release_above(Level{0});
    INFO(wait << ": " << before << " bytes before, " << resident_bytes(file.path) << " after");
    CHECK(resident_bytes(file.path) <= before + 65536);
  }
}
#endif

TEST_CASE("levels come and go while two threads run") {
  const ModelFile file("threads", 256, 3);
  const auto model = strata::load<test::StagedNet>(file.path);
  const std::vector<float> input(256, 0.25F);
  std::vector<std::vector<float>> expected;
  {
    strata::Session<StagedModel> session(model);
    for (int level = 0; level < 3; ++level) expected.push_back(copied(session.run(input, Level{level})));
  }
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::atomic<long> runs{0};
  std::vector<std::thread> threads;
  for (const int wanted : {0, 2})
    threads.emplace_back([&, wanted] {
      strata::Session<StagedModel> session(model);
      while (!stop.load()) {
        const auto output = session.run(input, Level{wanted});
        const int ran = session.level().index;
        if (ran > wanted || copied(output) != expected[static_cast<std::size_t>(ran)]) ++wrong;
        ++runs;
      }
    });
  for (int round = 0; round < 60; ++round) {
    const long before = runs.load();
    (void)model.release_above(Level{round % 2});
    if (round % 3 == 0) model.restore(Level{1});
    while (runs.load() < before + 4) std::this_thread::yield();
    model.restore(Level{2});
    if (round % 4 != 0) model.wait_restored();
    while (runs.load() < before + 8) std::this_thread::yield();
  }
  stop.store(true);
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}
