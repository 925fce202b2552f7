// Gradients of the operations on sequences against finite differences in double, at two levels, with padding, states
// and lengths of 0 and 1; the same bits on any number of threads; losses against plain sums.
#include <cmath>
#include <functional>
#include <random>

#include <strata/runtime/thread_pool.hpp>
#include <strata/train/optimiser.hpp>
#include <strata/train/sequence_loss.hpp>
#include <strata/train/training.hpp>

#include "../../examples/gnmt/network.hpp"
#include "support/catch.hpp"

namespace {

using strata::index_t;
using strata::Level;
using strata::SequenceShape;
using strata::TokenId;
using Family = strata::train::Training<double>;
using Context = Family::Context;
using Tensor = Family::Tensor;
using Parameter = strata::train::Parameter<double>;
using Parameters = std::vector<Parameter*>;

bool close(double a, double b) {
  return std::abs(a - b) <= 1e-11 * (1 + std::abs(b));
}

template <class Layer>
Parameters parameters_of(Layer& layer) {
  Parameters result;
  layer.for_each_parameter("layer", "norm", [&](auto& parameter) { result.push_back(&parameter); });
  return result;
}

/// Random values; a third each of the levelled weights at level 0, at level 1 and in none.
void randomise(const Parameters& parameters, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform(-0.8, 0.8);
  for (auto* parameter : parameters) {
    for (double& value : parameter->value) value = uniform(random);
    if (!parameter->levelled) continue;
    parameter->strata.resize(static_cast<std::size_t>(parameter->value.size()));
    for (auto& stratum : parameter->strata) {
      const auto draw = random() % 3;
      stratum = draw == 2 ? strata::StratumMap::absent : static_cast<std::uint8_t>(draw);
    }
  }
}

using Function = std::function<std::vector<Tensor>(Context&, const std::vector<Tensor>&)>;

/// Largest error of d(sum of outputs * random weights), relative to 1 + |gradient|, for inputs of `sizes` (features,
/// samples) and all parameters.
double gradient_error(const Parameters& parameters, const std::vector<std::pair<index_t, index_t>>& sizes, Level level,
                      const Function& f) {
  std::mt19937 random(11);
  std::uniform_real_distribution<double> uniform(-1, 1);
  strata::SerialExecutor executor;
  Context context(executor);
  std::vector<std::vector<double>> inputs;
  for (const auto& [features, samples] : sizes) {
    inputs.emplace_back(static_cast<std::size_t>(features * samples));
    for (double& value : inputs.back()) value = uniform(random);
  }
  std::vector<std::vector<double>> weights;
  std::vector<Tensor> xs, ys;
  const auto run = [&] {
    context.begin(level);
    xs.clear();
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      xs.push_back(context.make(sizes[i].second, {sizes[i].first, 1, 1}, true));
      std::copy(inputs[i].begin(), inputs[i].end(), xs.back().value().data());
    }
    ys = f(context, xs);
    double sum = 0;
    for (std::size_t i = 0; i < ys.size(); ++i) {
      if (weights.size() <= i) {
        weights.emplace_back(static_cast<std::size_t>(ys[i].value().size()));
        for (double& value : weights.back()) value = uniform(random);
      }
      for (std::size_t k = 0; k < weights[i].size(); ++k) sum += ys[i].value()[static_cast<index_t>(k)] * weights[i][k];
    }
    return sum;
  };
  run();
  for (std::size_t i = 0; i < ys.size(); ++i) std::copy(weights[i].begin(), weights[i].end(), ys[i].gradient().data());
  for (auto* parameter : parameters) parameter->gradient.setZero();
  context.backward();
  std::vector<std::vector<double>> found;
  for (const Tensor& x : xs) found.emplace_back(x.gradient().data(), x.gradient().data() + x.gradient().size());
  double worst = 0;
  const auto compare = [&](double& value, double gradient) {
    constexpr double h = 1e-6;
    const double old = value;
    value = old + h;
    const double above = run();
    value = old - h;
    const double below = run();
    value = old;
    const double error = std::abs((above - below) / (2 * h) - gradient) / (1 + std::abs(gradient));
    if (!(error <= worst)) worst = error;
  };
  for (std::size_t i = 0; i < inputs.size(); ++i)
    for (std::size_t k = 0; k < inputs[i].size(); k += 1 + inputs[i].size() / 30) compare(inputs[i][k], found[i][k]);
  for (auto* parameter : parameters)
    for (index_t i = 0; i < parameter->value.size(); i += 1 + parameter->value.size() / 30)
      compare(parameter->value[i], parameter->gradient[i]);
  return worst;
}

}  // namespace

TEST_CASE("gradients of LSTM layers agree with finite differences") {
  using Lengths = std::vector<std::int32_t>;
  struct Case {
    index_t in, hidden, steps, batch;
    Lengths lengths;
  };
  for (const Case& c : {Case{3, 1, 1, 1, {}}, Case{2, 5, 4, 3, {}}, Case{5, 9, 3, 1, {}}, Case{1, 17, 5, 3, {5, 0, 2}},
                        Case{4, 3, 2, 2, {1, 2}}, Case{3, 8, 0, 2, {}}})
    for (const bool bidirectional : {false, true})
      for (const bool bias : {false, true})
        for (const int level : {0, 1}) {
          Family::Lstm layer(
              {.in_features = c.in, .hidden_features = c.hidden, .bias = bias, .bidirectional = bidirectional});
          const Parameters parameters = parameters_of(layer);
          REQUIRE(parameters.size() == (bias ? 4U : 2U) * (bidirectional ? 2U : 1U));
          randomise(parameters, 3);
          const SequenceShape shape{c.steps, c.batch, c.lengths};
          INFO("hidden " << c.hidden << " steps " << c.steps << " batch " << c.batch << " level " << level
                         << " bidirectional " << bidirectional);
          CHECK(gradient_error(parameters, {{c.in, shape.positions()}}, Level{level},
                               [&](Context& context, const std::vector<Tensor>& x) {
                                 return std::vector<Tensor>{layer(context, x[0], shape)};
                               }) < 1e-7);
          // From a state, to a state, with a residual.
          std::vector<std::pair<index_t, index_t>> sizes = {{c.in, shape.positions()},
                                                            {layer.options().output_features(), shape.positions()}};
          for (index_t d = 0; d < layer.options().directions(); ++d) sizes.insert(sizes.end(), 2, {c.hidden, c.batch});
          CHECK(gradient_error(parameters, sizes, Level{level}, [&](Context& context, const std::vector<Tensor>& x) {
                  strata::LstmState<Tensor> state;
                  state.empty = false;
                  for (std::size_t d = 0; d < (bidirectional ? 2U : 1U); ++d) {
                    state.hidden[d] = x[2 + 2 * d];
                    state.cell[d] = x[3 + 2 * d];
                  }
                  std::vector<Tensor> y = {layer(context, x[0], shape, state, &x[1])};
                  for (std::size_t d = 0; d < (bidirectional ? 2U : 1U); ++d) {
                    y.push_back(state.hidden[d]);
                    y.push_back(state.cell[d]);
                  }
                  return y;
                }) < 1e-7);
        }
}

TEST_CASE("an LSTM over two halves of a sequence is the one over the whole, also backwards") {
  Family::Lstm layer({.in_features = 3, .hidden_features = 6});
  const Parameters parameters = parameters_of(layer);
  randomise(parameters, 5);
  std::vector<std::vector<double>> gradients;
  std::vector<double> outputs[2];
  for (const bool halves : {false, true}) {
    strata::SerialExecutor executor;
    Context context(executor);
    context.begin(Level{1});
    Tensor x = context.make(10, {3, 1, 1}, true);
    for (index_t i = 0; i < 30; ++i) x.value()[i] = std::sin(static_cast<double>(i));
    for (auto* parameter : parameters) parameter->gradient.setZero();
    strata::LstmState<Tensor> state;
    const auto keep = [&](const Tensor& y) {
      outputs[halves ? 1 : 0].insert(outputs[halves ? 1 : 0].end(), y.value().begin(), y.value().end());
      y.gradient().setConstant(0.5);
    };
    if (!halves) {
      keep(layer(context, x, {5, 2, {}}, state));
      context.backward();
    } else {
      Tensor first = context.make(4, {3, 1, 1}, true);
      Tensor second = context.make(6, {3, 1, 1}, true);
      first.value() = x.value().head(12);
      second.value() = x.value().tail(18);
      keep(layer(context, first, {2, 2, {}}, state));
      keep(layer(context, second, {3, 2, {}}, state));
      context.backward();
      x.gradient() << first.gradient(), second.gradient();
    }
    gradients.emplace_back(x.gradient().begin(), x.gradient().end());
    for (auto* parameter : parameters)
      gradients.back().insert(gradients.back().end(), parameter->gradient.begin(), parameter->gradient.end());
  }
  REQUIRE(outputs[0].size() == outputs[1].size());
  for (std::size_t i = 0; i < outputs[0].size(); ++i) CHECK(close(outputs[0][i], outputs[1][i]));
  for (std::size_t i = 0; i < gradients[0].size(); ++i) CHECK(close(gradients[0][i], gradients[1][i]));
}

TEST_CASE("gradients of Bahdanau attention agree with finite differences") {
  struct Case {
    index_t query, memory, units, steps, batch, queries;
    std::vector<std::int32_t> lengths;
  };
  for (const Case& c : {Case{3, 4, 5, 4, 2, 3, {4, 2}}, Case{1, 1, 1, 1, 1, 1, {}}, Case{2, 3, 17, 3, 3, 1, {0, 1, 3}},
                        Case{5, 2, 3, 6, 1, 4, {}}, Case{2, 2, 2, 0, 2, 1, {}}})
    for (const int level : {0, 1}) {
      Family::BahdanauAttention layer({.query_features = c.query, .memory_features = c.memory, .units = c.units});
      const Parameters parameters = parameters_of(layer);
      randomise(parameters, 7);
      const SequenceShape shape{c.steps, c.batch, c.lengths};
      INFO("units " << c.units << " steps " << c.steps << " batch " << c.batch << " level " << level);
      CHECK(gradient_error(parameters, {{c.query, c.queries * c.batch}, {c.memory, shape.positions()}}, Level{level},
                           [&](Context& context, const std::vector<Tensor>& x) {
                             const auto memory = layer.memory(context, x[1], shape);
                             return std::vector<Tensor>{layer(context, x[0], memory).context};
                           }) < 1e-7);
    }
}

TEST_CASE("gradients of multi-head attention agree with finite differences") {
  std::vector<double> mask(12, 0.0);
  for (const std::size_t i : {1U, 5U, 8U, 9U, 10U, 11U}) mask[i] = i == 5 ? 0.5 : -INFINITY;
  for (const bool causal : {false, true})
    for (const bool masked : {false, true})
      for (const bool bias : {false, true}) {
        Family::MultiHeadAttention layer({.features = 6, .heads = 3, .bias = bias, .causal = causal});
        const Parameters parameters = parameters_of(layer);
        randomise(parameters, 9);
        const std::vector<std::int32_t> lengths = {4, 2};
        const SequenceShape queries{3, 2, {}};
        const SequenceShape keys{4, 2, lengths};
        CHECK(gradient_error(parameters, {{6, 6}, {6, 8}, {6, 8}}, Level{1},
                             [&](Context& context, const std::vector<Tensor>& x) {
                               return std::vector<Tensor>{
                                   layer(context, x[0], queries, x[1], x[2], keys,
                                         masked ? std::span<const double>(mask) : std::span<const double>())};
                             }) < 1e-7);
      }
  Family::MultiHeadAttention self({.features = 4, .heads = 1, .causal = true});
  const Parameters parameters = parameters_of(self);
  randomise(parameters, 10);
  for (const index_t steps : {0, 1, 5})
    CHECK(gradient_error(parameters, {{4, steps * 3}}, Level{0}, [&](Context& context, const std::vector<Tensor>& x) {
            const SequenceShape shape{steps, 3, {}};
            return std::vector<Tensor>{self(context, x[0], shape, x[0], x[0], shape)};
          }) < 1e-7);
}

TEST_CASE("gradients of embeddings agree with finite differences") {
  for (const bool levelled : {false, true}) {
    Family::Embedding layer({.words = 7, .features = 5, .padding_word = 0, .levelled = levelled});
    const Parameters parameters = parameters_of(layer);
    randomise(parameters, 2);
    const std::vector<TokenId> words = {3, 0, 6, 3, 3, 1};
    CHECK(gradient_error(parameters, {}, Level{0}, [&](Context& context, const std::vector<Tensor>&) {
            return std::vector<Tensor>{layer(context, words)};
          }) < 1e-8);
    strata::SerialExecutor executor;
    Context context(executor);
    CHECK_THROWS_AS(layer(context, std::vector<TokenId>{7}), strata::Error);
    CHECK_THROWS_AS(layer(context, std::vector<TokenId>{-1}), strata::Error);
    CHECK(layer(context, std::vector<TokenId>{}).batch() == 0);
  }
}

TEST_CASE("losses over words leave padding out and agree with finite differences") {
  strata::SerialExecutor executor;
  Context context(executor);
  std::mt19937 random(4);
  std::uniform_real_distribution<double> uniform(-3, 3);
  const std::vector<TokenId> targets = {2, 0, 5, 4, 0, 1};
  Tensor logits = context.make(6, {7, 1, 1}, true);
  for (double& value : logits.value()) value = uniform(random);
  std::vector<double> teacher(42);
  for (double& value : teacher) value = uniform(random);

  for (const double smoothing : {0.0, 0.1}) {
    double wanted = 0;
    for (std::size_t n = 0; n < targets.size(); ++n) {
      if (targets[n] == 0) continue;
      const auto z = logits.matrix().col(static_cast<index_t>(n)).array();
      const double total = std::log(z.exp().sum());
      for (index_t k = 0; k < 7; ++k)
        wanted += ((k == targets[n] ? 1 - smoothing : 0) + smoothing / 7) * (total - z[k]) / 4;
    }
    CHECK(close(strata::train::sequence_cross_entropy(context, logits, targets, smoothing, 0), wanted));
    CHECK(close(strata::train::sequence_cross_entropy(context, logits, targets, smoothing, 0.5), wanted / 2));
  }
  double wanted = 0;
  for (std::size_t n = 0; n < targets.size(); ++n) {
    if (targets[n] == 0) continue;
    const Eigen::Map<const Eigen::ArrayXd> other(teacher.data() + 7 * n, 7);
    const Eigen::ArrayXd z = logits.matrix().col(static_cast<index_t>(n)).array() / 2;
    const Eigen::ArrayXd p = (z.exp() / z.exp().sum()).log();
    const Eigen::ArrayXd q = ((other / 2).exp() / (other / 2).exp().sum()).log();
    wanted += 4 * (q.exp() * (q - p)).sum() / 4;
  }
  CHECK(close(strata::train::sequence_distillation<double>(context, logits, teacher, targets, 2, 1), wanted));

  for (const bool distil : {false, true}) {
    const auto loss = [&] {
      return distil ? strata::train::sequence_distillation<double>(context, logits, teacher, targets, 2, 0.7)
                    : strata::train::sequence_cross_entropy(context, logits, targets, 0.1, 0.7);
    };
    logits.gradient().setZero();
    loss();
    const std::vector<double> gradient(logits.gradient().begin(), logits.gradient().end());
    for (index_t i = 0; i < logits.value().size(); ++i) {
      const double old = logits.value()[i];
      logits.value()[i] = old + 1e-6;
      const double above = loss();
      logits.value()[i] = old - 1e-6;
      const double below = loss();
      logits.value()[i] = old;
      CHECK(std::abs((above - below) / 2e-6 - gradient[static_cast<std::size_t>(i)]) < 1e-8);
    }
  }
  CHECK(strata::train::sequence_cross_entropy(context, logits, std::vector<TokenId>(6, 0), 0.1, 1) == 0);
}

TEST_CASE("gradients are clipped by their common norm") {
  strata::SerialExecutor executor;
  Context context(executor);
  Parameter a({3}, 0), b({1, 2}, 0);
  a.gradient << 3, 0, 0;
  b.gradient << 0, 4;
  CHECK(close(strata::train::clip_gradients(context, {&a, &b}, 6.0), 5));
  CHECK(b.gradient[1] == 4);
  CHECK(close(strata::train::clip_gradients(context, {&a, &b}, 1.0), 5));
  CHECK(close(a.gradient[0], 0.6));
  CHECK(close(b.gradient[1], 0.8));
}

TEST_CASE("gradients of the whole translation network agree with finite differences") {
  gnmt::Gnmt<Family> network(
      {.source_words = 9, .target_words = 8, .width = 5, .encoder_layers = 3, .decoder_layers = 3, .dropout = 0.2});
  const auto parameters = strata::train::parameters<double>(network);
  randomise(parameters, 6);
  const std::vector<TokenId> source = {4, 5, 3, 8, 0, 7};
  const std::vector<std::int32_t> lengths = {3, 2};
  const std::vector<TokenId> words = {1, 1, 4, 6, 5, 0};
  const strata::SequencePairs pairs{source, {3, 2, lengths}, words, {3, 2, {}}};
  for (const int level : {0, 1})
    CHECK(gradient_error(parameters, {}, Level{level}, [&](Context& context, const std::vector<Tensor>&) {
            return std::vector<Tensor>{network(context, pairs)};
          }) < 1e-7);
}

TEST_CASE("gradients of a translation network are the same bits on any number of threads") {
  std::vector<float> gradients[2];
  using Single = strata::train::Training<float>;
  for (const int threads : {1, 2}) {
    gnmt::Gnmt<Single> network({.source_words = 30, .target_words = 40, .width = 24});
    strata::train::initialise(network, 3);
    strata::ThreadPool pool(threads);
    Single::Context context(pool);
    context.begin(Level{0});
    std::vector<TokenId> source, words;
    for (TokenId i = 0; i < 70; ++i) source.push_back(i * 7 % 30);
    for (TokenId i = 0; i < 50; ++i) words.push_back(i * 11 % 40);
    const auto logits = network(context, {source, {7, 10, {}}, words, {5, 10, {}}});
    strata::train::sequence_cross_entropy(context, logits, words, 0.1, 1);
    context.backward();
    const auto parameters = strata::train::parameters<float>(network);
    strata::train::clip_gradients(context, parameters, 0.1);
    for (auto* parameter : parameters)
      gradients[threads - 1].insert(gradients[threads - 1].end(), parameter->gradient.begin(),
                                    parameter->gradient.end());
  }
  CHECK(gradients[0] == gradients[1]);
}
