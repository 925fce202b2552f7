// Writing a file whole or not at all: to a temporary name beside it, flushed to the disk, then renamed.
#pragma once

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>

#if __has_include(<unistd.h>) && !defined(_WIN32)
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#define STRATA_HAS_FSYNC 1
#endif

namespace strata::io {

namespace detail {

/// Another temporary name for `path` at every call, in the same directory. Other processes may have the same one, so a
/// file is made only where none is.
[[nodiscard]] inline std::string temporary_name(const std::string& path) {
  static std::atomic<std::uint64_t> made{0};
#if defined(STRATA_HAS_FSYNC)
  return path + ".tmp" + std::to_string(::getpid()) + "_" + std::to_string(made++);
#else
  return path + ".tmp" + std::to_string(made++);
#endif
}

/// Names that are tried: programs that died may have left files of them.
inline constexpr int temporary_names = 1000;

#if defined(STRATA_HAS_FSYNC)

/// The file that `path` stands for: that at the end of its symbolic links, which need not be there yet. Error: links
/// without end.
[[nodiscard]] STRATA_COLD inline Result<std::string> followed(const std::string& path) {
  std::string target = path;
  for (int links = 0; links < 40; ++links) {
    char text[4096];
    const ::ssize_t length = ::readlink(target.c_str(), text, sizeof(text));
    if (length < 0) return target;
    const std::string next(text, static_cast<std::size_t>(length));
    const std::size_t directory = next.starts_with('/') ? 0 : target.rfind('/') + 1;  // 0 if there is none
    target = target.substr(0, directory) + next;
  }
  return Error(path, "a file or a link to one", "symbolic links without end");
}

/// A new file beside `path`, whose name goes to `temporary`, with the mode of the file at `path` if there is one. Null
/// if it cannot be made. Error: something at `path` that is no file.
[[nodiscard]] STRATA_COLD inline Result<std::FILE*> make_temporary(const std::string& path, std::string& temporary) {
  struct stat old {};
  const bool replaces = ::stat(path.c_str(), &old) == 0;
  if (replaces && !S_ISREG(old.st_mode)) return Error(path, "a regular file or none", "something else");
  const ::mode_t mode = replaces ? old.st_mode & 0777U : 0666U;
  int descriptor = -1;
  for (int i = 0; i < temporary_names && descriptor < 0 && (i == 0 || errno == EEXIST); ++i) {
    temporary = temporary_name(path);
    descriptor = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
  }
  if (descriptor < 0) return nullptr;
  std::FILE* file = !replaces || ::fchmod(descriptor, mode) == 0 ? ::fdopen(descriptor, "wb") : nullptr;
  if (file == nullptr) {
    ::close(descriptor);
    ::unlink(temporary.c_str());
  }
  return file;
}

#else

[[nodiscard]] inline Result<std::string> followed(const std::string& path) {
  return path;
}

[[nodiscard]] inline Result<std::FILE*> make_temporary(const std::string& path, std::string& temporary) {
  std::FILE* file = nullptr;
  for (int i = 0; i < temporary_names && file == nullptr && (i == 0 || errno == EEXIST); ++i) {
    temporary = temporary_name(path);
    file = std::fopen(temporary.c_str(), "wbx");
  }
  return file;
}

#endif

}  // namespace detail

/// Writes `pieces` one after the other as the new contents of `path`. On an error, or when the program dies in between,
/// what was at `path` is untouched; of threads and programs that write it at once the last one wins. A file that is
/// replaced keeps its mode, and a symbolic link stays one: the file that it names is written. Error: a step that
/// failed.
[[nodiscard]] inline Status write_atomically(const std::string& path,
                                             const std::vector<std::span<const std::byte>>& pieces) {
  if (path.empty()) return Error("file", "a path", "an empty one");
  const Result<std::string> target = detail::followed(path);
  if (!target) return target.error();
  std::string temporary;
  const Result<std::FILE*> made = detail::make_temporary(target.value(), temporary);
  if (!made) return Error(path, made.error().expected(), made.error().found());
  std::FILE* const file = made.value();
  if (file == nullptr) return Error({path}, {"a directory to write to"}, {"that ", temporary, " cannot be made"});
  bool good = true;
  for (const auto& piece : pieces)
    good = good && (piece.empty() || std::fwrite(piece.data(), 1, piece.size(), file) == piece.size());
  good = good && std::fflush(file) == 0;
#if defined(STRATA_HAS_FSYNC)
  good = good && ::fsync(::fileno(file)) == 0;
#endif
  good = (std::fclose(file) == 0) && good;
  if (good && std::rename(temporary.c_str(), target.value().c_str()) == 0) return success();
  std::remove(temporary.c_str());
  return Error(path, "room and permission to write the file", "that writing failed; the old file is unchanged");
}

}  // namespace strata::io
