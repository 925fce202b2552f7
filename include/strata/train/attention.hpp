// Attention over sequences of the training family: normalised Bahdanau attention and multi-head scaled dot-product
// attention as operations on the tape, and the layers that hold their parameters. Formulas: layers/attention.hpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <strata/layers/attention.hpp>
#include <strata/layers/parameters.hpp>
#include <strata/train/operations.hpp>
#include <strata/train/parameter.hpp>
#include <strata/train/product.hpp>
#include <strata/train/store.hpp>
#include <strata/train/tape.hpp>

namespace strata::train {

/// What Bahdanau attention looks at: keys and values, a sample for each position of a batch of sequences.
template <class Scalar>
struct AttentionMemory {
  Tensor<Scalar> keys, values;
  SequenceShape shape;
};

/// Additive attention of each sample n of `query` (units x 1 x 1, projected) over sequence n mod memory.shape.batch
/// with score vector gain * direction / |direction|. The weights that it returns carry no gradient.
template <class Scalar>
[[nodiscard]] Attended<Tensor<Scalar>> additive_attention(Context<Scalar>& context, const Tensor<Scalar>& query,
                                                          const AttentionMemory<Scalar>& memory,
                                                          Parameter<Scalar>& direction, Parameter<Scalar>& gain) {
  using Array = typename Parameter<Scalar>::Array;
  using Map = Eigen::Map<Array>;
  using ConstMap = Eigen::Map<const Array>;
  const index_t units = query.shape().channels;
  const index_t features = memory.values.shape().channels;
  const index_t steps = memory.shape.steps;
  const index_t sequences = memory.shape.batch;
  const index_t queries = query.batch();
  const Scalar norm = std::sqrt(direction.value.square().sum());
  auto score = std::make_shared<const Array>(norm > 0 ? Array(direction.value * (gain.value[0] / norm))
                                                      : Array(Array::Zero(units)));
  Attended<Tensor<Scalar>> result{context.make(queries, {features, 1, 1}, true),
                                  context.make(queries, {steps, 1, 1}, false)};
  const Tensor<Scalar> y = result.context;
  const Tensor<Scalar> alpha = result.weights;
  auto lengths = std::make_shared<std::vector<index_t>>();
  for (index_t b = 0; b < sequences; ++b) lengths->push_back(memory.shape.length(b));
  const Tensor<Scalar> keys = memory.keys;
  const Tensor<Scalar> values = memory.values;
  // Sequence by sequence, so that nobody else touches the gradients of its positions.
  context.for_parts(sequences, [&](index_t, index_t first, index_t last) {
    Array z(units);
    for (index_t b = first; b < last; ++b) {
      const index_t length = (*lengths)[static_cast<std::size_t>(b)];
      for (index_t n = b; n < queries; n += sequences) {
        Map a(alpha.value().data() + n * steps, steps);
        Map sum(y.value().data() + n * features, features);
        const ConstMap q(query.value().data() + n * units, units);
        a.setZero();
        sum.setZero();
        if (length == 0) continue;
        for (index_t s = 0; s < length; ++s) {
          z = (q + ConstMap(keys.value().data() + (s * sequences + b) * units, units)).tanh();
          a[s] = (z * *score).sum();
        }
        auto used = a.head(length);
        used = (used - used.maxCoeff()).exp();
        used /= used.sum();
        for (index_t s = 0; s < length; ++s)
          sum += a[s] * ConstMap(values.value().data() + (s * sequences + b) * features, features);
      }
    }
  });
  context.record([=, &context, &direction, &gain] {
    const Scalar* const dy = y.gradient().data();
    Scalar* const dq = query.needs_gradient() ? query.gradient().data() : nullptr;
    Scalar* const dk = keys.needs_gradient() ? keys.gradient().data() : nullptr;
    Scalar* const dv = values.needs_gradient() ? values.gradient().data() : nullptr;
    Eigen::Array<Scalar, Eigen::Dynamic, Eigen::Dynamic> score_sums =
        Eigen::Array<Scalar, Eigen::Dynamic, Eigen::Dynamic>::Zero(units, Context<Scalar>::parts);
    context.for_parts(sequences, [&](index_t part, index_t first, index_t last) {
      Array z(units);
      Array q_sum(units);
      Array d(steps);
      for (index_t b = first; b < last; ++b) {
        const index_t length = (*lengths)[static_cast<std::size_t>(b)];
        for (index_t n = b; n < queries && length > 0; n += sequences) {
          const ConstMap a(alpha.value().data() + n * steps, steps);
          const ConstMap out(dy + n * features, features);
          const ConstMap q(query.value().data() + n * units, units);
          for (index_t s = 0; s < length; ++s) {
            const index_t at = s * sequences + b;
            d[s] = (out * ConstMap(values.value().data() + at * features, features)).sum();
            if (dv != nullptr) Map(dv + at * features, features) += a[s] * out;
          }
          const Scalar mean = (d.head(length) * a.head(length)).sum();
          d.head(length) = a.head(length) * (d.head(length) - mean);
          q_sum.setZero();
          for (index_t s = 0; s < length; ++s) {
            const index_t at = s * sequences + b;
            z = (q + ConstMap(keys.value().data() + at * units, units)).tanh();
            score_sums.col(part) += d[s] * z;
            z = d[s] * *score * (1 - z.square());
            q_sum += z;
            if (dk != nullptr) Map(dk + at * units, units) += z;
          }
          if (dq != nullptr) Map(dq + n * units, units) += q_sum;
        }
      }
    });
    if (!(norm > 0)) return;
    const Array total = score_sums.rowwise().sum();
    const Array unit = direction.value / norm;
    const Scalar along = (total * unit).sum();
    gain.gradient[0] += along;
    direction.gradient += gain.value[0] / norm * (total - along * unit);
  });
  return result;
}

/// Scaled dot-product attention of `heads` heads side by side: `query`, `key`, `value` (features x 1 x 1) are
/// projected batches of sequences; see `MultiHeadAttentionOptions`. `mask`: empty or [query steps][key steps].
template <class Scalar>
[[nodiscard]] Tensor<Scalar> dot_attention(Context<Scalar>& context, const Tensor<Scalar>& query,
                                           const SequenceShape& query_shape, const Tensor<Scalar>& key,
                                           const Tensor<Scalar>& value, const SequenceShape& key_shape, index_t heads,
                                           bool causal, std::span<const Scalar> mask) {
  using detail::Matrix;
  using detail::view;
  const index_t features = query.shape().channels;
  const index_t width = features / heads;
  const index_t batch = query_shape.batch;
  const index_t q_steps = query_shape.steps;
  const index_t k_steps = key_shape.steps;
  const auto scale = static_cast<Scalar>(1 / std::sqrt(static_cast<double>(width)));
  const index_t stride = batch * features;  // from a step of a sequence to its next one
  Tensor<Scalar> y = context.make(query.batch(), {features, 1, 1}, true);
  // The weights of every sequence and head, [key steps] for each query step.
  const Tensor<Scalar> weights = context.make(batch * heads * q_steps, {k_steps, 1, 1}, false);
  const auto at = [=](const Scalar* data, index_t b, index_t head, index_t steps) {
    return view(data + b * features + head * width, width, steps, stride);
  };
  const auto mutable_at = [=](Scalar* data, index_t b, index_t head, index_t steps) {
    return view(data + b * features + head * width, width, steps, stride);
  };
  const auto weights_at = [=](Scalar* data, index_t b, index_t head) {
    return view(data + (b * heads + head) * q_steps * k_steps, k_steps, q_steps, k_steps);
  };
  context.for_parts(batch, [&](index_t, index_t first, index_t last) {
    for (index_t b = first; b < last; ++b)
      for (index_t head = 0; head < heads; ++head) {
        auto a = weights_at(weights.value().data(), b, head);
        auto out = mutable_at(y.value().data(), b, head, q_steps);
        a.setZero();
        out.setZero();
        if (k_steps == 0 || q_steps == 0) continue;
        detail::add_product_tn<Scalar>(at(key.value().data(), b, head, k_steps),
                                       at(query.value().data(), b, head, q_steps), a);
        for (index_t t = 0; t < q_steps; ++t) {
          const index_t length = causal ? std::min(key_shape.length(b), t + 1) : key_shape.length(b);
          auto scores = a.col(t).array();
          Scalar largest = -std::numeric_limits<Scalar>::infinity();
          for (index_t s = 0; s < length; ++s) {
            scores[s] *= scale;
            if (!mask.empty()) scores[s] += mask[static_cast<std::size_t>(t * k_steps + s)];
            largest = std::max(largest, Scalar(scores[s]));
          }
          const bool any = largest > -std::numeric_limits<Scalar>::infinity();
          for (index_t s = 0; s < k_steps; ++s)
            scores[s] = any && s < length ? std::exp(scores[s] - largest) : Scalar{0};
          if (any) scores /= scores.sum();
        }
        detail::add_product<Scalar>(at(value.value().data(), b, head, k_steps),
                                    view(static_cast<const Scalar*>(a.data()), k_steps, q_steps, k_steps), out);
      }
  });
  context.record([=, &context] {
    // Asked for here, as gradients are made when they are first asked for.
    const Scalar* const dy_data = y.gradient().data();
    Scalar* const dq = query.needs_gradient() ? query.gradient().data() : nullptr;
    Scalar* const dk = key.needs_gradient() ? key.gradient().data() : nullptr;
    Scalar* const dv = value.needs_gradient() ? value.gradient().data() : nullptr;
    context.for_parts(batch, [&](index_t, index_t first, index_t last) {
      Matrix<Scalar> d(k_steps, q_steps);
      for (index_t b = first; b < last && k_steps > 0 && q_steps > 0; ++b)
        for (index_t head = 0; head < heads; ++head) {
          const auto a = view(static_cast<const Scalar*>(weights_at(weights.value().data(), b, head).data()), k_steps,
                              q_steps, k_steps);
          const auto dy = at(dy_data, b, head, q_steps);
          if (dv != nullptr) detail::add_product_nt<Scalar>(dy, a, mutable_at(dv, b, head, k_steps));
          d.setZero();
          detail::add_product_tn<Scalar>(at(value.value().data(), b, head, k_steps), dy,
                                         view(d.data(), k_steps, q_steps, k_steps));
          for (index_t t = 0; t < q_steps; ++t) {
            const Scalar mean = (d.col(t).array() * a.col(t).array()).sum();
            d.col(t).array() = scale * a.col(t).array() * (d.col(t).array() - mean);
          }
          const auto ds = view(static_cast<const Scalar*>(d.data()), k_steps, q_steps, k_steps);
          if (dq != nullptr)
            detail::add_product<Scalar>(at(key.value().data(), b, head, k_steps), ds,
                                        mutable_at(dq, b, head, q_steps));
          if (dk != nullptr)
            detail::add_product_nt<Scalar>(at(query.value().data(), b, head, q_steps), ds,
                                           mutable_at(dk, b, head, k_steps));
        }
    });
  });
  return y;
}

namespace detail {

/// Uniform numbers in +-sqrt(6 / (in + out)) (Glorot), as PyTorch's attention starts from.
template <class Scalar>
void draw_glorot(Parameter<Scalar>& weight, index_t in, index_t out, std::mt19937_64& random) {
  const double bound = std::sqrt(6.0 / static_cast<double>(in + out));
  for (Scalar& w : weight.value)
    w = static_cast<Scalar>((static_cast<double>(random() >> 11U) * 0x1p-53 * 2 - 1) * bound);
}

}  // namespace detail

/// See `BahdanauOptions`.
template <class Scalar>
class BahdanauAttention {
 public:
  static constexpr bool has_parameters = true;
  using Memory = AttentionMemory<Scalar>;

  explicit BahdanauAttention(const BahdanauOptions& options)
      : options_(validated(options)),
        query_({options.units, options.query_features}, 0),
        key_({options.units, options.memory_features}, 0),
        direction_({options.units}, 0),
        gain_({1}, 0),
        bias_({options.units}, 0) {
    for (auto* weight : {&query_, &key_}) {
      weight->levelled = options.levelled;
      weight->decay = true;
    }
    initialise(0);
  }

  /// Glorot's for the projections, a unit vector times 1/sqrt(units) for the scores.
  void initialise(std::uint64_t seed) {
    std::mt19937_64 random(seed);
    detail::draw_glorot(query_, options_.query_features, options_.units, random);
    detail::draw_glorot(key_, options_.memory_features, options_.units, random);
    detail::draw_glorot(direction_, options_.units, 1, random);
    gain_.value[0] = static_cast<Scalar>(1 / std::sqrt(static_cast<double>(options_.units)));
    bias_.value.setZero();
  }

  [[nodiscard]] const BahdanauOptions& options() const noexcept { return options_; }
  /// None: the layer has no normalisation.
  [[nodiscard]] std::vector<NormSet<Scalar>>& norms() noexcept { return norms_; }
  void set_levels(int /*levels*/) noexcept {}

  template <class F>
  void for_each_parameter(const std::string& name, const std::string& /*norm_name*/, F&& f) {
    direction_.name = name + ".linear_att";
    gain_.name = name + ".normalize_scalar";
    bias_.name = name + ".normalize_bias";
    query_.name = name + ".linear_q.weight";
    key_.name = name + ".linear_k.weight";
    for (auto* parameter : {&direction_, &gain_, &bias_, &query_, &key_}) f(*parameter);
  }

  /// Projects the keys of `values`, a batch of sequences of `shape`. Raises: `values` and `shape` that do not fit.
  [[nodiscard]] Memory memory(Context<Scalar>& context, const Tensor<Scalar>& values,
                              const SequenceShape& shape) const {
    auto& self = const_cast<BahdanauAttention&>(*this);  // a forward pass of training is const in form only
    const Shape in{options_.memory_features, 1, 1};
    if (!shape.valid() || values.shape() != in || values.batch() != shape.positions())
      raise(Error(layer_name(), "a memory of " + strata::detail::text(in) + ", " + strata::detail::text(shape),
                  strata::detail::text(values.shape()) + ", " + std::to_string(values.batch()) + " positions"));
    return {linear(context, values, self.key_, &self.bias_), values, shape};
  }

  /// Attends once for each sample of `query`; sample n looks at sequence n mod memory.shape.batch. Raises: queries of
  /// another size.
  [[nodiscard]] Attended<Tensor<Scalar>> operator()(Context<Scalar>& context, const Tensor<Scalar>& query,
                                                    const Memory& memory) const {
    auto& self = const_cast<BahdanauAttention&>(*this);
    const Shape in{options_.query_features, 1, 1};
    if (query.shape() != in || (memory.shape.batch < 1 && query.batch() > 0))
      raise(Error(layer_name(), "queries of " + strata::detail::text(in), strata::detail::text(query.shape())));
    const Tensor<Scalar> q = linear<Scalar>(context, query, self.query_, nullptr);
    return additive_attention(context, q, memory, self.direction_, self.gain_);
  }

  void store(const std::string& name, const std::string& /*norm_name*/, ParameterSink& sink) const {
    detail::store_matrix(name + ".linear_q.weight", query_, sink);
    detail::store_matrix(name + ".linear_k.weight", key_, sink);
    sink.array<float>(name + ".linear_att", direction_.shape, 0, detail::floats(direction_));
    sink.array<float>(name + ".normalize_scalar", gain_.shape, 0, detail::floats(gain_));
    sink.array<float>(name + ".normalize_bias", bias_.shape, 0, detail::floats(bias_));
  }

 private:
  [[nodiscard]] static const BahdanauOptions& validated(const BahdanauOptions& options) {
    require_valid(options);
    return options;
  }
  [[nodiscard]] std::string layer_name() const {
    return direction_.name.empty() ? "Bahdanau attention" : direction_.name.substr(0, direction_.name.rfind('.'));
  }

  BahdanauOptions options_;
  Parameter<Scalar> query_, key_, direction_, gain_, bias_;
  std::vector<NormSet<Scalar>> norms_;  ///< always empty
};

/// See `MultiHeadAttentionOptions`.
template <class Scalar>
class MultiHeadAttention {
 public:
  static constexpr bool has_parameters = true;

  explicit MultiHeadAttention(const MultiHeadAttentionOptions& options)
      : options_(validated(options)),
        in_({3 * options.features, options.features}, 0),
        out_({options.features, options.features}, 0) {
    for (auto* weight : {&in_, &out_}) {
      weight->levelled = options.levelled;
      weight->decay = true;
    }
    if (options.bias) {
      in_bias_.push_back(Parameter<Scalar>({3 * options.features}, 0));
      out_bias_.push_back(Parameter<Scalar>({options.features}, 0));
    }
    initialise(0);
  }

  /// As torch.nn.MultiheadAttention: Glorot's for the input projections, +-1/sqrt(features) for the output's, no bias.
  void initialise(std::uint64_t seed) {
    std::mt19937_64 random(seed);
    detail::draw_glorot(in_, options_.features, 3 * options_.features, random);
    detail::draw_glorot(out_, 5 * options_.features, options_.features, random);
    for (auto* biases : {&in_bias_, &out_bias_})
      for (auto& bias : *biases) bias.value.setZero();
  }

  [[nodiscard]] const MultiHeadAttentionOptions& options() const noexcept { return options_; }
  /// None: the layer has no normalisation.
  [[nodiscard]] std::vector<NormSet<Scalar>>& norms() noexcept { return norms_; }
  void set_levels(int /*levels*/) noexcept {}

  template <class F>
  void for_each_parameter(const std::string& name, const std::string& /*norm_name*/, F&& f) {
    in_.name = name + ".in_proj_weight";
    out_.name = name + ".out_proj.weight";
    f(in_);
    for (auto& bias : in_bias_) {
      bias.name = name + ".in_proj_bias";
      f(bias);
    }
    f(out_);
    for (auto& bias : out_bias_) {
      bias.name = name + ".out_proj.bias";
      f(bias);
    }
  }

  /// One output for each position of `query` (a batch of sequences of `query_shape`) from keys and values of the same
  /// number of sequences of `key_shape`, whose padding is left out. `mask`, if not empty, has [query steps][key steps]
  /// numbers that are added to the scores and stay there until the backward pass. Raises: shapes that do not fit.
  [[nodiscard]] Tensor<Scalar> operator()(Context<Scalar>& context, const Tensor<Scalar>& query,
                                          const SequenceShape& query_shape, const Tensor<Scalar>& key,
                                          const Tensor<Scalar>& value, const SequenceShape& key_shape,
                                          std::span<const Scalar> mask = {}) const {
    auto& self = const_cast<MultiHeadAttention&>(*this);  // a forward pass of training is const in form only
    const index_t e = options_.features;
    const Shape in{e, 1, 1};
    const bool fits = query_shape.valid() && key_shape.valid() && query_shape.batch == key_shape.batch &&
                      query.shape() == in && key.shape() == in && value.shape() == in &&
                      query.batch() == query_shape.positions() && key.batch() == key_shape.positions() &&
                      value.batch() == key.batch() &&
                      (mask.empty() || static_cast<index_t>(mask.size()) == query_shape.steps * key_shape.steps);
    if (!fits)
      raise(Error(in_.name.empty() ? "multi-head attention" : in_.name.substr(0, in_.name.rfind('.')),
                  "queries, keys and values of " + strata::detail::text(in) +
                      " for the same sequences, a mask of query x key steps",
                  strata::detail::text(query.shape()) + ", " + strata::detail::text(query_shape) + "; " +
                      strata::detail::text(key.shape()) + ", " + strata::detail::text(key_shape)));
    Parameter<Scalar>* const in_bias = in_bias_.empty() ? nullptr : &self.in_bias_.front();
    const Tensor<Scalar> q = linear(context, query, self.in_, in_bias, 0, e);
    const Tensor<Scalar> k = linear(context, key, self.in_, in_bias, e, e);
    const Tensor<Scalar> v = linear(context, value, self.in_, in_bias, 2 * e, e);
    const Tensor<Scalar> attended =
        dot_attention(context, q, query_shape, k, v, key_shape, options_.heads, options_.causal, mask);
    return linear(context, attended, self.out_, out_bias_.empty() ? nullptr : &self.out_bias_.front());
  }

  void store(const std::string& name, const std::string& /*norm_name*/, ParameterSink& sink) const {
    const index_t e = options_.features;
    if (detail::is_dense(in_)) {
      sink.array<float>(name + ".in_proj_weight", in_.shape, 0, detail::floats(in_));
    } else {
      detail::store_leveled_rows(name + ".in_proj_weight.query", in_, 0, e, sink);
      detail::store_leveled_rows(name + ".in_proj_weight.key", in_, e, e, sink);
      detail::store_leveled_rows(name + ".in_proj_weight.value", in_, 2 * e, e, sink);
    }
    for (const auto& bias : in_bias_) sink.array<float>(name + ".in_proj_bias", bias.shape, 0, detail::floats(bias));
    detail::store_matrix(name + ".out_proj.weight", out_, sink);
    for (const auto& bias : out_bias_) sink.array<float>(name + ".out_proj.bias", bias.shape, 0, detail::floats(bias));
  }

 private:
  [[nodiscard]] static const MultiHeadAttentionOptions& validated(const MultiHeadAttentionOptions& options) {
    require_valid(options);
    return options;
  }

  MultiHeadAttentionOptions options_;
  Parameter<Scalar> in_, out_;
  std::vector<Parameter<Scalar>> in_bias_, out_bias_;  ///< none or one each
  std::vector<NormSet<Scalar>> norms_;                 ///< always empty
};

}  // namespace strata::train
