// A whole file as read-only bytes: mapped where the system can, read otherwise. What the bytes mean is for others.
#pragma once

#include <cstddef>
#include <fstream>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <utility>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>

#if __has_include(<sys/mman.h>)
#define STRATA_HAS_MMAP 1
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace strata::io {

/// The bytes of a file, at least 64-byte aligned, for as long as the object lives.
class MappedFile {
 public:
  /// `mapped` false: read into memory, so that the file may change afterwards. Error: the file cannot be opened or
  /// read.
  [[nodiscard]] STRATA_COLD static Result<std::shared_ptr<const MappedFile>> open(const std::string& path,
                                                                                  bool mapped = true) {
    if (path.empty()) return Error("file", "a path", "an empty one");
    std::shared_ptr<MappedFile> file(new MappedFile());
#if defined(STRATA_HAS_MMAP)
    // Without O_NONBLOCK a pipe would wait for a writer before it can be refused.
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) return Error(path, "a readable file", std::strerror(errno));
    struct stat status {};
    if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
      ::close(descriptor);
      return Error(path, "a regular file", "something else");
    }
    if (mapped && status.st_size > 0) {
      const auto size = static_cast<std::size_t>(status.st_size);
      void* memory = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
      if (memory == MAP_FAILED) {
        const int reason = errno;
        ::close(descriptor);
        return Error(path, "a file that can be mapped", std::strerror(reason));
      }
      file->data_ = static_cast<const std::byte*>(memory);
      file->size_ = size;
      file->mapped_ = true;
    }
    ::close(descriptor);
    if (mapped) return std::shared_ptr<const MappedFile>(std::move(file));
#endif
    if (Status read = returning_errors([&] { return file->read(path); }); !read)
      return read.error().where() == path ? read.error() : read.error().within(path);
    return std::shared_ptr<const MappedFile>(std::move(file));
  }

  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile() {
#if defined(STRATA_HAS_MMAP)
    if (mapped_) {
      ::munmap(const_cast<std::byte*>(data_), size_);
      return;
    }
#endif
    ::operator delete(const_cast<std::byte*>(data_), alignment);
  }

  [[nodiscard]] std::span<const std::byte> bytes() const noexcept {
    return {data_, size_};
  }

 private:
  MappedFile() = default;

  /// Raises: memory that cannot be had.
  [[nodiscard]] Status read(const std::string& path) {
    std::ifstream stream(path, std::ios::binary | std::ios::ate);
    if (!stream) return Error(path, "a readable file", "none");
    size_ = static_cast<std::size_t>(stream.tellg());
    stream.seekg(0);
    // Not `std::nothrow`: a program that replaces the allocation functions often leaves out that form.
    auto* const memory = static_cast<std::byte*>(::operator new(size_ + 1, alignment));
    data_ = memory;
    if (!stream.read(reinterpret_cast<char*>(memory), static_cast<std::streamsize>(size_)))
      return Error({path}, {size_, " readable bytes"}, {"fewer"});
    return success();
  }

  static constexpr std::align_val_t alignment{64};

  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  bool mapped_ = false;  ///< else from `operator new`
};

}  // namespace strata::io
