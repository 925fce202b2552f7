// Whether a layer multiplies its weights at a level as they are stored, sparse, or as a dense copy with zeros for what
// is absent: decided by timing both on the layer's own input.
#pragma once

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>

namespace strata {

/// How paths are chosen.
struct PathOptions {
  double least_density = 0.25;  ///< below it the dense copy is not tried: it would do four times the work or more
  int repetitions = 7;          ///< runs of either path, in turns; their medians are compared
  double least_gain = 0.05;  ///< share of the sparse path's time that the dense one has to save to be worth its memory
};

/// What was measured for a layer at a level.
struct LayerPath {
  std::string layer;
  Level level;
  double density = 0;         ///< non-zeros of the level over all weights
  double sparse_seconds = 0;  ///< medians
  double dense_seconds = 0;
  bool dense = false;  ///< the dense path was chosen
};

/// Times paths and keeps what it found. Layers ask the one that their context carries.
class PathChooser {
 public:
  explicit PathChooser(const PathOptions& options = {}) : options_(options) {}

  [[nodiscard]] const PathOptions& options() const noexcept { return options_; }
  [[nodiscard]] const std::vector<LayerPath>& paths() const noexcept { return paths_; }

  /// Calls `run(object, dense)` for either path in turns; whether the dense one is to be taken. (A function pointer, so
  /// that layers of all kinds share this code.)
  STRATA_COLD bool choose(const std::string& layer, Level level, double density, void (*run)(void* object, bool dense),
                          void* object) {
    std::vector<double> times[2];
    for (int i = -1; i < std::max(1, options_.repetitions); ++i)
      for (const bool dense : {false, true}) {
        const auto start = std::chrono::steady_clock::now();
        run(object, dense);
        const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
        if (i >= 0) times[dense ? 1 : 0].push_back(time.count());  // the first runs fill the caches
      }
    for (auto& list : times) std::sort(list.begin(), list.end());
    LayerPath path{layer, level, density, times[0][times[0].size() / 2], times[1][times[1].size() / 2], false};
    path.dense = path.dense_seconds <= (1 - options_.least_gain) * path.sparse_seconds;
    paths_.push_back(path);
    return path.dense;
  }

 private:
  PathOptions options_;
  std::vector<LayerPath> paths_;
};

}  // namespace strata
