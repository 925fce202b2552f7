// One program for machines with different instruction sets: which of several compiled variants of the same code this
// machine can run. Nothing else of strata is included, so that code for the oldest machine stays free of kernels;
// cmake/StrataDispatch.cmake compiles the variants and docs/dispatch.md shows how both are used.
#pragma once

#include <array>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <typeinfo>
#include <utility>

#include <strata/core/error.hpp>
#if defined(__GNUC__)
#include <cxxabi.h>
#endif

namespace strata {

namespace detail {

/// What `std::type_info::name` gives, as it stands in a source file where the compiler can tell.
[[nodiscard]] inline std::string readable(const char* type) {
#if defined(__GNUC__)
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> text(abi::__cxa_demangle(type, nullptr, nullptr, &status),
                                                         &std::free);
  if (text != nullptr) return text.get();
#endif
  return type;
}

}  // namespace detail

/// The instruction sets for which variants are compiled, each better than those before it. "avx2" includes FMA, BMI
/// and BMI2; "avx512" besides the foundation CD, DQ, BW and VL.
inline constexpr std::array<std::string_view, 4> dispatch_architectures = {"sse2", "neon64", "avx2", "avx512"};

/// A set of `dispatch_architectures`.
class ArchitectureSet {
 public:
  /// Raises: a name that `dispatch_architectures` has not.
  ArchitectureSet(std::initializer_list<std::string_view> names) {
    for (const std::string_view name : names) {
      const auto at = index_of(name);
      if (at == dispatch_architectures.size())
        raise(Error({"instruction set"}, {"one of ", ArchitectureSet(all()).text()}, {"\"", name, "\""}));
      has_[at] = true;
    }
  }

  /// Those that the processor has and the operating system lets programs use.
  [[nodiscard]] static ArchitectureSet of_this_machine() {
    ArchitectureSet set({});
#if defined(__x86_64__) || defined(__i386__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    set.has_[index_of("sse2")] = __builtin_cpu_supports("sse2") != 0;
    set.has_[index_of("avx2")] = avx2;
    set.has_[index_of("avx512")] = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") &&
                                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                                   __builtin_cpu_supports("avx512vl");
#elif defined(__aarch64__)
    set.has_[index_of("neon64")] = true;
#endif
    return set;
  }

  [[nodiscard]] bool has(std::string_view name) const noexcept {
    const auto at = index_of(name);
    return at < has_.size() && has_[at];
  }

  /// The names, "none" if there are none.
  [[nodiscard]] std::string text() const {
    std::string names;
    for (std::size_t i = 0; i < has_.size(); ++i)
      if (has_[i]) names += (names.empty() ? "" : ", ") + std::string(dispatch_architectures[i]);
    return names.empty() ? "none" : names;
  }

  /// The place in `dispatch_architectures`; its size if the name is not in it.
  [[nodiscard]] static std::size_t index_of(std::string_view name) noexcept {
    std::size_t at = 0;
    while (at < dispatch_architectures.size() && dispatch_architectures[at] != name) ++at;
    return at;
  }

 private:
  struct All {};
  [[nodiscard]] static All all() noexcept {
    return {};
  }
  explicit ArchitectureSet(All) {
    has_.fill(true);
  }

  std::array<bool, dispatch_architectures.size()> has_{};
};

/// What a variant's object file gives away: a function of a type that the caller knows, and that type's name.
struct VariantFunction {
  void (*function)() = nullptr;
  const char* type = nullptr;
};

/// One compiled variant. `entry` is code of its instruction set: not to be called before it was chosen.
struct Variant {
  std::string_view architecture;
  VariantFunction (*entry)() noexcept = nullptr;
};

/// The best of `variants` that `machine` can run, or the one that `forced` names if it is not empty; `forced_by` says
/// in errors who named it. Errors: none that the machine has, a forced one that was not compiled or that the machine
/// lacks.
[[nodiscard]] inline Result<Variant> choose_variant(std::span<const Variant> variants, const ArchitectureSet& machine,
                                                    std::string_view forced = {},
                                                    const std::string& forced_by = "instruction set") {
  std::string compiled;
  const Variant* best = nullptr;
  for (const Variant& variant : variants) {
    compiled += (compiled.empty() ? "" : ", ") + std::string(variant.architecture);
    const bool wanted = forced.empty() ? machine.has(variant.architecture) : variant.architecture == forced;
    if (wanted && (best == nullptr ||
                   ArchitectureSet::index_of(variant.architecture) > ArchitectureSet::index_of(best->architecture)))
      best = &variant;
  }
  if (best != nullptr && machine.has(best->architecture)) return *best;
  if (best != nullptr)
    return Error({forced_by}, {"an instruction set of this machine (", machine.text(), ")"}, {"\"", forced, "\""});
  if (!forced.empty())
    return Error({forced_by}, {"an instruction set that was compiled (", compiled, ")"}, {"\"", forced, "\""});
  return Error({"dispatch"}, {"a machine with one of the instruction sets that were compiled (", compiled, ")"},
               {"one with ", machine.text()});
}

/// The environment variable by which a user may name the variant.
inline constexpr const char* dispatch_variable = "STRATA_ARCH";

/// Calls the function that `STRATA_DISPATCH_ENTRY` names in the best variant for this machine. `Function` is its type,
/// `std::unique_ptr<Engine>(const std::string&)` say.
template <class Function>
class Dispatcher {
 public:
  /// Chooses among `variants` (what the library's generated function returns): `forced`, else what the environment
  /// variable STRATA_ARCH names, else the best. Raises: what `choose_variant` refuses; an entry of another type.
  explicit Dispatcher(std::span<const Variant> variants, std::string_view forced = {}) {
    const char* const variable = std::getenv(dispatch_variable);
    const bool by_variable = forced.empty() && variable != nullptr;
    if (by_variable) forced = variable;
    const Variant chosen = choose_variant(variants, ArchitectureSet::of_this_machine(), forced,
                                          by_variable ? dispatch_variable : "instruction set")
                               .value();
    const VariantFunction entry = chosen.entry();
    if (std::string_view(entry.type) != typeid(Function).name())
      raise(Error("dispatch entry", "a function of type " + detail::readable(typeid(Function).name()),
                  detail::readable(entry.type)));
    function_ = reinterpret_cast<Function*>(entry.function);
    active_ = chosen.architecture;
  }

  /// The instruction set of the chosen variant.
  [[nodiscard]] std::string_view active() const noexcept { return active_; }

  template <class... Arguments>
  decltype(auto) operator()(Arguments&&... arguments) const {
    return function_(std::forward<Arguments>(arguments)...);
  }

 private:
  Function* function_ = nullptr;
  std::string_view active_;
};

}  // namespace strata

/// In one source file of `strata_add_dispatched_library`, at namespace scope: `function`, not overloaded, is what
/// `Dispatcher` calls.
#define STRATA_DISPATCH_ENTRY(function)                                                    \
  extern "C" strata::VariantFunction STRATA_DISPATCH_SYMBOL() noexcept {                   \
    return {reinterpret_cast<void (*)()>(&(function)), typeid(decltype(function)).name()}; \
  }                                                                                        \
  static_assert(true, "takes the semicolon")
