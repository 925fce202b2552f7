// How many pictures of a dataset a model classifies correctly.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <strata/core/types.hpp>
#include <strata/runtime/session.hpp>
#include <strata/train/data.hpp>

namespace examples {

/// The share of `data` that `model`, of the inference family, classifies correctly. `run(session, pictures)` gives the
/// logits of a batch.
template <class Model, class Run>
[[nodiscard]] double accuracy_of(const Model& model, const strata::train::Dataset& data, int threads, Run&& run) {
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
    const std::span<const float> logits = run(session, pictures);
    const auto classes = static_cast<std::ptrdiff_t>(logits.size()) / batch;
    for (strata::index_t i = 0; i < batch && first + i < data.size(); ++i) {
      const auto row = logits.begin() + i * classes;
      correct += std::max_element(row, row + classes) - row == labels[static_cast<std::size_t>(i)] ? 1 : 0;
    }
  }
  return static_cast<double>(correct) / static_cast<double>(data.size());
}

/// At one level.
template <class Model>
[[nodiscard]] double accuracy(const Model& model, const strata::train::Dataset& data, strata::Level level,
                              int threads) {
  return accuracy_of(model, data, threads,
                     [&](auto& session, const std::vector<float>& pictures) { return session.run(pictures, level); });
}

/// On a path that drops from level `from` to level `to` when it comes to stage `stage`.
template <class Model>
[[nodiscard]] double accuracy_with_switch(const Model& model, const strata::train::Dataset& data, strata::Level from,
                                          strata::Level to, int stage, int threads) {
  const auto path = [&](const strata::RoutePoint& point) noexcept { return point.stage() < stage ? from : to; };
  return accuracy_of(model, data, threads, [&](auto& session, const std::vector<float>& pictures) {
    // Runs with a policy need a profile; this one looks at the stage only, so any will do.
    if (session.router() == nullptr) session.set_profile(strata::profile(session, {.runs = 1}));
    return session.run(pictures, strata::Deadline::never(), path).output;
  });
}

}  // namespace examples
