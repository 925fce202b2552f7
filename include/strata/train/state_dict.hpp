// PyTorch's state_dict in and out of a training network: the same names, shapes and numbers, as safetensors files. What
// the names of a network are is the business of its `visit`; choosing levels that of train/allocation.hpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <strata/core/archive.hpp>
#include <strata/core/error.hpp>
#include <strata/io/atomic_file.hpp>
#include <strata/io/mapped_file.hpp>
#include <strata/io/safetensors.hpp>
#include <strata/layers/module.hpp>
#include <strata/train/training.hpp>

namespace strata::train {

namespace detail {

/// Calls `f(name, shape, array)` for everything that the state_dict of `network` holds at `level`: the parameters of
/// every layer, and of each normalisation weight, bias, running_mean and running_var.
template <class Network, class F>
void visit_state_dict(Network& network, Level level, F&& f) {
  for_each_layer(network, [&](const std::string& name, const std::string& norm_name, auto& layer) {
    if constexpr (std::remove_cvref_t<decltype(layer)>::has_parameters) {
      layer.for_each_parameter(name, norm_name, [&](auto& parameter) {
        const bool of_norm =
            parameter.name.starts_with(norm_name + ".weight.") || parameter.name.starts_with(norm_name + ".bias.");
        if (!of_norm) f(parameter.name, parameter.shape, parameter.value);
      });
      auto& norms = layer.norms();
      if (norms.empty()) return;
      auto& norm = norms[norms.size() == 1 ? 0 : static_cast<std::size_t>(level.index)];
      f(norm_name + ".weight", norm.gamma.shape, norm.gamma.value);
      f(norm_name + ".bias", norm.beta.shape, norm.beta.value);
      f(norm_name + ".running_mean", norm.gamma.shape, norm.running_mean);
      f(norm_name + ".running_var", norm.gamma.shape, norm.running_variance);
    }
  });
}

[[nodiscard]] inline std::string shape_text(const std::vector<index_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace detail

/// The parameters of `network` as `level` uses them: weights above the level are zeros, normalisations are the level's.
template <class Network>
[[nodiscard]] Archive to_state_dict(Network& network, Level level) {
  Archive archive;
  std::map<std::string, const std::vector<std::uint8_t>*> strata;
  for_each_layer(network, [&](const std::string& name, const std::string& norm_name, auto& layer) {
    if constexpr (std::remove_cvref_t<decltype(layer)>::has_parameters)
      layer.for_each_parameter(name, norm_name, [&](auto& parameter) { strata[parameter.name] = &parameter.strata; });
  });
  detail::visit_state_dict(network, level, [&](const std::string& name, const auto& shape, const auto& array) {
    std::vector<float> values(static_cast<std::size_t>(array.size()));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(array[static_cast<index_t>(i)]);
    if (const auto found = strata.find(name); found != strata.end() && !found->second->empty())
      for (std::size_t i = 0; i < values.size(); ++i) {
        const std::uint8_t stratum = (*found->second)[i];
        if (stratum == StratumMap::absent || stratum > level.index) values[i] = 0;
      }
    if (!archive.add<float>(name, shape, 0, values)) raise(Error(name, "a name of its own", "it is taken"));
  });
  return archive;
}

/// Fills `network`, all of whose weights then belong to level 0, from a state_dict; `rename` turns the file's names
/// into the network's (empty: they are the same). Arrays may be F32 or F64; `num_batches_tracked` of normalisations is
/// passed over. Errors, with nothing changed: parameters missing, left over, twice, of another type or shape, numbers
/// that are not finite, negative variances.
template <class Network>
[[nodiscard]] Status from_state_dict(Network& network, const Archive& state_dict,
                                     const std::function<std::string(const std::string&)>& rename = {}) {
  std::map<std::string, const ArrayView*> arrays;
  for (const ArrayView& view : state_dict.arrays()) {
    const std::string name = rename ? rename(view.name) : view.name;
    if (!arrays.emplace(name, &view).second)
      return Error(view.name, "one array for the parameter " + name, "two, with " + arrays[name]->name);
  }
  std::set<std::string> known;
  Status status = success();
  detail::visit_state_dict(network, Level{0}, [&](const std::string& name, const auto& shape, const auto& array) {
    known.insert(name);
    if (!status) return;
    const auto found = arrays.find(name);
    if (found == arrays.end()) {
      status = Error(name, "a parameter of shape " + detail::shape_text(shape), "none");
      return;
    }
    const ArrayView& view = *found->second;
    if (view.type != DataType::f32 && view.type != DataType::f64) {
      status = Error(view.name, "type F32 or F64", std::string(name_of(view.type)));
    } else if (view.shape != shape) {
      status = Error(view.name, "shape " + detail::shape_text(shape), detail::shape_text(view.shape));
    } else {
      const bool variance = name.ends_with(".running_var");
      const auto check = [&](const auto& values) {
        for (std::size_t i = 0; i < values.size() && status; ++i)
          if (!std::isfinite(values[i]) || (variance && values[i] < 0))
            status = Error(view.name + ", number " + std::to_string(i),
                           variance ? "a variance of 0 or more" : "a finite number", std::to_string(values[i]));
      };
      view.type == DataType::f32 ? check(view.as<float>()) : check(view.as<double>());
    }
    (void)array;
  });
  if (!status) return status;
  for (const auto& [name, view] : arrays) {
    const std::size_t dot = name.rfind('.');
    const bool counter = dot != std::string::npos && name.substr(dot) == ".num_batches_tracked" &&
                         known.contains(name.substr(0, dot) + ".running_mean");
    if (!counter && !known.contains(name))
      return Error(view->name, "no such parameter in this network",
                   "an array of shape " + detail::shape_text(view->shape));
  }
  set_levels(network, 1);
  for_each_layer(network, [&](const std::string& name, const std::string& norm_name, auto& layer) {
    if constexpr (std::remove_cvref_t<decltype(layer)>::has_parameters)
      layer.for_each_parameter(name, norm_name, [](auto& parameter) { parameter.strata.clear(); });
  });
  detail::visit_state_dict(network, Level{0}, [&](const std::string& name, const auto&, auto& array) {
    using Scalar = typename std::remove_cvref_t<decltype(array)>::Scalar;
    const auto copy = [&](const auto& values) {
      for (std::size_t i = 0; i < values.size(); ++i) array[static_cast<index_t>(i)] = static_cast<Scalar>(values[i]);
    };
    const ArrayView& view = *arrays.at(name);
    view.type == DataType::f32 ? copy(view.as<float>()) : copy(view.as<double>());
  });
  return success();
}

/// The arrays of any safetensors file, mapped. Errors name the file.
[[nodiscard]] inline Result<Archive> read_state_dict(const std::string& path) {
  auto file = io::MappedFile::open(path);
  if (!file) return file.error();
  Result<io::SafetensorsContents> contents = io::parse_safetensors(file.value()->bytes(), file.value());
  if (!contents) return contents.error().within(path);
  return std::move(contents.value().archive);
}

/// Writes `archive` as a plain safetensors file, without the padding arrays of model files, so that
/// `safetensors.torch.load_file` gives what `load_state_dict` takes. Error: writing that fails.
[[nodiscard]] inline Status write_state_dict(const Archive& archive, const std::string& path) {
  // Wider elements first, so that every array is aligned to its elements.
  std::vector<const ArrayView*> order;
  for (const ArrayView& view : archive.arrays()) order.push_back(&view);
  std::stable_sort(order.begin(), order.end(),
                   [](const ArrayView* a, const ArrayView* b) { return size_of(a->type) > size_of(b->type); });
  nlohmann::json header = nlohmann::json::object();
  header["__metadata__"] = {{"format", "pt"}};
  std::uint64_t at = 0;
  for (const ArrayView* view : order) {
    const std::uint64_t end = at + view->bytes.size();
    header[view->name] = {
        {"dtype", std::string(name_of(view->type))}, {"shape", view->shape}, {"data_offsets", {at, end}}};
    at = end;
  }
  std::string text = header.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  while (text.size() % 8 != 0) text += ' ';
  const std::uint64_t length = text.size();
  std::vector<std::span<const std::byte>> pieces = {std::as_bytes(std::span(&length, 1)),
                                                    std::as_bytes(std::span(text))};
  for (const ArrayView* view : order) pieces.push_back(view->bytes);
  return io::write_atomically(path, pieces);
}

}  // namespace strata::train
