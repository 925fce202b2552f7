// The safetensors format (https://huggingface.co/docs/safetensors): 8-byte little-endian header length, JSON header,
// raw arrays without holes. Reading checks every number before it is used. Levels are io/model_file.hpp's business.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <strata/core/archive.hpp>
#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/io/json.hpp>

namespace strata::io {

static_assert(std::endian::native == std::endian::little, "files are little-endian and viewed in place");

/// The longest header that the reference implementation accepts.
inline constexpr std::uint64_t max_header_bytes = 100'000'000;
/// Every array starts at a multiple of this in files that we write.
inline constexpr std::uint64_t file_alignment = 64;
/// Most extents that an array's shape has.
inline constexpr std::size_t max_extents = 16;
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

[[nodiscard]] STRATA_COLD inline std::optional<DataType> data_type_named(const std::string& name) {
  for (const DataType type : {DataType::u8, DataType::u16, DataType::u32, DataType::i32, DataType::i64, DataType::f32,
                              DataType::f64, DataType::f16, DataType::bf16})
    if (name == name_of(type)) return type;
  return std::nullopt;
}

/// Bytes of an array of that shape; none if an extent is negative, or if it or the first few together go beyond 2^62.
[[nodiscard]] STRATA_COLD inline std::optional<std::uint64_t> array_bytes(DataType type,
                                                                          std::span<const index_t> shape) {
  constexpr std::uint64_t most = std::uint64_t{1} << 62;
  auto bytes = static_cast<std::uint64_t>(size_of(type));
  for (const index_t extent : shape) {
    const auto count = static_cast<std::uint64_t>(extent);  // above `most` if negative
    if (count > most || (count != 0 && bytes > most / count)) return std::nullopt;
    bytes *= count;
  }
  return bytes;
}

struct Entry {
  ArrayView view;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

/// One array's description. Errors: members missing, of the wrong kind, or that do not fit together.
[[nodiscard]] STRATA_COLD inline Result<Entry> parse_entry(const std::string& name, const JsonValue& value) {
  const auto found = [](const JsonValue& what) { return std::string(what.source().substr(0, 200)); };
  std::optional<JsonValue> dtype;
  std::optional<JsonValue> shape;
  std::optional<JsonValue> offsets;
  const std::vector<JsonMember> members = value.members();
  for (const JsonMember& member : members) {
    if (member.name == "dtype") dtype = member.value;
    if (member.name == "shape") shape = member.value;
    if (member.name == "data_offsets") offsets = member.value;
  }
  if (members.size() != 3 || !dtype || !shape || !offsets)
    return Error(name, "dtype, shape and data_offsets", found(value));
  Entry entry;
  entry.view.name = name;
  const std::optional<std::string> type_name = dtype->text();
  if (!type_name) return Error(name, "a dtype", "something that is not text");
  const auto type = data_type_named(*type_name);
  if (!type) return Error(name, "a dtype of U8, U16, U32, I32, I64, F16, BF16, F32, F64", *type_name);
  entry.view.type = *type;
  const auto extents = shape->elements(max_extents);
  if (!extents) return Error({name}, {"a shape of at most ", max_extents, " extents"}, {"something else"});
  for (const JsonValue& extent : *extents) {
    const std::optional<std::uint64_t> count = extent.whole();
    if (!count) return Error(name, "extents that are whole numbers of 0 or more", found(extent));
    entry.view.shape.push_back(static_cast<index_t>(*count));  // negative if too large
  }
  const std::optional<std::uint64_t> bytes = array_bytes(*type, entry.view.shape);
  if (!bytes) return Error(name, "a shape below 2^62 bytes", "more");
  const auto ends = offsets->elements(2);
  const std::optional<std::uint64_t> begin = ends && ends->size() == 2 ? ends->front().whole() : std::nullopt;
  const std::optional<std::uint64_t> end = begin ? ends->back().whole() : std::nullopt;
  if (!end) return Error(name, "two data_offsets of 0 or more", found(*offsets));
  entry.begin = *begin;
  entry.end = *end;
  if (entry.end < entry.begin || entry.end - entry.begin != *bytes)
    return Error({name}, {*bytes, " bytes for its shape and dtype"}, {"offsets ", entry.begin, " to ", entry.end});
  return entry;
}

/// Appends one array's description as a member of the header.
inline void append_entry(std::string& header, std::string_view name, DataType type, std::span<const index_t> shape,
                         std::uint64_t begin, std::uint64_t end) {
  if (header.back() != '{') header += ',';
  append_json(header, name);
  header += ":{\"dtype\":";
  append_json(header, name_of(type));
  header += ",\"shape\":[";
  for (std::size_t i = 0; i < shape.size(); ++i) header += (i == 0 ? "" : ",") + std::to_string(shape[i]);
  header += "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
}

/// Appends texts as the member `__metadata__` of the header.
inline void append_metadata(std::string& header, const std::map<std::string, std::string>& metadata) {
  if (header.back() != '{') header += ',';
  header += "\"__metadata__\":{";
  for (const auto& [key, value] : metadata) {
    if (header.back() != '{') header += ',';
    append_json(header, key);
    header += ':';
    append_json(header, value);
  }
  header += '}';
}

}  // namespace detail

/// Views the arrays of a file that lies in memory, which `owner` keeps alive. The memory has to be aligned to 8 bytes,
/// as that of a mapped file is. With `allow_prefix` the file may end early, after any array; arrays beyond its end are
/// left out. Errors: anything the format forbids, dtypes without a stored form here, arrays that are not aligned to
/// their elements in the file or in memory.
[[nodiscard]] STRATA_COLD inline Result<SafetensorsContents> parse_safetensors(std::span<const std::byte> file,
                                                                               std::shared_ptr<const void> owner,
                                                                               bool allow_prefix = false) {
  if (file.size() < 8) return Error({"header"}, {"8 bytes of header length"}, {file.size(), " bytes"});
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), 8);
  if (header_bytes > max_header_bytes || header_bytes > file.size() - 8)
    return Error({"header"}, {"a length within the file of ", file.size(), " bytes"}, {header_bytes});
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + 8, static_cast<std::size_t>(header_bytes));
  if (text.empty() || text.front() != '{') return Error("header", "JSON that starts with {", "something else");
  constexpr int nesting = 4;  // one more than the format has, so that what is wrong inside an array names the array
  const Result<JsonValue> header = JsonValue::parse(text, nesting);
  if (!header) return Error("header", header.error().expected(), header.error().found());

  SafetensorsContents contents;
  contents.data_start = 8 + header_bytes;
  std::vector<detail::Entry> entries;
  for (const auto& [name, value] : header.value().members()) {
    if (name == "__metadata__") {
      if (!value.is_object()) return Error("__metadata__", "an object", "something else");
      for (const auto& [key, entry] : value.members()) {
        std::optional<std::string> metadata = entry.text();
        if (!metadata) return Error({"__metadata__.", key}, {"text"}, {"something else"});
        contents.archive.metadata()[key] = *std::move(metadata);
      }
      continue;
    }
    Result<detail::Entry> entry = detail::parse_entry(name, value);
    if (!entry) return entry.error();
    entries.push_back(std::move(entry).value());
  }
  std::vector<detail::Entry*> order;
  order.reserve(entries.size());
  for (detail::Entry& entry : entries) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const detail::Entry* a, const detail::Entry* b) {
    if (a->begin != b->begin) return a->begin < b->begin;
    return a->end != b->end ? a->end < b->end : a->view.name < b->view.name;
  });
  const std::uint64_t available = file.size() - contents.data_start;
  std::uint64_t next = 0;
  bool ends_between_arrays = available == 0;
  for (detail::Entry* const ordered : order) {
    detail::Entry& entry = *ordered;
    if (entry.begin != next)
      return Error({entry.view.name}, {"data from byte ", next, ", without holes or overlap"},
                   {"from byte ", entry.begin});
    next = entry.end;
    ends_between_arrays = ends_between_arrays || entry.end == available;
    if (entry.end > available) continue;
    const std::uint64_t place = contents.data_start + entry.begin;
    const auto element = static_cast<std::uint64_t>(size_of(entry.view.type));
    if (place % element != 0) return Error({entry.view.name}, {"data aligned to its elements"}, {"byte ", place});
    if (const std::uint64_t beyond = (reinterpret_cast<std::uintptr_t>(file.data()) + place) % element;
        beyond != 0 && entry.begin != entry.end)
      return Error({entry.view.name}, {"memory aligned to its elements of ", element, " bytes"},
                   {beyond, " bytes beyond such an address"});
    if (entry.view.name.starts_with(padding_prefix)) continue;
    entry.view.bytes = file.subspan(static_cast<std::size_t>(contents.data_start + entry.begin),
                                    static_cast<std::size_t>(entry.end - entry.begin));
    contents.array_ends.push_back(entry.end);
    contents.archive.add_view(std::move(entry.view));
  }
  contents.data_bytes = next;
  if (next < available) return Error({"data"}, {next, " bytes"}, {available, " bytes"});
  if (next > available && !(allow_prefix && ends_between_arrays))
    return Error({"data"}, {next, " bytes"}, {available, " bytes: the file is cut off"});
  contents.archive.keep(std::move(owner));
  return contents;
}

/// The pieces of a file, ready to be written one after the other.
struct SafetensorsImage {
  std::string header;                              ///< length and JSON
  std::vector<std::span<const std::byte>> pieces;  ///< header, arrays and padding; views `header` and the arrays
};

/// Where the data of every array starts and ends, from the start of the data.
struct ArrayPlaces {
  std::vector<std::uint64_t> starts;
  std::vector<std::uint64_t> ends;
};

/// Places `arrays` in the given order, each 64-byte aligned; `new_section[i]` puts at least one byte of padding before
/// array i, so that a section never ends where the next one starts.
[[nodiscard]] inline ArrayPlaces place_arrays(const std::vector<const ArrayView*>& arrays,
                                              const std::vector<bool>& new_section) {
  ArrayPlaces places;
  std::uint64_t at = 0;
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    std::uint64_t start = (at + file_alignment - 1) / file_alignment * file_alignment;
    if (new_section[i] && start == at) start += file_alignment;
    at = start + arrays[i]->bytes.size();
    places.starts.push_back(start);
    places.ends.push_back(at);
  }
  return places;
}

/// The file of `arrays` at `places`; gaps are filled with arrays of their own, as the format forbids holes.
[[nodiscard]] inline std::unique_ptr<SafetensorsImage> lay_out_safetensors(
    const std::vector<const ArrayView*>& arrays, const ArrayPlaces& places,
    const std::map<std::string, std::string>& metadata) {
  static constexpr std::array<std::byte, 2 * file_alignment> zeros{};
  auto image = std::make_unique<SafetensorsImage>();
  std::string& header = image->header;
  header.assign(8, '\0');
  header += '{';
  detail::append_metadata(header, metadata);
  std::uint64_t at = 0;
  std::size_t padding = 0;
  image->pieces.emplace_back();
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    const std::uint64_t start = places.starts[i];
    if (start != at) {
      const auto gap = static_cast<index_t>(start - at);
      detail::append_entry(header, std::string(padding_prefix) + std::to_string(padding++), DataType::u8, {&gap, 1}, at,
                           start);
      image->pieces.push_back(std::span(zeros).first(static_cast<std::size_t>(gap)));
    }
    at = places.ends[i];
    detail::append_entry(header, arrays[i]->name, arrays[i]->type, arrays[i]->shape, start, at);
    image->pieces.push_back(arrays[i]->bytes);
  }
  header += '}';
  while (header.size() % file_alignment != 0) header += ' ';
  const std::uint64_t length = header.size() - 8;
  std::memcpy(header.data(), &length, 8);
  image->pieces.front() = std::as_bytes(std::span(header));
  return image;
}

}  // namespace strata::io
