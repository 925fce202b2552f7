// What a stored model is made of: its weights, and what is not pruned beside them, at every level.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <strata/core/archive.hpp>
#include <strata/core/types.hpp>
#include <strata/layers/exchange.hpp>

namespace examples {

/// Numbers that a run reads.
struct ParameterCount {
  strata::index_t weights = 0;     ///< of convolutions, linear and recurrent layers and attention
  strata::index_t embeddings = 0;  ///< rows of words
  strata::index_t norms = 0;       ///< scale and bias of a level's normalisations
  strata::index_t others = 0;      ///< biases and other vectors

  [[nodiscard]] strata::index_t total() const noexcept { return weights + embeddings + norms + others; }
};

struct StoredParameters {
  ParameterCount dense;                ///< of a model with all weights
  std::vector<ParameterCount> levels;  ///< sparsest first
};

/// Counts the arrays of a model file. Embeddings are matrices of layers that are called so ("embedder", "embedding").
/// Statistics for switches of level and the self-check are left out: they belong to no level.
[[nodiscard]] inline StoredParameters stored_parameters(const strata::Archive& archive) {
  const auto levels = static_cast<std::size_t>(archive.levels());
  StoredParameters counts;
  counts.levels.resize(levels);
  const auto add = [&](strata::index_t ParameterCount::*kind, strata::index_t count) {
    counts.dense.*kind += count;
    for (ParameterCount& level : counts.levels) level.*kind += count;
  };
  for (const strata::ArrayView& view : archive.arrays()) {
    const std::string_view name = view.name;
    if (name.starts_with(strata::self_check_prefix) || name.find(".transition.") != std::string_view::npos) continue;
    if (name.ends_with(".shape") && view.type == strata::DataType::i64 && view.size() == 4) {
      const auto shape = view.as<std::int64_t>();
      counts.dense.weights += shape[0] * shape[1];
      continue;
    }
    if (view.type != strata::DataType::f32) continue;
    const std::string_view stem = name.substr(0, name.rfind('.'));
    const std::string_view suffix = name.substr(stem.size());
    const bool numbered = suffix.size() > 1 && suffix.find_first_not_of(".0123456789") == std::string_view::npos;
    if (numbered && stem.ends_with(".values")) {
      for (auto level = static_cast<std::size_t>(view.stratum); level < levels; ++level)
        counts.levels[level].weights += view.size();
    } else if (numbered && (stem.ends_with(".scale") || stem.ends_with(".bias"))) {
      const auto level = static_cast<std::size_t>(std::stoul(std::string(suffix.substr(1))));
      if (level < levels) counts.levels[level].norms += view.size();
      if (level == 0) counts.dense.norms += view.size();
    } else if (view.shape.size() < 2) {
      add(&ParameterCount::others, view.size());
    } else {
      add(name.find("embedd") != std::string_view::npos ? &ParameterCount::embeddings : &ParameterCount::weights,
          view.size());
    }
  }
  return counts;
}

}  // namespace examples
