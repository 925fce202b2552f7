// The policies of the tables by name, for the simulation and the real run alike.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <strata/runtime/policy.hpp>

namespace qos {

/// Whether a policy's choices depend on the deadline; if not, one run serves all deadlines.
struct PolicyName {
  std::string name;
  bool looks_at_deadline = true;
};

inline const std::vector<PolicyName>& policy_names() {
  static const std::vector<PolicyName> names = {{"static full", false}, {"static sparsest", false}, {"random", false},
                                                {"start", true},        {"reroute", true},          {"both", true},
                                                {"both, up", true}};
  return names;
}
/// Only a simulation knows the future.
inline constexpr const char* oracle_name = "oracle";

/// Calls `f(policy)` with the policy of that name; the top level is `levels` - 1.
template <class F>
void with_policy(const std::string& name, int levels, std::uint64_t seed, F&& f) {
  const auto call = [&](auto policy) { f(policy); };
  if (name == "static full") return call(strata::StaticLevel{strata::Level{levels - 1}});
  if (name == "static sparsest") return call(strata::StaticLevel{strata::Level{0}});
  if (name == "random") return call(strata::RandomLevel(seed));
  if (name == "start") return call(strata::ChooseAtStart{});
  if (name == "reroute") return call(strata::Reroute{});
  if (name == "both") return call(strata::ChooseAndReroute{});
  if (name == "both, up") return call(strata::ChooseAndReroute{.up = true});
  strata::raise(strata::Error("policy", "one of the table's", "\"" + name + "\""));
}

}  // namespace qos
