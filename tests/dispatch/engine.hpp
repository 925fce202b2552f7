// What the common part of a program and its variants share: an interface without any kernel in it.
#pragma once

#include <memory>
#include <string>
#include <vector>

class Engine {
 public:
  virtual ~Engine() = default;
  virtual int levels() const = 0;
  virtual std::string architecture() const = 0;
  virtual std::vector<float> run(const std::vector<float>& input, int level) = 0;
};

/// Raises strata::Error if `seed` is negative, which shows that errors cross the border between variants.
using MakeEngine = std::unique_ptr<Engine>(int seed);
