// From a PyTorch checkpoint to a model with nested levels: names, one-shot magnitude pruning within budgets, and norms
// of every level recomputed on pictures. It does not train; what training gains is in train.cpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <strata/core/archive.hpp>
#include <strata/core/error.hpp>
#include <strata/core/executor.hpp>
#include <strata/train/prune.hpp>
#include <strata/train/recalibration.hpp>
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

/// Adds the downsampling paths of a network of basic blocks whose shortcuts have no parameters (option A of the paper,
/// as the usual ResNet-20 to -110 for CIFAR-10 have them): every second row and column, between zeros for a quarter of
/// the new channels on either side. As layers these are 1x1 convolutions of stride 2 with a single 1 for each channel
/// that is there, and normalisations that change nothing.
inline void add_padded_shortcuts(strata::Archive& state_dict, const Config& config) {
  for (std::size_t stage = 1; stage < config.blocks.size() && config.blocks[stage] > 0; ++stage) {
    const std::string name = "layer" + std::to_string(stage + 1) + ".0.downsample.";
    const index_t out = config.width << stage;
    const index_t in = out / 2;
    std::vector<float> weight(static_cast<std::size_t>(out * in));
    for (index_t i = 0; i < in; ++i) weight[static_cast<std::size_t>((i + out / 4) * in + i)] = 1;
    state_dict.add<float>(name + "0.weight", {out, in, 1, 1}, 0, weight);
    const auto add = [&](const char* part, double value) {
      const std::vector<float> values(static_cast<std::size_t>(out), static_cast<float>(value));
      state_dict.add<float>(name + "1." + part, {out}, 0, values);
    };
    add("weight", 1);
    add("bias", 0);
    add("running_mean", 0);
    add("running_var", 1 - strata::train::norm_epsilon);  // to which training and storing add it
  }
}

/// The network of that name with the classes and channels of the checkpoint and its parameters. Where a network of
/// basic blocks downsamples and the checkpoint has no array of any such path, `add_padded_shortcuts` makes them.
/// Errors: an unknown name, no first convolution or classifier, anything that `from_state_dict` refuses, such as some
/// of those arrays without the others.
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
  strata::Archive arrays = state_dict;
  const auto downsamples = [](const strata::ArrayView& view) {
    return torchvision_name(view.name).find(".downsample.") != std::string::npos;
  };
  if (!config.value().bottleneck && std::ranges::none_of(arrays.arrays(), downsamples))
    add_padded_shortcuts(arrays, config.value());
  if (strata::Status status = strata::train::from_state_dict(network, arrays, torchvision_name); !status)
    return status.error();
  return network;
}

/// Whether `layer` is one of `add_padded_shortcuts`: all its weights are zeros and ones, one to an input channel.
template <class Layer>
[[nodiscard]] bool passes_on(const Layer& layer) {
  const auto& weight = layer.weight();
  const auto ones = (weight.value == 1).count();
  return weight.shape.size() == 4 && weight.shape[2] == 1 && ones == weight.shape[1] &&
         (weight.value == 0).count() + ones == weight.value.size();
}

/// Calls `f(name, layer)` for every downsampling path that only passes channels on.
template <class F>
void for_each_padded_shortcut(TrainingNet& network, F&& f) {
  strata::for_each_layer(network, [&](const std::string& name, const std::string&, auto& layer) {
    if constexpr (std::remove_cvref_t<decltype(layer)>::has_parameters)
      if (name.ends_with(".downsample.0") && passes_on(layer)) f(name, layer);
  });
}

/// `train::prune` with at least `floor` of every layer and `ends_floor` of the first convolution and the classifier.
/// Shortcuts that only pass channels on keep their ones. Errors: those of it.
[[nodiscard]] inline strata::Status prune(TrainingNet& network, const std::vector<strata::LevelBudget>& budgets,
                                          double floor, double ends_floor) {
  const double ends = std::max(floor, ends_floor);
  strata::train::PruneOptions options{.floor = floor, .floors = {{"conv1.weight", ends}, {"fc.weight", ends}}};
  for_each_padded_shortcut(network, [&](const std::string& name, auto& layer) {
    options.floors.emplace_back(name + ".weight", 1 / static_cast<double>(layer.weight().shape[0]));
  });
  return strata::train::prune(network, budgets, options);
}

/// Batch-norm statistics of each of `levels` levels as means over batches of `pictures` (each as the network takes it).
/// Shortcuts that only pass channels on go on doing that. Precondition: at least one picture; the network has so many
/// levels.
inline void recalibrate(TrainingNet& network, int levels, const std::vector<std::vector<float>>& pictures,
                        strata::Executor& executor, std::size_t batch = 8) {
  strata::train::Context<float> context(executor);
  const strata::Shape shape = network.input_shape();
  const auto batches = static_cast<index_t>((pictures.size() + batch - 1) / batch);
  // What only passes channels on would be normalised by the batch.
  std::vector<std::vector<strata::train::NormSet<float>>> norms;
  for_each_padded_shortcut(network,
                           [&](const std::string&, auto& layer) { norms.push_back(std::exchange(layer.norms(), {})); });
  strata::train::recalibrate(context, levels, batches, [&](index_t number) {
    const std::size_t first = static_cast<std::size_t>(number) * batch;
    std::vector<float> input;
    for (std::size_t i = first; i < std::min(first + batch, pictures.size()); ++i)
      input.insert(input.end(), pictures[i].begin(), pictures[i].end());
    const auto count = static_cast<index_t>(input.size()) / shape.size();
    (void)network(context, strata::train::input_tensor(context, input.data(), count, shape));
  });
  auto kept = norms.begin();
  for_each_padded_shortcut(network, [&](const std::string&, auto& layer) { layer.norms() = std::move(*kept++); });
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
