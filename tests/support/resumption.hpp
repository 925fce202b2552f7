// What all tests of training runs that go on from a saved state check.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include <strata/layers/module.hpp>
#include <strata/runtime/thread_pool.hpp>
#include <strata/train/fit.hpp>
#include <strata/train/training.hpp>

#include "support/catch.hpp"

namespace test {

/// Every bit of what a network learnt, masks and running statistics included.
template <class Network>
std::vector<float> learnt_bits(Network& network) {
  std::vector<float> bits;
  for (const auto* parameter : strata::train::parameters<float>(network)) {
    bits.insert(bits.end(), parameter->value.begin(), parameter->value.end());
    bits.insert(bits.end(), parameter->strata.begin(), parameter->strata.end());
  }
  strata::for_each_layer(network, [&](const std::string&, const std::string&, auto& layer) {
    for (const auto& norm : layer.norms()) {
      bits.insert(bits.end(), norm.running_mean.begin(), norm.running_mean.end());
      bits.insert(bits.end(), norm.running_variance.begin(), norm.running_variance.end());
    }
  });
  return bits;
}

/// Runs `recipe` on what `make(seed)` gives with two threads, and from the state after each of its `steps` steps with
/// one: the same bits. The recipe's clipping and its factors of dropout have to make a difference.
template <class Task, class Make>
void check_resumption(Task& task, const strata::train::Recipe& recipe, std::size_t steps, const Make& make) {
  const auto run = [&](const strata::train::Recipe& of, strata::Executor& executor, const strata::Archive* from,
                       std::vector<strata::Archive>* saved) {
    auto network = make(from == nullptr ? 3 : 77);
    strata::train::Trainer<decltype(network), Task> trainer(network, task, of, executor);
    if (from != nullptr) REQUIRE(trainer.restore(*from).ok());
    while (!trainer.done()) {
      if (saved != nullptr) saved->push_back(trainer.state());
      trainer.step();
    }
    if (saved != nullptr) saved->push_back(trainer.state());
    return learnt_bits(network);
  };
  strata::ThreadPool two(2);
  strata::SerialExecutor one;
  std::vector<strata::Archive> saved;
  const auto expected = run(recipe, two, nullptr, &saved);
  REQUIRE(saved.size() == steps + 1);
  for (std::size_t step = 0; step < saved.size(); ++step) {
    INFO("saved after step " << step);
    CHECK(run(recipe, one, &saved[step], nullptr) == expected);
  }
  strata::train::Recipe without = recipe;
  without.clip = 0;
  CHECK(run(without, two, nullptr, nullptr) != expected);
  without = recipe;
  without.dropout_factors.clear();
  CHECK(run(without, two, nullptr, nullptr) != expected);
}

}  // namespace test
