// Labelled point clouds: the files of shapes13, pictures turned into clouds of their ink, splits and batches with the
// usual variations. Files are not trusted; errors name file and offset or line.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/train/data.hpp>

namespace pointnet2 {

using strata::index_t;

/// Clouds of equally many points, [cloud][dimension][point], and a label each.
struct Clouds {
  index_t dimensions = 3;
  index_t points = 0;
  index_t classes = 0;
  std::vector<float> coordinates;
  std::vector<std::uint8_t> labels;

  [[nodiscard]] index_t size() const noexcept { return static_cast<index_t>(labels.size()); }
  [[nodiscard]] index_t cloud_size() const noexcept { return dimensions * points; }

  /// The clouds `indices` as a set of their own.
  [[nodiscard]] Clouds select(const std::vector<std::uint32_t>& indices) const {
    Clouds part{dimensions, points, classes, {}, {}};
    for (const std::uint32_t i : indices) {
      const auto from = coordinates.begin() + static_cast<index_t>(i) * cloud_size();
      part.coordinates.insert(part.coordinates.end(), from, from + cloud_size());
      part.labels.push_back(labels[i]);
    }
    return part;
  }

  /// The same clouds with the first `count` points of each. Precondition: 1 <= count <= points.
  [[nodiscard]] Clouds first_points(index_t count) const {
    Clouds part{dimensions, count, classes, {}, labels};
    for (index_t row = 0; row < size() * dimensions; ++row)
      part.coordinates.insert(part.coordinates.end(), coordinates.begin() + row * points,
                              coordinates.begin() + row * points + count);
    return part;
  }
};

/// What to learn from and what to judge by.
struct CloudSplit {
  Clouds train, test;
};

namespace detail {

/// Whole numbers below `limit`, one a line; blank lines at the end do not count.
inline strata::Result<std::vector<std::uint8_t>> read_labels(const std::string& path, index_t limit) {
  std::ifstream file(path);
  if (!file) return strata::Error(path, "a readable file", "none");
  std::vector<std::uint8_t> labels;
  std::string line;
  index_t blank = 0;
  for (index_t number = 1; std::getline(file, line); ++number) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (line.empty()) {
      if (blank == 0) blank = number;
      continue;
    }
    const std::string at = path + ", line " + std::to_string(blank != 0 ? blank : number);
    if (blank != 0) return strata::Error(at, "a label", "an empty line");
    int value = -1;
    const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), value);
    if (error != std::errc() || end != line.data() + line.size() || value < 0 || value >= limit)
      return strata::Error(at, "a label from 0 to " + std::to_string(limit - 1), "\"" + line.substr(0, 40) + "\"");
    labels.push_back(static_cast<std::uint8_t>(value));
  }
  if (labels.empty()) return strata::Error(path, "at least one label", "none");
  return labels;
}

/// Little-endian float32 [cloud][point][dimension] of exactly `clouds` clouds.
inline strata::Status read_points(const std::string& path, index_t clouds, Clouds& target) {
  std::error_code failure;
  const auto bytes = std::filesystem::file_size(path, failure);
  std::ifstream file(path, std::ios::binary);
  if (failure || !file) return strata::Error(path, "a readable file", "none");
  const auto wanted = static_cast<std::uintmax_t>(clouds * target.cloud_size()) * 4;
  if (bytes != wanted)
    return strata::Error(path + ", offset " + std::to_string(std::min(bytes, wanted)),
                         std::to_string(wanted) + " bytes (" + std::to_string(clouds) + " clouds of " +
                             std::to_string(target.points) + " points)",
                         std::to_string(bytes) + " bytes");
  target.coordinates.resize(static_cast<std::size_t>(clouds * target.cloud_size()));
  std::vector<std::array<unsigned char, 4>> raw(static_cast<std::size_t>(target.cloud_size()));
  for (index_t cloud = 0; cloud < clouds; ++cloud) {
    if (!file.read(reinterpret_cast<char*>(raw.data()), static_cast<std::streamsize>(raw.size() * 4)))
      return strata::Error(path + ", offset " + std::to_string(cloud * target.cloud_size() * 4), "a whole cloud",
                           "the end of the file");
    for (index_t i = 0; i < target.points; ++i)
      for (index_t d = 0; d < target.dimensions; ++d) {
        const auto at = static_cast<std::size_t>(i * target.dimensions + d);
        const std::uint32_t word =
            static_cast<std::uint32_t>(raw[at][0]) | static_cast<std::uint32_t>(raw[at][1]) << 8U |
            static_cast<std::uint32_t>(raw[at][2]) << 16U | static_cast<std::uint32_t>(raw[at][3]) << 24U;
        float value = 0;
        std::memcpy(&value, &word, 4);
        if (!std::isfinite(value))
          return strata::Error(
              path + ", offset " + std::to_string((cloud * target.cloud_size() + i * target.dimensions + d) * 4),
              "a finite coordinate", std::to_string(value));
        target.coordinates[static_cast<std::size_t>((cloud * target.dimensions + d) * target.points + i)] = value;
      }
  }
  return strata::success();
}

}  // namespace detail

/// `directory` holds classes.txt (a name a line) and, for train and test, <part>_points.f32 (little-endian float32,
/// [cloud][point][3]) and <part>_labels.txt. Errors: files missing, short or too long, labels that are no class,
/// coordinates that are not finite.
[[nodiscard]] inline strata::Result<CloudSplit> read_shapes(const std::string& directory, index_t points = 1024) {
  const auto path = [&](const std::string& name) { return (std::filesystem::path(directory) / name).string(); };
  std::ifstream names(path("classes.txt"));
  if (!names) return strata::Error(path("classes.txt"), "a readable file", "none");
  index_t classes = 0;
  for (std::string line; std::getline(names, line);)
    classes += line.find_first_not_of(" \r") == std::string::npos ? 0 : 1;
  if (classes < 1 || classes > 255)
    return strata::Error(path("classes.txt"), "1 to 255 names of classes", std::to_string(classes));
  CloudSplit split;
  for (auto [part, name] : {std::pair(&split.train, "train"), std::pair(&split.test, "test")}) {
    part->points = points;
    part->classes = classes;
    auto labels = detail::read_labels(path(std::string(name) + "_labels.txt"), classes);
    if (!labels) return labels.error();
    part->labels = std::move(labels).value();
    const strata::Status status = detail::read_points(path(std::string(name) + "_points.f32"), part->size(), *part);
    if (!status) return status.error();
  }
  return split;
}

/// Pictures of one channel as 2-D clouds of their ink, as PointNet++ does for MNIST: `points` places drawn with
/// probabilities in proportion to the grey value, each somewhere within its pixel, so that shades become densities.
/// The draw of a picture follows from `seed` and its number alone. The longer side spans -1 to 1. A blank picture gives
/// points in its centre.
[[nodiscard]] inline Clouds ink_clouds(const strata::train::Dataset& pictures, index_t points, std::uint64_t seed) {
  Clouds clouds{2, points, pictures.classes, {}, pictures.labels};
  clouds.coordinates.resize(static_cast<std::size_t>(pictures.size() * 2 * points));
  const index_t width = pictures.shape.width;
  const index_t pixels = pictures.shape.height * width;
  const auto half_x = static_cast<float>(width) / 2;
  const auto half_y = static_cast<float>(pictures.shape.height) / 2;
  const float scale = 1 / std::max(half_x, half_y);
  std::vector<std::uint64_t> sums(static_cast<std::size_t>(pixels));
  for (index_t picture = 0; picture < pictures.size(); ++picture) {
    const std::uint8_t* grey = pictures.pixels.data() + picture * pictures.shape.size();
    std::uint64_t ink = 0;
    for (index_t p = 0; p < pixels; ++p) sums[static_cast<std::size_t>(p)] = ink += grey[p];
    float* const x = clouds.coordinates.data() + picture * 2 * points;
    std::mt19937_64 random(seed * 0x9E3779B97F4A7C15U + static_cast<std::uint64_t>(picture));
    for (index_t i = 0; i < points; ++i) {
      if (ink == 0) {
        x[i] = x[points + i] = 0;
        continue;
      }
      const auto pixel = std::upper_bound(sums.begin(), sums.end(), random() % ink) - sums.begin();
      const auto within = [&] { return static_cast<float>(random() >> 40U) * 0x1p-24F; };
      x[i] = (static_cast<float>(pixel % width) + within() - half_x) * scale;
      x[points + i] = (static_cast<float>(pixel / width) + within() - half_y) * scale;
    }
  }
  return clouds;
}

/// Takes every `every`-th cloud of each class, in an order that follows from nothing but the file's, out of `train`:
/// {the rest, what was taken}. The parts do not depend on a run's seed, so runs can be compared.
[[nodiscard]] inline std::pair<Clouds, Clouds> hold_back(const Clouds& train, index_t every) {
  std::vector<std::uint32_t> kept, held;
  std::vector<index_t> seen(static_cast<std::size_t>(train.classes));
  for (const std::uint32_t i : strata::train::shuffled(train.size(), 20221, 0))
    (++seen[train.labels[i]] % every == 0 ? held : kept).push_back(i);
  std::sort(kept.begin(), kept.end());
  std::sort(held.begin(), held.end());
  return {train.select(kept), train.select(held)};
}

/// How clouds are varied in training.
struct Variation {
  float least_scale = 0.8F;  ///< of the whole cloud
  float most_scale = 1.25F;
  float shift = 0.1F;   ///< at most, per dimension
  double drop = 0.875;  ///< a share of up to this of the points moves onto the first (arXiv 1706.02413)
  bool mirror = false;  ///< the first dimension, half the time
};

/// Clouds `indices` as [cloud][dimension][point], and their labels. With `random` the points are shuffled and the cloud
/// is varied.
inline void load_clouds(const Clouds& data, const std::uint32_t* indices, index_t count, std::vector<float>& clouds,
                        std::vector<std::uint8_t>& labels, std::mt19937_64* random = nullptr,
                        const Variation& variation = {}) {
  clouds.resize(static_cast<std::size_t>(count * data.cloud_size()));
  labels.resize(static_cast<std::size_t>(count));
  const auto uniform = [&] { return static_cast<double>((*random)() >> 11U) * 0x1p-53; };
  std::vector<index_t> order(static_cast<std::size_t>(data.points));
  for (index_t i = 0; i < count; ++i) {
    const float* const source = data.coordinates.data() + static_cast<index_t>(indices[i]) * data.cloud_size();
    float* const target = clouds.data() + i * data.cloud_size();
    labels[static_cast<std::size_t>(i)] = data.labels[indices[i]];
    if (random == nullptr) {
      std::copy_n(source, data.cloud_size(), target);
      continue;
    }
    for (std::size_t p = 0; p < order.size(); ++p) order[p] = static_cast<index_t>(p);
    for (std::size_t p = order.size(); p > 1; --p) std::swap(order[p - 1], order[(*random)() % p]);
    const double dropped = uniform() * variation.drop;
    for (std::size_t p = 1; p < order.size(); ++p)
      if (uniform() < dropped) order[p] = order[0];
    const auto scale =
        variation.least_scale + (variation.most_scale - variation.least_scale) * static_cast<float>(uniform());
    const bool mirrored = variation.mirror && (*random)() % 2 == 0;
    for (index_t d = 0; d < data.dimensions; ++d) {
      const float shift = variation.shift * static_cast<float>(2 * uniform() - 1);
      const float factor = mirrored && d == 0 ? -scale : scale;
      for (index_t p = 0; p < data.points; ++p)
        target[d * data.points + p] = source[d * data.points + order[static_cast<std::size_t>(p)]] * factor + shift;
    }
  }
}

}  // namespace pointnet2
