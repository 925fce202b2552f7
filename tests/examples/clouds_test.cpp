// The readers of PointNet++'s data: what a good directory gives, what every kind of damage is told as, and that draws,
// splits and variations follow from their seeds alone.
#include "pointnet2/clouds.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"

namespace {

using pointnet2::Clouds;
using strata::index_t;

/// A directory with two classes, three training and two test clouds of four points; removed at the end.
class Directory {
 public:
  Directory()
      : path_(std::filesystem::temp_directory_path() / ("strata-clouds-" + std::to_string(std::random_device{}()))) {
    std::filesystem::create_directories(path_);
    write("classes.txt", "Car\r\nGun\r\n\r\n");
    write("train_labels.txt", "0\n1\n0\n");
    write("test_labels.txt", "1\r\n1\n\n");
    write("train_points.f32", numbers(3 * 12));
    write("test_points.f32", numbers(2 * 12));
  }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  ~Directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  void write(const std::string& name, const std::string& bytes) const {
    std::ofstream(path_ / name, std::ios::binary) << bytes;
  }
  void remove(const std::string& name) const { std::filesystem::remove(path_ / name); }
  [[nodiscard]] std::string path() const { return path_.string(); }

  /// 0, 1, 2, ... in the files' form, number `bad_at` replaced by `bad`.
  [[nodiscard]] static std::string numbers(int count, int bad_at = -1, float bad = 0) {
    std::string bytes;
    for (int i = 0; i < count; ++i) {
      const float value = i == bad_at ? bad : static_cast<float>(i);
      std::uint32_t word = 0;
      std::memcpy(&word, &value, 4);
      for (unsigned shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<char>(word >> shift & 0xFFU));
    }
    return bytes;
  }

 private:
  std::filesystem::path path_;
};

std::string refusal(const Directory& directory) {
  const auto result = pointnet2::read_shapes(directory.path(), 4);
  return result ? std::string() : result.error().what();
}

bool mentions(const std::string& text, const std::string& part) {
  INFO(text);
  const bool found = text.find(part) != std::string::npos;
  CHECK(found);
  return found;
}

/// `count` pictures of `side` x `side` with ink in one pixel each, the last picture blank.
strata::train::Dataset dots(index_t count, index_t side) {
  strata::train::Dataset pictures{{1, side, side}, 2, {}, {}};
  pictures.pixels.resize(static_cast<std::size_t>(count * side * side));
  for (index_t i = 0; i < count; ++i) {
    if (i + 1 < count) pictures.pixels[static_cast<std::size_t>(i * side * side + i)] = 200;
    pictures.labels.push_back(static_cast<std::uint8_t>(i % 2));
  }
  return pictures;
}

}  // namespace

TEST_CASE("shapes are read dimension by dimension") {
  const Directory directory;
  const auto split = pointnet2::read_shapes(directory.path(), 4).value();
  CHECK(split.train.size() == 3);
  CHECK(split.test.size() == 2);
  CHECK(split.train.classes == 2);
  CHECK(split.train.labels == std::vector<std::uint8_t>{0, 1, 0});
  CHECK(split.test.labels == std::vector<std::uint8_t>{1, 1});
  // Cloud 1 holds numbers 12 .. 23, point by point.
  const auto at = split.train.coordinates.begin() + 12;
  CHECK(std::vector<float>(at, at + 12) == std::vector<float>{12, 15, 18, 21, 13, 16, 19, 22, 14, 17, 20, 23});
  const Clouds fewer = split.train.first_points(2);
  CHECK(fewer.points == 2);
  CHECK(std::vector<float>(fewer.coordinates.begin(), fewer.coordinates.begin() + 6) ==
        std::vector<float>{0, 3, 1, 4, 2, 5});
  CHECK(split.train.select({2, 0}).labels == std::vector<std::uint8_t>{0, 0});
}

TEST_CASE("damaged files are refused with file and place") {
  for (const char* name :
       {"classes.txt", "train_labels.txt", "test_labels.txt", "train_points.f32", "test_points.f32"}) {
    const Directory directory;
    directory.remove(name);
    mentions(refusal(directory), name);
    directory.write(name, "");
    mentions(refusal(directory), name);
  }
  const auto told = [](const std::string& name, const std::string& bytes, const std::string& place) {
    const Directory directory;
    directory.write(name, bytes);
    return mentions(refusal(directory), name + place);
  };
  told("train_points.f32", Directory::numbers(35), ", offset 140: expected 144 bytes");
  told("train_points.f32", Directory::numbers(37), ", offset 144");
  told("test_points.f32", Directory::numbers(24).substr(0, 95), ", offset 95");
  told("train_points.f32", Directory::numbers(36, 20, std::numeric_limits<float>::quiet_NaN()),
       ", offset 80: expected a finite");
  told("test_points.f32", Directory::numbers(24, 0, -std::numeric_limits<float>::infinity()), ", offset 0");
  told("train_labels.txt", "0\n2\n0\n", ", line 2: expected a label from 0 to 1, found \"2\"");
  told("train_labels.txt", "0\n-1\n0\n", ", line 2");
  told("train_labels.txt", "0\n1\n0x\n", ", line 3");
  told("train_labels.txt", "0\n\n1\n0\n", ", line 2: expected a label, found an empty line");
  told("train_labels.txt", "0\n99999999999999999999\n0\n", ", line 2");
  told("classes.txt", "\n\n", ": expected 1 to 255 names");
  const Directory directory;
  directory.write("train_labels.txt", "0\n1\n");
  mentions(refusal(directory), "train_points.f32, offset 96: expected 96 bytes (2 clouds of 4 points)");
}

TEST_CASE("ink becomes points within its pixels, the same for the same seed") {
  const auto pictures = dots(5, 4);
  const Clouds clouds = pointnet2::ink_clouds(pictures, 50, 3);
  CHECK(clouds.coordinates == pointnet2::ink_clouds(pictures, 50, 3).coordinates);
  CHECK(clouds.coordinates != pointnet2::ink_clouds(pictures, 50, 4).coordinates);
  CHECK(clouds.labels == pictures.labels);
  for (index_t picture = 0; picture < 5; ++picture) {
    const float* x = clouds.coordinates.data() + picture * 100;
    for (index_t i = 0; i < 50; ++i) {
      if (picture == 4) {
        CHECK((x[i] == 0 && x[50 + i] == 0));
        continue;
      }
      const float left = static_cast<float>(picture % 4) / 2 - 1;
      const float top = static_cast<float>(picture / 4) / 2 - 1;
      CHECK((x[i] >= left && x[i] <= left + 0.5F && x[50 + i] >= top && x[50 + i] <= top + 0.5F));
    }
  }
}

TEST_CASE("what is held back comes from every class and depends on no seed") {
  Clouds all{2, 1, 3, {}, {}};
  for (int i = 0; i < 90; ++i) {
    all.labels.push_back(static_cast<std::uint8_t>(i % 3));
    all.coordinates.insert(all.coordinates.end(), {static_cast<float>(i), 0});
  }
  const auto [kept, held] = pointnet2::hold_back(all, 5);
  CHECK(kept.size() == 72);
  CHECK(held.size() == 18);
  for (int c = 0; c < 3; ++c) CHECK(std::count(held.labels.begin(), held.labels.end(), c) == 6);
  std::set<float> seen;
  for (const Clouds* part : {&kept, &held})
    for (std::size_t i = 0; i < part->coordinates.size(); i += 2) seen.insert(part->coordinates[i]);
  CHECK(seen.size() == 90);
}

TEST_CASE("variations stay within their bounds and follow from the generator alone") {
  Clouds all{3, 40, 1, {}, {0}};
  std::mt19937 numbers(4);
  for (int i = 0; i < 120; ++i) all.coordinates.push_back(static_cast<float>(numbers() % 1000) / 1000);
  const std::uint32_t index = 0;
  std::vector<float> plain, first, second;
  std::vector<std::uint8_t> labels;
  pointnet2::load_clouds(all, &index, 1, plain, labels);
  CHECK(plain == all.coordinates);
  std::mt19937_64 random(5), again(5);
  pointnet2::load_clouds(all, &index, 1, first, labels, &random);
  pointnet2::load_clouds(all, &index, 1, second, labels, &again);
  CHECK(first == second);
  for (const float x : first) CHECK((x >= -0.1F && x <= 1.35F));
  pointnet2::load_clouds(all, &index, 1, second, labels, &random);
  CHECK(first != second);
  // Nothing but the order changes without scale, shift and drop.
  pointnet2::load_clouds(all, &index, 1, first, labels, &random,
                         {.least_scale = 1, .most_scale = 1, .shift = 0, .drop = 0});
  CHECK(first != plain);
  std::sort(first.begin(), first.begin() + 40);
  std::sort(plain.begin(), plain.begin() + 40);
  CHECK(std::equal(first.begin(), first.begin() + 40, plain.begin()));
}
