// PyTorch's state_dict in and out of a training network: the same names, shapes and numbers, as safetensors files. What
// the names of a network are is the business of its `visit`; choosing levels that of train/allocation.hpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <strata/core/archive.hpp>
#include <strata/core/error.hpp>
#include <strata/io/atomic_file.hpp>
#include <strata/io/mapped_file.hpp>
#include <strata/io/safetensors.hpp>
#include <strata/layers/module.hpp>
#include <strata/train/bfloat16.hpp>
#include <strata/train/training.hpp>

namespace strata::train {

namespace detail {

/// The number that `bits` are in IEEE 754's format of 16 bits.
[[nodiscard]] inline float from_float16(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const auto fraction = static_cast<float>(bits & 1023);
  float magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  if (exponent == 31)
    magnitude = fraction == 0 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

/// Calls `f(span of floats or doubles)` with the numbers of `view`; false if it has numbers of another type.
template <class F>
[[nodiscard]] bool visit_numbers(const ArrayView& view, F&& f) {
  const auto converted = [&](float (*from)(std::uint16_t)) {
    std::vector<float> numbers(view.bytes.size() / sizeof(std::uint16_t));
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      std::uint16_t bits = 0;
      std::memcpy(&bits, view.bytes.data() + i * sizeof(bits), sizeof(bits));
      numbers[i] = from(bits);
    }
    f(std::span<const float>(numbers));
  };
  switch (view.type) {
    case DataType::f32:
      f(view.as<float>());
      return true;
    case DataType::f64:
      f(view.as<double>());
      return true;
    case DataType::f16:
      converted(&from_float16);
      return true;
    case DataType::bf16:
      converted([](std::uint16_t bits) { return kernels::from_bfloat16(bits); });
      return true;
    default:
      return false;
  }
}

/// Calls `f(name, shape, array)` for everything that the state_dict of `network` holds at `level`: the parameters of
/// every layer, and of each normalisation weight, bias, running_mean and running_var. Raises: no such level.
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
      const std::size_t at = norms.size() == 1 ? 0 : static_cast<std::size_t>(level.index);
      if (at >= norms.size()) raise(Error({norm_name}, {"a level of 0 to ", norms.size() - 1}, {level.index}));
      auto& norm = norms[at];
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
/// Raises: a level below 0 or that the network was not made ready for, values or strata of another size than a
/// weight's.
template <class Network>
[[nodiscard]] Archive to_state_dict(const Network& network, Level level) {
  if (level.index < 0) raise(Error("level", "0 or more", level.index));
  auto& walked = const_cast<Network&>(network);  // names are filled in, nothing else is changed
  Archive archive;
  std::map<std::string, const std::vector<std::uint8_t>*> strata;
  for_each_layer(walked, [&](const std::string& name, const std::string& norm_name, auto& layer) {
    if constexpr (std::remove_cvref_t<decltype(layer)>::has_parameters)
      layer.for_each_parameter(name, norm_name, [&](auto& parameter) {
        check_sizes(parameter);
        strata[parameter.name] = &parameter.strata;
      });
  });
  detail::visit_state_dict(walked, level, [&](const std::string& name, const auto& shape, const auto& array) {
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
/// into the network's (empty: they are the same). Arrays may be F32, F64, F16 or BF16; `num_batches_tracked` of
/// normalisations is passed over. Errors, with nothing changed: parameters missing, left over, twice, of another type
/// or shape, numbers that are not finite, negative variances. Want of memory is an error too, after which the network
/// may be half filled.
template <class Network>
[[nodiscard]] Status from_state_dict(Network& network, const Archive& state_dict,
                                     const std::function<std::string(const std::string&)>& rename = {}) {
  return returning_errors([&]() -> Status {
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
      if (view.shape != shape) {
        status = Error(view.name, "shape " + detail::shape_text(shape), detail::shape_text(view.shape));
        return;
      }
      const bool variance = name.ends_with(".running_var");
      const bool numbers = detail::visit_numbers(view, [&](const auto& values) {
        for (std::size_t i = 0; i < values.size() && status; ++i)
          if (!std::isfinite(values[i]) || (variance && values[i] < 0))
            status = Error(view.name + ", number " + std::to_string(i),
                           variance ? "a variance of 0 or more" : "a finite number", std::to_string(values[i]));
      });
      if (!numbers) status = Error(view.name, "type F32, F64, F16 or BF16", std::string(name_of(view.type)));
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
      (void)detail::visit_numbers(*arrays.at(name), [&](const auto& values) {
        for (std::size_t i = 0; i < values.size(); ++i) array[static_cast<index_t>(i)] = static_cast<Scalar>(values[i]);
      });
    });
    return success();
  });
}

/// The arrays of a safetensors file, mapped. Errors, which name the file: anything that is none, types beyond
/// `DataType`.
[[nodiscard]] inline Result<Archive> read_state_dict(const std::string& path) {
  return returning_errors([&]() -> Result<Archive> {
    auto file = io::MappedFile::open(path);
    if (!file) return file.error();
    Result<io::SafetensorsContents> contents = io::parse_safetensors(file.value()->bytes(), file.value());
    if (!contents) return contents.error().within(path);
    return std::move(contents.value().archive);
  });
}

/// Writes `archive` as a plain safetensors file, without the padding arrays of model files, so that
/// `safetensors.torch.load_file` gives what `load_state_dict` takes. Error: writing that fails.
[[nodiscard]] inline Status write_state_dict(const Archive& archive, const std::string& path) {
  return returning_errors([&]() -> Status {
    // Wider elements first, so that every array is aligned to its elements.
    std::vector<const ArrayView*> order;
    for (const ArrayView& view : archive.arrays()) order.push_back(&view);
    std::stable_sort(order.begin(), order.end(),
                     [](const ArrayView* a, const ArrayView* b) { return size_of(a->type) > size_of(b->type); });
    std::string text = "{";
    io::detail::append_metadata(text, {{"format", "pt"}});
    std::uint64_t at = 0;
    for (const ArrayView* view : order) {
      const std::uint64_t end = at + view->bytes.size();
      io::detail::append_entry(text, view->name, view->type, view->shape, at, end);
      at = end;
    }
    text += '}';
    while (text.size() % 8 != 0) text += ' ';
    const std::uint64_t length = text.size();
    std::vector<std::span<const std::byte>> pieces = {std::as_bytes(std::span(&length, 1)),
                                                      std::as_bytes(std::span(text))};
    for (const ArrayView* view : order) pieces.push_back(view->bytes);
    return io::write_atomically(path, pieces);
  });
}

}  // namespace strata::train
