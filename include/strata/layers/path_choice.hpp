// Whether a layer multiplies its weights at a level as they are stored, sparse, or as a dense copy with zeros for what
// is absent: decided by timing both on the layer's own input.
#pragma once

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>
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

  /// Runs `sparse` and `dense` in turns; whether the dense path is to be taken.
  template <class Sparse, class Dense>
  STRATA_COLD bool choose(const std::string& layer, Level level, double density, const Sparse& sparse,
                          const Dense& dense) {
    std::vector<double> sparse_times;
    std::vector<double> dense_times;
    sparse();
    dense();
    for (int i = 0; i < std::max(1, options_.repetitions); ++i) {
      sparse_times.push_back(seconds(sparse));
      dense_times.push_back(seconds(dense));
    }
    LayerPath path{layer, level, density, median(sparse_times), median(dense_times), false};
    path.dense = path.dense_seconds <= (1 - options_.least_gain) * path.sparse_seconds;
    paths_.push_back(path);
    return path.dense;
  }

 private:
  template <class Run>
  [[nodiscard]] static double seconds(const Run& run) {
    const auto start = std::chrono::steady_clock::now();
    run();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  [[nodiscard]] static double median(std::vector<double>& times) {
    std::ranges::nth_element(times, times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2));
    return times[times.size() / 2];
  }

  PathOptions options_;
  std::vector<LayerPath> paths_;
};

}  // namespace strata
