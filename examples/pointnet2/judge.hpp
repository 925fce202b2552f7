// How many clouds a model classifies correctly, at one level or on a path that drops on the way.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include <strata/core/types.hpp>
#include <strata/runtime/profile.hpp>
#include <strata/runtime/session.hpp>

#include "clouds.hpp"
#include "network.hpp"

namespace pointnet2 {

using Model = strata::Model<PointNet2>;

/// The share of `data` that `model` classifies correctly. `run(session, cloud)` gives the logits of a cloud.
template <class Run>
[[nodiscard]] double accuracy_of(const Model& model, const Clouds& data, int threads, const Run& run) {
  strata::Session<Model> session(model, {.threads = threads});
  std::vector<float> cloud;
  std::vector<std::uint8_t> label;
  index_t correct = 0;
  for (std::uint32_t i = 0; i < static_cast<std::uint32_t>(data.size()); ++i) {
    load_clouds(data, &i, 1, cloud, label);
    const auto logits = run(session, cloud);
    correct += std::max_element(logits.begin(), logits.end()) - logits.begin() == label[0] ? 1 : 0;
  }
  return static_cast<double>(correct) / static_cast<double>(data.size());
}

/// At one level.
[[nodiscard]] inline double accuracy(const Model& model, const Clouds& data, strata::Level level, int threads) {
  return accuracy_of(model, data, threads, [&](auto& session, const auto& cloud) { return session.run(cloud, level); });
}

/// On a path that drops from level `from` to level `to` when it comes to stage `stage`.
[[nodiscard]] inline double accuracy_with_switch(const Model& model, const Clouds& data, strata::Level from,
                                                 strata::Level to, int stage, int threads) {
  const auto path = [&](const strata::RoutePoint& point) noexcept { return point.stage() < stage ? from : to; };
  return accuracy_of(model, data, threads, [&](auto& session, const auto& cloud) {
    // Runs with a policy need a profile; this one looks at the stage only, so any will do.
    if (session.router() == nullptr) session.set_profile(strata::profile(session, {.runs = 1}));
    return session.run(cloud, strata::Deadline::never(), path).output;
  });
}

}  // namespace pointnet2
