// Profiles in and out of files: round trip, and refusal of everything that the writer would not write.
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <strata/io/profile_file.hpp>

#include "io/file_bytes.hpp"
#include "support/catch.hpp"
#include "support/staged_net.hpp"

namespace {

strata::Profile sample_profile() {
  strata::StageSamples samples(2);
  for (int run = 0; run < 37; ++run) {
    samples[0].push_back({100.125 + run * 1.7, 3.0, 1e-3 * run});
    samples[1].push_back({250.0 / 3 + run, 7e6 / (run + 1), 0});
  }
  strata::ProfileKey key;
  key.architecture = "some.Net \"quoted\" \xC3\xA4";
  key.model = 0xFEDCBA9876543210U;
  key.level_nnz = {5, 1'000'000'000'000};
  key.level_bytes = {31, 6'000'000'000'000};
  key.threads = 3;
  key.batch = 17;
  key.micro_batch = 5;
  key.instruction_set = "avx512bw";
  return strata::profile_of(samples, std::vector<std::string>{"input", "layer2", "head"}, key);
}

std::string replaced(std::string text, const std::string& what, const std::string& by) {
  const auto at = text.find(what);
  REQUIRE(at != std::string::npos);
  return text.replace(at, what.size(), by);
}

}  // namespace

TEST_CASE("quantiles are linear between the kept ones") {
  std::vector<double> samples;
  for (int i = 100; i >= 0; --i) samples.push_back(i);
  const auto times = strata::TimeDistribution::of(samples);
  CHECK(times.median() == 50);
  CHECK(std::abs(times.mean - 50) < 1e-9);
  CHECK(std::abs(times.deviation - std::sqrt(850.0)) < 1e-9);
  CHECK(std::abs(times.quantile(0.97) - 97) < 1e-9);
  CHECK(times.quantile(-1) == 0);
  CHECK(times.quantile(std::nan("")) == 0);
  CHECK(times.quantile(2) == 100);
  std::vector<double> none;
  CHECK(strata::TimeDistribution::of(none) == strata::TimeDistribution{});
  std::vector<double> one = {7};
  CHECK(strata::TimeDistribution::of(one).quantile(0.3) == 7);
}

TEST_CASE("a profile comes back from its file bit by bit") {
  const auto profile = sample_profile();
  CHECK(strata::io::parse_profile(strata::io::profile_text(profile)).value() == profile);
  const std::string path = (std::filesystem::temp_directory_path() / "strata_profile_test.json").string();
  CHECK(strata::io::write_profile(profile, path).ok());
  CHECK(strata::io::read_profile(path).value() == profile);
  std::filesystem::remove(path);
  CHECK(strata::io::read_profile(path).error().where() == path);
  CHECK_FALSE(strata::io::write_profile(profile, path + "/no/such/directory").ok());
  CHECK(strata::io::profile_path("a/model.safetensors") == "a/model.safetensors.profile.json");
}

TEST_CASE("whatever the writer does not write is refused") {
  const std::string good = strata::io::profile_text(sample_profile());
  for (std::size_t length = 0; length + 2 < good.size(); length += 1 + length / 7)
    CHECK_FALSE(strata::io::parse_profile(good.substr(0, length)).ok());
  CHECK_FALSE(strata::io::parse_profile(good + "x").ok());
  CHECK_FALSE(strata::io::parse_profile("[]").ok());
  CHECK_FALSE(strata::io::parse_profile(std::string(100'000, '[')).ok());
  CHECK_FALSE(strata::io::parse_profile(std::string(strata::io::max_profile_bytes + 1, ' ')).ok());
  const auto refused = [&](const std::string& what, const std::string& by) {
    INFO(what << " -> " << by);
    CHECK_FALSE(strata::io::parse_profile(replaced(good, what, by)).ok());
  };
  refused("\"format\": \"strata.profile\"", "\"format\": \"other\"");
  refused("\"version\": 3", "\"version\": 2");
  refused("\"version\": 3", "\"version\": \"3\"");
  refused("\"version\": 3", "\"version\": 3, \"extra\": 1");
  refused("\"version\": 3", "\"version\": 3, \"version\": 3");
  refused("\"threads\": 3,", "");
  for (const char* bad : {"0", "-1", "1.5", "\"3\"", "null", "1e300", "99999999999999999999999", "{}"})
    refused("\"threads\": 3", std::string("\"threads\": ") + bad);
  for (const char* bad : {"0", "-17", "17.5"}) refused("\"batch\": 17", std::string("\"batch\": ") + bad);
  for (const char* bad : {"0", "-5", "5.5"}) refused("\"micro_batch\": 5", std::string("\"micro_batch\": ") + bad);
  for (const char* bad : {"0", "null"}) refused("\"runs\": 37", std::string("\"runs\": ") + bad);
  for (const char* bad : {"\"FEDCBA9876543210\"", "\"fedcba987654321\"", "\"fedcba987654321g\"", "7"})
    refused("\"fedcba9876543210\"", bad);
  refused("\"instruction_set\": \"avx512bw\"", "\"instruction_set\": 5");
  refused("\"head\"", "5");
  refused("\"mean\": ", "\"mean\": -");
  refused("\"mean\": ", "\"mean\": 1e999, \"x\": ");
  refused("\"deviation\": ", "\"deviation\": \"\", \"y\": ");
  refused("\"quantiles\": [", "\"quantiles\": [1e15, ");
  refused("\"quantiles\": [", "\"quantiles\": [[");
  refused("\"rest\"", "\"remainder\"");
  refused("0.95", "0.96");
  // A stage with too many or too few levels.
  auto profile = sample_profile();
  profile.stages[1].levels.pop_back();
  CHECK_FALSE(strata::io::parse_profile(strata::io::profile_text(profile)).ok());
  profile = sample_profile();
  profile.stages.clear();
  CHECK_FALSE(strata::io::parse_profile(strata::io::profile_text(profile)).ok());
  profile = sample_profile();
  profile.key.level_nnz.clear();
  CHECK_FALSE(strata::io::parse_profile(strata::io::profile_text(profile)).ok());
}

TEST_CASE("a profile of many stages comes back from its file") {
  const test::Directory directory;
  const std::string path = directory.file("profile.json");
  for (const auto& [stages, levels] : {std::pair(12'800, 2), std::pair(3200, 8)}) {
    INFO(stages << " stages of " << levels << " levels");
    auto profile = test::flat_profile(stages, std::vector<double>(static_cast<std::size_t>(levels), 1.1e5 / 3));
    profile.key.batch = 64;
    REQUIRE(strata::io::write_profile(profile, path).ok());
    CHECK((strata::io::read_profile(path).value() == profile));
  }
}

TEST_CASE("a profile that would not come back is refused before anything is written") {
  const test::Directory directory;
  const std::string path = directory.file("profile.json");
  const auto refused = [&](auto&& edit) {
    strata::Profile profile = sample_profile();
    edit(profile);
    test::write(path, "old");
    const auto status = strata::io::write_profile(profile, path);
    if (status) return std::string("accepted");
    CHECK(test::contents(path) == "old");
    CHECK(status.error().where().starts_with(path + ": profile"));
    return status.error().expected();
  };
  CHECK(refused([](auto&) {}) == "accepted");
  for (const double bad : {std::numeric_limits<double>::infinity(), std::nan(""), -1.0}) {
    const std::string times = "finite times of 0 or more and ascending quantiles";
    CHECK(refused([&](auto& p) { p.stages[0].levels[1].stage.mean = bad; }) == times);
    CHECK(refused([&](auto& p) { p.stages[2].levels[0].rest.deviation = bad; }) == times);
    CHECK(refused([&](auto& p) { p.stages[1].levels[0].rest.quantiles[5] = bad; }) == times);
  }
  CHECK(refused([](auto& p) { p.stages[1].name = "caf\xe9"; }) == "names in UTF-8");
  CHECK(refused([](auto& p) { p.key.architecture = "caf\xe9"; }) == "names in UTF-8");
  CHECK(refused([](auto& p) { p.key.instruction_set = "\xff"; }) == "names in UTF-8");
  CHECK(refused([](auto& p) { p.stages[1].name = std::string(1001, 'x'); }) == "text of at most 1000 bytes");
  CHECK(refused([](auto& p) { p.stages[1].name = std::string(1000, 'x'); }) == "accepted");
  CHECK(refused([](auto& p) { p.stages[1].levels.pop_back(); }) == "2 levels");
  CHECK(refused([](auto& p) { p.stages.clear(); }) == "a list of 1 to 1000000");
  CHECK(refused([](auto& p) { p.runs = 0; }) == "at least 1");
  CHECK(refused([](auto& p) { p.key.threads = 0; }) == "a whole number from 1 to 1048576");
  CHECK(refused([](auto& p) { p.key.batch = -1; }).starts_with("a whole number from 1"));
  CHECK(refused([](auto& p) { p.key.level_nnz[0] = -1; }).starts_with("a whole number from 0"));
}

TEST_CASE("the profile beside a model is measured once and again for another session") {
  const auto model = test::StagedModel::from_archive(test::staged_archive(16, 3, 2)).value();
  const std::string path = (std::filesystem::temp_directory_path() / "strata_profile_beside.safetensors").string();
  std::filesystem::remove(strata::io::profile_path(path));
  strata::Session<test::StagedModel> session(model);
  const auto first = strata::profile_beside(path, session, {.runs = 3});
  CHECK(first.runs == 3);
  CHECK(strata::profile_beside(path, session, {.runs = 4}) == first);
  strata::Session<test::StagedModel> other(model, {.batch = 2});
  CHECK(strata::profile_beside(path, other, {.runs = 5}).runs == 5);
  CHECK(strata::profile_beside(path, session, {.runs = 6}).runs == 6);
  std::filesystem::remove(strata::io::profile_path(path));
  CHECK_THROWS_AS(strata::profile(session, {.runs = 0}), strata::Error);
}
