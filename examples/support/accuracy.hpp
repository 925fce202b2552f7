// How many pictures of a dataset a model classifies correctly.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <strata/core/types.hpp>
#include <strata/runtime/session.hpp>
#include <strata/train/data.hpp>

namespace examples {

/// The share of `data` that `model`, of the inference family, classifies correctly at `level`.
template <class Model>
[[nodiscard]] double accuracy(const Model& model, const strata::train::Dataset& data, strata::Level level,
                              int threads) {
  constexpr strata::index_t batch = 100;
  strata::Session<Model> session(model, {.threads = threads, .batch = batch});
  std::vector<float> pictures;
  std::vector<std::uint8_t> labels;
  std::vector<std::uint32_t> indices;
  strata::index_t correct = 0;
  for (strata::index_t first = 0; first < data.size(); first += batch) {
    // The last batch is filled up with its last picture; what is filled up does not count.
    indices.clear();
    for (strata::index_t i = first; i < first + batch; ++i)
      indices.push_back(static_cast<std::uint32_t>(std::min(i, data.size() - 1)));
    data.batch(indices.data(), batch, pictures, labels);
    const auto logits = session.run(pictures, level);
    const auto classes = static_cast<std::ptrdiff_t>(logits.size()) / batch;
    for (strata::index_t i = 0; i < batch && first + i < data.size(); ++i) {
      const auto row = logits.begin() + i * classes;
      correct += std::max_element(row, row + classes) - row == labels[static_cast<std::size_t>(i)] ? 1 : 0;
    }
  }
  return static_cast<double>(correct) / static_cast<double>(data.size());
}

}  // namespace examples
