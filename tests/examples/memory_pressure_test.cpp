// What the memory example reads from the system, and when it gives levels back.
#include "../../examples/support/memory_pressure.hpp"

#include <filesystem>
#include <fstream>

#include "../support/catch.hpp"

namespace {

using namespace examples;

}  // namespace

TEST_CASE("pressure files are read, anything else is nothing") {
  CHECK(pressure_of("some avg10=12.34 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00\n") == 12.34);
  CHECK(pressure_of("some avg10=0.00 avg60=0.00") == 0.0);
  for (const char* bad : {"", "some", "some avg10=", "some avg10=5", "full avg10=1.0 ", "some avg10=-1 ",
                          "some avg10=101 ", "some avg10=nan ", "some avg10=1x "})
    CHECK_FALSE(pressure_of(bad).has_value());
}

TEST_CASE("limits of control groups are read") {
  CHECK(cgroup_bytes("123456\n") == 123456U);
  CHECK(cgroup_bytes("7") == 7U);
  for (const char* bad : {"", "max\n", "-1\n", "12 34\n", "99999999999999999999999\n"})
    CHECK_FALSE(cgroup_bytes(bad).has_value());
  const auto directory = std::filesystem::temp_directory_path() / "strata_cgroup_test";
  std::filesystem::create_directories(directory);
  const auto write = [&](const char* name, const char* text) { std::ofstream(directory / name) << text; };
  write("memory.current", "750\n");
  write("memory.max", "max\n");
  CHECK_FALSE(cgroup_use(directory.string()).has_value());
  write("memory.high", "1000\n");
  CHECK(cgroup_use(directory.string()) == 0.75);
  write("memory.max", "800\n");
  CHECK(cgroup_use(directory.string()) == 0.9375);
  std::filesystem::remove_all(directory);
  CHECK_FALSE(cgroup_use(directory.string()).has_value());
}

TEST_CASE("levels go one by one when memory is short and come back after a while of plenty") {
  LevelKeeper keeper(3, {.patience = 3});
  CHECK(keeper.level() == 2);
  CHECK(keeper.look(0.0, std::nullopt) == 2);
  CHECK(keeper.look(50.0, std::nullopt) == 1);
  CHECK(keeper.look(0.0, 0.99) == 0);
  CHECK(keeper.look(50.0, 0.99) == 0);
  CHECK(keeper.look(0.0, 0.5) == 0);
  CHECK(keeper.look(5.0, 0.5) == 0);  // neither short nor plenty: waiting starts again
  CHECK(keeper.look(0.0, 0.5) == 0);
  CHECK(keeper.look(0.0, 0.5) == 0);
  CHECK(keeper.look(0.0, 0.5) == 1);
  for (int i = 0; i < 3; ++i) keeper.look(std::nullopt, std::nullopt);
  CHECK(keeper.level() == 2);
}
