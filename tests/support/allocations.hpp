// Counts every call of operator new in the test program.
#pragma once

/// Calls of operator new so far, all threads together.
long allocations() noexcept;
