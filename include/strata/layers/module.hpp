// Reflection over a network: walks the tree of modules that their `visit` functions describe and names every layer as
// PyTorch's state_dict does. Saving, loading, counting and pruning are each one walk.
#pragma once

#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>

namespace strata {

namespace detail {

template <class T>
struct is_optional : std::false_type {};
template <class T>
struct is_optional<std::optional<T>> : std::true_type {};

template <class T>
struct is_vector : std::false_type {};
template <class T, class A>
struct is_vector<std::vector<T, A>> : std::true_type {};

/// Accepts what `visit` calls its argument with; only used to ask whether a type has `visit`.
struct AnyVisitor {
  template <class... T>
  void operator()(T&&...) const {}
};

template <class T>
concept Composite = requires(T& module) {
  module.visit(AnyVisitor{});
};

/// The error of a `layer` that runs although no `visit` names it, so that it is neither trained, stored nor loaded.
[[nodiscard]] STRATA_COLD inline Error left_out(Error::Text layer) {
  return {layer, {"a name from the network's visit"}, {"none: visit leaves the layer out"}};
}

inline std::string joined(const std::string& prefix, const std::string& name) {
  return prefix.empty() ? name : prefix + "." + name;
}

template <class F, class Module>
void walk(const std::string& name, const std::string& norm_name, Module& module, F& f) {
  using Plain = std::remove_const_t<Module>;
  if constexpr (is_optional<Plain>::value) {
    if (module) walk(name, norm_name, *module, f);
  } else if constexpr (is_vector<Plain>::value) {
    for (std::size_t i = 0; i < module.size(); ++i) walk(joined(name, std::to_string(i)), std::string(), module[i], f);
  } else if constexpr (Composite<Plain>) {
    // `visit` is not const: a network describes itself once, and walks over a const one promise not to write.
    const_cast<Plain&>(module).visit([&]<class... Norm>(const char* child, auto& part, const Norm&... norm) {
      static_assert(sizeof...(Norm) <= 1, "visit passes a name, a module and at most the name of its norm");
      const std::string path = joined(name, child);
      std::string norm_path = path + ".norm";
      ((norm_path = joined(name, norm)), ...);
      using Part = std::conditional_t<std::is_const_v<Module>, const std::remove_reference_t<decltype(part)>,
                                      std::remove_reference_t<decltype(part)>>;
      walk(path, norm_path, static_cast<Part&>(part), f);
    });
  } else {
    f(name, norm_name, module);
  }
}

}  // namespace detail

/// Calls `f(name, norm_name, layer)` for every layer of `network` in the order of its `visit` functions. Names are
/// dotted paths, elements of vectors are numbered, absent optionals are left out. `norm_name` is the state_dict name of
/// a normalisation that is merged into the layer: what `visit` passed as third argument, otherwise the layer's name
/// with ".norm".
template <class Network, class F>
void for_each_layer(Network& network, F&& f) {
  detail::walk(std::string(), std::string(), network, f);
}

}  // namespace strata
