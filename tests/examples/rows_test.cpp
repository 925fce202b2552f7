// Rows of experiments: files that are read back, rows that replace older ones, statistics over seeds, the tables that
// are made of them, and the commands that stand in them.
#include "support/rows.hpp"

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <unistd.h>
#include <vector>

#include "support/catch.hpp"
#include "support/command.hpp"
#include "support/rows_report.hpp"

namespace {

nlohmann::json row(const std::string& arm, int seed, const nlohmann::json& level, double accuracy, double share) {
  return {{"network", "net"},
          {"data", "set"},
          {"arm", arm},
          {"seed", seed},
          {"level", level},
          {"accuracy", accuracy},
          {"weights", share},
          {"flops", share},
          {"epochs", 10},
          {"seconds", 2.5},
          {"command", "net --seed " + std::to_string(seed)}};
}

/// Dense 0.8 and 0.9; level 1 as good on average, level 0 worse by a tenth.
nlohmann::json two_seeds() {
  nlohmann::json rows = nlohmann::json::array();
  for (const int seed : {1, 2}) {
    const double dense = seed == 1 ? 0.8 : 0.9;
    rows.push_back(row("dense", seed, "dense", dense, 1));
    rows.push_back(row("joint", seed, "dense", dense - 0.1, 1));
    rows.push_back(row("joint", seed, 1, seed == 1 ? 0.84 : 0.855, 0.13));
    rows.push_back(row("joint", seed, 0, 0.9 * dense, 0.05));
  }
  return rows;
}

}  // namespace

TEST_CASE("statistics over seeds") {
  const auto summary = examples::summarise({1, 2, 3, 4});
  CHECK(std::abs(summary.mean - 2.5) < 1e-12);
  CHECK(std::abs(summary.deviation - 1.2909944) < 1e-6);
  CHECK(std::abs(examples::student_quantile(1) - 12.706) < 2e-3);
  CHECK(std::abs(examples::student_quantile(10) - 2.228) < 2e-3);
  CHECK(std::abs(examples::student_quantile(11) - 2.201) < 3e-3);
  CHECK(std::abs(examples::student_quantile(19) - 2.093) < 2e-3);
  CHECK(examples::differences({{1, 3.0}, {2, 5.0}}, {{2, 1.0}, {3, 1.0}}) == std::vector<double>{4.0});
  CHECK(std::isinf(examples::half_interval(examples::summarise({1}))));
}

TEST_CASE("a row takes the place of an older one of the same run") {
  nlohmann::json rows = two_seeds();
  examples::add_row(rows, row("joint", 2, 0, 0.5, 0.05));
  CHECK(rows.size() == 8);
  CHECK(examples::by_seed(rows, "joint", "0", "accuracy").at(2) == 0.5);
  examples::add_row(rows, row("joint", 3, 0, 0.5, 0.05));
  CHECK(rows.size() == 9);
  CHECK(examples::by_seed(rows, "joint", "0", "accuracy").size() == 3);
  CHECK(examples::by_seed(rows, "joint", "0", "none such").empty());
  rows[3]["accuracy"] = nullptr;
  CHECK(examples::by_seed(rows, "joint", "0", "accuracy").size() == 2);
}

TEST_CASE("files of rows are read back, others refused") {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("strata_rows_test" + std::to_string(getpid()))).string();
  CHECK(examples::read_rows(path).value().empty());
  REQUIRE(examples::write_rows(two_seeds(), path).ok());
  CHECK(examples::read_rows(path).value() == two_seeds());
  for (const char* text : {"", "{}", "[1]", "[{}]", "[{\"arm\": \"joint\"}]", "[", "null"}) {
    std::ofstream(path) << text;
    CHECK(examples::read_rows(path).error().where() == path);
  }
  nlohmann::json twice = two_seeds();
  twice.push_back(twice[2]);
  twice.back()["command"] = "net --other";
  REQUIRE(examples::write_rows(twice, path).ok());
  CHECK(examples::read_rows(path).error().expected() == "one row a network, data, arm, seed and level");
  std::filesystem::remove(path);
}

TEST_CASE("the table of a network has means and differences to the dense arm of the same seeds") {
  const std::string text = examples::rows_table(two_seeds(), "accuracy").text();
  INFO(text);
  CHECK(text.find("dense  dense      2     85.00  7.07") != std::string::npos);
  CHECK(text.find("joint      1      2     84.75  1.06     -0.25") != std::string::npos);
  CHECK(text.find("13.00 %") != std::string::npos);
  const auto plot = examples::rows_plot(two_seeds(), "accuracy", "title", "accuracy, %");
  REQUIRE(plot.series.size() == 2);
  REQUIRE(plot.series[1].points.size() == 3);
  CHECK(std::abs(plot.series[1].points[0].x - 5) < 1e-9);
  CHECK(std::abs(plot.series[1].points[0].y - 76.5) < 1e-9);
  nlohmann::json one_cosine = two_seeds();
  for (auto& each : one_cosine)
    if (each.at("arm") == "joint") each["command"] = "net --one-cosine";
  CHECK(examples::rows_plot(one_cosine, "accuracy", "title", "accuracy, %").series[1].points.size() == 2);
}

TEST_CASE("a network's line over all networks is of the joint arm against the dense one") {
  nlohmann::json rows = two_seeds();
  const auto headline = examples::headline_of(rows, "file").value();
  CHECK(headline.full_epochs);
  CHECK(std::abs(headline.dense - 0.85) < 1e-12);
  CHECK(std::abs(headline.levels[1].relative_loss - 0) < 1e-12);
  CHECK(std::abs(headline.levels[0].relative_loss - 0.1) < 1e-12);
  CHECK(headline.levels[0].half < 1e-9);
  CHECK(headline.levels[0].weights == 0.05);
  CHECK(headline.levels[0].command == "net --seed 1");

  // A dense model of another seed than the levels says nothing about them, unless there is no other.
  nlohmann::json three = rows;
  for (const auto& each : rows)
    if (each.at("arm") == "dense") {
      three.push_back(each);
      three.back()["seed"] = 3;
      three.back()["accuracy"] = 0.1;
      break;
    }
  REQUIRE(three.size() == rows.size() + 1);
  CHECK(std::abs(examples::headline_of(three, "file").value().dense - 0.85) < 1e-12);
  for (auto& each : three)
    if (each.at("arm") == "joint") each["seed"] = 4;
  CHECK(std::abs(examples::headline_of(three, "file").value().dense - 0.6) < 1e-12);

  // Nor do levels of a seed without a dense model, where there are others.
  nlohmann::json more = rows;
  for (const int level : {0, 1}) more.push_back(row("joint", 3, level, 0.1, 0.2));
  const auto both = examples::headline_of(more, "file").value();
  for (const int level : {0, 1}) {
    CHECK(both.levels[level].seeds == 2);
    CHECK(both.levels[level].accuracy == headline.levels[level].accuracy);
    CHECK(both.levels[level].weights == headline.levels[level].weights);
  }

  // Without the dense arm those dense models that the levels come from, which had fewer epochs.
  nlohmann::json joint = nlohmann::json::array();
  for (const auto& each : rows)
    if (each.at("arm") == "joint") joint.push_back(each);
  const auto fewer = examples::headline_of(joint, "file").value();
  CHECK_FALSE(fewer.full_epochs);
  CHECK(std::abs(fewer.dense - 0.75) < 1e-12);
  nlohmann::json unequal = rows;
  for (auto& each : unequal)
    if (each.at("arm") == "dense") each["epochs"] = 20;
  CHECK(examples::headline_of(unequal, "file").error().found() == "20.0");

  CHECK(examples::headline_of(nlohmann::json::array(), "file").error().where() == "file");
  nlohmann::json mixed = rows;
  mixed.back()["data"] = "another";
  CHECK_FALSE(examples::headline_of(mixed, "file").ok());
  nlohmann::json levelless = nlohmann::json::array({rows[0], rows[1], rows[2]});
  CHECK_FALSE(examples::headline_of(levelless, "file").ok());
  CHECK_FALSE(examples::headline_of(nlohmann::json::array({rows[2], rows[3]}), "file").ok());
}

TEST_CASE("a row's command leaves out what does not change the result") {
  const auto command = [](std::vector<std::string> arguments) {
    std::vector<char*> pointers;
    arguments.insert(arguments.begin(), "/build/net");
    for (auto& argument : arguments) pointers.push_back(argument.data());
    return examples::command_of("net", static_cast<int>(pointers.size()), pointers.data());
  };
  CHECK(command({}) == "net");
  CHECK(command({"train", "--seed", "2", "--data", "/home/me/data", "--threads=2", "--epochs", "3"}) ==
        "net train --seed 2 --data DIR --epochs 3");
  CHECK(command({"--resume", "--out", "o", "--report", "r.json", "--dense-from=x", "--stop-after", "9",
                 "--arm=joint"}) == "net --dense-from FILE --arm=joint");
  CHECK(command({"--data=/x", "--out"}) == "net --data DIR");
  CHECK(command({"--dense-from", "x", "--seed", "2"}) == "net --dense-from FILE --seed 2");
}

TEST_CASE("rows judged by different parts of the data do not mix, and a file that cannot be looked at is an error") {
  const auto path =
      (std::filesystem::temp_directory_path() / ("strata_rows_" + std::to_string(getpid()) + ".json")).string();
  CHECK(examples::read_rows(path).value().empty());
  CHECK_FALSE(examples::read_rows(std::string(300, 'x')).ok());  // longer than names may be
  nlohmann::json rows = two_seeds();
  for (auto& each : rows) each["split"] = "validation";
  REQUIRE(examples::write_rows(rows, path).ok());
  CHECK(examples::part_of(examples::read_rows(path).value().front()) == "validation");
  rows.back()["split"] = "test";
  REQUIRE(examples::write_rows(rows, path).ok());
  CHECK(examples::read_rows(path).error().found() == "one by test");
  std::filesystem::remove(path);
}

TEST_CASE("rows of runs with other options do not take the place of others, nor stand beside them") {
  const auto of = [](const std::string& command, int seed, double accuracy) {
    auto result = nlohmann::json::array({row("joint", seed, 1, accuracy, 0.13), row("joint", seed, 0, accuracy, 0.05)});
    for (auto& each : result) each["command"] = command;
    return result;
  };
  CHECK(examples::settings_of(of("net train --width 2 --seed=1 --levels 0.1:0.1,0.2:0.2 --test --a", 1, 0)[0]) ==
        "net train --a --levels 0.1:0.1,0.2:0.2 --width 2");
  CHECK(examples::settings_of(nlohmann::json::object()).empty());

  nlohmann::json rows = of("net train --data DIR --seed 1 --epochs 3 --width 512 --test", 1, 0.4);
  const nlohmann::json before = rows;
  REQUIRE(examples::merge_rows(rows, of("net train --width 512 --data DIR --seed 2 --epochs 3", 2, 0.5), "two").ok());
  CHECK(rows.size() == 4);
  REQUIRE(examples::merge_rows(rows, of("net train --data DIR --seed 1 --epochs 3 --width 512 --switches", 1, 0.6), "")
              .ok());
  CHECK(rows.size() == 4);
  CHECK(examples::by_seed(rows, "joint", "1", "accuracy") == std::map<std::int64_t, double>{{1, 0.6}, {2, 0.5}});
  rows = before;
  for (const int seed : {1, 2}) {
    const auto narrow = of("net train --data DIR --seed " + std::to_string(seed) + " --epochs 3", seed, 0.3);
    const auto status = examples::merge_rows(rows, narrow, "narrow.json");
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().where() == "narrow.json");
    CHECK(status.error().found() == "one of \"net train\"");
  }
  const auto slow = of("net train --data DIR --seed 2 --epochs 3 --width 512 --rate 0.1", 2, 0.3);
  CHECK(examples::merge_rows(rows, slow, "file").error().found() ==
        "one of \"net train --epochs 3 --rate 0.1 --width 512\"");
  // The same told in other ways.
  nlohmann::json merged = rows;
  CHECK(examples::merge_rows(merged, of("net train --width=512 --epochs=3 --arm joint --seed 2", 2, 0.3), "").ok());
  auto longer = of("net train --data DIR --seed 2 --epochs 3 --width 512", 2, 0.3);
  for (auto& each : longer) each["epochs"] = 4.0;
  CHECK(examples::merge_rows(rows, longer, "file").error().found() == "one of 4.0");
  auto unjudged = of("net train --data DIR --seed 1 --epochs 3 --width 512", 1, 0.3);
  for (auto& each : unjudged) each["accuracy"] = nullptr;
  CHECK(examples::merge_rows(rows, unjudged, "file").error().found() == "one without");
  auto validation = of("net train --data DIR --seed 1 --epochs 3 --width 512", 1, 0.3);
  for (auto& each : validation) each["split"] = "validation";
  CHECK(examples::merge_rows(rows, validation, "file").error().found() == "one by validation");
  CHECK(rows == before);
}

TEST_CASE("an arm that was run with several settings is shown as several arms") {
  const auto of = [](const std::string& arm, const std::string& options, double accuracy) {
    auto result = row(arm, 1, 1, accuracy, 0.13);
    result["command"] = "net --seed 1 --data DIR --epochs 3" + options + " --arm " + arm;
    return result;
  };
  const auto rows =
      nlohmann::json::array({of("dense", "", 0.9), of("joint", " --rate 0.1", 0.8),
                             of("joint", " --in-turn --rate 0.1", 0.7), of("joint", " --rate 0.2 --in-turn", 0.6)});
  const auto apart = examples::with_settings_as_arms(rows);
  REQUIRE(apart.size() == 4);
  CHECK(apart[0] == rows[0]);
  CHECK(apart[1].at("arm") == "joint --rate 0.1");
  CHECK(apart[2].at("arm") == "joint --in-turn --rate 0.1");
  CHECK(apart[3].at("arm") == "joint --in-turn --rate 0.2");
  nlohmann::json scattered = apart;  // rows of one arm need not lie together
  scattered.push_back(apart[1]);
  scattered.back()["level"] = 0;
  CHECK(examples::rows_plot(scattered, "accuracy", "", "").series.size() == 4);

  const auto path = std::filesystem::temp_directory_path() / ("strata-settings-" + std::to_string(getpid()) + ".json");
  REQUIRE(examples::write_rows(rows, path).ok());
  CHECK_FALSE(examples::read_rows(path).ok());
  CHECK(examples::read_rows(path, examples::Settings::several).value() == apart);
  nlohmann::json twice = rows;
  twice.push_back(of("joint", " --rate 0.1 --switches", 0.5));  // judged in another way, not another run
  REQUIRE(examples::write_rows(twice, path).ok());
  CHECK_FALSE(examples::read_rows(path, examples::Settings::several).ok());
  std::filesystem::remove(path);
  for (const char* name : {"pointnet2-fashion-validation.json", "resnet20-fashion-mnist-validation.json"})
    CHECK(
        examples::read_rows(std::string(STRATA_SOURCE_DIR "/docs/results/") + name, examples::Settings::several).ok());
}

TEST_CASE("GNMT's stored rows say what they were judged by, and models of two widths do not mix") {
  const auto stored = [](const char* name) {
    return examples::read_rows(std::string(STRATA_SOURCE_DIR "/docs/results/") + name).value();
  };
  nlohmann::json rows = stored("gnmt.json");
  nlohmann::json narrow = stored("gnmt-256.json");
  CHECK(examples::part_of(rows.front()) == "test");
  CHECK(examples::part_of(narrow.front()) == "validation");
  CHECK(examples::merge_rows(rows, narrow, "gnmt-256.json").error().found() == "one by validation");
  for (auto& each : narrow) each["split"] = "test";
  CHECK(examples::merge_rows(rows, narrow, "gnmt-256.json").error().found() == "one of \"gnmt train\"");
  CHECK(rows == stored("gnmt.json"));
  CHECK(examples::headline_of(rows, "gnmt.json").ok());
}

TEST_CASE("models of single levels come from runs of their own and are merged, with the dense model of each") {
  const auto single = [](int level, const std::string& option) {
    auto result = nlohmann::json::array({row("single", 1, level, 0.4, 0.1), row("single", 1, level, 0.5, 1)});
    result[1]["level"] = "dense";
    for (auto& each : result) each["command"] = "net train --data DIR --arm single" + option;
    return result;
  };
  nlohmann::json rows = single(1, "");
  CHECK(examples::merge_rows(rows, single(0, " --single-level 0"), "zero").ok());
  CHECK(examples::merge_rows(rows, single(0, " --level 0"), "again").ok());
  CHECK(rows.size() == 3);
}

TEST_CASE("data is called after its directory") {
  CHECK(examples::data_name("/some/where/cora") == "cora");
  CHECK(examples::data_name("where/cora/") == "cora");
}
