// Parallel text from files: one sentence a line, plain or packed as .xz. Files are not trusted: whatever is wrong with
// them is an error that names file and line.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <istream>
#include <iterator>
#include <lzma.h>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>

#include "utf8.hpp"

namespace gnmt {

/// Limits of what is read, so that a damaged or hostile file cannot ask for all memory.
struct TextLimits {
  std::size_t bytes = std::size_t{1} << 30U;       ///< of a file once unpacked
  std::size_t line_bytes = std::size_t{1} << 20U;  ///< of a line
};

namespace detail {

/// The bytes that the .xz streams in `packed` hold. Errors: damaged or cut streams, more than `most` bytes.
inline strata::Result<std::string> unpack_xz(const std::string& packed, const std::string& path, std::size_t most) {
  constexpr std::uint64_t memory = std::uint64_t{256} << 20U;  // the strongest preset needs 65 MiB
  lzma_stream stream = LZMA_STREAM_INIT;
  if (lzma_stream_decoder(&stream, memory, LZMA_CONCATENATED) != LZMA_OK)
    return strata::Error(path, "memory for unpacking", "none");
  std::string text;
  std::string chunk(std::size_t{1} << 18U, '\0');
  stream.next_in = reinterpret_cast<const std::uint8_t*>(packed.data());
  stream.avail_in = packed.size();
  lzma_ret code = LZMA_OK;
  while (code == LZMA_OK && text.size() <= most) {
    stream.next_out = reinterpret_cast<std::uint8_t*>(chunk.data());
    stream.avail_out = chunk.size();
    code = lzma_code(&stream, LZMA_FINISH);
    text.append(chunk, 0, chunk.size() - stream.avail_out);
  }
  lzma_end(&stream);
  if (text.size() > most) return strata::Error(path, "at most " + std::to_string(most) + " bytes of text", "more");
  if (code == LZMA_BUF_ERROR) return strata::Error(path, "a whole .xz stream", "the end of the file");
  if (code == LZMA_MEMLIMIT_ERROR) return strata::Error(path, "a .xz stream that unpacks in 256 MiB", "one of more");
  if (code != LZMA_STREAM_END)
    return strata::Error(path, "an intact .xz stream", "damage (liblzma's code " + std::to_string(code) + ")");
  return text;
}

}  // namespace detail

/// The lines of `text` without their ends ("\n" or "\r\n") and without a byte order mark; the last line may lack its
/// end. Lines may be empty. Errors, which name `path` and line: bytes that are not UTF-8, a line that is too long.
[[nodiscard]] inline strata::Result<std::vector<std::string>> split_lines(std::string_view text,
                                                                          const std::string& path,
                                                                          const TextLimits& limits = {}) {
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  std::vector<std::string> lines;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    const auto place = [&] { return path + ":" + std::to_string(lines.size() + 1); };
    if (line.size() > limits.line_bytes)
      return strata::Error(place(), "at most " + std::to_string(limits.line_bytes) + " bytes a line",
                           std::to_string(line.size()));
    if (const std::size_t bad = utf8::find_malformed(line); bad != std::string_view::npos) {
      constexpr std::string_view digits = "0123456789ABCDEF";
      const auto byte = static_cast<unsigned char>(line[bad]);
      return strata::Error(place(), "text in UTF-8",
                           std::string("byte 0x") + digits[byte >> 4U] + digits[byte & 15U] + " as byte " +
                               std::to_string(bad + 1) + " of the line");
    }
    lines.emplace_back(line);
  }
  return lines;
}

/// The lines of `text` and of what is left in `stream`, which errors call `name`.
[[nodiscard]] inline strata::Result<std::vector<std::string>> read_lines(std::istream& stream, const std::string& name,
                                                                         const TextLimits& limits = {},
                                                                         std::string text = {}) {
  std::array<char, 1 << 16> chunk{};
  while (stream && text.size() <= limits.bytes) {
    stream.read(chunk.data(), static_cast<std::streamsize>(chunk.size()));
    text.append(chunk.data(), static_cast<std::size_t>(stream.gcount()));
  }
  if (stream.bad()) return strata::Error(name, "text that can be read", "a failure");
  if (text.size() > limits.bytes)
    return strata::Error(name, "at most " + std::to_string(limits.bytes) + " bytes of text", "more");
  return split_lines(text, name, limits);
}

/// The lines of a file. Whether it is packed is told by its first bytes, not by its name. Errors: a file that is
/// missing, damaged or too large; what `split_lines` refuses.
[[nodiscard]] inline strata::Result<std::vector<std::string>> read_lines(const std::string& path,
                                                                         const TextLimits& limits = {}) {
  std::error_code failure;
  const bool directory = std::filesystem::is_directory(path, failure);
  std::ifstream file(path, std::ios::binary);
  if (!file || directory)
    return strata::Error(path, "a text file that can be read", directory ? "a directory" : "none");
  const auto size = std::filesystem::file_size(path, failure);
  if (!failure && size > limits.bytes)
    return strata::Error(path, "at most " + std::to_string(limits.bytes) + " bytes", std::to_string(size));
  constexpr std::string_view xz_start(
      "\xFD"
      "7zXZ\0",
      6);
  std::string start(xz_start.size(), '\0');
  file.read(start.data(), static_cast<std::streamsize>(start.size()));
  start.resize(static_cast<std::size_t>(file.gcount()));
  // Not read again from the start, to which a pipe does not go back.
  if (start != xz_start) return read_lines(file, path, limits, std::move(start));
  const std::string packed = start + std::string(std::istreambuf_iterator<char>(file), {});
  if (file.bad()) return strata::Error(path, "a file that can be read", "a failure");
  auto text = detail::unpack_xz(packed, path, limits.bytes);
  if (!text) return text.error();
  return split_lines(text.value(), path, limits);
}

/// Sentences and their translations, line by line.
struct ParallelText {
  std::vector<std::string> source;
  std::vector<std::string> target;  ///< as many as of `source`
};

/// Two files of one text. Errors: what `read_lines` refuses, no line, a different number of lines.
[[nodiscard]] inline strata::Result<ParallelText> read_parallel_files(const std::string& source,
                                                                      const std::string& target,
                                                                      const TextLimits& limits = {}) {
  auto sources = read_lines(source, limits);
  if (!sources) return sources.error();
  auto targets = read_lines(target, limits);
  if (!targets) return targets.error();
  ParallelText text{std::move(sources).value(), std::move(targets).value()};
  if (text.source.empty()) return strata::Error(source, "at least one sentence", "none");
  if (text.source.size() != text.target.size()) {
    const bool target_is_short = text.target.size() < text.source.size();
    const std::size_t common = std::min(text.source.size(), text.target.size());
    return strata::Error((target_is_short ? target : source) + ":" + std::to_string(common + 1),
                         "the translation of line " + std::to_string(common + 1) + " of " +
                             (target_is_short ? source : target) + ", which has " +
                             std::to_string(std::max(text.source.size(), text.target.size())) + " lines",
                         "the end of the file");
  }
  return text;
}

/// The path of <directory>/<part>.<language>, or of that file packed as .xz. Error: neither exists.
[[nodiscard]] inline strata::Result<std::string> find_text(const std::string& directory, const std::string& part,
                                                           const std::string& language) {
  const std::string path = (std::filesystem::path(directory) / (part + "." + language)).string();
  std::error_code ignored;
  if (std::filesystem::exists(path, ignored)) return path;
  if (std::filesystem::exists(path + ".xz", ignored)) return path + ".xz";
  return strata::Error(path, "this file or the same as .xz", "none");
}

/// `part` ("train", "val", ...) of the text in `directory`. Errors: files missing; what `read_parallel_files` refuses.
[[nodiscard]] inline strata::Result<ParallelText> read_parallel(const std::string& directory, const std::string& part,
                                                                const std::string& source_language,
                                                                const std::string& target_language,
                                                                const TextLimits& limits = {}) {
  const auto source = find_text(directory, part, source_language);
  if (!source) return source.error();
  const auto target = find_text(directory, part, target_language);
  if (!target) return target.error();
  return read_parallel_files(source.value(), target.value(), limits);
}

}  // namespace gnmt
