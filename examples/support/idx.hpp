// The idx files of MNIST and its relatives, plain or gzipped, as datasets. Files are not trusted: nothing is allocated
// on the word of a header alone. Errors name the file and the offset in bytes, of gzipped files in what was unpacked.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>
#include <zlib.h>

#include <strata/core/error.hpp>
#include <strata/train/data.hpp>

namespace examples {

namespace detail {

/// A place in a file, as errors name it.
[[nodiscard]] inline std::string at_offset(const std::string& path, std::uint64_t offset) {
  return path + ", offset " + std::to_string(offset);
}

/// The bytes after a header of `numbers` big-endian 32-bit numbers, which begins with `magic`. Errors name the file and
/// the offset (a file that cannot be opened has none).
inline strata::Result<std::vector<std::uint8_t>> read_idx_bytes(const std::string& path, std::uint32_t magic,
                                                                std::vector<std::uint32_t>& numbers) {
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  if (!file) return strata::Error(path, "a readable file", "none");
  // An error of reading or unpacking; gzread tells of a gzip stream that is cut short here only.
  const auto failure = [&] {
    int code = Z_OK;
    const std::string text = gzerror(file.get(), &code);
    return code == Z_OK ? std::string() : text;
  };
  const std::size_t header = 4 * numbers.size();
  std::uint64_t bytes = 1;
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    std::array<std::uint8_t, 4> raw{};
    if (const int got = gzread(file.get(), raw.data(), 4); got != 4) {
      const std::string reason = failure();
      return strata::Error(at_offset(path, 4 * i + static_cast<std::size_t>(std::max(got, 0))),
                           "a header of " + std::to_string(header) + " bytes",
                           reason.empty() ? "the end of the file" : reason);
    }
    numbers[i] = static_cast<std::uint32_t>(raw[0]) << 24U | static_cast<std::uint32_t>(raw[1]) << 16U |
                 static_cast<std::uint32_t>(raw[2]) << 8U | raw[3];
    if (i == 0 && numbers[0] != magic)
      return strata::Error(at_offset(path, 0), "an idx file that begins with " + std::to_string(magic),
                           std::to_string(numbers[0]));
    if (i > 0) bytes *= numbers[i];
    if (bytes > 0xFFFFFFFFU) return strata::Error(at_offset(path, 4 * i), "at most 4 GiB of data", "sizes of more");
  }
  std::vector<std::uint8_t> data;
  std::vector<std::uint8_t> chunk(1U << 20U);
  while (data.size() <= bytes) {
    const int got = gzread(file.get(), chunk.data(), static_cast<unsigned>(chunk.size()));
    if (got < 0) return strata::Error(at_offset(path, header + data.size()), "intact data", failure());
    if (got == 0) break;
    data.insert(data.end(), chunk.begin(), chunk.begin() + got);
  }
  if (data.size() != bytes)
    return strata::Error(at_offset(path, header + std::min<std::uint64_t>(data.size(), bytes)),
                         std::to_string(bytes) + " bytes after the header",
                         data.size() > bytes ? "more" : std::to_string(data.size()) + " bytes");
  if (const std::string reason = failure(); !reason.empty())
    return strata::Error(at_offset(path, header + data.size()), "a whole gzip stream", reason);
  return data;
}

}  // namespace detail

/// Pictures (count x 1 x rows x columns) and their labels; mean and deviation stay 0 and 1. Errors: files missing,
/// damaged, too long or of another kind, no pictures or empty ones, counts that differ, labels of `classes` and more.
/// zlib passes over what follows a gzip stream and is none itself, so that is no error.
[[nodiscard]] inline strata::Result<strata::train::Dataset> read_idx(const std::string& images,
                                                                     const std::string& labels,
                                                                     strata::index_t classes) {
  strata::train::Dataset data;
  data.classes = classes;
  std::vector<std::uint32_t> header(4);
  auto pixels = detail::read_idx_bytes(images, 0x803, header);
  if (!pixels) return pixels.error();
  data.shape = {1, static_cast<strata::index_t>(header[2]), static_cast<strata::index_t>(header[3])};
  const std::uint32_t count = header[1];
  if (count == 0) return strata::Error(detail::at_offset(images, 4), "at least one picture", "none");
  if (header[2] == 0 || header[3] == 0)
    return strata::Error(detail::at_offset(images, header[2] == 0 ? 8 : 12), "at least one row and column",
                         std::to_string(header[2]) + " x " + std::to_string(header[3]));
  header.resize(2);
  auto classes_of = detail::read_idx_bytes(labels, 0x801, header);
  if (!classes_of) return classes_of.error();
  if (header[1] != count)
    return strata::Error(detail::at_offset(labels, 4), std::to_string(count) + " labels, one a picture",
                         std::to_string(header[1]));
  data.pixels = std::move(pixels).value();
  data.labels = std::move(classes_of).value();
  for (std::size_t i = 0; i < data.labels.size(); ++i)
    if (data.labels[i] >= classes)
      return strata::Error(detail::at_offset(labels, 8 + i), "a label below " + std::to_string(classes),
                           std::to_string(data.labels[i]));
  if (strata::Status status = data.check(); !status) return status.error().within(labels);  // too many classes
  return data;
}

/// Pictures to learn from and pictures to judge by.
struct Split {
  strata::train::Dataset train, test;
};

/// The four files of MNIST's layout in `directory`: train-images-idx3-ubyte, train-labels-idx1-ubyte and the same with
/// t10k, each with .gz or without and with '.' or '-' before idx. Mean and deviation of both parts are those of the
/// training pictures. Errors: as `read_idx`, a file that has none of its names, and pictures of two sizes.
[[nodiscard]] inline strata::Result<Split> read_mnist_directory(const std::string& directory,
                                                                strata::index_t classes = 10) {
  const auto find = [&](const std::string& stem, const std::string& kind) -> strata::Result<std::string> {
    std::string tried;
    for (const char* separator : {"-", "."})
      for (const char* ending : {".gz", ""}) {
        const std::string name = stem + separator + kind + ending;
        const std::string path = (std::filesystem::path(directory) / name).string();
        std::error_code ignored;
        if (std::filesystem::is_regular_file(path, ignored)) return path;
        tried += (tried.empty() ? "" : ", ") + name;
      }
    return strata::Error(directory, "one of the files " + tried, "none of them");
  };
  Split split;
  std::string test_images;
  for (auto [part, stem] : {std::pair(&split.train, "train"), std::pair(&split.test, "t10k")}) {
    auto images = find(std::string(stem) + "-images", "idx3-ubyte");
    if (!images) return images.error();
    auto labels = find(std::string(stem) + "-labels", "idx1-ubyte");
    if (!labels) return labels.error();
    auto data = read_idx(images.value(), labels.value(), classes);
    if (!data) return data.error();
    *part = std::move(data).value();
    test_images = images.value();
  }
  if (split.train.shape != split.test.shape) {
    const auto size = [](const strata::Shape& shape) {
      return std::to_string(shape.height) + " x " + std::to_string(shape.width);
    };
    const bool rows_differ = split.train.shape.height != split.test.shape.height;
    return strata::Error(detail::at_offset(test_images, rows_differ ? 8 : 12),
                         "test pictures of " + size(split.train.shape) + ", as for training", size(split.test.shape));
  }
  split.train.normalise();
  split.test.mean = split.train.mean;
  split.test.deviation = split.train.deviation;
  return split;
}

}  // namespace examples
