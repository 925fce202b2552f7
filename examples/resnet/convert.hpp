// From a PyTorch checkpoint to a model with nested levels: names, one-shot magnitude pruning within budgets, and norms
// of every level recomputed on pictures. It does not train; what training gains is in train.cpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <strata/core/archive.hpp>
#include <strata/core/error.hpp>
#include <strata/core/executor.hpp>
#include <strata/train/allocation.hpp>
#include <strata/train/state_dict.hpp>
#include <strata/train/training.hpp>

#include "../support/picture.hpp"
#include "network.hpp"
#include "random_model.hpp"

namespace resnet {

/// torchvision's name for what common definitions call otherwise: "module." before all (DataParallel), "linear" for the
/// classifier, "shortcut" for a downsampling path.
[[nodiscard]] inline std::string torchvision_name(std::string name) {
  if (name.starts_with("module.")) name.erase(0, 7);
  if (name.starts_with("linear.")) name.replace(0, 6, "fc");
  if (const std::size_t at = name.find(".shortcut."); at != std::string::npos) name.replace(at, 10, ".downsample.");
  return name;
}

/// The network of that name with the classes and channels of the checkpoint and its parameters. Errors: an unknown
/// name, no first convolution or classifier, anything that `from_state_dict` refuses.
[[nodiscard]] inline strata::Result<TrainingNet> network_from(const strata::Archive& state_dict,
                                                              const std::string& name, index_t height, index_t width) {
  index_t classes = 0;
  index_t channels = 0;
  for (const strata::ArrayView& view : state_dict.arrays()) {
    if (torchvision_name(view.name) == "fc.weight" && view.shape.size() == 2) classes = view.shape[0];
    if (torchvision_name(view.name) == "conv1.weight" && view.shape.size() == 4) channels = view.shape[1];
  }
  if (classes == 0) return strata::Error("fc.weight", "a matrix of classes x features", "none");
  if (channels == 0) return strata::Error("conv1.weight", "an array of 4 extents", "none");
  strata::Result<Config> config = config_named(name, classes, {channels, height, width});
  if (!config) return config.error();
  if (strata::Status status = config.value().check(); !status) return status.error();
  TrainingNet network(config.value());
  if (strata::Status status = strata::train::from_state_dict(network, state_dict, torchvision_name); !status)
    return status.error();
  return network;
}

/// Prunes `network` to nested levels: the largest weights over the deviation of their layer within the budgets, at
/// least `floor` of every layer and `ends_floor` of the first convolution and the classifier. Weights that are zero, as
/// in a checkpoint that was sparse before, belong to no level. Errors: those of `train::allocate`.
[[nodiscard]] inline strata::Status prune(TrainingNet& network, const std::vector<strata::LevelBudget>& budgets,
                                          double floor, double ends_floor) {
  namespace train = strata::train;
  count_uses(network);
  std::vector<train::PrunableLayer<float>> layers;
  for (auto* parameter : train::parameters<float>(network)) {
    if (parameter->shape.size() < 2) continue;
    train::PrunableLayer<float> layer{parameter};
    // Zeros of earlier pruning would make the layer's remaining weights look large.
    const auto kept = static_cast<double>((parameter->value != 0).count());
    layer.scale = train::weight_scale(*parameter) *
                  (kept > 0 ? std::sqrt(static_cast<double>(parameter->value.size()) / kept) : 1.0);
    const bool end = parameter->name == "conv1.weight" || parameter->name == "fc.weight";
    layer.floor = end ? std::max(floor, ends_floor) : floor;
    layers.push_back(layer);
  }
  if (strata::Status status = train::allocate(layers, budgets); !status) return status;
  train::set_levels(network, static_cast<int>(budgets.size()));
  for (const auto& layer : layers)
    for (std::size_t i = 0; i < layer.weight->strata.size(); ++i)
      if (layer.weight->value[static_cast<index_t>(i)] == 0) layer.weight->strata[i] = strata::StratumMap::absent;
  return strata::success();
}

/// Batch-norm statistics of each of `levels` levels as means over batches of `pictures` (each as the network takes it).
/// Precondition: at least one picture.
inline void recalibrate(TrainingNet& network, int levels, const std::vector<std::vector<float>>& pictures,
                        strata::Executor& executor, std::size_t batch = 8) {
  strata::train::Context<float> context(executor);
  const strata::Shape shape = network.input_shape();
  for (int level = 0; level < levels; ++level)
    for (std::size_t first = 0; first < pictures.size(); first += batch) {
      std::vector<float> input;
      for (std::size_t i = first; i < std::min(first + batch, pictures.size()); ++i)
        input.insert(input.end(), pictures[i].begin(), pictures[i].end());
      context.norm_momentum = 1 / static_cast<double>(first / batch + 1);
      context.begin(strata::Level{level});
      const auto count = static_cast<index_t>(input.size()) / shape.size();
      (void)network(context, strata::train::input_tensor(context, input.data(), count, shape));
    }
}

/// The JPEG and PNG files below `directory`, by name, at most `most` of them, evenly spread. Errors: no such directory,
/// no pictures.
[[nodiscard]] inline strata::Result<std::vector<std::string>> pictures_below(const std::string& directory,
                                                                             std::size_t most) {
  std::vector<std::string> paths;
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator it(directory, error), end; !error && it != end;
       it.increment(error)) {
    std::string ending = it->path().extension().string();
    std::ranges::transform(ending, ending.begin(),
                           [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    if (it->is_regular_file(error) && (ending == ".jpg" || ending == ".jpeg" || ending == ".png"))
      paths.push_back(it->path().string());
  }
  if (error) return strata::Error(directory, "a readable directory", error.message());
  if (paths.empty()) return strata::Error(directory, "pictures named *.jpg, *.jpeg or *.png", "none");
  std::ranges::sort(paths);
  std::vector<std::string> chosen;
  const std::size_t count = std::min(most, paths.size());
  for (std::size_t i = 0; i < count; ++i) chosen.push_back(paths[i * paths.size() / count]);
  return chosen;
}

}  // namespace resnet
