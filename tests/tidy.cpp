// Every public header in one place, for clang-tidy.
#include <strata/strata.hpp>
#include <strata/train/classification.hpp>
#include <strata/train/fit.hpp>
#include <strata/train/node_classification.hpp>
#include <strata/train/prune.hpp>
#include <strata/train/state_dict.hpp>
#include <strata/train/transitions.hpp>
#include <strata/train/translation.hpp>
