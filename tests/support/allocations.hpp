// Counts every call of operator new in the test program, and lets large ones fail.
#pragma once

#include <cstddef>

/// Calls of operator new so far, all threads together.
long allocations() noexcept;

/// While the object lives, operator new fails for `bytes` bytes and more.
class FailingAllocations {
 public:
  explicit FailingAllocations(std::size_t bytes) noexcept;
  FailingAllocations(const FailingAllocations&) = delete;
  FailingAllocations& operator=(const FailingAllocations&) = delete;
  ~FailingAllocations();
};
