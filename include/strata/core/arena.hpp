// Memory for activations and scratch: blocks that are taken and given back in the same pattern on every run, so that
// after the first run nothing is allocated. It knows bytes only; shapes are core/tensor.hpp's business.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

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
  /// Nobody else refers to the block.
  [[nodiscard]] bool unique() const noexcept { return header_ != nullptr && header_->references == 1; }

  static constexpr index_t alignment = 64;
  /// Bytes before and after the usable ones that may be read (not written): a vector that hangs over an edge.
  static constexpr index_t guard = 256;

 private:
  friend class Arena;
  struct Header {
    Arena* arena;
    index_t bytes;
    index_t references;
  };
  static_assert(sizeof(Header) <= 64);
  static constexpr index_t data_offset = 64 + guard;

  explicit Block(Header* header) noexcept : header_(header) { ++header_->references; }

  Header* header_ = nullptr;
};

/// Hands out blocks and takes them back. A block takes the first gap that is large enough, so that the layers of a
/// network use the same few addresses again and again, which are in the caches (blocks of their own for every size cost
/// ResNet-50 a tenth of its time).
class Arena {
 public:
  Arena() { segments_.reserve(256); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { release(); }

  /// A block of at least `bytes` bytes with unspecified contents. Allocates if there is no gap for it.
  [[nodiscard]] Block take(index_t bytes) {
    const index_t size = round_up(bytes < 1 ? 1 : bytes, Block::alignment);
    const index_t whole = round_up(Block::data_offset + size + Block::guard, size >= large ? page : Block::alignment);
    std::size_t at = 0;
    while (at < segments_.size() && (segments_[at].used || segments_[at].bytes < whole)) ++at;
    if (at == segments_.size()) grow(whole);
    Segment& segment = segments_[at];
    const Segment rest{segment.start + whole, segment.bytes - whole, segment.slab, false};
    segment.bytes = whole;
    segment.used = true;
    std::byte* const start = segment.start;
    if (rest.bytes > 0) segments_.insert(segments_.begin() + static_cast<std::ptrdiff_t>(at) + 1, rest);
    return Block(new (start) Block::Header{this, size, 0});
  }

  /// Bytes allocated so far, in use or not.
  [[nodiscard]] index_t capacity() const noexcept { return capacity_; }

  /// Puts all memory into one piece. The next run then starts from where all later ones do: if it allocates nothing, no
  /// later run of the same pattern does. Returns whether it did so: not if all is one piece, or a block is taken.
  bool unite() {
    for (const Segment& segment : segments_)
      if (segment.used) return false;
    if (slabs_.size() < 2) return false;
    const index_t bytes = capacity_;
    release();
    grow(bytes);
    return true;
  }

 private:
  friend class Block;
  /// Blocks of at least `large` bytes are whole pages: two that a layer reads and writes side by side, at distances
  /// that are nearly but not quite multiples of a page, are mistaken for one another by processors.
  static constexpr index_t large = 65536;
  static constexpr index_t page = 4096;
  static constexpr index_t huge_page = index_t{2} << 20;

  /// A stretch of a slab: a block or a gap. In order of addresses within a slab; no two gaps are neighbours.
  struct Segment {
    std::byte* start;
    index_t bytes;
    std::size_t slab;
    bool used;
  };

  struct Slab {
    std::byte* memory;
    index_t bytes;
    [[nodiscard]] std::align_val_t alignment() const noexcept {
      return std::align_val_t{static_cast<std::size_t>(bytes >= huge_page ? huge_page : page)};
    }
  };

  void grow(index_t bytes) {
    Slab slab{nullptr, bytes};
    const auto size = static_cast<std::size_t>(bytes);
    slab.memory = static_cast<std::byte*>(::operator new(size, slab.alignment()));
#if defined(__linux__)
    // 2 % on ResNet-50; without effect where the system has no huge pages.
    if (bytes >= huge_page) (void)madvise(slab.memory, size, MADV_HUGEPAGE);
#endif
    std::memset(slab.memory, 0, size);  // guards are read: they have to be defined
    segments_.push_back({slab.memory, bytes, slabs_.size(), false});
    slabs_.push_back(slab);
    capacity_ += bytes;
  }

  void release() noexcept {
    for (const Slab& slab : slabs_) ::operator delete(slab.memory, slab.alignment());
    slabs_.clear();
    segments_.clear();
    capacity_ = 0;
  }

  void give_back(Block::Header* header) noexcept {
    std::size_t at = 0;
    while (segments_[at].start != reinterpret_cast<std::byte*>(header)) ++at;
    segments_[at].used = false;
    if (at + 1 < segments_.size()) join(at);
    if (at > 0) join(at - 1);
  }

  /// Makes segment `at` and the next one a single gap if they can be.
  void join(std::size_t at) noexcept {
    Segment& segment = segments_[at];
    const Segment& next = segments_[at + 1];
    if (segment.used || next.used || segment.slab != next.slab) return;
    segment.bytes += next.bytes;
    segments_.erase(segments_.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }

  std::vector<Segment> segments_;
  std::vector<Slab> slabs_;
  index_t capacity_ = 0;
};

inline Block::~Block() {
  if (header_ != nullptr && --header_->references == 0) header_->arena->give_back(header_);
}

}  // namespace strata
