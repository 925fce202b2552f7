// Writing a file whole or not at all: to a temporary name beside it, flushed to the disk, then renamed.
#pragma once

#include <cstddef>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include <strata/core/error.hpp>

#if __has_include(<unistd.h>)
#include <unistd.h>
#define STRATA_HAS_FSYNC 1
#endif

namespace strata::io {

/// Writes `pieces` one after the other as the new contents of `path`. On an error, or when the program dies in between,
/// what was at `path` is untouched. Error: a step that failed.
[[nodiscard]] inline Status write_atomically(const std::string& path,
                                             const std::vector<std::span<const std::byte>>& pieces) {
#if defined(STRATA_HAS_FSYNC)
  const std::string temporary = path + ".tmp" + std::to_string(::getpid());
#else
  const std::string temporary = path + ".tmp";
#endif
  std::FILE* file = std::fopen(temporary.c_str(), "wb");
  if (file == nullptr) return Error({path}, {"a directory to write to"}, {"that ", temporary, " cannot be made"});
  bool good = true;
  for (const auto& piece : pieces)
    good = good && (piece.empty() || std::fwrite(piece.data(), 1, piece.size(), file) == piece.size());
  good = good && std::fflush(file) == 0;
#if defined(STRATA_HAS_FSYNC)
  good = good && ::fsync(::fileno(file)) == 0;
#endif
  good = (std::fclose(file) == 0) && good;
  if (good && std::rename(temporary.c_str(), path.c_str()) == 0) return success();
  std::remove(temporary.c_str());
  return Error(path, "room and permission to write the file", "that writing failed; the old file is unchanged");
}

}  // namespace strata::io
