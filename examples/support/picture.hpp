// JPEG and PNG pictures as a network's input: decoding (stb_image), resizing, the centre crop and normalisation of
// torchvision's usual transforms. Files are not trusted. Programs link the library `stb_image` of this directory.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#define STBI_NO_STDIO
#include <stb/stb_image.h>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/io/mapped_file.hpp>

namespace examples {

using strata::index_t;

/// Bytes [row][column][channel].
struct Picture {
  strata::Shape shape;
  std::vector<std::uint8_t> pixels;
};

namespace detail {

/// What is wrong with a JPEG file that the decoder would not notice, or null: Huffman tables of more than 256 codes,
/// beyond which it writes; scans that name tables the file does not have, for which it takes what its memory holds; no
/// scan; a missing end, which it fills up with grey.
[[nodiscard]] inline const char* jpeg_fault(std::span<const std::byte> file) {
  const auto byte = [&](std::size_t at) { return at < file.size() ? std::to_integer<std::size_t>(file[at]) : 0; };
  std::array<std::array<bool, 4>, 2> huffman{};  // by class (DC, AC) and number
  std::array<bool, 4> quantisation{};
  std::array<std::size_t, 256> quantisation_of{};  // by component; 4: no such component
  quantisation_of.fill(4);
  bool progressive = false;
  bool scan_seen = false;
  if (byte(0) != 0xFF || byte(1) != 0xD8) return "no start";
  for (std::size_t at = 2; at + 1 < file.size();) {
    const std::size_t marker = byte(at + 1);
    if (byte(at) != 0xFF || marker == 0xFF) {  // the data of a scan, or padding
      ++at;
      continue;
    }
    if (marker == 0xD9) return scan_seen ? nullptr : "no picture";
    if (marker == 0 || (marker >= 0xD0 && marker <= 0xD8)) {  // within the data of a scan
      at += 2;
      continue;
    }
    const std::size_t length = byte(at + 2) << 8U | byte(at + 3);
    const std::size_t next = at + 2 + length;
    if (length < 2 || next > file.size()) return "a segment of a wrong length";
    std::size_t in = at + 4;
    if (marker == 0xC4) {
      while (in < next) {
        const std::size_t table = byte(in);
        std::size_t codes = 0;
        for (std::size_t i = 1; i <= 16; ++i) codes += byte(in + i);
        if (codes > 256) return "a Huffman table of more than 256 codes";
        if (table >> 4U > 1 || (table & 15U) > 3) return "a Huffman table of another kind";
        huffman[table >> 4U][table & 15U] = true;
        in += 17 + codes;
      }
      if (in != next) return "a Huffman table of a wrong length";
    } else if (marker == 0xDB) {
      while (in < next) {
        if ((byte(in) & 15U) > 3) return "a quantisation table of another kind";
        quantisation[byte(in) & 15U] = true;
        in += byte(in) >> 4U == 0 ? 65 : 129;
      }
      if (in != next) return "a quantisation table of a wrong length";
    } else if (marker >= 0xC0 && marker <= 0xC2) {
      progressive = marker == 0xC2;
      for (std::size_t i = 0; i < byte(at + 9); ++i) {
        const std::size_t number = byte(at + 12 + 3 * i);
        if (number > 3) return "a quantisation table of another kind";
        quantisation_of[byte(at + 10 + 3 * i)] = number;
      }
    } else if (marker == 0xDA) {
      const std::size_t components = byte(in);
      const std::size_t first = byte(in + 1 + 2 * components);        // coefficient, of progressive scans
      const bool refines = byte(in + 3 + 2 * components) >> 4U != 0;  // DC coefficients by bits without a code
      for (std::size_t i = 0; i < components; ++i) {
        const std::size_t number = quantisation_of[byte(in + 1 + 2 * i)];
        const std::size_t tables = byte(in + 2 + 2 * i);
        if (number > 3 || tables >> 4U > 3 || (tables & 15U) > 3) return "a scan of a component that is not there";
        const bool dc = progressive ? first == 0 && !refines : true;
        const bool ac = progressive ? first != 0 : true;
        if (!quantisation[number] || (dc && !huffman[0][tables >> 4U]) || (ac && !huffman[1][tables & 15U]))
          return "a scan without its tables";
      }
      scan_seen = true;
    }
    at = next;
  }
  return "no end";
}

}  // namespace detail

/// The most pixels that a file may claim: 64 million, 192 MB of colour.
inline constexpr std::int64_t max_picture_pixels = std::int64_t{1} << 26;

/// Decodes a JPEG or PNG file in memory to `channels` (1: grey, 3: red, green, blue). Errors: any other or damaged
/// file, one that is cut off, more than `max_picture_pixels`.
[[nodiscard]] inline strata::Result<Picture> decode_picture(std::span<const std::byte> file, index_t channels) {
  const auto* data = reinterpret_cast<const stbi_uc*>(file.data());
  constexpr std::size_t most = std::size_t{1} << 30U;
  if (file.empty() || file.size() > most)
    return strata::Error("picture", "1 byte to 1 GiB", std::to_string(file.size()) + " bytes");
  const auto size = static_cast<int>(file.size());
  if (data[0] == 0xFF)
    if (const char* fault = detail::jpeg_fault(file))
      return strata::Error("picture", "a whole JPEG file",
                           std::string(fault) + " within " + std::to_string(size) + " bytes");
  int width = 0;
  int height = 0;
  int stored = 0;
  const auto reason = [] { return std::string(stbi_failure_reason() == nullptr ? "" : stbi_failure_reason()); };
  if (stbi_info_from_memory(data, size, &width, &height, &stored) == 0)
    return strata::Error("picture", "a JPEG or PNG file", "another or a damaged one (" + reason() + ")");
  if (width < 1 || height < 1 || std::int64_t{width} * height > max_picture_pixels)
    return strata::Error("picture", "1 to " + std::to_string(max_picture_pixels) + " pixels",
                         std::to_string(height) + " x " + std::to_string(width));
  const std::unique_ptr<stbi_uc, void (*)(void*)> pixels(
      stbi_load_from_memory(data, size, &width, &height, &stored, static_cast<int>(channels)), stbi_image_free);
  if (!pixels) return strata::Error("picture", "a whole JPEG or PNG file", "a damaged one (" + reason() + ")");
  Picture picture{{channels, height, width}, {}};
  picture.pixels.assign(pixels.get(), pixels.get() + picture.shape.size());
  return picture;
}

/// `decode_picture` of a file. Errors name the file.
[[nodiscard]] inline strata::Result<Picture> read_picture(const std::string& path, index_t channels) {
  auto file = strata::io::MappedFile::open(path);
  if (!file) return file.error();
  auto picture = decode_picture(file.value()->bytes(), channels);
  if (!picture) return picture.error().within(path);
  return picture;
}

namespace detail {

/// One line of pixels in, one out: for each output the first input and the weights of those that it is a mean of.
struct Resampling {
  std::vector<index_t> first;
  std::vector<std::vector<float>> weights;
};

/// Outputs begin .. end-1 of a line of `in` pixels resized to `out`: a triangle as wide as the scale, so that shrinking
/// does not alias (what PIL's and torchvision's antialiased bilinear resizing do).
[[nodiscard]] inline Resampling triangle(index_t in, index_t out, index_t begin, index_t end) {
  Resampling result;
  const double scale = static_cast<double>(in) / static_cast<double>(out);
  const double support = std::max(scale, 1.0);
  for (index_t i = begin; i < end; ++i) {
    const double centre = (static_cast<double>(i) + 0.5) * scale;
    const auto from = static_cast<index_t>(std::max(0.0, std::floor(centre - support + 0.5)));
    const auto to = std::min(in, static_cast<index_t>(std::floor(centre + support + 0.5)));
    std::vector<float> weights;
    double sum = 0;
    for (index_t x = from; x < to; ++x) {
      const double weight = std::max(0.0, 1 - std::abs(static_cast<double>(x) - centre + 0.5) / support);
      weights.push_back(static_cast<float>(weight));
      sum += weight;
    }
    for (float& weight : weights) weight /= static_cast<float>(sum);
    result.first.push_back(from);
    result.weights.push_back(std::move(weights));
  }
  return result;
}

[[nodiscard]] inline std::uint8_t rounded(float value) {
  return static_cast<std::uint8_t>(std::clamp(value + 0.5F, 0.0F, 255.0F));
}

}  // namespace detail

/// The height x width rectangle at (top, left) of `picture` resized to `whole_height` x `whole_width`. Only that
/// rectangle is computed, whatever the size of the whole. Precondition: it lies inside.
[[nodiscard]] inline Picture resize_and_crop(const Picture& picture, index_t whole_height, index_t whole_width,
                                             index_t top, index_t left, index_t height, index_t width) {
  const index_t channels = picture.shape.channels;
  const auto rows = detail::triangle(picture.shape.height, whole_height, top, top + height);
  const auto columns = detail::triangle(picture.shape.width, whole_width, left, left + width);
  const index_t first_row = rows.first.front();
  const index_t last_row = rows.first.back() + static_cast<index_t>(rows.weights.back().size());
  std::vector<std::uint8_t> narrow(static_cast<std::size_t>((last_row - first_row) * width * channels));
  auto target = narrow.begin();
  for (index_t y = first_row; y < last_row; ++y)
    for (std::size_t x = 0; x < columns.first.size(); ++x)
      for (index_t c = 0; c < channels; ++c) {
        float sum = 0;
        const std::uint8_t* source =
            picture.pixels.data() + (y * picture.shape.width + columns.first[x]) * channels + c;
        for (const float weight : columns.weights[x]) {
          sum += weight * static_cast<float>(*source);
          source += channels;
        }
        *target++ = detail::rounded(sum);
      }
  Picture result{{channels, height, width}, {}};
  result.pixels.reserve(static_cast<std::size_t>(result.shape.size()));
  for (std::size_t y = 0; y < rows.first.size(); ++y)
    for (index_t x = 0; x < width * channels; ++x) {
      float sum = 0;
      auto source = static_cast<std::size_t>((rows.first[y] - first_row) * width * channels + x);
      for (const float weight : rows.weights[y]) {
        sum += weight * static_cast<float>(narrow[source]);
        source += static_cast<std::size_t>(width * channels);
      }
      result.pixels.push_back(detail::rounded(sum));
    }
  return result;
}

/// How pictures become a network's input. The defaults are those of torchvision's ImageNet models.
struct Preparation {
  index_t shorter_side = 256;  ///< to which pictures are resized before the crop
  std::vector<double> mean = {0.485, 0.456, 0.406};
  std::vector<double> deviation = {0.229, 0.224, 0.225};

  /// Into the metadata of a model file.
  void store(std::map<std::string, std::string>& metadata) const {
    metadata["picture.shorter_side"] = std::to_string(shorter_side);
    metadata["picture.mean"] = text(mean);
    metadata["picture.deviation"] = text(deviation);
  }

  /// From the metadata of a model file for pictures of `channels`; what is not there stays as above. Errors: malformed
  /// numbers, not one or `channels` of them, a deviation that is not above 0.
  [[nodiscard]] static strata::Result<Preparation> from(const std::map<std::string, std::string>& metadata,
                                                        index_t channels) {
    Preparation result;
    std::vector<double> side;
    for (auto [key, numbers, count] : {std::tuple("picture.mean", &result.mean, channels),
                                       std::tuple("picture.deviation", &result.deviation, channels),
                                       std::tuple("picture.shorter_side", &side, index_t{1})}) {
      const auto found = metadata.find(key);
      if (found == metadata.end()) continue;
      if (!parse(found->second, *numbers) || static_cast<index_t>(numbers->size()) != count)
        return strata::Error(std::string("metadata ") + key, std::to_string(count) + " numbers",
                             "\"" + found->second + "\"");
    }
    if (!side.empty()) {
      if (!(side[0] >= 1 && side[0] <= 16384))
        return strata::Error("metadata picture.shorter_side", "1 to 16384", std::to_string(side[0]));
      result.shorter_side = static_cast<index_t>(side[0]);
    }
    if (static_cast<index_t>(result.mean.size()) != channels ||
        static_cast<index_t>(result.deviation.size()) != channels)
      return strata::Error("metadata picture.mean and picture.deviation",
                           "a number for each of " + std::to_string(channels) + " channels",
                           std::to_string(result.mean.size()));
    for (const double value : result.deviation)
      if (!(value > 0)) return strata::Error("metadata picture.deviation", "numbers above 0", std::to_string(value));
    return result;
  }

  /// `picture` resized, cropped to the middle, as (pixel / 255 - mean) / deviation [channel][row][column].
  /// Preconditions: as many channels as `shape`, mean and deviation have.
  [[nodiscard]] std::vector<float> operator()(const Picture& picture, strata::Shape shape) const {
    const index_t side = std::max({shorter_side, shape.height, shape.width});
    const bool tall = picture.shape.height > picture.shape.width;
    const index_t shorter = tall ? picture.shape.width : picture.shape.height;
    const index_t longer = side * (tall ? picture.shape.height : picture.shape.width) / shorter;
    const index_t height = tall ? longer : side;
    const index_t width = tall ? side : longer;
    const auto margin = [](index_t whole, index_t part) {  // halves go to the even number, as in torchvision
      return static_cast<index_t>(std::nearbyint(static_cast<double>(whole - part) / 2));
    };
    const Picture crop = resize_and_crop(picture, height, width, margin(height, shape.height),
                                         margin(width, shape.width), shape.height, shape.width);
    std::vector<float> input;
    input.reserve(static_cast<std::size_t>(shape.size()));
    for (index_t c = 0; c < shape.channels; ++c)
      for (index_t p = 0; p < shape.height * shape.width; ++p)
        input.push_back(static_cast<float>((crop.pixels[static_cast<std::size_t>(p * shape.channels + c)] / 255.0 -
                                            mean[static_cast<std::size_t>(c)]) /
                                           deviation[static_cast<std::size_t>(c)]));
    return input;
  }

 private:
  [[nodiscard]] static std::string text(const std::vector<double>& numbers) {
    std::string result;
    for (const double number : numbers) {
      std::array<char, 32> digits{};
      const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), number);
      result += (result.empty() ? "" : " ") + std::string(digits.data(), end.ptr);
    }
    return result;
  }

  [[nodiscard]] static bool parse(const std::string& line, std::vector<double>& numbers) {
    numbers.clear();
    const char* at = line.data();
    const char* const end = line.data() + line.size();
    while (at != end) {
      if (!numbers.empty() && *at++ != ' ') return false;
      double number = 0;
      const auto parsed = std::from_chars(at, end, number);
      if (parsed.ec != std::errc() || !std::isfinite(number)) return false;
      numbers.push_back(number);
      at = parsed.ptr;
    }
    return !numbers.empty();
  }
};

}  // namespace examples
