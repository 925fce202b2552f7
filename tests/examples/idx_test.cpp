// The reader of idx files: what was written comes back, plain and gzipped, and no damaged file gets through or makes
// the reader allocate what the file does not hold.
#include "support/idx.hpp"

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <unistd.h>
#include <utility>
#include <vector>
#include <zlib.h>

#include "support/catch.hpp"

namespace {

/// A directory of its own, removed at the end.
struct Directory {
  inline static int made = 0;
  std::filesystem::path path = std::filesystem::temp_directory_path() /
                               ("strata_idx_test" + std::to_string(::getpid()) + "_" + std::to_string(made++));
  Directory() { std::filesystem::create_directories(path); }
  ~Directory() { std::filesystem::remove_all(path); }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;

  [[nodiscard]] std::string file(const std::string& name) const { return (path / name).string(); }
  std::string write(const std::string& name, const std::string& bytes) const {
    std::ofstream(path / name, std::ios::binary) << bytes;
    return file(name);
  }
  std::string write_gzip(const std::string& name, const std::string& bytes) const {
    gzFile stream = gzopen(file(name).c_str(), "wb");
    REQUIRE(stream != nullptr);
    REQUIRE(gzwrite(stream, bytes.data(), static_cast<unsigned>(bytes.size())) == static_cast<int>(bytes.size()));
    REQUIRE(gzclose(stream) == Z_OK);
    return file(name);
  }
};

/// `numbers` as 32-bit big-endian, then `data`.
std::string idx(const std::vector<std::uint32_t>& numbers, const std::string& data) {
  std::string bytes;
  for (const std::uint32_t number : numbers)
    for (const unsigned shift : {24U, 16U, 8U, 0U}) bytes += static_cast<char>(number >> shift & 0xFFU);
  return bytes + data;
}

std::string contents(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

constexpr std::uint32_t kImages = 0x803;
constexpr std::uint32_t kLabels = 0x801;

/// Three pictures of 2 x 3 whose bytes run from 7 * part on, and the labels 0, 1, 9.
std::string three_images(int part = 0) {
  std::string data;
  for (int i = 0; i < 18; ++i) data += static_cast<char>(7 * part + 14 * i);
  return idx({kImages, 3, 2, 3}, data);
}
std::string three_labels() {
  return idx({kLabels, 3}, std::string("\0\1\11", 3));
}

bool mentions(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("idx files come back byte for byte, plain and gzipped") {
  const Directory directory;
  for (const bool zipped : {false, true}) {
    INFO("gzip: " << zipped);
    const auto write = [&](const std::string& name, const std::string& bytes) {
      return zipped ? directory.write_gzip(name, bytes) : directory.write(name, bytes);
    };
    const std::string images = write("images", three_images());
    const std::string labels = write("labels", three_labels());
    const auto data = examples::read_idx(images, labels, 10);
    REQUIRE(data.ok());
    CHECK(data.value().shape == strata::Shape{1, 2, 3});
    CHECK(data.value().classes == 10);
    CHECK(data.value().labels == std::vector<std::uint8_t>{0, 1, 9});
    REQUIRE(data.value().pixels.size() == 18);
    for (std::size_t i = 0; i < 18; ++i) CHECK(data.value().pixels[i] == 14 * i);
    CHECK(data.value().check().ok());
  }
}

TEST_CASE("idx files larger than one read come back whole") {
  const Directory directory;
  const std::uint32_t count = 3000;
  std::string pixels;
  for (std::uint32_t i = 0; i < count * 28 * 28; ++i) pixels += static_cast<char>(i * 2654435761U >> 24U);
  const std::string images = directory.write_gzip("images", idx({kImages, count, 28, 28}, pixels));
  const std::string labels = directory.write_gzip("labels", idx({kLabels, count}, std::string(count, '\3')));
  const auto data = examples::read_idx(images, labels, 4);
  REQUIRE(data.ok());
  CHECK(std::string(data.value().pixels.begin(), data.value().pixels.end()) == pixels);
}

TEST_CASE("damaged idx files are refused with an error that names the file and the offset") {
  const Directory directory;
  const std::string good_images = three_images();
  const std::string good_labels = three_labels();
  const std::string no_data;
  const std::uint32_t huge = 0xFFFFFFFFU;
  struct Case {
    const char* name;
    std::string images, labels;
    bool images_at_fault;
    int offset;  ///< in what is unpacked
  };
  const std::vector<Case> cases = {
      {"empty images", "", good_labels, true, 0},
      {"images with half a header", good_images.substr(0, 9), good_labels, true, 9},
      {"images with a header only", good_images.substr(0, 16), good_labels, true, 16},
      {"images a byte short", good_images.substr(0, good_images.size() - 1), good_labels, true, 33},
      {"images a byte long", good_images + "x", good_labels, true, 34},
      {"images that are labels", good_labels, good_labels, true, 0},
      {"images of another element type", idx({0xD03, 3, 2, 3}, good_images.substr(16)), good_labels, true, 0},
      {"images with the byte order turned", std::string("\3\10\0\0", 4) + good_images.substr(4), good_labels, true, 0},
      {"more images than the file holds", idx({kImages, 4000, 1000, 1000}, good_images.substr(16)), good_labels, true,
       34},
      {"sizes beyond 4 GiB", idx({kImages, 70000, 300, 300}, no_data), good_labels, true, 12},
      {"sizes whose product overflows", idx({kImages, huge, huge, huge}, no_data), good_labels, true, 8},
      {"sizes whose product wraps to 0", idx({kImages, 1U << 31U, 1U << 31U, 4}, no_data), good_labels, true, 8},
      {"no images", idx({kImages, 0, 2, 3}, no_data), idx({kLabels, 0}, no_data), true, 4},
      {"no images of overflowing size", idx({kImages, 0, huge, huge}, no_data), idx({kLabels, 0}, no_data), true, 4},
      {"images without rows", idx({kImages, 3, 0, 3}, no_data), good_labels, true, 8},
      {"images without columns", idx({kImages, 3, 2, 0}, no_data), good_labels, true, 12},
      {"images without rows, overflowing columns", idx({kImages, huge, 0, huge}, no_data), good_labels, true, 8},
      {"empty labels", good_images, "", false, 0},
      {"labels that are images", good_images, good_images, false, 0},
      {"labels a byte short", good_images, good_labels.substr(0, good_labels.size() - 1), false, 10},
      {"labels a byte long", good_images, good_labels + "x", false, 11},
      {"fewer labels than images", good_images, idx({kLabels, 2}, std::string(2, '\0')), false, 4},
      {"more labels than images", good_images, idx({kLabels, 4}, std::string(4, '\0')), false, 4},
      {"a label beyond the classes", good_images, idx({kLabels, 3}, std::string("\0\12\1", 3)), false, 9},
  };
  for (const Case& each : cases)
    for (const bool zipped : {false, true}) {
      INFO(each.name << (zipped ? ", gzipped" : ", plain"));
      const auto write = [&](const std::string& name, const std::string& bytes) {
        return zipped ? directory.write_gzip(name, bytes) : directory.write(name, bytes);
      };
      const std::string images = write("images", each.images);
      const std::string labels = write("labels", each.labels);
      const auto data = examples::read_idx(images, labels, 10);
      REQUIRE(!data.ok());
      INFO(data.error().what());
      CHECK(data.error().where() ==
            (each.images_at_fault ? images : labels) + ", offset " + std::to_string(each.offset));
      CHECK(!data.error().expected().empty());
      CHECK(!data.error().found().empty());
    }
}

TEST_CASE("a gzip file cut short or damaged anywhere is refused") {
  const Directory directory;
  const std::string labels = directory.write("labels", three_labels());
  const std::string zipped = contents(directory.write_gzip("zipped", three_images()));
  for (std::size_t length = 0; length < zipped.size(); ++length) {
    INFO("cut to " << length << " of " << zipped.size());
    const auto data = examples::read_idx(directory.write("images", zipped.substr(0, length)), labels, 10);
    REQUIRE(!data.ok());
    CHECK(mentions(data.error().where(), directory.file("images") + ", offset "));
  }
  for (std::size_t i = zipped.size() - 8; i < zipped.size(); ++i) {  // checksum and length
    std::string damaged = zipped;
    damaged[i] = static_cast<char>(damaged[i] ^ 1);
    INFO("bit turned at " << i << " of " << zipped.size());
    CHECK(!examples::read_idx(directory.write("images", damaged), labels, 10).ok());
  }
}

TEST_CASE("files that are missing or directories are named") {
  const Directory directory;
  const std::string images = directory.write("images", three_images());
  const std::string missing = directory.file("missing");
  auto data = examples::read_idx(missing, images, 10);
  REQUIRE(!data.ok());
  CHECK(mentions(data.error().what(), missing));
  data = examples::read_idx(images, missing, 10);
  REQUIRE(!data.ok());
  CHECK(mentions(data.error().what(), missing));
  data = examples::read_idx(directory.path.string(), images, 10);
  REQUIRE(!data.ok());
  CHECK(mentions(data.error().what(), directory.path.string()));
}

TEST_CASE("a directory in MNIST's layout is read under each of its names") {
  for (const char* separator : {"-", "."})
    for (const bool zipped : {false, true}) {
      INFO("separator " << separator << ", gzip " << zipped);
      const Directory directory;
      const auto write = [&](const std::string& stem, const std::string& kind, const std::string& bytes) {
        const std::string name = stem + separator + kind;
        return zipped ? directory.write_gzip(name + ".gz", bytes) : directory.write(name, bytes);
      };
      write("train-images", "idx3-ubyte", three_images());
      write("train-labels", "idx1-ubyte", three_labels());
      write("t10k-images", "idx3-ubyte", three_images(1));
      write("t10k-labels", "idx1-ubyte", three_labels());
      const auto split = examples::read_mnist_directory(directory.path.string());
      REQUIRE(split.ok());
      const auto& [train, test] = split.value();
      CHECK(train.pixels[0] == 0);
      CHECK(test.pixels[0] == 7);
      // Of 0, 14, .. 238: mean 119, variance 14^2 (18^2 - 1) / 12.
      CHECK(std::abs(train.mean - 119 / 255.0) < 1e-9);
      CHECK(std::abs(train.deviation - 14 * std::sqrt(323 / 12.0) / 255) < 1e-9);
      CHECK(test.mean == train.mean);
      CHECK(test.deviation == train.deviation);
      CHECK(!examples::read_mnist_directory(directory.path.string(), 9).ok());
    }
}

TEST_CASE("a file missing from a directory is reported with all names that were looked for") {
  const std::vector<std::pair<std::string, std::string>> files = {{"train-images", "idx3-ubyte"},
                                                                  {"train-labels", "idx1-ubyte"},
                                                                  {"t10k-images", "idx3-ubyte"},
                                                                  {"t10k-labels", "idx1-ubyte"}};
  for (const auto& [missing_stem, missing_kind] : files) {
    INFO(missing_stem);
    const Directory directory;
    for (const auto& [stem, kind] : files)
      if (stem != missing_stem)
        directory.write(stem + "-" + kind, kind == "idx3-ubyte" ? three_images() : three_labels());
    const auto split = examples::read_mnist_directory(directory.path.string());
    REQUIRE(!split.ok());
    const std::string message = split.error().what();
    CHECK(mentions(message, directory.path.string()));
    for (const char* separator : {"-", "."}) {
      const std::string name = missing_stem + separator + missing_kind;
      CHECK(mentions(message, name + ".gz"));
      CHECK((mentions(message, name + ",") || mentions(message, name + " ") || mentions(message, name + ";")));
    }
  }
}

TEST_CASE("training and test pictures of two sizes are refused") {
  const Directory directory;
  directory.write("train-images-idx3-ubyte", three_images());
  directory.write("train-labels-idx1-ubyte", three_labels());
  directory.write("t10k-images-idx3-ubyte", idx({kImages, 3, 3, 2}, std::string(18, 'a')));
  directory.write("t10k-labels-idx1-ubyte", three_labels());
  const auto split = examples::read_mnist_directory(directory.path.string());
  REQUIRE(!split.ok());
  CHECK(split.error().where() == directory.file("t10k-images-idx3-ubyte") + ", offset 8");
  CHECK(mentions(split.error().found(), "3 x 2"));
}

TEST_CASE("Fashion-MNIST is read where Debian's package puts it", "[data]") {
  const char* const named = std::getenv("STRATA_FASHION_MNIST");
  const std::string directory = named != nullptr ? named : "/usr/share/datasets/fashion-mnist";
  if (!std::filesystem::is_directory(directory)) {
    WARN("no " << directory << ", left out");
    return;
  }
  const auto split = examples::read_mnist_directory(directory);
  REQUIRE(split.ok());
  CHECK(split.value().train.size() == 60000);
  CHECK(split.value().test.size() == 10000);
  CHECK(split.value().train.shape == strata::Shape{1, 28, 28});
  CHECK(std::abs(split.value().train.mean - 0.2860) < 5e-4);
  CHECK(std::abs(split.value().train.deviation - 0.3530) < 5e-4);
  std::array<int, 10> counts{};
  for (const std::uint8_t label : split.value().train.labels) ++counts[label];
  for (const int count : counts) CHECK(count == 6000);
}
