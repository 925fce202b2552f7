// Pictures in memory: what a dataset refuses, normalisation, slices, batches with shifts and flips, and the order of an
// epoch.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include <strata/train/data.hpp>
#include <strata/train/fingerprint.hpp>

#include "support/catch.hpp"

namespace {

using strata::index_t;
using strata::Shape;
using strata::train::Dataset;

/// `count` pictures whose bytes count up from 1 and never are 0, and labels in turn.
Dataset pictures(index_t count, Shape shape, index_t classes) {
  Dataset data;
  data.shape = shape;
  data.classes = classes;
  for (index_t i = 0; i < count * shape.size(); ++i) data.pixels.push_back(static_cast<std::uint8_t>(1 + i % 255));
  for (index_t i = 0; i < count; ++i) data.labels.push_back(static_cast<std::uint8_t>(i % classes));
  return data;
}

/// The picture `index` moved down by `dy` and right by `dx`, after mirroring if `mirrored`; black comes in.
std::vector<float> moved(const Dataset& data, index_t index, index_t dy, index_t dx, bool mirrored) {
  const Shape s = data.shape;
  std::vector<float> result;
  for (index_t c = 0; c < s.channels; ++c)
    for (index_t y = 0; y < s.height; ++y)
      for (index_t x = 0; x < s.width; ++x) {
        const index_t sy = y - dy;
        const index_t sx = mirrored ? s.width - 1 - (x - dx) : x - dx;
        const bool inside = sy >= 0 && sy < s.height && x - dx >= 0 && x - dx < s.width;
        const int pixel =
            inside ? data.pixels[static_cast<std::size_t>(((index * s.channels + c) * s.height + sy) * s.width + sx)]
                   : 0;
        result.push_back(static_cast<float>((pixel / 255.0 - data.mean_of(c)) / data.deviation_of(c)));
      }
  return result;
}

bool close(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!(std::abs(a[i] - b[i]) < 1e-5F)) return false;
  return true;
}

}  // namespace

TEST_CASE("a dataset is checked for pictures, pixels and labels that fit together") {
  const Dataset good = pictures(5, {3, 4, 2}, 3);
  CHECK(good.size() == 5);
  CHECK(good.check().ok());
  CHECK(Dataset().check().error().found() == "none");
  Dataset data = good;
  data.pixels.pop_back();
  CHECK(data.check().error().expected() == "120 pixels");
  CHECK(data.check().error().found() == "119");
  data = good;
  data.pixels.resize(121);
  CHECK_FALSE(data.check().ok());
  data = good;
  data.labels[4] = 2;
  CHECK(data.check().ok());
  data.labels[4] = 3;
  CHECK(data.check().error().expected() == "labels below 3");
  CHECK(data.check().error().found() == "3");
  data = good;
  data.classes = 0;
  CHECK_FALSE(data.check().ok());
  data.shape = {};
  CHECK(data.check().error().expected() == "a shape of at least 1 x 1 x 1");
  data = good;
  data.mean = std::numeric_limits<double>::infinity();
  CHECK(data.check().error().expected() == "a finite mean");
  for (const double deviation : {0.0, -1.0, std::numeric_limits<double>::quiet_NaN()}) {
    data = good;
    data.deviation = deviation;
    CHECK(data.check().error().expected() == "a finite deviation above 0");
  }
  data = good;
  data.classes = 256;
  data.labels[0] = 255;
  CHECK(data.check().ok());
  data.classes = 257;
  CHECK(data.check().error().expected() == "1 to 256 classes");
}

TEST_CASE("normalised pixels have mean zero and deviation one") {
  for (const Shape& shape : {Shape{1, 1, 1}, Shape{1, 7, 9}, Shape{3, 8, 5}})
    for (const index_t count : {2, 9}) {
      INFO(count << " pictures of " << shape.channels << " x " << shape.height << " x " << shape.width);
      Dataset data = pictures(count, shape, 2);
      data.normalise();
      std::vector<std::uint32_t> all(static_cast<std::size_t>(count));
      std::iota(all.begin(), all.end(), 0U);
      std::vector<float> batch;
      std::vector<std::uint8_t> labels;
      data.batch(all.data(), count, batch, labels);
      double sum = 0;
      double squares = 0;
      for (const float value : batch) {
        sum += static_cast<double>(value);
        squares += static_cast<double>(value) * static_cast<double>(value);
      }
      const auto n = static_cast<double>(batch.size());
      CHECK(std::abs(sum / n) < 1e-5);
      CHECK(std::abs(squares / n - 1) < 1e-4);
    }
}

TEST_CASE("normalising pictures of one colour keeps every number finite") {
  for (const int colour : {0, 7, 255}) {
    INFO("colour " << colour);
    Dataset data = pictures(3, {1, 4, 4}, 1);
    std::fill(data.pixels.begin(), data.pixels.end(), static_cast<std::uint8_t>(colour));
    data.normalise();
    CHECK(std::abs(data.mean - colour / 255.0) < 1e-12);
    CHECK(data.deviation > 0);
    const std::uint32_t index = 1;
    std::vector<float> batch;
    std::vector<std::uint8_t> labels;
    data.batch(&index, 1, batch, labels);
    for (const float value : batch) CHECK(std::abs(value) < 1e-3F);
  }
}

TEST_CASE("a slice holds its pictures, labels and the normalisation of the whole") {
  Dataset data = pictures(10, {2, 3, 4}, 4);
  data.normalise();
  for (const auto& [first, last] : {std::pair<index_t, index_t>{0, 10}, {0, 1}, {3, 7}, {9, 10}, {4, 4}, {10, 10}}) {
    INFO("pictures " << first << " to " << last);
    const Dataset part = data.slice(first, last);
    REQUIRE(part.size() == last - first);
    CHECK(part.check().ok() == (last > first));
    CHECK(part.shape == data.shape);
    CHECK(part.classes == 4);
    CHECK(part.mean == data.mean);
    CHECK(part.deviation == data.deviation);
    for (index_t i = 0; i < part.size(); ++i) {
      CHECK(part.labels[static_cast<std::size_t>(i)] == data.labels[static_cast<std::size_t>(first + i)]);
      CHECK(moved(part, i, 0, 0, false) == moved(data, first + i, 0, 0, false));
    }
  }
}

TEST_CASE("channels are normalised apart if the data say so") {
  Dataset data = pictures(4, {3, 4, 5}, 2);
  data.mean = 0.9;
  data.deviation = 7;
  data.channel_means = {0.485, 0.456, 0.406};
  CHECK(data.check().ok());
  CHECK(data.deviation_of(2) == 7);
  data.channel_deviations = {0.229, 0.224, 0.225};
  REQUIRE(data.check().ok());
  const std::vector<std::uint32_t> indices = {2, 0};
  std::vector<float> batch;
  std::vector<std::uint8_t> labels;
  data.batch(indices.data(), 2, batch, labels);
  std::vector<float> expected;
  for (const index_t index : {2, 0})
    for (const float value : moved(data, index, 0, 0, false)) expected.push_back(value);
  CHECK(batch == expected);
  CHECK(close({batch[20]}, {static_cast<float>((data.pixels[2 * 60 + 20] / 255.0 - 0.456) / 0.224)}));
  CHECK(moved(data.slice(1, 3), 1, 0, 0, false) == moved(data, 2, 0, 0, false));
  // What a shift brings in is black in every channel.
  std::mt19937_64 random(3);
  const std::uint32_t first = 0;
  bool found = false;
  for (int i = 0; i < 20 && !found; ++i) {
    data.batch(&first, 1, batch, labels, &random, {.shift = 1});
    for (const index_t dy : {-1, 0, 1})
      for (const index_t dx : {-1, 0, 1})
        found = found || ((dx != 0 || dy != 0) && close(batch, moved(data, 0, dy, dx, false)));
  }
  CHECK(found);

  Dataset other = data;
  other.normalise();
  CHECK(other.channel_means.empty());
  CHECK(other.channel_deviations.empty());
  other = data;
  other.channel_means.pop_back();
  CHECK(other.check().error().expected() == "a mean and a deviation for each of 3 channels, or none");
  CHECK(other.check().error().found() == "2 and 3");
  CHECK_THROWS_AS(other.batch(&first, 1, batch, labels), strata::Error);
  other = data;
  other.channel_deviations[0] = 0;
  CHECK(other.check().error().expected() == "a finite deviation above 0");
  other = data;
  other.channel_means[2] = std::numeric_limits<double>::quiet_NaN();
  CHECK(other.check().error().expected() == "a finite mean");
}

TEST_CASE("a fingerprint follows from numbers and their order, and stays what checkpoints hold") {
  strata::train::Fingerprint one;
  CHECK(one.value() == 1469598103934665603U);
  one.add(std::uint8_t{7});
  CHECK(one.value() == (1469598103934665603U ^ 7U) * 1099511628211U);
  const std::vector<std::uint8_t> numbers = {7, 0, 255};
  strata::train::Fingerprint all, bytes, other;
  all.add_all(numbers);
  bytes.add_bytes(numbers.data(), 3);
  other.add_all(std::vector<std::uint8_t>{0, 7, 255});
  CHECK(all.text() == bytes.text());
  CHECK(all.value() != other.value());
  CHECK(all.value() != one.value());
}

TEST_CASE("a slice beyond the pictures is an error") {
  const Dataset data = pictures(10, {2, 3, 4}, 4);
  for (const auto& [first, last] : {std::pair<index_t, index_t>{0, 11}, {-1, 5}, {6, 5}, {11, 12}})
    CHECK_THROWS_WITH(data.slice(first, last), "slice of a dataset: expected a range within 0 to 10, found " +
                                                   std::to_string(first) + " to " + std::to_string(last));
}

TEST_CASE("a batch holds the pictures and labels asked for, in that order and as often") {
  Dataset data = pictures(7, {3, 4, 5}, 5);
  data.mean = 0.25;
  data.deviation = 0.5;
  std::vector<float> batch(3, -1.0F);  // of another size before
  std::vector<std::uint8_t> labels(100);
  for (const std::vector<std::uint32_t>& indices :
       {std::vector<std::uint32_t>{}, {0}, {6}, {3, 3, 1}, {6, 5, 4, 3, 2, 1, 0, 0}}) {
    INFO(indices.size() << " pictures");
    // Variations are for random batches only.
    data.batch(indices.data(), static_cast<index_t>(indices.size()), batch, labels, nullptr,
               {.shift = 2, .flip = true, .hole = 2});
    REQUIRE(labels.size() == indices.size());
    std::vector<float> expected;
    for (std::size_t i = 0; i < indices.size(); ++i) {
      CHECK(labels[i] == data.labels[indices[i]]);
      const auto picture = moved(data, indices[i], 0, 0, false);
      expected.insert(expected.end(), picture.begin(), picture.end());
    }
    CHECK(close(batch, expected));
  }
  const std::uint32_t behind[] = {0, 7};
  CHECK_THROWS_WITH(data.batch(behind, 2, batch, labels), "batch of a dataset: expected pictures 0 to 6, found 7");
  CHECK_NOTHROW(data.batch(behind, 1, batch, labels));
}

TEST_CASE("random batches are shifts and flips of their pictures, and all of those occur") {
  for (const Shape& shape : {Shape{1, 5, 6}, Shape{3, 4, 4}, Shape{1, 7, 1}, Shape{2, 2, 3}})
    for (const index_t shift : {0, 1, 3})
      for (const bool flip : {false, true}) {
        INFO(shape.channels << " x " << shape.height << " x " << shape.width << " shift " << shift << " flip " << flip);
        Dataset data = pictures(4, shape, 3);
        data.normalise();
        std::mt19937_64 random(5);
        std::set<std::vector<float>> expected[4];
        for (index_t picture = 0; picture < 4; ++picture)
          for (index_t dy = -shift; dy <= shift; ++dy)
            for (index_t dx = -shift; dx <= shift; ++dx)
              for (const bool mirrored : {false, true})
                if (!mirrored || flip) expected[picture].insert(moved(data, picture, dy, dx, mirrored));
        std::set<std::vector<float>> seen[4];
        std::vector<float> batch;
        std::vector<std::uint8_t> labels;
        const std::vector<std::uint32_t> indices = {2, 0, 3, 1};
        bool known = true;
        for (int round = 0; round < 1500; ++round) {
          data.batch(indices.data(), 4, batch, labels, &random, {.shift = shift, .flip = flip});
          for (std::size_t i = 0; i < 4; ++i) {
            const auto start = batch.begin() + static_cast<index_t>(i) * shape.size();
            const std::vector<float> picture(start, start + shape.size());
            known = known && expected[indices[i]].contains(picture);
            known = known && labels[i] == data.labels[indices[i]];
            seen[indices[i]].insert(picture);
          }
        }
        CHECK(known);
        for (std::size_t picture = 0; picture < 4; ++picture) CHECK(seen[picture].size() == expected[picture].size());
      }
}

TEST_CASE("a hole is a square of the mean with its centre anywhere in the picture") {
  for (const Shape& shape : {Shape{1, 5, 6}, Shape{3, 4, 4}, Shape{1, 7, 1}, Shape{2, 2, 3}})
    for (const index_t hole : {1, 2, 3, 9}) {
      INFO(shape.channels << " x " << shape.height << " x " << shape.width << " hole " << hole);
      Dataset data = pictures(1, shape, 2);
      data.normalise();
      const std::vector<float> whole = moved(data, 0, 0, 0, false);
      std::set<std::vector<float>> expected;
      for (index_t row = 0; row < shape.height; ++row)
        for (index_t column = 0; column < shape.width; ++column) {
          std::vector<float> cut = whole;
          for (index_t c = 0; c < shape.channels; ++c)
            for (index_t y = 0; y < shape.height; ++y)
              for (index_t x = 0; x < shape.width; ++x)
                if (y >= row - hole / 2 && y < row - hole / 2 + hole && x >= column - hole / 2 &&
                    x < column - hole / 2 + hole)
                  cut[static_cast<std::size_t>((c * shape.height + y) * shape.width + x)] = 0;
          expected.insert(cut);
        }
      std::set<std::vector<float>> seen;
      std::mt19937_64 random(7);
      std::vector<float> batch;
      std::vector<std::uint8_t> labels;
      const std::uint32_t index = 0;
      for (int round = 0; round < 1000; ++round) {
        data.batch(&index, 1, batch, labels, &random, {.hole = hole});
        seen.insert(batch);
      }
      CHECK(seen == expected);
    }
}

TEST_CASE("random batches follow from the state of their generator") {
  const Dataset data = pictures(6, {1, 6, 6}, 2);
  const std::vector<std::uint32_t> indices = {0, 1, 2, 3, 4, 5};
  std::vector<float> first, second, other;
  std::vector<std::uint8_t> labels;
  std::mt19937_64 a(1);
  std::mt19937_64 b(1);
  std::mt19937_64 c(2);
  data.batch(indices.data(), 6, first, labels, &a, {.shift = 2, .flip = true, .hole = 3});
  data.batch(indices.data(), 6, second, labels, &b, {.shift = 2, .flip = true, .hole = 3});
  data.batch(indices.data(), 6, other, labels, &c, {.shift = 2, .flip = true, .hole = 3});
  CHECK(first == second);
  CHECK(first != other);
}

TEST_CASE("the order of an epoch is a permutation that follows from seed and epoch") {
  std::vector<std::vector<std::uint32_t>> orders;
  for (const index_t size : {0, 1, 2, 3, 10, 257, 5000})
    for (const std::uint64_t seed : {0ULL, 1ULL, 42ULL, ~0ULL})
      for (const std::uint64_t epoch : {0ULL, 1ULL, 2ULL, 99ULL}) {
        INFO("size " << size << " seed " << seed << " epoch " << epoch);
        const auto order = strata::train::shuffled(size, seed, epoch);
        CHECK(strata::train::shuffled(size, seed, epoch) == order);
        auto sorted = order;
        std::sort(sorted.begin(), sorted.end());
        std::vector<std::uint32_t> expected(static_cast<std::size_t>(size));
        std::iota(expected.begin(), expected.end(), 0U);
        CHECK(sorted == expected);
        if (size == 257) {
          for (const auto& earlier : orders) CHECK(earlier != order);
          orders.push_back(order);
        }
      }
}

TEST_CASE("every order of three comes up about equally often") {
  int counts[27] = {};
  for (std::uint64_t epoch = 0; epoch < 6000; ++epoch) {
    const auto order = strata::train::shuffled(3, 7, epoch);
    ++counts[order[0] * 9 + order[1] * 3 + order[2]];
  }
  int orders = 0;
  for (const int count : counts) {
    if (count == 0) continue;
    ++orders;
    CHECK(count > 850);
    CHECK(count < 1150);
  }
  CHECK(orders == 6);
}
