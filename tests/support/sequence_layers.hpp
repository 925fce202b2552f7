// What tests of sequence layers share: random parameters and levels, a layer of the inference family with the
// parameters of one of the training family, tensors of both from the same numbers.
#pragma once

#include <cmath>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <strata/layers/exchange.hpp>
#include <strata/layers/inference.hpp>
#include <strata/train/training.hpp>

namespace test {

using strata::index_t;
using strata::Level;

/// Random values; each levelled weight at one of `levels` or in none. `empty`: a stratum that gets no weight, or -1.
template <class Parameters>
void randomise_levels(const Parameters& parameters, int levels, unsigned seed, int empty = -1) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform(-0.7, 0.7);
  for (auto* parameter : parameters) {
    for (double& value : parameter->value) value = static_cast<double>(static_cast<float>(uniform(random)));
    if (levels == 0 || !parameter->levelled) continue;
    parameter->strata.resize(static_cast<std::size_t>(parameter->value.size()));
    for (auto& stratum : parameter->strata) {
      const auto draw = static_cast<int>(random() % static_cast<unsigned>(levels + 1));
      stratum = draw == levels || draw == empty ? strata::StratumMap::absent : static_cast<std::uint8_t>(draw);
    }
  }
}

template <class Layer>
auto parameters_of(Layer& layer) {
  std::vector<strata::train::Parameter<double>*> result;
  layer.for_each_parameter("layer", "norm", [&](auto& parameter) { result.push_back(&parameter); });
  return result;
}

/// The values that `level` holds.
inline std::vector<double> at_level(const strata::train::Parameter<double>& parameter, Level level) {
  std::vector<double> values(parameter.value.begin(), parameter.value.end());
  for (index_t i = 0; i < parameter.value.size(); ++i)
    if (!parameter.contains(i, level)) values[static_cast<std::size_t>(i)] = 0;
  return values;
}

/// Fills `layer` of the inference family from `trained`.
template <class Trained, class Layer>
void transfer(const Trained& trained, int levels, Layer& layer) {
  strata::Archive archive;
  archive.set_levels(levels);
  strata::ParameterSink sink(archive);
  trained.store("layer", "norm", sink);
  strata::ParameterSource source(archive);
  layer.load("layer", "norm", source);
  (void)source.finish("none").value();
}

inline std::vector<double> random_numbers(index_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<double> numbers(static_cast<std::size_t>(count));
  for (double& number : numbers) number = static_cast<double>(uniform(random));
  return numbers;
}

/// `samples` x features numbers, sample by sample, as tensors.
template <class Context>
auto tensor_of(Context& context, const std::vector<double>& numbers, index_t features) {
  const index_t samples = static_cast<index_t>(numbers.size()) / features;
  const auto x = context.make(samples, {features, 1, 1});
  for (index_t n = 0; n < samples; ++n)
    for (index_t f = 0; f < features; ++f)
      *x.row(n, f, 0) = static_cast<float>(numbers[static_cast<std::size_t>(n * features + f)]);
  return x;
}
inline strata::train::Tensor<double> tensor_of(strata::train::Context<double>& context,
                                               const std::vector<double>& numbers, index_t features) {
  const auto x = context.make(static_cast<index_t>(numbers.size()) / features, {features, 1, 1}, true);
  std::copy(numbers.begin(), numbers.end(), x.value().data());
  return x;
}

/// The numbers of a tensor, sample by sample.
inline std::vector<double> numbers_of(const strata::Tensor<float>& x) {
  std::vector<double> numbers;
  for (index_t n = 0; n < x.batch(); ++n)
    for (index_t f = 0; f < x.shape().channels; ++f) numbers.push_back(static_cast<double>(*x.row(n, f, 0)));
  return numbers;
}
inline std::vector<double> numbers_of(const strata::train::Tensor<double>& x) {
  return {x.value().begin(), x.value().end()};
}

/// Largest difference; infinite for other sizes.
inline double difference(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return INFINITY;
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (const double d = std::abs(a[i] - b[i]); !(d <= worst)) worst = d;
  return worst;
}

}  // namespace test
