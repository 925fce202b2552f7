// Attention over sequences of the inference family: normalised Bahdanau attention over a memory that is projected once,
// and multi-head scaled dot-product attention.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include <strata/core/types.hpp>
#include <strata/kernels/attention.hpp>
#include <strata/layers/attention.hpp>
#include <strata/layers/context.hpp>
#include <strata/layers/inference/graph_attention.hpp>
#include <strata/layers/inference/product.hpp>
#include <strata/layers/inference/sequence.hpp>
#include <strata/layers/parameters.hpp>

namespace strata::inference {

/// What is remembered of every position, sequence by sequence as [channel][positions], rows padded with zeros to whole
/// vectors: the form in which attention kernels read keys and values.
template <class Scalar>
class PositionMemory {
 public:
  PositionMemory() = default;
  template <class Arch>
  PositionMemory(InferenceContext<Scalar, Arch>& context, const Tensor<Scalar>& x, const SequenceShape& shape)
      : channels_(x.shape().channels),
        pitch_(round_up(shape.steps, context.lanes)),
        block_(context.arena().take(shape.batch * channels_ * pitch_ * static_cast<index_t>(sizeof(Scalar)))) {
    for (index_t b = 0; b < shape.batch; ++b)
      for (index_t c = 0; c < channels_; ++c) {
        Scalar* const row = sequence(b) + c * pitch_;
        const index_t length = shape.length(b);
        for (index_t s = 0; s < length; ++s) row[s] = *x.row(s * shape.batch + b, c, 0);
        std::fill(row + length, row + pitch_, Scalar{0});
      }
  }

  [[nodiscard]] index_t channels() const noexcept { return channels_; }
  /// From a channel to the next one.
  [[nodiscard]] index_t pitch() const noexcept { return pitch_; }
  [[nodiscard]] Scalar* sequence(index_t b) const noexcept {
    return reinterpret_cast<Scalar*>(block_.data()) + b * channels_ * pitch_;
  }

 private:
  index_t channels_ = 0;
  index_t pitch_ = 0;
  Block block_;
};

/// What Bahdanau attention looks at: projected keys and values of a batch of sequences. A handle.
template <class Scalar>
struct AttentionMemory {
  PositionMemory<Scalar> keys, values;
  SequenceShape shape;
};

/// The stored parameters of Bahdanau attention.
template <class Scalar, class Arch>
class BahdanauWeights {
 public:
  void load(const std::string& name, const BahdanauOptions& options, ParameterSource& source) {
    query.load(name + ".linear_q.weight", options.units, options.query_features, source);
    key.load(name + ".linear_k.weight", options.units, options.memory_features, source);
    key_bias = source.array<Scalar>(name + ".normalize_bias", {options.units});
    const auto direction = source.array<Scalar>(name + ".linear_att", {options.units});
    const auto gain = source.array<Scalar>(name + ".normalize_scalar", {1});
    // g v/|v| does not depend on the input.
    if (direction.empty() || gain.empty()) return;
    score = detail::AlignedArray<Scalar>(options.units);
    double square = 0;
    for (const Scalar v : direction) square += static_cast<double>(v) * static_cast<double>(v);
    const double factor = square > 0 ? static_cast<double>(gain[0]) / std::sqrt(square) : 0;
    for (std::size_t u = 0; u < direction.size(); ++u)
      score.get()[u] = static_cast<Scalar>(factor * static_cast<double>(direction[u]));
  }

  /// Weights of the projections that `level` holds.
  [[nodiscard]] index_t nnz(Level level) const noexcept { return query.nnz(level) + key.nnz(level); }
  /// Bytes that `level` reads.
  [[nodiscard]] index_t bytes(Level level) const noexcept {
    return query.bytes(level) + key.bytes(level) + 2 * static_cast<index_t>(key_bias.size_bytes());
  }

  WeightMatrix<Scalar> query, key;
  std::span<const Scalar> key_bias;
  detail::AlignedArray<Scalar> score;  ///< g v/|v|
};

/// See `BahdanauOptions`. Results do not depend on the number of threads.
template <class Scalar, class Arch>
class BahdanauAttention {
 public:
  static constexpr bool has_parameters = true;
  using Context = InferenceContext<Scalar, Arch>;
  using Memory = AttentionMemory<Scalar>;

  explicit BahdanauAttention(const BahdanauOptions& options) : options_(options) { require_valid(options); }

  [[nodiscard]] const BahdanauOptions& options() const noexcept { return options_; }
  [[nodiscard]] const BahdanauWeights<Scalar, Arch>& weights() const noexcept { return *weights_; }

  void load(const std::string& name, const std::string& /*norm_name*/, ParameterSource& source) {
    name_ = name;
    auto weights = std::make_shared<BahdanauWeights<Scalar, Arch>>();
    weights->load(name, options_, source);
    weights_ = std::move(weights);
  }

  /// Projects the keys of `values`, a batch of sequences of `shape`. `shape.lengths` has to stay there with the memory.
  [[nodiscard]] Memory memory(Context& context, const Tensor<Scalar>& values, const SequenceShape& shape) const {
    const Shape in{options_.memory_features, 1, 1};
    if (!context.check(!name_.empty(), [&] {
          return strata::detail::left_out({"a Bahdanau attention of ", options_.units, " units"});
        }))
      return {};
    if (!context.check(shape.valid() && values.shape() == in && values.batch() == shape.positions(), [&] {
          return Error({name_}, {"a memory of ", strata::detail::text(in), ", ", strata::detail::text(shape)},
                       {strata::detail::text(values.shape()), ", ", values.batch(), " positions"});
        }))
      return {};
    const Tensor<Scalar> keys = context.make(values.batch(), {options_.units, 1, 1});
    weights_->key.multiply(context, values, keys, {nullptr, weights_->key_bias.data(), nullptr, Activation::identity});
    return {PositionMemory<Scalar>(context, keys, shape), PositionMemory<Scalar>(context, values, shape), shape};
  }

  /// Attends once for each sample of `query`; sample n looks at sequence n mod memory.shape.batch.
  [[nodiscard]] Attended<Tensor<Scalar>> operator()(Context& context, const Tensor<Scalar>& query,
                                                    const Memory& memory) const {
    const index_t steps = memory.shape.steps;
    // A block of whole vectors of positions, so that there are few sizes of them.
    const Tensor<Scalar> weights_block = context.make(query.batch(), {round_up(steps, context.lanes), 1, 1});
    Attended<Tensor<Scalar>> result{
        context.make(query.batch(), {options_.memory_features, 1, 1}),
        Tensor<Scalar>(weights_block, TileLayout::make(query.batch(), {steps, 1, 1}, context.lanes))};
    const Shape in{options_.query_features, 1, 1};
    if (!context.check(query.shape() == in && (memory.shape.batch > 0 || query.batch() == 0), [&] {
          return Error({name_}, {"queries of ", strata::detail::text(in)}, {strata::detail::text(query.shape())});
        }))
      return result;
    const Tensor<Scalar> q = context.make(query.batch(), {options_.units, 1, 1});
    weights_->query.multiply(context, query, q, {});
    const index_t pitch = memory.keys.pitch();
    const Block scratch =
        context.arena().take(round_up(query.batch(), context.lanes) * pitch * static_cast<index_t>(sizeof(Scalar)));
    context.executor().parallel_for(query.batch(), [&](index_t n) {
      const index_t b = n % memory.shape.batch;
      Scalar* const scores = reinterpret_cast<Scalar*>(scratch.data()) + n * pitch;
      const auto from = sample(q, n);
      const auto to = sample(result.context, n);
      kernels::additive_scores<Arch>(options_.units, memory.keys.sequence(b), pitch, from.first, from.stride,
                                     weights_->score.get(), scores);
      kernels::masked_softmax<Arch, Scalar>(memory.shape.length(b), pitch, nullptr, scores);
      kernels::weighted_sum<Arch>(options_.memory_features, memory.values.sequence(b), pitch, scores, to.first,
                                  to.stride);
      if (steps == 0) return;
      const auto weights = sample(result.weights, n);
      for (index_t s = 0; s < steps; ++s) weights[s] = scores[s];
    });
    return result;
  }

 private:
  BahdanauOptions options_;
  std::string name_;  ///< empty before `load`
  std::shared_ptr<const BahdanauWeights<Scalar, Arch>> weights_;
};

/// The stored parameters of multi-head attention. Level-sorted, the projections of queries, keys and values are three
/// matrices: `in_proj_weight.query`, `.key`, `.value`.
template <class Scalar>
class MultiHeadWeights {
 public:
  void load(const std::string& name, const MultiHeadAttentionOptions& options, ParameterSource& source) {
    const index_t e = options.features;
    const std::string in = name + ".in_proj_weight";
    if (source.has(in)) {
      const auto values = source.array<Scalar>(in, {3 * e, e});
      for (index_t i = 0; i < 3; ++i) projection[i].view(values.empty() ? nullptr : values.data() + i * e * e, e, e);
    } else {
      projection[0].load(in + ".query", e, e, source);
      projection[1].load(in + ".key", e, e, source);
      projection[2].load(in + ".value", e, e, source);
    }
    output.load(name + ".out_proj.weight", e, e, source);
    owner = source.owner();
    if (!options.bias) return;
    in_bias = source.array<Scalar>(name + ".in_proj_bias", {3 * e});
    out_bias = source.array<Scalar>(name + ".out_proj.bias", {e});
  }

  /// Weights that `level` holds.
  [[nodiscard]] index_t nnz(Level level) const noexcept {
    index_t count = output.nnz(level);
    for (const auto& matrix : projection) count += matrix.nnz(level);
    return count;
  }
  /// Bytes that `level` reads.
  [[nodiscard]] index_t bytes(Level level) const noexcept {
    index_t count = output.bytes(level) + static_cast<index_t>(in_bias.size_bytes() + out_bias.size_bytes());
    for (const auto& matrix : projection) count += matrix.bytes(level);
    return count;
  }

  WeightMatrix<Scalar> projection[3];  ///< of queries, keys, values
  WeightMatrix<Scalar> output;
  std::span<const Scalar> in_bias, out_bias;  ///< empty: none
  std::shared_ptr<const void> owner;
};

/// See `MultiHeadAttentionOptions`. Results do not depend on the number of threads.
template <class Scalar, class Arch>
class MultiHeadAttention {
 public:
  static constexpr bool has_parameters = true;
  using Context = InferenceContext<Scalar, Arch>;

  explicit MultiHeadAttention(const MultiHeadAttentionOptions& options) : options_(options) { require_valid(options); }

  [[nodiscard]] const MultiHeadAttentionOptions& options() const noexcept { return options_; }
  [[nodiscard]] const MultiHeadWeights<Scalar>& weights() const noexcept { return weights_; }

  void load(const std::string& name, const std::string& /*norm_name*/, ParameterSource& source) {
    name_ = name;
    weights_.load(name, options_, source);
  }

  /// One output for each position of `query` (a batch of sequences of `query_shape`) from keys and values of the same
  /// number of sequences of `key_shape`, whose padding is left out. `mask`, if not empty, has [query steps][key steps]
  /// numbers that are added to the scores (minus infinity: not to be looked at), as PyTorch's float attn_mask.
  [[nodiscard]] Tensor<Scalar> operator()(Context& context, const Tensor<Scalar>& query,
                                          const SequenceShape& query_shape, const Tensor<Scalar>& key,
                                          const Tensor<Scalar>& value, const SequenceShape& key_shape,
                                          std::span<const Scalar> mask = {}) const {
    const index_t e = options_.features;
    const Shape in{e, 1, 1};
    Tensor<Scalar> y = context.make(query.batch(), in);
    const bool fits = query_shape.valid() && key_shape.valid() && query_shape.batch == key_shape.batch &&
                      query.shape() == in && key.shape() == in && value.shape() == in &&
                      query.batch() == query_shape.positions() && key.batch() == key_shape.positions() &&
                      value.batch() == key.batch() &&
                      (mask.empty() || static_cast<index_t>(mask.size()) == query_shape.steps * key_shape.steps);
    if (!context.check(!name_.empty(), [&] {
          return strata::detail::left_out({"a multi-head attention of ", e, " features"});
        }))
      return y;
    if (!context.check(fits, [&] {
          return Error({name_},
                       {"queries, keys and values of ", strata::detail::text(in),
                        " for the same sequences, a mask of query x key steps"},
                       {strata::detail::text(query.shape()), ", ", strata::detail::text(query_shape), "; ",
                        strata::detail::text(key.shape()), ", ", strata::detail::text(key_shape)});
        }))
      return y;
    if (query.batch() == 0) return y;
    const auto project = [&](std::size_t i, const Tensor<Scalar>& x) {
      Tensor<Scalar> p = context.make(x.batch(), in);
      const Scalar* const bias =
          weights_.in_bias.empty() ? nullptr : weights_.in_bias.data() + static_cast<index_t>(i) * e;
      weights_.projection[i].multiply(context, x, p, {nullptr, bias, nullptr, Activation::identity});
      return p;
    };
    const Tensor<Scalar> q = project(0, query);
    const PositionMemory<Scalar> keys(context, project(1, key), key_shape);
    const PositionMemory<Scalar> values(context, project(2, value), key_shape);
    const Tensor<Scalar> attended = context.make(query.batch(), in);
    const index_t width = e / options_.heads;
    const auto scale = static_cast<Scalar>(1 / std::sqrt(static_cast<double>(width)));
    const index_t pitch = keys.pitch();
    const Block scratch =
        context.arena().take(round_up(query.batch(), context.lanes) * pitch * static_cast<index_t>(sizeof(Scalar)));
    context.executor().parallel_for(query.batch(), [&](index_t n) {
      const index_t t = n / query_shape.batch;
      const index_t b = n % query_shape.batch;
      Scalar* const scores = reinterpret_cast<Scalar*>(scratch.data()) + n * pitch;
      index_t length = key_shape.length(b);
      if (options_.causal && length > t + 1) length = t + 1;
      const auto from = sample(q, n);
      const auto to = sample(attended, n);
      for (index_t head = 0; head < options_.heads; ++head) {
        const index_t first = head * width;
        kernels::dot_scores<Arch>(width, keys.sequence(b) + first * pitch, pitch, from.first + first * from.stride,
                                  from.stride, scale, scores);
        kernels::masked_softmax<Arch>(length, pitch, mask.empty() ? nullptr : mask.data() + t * key_shape.steps,
                                      scores);
        kernels::weighted_sum<Arch>(width, values.sequence(b) + first * pitch, pitch, scores,
                                    to.first + first * to.stride, to.stride);
      }
    });
    weights_.output.multiply(
        context, attended, y,
        {nullptr, weights_.out_bias.empty() ? nullptr : weights_.out_bias.data(), nullptr, Activation::identity});
    return y;
  }

 private:
  MultiHeadAttentionOptions options_;
  std::string name_;  ///< empty before `load`
  MultiHeadWeights<Scalar> weights_;
};

}  // namespace strata::inference
