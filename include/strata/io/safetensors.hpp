// The safetensors format (https://huggingface.co/docs/safetensors): 8-byte little-endian header length, JSON header,
// raw arrays without holes. Reading checks every number before it is used. Levels are io/model_file.hpp's business.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <strata/core/archive.hpp>
#include <strata/core/error.hpp>
#include <strata/core/types.hpp>

namespace strata::io {

static_assert(std::endian::native == std::endian::little, "files are little-endian and viewed in place");

/// The longest header that the reference implementation accepts.
inline constexpr std::uint64_t max_header_bytes = 100'000'000;
/// Every array starts at a multiple of this in files that we write.
inline constexpr std::uint64_t file_alignment = 64;
/// Arrays of that name only fill the gaps between aligned arrays; they are not part of the archive.
inline constexpr std::string_view padding_prefix = "__padding__.";

/// Arrays of a file in the order of their places.
struct SafetensorsContents {
  Archive archive;                        ///< all arrays at stratum 0
  std::vector<std::uint64_t> array_ends;  ///< of each array of the archive, from the start of the data
  std::uint64_t data_start = 0;           ///< from the start of the file
  std::uint64_t data_bytes = 0;           ///< as the header declares; more than the file has if it is a prefix
};

namespace detail {

[[nodiscard]] inline std::optional<DataType> data_type_named(const std::string& name) {
  for (const DataType type :
       {DataType::u8, DataType::u16, DataType::u32, DataType::i32, DataType::i64, DataType::f32, DataType::f64})
    if (name == name_of(type)) return type;
  return std::nullopt;
}

/// Parses without exceptions; an error for invalid JSON, a key given twice or nesting deeper than the format has.
[[nodiscard]] inline Result<nlohmann::json> parse_header(std::string_view text) {
  std::vector<std::set<std::string>> keys;
  std::string twice;
  bool deep = false;
  const auto watch = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    using Event = nlohmann::json::parse_event_t;
    if (depth > 4) deep = true;
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end && !keys.empty()) keys.pop_back();
    if (event == Event::key && !keys.empty() && !keys.back().insert(parsed.get<std::string>()).second && twice.empty())
      twice = parsed.get<std::string>();
    return !deep;
  };
  nlohmann::json header = nlohmann::json::parse(text.begin(), text.end(), watch, false);
  if (deep) return Error("header", "the nesting of safetensors", "deeper JSON");
  if (header.is_discarded() || !header.is_object()) return Error("header", "a JSON object", "invalid JSON");
  if (!twice.empty()) return Error("header", "names given once", "\"" + twice + "\" twice");
  return header;
}

struct Entry {
  ArrayView view;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

/// One array's description. Errors: members missing, of the wrong kind, or that do not fit together.
[[nodiscard]] inline Result<Entry> parse_entry(const std::string& name, const nlohmann::json& value) {
  if (!value.is_object() || value.size() != 3 || !value.contains("dtype") || !value.contains("shape") ||
      !value.contains("data_offsets"))
    return Error(name, "dtype, shape and data_offsets",
                 value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace));
  const auto& dtype = value["dtype"];
  const auto& shape = value["shape"];
  const auto& offsets = value["data_offsets"];
  Entry entry;
  entry.view.name = name;
  if (!dtype.is_string()) return Error(name, "a dtype", "something that is not text");
  const auto type = data_type_named(dtype.get<std::string>());
  if (!type) return Error(name, "a dtype of U8, U16, U32, I32, I64, F32, F64", dtype.get<std::string>());
  entry.view.type = *type;
  if (!shape.is_array() || shape.size() > 16) return Error(name, "a shape of at most 16 extents", "something else");
  std::uint64_t bytes = static_cast<std::uint64_t>(size_of(*type));
  constexpr std::uint64_t most = std::uint64_t{1} << 62;
  for (const auto& extent : shape) {
    if (!extent.is_number_unsigned()) return Error(name, "extents that are whole numbers of 0 or more", extent.dump());
    const auto count = extent.get<std::uint64_t>();
    if (count > most || (count != 0 && bytes > most / count)) return Error(name, "a shape below 2^62 bytes", "more");
    bytes *= count;
    entry.view.shape.push_back(static_cast<index_t>(count));
  }
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned())
    return Error(name, "two data_offsets of 0 or more",
                 offsets.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace));
  entry.begin = offsets[0].get<std::uint64_t>();
  entry.end = offsets[1].get<std::uint64_t>();
  if (entry.end < entry.begin || entry.end - entry.begin != bytes)
    return Error(name, std::to_string(bytes) + " bytes for its shape and dtype",
                 "offsets " + std::to_string(entry.begin) + " to " + std::to_string(entry.end));
  return entry;
}

}  // namespace detail

/// Views the arrays of a file that lies in memory, which `owner` keeps alive. With `allow_prefix` the file may end
/// early, after any array; arrays beyond its end are left out. Errors: anything the format forbids, dtypes without a
/// stored form here, arrays that are not aligned to their elements.
[[nodiscard]] inline Result<SafetensorsContents> parse_safetensors(std::span<const std::byte> file,
                                                                   std::shared_ptr<const void> owner,
                                                                   bool allow_prefix = false) {
  if (file.size() < 8) return Error("header", "8 bytes of header length", std::to_string(file.size()) + " bytes");
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), 8);
  if (header_bytes > max_header_bytes || header_bytes > file.size() - 8)
    return Error("header", "a length within the file of " + std::to_string(file.size()) + " bytes",
                 std::to_string(header_bytes));
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + 8, static_cast<std::size_t>(header_bytes));
  if (text.empty() || text.front() != '{') return Error("header", "JSON that starts with {", "something else");
  Result<nlohmann::json> header = detail::parse_header(text);
  if (!header) return header.error();

  SafetensorsContents contents;
  contents.data_start = 8 + header_bytes;
  std::vector<detail::Entry> entries;
  for (const auto& [name, value] : header.value().items()) {
    if (name == "__metadata__") {
      if (!value.is_object()) return Error("__metadata__", "an object", "something else");
      for (const auto& [key, text_value] : value.items()) {
        if (!text_value.is_string()) return Error("__metadata__." + key, "text", "something else");
        contents.archive.metadata()[key] = text_value.get<std::string>();
      }
      continue;
    }
    Result<detail::Entry> entry = detail::parse_entry(name, value);
    if (!entry) return entry.error();
    entries.push_back(std::move(entry).value());
  }
  std::sort(entries.begin(), entries.end(), [](const detail::Entry& a, const detail::Entry& b) {
    return std::tie(a.begin, a.end, a.view.name) < std::tie(b.begin, b.end, b.view.name);
  });
  const std::uint64_t available = file.size() - contents.data_start;
  std::uint64_t next = 0;
  bool ends_between_arrays = available == 0;
  for (detail::Entry& entry : entries) {
    if (entry.begin != next)
      return Error(entry.view.name, "data from byte " + std::to_string(next) + ", without holes or overlap",
                   "from byte " + std::to_string(entry.begin));
    next = entry.end;
    ends_between_arrays = ends_between_arrays || entry.end == available;
    if (entry.end > available) continue;
    if ((contents.data_start + entry.begin) % static_cast<std::uint64_t>(size_of(entry.view.type)) != 0)
      return Error(entry.view.name, "data aligned to its elements",
                   "byte " + std::to_string(contents.data_start + entry.begin));
    if (entry.view.name.starts_with(padding_prefix)) continue;
    entry.view.bytes = file.subspan(static_cast<std::size_t>(contents.data_start + entry.begin),
                                    static_cast<std::size_t>(entry.end - entry.begin));
    contents.array_ends.push_back(entry.end);
    contents.archive.add_view(std::move(entry.view));
  }
  contents.data_bytes = next;
  if (next < available) return Error("data", std::to_string(next) + " bytes", std::to_string(available) + " bytes");
  if (next > available && !(allow_prefix && ends_between_arrays))
    return Error("data", std::to_string(next) + " bytes", std::to_string(available) + " bytes: the file is cut off");
  contents.archive.keep(std::move(owner));
  return contents;
}

/// The pieces of a file, ready to be written one after the other.
struct SafetensorsImage {
  std::string header;                              ///< length and JSON
  std::vector<std::span<const std::byte>> pieces;  ///< header, arrays and padding; views `header` and the arrays
};

/// Lays out `arrays` in the given order, each 64-byte aligned; `new_section[i]` puts at least one byte of padding
/// before array i, so that a section never ends where the next one starts. `finish` may add metadata: it is called with
/// the end of every array from the start of the data.
template <class Finish>
[[nodiscard]] std::unique_ptr<SafetensorsImage> lay_out_safetensors(const std::vector<const ArrayView*>& arrays,
                                                                    const std::vector<bool>& new_section,
                                                                    nlohmann::json metadata, Finish&& finish) {
  static constexpr std::array<std::byte, 2 * file_alignment> zeros{};
  auto image = std::make_unique<SafetensorsImage>();
  nlohmann::json header = nlohmann::json::object();
  std::vector<std::uint64_t> ends;
  std::uint64_t at = 0;
  std::size_t padding = 0;
  image->pieces.emplace_back();
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    std::uint64_t start = (at + file_alignment - 1) / file_alignment * file_alignment;
    if (new_section[i] && start == at) start += file_alignment;
    if (start != at) {
      header[std::string(padding_prefix) + std::to_string(padding++)] = {
          {"dtype", "U8"}, {"shape", {start - at}}, {"data_offsets", {at, start}}};
      image->pieces.push_back(std::span(zeros).first(static_cast<std::size_t>(start - at)));
    }
    at = start + arrays[i]->bytes.size();
    header[arrays[i]->name] = {
        {"dtype", std::string(name_of(arrays[i]->type))}, {"shape", arrays[i]->shape}, {"data_offsets", {start, at}}};
    image->pieces.push_back(arrays[i]->bytes);
    ends.push_back(at);
  }
  finish(metadata, ends);
  header["__metadata__"] = std::move(metadata);
  std::string text = header.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  while ((8 + text.size()) % file_alignment != 0) text += ' ';
  const std::uint64_t length = text.size();
  image->header.resize(8);
  std::memcpy(image->header.data(), &length, 8);
  image->header += text;
  image->pieces.front() = std::as_bytes(std::span(image->header));
  return image;
}

}  // namespace strata::io
