// CIFAR-10 as a dataset: the usual binary batches, or a folder of pictures per class. Files are not trusted; errors
// name the file and, in binary batches, the offset. Programs link the library `stb_image` of this directory.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
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

namespace detail {

/// Appends the records of a binary batch: a label, then 32 x 32 bytes of red, green and blue.
[[nodiscard]] inline strata::Status append_cifar_batch(const std::string& path, strata::train::Dataset& data) {
  auto file = strata::io::MappedFile::open(path);
  if (!file) return file.error();
  const auto bytes = file.value()->bytes();
  const auto record = static_cast<std::size_t>(1 + data.shape.size());
  if (bytes.empty()) return strata::Error(path, "records of " + std::to_string(record) + " bytes", "an empty file");
  for (std::size_t at = 0; at < bytes.size(); at += record) {
    const auto place = [&] { return path + ", offset " + std::to_string(at); };
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

/// data_batch_1.bin and so on as training pictures, test_batch.bin as test pictures; names from batches.meta.txt if it
/// is there. Errors: files missing, with labels of 10 and more, or that end within a record.
[[nodiscard]] inline strata::Result<NamedSplit> read_cifar_batches(const std::string& directory) {
  NamedSplit result;
  const auto files = detail::entries_of(directory, false);
  if (!files) return files.error();
  for (strata::train::Dataset* part : {&result.split.train, &result.split.test}) {
    part->shape = {3, 32, 32};
    part->classes = 10;
    const bool training = part == &result.split.train;
    for (const auto& path : files.value()) {
      const std::string name = path.filename().string();
      if (training ? !(name.starts_with("data_batch_") && name.ends_with(".bin")) : name != "test_batch.bin") continue;
      if (strata::Status status = detail::append_cifar_batch(path.string(), *part); !status) return status.error();
    }
    if (part->labels.empty())
      return strata::Error(directory, training ? "data_batch_1.bin, data_batch_2.bin, ..." : "test_batch.bin", "none");
  }
  std::ifstream meta(directory + "/batches.meta.txt");
  for (std::string line; std::getline(meta, line) && result.names.size() < 10;)
    if (!line.empty()) result.names.push_back(line);
  if (result.names.size() != 10)
    result.names = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"};
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
