// Files as strings: a directory that goes away with the test, and safetensors files with an edited header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <unistd.h>
#include <vector>

#include <nlohmann/json.hpp>

namespace test {

/// A directory of its own, removed at the end.
struct Directory {
  inline static int made = 0;
  std::filesystem::path path = std::filesystem::temp_directory_path() /
                               ("strata_io_test" + std::to_string(::getpid()) + "_" + std::to_string(made++));
  Directory() { std::filesystem::create_directories(path); }
  ~Directory() { std::filesystem::remove_all(path); }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;

  [[nodiscard]] std::string file(const char* name) const { return (path / name).string(); }
  [[nodiscard]] std::ptrdiff_t files() const {
    return std::distance(std::filesystem::directory_iterator(path), std::filesystem::directory_iterator());
  }
};

inline std::string contents(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

inline void write(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

inline std::uint64_t header_length(const std::string& file) {
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  return length;
}

/// Length, `header` and `data` as one file.
inline std::string assembled(const std::string& header, const std::string& data) {
  const std::uint64_t length = header.size();
  std::string result(8, '\0');
  std::memcpy(result.data(), &length, 8);
  return result + header + data;
}

/// `file` with its header replaced by `text`, padded so that the data stays 64-byte aligned. Offsets count from the end
/// of the header, so nothing else moves.
inline std::string with_header_text(const std::string& file, std::string text) {
  while ((8 + text.size()) % 64 != 0) text += ' ';
  return assembled(text, file.substr(8 + header_length(file)));
}

/// `file` with the first `old_text` of its header replaced by `new_text`, for what no JSON writer would write.
inline std::string with_text(const std::string& file, const std::string& old_text, const std::string& new_text) {
  std::string header = file.substr(8, header_length(file));
  const std::size_t at = header.find(old_text);
  return at == std::string::npos ? std::string()
                                 : with_header_text(file, header.replace(at, old_text.size(), new_text));
}

inline nlohmann::json header_of(const std::string& file) {
  return nlohmann::json::parse(file.substr(8, header_length(file)));
}

/// `file` with `edit` applied to its header.
inline std::string with_header(const std::string& file, const std::function<void(nlohmann::json&)>& edit) {
  nlohmann::json header = header_of(file);
  edit(header);
  return with_header_text(file, header.dump());
}

/// `file` with `edit` applied to the elements of its array `name`, whose type is `T`.
template <class T>
std::string with_data(const std::string& file, const std::string& name,
                      const std::function<void(std::vector<T>&)>& edit) {
  const nlohmann::json offsets = header_of(file)[name]["data_offsets"];
  const auto begin = offsets[0].get<std::size_t>();
  std::vector<T> values((offsets[1].get<std::size_t>() - begin) / sizeof(T));
  std::string result = file;
  char* const place = result.data() + 8 + header_length(file) + begin;
  std::memcpy(values.data(), place, values.size() * sizeof(T));
  edit(values);
  std::memcpy(place, values.data(), values.size() * sizeof(T));
  return result;
}

/// A copy of `bytes` in an allocation of exactly that size, so that the address sanitizer sees a read beyond it.
inline std::shared_ptr<std::byte[]> exact_copy(const std::string& bytes) {
  std::shared_ptr<std::byte[]> copy(new std::byte[bytes.size()]);
  std::memcpy(copy.get(), bytes.data(), bytes.size());
  return copy;
}

}  // namespace test
