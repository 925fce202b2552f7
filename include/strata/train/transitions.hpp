// Batch-norm statistics for the stages after a switch of level: layers that were calibrated on what their own level
// makes meet what another level made. Measured after training, stored beside the levels' own statistics.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <strata/core/archive.hpp>
#include <strata/core/error.hpp>
#include <strata/core/executor.hpp>
#include <strata/layers/module.hpp>
#include <strata/layers/parameters.hpp>
#include <strata/train/data.hpp>
#include <strata/train/tape.hpp>
#include <strata/train/training.hpp>

namespace strata::train {

struct TransitionOptions {
  index_t batches = 16;
  index_t batch = 128;
  std::uint64_t seed = 1;
  bool up = false;  ///< for switches to a higher level as well
  /// For so many stages from each switch on. All are best: a stream of residuals carries what the other level made to
  /// the end of the network. Each takes two numbers a channel, for every pair of levels.
  int stages = std::numeric_limits<int>::max();
};

/// Adds to `archive`, which `to_archive(network, levels)` gave, scale and bias of every normalised layer for every
/// switch into its stage or one before it (`transition_name`): means over batches of `task`, with the level lowered (or
/// raised) at that stage. Layers before the first stage need none. Raises: fewer than 1 batch or stage, statistics that
/// are there already. (Statistics by switch as in Bit-Mixer, arXiv 2103.17267.)
template <class Network, class Task>
void calibrate_transitions(const Network& network, Task& task, Archive& archive, Executor& executor,
                           const TransitionOptions& options = {}) {
  using Scalar = typename Task::Scalar;
  using Array = typename Parameter<Scalar>::Array;
  if (options.batches < 1 || options.batch < 1)
    raise(Error("calibrate_transitions", "at least 1 batch of 1",
                std::to_string(options.batches) + " of " + std::to_string(options.batch)));
  if (options.stages < 1) raise(Error("calibrate_transitions", "at least 1 stage", std::to_string(options.stages)));
  const auto levels = static_cast<std::size_t>(archive.levels());
  Context<Scalar> context(executor);
  context.dropout_factors.assign(levels, 0.0);  // as the network will be used
  const detail::BatchesInTurn<Task> in_turn(task, options.batch, options.seed);

  struct Statistics {
    std::string norm_name;
    Array mean;  ///< running mean, of which a change tells that the layer ran at that level
    Array scale;
    Array bias;
  };
  /// Statistics of all normalised layers at level `to` after passes that switch from `from` at `stage`; with no batches
  /// those stored.
  const auto measure = [&](Level from, Level to, int stage, index_t batches) {
    Network copy = network;
    context.drop_at_stage = stage;
    context.drop_to = to;
    for (index_t b = 0; b < batches; ++b) {
      in_turn.load(b);
      context.norm_momentum = 1 / static_cast<double>(b + 1);
      context.begin(from);
      (void)task.run(copy, context);
    }
    std::vector<Statistics> all;
    for_each_layer(copy, [&](const std::string&, const std::string& norm_name, auto& layer) {
      if constexpr (requires {
                      layer.norms();
                      layer.bias();
                    }) {  // layers without a bias have no norms
        if (layer.norms().size() != levels) return;
        const NormSet<Scalar>& norm = layer.norms()[static_cast<std::size_t>(to.index)];
        const detail::Affine<Scalar> affine(norm.running_mean.size(), &norm, layer.bias());
        all.push_back({norm_name, norm.running_mean, affine.scale, affine.offset});
      }
    });
    return all;
  };

  context.begin(Level{0});
  in_turn.load(0);
  {
    Network copy = network;
    (void)task.run(copy, context);
  }
  const int stages = context.stages();
  ParameterSink sink(archive);
  for (int from = 0; from < archive.levels(); ++from)
    for (int to = 0; to < archive.levels(); ++to) {
      if (from == to || (to > from && !options.up)) continue;
      const auto stored = measure(Level{from}, Level{to}, -1, 0);
      // A layer is in the last stage from which on a switch makes it run at `to`.
      std::vector<int> stage_of(stored.size(), -1);
      for (int stage = stages - 1; stage >= 0; --stage) {
        const auto here = measure(Level{from}, Level{to}, stage, options.batches);
        for (std::size_t i = 0; i < here.size(); ++i) {
          if ((here[i].mean == stored[i].mean).all()) continue;
          if (stage_of[i] < 0) stage_of[i] = stage;
          const int since = stage_of[i] - stage;
          if (since >= options.stages) continue;
          const auto floats = [](const Array& values) {
            std::vector<float> result;
            for (const auto value : values) result.push_back(static_cast<float>(value));
            return result;
          };
          const auto scale = floats(here[i].scale);
          const auto bias = floats(here[i].bias);
          sink.transition<float>(here[i].norm_name, Level{from}, Level{to}, since, scale, bias);
        }
      }
    }
}

}  // namespace strata::train
