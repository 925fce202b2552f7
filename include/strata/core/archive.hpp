// Named arrays with the stratum each belongs to: the form in which a network's parameters pass between training,
// inference and model files. It knows nothing of layers (layers/parameters.hpp) or of files (io/).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>

namespace strata {

/// Element types of stored arrays; the names are those of safetensors. Networks store neither f16 nor bf16, which
/// state_dicts may have.
enum class DataType : std::uint8_t { u8, u16, u32, i32, i64, f32, f64, f16, bf16 };

[[nodiscard]] constexpr index_t size_of(DataType type) noexcept {
  switch (type) {
    case DataType::u8:
      return 1;
    case DataType::u16:
    case DataType::f16:
    case DataType::bf16:
      return 2;
    case DataType::u32:
    case DataType::i32:
    case DataType::f32:
      return 4;
    case DataType::i64:
    case DataType::f64:
      return 8;
  }
  return 0;
}

/// The safetensors name of a type, such as "F32".
[[nodiscard]] constexpr std::string_view name_of(DataType type) noexcept {
  switch (type) {
    case DataType::u8:
      return "U8";
    case DataType::u16:
      return "U16";
    case DataType::u32:
      return "U32";
    case DataType::i32:
      return "I32";
    case DataType::i64:
      return "I64";
    case DataType::f32:
      return "F32";
    case DataType::f64:
      return "F64";
    case DataType::f16:
      return "F16";
    case DataType::bf16:
      return "BF16";
  }
  return "?";
}

/// The `DataType` of a C++ element type.
template <class T>
[[nodiscard]] consteval DataType data_type_of() {
  if constexpr (std::is_same_v<T, std::uint8_t>) {
    return DataType::u8;
  } else if constexpr (std::is_same_v<T, std::uint16_t>) {
    return DataType::u16;
  } else if constexpr (std::is_same_v<T, std::uint32_t>) {
    return DataType::u32;
  } else if constexpr (std::is_same_v<T, std::int32_t>) {
    return DataType::i32;
  } else if constexpr (std::is_same_v<T, std::int64_t>) {
    return DataType::i64;
  } else if constexpr (std::is_same_v<T, float>) {
    return DataType::f32;
  } else {
    static_assert(std::is_same_v<T, double>, "no stored form for this element type");
    return DataType::f64;
  }
}

/// One stored array: row-major, little-endian, aligned at least to its element. `stratum` is the lowest level that
/// needs it.
struct ArrayView {
  std::string name;
  DataType type = DataType::f32;
  std::vector<index_t> shape;
  int stratum = 0;
  std::span<const std::byte> bytes;

  [[nodiscard]] index_t size() const noexcept {
    index_t product = 1;
    for (index_t extent : shape) product *= extent;
    return product;
  }

  /// The elements. Precondition: `data_type_of<T>() == type`.
  template <class T>
  [[nodiscard]] std::span<const T> as() const noexcept {
    return {reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)};
  }
};

/// An ordered set of arrays plus text metadata. Array memory is held by shared owners (a vector, a mapped file), so
/// that layers which view it can keep it alive.
class Archive {
 public:
  /// Number of levels; arrays have strata 0 .. levels-1.
  [[nodiscard]] int levels() const noexcept { return levels_; }
  void set_levels(int levels) noexcept { levels_ = levels; }

  [[nodiscard]] const std::vector<ArrayView>& arrays() const noexcept { return arrays_; }
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const noexcept { return metadata_; }
  [[nodiscard]] std::map<std::string, std::string>& metadata() noexcept { return metadata_; }

  /// The array of that name or null.
  [[nodiscard]] const ArrayView* find(std::string_view name) const noexcept {
    auto found = index_.find(name);
    return found == index_.end() ? nullptr : &arrays_[found->second];
  }

  /// Adds a view of memory that an owner passed to `keep` holds. False (and nothing is added) if the name is taken.
  STRATA_COLD bool add_view(ArrayView view) {
    if (!index_.emplace(view.name, arrays_.size()).second) return false;
    arrays_.push_back(std::move(view));
    return true;
  }

  /// Adds a copy of `values`. False (and nothing is added) if the name is taken.
  template <class T>
  bool add(std::string name, std::vector<index_t> shape, int stratum, std::span<const T> values) {
    auto copy = std::make_shared<std::vector<T>>(values.begin(), values.end());
    ArrayView view{std::move(name), data_type_of<T>(), std::move(shape), stratum,
                   std::as_bytes(std::span<const T>(*copy))};
    if (!add_view(std::move(view))) return false;
    keep(std::move(copy));
    return true;
  }

  /// Keeps `owner` alive as long as the archive.
  void keep(std::shared_ptr<const void> owner) { owners_.push_back(std::move(owner)); }
  [[nodiscard]] const std::vector<std::shared_ptr<const void>>& owners() const noexcept { return owners_; }

  /// The memory that a mapped file backs, of which pages may be given back to the system and come again from the file;
  /// empty if there is none. Arrays inside it lie stratum by stratum.
  [[nodiscard]] std::span<const std::byte> mapped() const noexcept { return mapped_; }
  void set_mapped(std::span<const std::byte> bytes) noexcept { mapped_ = bytes; }

 private:
  int levels_ = 1;
  std::vector<ArrayView> arrays_;
  std::map<std::string, std::size_t, std::less<>> index_;
  std::map<std::string, std::string> metadata_;
  std::vector<std::shared_ptr<const void>> owners_;
  std::span<const std::byte> mapped_;
};

}  // namespace strata
