// Linear and recurrent layers by the non-zeros of a level against the same layers with whole matrices that have zeros
// in the place of what the level lacks: outputs, gradients of inputs, of weights and of states.
#include <cmath>
#include <random>
#include <vector>

#include <strata/runtime/thread_pool.hpp>
#include <strata/train/lstm.hpp>
#include <strata/train/product.hpp>

#include "support/catch.hpp"

namespace {

using strata::index_t;
using strata::Level;
namespace train = strata::train;
using Context = train::Context<double>;
using Tensor = train::Tensor<double>;
using Parameter = train::Parameter<double>;
using Array = Eigen::Array<double, Eigen::Dynamic, 1>;

constexpr index_t least_samples = 2 * train::lanes_of<double>;

void fill(std::mt19937& random, Array& values) {
  std::uniform_real_distribution<double> uniform(-1, 1);
  for (double& value : values) value = uniform(random);
}

/// A tenth of the weights each at levels 0, 1 and 2, the others in none.
Parameter levelled(std::mt19937& random, index_t rows, index_t columns) {
  Parameter result({rows, columns}, 0);
  fill(random, result.value);
  result.levelled = true;
  for (index_t i = 0; i < rows * columns; ++i) {
    const auto draw = random() % 10;
    result.strata.push_back(draw > 2 ? strata::StratumMap::absent : static_cast<std::uint8_t>(draw));
  }
  return result;
}

/// The same at `level` as a whole matrix.
Parameter whole(const Parameter& sparse, Level level) {
  Parameter result = sparse;
  result.strata.clear();
  for (index_t i = 0; i < result.value.size(); ++i)
    if (!sparse.contains(i, level)) result.value[i] = 0;
  return result;
}

bool close(const Array& a, const Array& b) {
  return a.size() == b.size() && (a.size() == 0 || (a - b).abs().maxCoeff() < 1e-11 * (1 + b.abs().maxCoeff()));
}

/// Gradients of the weights agree where the level has some, and are zero elsewhere.
bool gradients_agree(const Parameter& sparse, const Parameter& dense, Level level) {
  Array expected = dense.gradient;
  for (index_t i = 0; i < expected.size(); ++i)
    if (!sparse.contains(i, level)) expected[i] = 0;
  return close(sparse.gradient, expected);
}

}  // namespace

TEST_CASE("linear layers by their non-zeros are those with whole matrices") {
  std::mt19937 random(1);
  strata::ThreadPool pool(3);
  Context context(pool);
  for (const index_t outputs : {1, 5, 64, 130})
    for (const index_t inputs : {1, 7, 64, 100})
      for (const index_t samples : {least_samples, least_samples + 1, index_t{37}, index_t{64}, index_t{150}})
        for (const int level : {0, 1}) {
          INFO(outputs << " x " << inputs << ", " << samples << " samples, level " << level);
          Parameter sparse = levelled(random, outputs, inputs);
          Parameter dense = whole(sparse, Level{level});
          Parameter bias({outputs}, 0.5);
          Array x(inputs * samples);
          Array dy(outputs * samples);
          fill(random, x);
          fill(random, dy);
          std::vector<Array> results[2];
          for (const bool by_zeros : {false, true}) {
            Parameter& weight = by_zeros ? dense : sparse;
            for (int pass = 0; pass < 2; ++pass) {  // the second finds the lists of the first, and other values
              context.begin(Level{level});
              const Tensor input = context.make(samples, {inputs, 1, 1}, true);
              input.value() = x;
              const Tensor y = train::linear(context, input, weight, &bias);
              y.gradient() = dy;
              context.backward();
              results[by_zeros].insert(results[by_zeros].end(), {y.value(), input.gradient()});
              weight.value *= 2;
            }
          }
          for (std::size_t i = 0; i < results[0].size(); ++i) CHECK(close(results[0][i], results[1][i]));
          CHECK(gradients_agree(sparse, dense, Level{level}));
        }
}

TEST_CASE("products by non-zeros need few of them, enough samples and a mask") {
  std::mt19937 random(2);
  strata::SerialExecutor executor;
  Context context(executor);
  const auto found = [&](const Parameter& weight, int level, index_t samples) {
    context.begin(Level{level});
    return train::detail::SparseMatrix<double>::find(context, weight, Level{level}, samples) != nullptr;
  };
  Parameter weight = levelled(random, 40, 50);
  CHECK(found(weight, 0, least_samples));
  CHECK_FALSE(found(weight, 0, least_samples - 1));
  for (auto& stratum : weight.strata)
    if (stratum == strata::StratumMap::absent) stratum = 1;
  CHECK(found(weight, 0, least_samples));
  CHECK_FALSE(found(weight, 1, least_samples));
  weight.strata.clear();
  CHECK_FALSE(found(weight, 0, least_samples));
}

TEST_CASE("LSTMs by their non-zeros are those with whole matrices") {
  std::mt19937 random(3);
  strata::ThreadPool pool(3);
  Context context(pool);
  for (const index_t units : {3, 16, 33})
    for (const index_t batch : {least_samples - 1, least_samples, index_t{70}})
      for (const bool reverse : {false, true})
        for (const bool from_zeros : {false, true}) {
          INFO(units << " units, batch " << batch << ", reverse " << reverse << ", from zeros " << from_zeros);
          const Level level{1};
          const index_t inputs = 9;
          const index_t steps = 4;
          std::vector<std::int32_t> lengths;
          for (index_t b = 0; b < batch; ++b) lengths.push_back(static_cast<std::int32_t>(b % (steps + 1)));
          const strata::SequenceShape shape{steps, batch, lengths};
          train::LstmDirection<double> sparse{levelled(random, 4 * units, inputs),
                                              levelled(random, 4 * units, units),
                                              {Parameter({4 * units}, 0.1)},
                                              {Parameter({4 * units}, 0.2)}};
          train::LstmDirection<double> dense = sparse;
          dense.input_weight = whole(sparse.input_weight, level);
          dense.hidden_weight = whole(sparse.hidden_weight, level);
          Array x(inputs * steps * batch);
          Array dy(units * steps * batch);
          Array state(units * batch);
          fill(random, x);
          fill(random, dy);
          fill(random, state);
          std::vector<Array> results[2];
          for (const bool by_zeros : {false, true}) {
            context.begin(level);
            const Tensor input = context.make(steps * batch, {inputs, 1, 1}, true);
            input.value() = x;
            const Tensor y = context.make(steps * batch, {units, 1, 1}, true);
            Tensor hidden, cell;
            std::vector<Tensor> before;
            if (!from_zeros) {
              before = {context.make(batch, {units, 1, 1}, true), context.make(batch, {units, 1, 1}, true)};
              hidden = before[0];
              cell = before[1];
              hidden.value() = state;
              cell.value() = -state;
            }
            train::lstm<double>(context, input, shape, reverse, by_zeros ? dense : sparse, from_zeros, hidden, cell, y,
                                0, nullptr);
            y.gradient() = dy;
            context.backward();
            results[by_zeros] = {y.value(), hidden.value(), cell.value(), input.gradient()};
            for (const Tensor& tensor : before) results[by_zeros].push_back(tensor.gradient());
          }
          for (std::size_t i = 0; i < results[0].size(); ++i) CHECK(close(results[0][i], results[1][i]));
          CHECK(gradients_agree(sparse.input_weight, dense.input_weight, level));
          CHECK(gradients_agree(sparse.hidden_weight, dense.hidden_weight, level));
          CHECK(close(sparse.input_bias[0].gradient, dense.input_bias[0].gradient));
        }
}
