// Every public header in one place, for clang-tidy.
#include <strata/strata.hpp>
#include <strata/train/classification.hpp>
#include <strata/train/fit.hpp>
