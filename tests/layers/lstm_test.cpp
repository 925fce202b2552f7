// The LSTM layer of both families against a plain recurrence over awkward widths, lengths and batches, at every level;
// its state between calls and over a switch of level; the cell kernel against its twin.
#include <cmath>
#include <random>

#include <strata/kernels/lstm.hpp>
#include <strata/runtime/thread_pool.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/sequence_layers.hpp"

namespace {

using strata::index_t;
using strata::Level;
using strata::LstmOptions;
using strata::SequenceShape;
using Trained = strata::train::Lstm<double>;
using Layer = strata::Inference<>::Lstm;
using Context = strata::Inference<>::Context;
using State = strata::LstmState<strata::Tensor<float>>;

/// Hidden states of all positions and the last states [direction][hidden, cell][sequence * hidden].
struct Expected {
  std::vector<double> y;
  std::vector<std::vector<double>> states;
};

/// `states`: where to start, or empty.
Expected expected(Trained& layer, const std::vector<double>& x, const SequenceShape& shape, Level level,
                  std::vector<std::vector<double>> states = {}) {
  const LstmOptions& o = layer.options();
  const index_t hidden = o.hidden_features;
  std::vector<std::vector<double>> p;
  for (auto* parameter : test::parameters_of(layer)) p.push_back(test::at_level(*parameter, level));
  const auto at = [](index_t i) { return static_cast<std::size_t>(i); };
  if (states.empty()) states.assign(at(2 * o.directions()), std::vector<double>(at(shape.batch * hidden), 0.0));
  Expected result{std::vector<double>(at(shape.positions() * o.output_features()), 0.0), {}};
  const auto sigmoid = [](double z) { return 1 / (1 + std::exp(-z)); };
  for (index_t d = 0; d < o.directions(); ++d) {
    const std::size_t first = at(d) * (o.bias ? 4 : 2);
    for (index_t b = 0; b < shape.batch; ++b)
      for (index_t i = 0; i < shape.length(b); ++i) {
        const index_t t = d == 0 ? i : shape.length(b) - 1 - i;
        double* const h = states[at(2 * d)].data() + b * hidden;
        double* const c = states[at(2 * d + 1)].data() + b * hidden;
        std::vector<double> gates(at(4 * hidden));
        for (index_t row = 0; row < 4 * hidden; ++row) {
          double sum = o.bias ? p[first + 2][at(row)] + p[first + 3][at(row)] : 0;
          for (index_t k = 0; k < o.in_features; ++k)
            sum += p[first][at(row * o.in_features + k)] * x[at((t * shape.batch + b) * o.in_features + k)];
          for (index_t k = 0; k < hidden; ++k) sum += p[first + 1][at(row * hidden + k)] * h[k];
          gates[at(row)] = sum;
        }
        for (index_t j = 0; j < hidden; ++j) {
          c[j] = sigmoid(gates[at(hidden + j)]) * c[j] + sigmoid(gates[at(j)]) * std::tanh(gates[at(2 * hidden + j)]);
          h[j] = sigmoid(gates[at(3 * hidden + j)]) * std::tanh(c[j]);
          result.y[at((t * shape.batch + b) * o.output_features() + d * hidden + j)] = h[j];
        }
      }
  }
  result.states = std::move(states);
  return result;
}

std::vector<std::vector<double>> states_of(const State& state, index_t directions) {
  std::vector<std::vector<double>> result;
  for (index_t d = 0; d < directions; ++d) {
    result.push_back(test::numbers_of(state.hidden[static_cast<std::size_t>(d)]));
    result.push_back(test::numbers_of(state.cell[static_cast<std::size_t>(d)]));
  }
  return result;
}

}  // namespace

TEST_CASE("the LSTM cell kernel agrees with its twin") {
  std::mt19937 random(1);
  std::uniform_real_distribution<double> uniform(-6, 6);
  const auto check = [&]<class Scalar>(Scalar, double tolerance) {
    for (const index_t count : {0, 1, 3, 7, 8, 15, 16, 17, 64, 67}) {
      std::vector<Scalar> gates(static_cast<std::size_t>(4 * count)), before(static_cast<std::size_t>(count));
      for (Scalar& g : gates) g = static_cast<Scalar>(uniform(random));
      for (Scalar& c : before) c = static_cast<Scalar>(uniform(random));
      if (count > 3) {
        gates[0] = Scalar{-1000};
        gates[1] = Scalar{1000};
        gates[static_cast<std::size_t>(count)] = Scalar{1000};
        gates[static_cast<std::size_t>(2 * count)] = Scalar{1000};
        gates[static_cast<std::size_t>(3 * count)] = Scalar{-1000};
      }
      std::vector<Scalar> cell(before.size()), hidden(before.size()), cell2(before.size()), hidden2(before.size());
      strata::kernels::lstm_cell<xsimd::default_arch>(count, gates.data(), before.data(), cell.data(), hidden.data());
      strata::kernels::lstm_cell_reference(count, gates.data(), before.data(), cell2.data(), hidden2.data());
      for (std::size_t i = 0; i < cell.size(); ++i) {
        CHECK(std::abs(cell[i] - cell2[i]) <= static_cast<Scalar>(tolerance) * (1 + std::abs(cell2[i])));
        CHECK(std::abs(hidden[i] - hidden2[i]) <= static_cast<Scalar>(tolerance));
      }
      strata::kernels::lstm_cell<xsimd::default_arch>(count, gates.data(), before.data(), before.data(), hidden.data());
      CHECK(before == cell);
    }
  };
  check(float{}, 2e-6);
  check(double{}, 1e-14);
}

TEST_CASE("LSTM layers of both families agree with the plain recurrence at every level") {
  using Lengths = std::vector<std::int32_t>;
  struct Case {
    index_t in, hidden, steps, batch;
    Lengths lengths;
  };
  for (const Case& c : {Case{1, 1, 1, 1, {}}, Case{3, 5, 0, 1, {}}, Case{7, 16, 1, 1, {}}, Case{33, 17, 9, 1, {}},
                        Case{20, 8, 1, 3, {}}, Case{16, 21, 4, 3, {4, 1, 0}}, Case{5, 70, 3, 1, {2}},
                        Case{4, 3, 2, 250, {}}, Case{3, 4, 300, 1, {}}, Case{3, 2, 2, 0, {}}})
    for (const bool bidirectional : {false, true})
      for (const int levels : {0, 1, 3}) {
        const LstmOptions options{
            .in_features = c.in, .hidden_features = c.hidden, .bias = levels != 1, .bidirectional = bidirectional};
        Trained trained(options);
        test::randomise_levels(test::parameters_of(trained), levels, 3, levels == 3 ? 1 : -1);
        Layer layer(options);
        test::transfer(trained, std::max(levels, 1), layer);
        const SequenceShape shape{c.steps, c.batch, c.lengths};
        const auto numbers = test::random_numbers(shape.positions() * c.in, 4);
        const auto added = test::random_numbers(shape.positions() * options.output_features(), 5);
        for (int level = 0; level < std::max(levels, 1); ++level) {
          INFO("in " << c.in << " hidden " << c.hidden << " steps " << c.steps << " batch " << c.batch << " levels "
                     << levels << " level " << level << " bidirectional " << bidirectional);
          const Expected wanted = expected(trained, numbers, shape, Level{level});
          strata::SerialExecutor serial;
          strata::train::Context<double> tape(serial);
          tape.begin(Level{level});
          CHECK(test::difference(test::numbers_of(trained(tape, test::tensor_of(tape, numbers, c.in), shape)),
                                 wanted.y) < 1e-10);
          for (const int threads : {1, 2}) {
            strata::ThreadPool pool(threads);
            Context context(pool);
            context.set_level(Level{level});
            context.set_checking(true);
            State state;
            const auto x = test::tensor_of(context, numbers, c.in);
            const auto y = layer(context, x, shape, state);
            CHECK(!context.error());
            CHECK(test::difference(test::numbers_of(y), wanted.y) < 2e-5);
            const auto states = states_of(state, options.directions());
            for (std::size_t i = 0; i < states.size(); ++i) CHECK(test::difference(states[i], wanted.states[i]) < 2e-5);
            const auto residual = test::tensor_of(context, added, options.output_features());
            std::vector<double> sum = wanted.y;
            for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += added[i];
            CHECK(test::difference(test::numbers_of(layer(context, x, shape, &residual)), sum) < 2e-5);
          }
        }
      }
}

TEST_CASE("an LSTM goes on from its state, at another level, and allocates nothing after the first call") {
  const LstmOptions options{.in_features = 19, .hidden_features = 37};
  Trained trained(options);
  test::randomise_levels(test::parameters_of(trained), 2, 8);
  Layer layer(options);
  test::transfer(trained, 2, layer);
  for (const index_t batch : {1, 3}) {
    const auto first = test::random_numbers(2 * batch * 19, 1);
    const auto second = test::random_numbers(3 * batch * 19, 2);
    const Expected half = expected(trained, first, {2, batch, {}}, Level{1});
    const Expected whole = expected(trained, second, {3, batch, {}}, Level{0}, half.states);
    strata::SerialExecutor serial;
    Context context(serial);
    long before = 0;
    for (int run = 0; run < 3; ++run) {
      const auto x1 = test::tensor_of(context, first, 19);
      const auto x2 = test::tensor_of(context, second, 19);
      if (run == 2) before = allocations();
      State state;
      context.set_level(Level{1});
      const auto y1 = layer(context, x1, {2, batch, {}}, state);
      context.set_level(Level{0});
      const auto y2 = layer(context, x2, {3, batch, {}}, state);
      const State kept = state;  // a copy goes on by itself
      const auto again = layer(context, x1, {2, batch, {}}, state);
      const auto other = layer(context, x1, {2, batch, {}}, state);
      state = kept;
      const auto same = layer(context, x1, {2, batch, {}}, state);
      if (run == 2) CHECK(allocations() == before);
      CHECK(test::difference(test::numbers_of(y1), half.y) < 1e-5);
      CHECK(test::difference(test::numbers_of(y2), whole.y) < 1e-5);
      CHECK(test::numbers_of(again) == test::numbers_of(same));
      CHECK(test::numbers_of(again) != test::numbers_of(other));
    }
  }
}

TEST_CASE("options and inputs that describe no LSTM are refused") {
  for (const LstmOptions& options :
       {LstmOptions{.in_features = 0, .hidden_features = 1}, LstmOptions{.in_features = 1, .hidden_features = 0}}) {
    CHECK_THROWS_AS(Trained(options), strata::Error);
    CHECK_THROWS_AS(Layer(options), strata::Error);
  }
  const LstmOptions options{.in_features = 2, .hidden_features = 3};
  const Trained trained(options);
  Layer layer(options);
  test::transfer(trained, 1, layer);
  strata::SerialExecutor serial;
  const auto refused = [&](index_t features, index_t samples, const SequenceShape& shape, index_t state_batch) {
    strata::train::Context<double> tape(serial);
    strata::LstmState<strata::train::Tensor<double>> tape_state;
    Context context(serial);
    context.set_checking(true);
    State state;
    if (state_batch > 0) {
      tape_state.empty = state.empty = false;
      tape_state.hidden[0] = tape_state.cell[0] = tape.make(state_batch, {3, 1, 1}, false);
      state.hidden[0] = state.cell[0] = context.make(state_batch, {3, 1, 1});
    }
    CHECK_THROWS_AS(trained(tape, tape.make(samples, {features, 1, 1}, false), shape, tape_state), strata::Error);
    (void)layer(context, context.make(samples, {features, 1, 1}), shape, state);
    CHECK(context.error());
  };
  const std::vector<std::int32_t> long_ones = {1, 5}, negative = {-1, 2}, one = {1};
  refused(3, 4, {2, 2, {}}, 0);
  refused(2, 5, {2, 2, {}}, 0);
  refused(2, 4, {2, 2, long_ones}, 0);
  refused(2, 4, {2, 2, negative}, 0);
  refused(2, 4, {2, 2, one}, 0);
  refused(2, 4, {2, 2, {}}, 3);
}
