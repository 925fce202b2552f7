// Readers of pictures and of CIFAR-10: what was written comes back, and no damaged file gets through.
#include <array>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <random>
#include <span>
#include <string>
#include <unistd.h>
#include <vector>

#include "support/catch.hpp"
#include "support/cifar.hpp"
#include "support/picture.hpp"
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
#define STBI_WRITE_NO_STDIO
#include <stb/stb_image_write.h>

namespace {

using examples::Picture;
using strata::index_t;

struct Directory {
  inline static int made = 0;
  std::filesystem::path path = std::filesystem::temp_directory_path() /
                               ("strata_pictures_test" + std::to_string(::getpid()) + "_" + std::to_string(made++));
  Directory() { std::filesystem::create_directories(path); }
  ~Directory() { std::filesystem::remove_all(path); }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;

  [[nodiscard]] std::string text() const { return path.string(); }
  std::string write(const std::string& name, const std::string& bytes) const {
    std::filesystem::create_directories((path / name).parent_path());
    std::ofstream(path / name, std::ios::binary) << bytes;
    return (path / name).string();
  }
};

/// A picture whose every byte follows from its place.
Picture pattern(index_t height, index_t width, index_t channels) {
  Picture picture{{channels, height, width}, {}};
  for (index_t i = 0; i < picture.shape.size(); ++i)
    picture.pixels.push_back(static_cast<std::uint8_t>((i * 37 + i / 7 * 11) % 251));
  return picture;
}

void append(void* target, void* data, int size) {
  static_cast<std::string*>(target)->append(static_cast<const char*>(data), static_cast<std::size_t>(size));
}
std::string png(const Picture& picture) {
  std::string bytes;
  const strata::Shape& s = picture.shape;
  stbi_write_png_to_func(append, &bytes, static_cast<int>(s.width), static_cast<int>(s.height),
                         static_cast<int>(s.channels), picture.pixels.data(), static_cast<int>(s.width * s.channels));
  return bytes;
}
std::string jpeg(const Picture& picture) {
  std::string bytes;
  const strata::Shape& s = picture.shape;
  stbi_write_jpg_to_func(append, &bytes, static_cast<int>(s.width), static_cast<int>(s.height),
                         static_cast<int>(s.channels), picture.pixels.data(), 95);
  return bytes;
}
strata::Result<Picture> decode(const std::string& bytes, index_t channels = 3) {
  return examples::decode_picture(std::as_bytes(std::span(bytes)), channels);
}
bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string cifar_records(int count, int first_label = 0) {
  std::string bytes;
  for (int i = 0; i < count; ++i) {
    bytes += static_cast<char>((first_label + i) % 10);
    for (int p = 0; p < 3072; ++p) bytes += static_cast<char>((p + 3 * i) % 256);
  }
  return bytes;
}

}  // namespace

TEST_CASE("PNG comes back byte by byte, JPEG nearly") {
  for (const index_t channels : {1, 3})
    for (const auto& [height, width] : {std::pair<index_t, index_t>{1, 1}, {1, 9}, {17, 5}, {32, 32}}) {
      const Picture picture = pattern(height, width, channels);
      const auto found = decode(png(picture), channels);
      REQUIRE(found.ok());
      CHECK(found.value().shape == picture.shape);
      CHECK(found.value().pixels == picture.pixels);
    }
  Picture smooth{{3, 16, 16}, std::vector<std::uint8_t>(768, 90)};
  const auto found = decode(jpeg(smooth));
  REQUIRE(found.ok());
  for (const std::uint8_t pixel : found.value().pixels) CHECK(std::abs(pixel - 90) <= 2);
}

TEST_CASE("pictures that are cut off or no pictures are refused") {
  const std::string whole_png = png(pattern(20, 30, 3));
  for (std::size_t size = 0; size + 16 < whole_png.size(); ++size) CHECK_FALSE(decode(whole_png.substr(0, size)).ok());
  const std::string whole_jpeg = jpeg(pattern(20, 30, 3));
  for (std::size_t size = 0; size < whole_jpeg.size(); ++size) CHECK_FALSE(decode(whole_jpeg.substr(0, size)).ok());
  CHECK_FALSE(decode("GIF89a and more").ok());
  CHECK_FALSE(decode(std::string(100, '\0')).ok());

  // A header that claims more pixels than are allowed: nothing is allocated for it.
  std::string huge = whole_png;
  for (const std::size_t at : {16U, 20U}) huge.replace(at, 4, std::string("\0\xFF\0\0", 4));
  CHECK_FALSE(decode(huge).ok());

  Directory directory;
  const auto missing = examples::read_picture((directory.path / "none.jpg").string(), 3);
  REQUIRE_FALSE(missing.ok());
  CHECK(holds(missing.error().what(), "none.jpg"));
  const auto text = examples::read_picture(directory.write("text.jpg", "hello"), 3);
  REQUIRE_FALSE(text.ok());
  CHECK(holds(text.error().what(), "text.jpg"));
}

TEST_CASE("JPEG files that would mislead the decoder are refused") {
  const std::string whole = jpeg(pattern(20, 30, 3));
  const auto reason = [](const std::string& file) {
    const auto found = decode(file);
    return found.ok() ? std::string("read") : found.error().found();
  };
  const std::string end("\xFF\xD9", 2);
  REQUIRE(whole.ends_with(end));
  const std::string body = whole.substr(0, whole.size() - 2);
  // An end within a comment is none: what comes after it counts.
  const std::string comment = std::string("\xFF\xFE\0\x04", 4) + end;
  std::string codes("\xFF\xC4\x08\x0B\0", 5);  // a table of 8 x 255 codes
  for (int length = 1; length <= 16; ++length) codes += length > 8 ? '\xFF' : '\0';
  codes += std::string(2040, '\0');
  CHECK(reason(body + comment + end) == "read");
  CHECK(holds(reason(body + comment + codes + end), "more than 256 codes"));
  CHECK(holds(reason(body + comment), "no end"));
  // An end before any scan, and a frame whose tables the file does not have.
  CHECK(holds(reason(whole.substr(0, 2) + end + whole.substr(2)), "no picture"));
  for (const unsigned table : {0xC4U, 0xDBU}) {
    std::string without = whole.substr(0, 2);
    std::size_t at = 2;
    while (static_cast<unsigned char>(whole[at + 1]) != 0xDA) {
      const std::size_t length =
          static_cast<unsigned char>(whole[at + 2]) * 256U + static_cast<unsigned char>(whole[at + 3]);
      if (static_cast<unsigned char>(whole[at + 1]) != table) without += whole.substr(at, 2 + length);
      at += 2 + length;
    }
    CHECK(holds(reason(without + whole.substr(at)), "without its tables"));
  }
}

TEST_CASE("damaged pictures are refused or read, never more") {
  std::mt19937 random(11);
  for (const std::string& whole : {png(pattern(24, 24, 3)), jpeg(pattern(24, 24, 3))})
    for (int i = 0; i < 2000; ++i) {
      std::string bytes = whole;
      for (int change = 0; change < 1 + i % 4; ++change)
        bytes[random() % bytes.size()] = static_cast<char>(random() % 256);
      const auto found = decode(bytes);
      if (found) CHECK(static_cast<index_t>(found.value().pixels.size()) == found.value().shape.size());
    }
}

TEST_CASE("resizing keeps a picture of the same size and means when it shrinks") {
  const Picture picture = pattern(12, 10, 3);
  CHECK(examples::resize_and_crop(picture, 12, 10, 0, 0, 12, 10).pixels == picture.pixels);
  const Picture crop = examples::resize_and_crop(picture, 12, 10, 3, 4, 2, 5);
  for (index_t y = 0; y < 2; ++y)
    for (index_t x = 0; x < 15; ++x)
      CHECK(crop.pixels[static_cast<std::size_t>(y * 15 + x)] ==
            picture.pixels[static_cast<std::size_t>((y + 3) * 30 + 12 + x)]);

  const Picture flat{{1, 40, 70}, std::vector<std::uint8_t>(2800, 201)};
  for (const std::uint8_t pixel : examples::resize_and_crop(flat, 13, 91, 0, 0, 13, 91).pixels) CHECK(pixel == 201);

  // To half the size: weights 1/8, 3/8, 3/8, 1/8 (a triangle of two pixels to either side).
  const Picture line{{1, 1, 8}, {0, 80, 160, 240, 0, 80, 160, 240}};
  const Picture half = examples::resize_and_crop(line, 1, 4, 0, 0, 1, 4);
  CHECK(half.pixels[1] == std::lround((80.0 + 3 * 160 + 3 * 240 + 0) / 8));
  CHECK(half.pixels[2] == std::lround((240.0 + 0 + 3 * 80 + 160) / 8));
}

TEST_CASE("preparation crops the middle, normalises, and passes through metadata") {
  examples::Preparation preparation;
  const Picture white{{3, 50, 90}, std::vector<std::uint8_t>(13500, 255)};
  const auto input = preparation(white, {3, 24, 24});
  REQUIRE(input.size() == 1728);
  CHECK(std::abs(input.front() - (1 - 0.485) / 0.229) < 1e-5);
  CHECK(std::abs(input.back() - (1 - 0.406) / 0.225) < 1e-5);
  // The longest of thin pictures needs no more memory than the crop.
  CHECK(preparation(Picture{{3, 1, 20000}, std::vector<std::uint8_t>(60000, 9)}, {3, 224, 224}).size() == 150528);

  std::map<std::string, std::string> metadata;
  preparation.mean = {0.5};
  preparation.deviation = {0.25};
  preparation.shorter_side = 32;
  preparation.store(metadata);
  const auto found = examples::Preparation::from(metadata, 1);
  REQUIRE(found.ok());
  CHECK(found.value().mean == preparation.mean);
  CHECK(found.value().deviation == preparation.deviation);
  CHECK(found.value().shorter_side == 32);
  CHECK_FALSE(examples::Preparation::from(metadata, 3).ok());
  CHECK_FALSE(examples::Preparation::from({}, 1).ok());  // the defaults are for three channels
  for (const auto& [key, value] : {std::pair("picture.mean", "nan"), std::pair("picture.mean", ""),
                                   std::pair("picture.mean", "0.5 "), std::pair("picture.deviation", "0"),
                                   std::pair("picture.shorter_side", "1e9"), std::pair("picture.shorter_side", "-3")}) {
    auto bad = metadata;
    bad[key] = value;
    CHECK_FALSE(examples::Preparation::from(bad, 1).ok());
  }
}

TEST_CASE("CIFAR-10's binary batches are read in order") {
  Directory directory;
  directory.write("data_batch_2.bin", cifar_records(3, 5));
  directory.write("data_batch_1.bin", cifar_records(3));
  directory.write("test_batch.bin", cifar_records(2));
  directory.write("readme.html", "passed over");
  const auto found = examples::read_cifar(directory.text());
  REQUIRE(found.ok());
  const auto& train = found.value().split.train;
  CHECK(train.shape == strata::Shape{3, 32, 32});
  CHECK(train.labels == std::vector<std::uint8_t>{0, 1, 2, 5, 6, 7});
  CHECK(found.value().split.test.size() == 2);
  CHECK(train.pixels[0] == 0);
  CHECK(train.pixels[3072 + 1] == 4);
  CHECK(train.deviation > 0);
  CHECK(found.value().split.test.mean == train.mean);
  CHECK(found.value().names.at(9) == "truck");
  CHECK(examples::is_cifar10(found.value().names));

  // Crops and flips follow from the seed alone.
  const std::vector<std::uint32_t> indices = {0, 3, 5};
  std::vector<float> a;
  std::vector<float> b;
  std::vector<std::uint8_t> labels;
  for (auto* target : {&a, &b}) {
    std::mt19937_64 random(9);
    train.batch(indices.data(), 3, *target, labels, &random, {.shift = 4, .flip = true});
  }
  CHECK(a == b);
}

TEST_CASE("damaged CIFAR-10 batches are refused with file and offset") {
  const auto error_of = [](const std::string& training, const std::string& test) {
    Directory directory;
    directory.write("data_batch_1.bin", training);
    if (!test.empty()) directory.write("test_batch.bin", test);
    const auto found = examples::read_cifar(directory.text());
    REQUIRE_FALSE(found.ok());
    return std::string(found.error().what());
  };
  const std::string good = cifar_records(2);
  CHECK(holds(error_of(good.substr(0, 6000), good), "data_batch_1.bin, offset 3073: expected a record of 3073 bytes"));
  CHECK(holds(error_of(good, good + "x"), "test_batch.bin, offset 6146"));
  std::string label = good;
  label[3073] = 10;
  CHECK(holds(error_of(label, good), "data_batch_1.bin, offset 3073: expected a label below 10, found 10"));
  CHECK(holds(error_of("", good), "empty file"));
  CHECK(holds(error_of(good, ""), "test_batch.bin"));
  Directory empty;
  CHECK_FALSE(examples::read_cifar(empty.text()).ok());
  CHECK_FALSE(examples::read_cifar(empty.text() + "/none").ok());
}

TEST_CASE("CIFAR-10 batches are read in the order of their numbers, none of which may be missing") {
  Directory directory;
  for (int number = 1; number <= 11; ++number)
    directory.write("data_batch_" + std::to_string(number) + ".bin", cifar_records(1, number % 10));
  directory.write("test_batch.bin", cifar_records(2));
  directory.write("batches.meta.txt", "a\r\nb\r\nc\r\nd\r\ne\r\nf\r\ng\r\nh\r\ni\r\nj\r\n\r\n");
  const auto found = examples::read_cifar(directory.text());
  REQUIRE(found.ok());
  CHECK(found.value().split.train.labels == std::vector<std::uint8_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1});
  CHECK(found.value().names == std::vector<std::string>{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"});
  CHECK_FALSE(examples::is_cifar10(found.value().names));

  const auto error = [&] {
    const auto result = examples::read_cifar(directory.text());
    REQUIRE_FALSE(result.ok());
    return std::string(result.error().what());
  };
  for (const char* name : {"data_batch_0.bin", "data_batch_01.bin", "data_batch_1 (copy).bin", "data_batch_.bin",
                           "data_batch_-3.bin", "data_batch_99999999999.bin"}) {
    const std::string path = directory.write(name, cifar_records(1));
    CHECK(holds(error(), path));
    std::filesystem::remove(path);
  }
  std::filesystem::remove(directory.path / "data_batch_7.bin");
  std::filesystem::remove(directory.path / "data_batch_4.bin");
  CHECK(holds(error(), "data_batch_4.bin: expected a batch, since there is data_batch_5.bin, found none"));
  std::filesystem::remove(directory.path / "data_batch_1.bin");
  CHECK(holds(error(), "data_batch_1.bin: expected a batch, since there is data_batch_2.bin, found none"));
}

TEST_CASE("CIFAR-10 batches that end between two records are refused by the size of the others") {
  const auto error_of = [](const std::vector<int>& records, std::size_t test_bytes) {
    Directory directory;
    for (std::size_t i = 0; i < records.size(); ++i)
      directory.write("data_batch_" + std::to_string(i + 1) + ".bin",
                      std::string(static_cast<std::size_t>(records[i]) * 3073, '\0'));
    directory.write("test_batch.bin", std::string(test_bytes, '\0'));
    const auto found = examples::read_cifar(directory.text());
    return found.ok() ? std::string("read") : std::string(found.error().what());
  };
  CHECK(error_of({3, 3, 3}, 3073) == "read");
  CHECK(holds(error_of({3, 2, 3}, 3073),
              "data_batch_2.bin, offset 6146: expected 3 records, as many as in data_batch_1.bin, found 2"));
  CHECK(holds(error_of({2, 3, 3}, 3073), "data_batch_1.bin, offset 6146: expected 3 records"));
  CHECK(holds(error_of({3, 3, 1}, 3073), "data_batch_3.bin, offset 3073: expected 3 records"));
  // CIFAR-10's own batches come with a test batch of the same size.
  CHECK(holds(error_of({10000}, 2 * 3073),
              "test_batch.bin, offset 6146: expected 10000 records, as many as in each training batch, found 2"));
}

TEST_CASE("folders of pictures per class are read, and refused by the file that is wrong") {
  Directory directory;
  const Picture picture = pattern(8, 6, 3);
  for (const char* part : {"train", "test"})
    for (const char* name : {"cat", "ant"}) directory.write(std::string(part) + "/" + name + "/1.png", png(picture));
  const auto found = examples::read_cifar(directory.text());
  REQUIRE(found.ok());
  CHECK(found.value().names == std::vector<std::string>{"ant", "cat"});
  CHECK_FALSE(examples::is_cifar10(found.value().names));
  CHECK(found.value().split.train.labels == std::vector<std::uint8_t>{0, 1});
  CHECK(found.value().split.train.shape == strata::Shape{3, 8, 6});
  CHECK(found.value().split.train.pixels[48 + 5] == picture.pixels[3 * 5 + 1]);  // green lies behind red

  const auto error_with = [&](const std::string& name, const std::string& bytes) {
    const std::string path = directory.write(name, bytes);
    const auto result = examples::read_cifar(directory.text());
    std::filesystem::remove(path);
    REQUIRE_FALSE(result.ok());
    return std::string(result.error().what());
  };
  CHECK(holds(error_with("train/cat/2.png", "no picture"), "train/cat/2.png"));
  CHECK(holds(error_with("test/cat/2.png", png(pattern(8, 7, 3))), "test/cat/2.png: expected 3 x 8 x 6"));
  CHECK(holds(error_with("train/dog/1.png", png(picture)), "folders of other names"));

  // CIFAR-10 in folders is known by the names of its classes.
  Directory cifar;
  for (const char* part : {"train", "test"})
    for (const auto name : examples::cifar10_classes)
      cifar.write(std::string(part) + "/" + std::string(name) + "/1.png", png(picture));
  const auto known = examples::read_cifar(cifar.text());
  REQUIRE(known.ok());
  CHECK(examples::is_cifar10(known.value().names));
}
