// Fuzz target: any bytes as a model file. They are refused or give a model that runs at every level.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include <strata/io/model_file.hpp>

#include "support/small_net.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // Aligned like a mapped file and of exactly the size, so that the address sanitizer sees a read beyond the end.
  constexpr std::align_val_t alignment{64};
  const std::shared_ptr<std::byte> copy(static_cast<std::byte*>(::operator new(size, alignment)),
                                        [](std::byte* memory) { ::operator delete(memory, alignment); });
  if (size > 0) std::memcpy(copy.get(), data, size);
  const auto archive = strata::io::parse_model({copy.get(), size}, copy);
  if (!archive) return 0;
  try {
    const auto model = test::SmallModel::from_archive(archive.value());
    if (!model) return 0;
    strata::Session<test::SmallModel> session(model.value());
    for (int level = 0; level < model.value().levels(); ++level) session.forward(strata::Level{level});
  } catch (const strata::Error&) {  // a config that describes no layer
  }
  return 0;
}
