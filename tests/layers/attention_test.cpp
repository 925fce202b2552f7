// Attention and embedding layers of both families: Bahdanau attention against the plain formula, multi-head attention
// against figures of torch.nn.MultiheadAttention, both families against each other at every level; the kernels against
// their twins.
#include <cmath>
#include <limits>
#include <random>

#include <strata/kernels/attention.hpp>
#include <strata/runtime/thread_pool.hpp>

#include "layers/multihead_reference.hpp"
#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/sequence_layers.hpp"

namespace {

using strata::index_t;
using strata::Level;
using strata::SequenceShape;
using strata::TokenId;
using Inference = strata::Inference<>;
using Training = strata::train::Training<double>;
using Context = Inference::Context;
using Tape = strata::train::Context<double>;

std::size_t at(index_t i) {
  return static_cast<std::size_t>(i);
}

/// `count` numbers, 64-byte aligned.
struct Aligned {
  explicit Aligned(index_t count) : block(arena.take(std::max<index_t>(count, 1) * 8)) {}
  template <class Scalar>
  [[nodiscard]] Scalar* as() const {
    return reinterpret_cast<Scalar*>(block.data());
  }
  strata::Arena arena;
  strata::Block block;
};

}  // namespace

TEST_CASE("attention kernels agree with their twins") {
  const auto check = [&]<class Scalar>(Scalar, Scalar tolerance) {
    using Arch = xsimd::default_arch;
    constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar>::size);
    std::mt19937 random(2);
    std::uniform_real_distribution<double> uniform(-2, 2);
    for (const index_t steps : {0, 1, 2, 15, 16, 17, 40, 100})
      for (const index_t channels : {0, 1, 5, 33})
        for (const index_t stride : {1, 3}) {
          const index_t pitch = strata::round_up(steps, lanes);
          const Aligned keys(channels * pitch), found(pitch), wanted(pitch);
          for (index_t i = 0; i < channels * pitch; ++i) keys.as<Scalar>()[i] = static_cast<Scalar>(uniform(random));
          std::vector<Scalar> query(at(channels * stride + 1)), v(at(channels + 1)), mask(at(steps));
          for (Scalar& x : query) x = static_cast<Scalar>(uniform(random));
          for (Scalar& x : v) x = static_cast<Scalar>(uniform(random));
          for (Scalar& x : mask) x = random() % 4 == 0 ? -std::numeric_limits<Scalar>::infinity() : Scalar{1};
          if (channels > 0) query[0] = Scalar{500};  // saturates the tangent
          Scalar* const a = found.as<Scalar>();
          Scalar* const b = wanted.as<Scalar>();
          INFO("steps " << steps << " channels " << channels << " stride " << stride);
          const auto same = [&](index_t count) {
            for (index_t i = 0; i < count; ++i) CHECK(std::abs(a[i] - b[i]) <= tolerance * (1 + std::abs(b[i])));
          };
          strata::kernels::additive_scores<Arch>(channels, keys.as<Scalar>(), pitch, query.data(), stride, v.data(), a);
          strata::kernels::additive_scores_reference(channels, keys.as<Scalar>(), pitch, query.data(), stride, v.data(),
                                                     b);
          same(pitch);
          query[0] = Scalar{1};
          strata::kernels::dot_scores<Arch>(channels, keys.as<Scalar>(), pitch, query.data(), stride, Scalar{2}, a);
          strata::kernels::dot_scores_reference(channels, keys.as<Scalar>(), pitch, query.data(), stride, Scalar{2}, b);
          same(pitch);
          std::vector<Scalar> sum(at(channels * stride + 1)), sum2(sum);
          for (const index_t length : {steps, steps / 2, index_t{0}})
            for (const bool masked : {false, true}) {
              for (index_t i = 0; i < pitch; ++i) a[i] = b[i] = static_cast<Scalar>(10 * uniform(random));
              strata::kernels::masked_softmax<Arch>(length, pitch, masked ? mask.data() : nullptr, a);
              strata::kernels::masked_softmax_reference(length, pitch, masked ? mask.data() : nullptr, b);
              same(pitch);
              strata::kernels::weighted_sum<Arch>(channels, keys.as<Scalar>(), pitch, a, sum.data(), stride);
              strata::kernels::weighted_sum_reference(channels, keys.as<Scalar>(), pitch, b, sum2.data(), stride);
              for (std::size_t i = 0; i < sum.size(); ++i) CHECK(std::abs(sum[i] - sum2[i]) <= 20 * tolerance);
            }
        }
  };
  check(float{}, 4e-6F);
  check(double{}, 1e-13);
}

TEST_CASE("Bahdanau attention of both families agrees with the formula at every level") {
  struct Case {
    index_t query, memory, units, steps, batch, queries;
    std::vector<std::int32_t> lengths;
  };
  for (const Case& c : {Case{3, 4, 5, 4, 1, 1, {}}, Case{1, 1, 1, 1, 1, 3, {}}, Case{17, 33, 16, 25, 1, 5, {}},
                        Case{5, 6, 70, 40, 3, 2, {40, 0, 7}}, Case{2, 3, 4, 0, 1, 2, {}}, Case{4, 5, 3, 300, 1, 1, {}}})
    for (const int levels : {1, 3}) {
      const strata::BahdanauOptions options{.query_features = c.query, .memory_features = c.memory, .units = c.units};
      Training::BahdanauAttention trained(options);
      const auto parameters = test::parameters_of(trained);
      test::randomise_levels(parameters, levels, 3, levels == 3 ? 1 : -1);
      Inference::BahdanauAttention layer(options);
      test::transfer(trained, levels, layer);
      const SequenceShape shape{c.steps, c.batch, c.lengths};
      const auto queries = test::random_numbers(c.queries * c.batch * c.query, 4);
      const auto values = test::random_numbers(shape.positions() * c.memory, 5);
      for (int level = 0; level < levels; ++level) {
        INFO("units " << c.units << " steps " << c.steps << " batch " << c.batch << " level " << level);
        // The formula. Parameters: direction, gain, bias, query projection, key projection.
        std::vector<std::vector<double>> p;
        for (auto* parameter : parameters) p.push_back(test::at_level(*parameter, Level{level}));
        double norm = 0;
        for (const double v : p[0]) norm += v * v;
        std::vector<double> wanted(at(c.queries * c.batch * c.memory), 0.0);
        std::vector<double> wanted_weights(at(c.queries * c.batch * c.steps), 0.0);
        for (index_t n = 0; n < c.queries * c.batch; ++n) {
          const index_t b = n % c.batch;
          std::vector<double> scores;
          double total = 0;
          for (index_t s = 0; s < shape.length(b); ++s) {
            double score = 0;
            for (index_t u = 0; u < c.units; ++u) {
              double z = p[2][at(u)];
              for (index_t k = 0; k < c.query; ++k) z += p[3][at(u * c.query + k)] * queries[at(n * c.query + k)];
              for (index_t k = 0; k < c.memory; ++k)
                z += p[4][at(u * c.memory + k)] * values[at((s * c.batch + b) * c.memory + k)];
              score += p[1][0] * p[0][at(u)] / std::sqrt(norm) * std::tanh(z);
            }
            scores.push_back(std::exp(score));
            total += scores.back();
          }
          for (index_t s = 0; s < shape.length(b); ++s) {
            wanted_weights[at(n * c.steps + s)] = scores[at(s)] / total;
            for (index_t k = 0; k < c.memory; ++k)
              wanted[at(n * c.memory + k)] += scores[at(s)] / total * values[at((s * c.batch + b) * c.memory + k)];
          }
        }
        strata::SerialExecutor serial;
        Tape tape(serial);
        tape.begin(Level{level});
        const auto on_tape = trained(tape, test::tensor_of(tape, queries, c.query),
                                     trained.memory(tape, test::tensor_of(tape, values, c.memory), shape));
        CHECK(test::difference(test::numbers_of(on_tape.context), wanted) < 1e-10);
        CHECK(test::difference(test::numbers_of(on_tape.weights), wanted_weights) < 1e-10);
        for (const int threads : {1, 2}) {
          strata::ThreadPool pool(threads);
          Context context(pool);
          context.set_checking(true);
          context.set_level(Level{level});
          const auto q = test::tensor_of(context, queries, c.query);
          const auto m = test::tensor_of(context, values, c.memory);
          for (int run = 0; run < 2; ++run) {
            const long before = allocations();
            const auto memory = layer.memory(context, m, shape);
            const auto found = layer(context, q, memory);
            if (run == 1) CHECK(allocations() == before);
            CHECK(!context.error());
            CHECK(test::difference(test::numbers_of(found.context), wanted) < 2e-5);
            CHECK(test::difference(test::numbers_of(found.weights), wanted_weights) < 2e-5);
          }
        }
      }
    }
}

TEST_CASE("multi-head attention agrees with PyTorch's figures") {
  namespace reference = multihead_reference;
  const auto numbers = [](index_t count, double phase, double scale = 1) {
    std::vector<double> result;
    for (index_t i = 0; i < count; ++i) result.push_back(scale * std::sin(0.7 * static_cast<double>(i) + phase));
    return result;
  };
  constexpr index_t e = reference::features;
  const auto query = numbers(reference::queries * reference::batch * e, 5);
  const auto key = numbers(reference::keys * reference::batch * e, 6);
  const auto value = numbers(reference::keys * reference::batch * e, 7);
  std::vector<double> mask = numbers(reference::queries * reference::keys, 8);
  mask[1] = mask[2 * reference::keys] = -INFINITY;
  const std::vector<float> single_mask(mask.begin(), mask.end());
  const std::vector<std::int32_t> lengths = {5, 2};
  const SequenceShape queries{reference::queries, reference::batch, {}};
  const SequenceShape keys{reference::keys, reference::batch, {}};
  const SequenceShape padded{reference::keys, reference::batch, lengths};
  for (const bool causal : {false, true}) {
    const strata::MultiHeadAttentionOptions options{.features = e, .heads = reference::heads, .causal = causal};
    Training::MultiHeadAttention trained(options);
    for (auto* parameter : test::parameters_of(trained)) {
      const bool bias = parameter->shape.size() == 1;
      const bool in = parameter->name.find("in_proj") != std::string::npos;
      const auto values = numbers(parameter->value.size(), (in ? 1 : 3) + (bias ? 1 : 0), bias ? 0.3 : 0.5);
      std::copy(values.begin(), values.end(), parameter->value.data());
    }
    Inference::MultiHeadAttention layer(options);
    test::transfer(trained, 1, layer);
    strata::SerialExecutor serial;
    Tape tape(serial);
    Context context(serial);
    context.set_checking(true);
    const auto compare = [&](const std::vector<double>& wanted, const std::vector<double>& q, const SequenceShape& qs,
                             const std::vector<double>& k, const std::vector<double>& v, const SequenceShape& ks,
                             bool masked) {
      tape.begin(Level{0});
      const auto a =
          trained(tape, test::tensor_of(tape, q, e), qs, test::tensor_of(tape, k, e), test::tensor_of(tape, v, e), ks,
                  masked ? std::span<const double>(mask) : std::span<const double>());
      CHECK(test::difference(test::numbers_of(a), wanted) < 1e-10);
      const auto b = layer(context, test::tensor_of(context, q, e), qs, test::tensor_of(context, k, e),
                           test::tensor_of(context, v, e), ks,
                           masked ? std::span<const float>(single_mask) : std::span<const float>());
      CHECK(!context.error());
      CHECK(test::difference(test::numbers_of(b), wanted) < 1e-5);
    };
    if (causal) {
      compare(reference::causal, key, keys, key, key, keys, false);
    } else {
      compare(reference::plain, query, queries, key, value, keys, false);
      compare(reference::padded, query, queries, key, value, padded, false);
      compare(reference::masked, query, queries, key, value, keys, true);
    }
  }
}

TEST_CASE("multi-head attention of both families agrees at every level") {
  struct Case {
    index_t features, heads, queries, keys, batch;
    std::vector<std::int32_t> lengths;
  };
  for (const Case& c : {Case{4, 2, 3, 3, 1, {}}, Case{1, 1, 1, 1, 1, {}}, Case{66, 3, 1, 20, 3, {20, 0, 3}},
                        Case{16, 16, 33, 17, 2, {}}, Case{6, 2, 2, 0, 1, {}}, Case{6, 2, 0, 2, 1, {}}})
    for (const bool causal : {false, true}) {
      const strata::MultiHeadAttentionOptions options{
          .features = c.features, .heads = c.heads, .bias = c.batch != 2, .causal = causal};
      Training::MultiHeadAttention trained(options);
      test::randomise_levels(test::parameters_of(trained), 2, 6);
      Inference::MultiHeadAttention layer(options);
      test::transfer(trained, 2, layer);
      const SequenceShape queries{c.queries, c.batch, {}};
      const SequenceShape keys{c.keys, c.batch, c.lengths};
      const auto q = test::random_numbers(queries.positions() * c.features, 1);
      const auto k = test::random_numbers(keys.positions() * c.features, 2);
      const auto v = test::random_numbers(keys.positions() * c.features, 3);
      for (const int level : {0, 1}) {
        strata::ThreadPool pool(2);
        Tape tape(pool);
        tape.begin(Level{level});
        const auto wanted =
            test::numbers_of(trained(tape, test::tensor_of(tape, q, c.features), queries,
                                     test::tensor_of(tape, k, c.features), test::tensor_of(tape, v, c.features), keys));
        Context context(pool);
        context.set_checking(true);
        context.set_level(Level{level});
        const auto x = test::tensor_of(context, q, c.features);
        const auto y = test::tensor_of(context, k, c.features);
        const auto z = test::tensor_of(context, v, c.features);
        for (int run = 0; run < 2; ++run) {
          const long before = allocations();
          const auto found = layer(context, x, queries, y, z, keys);
          if (run == 1) CHECK(allocations() == before);
          CHECK(!context.error());
          CHECK(test::difference(test::numbers_of(found), wanted) < 2e-5);
        }
      }
      const index_t weights = 4 * c.features * c.features;
      CHECK(layer.weights().nnz(Level{1}) <= weights);
      if (weights > 100) CHECK(layer.weights().nnz(Level{0}) < layer.weights().nnz(Level{1}));
    }
}

TEST_CASE("multi-head attention that is loaded again has forgotten sparse weights") {
  const strata::MultiHeadAttentionOptions options{.features = 16, .heads = 2};
  Training::MultiHeadAttention sparse(options);
  test::randomise_levels(test::parameters_of(sparse), 2, 6);
  const Training::MultiHeadAttention dense(options);
  Inference::MultiHeadAttention layer(options);
  test::transfer(sparse, 2, layer);
  CHECK(layer.weights().nnz(Level{1}) < 4 * 16 * 16);
  test::transfer(dense, 2, layer);
  CHECK(layer.weights().nnz(Level{0}) == 4 * 16 * 16);
}

TEST_CASE("embeddings of both families agree at every level") {
  const std::vector<TokenId> words = {5, 0, 299, 7, 5};
  for (const bool levelled : {false, true})
    for (const index_t features : {1, 17}) {
      const strata::EmbeddingOptions options{
          .words = 300, .features = features, .padding_word = 0, .levelled = levelled};
      Training::Embedding trained(options);
      test::randomise_levels(test::parameters_of(trained), 2, 4);
      Inference::Embedding layer(options);
      test::transfer(trained, 2, layer);
      strata::SerialExecutor serial;
      for (const int level : {0, 1}) {
        Tape tape(serial);
        tape.begin(Level{level});
        Context context(serial);
        context.set_level(Level{level});
        CHECK(test::numbers_of(layer(context, words)) == test::numbers_of(trained(tape, words)));
        CHECK(test::numbers_of(layer(context, std::span(words).first(1))) ==
              test::numbers_of(trained(tape, std::span(words).first(1))));
        CHECK(layer(context, {}).batch() == 0);
        const std::vector<TokenId> unknown = {-1, 300};
        CHECK(test::numbers_of(layer(context, unknown)) == std::vector<double>(at(2 * features), 0.0));
      }
    }
}

TEST_CASE("options and inputs that describe no attention or embedding are refused") {
  CHECK_THROWS_AS(Training::BahdanauAttention({.query_features = 1, .memory_features = 1}), strata::Error);
  CHECK_THROWS_AS(Inference::BahdanauAttention({.query_features = 1, .units = 1}), strata::Error);
  CHECK_THROWS_AS(Training::MultiHeadAttention({.features = 5, .heads = 2}), strata::Error);
  CHECK_THROWS_AS(Inference::MultiHeadAttention({.features = 4, .heads = 0}), strata::Error);
  CHECK_THROWS_AS(Training::Embedding({.words = 0, .features = 2}), strata::Error);
  CHECK_THROWS_AS(Inference::Embedding({.words = 2, .features = 2, .padding_word = 2}), strata::Error);

  const strata::BahdanauOptions options{.query_features = 2, .memory_features = 3, .units = 4};
  const Training::BahdanauAttention trained(options);
  Inference::BahdanauAttention layer(options);
  test::transfer(trained, 1, layer);
  strata::SerialExecutor serial;
  Tape tape(serial);
  CHECK_THROWS_AS(trained.memory(tape, tape.make(4, {2, 1, 1}, false), {2, 2, {}}), strata::Error);
  CHECK_THROWS_AS(trained.memory(tape, tape.make(5, {3, 1, 1}, false), {2, 2, {}}), strata::Error);
  const auto memory = trained.memory(tape, tape.make(4, {3, 1, 1}, false), {2, 2, {}});
  CHECK_THROWS_AS(trained(tape, tape.make(2, {3, 1, 1}, false), memory), strata::Error);
  const auto refused = [&](index_t features, index_t samples) {
    Context context(serial);
    context.set_checking(true);
    (void)layer.memory(context, context.make(samples, {features, 1, 1}), {2, 2, {}});
    CHECK(context.error());
  };
  refused(2, 4);
  refused(3, 5);

  const strata::MultiHeadAttentionOptions heads{.features = 4, .heads = 2};
  const Training::MultiHeadAttention trained_heads(heads);
  Inference::MultiHeadAttention heads_layer(heads);
  test::transfer(trained_heads, 1, heads_layer);
  const auto x = tape.make(4, {4, 1, 1}, false);
  CHECK_THROWS_AS(trained_heads(tape, x, {2, 2, {}}, x, x, {4, 1, {}}), strata::Error);
  const std::vector<double> mask(3, 0.0);
  CHECK_THROWS_AS(trained_heads(tape, x, {2, 2, {}}, x, x, {2, 2, {}}, mask), strata::Error);
  Context context(serial);
  context.set_checking(true);
  const auto y = context.make(4, {4, 1, 1});
  (void)heads_layer(context, y, {2, 2, {}}, y, y, {4, 1, {}});
  CHECK(context.error());
}
