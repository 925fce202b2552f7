// Model files: safetensors with the arrays of all layers' level 0 first, then what level 1 adds, and so on, so that a
// prefix of the file is the smaller model. Saving, loading, cutting and the self-check.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <strata/core/archive.hpp>
#include <strata/core/error.hpp>
#include <strata/io/atomic_file.hpp>
#include <strata/io/json.hpp>
#include <strata/io/mapped_file.hpp>
#include <strata/io/safetensors.hpp>
#include <strata/layers/exchange.hpp>
#include <strata/runtime/sample_run.hpp>

namespace strata {

namespace io {

/// Metadata keys that start with it are the format's own.
inline constexpr std::string_view reserved_prefix = "strata.";
inline constexpr std::string_view format_key = "strata.format_version";
inline constexpr std::string_view format_version = "1";
inline constexpr std::string_view levels_key = "strata.levels";
/// `strata.stratum_end.<s>`: bytes of data, from the end of the header, that levels 0 .. s take.
inline constexpr std::string_view stratum_end_prefix = "strata.stratum_end.";

namespace detail {

[[nodiscard]] STRATA_COLD inline Result<std::uint64_t> metadata_number(const Archive& archive, const std::string& key) {
  const auto found = archive.metadata().find(key);
  if (found == archive.metadata().end()) return Error({"metadata ", key}, {"a number"}, {"none"});
  std::uint64_t number = 0;
  if (!strata::detail::parse_number(found->second, number))
    return Error({"metadata ", key}, {"a number"}, {"\"", found->second, "\""});
  return number;
}

[[nodiscard]] STRATA_COLD inline Result<std::vector<std::uint64_t>> stratum_ends(const SafetensorsContents& contents) {
  const auto version = contents.archive.metadata().find(std::string(format_key));
  if (version == contents.archive.metadata().end())
    return Error({"metadata ", format_key}, {"a strata model file"}, {"none: some other safetensors file"});
  if (version->second != format_version)
    return Error({"metadata ", format_key}, {"version ", format_version}, {"version ", version->second});
  Result<std::uint64_t> levels = metadata_number(contents.archive, std::string(levels_key));
  if (!levels) return levels.error();
  if (levels.value() < 1 || levels.value() > max_levels)
    return Error({"metadata ", levels_key}, {"1 to ", max_levels}, {levels.value()});
  std::vector<std::uint64_t> ends;
  for (std::uint64_t level = 0; level < levels.value(); ++level) {
    Result<std::uint64_t> end =
        metadata_number(contents.archive, std::string(stratum_end_prefix) + std::to_string(level));
    if (!end) return end.error();
    if (end.value() > contents.data_bytes || (level > 0 && end.value() < ends.back()))
      return Error({"metadata ", stratum_end_prefix, level}, {"ascending ends within ", contents.data_bytes, " bytes"},
                   {end.value()});
    ends.push_back(end.value());
  }
  if (ends.back() != contents.data_bytes)
    return Error({"metadata ", stratum_end_prefix, ends.size() - 1}, {contents.data_bytes}, {ends.back()});
  return ends;
}

/// How many levels end within `available` bytes of data.
[[nodiscard]] inline std::size_t whole_levels(std::span<const std::uint64_t> ends, std::uint64_t available) {
  return static_cast<std::size_t>(std::upper_bound(ends.begin(), ends.end(), available) - ends.begin());
}

}  // namespace detail

/// The arrays of a model file in memory, whole or cut at the end of a stratum; `archive.levels()` are the levels that
/// are there. `file` has to be aligned to 8 bytes. Errors: not a model file, another version, cut anywhere else,
/// anything `parse_safetensors` refuses.
[[nodiscard]] STRATA_COLD inline Result<Archive> parse_model(std::span<const std::byte> file,
                                                             std::shared_ptr<const void> owner) {
  return returning_errors([&]() -> Result<Archive> {
    Result<SafetensorsContents> parsed = parse_safetensors(file, std::move(owner), true);
    if (!parsed) return parsed.error();
    const SafetensorsContents& contents = parsed.value();
    Result<std::vector<std::uint64_t>> ends = detail::stratum_ends(contents);
    if (!ends) return ends.error();
    const std::uint64_t available = file.size() - contents.data_start;
    const std::size_t levels = detail::whole_levels(ends.value(), available);
    if (levels == 0 || ends.value()[levels - 1] != available)
      return Error({"data"}, {"a file that ends where a level does"}, {available, " bytes: the file is cut off"});
    for (std::size_t level = 0; level < levels; ++level)
      if (const std::uint64_t end = ends.value()[level];
          end != 0 && !std::binary_search(contents.array_ends.begin(), contents.array_ends.end(), end))
        return Error({"metadata ", stratum_end_prefix, level}, {"the end of an array"}, {end});
    Archive archive;
    archive.set_levels(static_cast<int>(levels));
    for (const auto& [key, value] : contents.archive.metadata())
      if (!key.starts_with(reserved_prefix)) archive.metadata()[key] = value;
    const auto& arrays = contents.archive.arrays();
    int stratum = 0;
    for (std::size_t i = 0; i < arrays.size(); ++i) {
      while (contents.array_ends[i] > ends.value()[static_cast<std::size_t>(stratum)]) ++stratum;
      ArrayView view = arrays[i];
      view.stratum = stratum;
      archive.add_view(std::move(view));
    }
    for (const auto& kept : contents.archive.owners()) archive.keep(kept);
    return archive;
  });
}

/// `parse_model` of a file, mapped or read. Errors name the file.
[[nodiscard]] STRATA_COLD inline Result<Archive> read_model(const std::string& path, bool mapped = true) {
  return returning_errors([&]() -> Result<Archive> {
    auto file = MappedFile::open(path, mapped);
    if (!file) return file.error();
    Result<Archive> archive = parse_model(file.value()->bytes(), file.value());
    if (!archive) return archive.error().within(path);
#if defined(STRATA_HAS_MMAP)
    if (mapped) archive.value().set_mapped(file.value()->bytes());
#endif
    return archive;
  });
}

/// Writes `archive` as a model file; an old file of that name stays whole until the new one is. Errors, before anything
/// is written: no level or more than `max_levels`, a stratum beyond the archive's levels, a name or a metadata key that
/// the format reserves, a text that is not UTF-8, a shape that has too many extents or does not fit the array's bytes,
/// names and metadata beyond `max_header_bytes`. Error: writing that fails.
[[nodiscard]] inline Status write_model(const Archive& archive, const std::string& path) {
  return returning_errors([&]() -> Status {
    std::vector<const ArrayView*> arrays;
    std::vector<bool> new_section;
    std::vector<std::size_t> counts;
    if (archive.levels() < 1 || archive.levels() > max_levels)
      return Error({path}, {"1 to ", max_levels, " levels"}, {archive.levels()});
    for (const ArrayView& view : archive.arrays()) {
      if (view.stratum < 0 || view.stratum >= archive.levels())
        return Error({path, ": ", view.name}, {"a stratum below ", archive.levels()}, {view.stratum});
      if (!detail::is_utf8(view.name)) return Error(path, "array names in UTF-8", "another");
      if (view.shape.size() > max_extents)
        return Error({path, ": ", view.name}, {"at most ", max_extents, " extents"}, {view.shape.size()});
      if (detail::array_bytes(view.type, view.shape) != std::uint64_t{view.bytes.size()})
        return Error({path, ": ", view.name}, {"as many bytes as its shape tells"}, {view.bytes.size()});
      if (view.name.starts_with("__"))
        return Error({path, ": ", view.name}, {"a name without leading __"}, {view.name});
    }
    for (const auto& [key, value] : archive.metadata()) {
      if (!detail::is_utf8(key)) return Error(path, "metadata keys in UTF-8", "another");
      if (!detail::is_utf8(value)) return Error({path, ": metadata ", key}, {"text in UTF-8"}, {"another"});
      if (key.starts_with(reserved_prefix))
        return Error({path, ": metadata ", key}, {"a key without leading ", reserved_prefix}, {key});
    }
    for (int stratum = 0; stratum < archive.levels(); ++stratum) {
      bool first = stratum > 0;
      for (const ArrayView& view : archive.arrays())
        if (view.stratum == stratum) {
          arrays.push_back(&view);
          new_section.push_back(std::exchange(first, false));
        }
      counts.push_back(arrays.size());
    }
    const ArrayPlaces places = place_arrays(arrays, new_section);
    std::map<std::string, std::string> metadata = archive.metadata();
    metadata[std::string(format_key)] = std::string(format_version);
    metadata[std::string(levels_key)] = std::to_string(archive.levels());
    for (std::size_t s = 0; s < counts.size(); ++s)
      metadata[std::string(stratum_end_prefix) + std::to_string(s)] =
          std::to_string(counts[s] == 0 ? 0 : places.ends[counts[s] - 1]);
    const auto image = lay_out_safetensors(arrays, places, metadata);
    if (image->header.size() - 8 > max_header_bytes)
      return Error({path}, {"names and metadata of at most ", max_header_bytes, " bytes"}, {image->header.size() - 8});
    return write_atomically(path, image->pieces);
  });
}

/// How many bytes from the start of the file hold levels 0 .. `level`. Errors: not a model file, no such level in it,
/// as above the levels of a file that is a prefix itself.
[[nodiscard]] inline Result<std::uint64_t> prefix_bytes(const std::string& path, Level level) {
  return returning_errors([&]() -> Result<std::uint64_t> {
    auto file = MappedFile::open(path);
    if (!file) return file.error();
    auto contents = parse_safetensors(file.value()->bytes(), file.value(), true);
    if (!contents) return contents.error().within(path);
    auto ends = detail::stratum_ends(contents.value());
    if (!ends) return ends.error().within(path);
    const std::uint64_t available = file.value()->bytes().size() - contents.value().data_start;
    const std::size_t levels = detail::whole_levels(ends.value(), available);
    if (level.index < 0 || static_cast<std::size_t>(level.index) >= levels)
      return Error({path}, {"a level below ", levels}, {level.index});
    return contents.value().data_start + ends.value()[static_cast<std::size_t>(level.index)];
  });
}

/// Writes levels 0 .. `level` of the model file `source` as a model file of its own. Errors: as for reading and
/// writing, a level that `source` does not have.
[[nodiscard]] inline Status write_truncated(const std::string& source, Level level, const std::string& target) {
  return returning_errors([&]() -> Status {
    Result<Archive> whole = read_model(source);
    if (!whole) return whole.error();
    if (level.index < 0 || level.index >= whole.value().levels())
      return Error({source}, {"a level below ", whole.value().levels()}, {level.index});
    Archive archive;
    archive.set_levels(level.index + 1);
    archive.metadata() = whole.value().metadata();
    for (const ArrayView& view : whole.value().arrays())
      if (view.stratum <= level.index) archive.add_view(view);
    for (const auto& owner : whole.value().owners()) archive.keep(owner);
    return write_model(archive, target);
  });
}

}  // namespace io

/// Adds one small input and every level's output, so that a reader can tell whether the model still computes the same.
/// Networks of sequences and of graphs want the header of their session. Errors: the archive does not describe a
/// working network, or one whose outputs are not finite or that takes more memory than there is; it has a self-check.
template <template <class> class Net, class Family = Inference<>>
[[nodiscard]] Status add_self_check(Archive& archive) {
  using Scalar = typename Family::Scalar;
  Result<Model<Net, Family>> model = Model<Net, Family>::from_archive(archive);
  if (!model) return model.error();
  return returning_errors([&]() -> Status {
    const std::string prefix(self_check_prefix);
    std::optional<Error> error;
    const auto add = [&]<class T>(const std::string& name, int level, std::span<const T> numbers) {
      if (!archive.add<T>(prefix + name, {static_cast<index_t>(numbers.size())}, level, numbers) && !error)
        error = Error({prefix, name}, {"an archive without a self-check"}, {"one"});
    };
    SampleRun<Model<Net, Family>> sample(std::move(model).value());
    sample.visit_input(
        [&]<class T>(const char* name, std::vector<T>& numbers) { add(name, 0, std::span<const T>(numbers)); });
    for (int level = 0; level < archive.levels() && !error; ++level) {
      const auto output = sample.run(Level{level});
      if (!output) return output.error();
      for (const Scalar value : output.value())
        if (!std::isfinite(static_cast<double>(value)))
          return Error({"output of level ", level}, {"finite numbers for a small input"}, {value});
      add.template operator()<Scalar>("output." + std::to_string(level), level, output.value());
    }
    if (error) return *error;
    return success();
  });
}

/// Replays the self-check of `archive` on `model`. Errors: no self-check, sizes that do not fit, numbers that are no
/// input, an output that differs by more than `tolerance` relative to the level's largest.
template <class Model>
[[nodiscard]] STRATA_COLD Status run_self_check(const Model& model, const Archive& archive, double tolerance = 1e-4) {
  using Scalar = typename Model::Family::Scalar;
  const std::string prefix(self_check_prefix);
  const auto stored = [&]<class T>(const std::string& name, std::size_t size, std::span<const T>& numbers) -> Status {
    const ArrayView* view = archive.find(prefix + name);
    if (view == nullptr) return Error({prefix, name}, {"a self-check"}, {"none in this file"});
    if (view->type != data_type_of<T>() || static_cast<std::size_t>(view->size()) != size)
      return Error({prefix, name}, {size, " numbers"}, {view->size()});
    numbers = view->template as<T>();
    return success();
  };
  return returning_errors([&]() -> Status {
    SampleRun<Model> sample(model);
    Status status = success();
    sample.visit_input([&]<class T>(const char* name, std::vector<T>& numbers) {
      std::span<const T> found;
      if (status.ok()) status = stored(name, numbers.size(), found);
      if (status.ok()) numbers.assign(found.begin(), found.end());
    });
    if (!status) return status;
    for (int level = 0; level < model.levels(); ++level) {
      const auto run = sample.run(Level{level});
      if (!run) return run.error();
      const std::span<const Scalar> found = run.value();
      std::span<const Scalar> expected;
      status = stored("output." + std::to_string(level), found.size(), expected);
      if (!status) return status;
      double scale = 0;
      for (const Scalar value : expected)
        if (std::isfinite(static_cast<double>(value))) scale = std::max(scale, std::abs(static_cast<double>(value)));
      for (std::size_t i = 0; i < found.size(); ++i) {
        const auto a = static_cast<double>(found[i]);
        const auto b = static_cast<double>(expected[i]);
        if (!(std::abs(a - b) <= tolerance * scale))
          return Error({"self-check of level ", level, ", output ", i}, {b}, {a});
      }
    }
    return success();
  });
}

struct LoadOptions {
  bool self_check = false;  ///< replay the stored input at every level and compare
  /// Weights are used where they lie in the file, which then must not change while the model is in use: replace it by
  /// another (as `save` and `mv` do), never write into it (as `cp` does). False: the file is read into memory of the
  /// model's own, and memory of upper levels cannot be given back.
  bool mapped = true;
};

/// The network `Net` from a model file, or from a prefix of one that ends with a level. Errors name the file, the
/// array, what was expected and what was found.
template <template <class> class Net, class Family = Inference<>>
[[nodiscard]] STRATA_COLD Result<Model<Net, Family>> try_load(const std::string& path,
                                                              const LoadOptions& options = {}) {
  return returning_errors([&]() -> Result<Model<Net, Family>> {
    Result<Archive> archive = io::read_model(path, options.mapped);
    if (!archive) return archive.error();
    auto model = Model<Net, Family>::from_archive(archive.value());
    if (!model) return model.error().within(path);
    if (options.self_check)
      if (Status status = run_self_check(model.value(), archive.value()); !status) return status.error().within(path);
    return model;
  });
}

/// As `try_load`; raises the error.
template <template <class> class Net, class Family = Inference<>>
[[nodiscard]] Model<Net, Family> load(const std::string& path, const LoadOptions& options = {}) {
  return std::move(try_load<Net, Family>(path, options)).value();
}

/// Writes a network of the training family with levels 0 .. levels-1 as a model file with a self-check. Weights that
/// have no strata are in every level; a level that adds nothing is as the one below. Raises: a network with strata
/// above those levels or normalisations of another number of levels, one that does not work or gives numbers that are
/// not finite, writing that fails.
template <template <class> class Net, class TrainingFamily>
void save(const Net<TrainingFamily>& network, int levels, const std::string& path) {
  Archive archive = to_archive(network, levels);
  (void)add_self_check<Net>(archive).value();
  (void)io::write_model(archive, path).value();
}

}  // namespace strata
