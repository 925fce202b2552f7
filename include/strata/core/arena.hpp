// Memory for activations and scratch: blocks that are taken and given back in the same pattern on every run, so that
// after the first run nothing is allocated. It knows bytes only; shapes are core/tensor.hpp's business.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#include <strata/core/types.hpp>

namespace strata {

class Arena;

/// A counted reference to a block of an arena. Copies share the block; the last one gives it back. Not thread-safe and
/// not to outlive the arena: blocks belong to the one thread that runs the network.
class Block {
 public:
  Block() = default;
  Block(const Block& other) noexcept : header_(other.header_) {
    if (header_ != nullptr) ++header_->references;
  }
  Block(Block&& other) noexcept : header_(std::exchange(other.header_, nullptr)) {}
  Block& operator=(Block other) noexcept {
    std::swap(header_, other.header_);
    return *this;
  }
  ~Block();

  /// First usable byte, 64-byte aligned; null for an empty reference.
  [[nodiscard]] std::byte* data() const noexcept {
    return header_ == nullptr ? nullptr : reinterpret_cast<std::byte*>(header_) + data_offset;
  }
  [[nodiscard]] index_t bytes() const noexcept { return header_ == nullptr ? 0 : header_->bytes; }

  static constexpr index_t alignment = 64;
  /// Bytes before and after the usable ones that may be read (not written): a vector that hangs over an edge.
  static constexpr index_t guard = 256;

 private:
  friend class Arena;
  struct Header {
    Arena* arena;
    index_t bytes;
    index_t references;
    Header* next_free;
  };
  static_assert(sizeof(Header) <= 64);
  static constexpr index_t data_offset = 64 + guard;

  explicit Block(Header* header) noexcept : header_(header) { ++header_->references; }

  Header* header_ = nullptr;
};

/// Hands out blocks and takes them back. A block is reused only for its own size: as a network asks for the same sizes
/// in the same order on every run, one run is enough to have them all.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() {
    for (SizeClass& size_class : classes_)
      while (size_class.free != nullptr) {
        Block::Header* next = size_class.free->next_free;
        ::operator delete (size_class.free, std::align_val_t{Block::alignment});
        size_class.free = next;
      }
  }

  /// A block of at least `bytes` bytes with unspecified contents. Allocates if no block of that size is free.
  [[nodiscard]] Block take(index_t bytes) {
    const index_t size = round_up(bytes < 1 ? 1 : bytes, Block::alignment);
    for (SizeClass& size_class : classes_)
      if (size_class.bytes == size) {
        if (size_class.free == nullptr) return make(size);
        Block::Header* header = std::exchange(size_class.free, size_class.free->next_free);
        return Block(header);
      }
    classes_.push_back({size, nullptr});
    return make(size);
  }

  /// Bytes allocated so far, in use or not.
  [[nodiscard]] index_t capacity() const noexcept { return capacity_; }

 private:
  friend class Block;
  struct SizeClass {
    index_t bytes;
    Block::Header* free;
  };

  [[nodiscard]] Block make(index_t size) {
    const index_t whole = Block::data_offset + size + Block::guard;
    void* memory = ::operator new (static_cast<std::size_t>(whole), std::align_val_t{Block::alignment});
    auto* bytes = static_cast<std::byte*>(memory);
    for (index_t i = 64; i < whole; ++i) bytes[i] = std::byte{0};  // guards are read: they have to be defined
    capacity_ += size;
    return Block(new (memory) Block::Header{this, size, 0, nullptr});
  }

  void give_back(Block::Header* header) noexcept {
    for (SizeClass& size_class : classes_)
      if (size_class.bytes == header->bytes) {
        header->next_free = std::exchange(size_class.free, header);
        return;
      }
  }

  std::vector<SizeClass> classes_;
  index_t capacity_ = 0;
};

inline Block::~Block() {
  if (header_ != nullptr && --header_->references == 0) header_->arena->give_back(header_);
}

}  // namespace strata
