// Training needs Eigen besides.
#include <strata/train/parameter.hpp>

static_assert(sizeof(strata::train::Parameter<float>) > 0);
