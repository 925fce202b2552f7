// The choice among compiled variants, with machines that are made up: the best one that the machine has, a forced one,
// and every refusal.
#include <cstdlib>
#include <string>
#include <vector>

#include <strata/runtime/dispatch.hpp>

#include "support/catch.hpp"

namespace {

using strata::ArchitectureSet;
using strata::Variant;

int twice(int x) {
  return 2 * x;
}
int thrice(int x) {
  return 3 * x;
}
strata::VariantFunction enter_twice() noexcept {
  return {reinterpret_cast<void (*)()>(&twice), typeid(decltype(twice)).name()};
}
strata::VariantFunction enter_thrice() noexcept {
  return {reinterpret_cast<void (*)()>(&thrice), typeid(decltype(thrice)).name()};
}

const std::vector<Variant> all = {{"avx2", &enter_thrice}, {"sse2", &enter_twice}, {"avx512", &enter_thrice}};

std::string chosen(const std::vector<Variant>& variants, const ArchitectureSet& machine, std::string_view forced = {}) {
  auto result = strata::choose_variant(variants, machine, forced);
  return result ? std::string(result.value().architecture) : std::string("error: ") + result.error().what();
}

/// Where a dispatcher says that something is wrong; empty if it does not.
template <class Function>
std::string place_of_error(const std::vector<Variant>& variants) {
  try {
    (void)strata::Dispatcher<Function>(variants);
  } catch (const strata::Error& error) {
    return error.where();
  }
  return "";
}

}  // namespace

TEST_CASE("the best variant that the machine has is chosen, in whatever order they stand") {
  CHECK(chosen(all, {"sse2", "avx2", "avx512"}) == "avx512");
  CHECK(chosen(all, {"sse2", "avx2"}) == "avx2");
  CHECK(chosen(all, {"sse2"}) == "sse2");
  CHECK(chosen({{"sse2", &enter_twice}}, {"sse2", "avx2", "avx512"}) == "sse2");
  CHECK(chosen({{"neon64", &enter_twice}}, {"neon64"}) == "neon64");
}

TEST_CASE("a forced variant is taken although there is a better one") {
  CHECK(chosen(all, {"sse2", "avx2", "avx512"}, "sse2") == "sse2");
  CHECK(chosen(all, {"sse2", "avx2"}, "avx2") == "avx2");
}

TEST_CASE("what cannot run is refused with what there is") {
  CHECK(chosen({{"avx512", &enter_thrice}, {"avx2", &enter_thrice}}, {"sse2"}) ==
        "error: dispatch: expected a machine with one of the instruction sets that were compiled (avx512, avx2), found "
        "one with sse2");
  CHECK(chosen({{"avx2", &enter_thrice}}, {}) ==
        "error: dispatch: expected a machine with one of the instruction sets that were compiled (avx2), found one "
        "with none");
  CHECK(chosen({}, {"sse2"}) ==
        "error: dispatch: expected a machine with one of the instruction sets that were compiled (), found one with "
        "sse2");
  CHECK(chosen(all, {"sse2", "avx2"}, "avx512") ==
        "error: instruction set: expected an instruction set of this machine (sse2, avx2), found \"avx512\"");
  CHECK(chosen({{"sse2", &enter_twice}}, {"sse2", "avx2"}, "avx2") ==
        "error: instruction set: expected an instruction set that was compiled (sse2), found \"avx2\"");
  CHECK(chosen(all, {"sse2"}, "SSE2") ==
        "error: instruction set: expected an instruction set that was compiled (avx2, sse2, avx512), found \"SSE2\"");
  CHECK_THROWS_AS(ArchitectureSet({"avx9"}), strata::Error);
}

TEST_CASE("sets of instruction sets") {
  CHECK(ArchitectureSet({}).text() == "none");
  CHECK(ArchitectureSet({"avx512", "sse2"}).text() == "sse2, avx512");
  CHECK(ArchitectureSet({"avx2"}).has("avx2"));
  CHECK_FALSE(ArchitectureSet({"avx2"}).has("sse2"));
  CHECK_FALSE(ArchitectureSet({"avx2"}).has("anything"));
#if defined(__x86_64__)
  CHECK(ArchitectureSet::of_this_machine().has("sse2"));
  CHECK_FALSE(ArchitectureSet::of_this_machine().has("neon64"));
#elif defined(__aarch64__)
  CHECK(ArchitectureSet::of_this_machine().has("neon64"));
#endif
}

#if defined(__x86_64__)
TEST_CASE("a dispatcher calls the chosen variant and tells which it is") {
  const std::vector<Variant> variants = {{"sse2", &enter_twice}};
  const strata::Dispatcher<int(int)> call(variants);
  CHECK(call.active() == "sse2");
  CHECK(call(21) == 42);
  CHECK_THROWS_AS(strata::Dispatcher<int(int)>(variants, "avx512"), strata::Error);
  CHECK(place_of_error<long(int)>(variants) == "dispatch entry");

  REQUIRE(setenv(strata::dispatch_variable, "avx2", 1) == 0);
  CHECK(place_of_error<int(int)>(variants) == "STRATA_ARCH");
  CHECK(strata::Dispatcher<int(int)>(variants, "sse2").active() == "sse2");  // the argument goes first
  REQUIRE(unsetenv(strata::dispatch_variable) == 0);
}
#endif
