#include "support/allocations.hpp"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<long> count{0};
std::atomic<std::size_t> too_large{0};  // 0: no size is

/// Counts a call, and throws if it is to fail.
void note(std::size_t size) {
  ++count;
  if (const std::size_t limit = too_large; limit != 0 && size >= limit) throw std::bad_alloc();
}

}  // namespace

void* operator new(std::size_t size) {
  note(size);
  if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  note(size);
  const auto step = static_cast<std::size_t>(alignment);
  if (void* memory = std::aligned_alloc(step, (size + step - 1) / step * step)) return memory;
  throw std::bad_alloc();
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  ++count;
  return std::malloc(size == 0 ? 1 : size);
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}

long allocations() noexcept {
  return count;
}

FailingAllocations::FailingAllocations(std::size_t bytes) noexcept {
  too_large = bytes;
}
FailingAllocations::~FailingAllocations() {
  too_large = 0;
}
