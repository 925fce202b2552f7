// Compiled with -fno-exceptions: the forms that return results are all there is to use.
#include <cstdio>

#include <strata/strata.hpp>

#include "support/small_net.hpp"

int main() {
  const auto model = strata::try_load<test::SmallNet>("/no/such/file");
  std::printf("%s\n", model ? "loaded" : model.error().what());
  return model ? 1 : 0;
}
