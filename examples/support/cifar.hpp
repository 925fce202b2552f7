// CIFAR-10 as a dataset: the usual binary batches, or a folder of pictures per class. Files are not trusted; errors
// name the file and, in binary batches, the offset. Programs link the library `stb_image` of this directory.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/io/mapped_file.hpp>
#include <strata/train/data.hpp>

#include "idx.hpp"
#include "picture.hpp"

namespace examples {

/// Pictures to learn from and to judge by, and what the classes are called.
struct NamedSplit {
  Split split;
  std::vector<std::string> names;
};

/// What CIFAR-10's classes are called, in the order of their labels, which is the alphabet's.
inline constexpr std::array<std::string_view, 10> cifar10_classes = {
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"};

/// Whether classes are called as CIFAR-10's ten are: all that tells its pictures, in folders, from those of others.
[[nodiscard]] inline bool is_cifar10(const std::vector<std::string>& names) {
  return std::equal(names.begin(), names.end(), cifar10_classes.begin(), cifar10_classes.end());
}

namespace detail {

/// Appends the records of a binary batch: a label, then 32 x 32 bytes of red, green and blue.
[[nodiscard]] inline strata::Status append_cifar_batch(const std::string& path, strata::train::Dataset& data) {
  auto file = strata::io::MappedFile::open(path);
  if (!file) return file.error();
  const auto bytes = file.value()->bytes();
  const auto record = static_cast<std::size_t>(1 + data.shape.size());
  if (bytes.empty()) return strata::Error(path, "records of " + std::to_string(record) + " bytes", "an empty file");
  for (std::size_t at = 0; at < bytes.size(); at += record) {
    const auto place = [&] { return at_offset(path, at); };
    if (bytes.size() - at < record)
      return strata::Error(place(), "a record of " + std::to_string(record) + " bytes",
                           std::to_string(bytes.size() - at) + " bytes");
    const auto label = std::to_integer<std::uint8_t>(bytes[at]);
    if (label >= data.classes)
      return strata::Error(place(), "a label below " + std::to_string(data.classes), std::to_string(label));
    data.labels.push_back(label);
    const auto* pixels = reinterpret_cast<const std::uint8_t*>(bytes.data()) + at + 1;
    data.pixels.insert(data.pixels.end(), pixels, pixels + data.shape.size());
  }
  return strata::success();
}

/// Entries of a directory that are directories (or files), sorted by name. Error: it cannot be read.
[[nodiscard]] inline strata::Result<std::vector<std::filesystem::path>> entries_of(const std::filesystem::path& path,
                                                                                   bool directories) {
  std::vector<std::filesystem::path> entries;
  std::error_code error;
  for (std::filesystem::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    if (directories ? it->is_directory(ignored) : it->is_regular_file(ignored)) entries.push_back(it->path());
  }
  if (error) return strata::Error(path.string(), "a readable directory", error.message());
  std::ranges::sort(entries);
  return entries;
}

/// The data_batch_1.bin, data_batch_2.bin, ... among `files` of `directory`, in the order of their numbers. Errors:
/// none, one that is missing before the last, one named otherwise, as copies are.
[[nodiscard]] inline strata::Result<std::vector<std::string>> training_batches(
    const std::string& directory, const std::vector<std::filesystem::path>& files) {
  constexpr std::string_view stem = "data_batch_";
  constexpr std::string_view ending = ".bin";
  const auto name_of = [&](std::uint32_t number) {
    return std::string(stem) + std::to_string(number) + std::string(ending);
  };
  std::map<std::uint32_t, std::filesystem::path> numbered;
  for (const auto& path : files) {
    const std::string name = path.filename().string();
    if (!name.starts_with(stem) || !name.ends_with(ending)) continue;
    std::uint32_t number = 0;
    (void)std::from_chars(name.data() + stem.size(), name.data() + name.size() - ending.size(), number);
    if (number == 0 || name != name_of(number))
      return strata::Error(path.string(), "data_batch_1.bin, data_batch_2.bin, ...", "\"" + name + "\"");
    numbered.emplace(number, path);
  }
  if (numbered.empty()) return strata::Error(directory, "data_batch_1.bin, data_batch_2.bin, ...", "none");
  std::vector<std::string> batches;
  for (const auto& [number, path] : numbered) {
    const std::string name = name_of(static_cast<std::uint32_t>(batches.size() + 1));
    if (path.filename() != name)
      return strata::Error((std::filesystem::path(directory) / name).string(),
                           "a batch, since there is " + path.filename().string(), "none");
    batches.push_back(path.string());
  }
  return batches;
}

/// All files of the directories `path`/`names[c]`, which are the pictures of class c; `data.shape` empty: the first
/// picture's counts. Errors: a class without directory or pictures, files that are no pictures, pictures of two sizes.
[[nodiscard]] inline strata::Status append_class_folders(const std::filesystem::path& path,
                                                         const std::vector<std::string>& names,
                                                         strata::train::Dataset& data) {
  for (std::size_t c = 0; c < names.size(); ++c) {
    const auto files = entries_of(path / names[c], false);
    if (!files) return files.error();
    if (files.value().empty()) return strata::Error((path / names[c]).string(), "pictures", "none");
    for (const auto& file : files.value()) {
      const auto picture = read_picture(file.string(), 3);
      if (!picture) return picture.error();
      const strata::Shape shape = picture.value().shape;
      if (data.shape.size() == 0) {
        // Whole datasets lie in memory.
        if (shape.height > 512 || shape.width > 512)
          return strata::Error(file.string(), "pictures of at most 512 x 512",
                               std::to_string(shape.height) + " x " + std::to_string(shape.width));
        data.shape = shape;
      }
      if (shape != data.shape)
        return strata::Error(file.string(), strata::detail::text(data.shape), strata::detail::text(shape));
      data.labels.push_back(static_cast<std::uint8_t>(c));
      const index_t pixels = shape.height * shape.width;
      for (index_t channel = 0; channel < shape.channels; ++channel)
        for (index_t p = 0; p < pixels; ++p)
          data.pixels.push_back(picture.value().pixels[static_cast<std::size_t>(p * shape.channels + channel)]);
    }
  }
  return strata::success();
}

}  // namespace detail

/// data_batch_1.bin and so on as training pictures, test_batch.bin as test pictures; names from batches.meta.txt, which
/// says no more than those, if it is there. Nothing in the files says how many records they hold, so what was cut off
/// between two records shows by the other files: training batches are of one size, and where that is the 10,000 records
/// of CIFAR-10's own, the test batch is too. Last batches that are missing do not show. Errors: files missing (see
/// `training_batches`), of another size, with labels of 10 and more, or that end within a record.
[[nodiscard]] inline strata::Result<NamedSplit> read_cifar_batches(const std::string& directory) {
  constexpr index_t own_records = 10000;
  NamedSplit result;
  const auto files = detail::entries_of(directory, false);
  if (!files) return files.error();
  const auto batches = detail::training_batches(directory, files.value());
  if (!batches) return batches.error();
  strata::train::Dataset& train = result.split.train;
  strata::train::Dataset& test = result.split.test;
  for (strata::train::Dataset* part : {&train, &test}) {
    part->shape = {3, 32, 32};
    part->classes = 10;
  }
  const auto cut = [&](const std::string& path, index_t count, index_t wanted, const std::string& like) {
    return strata::Error(detail::at_offset(path, static_cast<std::uint64_t>(count * (1 + train.shape.size()))),
                         std::to_string(wanted) + " records, as many as in " + like, std::to_string(count));
  };
  std::vector<index_t> records;
  for (const std::string& path : batches.value()) {
    const index_t before = train.size();
    if (strata::Status status = detail::append_cifar_batch(path, train); !status) return status.error();
    records.push_back(train.size() - before);
  }
  const auto largest = static_cast<std::size_t>(std::ranges::max_element(records) - records.begin());
  const std::string largest_name = std::filesystem::path(batches.value()[largest]).filename().string();
  for (std::size_t i = 0; i < records.size(); ++i)
    if (records[i] != records[largest]) return cut(batches.value()[i], records[i], records[largest], largest_name);
  const std::string test_path = (std::filesystem::path(directory) / "test_batch.bin").string();
  if (strata::Status status = detail::append_cifar_batch(test_path, test); !status) return status.error();
  if (records[largest] == own_records && test.size() != own_records)
    return cut(test_path, test.size(), own_records, "each training batch");
  std::ifstream meta(directory + "/batches.meta.txt");
  for (std::string line; std::getline(meta, line) && result.names.size() < cifar10_classes.size();) {
    if (line.ends_with('\r')) line.pop_back();
    if (!line.empty()) result.names.push_back(line);
  }
  if (result.names.size() != cifar10_classes.size())
    result.names.assign(cifar10_classes.begin(), cifar10_classes.end());
  return result;
}

/// `directory`/train and `directory`/test with a folder of JPEG or PNG pictures for each class; classes are numbered in
/// the order of their names. Errors: fewer than 2 or more than 255 classes, a class that one of the parts does not
/// have, those of single pictures.
[[nodiscard]] inline strata::Result<NamedSplit> read_class_folders(const std::string& directory) {
  NamedSplit result;
  const std::filesystem::path root(directory);
  for (const char* part : {"train", "test"}) {
    const auto classes = detail::entries_of(root / part, true);
    if (!classes) return classes.error();
    std::vector<std::string> names;
    for (const auto& path : classes.value()) names.push_back(path.filename().string());
    if (result.names.empty()) result.names = names;
    if (names.size() < 2 || names.size() > 255)
      return strata::Error((root / part).string(), "2 to 255 folders, one a class", std::to_string(names.size()));
    if (names != result.names)
      return strata::Error((root / part).string(), "the folders of " + (root / "train").string(),
                           std::to_string(names.size()) + " folders of other names");
  }
  result.split.train.classes = result.split.test.classes = static_cast<index_t>(result.names.size());
  if (auto status = detail::append_class_folders(root / "train", result.names, result.split.train); !status)
    return status.error();
  result.split.test.shape = result.split.train.shape;
  if (auto status = detail::append_class_folders(root / "test", result.names, result.split.test); !status)
    return status.error();
  return result;
}

/// Either of the two layouts. Mean and deviation of both parts are those of the training pictures. Errors: those of the
/// layout that is there; neither.
[[nodiscard]] inline strata::Result<NamedSplit> read_cifar(const std::string& directory) {
  std::error_code ignored;
  const std::filesystem::path root(directory);
  const bool folders = std::filesystem::is_directory(root / "train", ignored);
  bool batches = std::filesystem::exists(root / "test_batch.bin", ignored);
  if (const auto files = detail::entries_of(root, false); files)
    for (const auto& path : files.value()) batches = batches || path.filename().string().starts_with("data_batch_");
  if (!folders && !batches)
    return strata::Error(directory, "data_batch_*.bin and test_batch.bin, or train/ and test/ with a folder per class",
                         "neither (a packed archive has to be unpacked, as examples/resnet/run does)");
  auto result = batches ? read_cifar_batches(directory) : read_class_folders(directory);
  if (!result) return result;
  Split& split = result.value().split;
  split.train.normalise();
  split.test.mean = split.train.mean;
  split.test.deviation = split.train.deviation;
  return result;
}

}  // namespace examples
