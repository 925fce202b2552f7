// The arena: blocks of the right size and alignment, reuse by size, counted references, readable guards.
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include <strata/core/arena.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"

using strata::Arena;
using strata::Block;
using strata::index_t;

TEST_CASE("blocks hold at least what was asked for, aligned and apart from each other") {
  Arena arena;
  std::vector<Block> blocks;
  for (const index_t bytes : {0, 1, 63, 64, 65, 127, 128, 1000, 4096, 100001})
    for (int copy = 0; copy < 2; ++copy) {
      INFO(bytes << " bytes");
      blocks.push_back(arena.take(bytes));
      const Block& block = blocks.back();
      REQUIRE(block.data() != nullptr);
      CHECK(reinterpret_cast<std::uintptr_t>(block.data()) % static_cast<std::uintptr_t>(Block::alignment) == 0);
      CHECK(block.bytes() >= bytes);
      CHECK(block.bytes() >= 1);
      CHECK(block.bytes() % Block::alignment == 0);
      CHECK(block.bytes() - bytes <= Block::alignment);
      std::memset(block.data(), static_cast<int>(blocks.size()), static_cast<std::size_t>(block.bytes()));
    }
  index_t sum = 0;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    bool untouched = true;
    for (index_t at = 0; at < blocks[i].bytes(); ++at)
      untouched = untouched && blocks[i].data()[at] == static_cast<std::byte>(i + 1);
    INFO("block " << i);
    CHECK(untouched);
    sum += blocks[i].bytes();
  }
  CHECK(arena.capacity() >= sum);
}

TEST_CASE("a block takes the first gap that is large enough") {
  Arena arena;
  Block first = arena.take(5000);
  const Block second = arena.take(1000);
  const std::byte* const place = first.data();
  first = Block();
  CHECK(arena.take(6000).data() != place);
  Block small = arena.take(64);
  CHECK(small.data() == place);
  const Block beside = arena.take(64);  // in what the small one left of the gap
  CHECK(beside.data() > place);
  CHECK(beside.data() < place + 5000);
  small = Block();
  CHECK(arena.take(5000).data() != place);  // the gap is in two
}

TEST_CASE("neighbouring gaps become one") {
  Arena arena;
  std::vector<Block> blocks;
  { const Block whole = arena.take(10000); }
  const index_t capacity = arena.capacity();
  for (const std::size_t order : {0U, 1U, 2U}) {  // which of three neighbours goes back last
    for (int i = 0; i < 3; ++i) blocks.push_back(arena.take(1000));
    for (std::size_t i = 1; i <= 3; ++i) blocks[(order + i) % 3] = Block();
    blocks.clear();
    CHECK(arena.take(10000).data() != nullptr);
    CHECK(arena.capacity() == capacity);
  }
}

TEST_CASE("united memory serves the pattern that it grew by") {
  Arena arena;
  const auto round = [&] {
    Block a = arena.take(70000);
    Block b = arena.take(500);
    b = arena.take(200000);
    a = arena.take(100);
    b = arena.take(300000);
  };
  round();
  {
    const Block taken = arena.take(1);
    CHECK_FALSE(arena.unite());
  }
  CHECK(arena.unite());
  CHECK_FALSE(arena.unite());
  round();
  while (arena.unite()) round();
  const long before = allocations();
  for (int i = 0; i < 5; ++i) round();
  CHECK(allocations() == before);
}

TEST_CASE("a pattern of requests that repeats allocates in its first round only") {
  Arena arena;
  const auto round = [&] {
    Block a = arena.take(500);
    Block b = arena.take(500);
    a = arena.take(3000);
    const Block kept = b;
    b = arena.take(500);
    for (int i = 0; i < 10; ++i) a = arena.take(100 * (i % 3));
  };
  round();
  const index_t capacity = arena.capacity();
  const long before = allocations();
  for (int i = 0; i < 50; ++i) round();
  CHECK(allocations() == before);
  CHECK(arena.capacity() == capacity);
}

TEST_CASE("a block goes back with its last reference") {
  Arena arena;
  Block block = arena.take(256);
  std::byte* const place = block.data();
  Block copy = block;
  const Block& same = copy;
  copy = same;  // to itself
  CHECK(copy.data() == place);
  block = Block();
  CHECK(arena.take(256).data() != place);
  Block moved = std::move(copy);
  CHECK(moved.data() == place);
  CHECK(arena.take(256).data() != place);
  {
    const Block last = std::move(moved);
    CHECK(last.data() == place);
  }
  CHECK(arena.take(256).data() == place);
}

TEST_CASE("an empty reference has no bytes and may be copied") {
  const Block empty;
  CHECK(empty.data() == nullptr);
  CHECK(empty.bytes() == 0);
  const Block copy = empty;
  CHECK(copy.data() == nullptr);
  Arena unused;
  CHECK(unused.capacity() == 0);
}

TEST_CASE("the guards on both sides of a block can be read and are zero") {
  Arena arena;
  for (const index_t bytes : {1, 64, 777}) {
    INFO(bytes << " bytes");
    const Block block = arena.take(bytes);
    bool zero = true;
    for (index_t at = 1; at <= Block::guard; ++at) {
      zero = zero && block.data()[-at] == std::byte{0};
      zero = zero && block.data()[block.bytes() + at - 1] == std::byte{0};
    }
    CHECK(zero);
  }
}
