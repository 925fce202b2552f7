// The idx files of MNIST and its relatives, plain or gzipped, as datasets. Files are not trusted: nothing is allocated
// on the word of a header alone.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>
#include <zlib.h>

#include <strata/core/error.hpp>
#include <strata/train/data.hpp>

namespace examples {

namespace detail {

/// The bytes after a header of `numbers` big-endian 32-bit numbers, which begins with `magic`. Errors name the file.
inline strata::Result<std::vector<std::uint8_t>> read_idx_bytes(const std::string& path, std::uint32_t magic,
                                                                std::vector<std::uint32_t>& numbers) {
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  if (!file) return strata::Error(path, "a readable file", "none");
  std::uint64_t bytes = 1;
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    std::array<std::uint8_t, 4> raw{};
    if (gzread(file.get(), raw.data(), 4) != 4)
      return strata::Error(path, "a header of " + std::to_string(4 * numbers.size()) + " bytes", "the end of the file");
    numbers[i] = static_cast<std::uint32_t>(raw[0]) << 24U | static_cast<std::uint32_t>(raw[1]) << 16U |
                 static_cast<std::uint32_t>(raw[2]) << 8U | raw[3];
    if (i == 0 && numbers[0] != magic)
      return strata::Error(path, "an idx file that begins with " + std::to_string(magic), std::to_string(numbers[0]));
    if (i > 0) bytes *= numbers[i];
    if (bytes > 0xFFFFFFFFU) return strata::Error(path, "at most 4 GiB of data", "sizes of more");
  }
  std::vector<std::uint8_t> data;
  std::vector<std::uint8_t> chunk(1U << 20U);
  while (data.size() <= bytes) {
    const int got = gzread(file.get(), chunk.data(), static_cast<unsigned>(chunk.size()));
    if (got < 0) return strata::Error(path, "intact gzip data", "damaged data");
    if (got == 0) break;
    data.insert(data.end(), chunk.begin(), chunk.begin() + got);
  }
  if (data.size() != bytes)
    return strata::Error(path, std::to_string(bytes) + " bytes after the header",
                         data.size() > bytes ? "more" : std::to_string(data.size()) + " bytes");
  return data;
}

}  // namespace detail

/// Pictures (count x 1 x rows x columns) and their labels. Errors: files missing, damaged or of another kind, counts
/// that differ, labels of `classes` and more.
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
  header.resize(2);
  auto classes_of = detail::read_idx_bytes(labels, 0x801, header);
  if (!classes_of) return classes_of.error();
  if (header[1] != count)
    return strata::Error(labels, std::to_string(count) + " labels, one a picture", std::to_string(header[1]));
  data.pixels = std::move(pixels).value();
  data.labels = std::move(classes_of).value();
  if (strata::Status status = data.check(); !status) return status.error().within(images);
  return data;
}

struct Split {
  strata::train::Dataset train, test;
};

/// The four files of MNIST's layout in `directory`; mean and deviation of both are those of the training pictures.
/// Errors: as `read_idx`, and pictures of two sizes.
[[nodiscard]] inline strata::Result<Split> read_mnist_directory(const std::string& directory,
                                                                strata::index_t classes = 10) {
  const auto find = [&](const std::string& stem, const std::string& kind) -> strata::Result<std::string> {
    for (const char* separator : {"-", "."})
      for (const char* ending : {".gz", ""}) {
        std::string path = directory + "/" + stem + separator + kind + ending;
        std::error_code ignored;
        if (std::filesystem::is_regular_file(path, ignored)) return path;
      }
    return strata::Error(directory, stem + "-" + kind + " or " + stem + "-" + kind + ".gz", "neither");
  };
  Split split;
  for (auto [part, stem] : {std::pair(&split.train, "train"), std::pair(&split.test, "t10k")}) {
    auto images = find(std::string(stem) + "-images", "idx3-ubyte");
    if (!images) return images.error();
    auto labels = find(std::string(stem) + "-labels", "idx1-ubyte");
    if (!labels) return labels.error();
    auto data = read_idx(images.value(), labels.value(), classes);
    if (!data) return data.error();
    *part = std::move(data).value();
  }
  if (split.train.shape != split.test.shape) return strata::Error(directory, "pictures of one size", "of two");
  split.train.normalise();
  split.test.mean = split.train.mean;
  split.test.deviation = split.train.deviation;
  return split;
}

}  // namespace examples
