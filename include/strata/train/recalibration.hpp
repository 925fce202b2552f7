// Batch-norm statistics of every level, measured anew on batches of its own weights: those that training kept while the
// weights moved, or that a dense network had before it was pruned, do not fit. Used at the end of training and after
// pruning without any.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <strata/core/at_exit.hpp>
#include <strata/core/error.hpp>
#include <strata/core/executor.hpp>
#include <strata/core/types.hpp>
#include <strata/train/data.hpp>
#include <strata/train/tape.hpp>
#include <strata/train/training.hpp>

namespace strata::train {

/// Sets the running statistics of levels 0 .. levels-1 to means over `batches` passes each: `pass(batch)` runs batch
/// number `batch` through the network in `context`, which has begun it at the level. Single precision, without
/// dropout and without a drop of the level; the context's settings are afterwards what they were. Precondition: the
/// network is ready for so many levels (`set_levels`); with one normalisation for all of them, the last one's
/// statistics would be everybody's.
template <class Scalar, class Pass>
void recalibrate(Context<Scalar>& context, int levels, index_t batches, const Pass& pass) {
  const strata::detail::AtExit reset(
      [&, momentum = context.norm_momentum, training = std::exchange(context.training, true),
       bfloat16 = std::exchange(context.bfloat16, false), kept = std::exchange(context.keep_norms_below, 0),
       drop_at = std::exchange(context.drop_at_stage, -1),
       factors = std::exchange(context.dropout_factors,
                               std::vector<double>(static_cast<std::size_t>(levels), 0.0))]() mutable noexcept {
        context.norm_momentum = momentum;
        context.training = training;
        context.bfloat16 = bfloat16;
        context.keep_norms_below = kept;
        context.drop_at_stage = drop_at;
        context.dropout_factors = std::move(factors);
      });
  for (int level = 0; level < levels; ++level)
    for (index_t batch = 0; batch < batches; ++batch) {
      context.norm_momentum = 1 / static_cast<double>(batch + 1);
      context.begin(Level{level});
      pass(batch);
    }
  context.begin(Level{0});
}

struct RecalibrationOptions {
  index_t batches = 16;
  index_t batch = 128;
  std::uint64_t seed = 1;  ///< of the choice of samples and of how they are varied
};

/// Makes `network` ready for levels 0 .. levels-1 and measures the statistics of each on batches of `task`, as they
/// come in training of levels. Raises: fewer than 1 batch of 1, levels below 1 or above `max_levels`.
template <class Network, class Task>
void recalibrate(Network& network, Task& task, int levels, Executor& executor,
                 const RecalibrationOptions& options = {}) {
  if (options.batches < 1 || options.batch < 1)
    raise(Error({"recalibrate"}, {"at least 1 batch of 1"}, {options.batches, " of ", options.batch}));
  set_levels(network, levels);
  Context<typename Task::Scalar> context(executor);
  const detail::BatchesInTurn<Task> batches(task, options.batch, options.seed);
  recalibrate(context, levels, options.batches, [&](index_t batch) {
    batches.load(batch);
    (void)task.run(network, context);
  });
}

}  // namespace strata::train
