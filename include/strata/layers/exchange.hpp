// Whole networks in and out of an Archive: training networks write one, inference networks are built from one. The
// names and shapes of single arrays are decided in layers/parameters.hpp, files in io/.
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include <strata/core/archive.hpp>
#include <strata/core/error.hpp>
#include <strata/layers/module.hpp>
#include <strata/layers/parameters.hpp>

namespace strata {

/// Metadata keys that every archive of a network has: its architecture and, one key each, the numbers of its config.
inline constexpr std::string_view architecture_key = "architecture";
inline constexpr std::string_view config_prefix = "config.";
/// Arrays that belong to the file rather than to a layer (one input and each level's output, replayed on load).
inline constexpr std::string_view self_check_prefix = "self_check.";

namespace detail {

template <class Number>
[[nodiscard]] std::string number_text(Number value) {
  if constexpr (std::is_enum_v<Number>) {
    return std::to_string(static_cast<std::underlying_type_t<Number>>(value));
  } else if constexpr (std::is_same_v<Number, bool>) {
    return value ? "1" : "0";
  } else {
    char buffer[64];
    const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value);
    return {buffer, end.ptr};
  }
}

template <class Number>
[[nodiscard]] bool parse_number(const std::string& text, Number& value) {
  if constexpr (std::is_enum_v<Number>) {
    std::underlying_type_t<Number> number{};
    if (!parse_number(text, number)) return false;
    value = static_cast<Number>(number);
    return true;
  } else if constexpr (std::is_same_v<Number, bool>) {
    value = text == "1";
    return text == "0" || text == "1";
  } else {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size();
  }
}

}  // namespace detail

namespace detail {

/// Becomes any number; only used to ask how many an aggregate has.
struct AnyNumber {
  template <class Number>
  requires(std::is_arithmetic_v<Number> || std::is_enum_v<Number>) constexpr operator Number()
      const noexcept;  // NOLINT(google-explicit-constructor)
};

/// How many numbers the aggregate `T` begins with; 0 for other types.
template <class T, class... Numbers>
[[nodiscard]] consteval int count_numbers() {
  if constexpr (!std::is_aggregate_v<T>) {
    return 0;
  } else if constexpr (requires { T{Numbers{}..., AnyNumber{}}; }) {
    return count_numbers<T, Numbers..., AnyNumber>();
  } else {
    return static_cast<int>(sizeof...(Numbers));
  }
}

}  // namespace detail

/// Errors: a config whose `visit` does not name all numbers of the struct, so that some would not be stored, or two by
/// one name. What is not named is found by the bytes that it takes, unless it could be padding between others, and in
/// plain aggregates of numbers by their count too. A config that names numbers outside of itself is taken at its word.
template <class Network>
[[nodiscard]] STRATA_COLD Status check_config() {
  using Config = typename Network::Config;
  struct Place {
    std::ptrdiff_t first, behind;
  };
  Config config;
  const auto* const object = reinterpret_cast<const char*>(&config);
  constexpr auto size = static_cast<std::ptrdiff_t>(sizeof(Config));
  std::vector<Place> places;
  std::set<std::string> names;
  std::optional<Error> error;
  bool inside = true;
  config.visit([&](const char* name, auto& value) {
    const auto* const at = reinterpret_cast<const char*>(&value);
    inside = inside && !std::less<>{}(at, object) && std::less<>{}(at, object + size);
    if (inside) places.push_back({at - object, at - object + static_cast<std::ptrdiff_t>(sizeof(value))});
    if (!names.insert(name).second && !error)
      error = Error({"config of ", Network::architecture}, {"a name of its own for every number"},
                    {"\"", name, "\" twice"});
  });
  if (error) return *error;
  constexpr int numbers = detail::count_numbers<Config>();
  if (static_cast<int>(names.size()) < numbers)
    return Error({"config of ", Network::architecture}, {"a visit that names all its ", numbers, " numbers"},
                 {names.size()});
  if (std::is_empty_v<Config> || !inside) return success();
  std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) { return a.first < b.first; });
  places.push_back({size, size});
  std::ptrdiff_t covered = 0;
  for (const Place& place : places) {
    // Padding, of a member that is a struct too, is shorter than the largest alignment that its end has.
    auto alignment = static_cast<std::ptrdiff_t>(alignof(Config));
    while (place.first % alignment != 0) alignment /= 2;
    if (place.first - covered >= alignment)
      return Error({"config of ", Network::architecture}, {"a visit that names all its numbers"},
                   {"none in bytes ", covered, " to ", place.first - 1, " of it"});
    covered = std::max(covered, place.behind);
  }
  return success();
}

/// Writes every parameter of `network`, whose layers are of the training family, into `archive` for levels 0 ..
/// levels-1, together with the architecture's name and config. Raises: levels below 1 or above `max_levels`, two layers
/// of one name, numbers that are not finite, values or strata of another size than the weight's, what `check_config`
/// finds.
template <class Network>
[[nodiscard]] Archive to_archive(const Network& network, int levels) {
  (void)check_config<Network>().value();
  if (levels < 1 || levels > max_levels) raise(Error({"levels"}, {"1 to ", max_levels}, {levels}));
  Archive archive;
  archive.set_levels(levels);
  archive.metadata()[std::string(architecture_key)] = std::string(Network::architecture);
  auto config = network.config();
  config.visit([&](const char* name, auto& value) {
    std::string key(config_prefix);
    key += name;
    archive.metadata()[key] = detail::number_text(value);
  });
  ParameterSink sink(archive);
  for_each_layer(network, [&](const std::string& name, const std::string& norm_name, const auto& layer) {
    using Layer = std::remove_cvref_t<decltype(layer)>;
    if constexpr (Layer::has_parameters) {
      const_cast<Layer&>(layer).for_each_parameter(name, norm_name, [](const auto& parameter) {  // only names change
        check_sizes(parameter);
        for (index_t i = 0; i < parameter.value.size(); ++i)
          if (!std::isfinite(parameter.value[i]))
            raise(Error({parameter.name, ", number ", i}, {"a finite number"}, {parameter.value[i]}));
      });
      layer.store(name, norm_name, sink);
    }
  });
  return archive;
}

/// The config stored in `archive`. Errors: another architecture, a number missing or malformed, one that the config
/// does not have.
template <class Network>
[[nodiscard]] STRATA_COLD Result<typename Network::Config> config_of(const Archive& archive) {
  const auto& metadata = archive.metadata();
  const auto architecture = metadata.find(std::string(architecture_key));
  if (architecture == metadata.end()) return Error("metadata", "an architecture", "none");
  if (architecture->second != Network::architecture)
    return Error("architecture", Network::architecture, architecture->second);
  typename Network::Config config;
  std::optional<Error> error;
  std::set<std::string> known;
  config.visit([&](const char* name, auto& value) {
    const std::string key = std::string(config_prefix) + name;
    known.insert(key);
    const auto found = metadata.find(key);
    if (error) return;
    if (found == metadata.end()) {
      error = Error({"metadata ", key}, {"a number"}, {"none"});
    } else if (!detail::parse_number(found->second, value)) {
      error = Error({"metadata ", key}, {"a number"}, {"\"", found->second, "\""});
    }
  });
  if (error) return *error;
  for (const auto& entry : metadata)
    if (entry.first.starts_with(config_prefix) && !known.contains(entry.first))
      return Error({"metadata ", entry.first}, {"no such number in this network's config"}, {entry.second});
  return config;
}

/// Fills every layer of `network`, whose layers are of the inference family, from `archive`, whose memory they view and
/// keep. Errors: parameters missing, left over, of another type or shape, or with invalid contents.
template <class Network>
[[nodiscard]] STRATA_COLD Status from_archive(Network& network, const Archive& archive) {
  ParameterSource source(archive);
  for_each_layer(network, [&](const std::string& name, const std::string& norm_name, auto& layer) {
    if constexpr (std::remove_cvref_t<decltype(layer)>::has_parameters) layer.load(name, norm_name, source);
  });
  return source.finish(std::string(self_check_prefix));
}

/// A hash of the architecture, its config and the arrays of stratum 0 (the self-check left out), in any order.
[[nodiscard]] inline std::uint64_t fingerprint_of(const Archive& archive) {
  constexpr std::uint64_t factor = 0x9E3779B97F4A7C15U;
  const auto mix = [](std::uint64_t hash, std::uint64_t word) {
    hash = (hash ^ word) * factor;
    return hash ^ (hash >> 29U);
  };
  const auto add = [&](std::uint64_t hash, const void* data, std::size_t size) {
    const auto* bytes = static_cast<const unsigned char*>(data);
    for (std::size_t i = 0; i < size; i += 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, bytes + i, size - i < 8 ? size - i : 8);
      hash = mix(hash, word);
    }
    return mix(hash, size);
  };
  std::uint64_t sum = 0;
  for (const auto& [key, value] : archive.metadata())
    if (key == architecture_key || key.starts_with(config_prefix))
      sum += add(add(1, key.data(), key.size()), value.data(), value.size());
  for (const ArrayView& view : archive.arrays()) {
    if (view.stratum != 0 || view.name.starts_with(self_check_prefix)) continue;
    std::uint64_t hash = add(2, view.name.data(), view.name.size());
    for (const index_t extent : view.shape) hash = mix(hash, static_cast<std::uint64_t>(extent));
    sum += add(mix(hash, static_cast<std::uint64_t>(view.type)), view.bytes.data(), view.bytes.size());
  }
  return sum;
}

}  // namespace strata
