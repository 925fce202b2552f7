// Graph attention of the training family: projection of sparse or dense node features and attention over edges as
// operations on the tape, and the layer that holds their parameters. See layers/graph_attention.hpp for the formula.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <strata/layers/graph_attention.hpp>
#include <strata/layers/parameters.hpp>
#include <strata/sparse/graph.hpp>
#include <strata/train/operations.hpp>
#include <strata/train/parameter.hpp>
#include <strata/train/tape.hpp>

namespace strata::train {

namespace detail {

/// Calls `f` with `size`, as a constant where it is one of the usual ones: loops of known length stay in registers.
template <class F>
void with_size(index_t size, F&& f) {
  if (size == 8) {
    f(std::integral_constant<index_t, 8>());
  } else if (size == 64) {
    f(std::integral_constant<index_t, 64>());
  } else {
    f(size);
  }
}

/// to[0 .. size-1] += factor * from[0 .. size-1]; the two do not overlap.
template <class Scalar, class Size>
[[gnu::always_inline]] inline void add_scaled(Size size, Scalar factor, const Scalar* __restrict from,
                                              Scalar* __restrict to) {
  for (index_t i = 0; i < size; ++i) to[i] += factor * from[i];
}

/// The weights that `level` holds, zero elsewhere, with a column for each input feature.
template <class Scalar>
[[nodiscard]] Matrix<Scalar> weights_by_feature(const Parameter<Scalar>& weight, Level level) {
  const index_t outputs = weight.shape[0];
  const index_t features = weight.shape[1];
  Matrix<Scalar> result = Eigen::Map<const Matrix<Scalar>>(weight.value.data(), features, outputs).transpose();
  if (weight.strata.empty()) return result;
  for (index_t o = 0; o < outputs; ++o)
    for (index_t f = 0; f < features; ++f)
      if (!weight.contains(o * features + f, level)) result(o, f) = 0;
  return result;
}

/// Adds `total`, a column for each input feature, to the gradient of the weights that `level` holds.
template <class Scalar>
void add_weight_gradient(Context<Scalar>& context, const Matrix<Scalar>& total, Level level,
                         Parameter<Scalar>& weight) {
  const index_t features = total.cols();
  context.for_parts(total.rows(), [&](index_t, index_t first, index_t last) {
    if (weight.strata.empty()) {
      Eigen::Map<Matrix<Scalar>>(weight.gradient.data(), features, total.rows()).middleCols(first, last - first) +=
          total.middleRows(first, last - first).transpose();
      return;
    }
    for (index_t o = first; o < last; ++o)
      for (index_t f = 0; f < features; ++f)
        if (weight.contains(o * features + f, level)) weight.gradient[o * features + f] += total(o, f);
  });
}

}  // namespace detail

/// h = W x for every node, with the weights [outputs, features] that the context's level holds; in training a share
/// `dropout` of the entries of `x` is dropped. Time follows the entries: `x` is never made dense.
template <class Scalar>
[[nodiscard]] Tensor<Scalar> project(Context<Scalar>& context, const SparseFeatures& x, Parameter<Scalar>& weight,
                                     double dropout) {
  using Matrix = detail::Matrix<Scalar>;
  const index_t outputs = weight.shape[0];
  note_uses(context, weight, x.nodes());  // budgets count products of whole matrices, whatever zeros the input has
  const Level level = context.level;
  const detail::DropoutChoice<Scalar> choice(context, dropout);
  const auto w = detail::weights_by_feature(weight, level);
  Tensor<Scalar> values = context.make(x.entries(), {1, 1, 1}, false);
  Tensor<Scalar> h = context.make(x.nodes(), {outputs, 1, 1}, true);
  context.for_parts(x.nodes(), [&](index_t, index_t first, index_t last) {
    Scalar* const v = values.value().data();
    for (index_t node = first; node < last; ++node) {
      Scalar* const sum = h.value().data() + node * outputs;
      std::fill(sum, sum + outputs, Scalar{0});
      for (auto k = static_cast<std::size_t>(x.offsets()[static_cast<std::size_t>(node)]);
           k < static_cast<std::size_t>(x.offsets()[static_cast<std::size_t>(node) + 1]); ++k) {
        auto value = static_cast<Scalar>(x.values()[k]);
        if (choice.active()) value *= choice.factor(static_cast<index_t>(k));
        v[k] = value;
        if (value == 0) continue;
        detail::with_size(
            outputs, [&](auto size) { detail::add_scaled(size, value, w.data() + x.indices()[k] * outputs, sum); });
      }
    }
  });
  context.record([=, &context, &weight] {
    Matrix total(outputs, x.features());
    const Scalar* const dh = h.gradient().data();
    const Scalar* const v = values.value().data();
    context.for_parts(x.features(), [&](index_t, index_t first, index_t last) {
      for (index_t f = first; f < last; ++f) {
        Scalar* const sum = total.data() + f * outputs;
        std::fill(sum, sum + outputs, Scalar{0});
        for (auto i = static_cast<std::size_t>(x.feature_offsets()[static_cast<std::size_t>(f)]);
             i < static_cast<std::size_t>(x.feature_offsets()[static_cast<std::size_t>(f) + 1]); ++i) {
          const auto k = static_cast<std::size_t>(x.by_feature()[i]);
          const Scalar value = v[k];
          if (value == 0) continue;
          detail::with_size(outputs,
                            [&](auto size) { detail::add_scaled(size, value, dh + x.rows()[k] * outputs, sum); });
        }
      }
    });
    detail::add_weight_gradient(context, total, level, weight);
  });
  return h;
}

/// The same for dense `x` (features x 1 x 1 a node), without dropout.
template <class Scalar>
[[nodiscard]] Tensor<Scalar> project(Context<Scalar>& context, const Tensor<Scalar>& x, Parameter<Scalar>& weight) {
  using Matrix = detail::Matrix<Scalar>;
  const index_t outputs = weight.shape[0];
  const index_t features = weight.shape[1];
  note_uses(context, weight, x.batch());
  const Level level = context.level;
  auto w = std::make_shared<Matrix>(detail::weights_by_feature(weight, level));
  Tensor<Scalar> h = context.make(x.batch(), {outputs, 1, 1}, true);
  context.for_parts(x.batch(), [&](index_t, index_t first, index_t last) {
    h.matrix().middleCols(first, last - first).noalias() = *w * x.matrix().middleCols(first, last - first);
  });
  context.record([=, &context, &weight] {
    const auto dh = h.gradient_matrix();
    Matrix total(outputs, features);
    context.for_parts(features, [&](index_t, index_t first, index_t last) {
      total.middleCols(first, last - first).noalias() = dh * x.matrix().middleRows(first, last - first).transpose();
    });
    detail::add_weight_gradient(context, total, level, weight);
    if (!x.needs_gradient()) return;
    auto dx = x.gradient_matrix();
    context.for_parts(x.batch(), [&](index_t, index_t first, index_t last) {
      dx.middleCols(first, last - first).noalias() += w->transpose() * dh.middleCols(first, last - first);
    });
  });
  return h;
}

/// The attention of a graph layer: `h` [node][heads * channels] with the attention vectors `source` and `target`
/// [1, heads, channels] that the context's level holds; heads side by side or their mean. In training a share
/// `dropout` of the attention weights is dropped after the softmax.
template <class Scalar>
[[nodiscard]] Tensor<Scalar> attend(Context<Scalar>& context, const Graph& graph, const Tensor<Scalar>& h,
                                    Parameter<Scalar>& source, Parameter<Scalar>& target, bool concat, double slope,
                                    double dropout) {
  using Matrix = detail::Matrix<Scalar>;
  using Array = typename Parameter<Scalar>::Array;
  const index_t heads = source.shape[1];
  const index_t channels = source.shape[2];
  const index_t width = heads * channels;
  const index_t nodes = graph.nodes();
  note_uses(context, source, nodes);
  note_uses(context, target, nodes);
  const Level level = context.level;
  const detail::DropoutChoice<Scalar> choice(context, dropout);
  const auto leak = static_cast<Scalar>(slope);
  const auto at = [](index_t i) { return static_cast<std::size_t>(i); };

  // Both vectors of all heads as one matrix, so that scores are one product: rows 0 .. heads-1 source, then target.
  auto vectors = std::make_shared<Matrix>(Matrix::Zero(2 * heads, width));
  for (index_t i = 0; i < width; ++i) {
    if (source.contains(i, level)) (*vectors)(i / channels, i) = source.value[i];
    if (target.contains(i, level)) (*vectors)(heads + i / channels, i) = target.value[i];
  }
  const Tensor<Scalar> scores = context.make(nodes, {2 * heads, 1, 1}, true);
  const Tensor<Scalar> alpha = context.make(graph.edges(), {heads, 1, 1}, false);    // softmax
  const Tensor<Scalar> dropped = context.make(graph.edges(), {heads, 1, 1}, false);  // with dropout
  Tensor<Scalar> y = context.make(nodes, {concat ? width : channels, 1, 1}, true);
  const Scalar share = concat ? Scalar{1} : Scalar{1} / static_cast<Scalar>(heads);
  context.for_parts(nodes, [&](index_t, index_t first, index_t last) {
    scores.matrix().middleCols(first, last - first).noalias() = *vectors * h.matrix().middleCols(first, last - first);
  });
  context.for_parts(nodes, [&](index_t, index_t first, index_t last) {
    const Scalar* const s = scores.value().data();
    Scalar* const a = alpha.value().data();
    Array largest(heads);
    for (index_t node = first; node < last; ++node) {
      const index_t begin = graph.offsets()[at(node)];
      const index_t end = graph.offsets()[at(node + 1)];
      const Scalar* const own = s + node * 2 * heads + heads;
      largest.setConstant(-std::numeric_limits<Scalar>::infinity());
      for (index_t e = begin; e < end; ++e) {
        const Scalar* const other = s + graph.sources()[at(e)] * 2 * heads;
        for (index_t k = 0; k < heads; ++k) {
          const Scalar z = other[k] + own[k];
          const Scalar score = z > 0 ? z : leak * z;
          a[e * heads + k] = score;
          largest[k] = std::max(largest[k], score);
        }
      }
      for (index_t e = begin; e < end; ++e)
        for (index_t k = 0; k < heads; ++k) a[e * heads + k] -= largest[k];
    }
    const index_t begin = graph.offsets()[at(first)] * heads;
    const index_t end = graph.offsets()[at(last)] * heads;
    alpha.value().segment(begin, end - begin) = alpha.value().segment(begin, end - begin).exp();
    Scalar* const used = dropped.value().data();
    Array sums(heads);
    for (index_t node = first; node < last; ++node) {
      sums.setZero();
      for (index_t e = graph.offsets()[at(node)]; e < graph.offsets()[at(node + 1)]; ++e)
        for (index_t k = 0; k < heads; ++k) sums[k] += a[e * heads + k];
      sums = sums.inverse();
      for (index_t e = graph.offsets()[at(node)]; e < graph.offsets()[at(node + 1)]; ++e)
        for (index_t k = 0; k < heads; ++k) {
          const index_t i = e * heads + k;
          a[i] *= sums[k];
          used[i] = choice.active() ? a[i] * choice.factor(i) : a[i];
        }
    }
    // Dropped weights are multiplied like the others: a branch on them could not be predicted.
    detail::with_size(channels, [&](auto size) {
      for (index_t node = first; node < last; ++node) {
        Scalar* const out = y.value().data() + node * y.shape().channels;
        std::fill(out, out + y.shape().channels, Scalar{0});
        for (index_t e = graph.offsets()[at(node)]; e < graph.offsets()[at(node + 1)]; ++e) {
          const Scalar* const from = h.value().data() + graph.sources()[at(e)] * width;
          for (index_t k = 0; k < heads; ++k)
            detail::add_scaled(size, share * used[e * heads + k], from + k * size, out + (concat ? k * size : 0));
        }
      }
    });
  });
  context.record([=, &context, &source, &target] {
    const Tensor<Scalar> dz = context.make(graph.edges(), {heads, 1, 1}, false);
    const index_t out_width = y.shape().channels;
    const Scalar* const dy = y.gradient().data();
    const Scalar* const s = scores.value().data();
    const Scalar* const a = alpha.value().data();
    const Scalar* const used = dropped.value().data();
    Scalar* const d = dz.value().data();
    Scalar* const dscores = scores.gradient().data();
    // Target by target: through weighted sum, dropout, softmax and leaky ReLU to the scores.
    context.for_parts(nodes, [&](index_t, index_t first, index_t last) {
      detail::with_size(channels, [&](auto size) {
        for (index_t node = first; node < last; ++node) {
          const Scalar* const out = dy + node * out_width;
          for (index_t e = graph.offsets()[at(node)]; e < graph.offsets()[at(node + 1)]; ++e) {
            const Scalar* const from = h.value().data() + graph.sources()[at(e)] * width;
            for (index_t k = 0; k < heads; ++k) {
              const Scalar* const head_out = out + (concat ? k * size : 0);
              Scalar sum = 0;
              for (index_t c = 0; c < size; ++c) sum += head_out[c] * from[k * size + c];
              d[e * heads + k] = sum * share;
            }
          }
        }
      });
      Array mean(heads);
      for (index_t node = first; node < last; ++node) {
        mean.setZero();
        for (index_t e = graph.offsets()[at(node)]; e < graph.offsets()[at(node + 1)]; ++e)
          for (index_t k = 0; k < heads; ++k) {
            const index_t i = e * heads + k;
            if (choice.active()) d[i] *= used[i] == 0 ? Scalar{0} : choice.kept();
            mean[k] += a[i] * d[i];
          }
        const Scalar* const own = s + node * 2 * heads + heads;
        Scalar* const down = dscores + node * 2 * heads + heads;
        for (index_t e = graph.offsets()[at(node)]; e < graph.offsets()[at(node + 1)]; ++e) {
          const Scalar* const other = s + graph.sources()[at(e)] * 2 * heads;
          for (index_t k = 0; k < heads; ++k) {
            const index_t i = e * heads + k;
            d[i] = a[i] * (d[i] - mean[k]) * (other[k] + own[k] > 0 ? Scalar{1} : leak);
            down[k] += d[i];
          }
        }
      }
    });
    // Source by source, so that every sum has one owner and one order.
    Scalar* const dh = h.gradient().data();
    context.for_parts(nodes, [&](index_t, index_t first, index_t last) {
      detail::with_size(channels, [&](auto size) {
        for (index_t node = first; node < last; ++node) {
          Scalar* const to = dh + node * width;
          Scalar* const down = dscores + node * 2 * heads;
          for (index_t o = graph.outgoing_offsets()[at(node)]; o < graph.outgoing_offsets()[at(node + 1)]; ++o) {
            const index_t e = graph.outgoing()[at(o)];
            const Scalar* const out = dy + graph.targets()[at(e)] * out_width;
            for (index_t k = 0; k < heads; ++k) {
              const index_t i = e * heads + k;
              down[k] += d[i];
              detail::add_scaled(size, share * used[i], out + (concat ? k * size : 0), to + k * size);
            }
          }
        }
      });
    });
    const auto ds = scores.gradient_matrix();
    auto dh_matrix = h.gradient_matrix();
    context.for_parts(nodes, [&](index_t, index_t first, index_t last) {
      dh_matrix.middleCols(first, last - first).noalias() += vectors->transpose() * ds.middleCols(first, last - first);
    });
    Matrix sums = Matrix::Zero(2 * width, Context<Scalar>::parts);  // of both vectors' gradients
    context.for_parts(nodes, [&](index_t part, index_t first, index_t last) {
      detail::with_size(channels, [&](auto size) {
        for (index_t node = first; node < last; ++node)
          for (index_t k = 0; k < heads; ++k) {
            const Scalar* const from = h.value().data() + node * width + k * size;
            const Scalar* const down = dscores + node * 2 * heads + k;
            Scalar* const to = sums.data() + part * 2 * width + k * size;
            detail::add_scaled(size, down[0], from, to);
            detail::add_scaled(size, down[heads], from, to + width);
          }
      });
    });
    for (index_t i = 0; i < width; ++i) {
      if (source.contains(i, level)) source.gradient[i] += sums.row(i).sum();
      if (target.contains(i, level)) target.gradient[i] += sums.row(width + i).sum();
    }
  });
  return y;
}

/// See `GraphAttentionOptions`.
template <class Scalar>
class GraphAttention {
 public:
  static constexpr bool has_parameters = true;

  explicit GraphAttention(const GraphAttentionOptions& options)
      : options_(validated(options)),
        weight_({options.heads * options.out_features, options.in_features}, 0),
        source_({1, options.heads, options.out_features}, 0),
        target_({1, options.heads, options.out_features}, 0) {
    for (auto* parameter : {&weight_, &source_, &target_}) {
      parameter->levelled = options.levelled;
      parameter->decay = true;
    }
    if (options.bias) {
      bias_.push_back(Parameter<Scalar>({options.output_features()}, 0));
      bias_.front().decay = true;
    }
    initialise(0);
  }

  /// Glorot's uniform initialisation, as PyTorch Geometric's; the bias is zero.
  void initialise(std::uint64_t seed) {
    std::mt19937_64 random(seed);
    const auto draw = [&](Parameter<Scalar>& parameter, index_t in, index_t out) {
      const double bound = std::sqrt(6.0 / static_cast<double>(in + out));
      for (Scalar& w : parameter.value)
        w = static_cast<Scalar>((static_cast<double>(random() >> 11U) * 0x1p-53 * 2 - 1) * bound);
    };
    draw(weight_, options_.in_features, options_.heads * options_.out_features);
    draw(source_, options_.heads, options_.out_features);
    draw(target_, options_.heads, options_.out_features);
    for (auto& bias : bias_) bias.value.setZero();
  }

  [[nodiscard]] const GraphAttentionOptions& options() const noexcept { return options_; }
  [[nodiscard]] Parameter<Scalar>& weight() noexcept { return weight_; }
  [[nodiscard]] const Parameter<Scalar>& weight() const noexcept { return weight_; }
  /// The attention vectors that a node is met with as the source and as the target of an edge.
  [[nodiscard]] Parameter<Scalar>& source() noexcept { return source_; }
  [[nodiscard]] Parameter<Scalar>& target() noexcept { return target_; }
  /// None: the layer has no normalisation.
  [[nodiscard]] std::vector<NormSet<Scalar>>& norms() noexcept { return norms_; }
  void set_levels(int /*levels*/) noexcept {}

  template <class F>
  void for_each_parameter(const std::string& name, const std::string& /*norm_name*/, F&& f) {
    weight_.name = name + ".lin.weight";
    source_.name = name + ".att_src";
    target_.name = name + ".att_dst";
    f(weight_);
    f(source_);
    f(target_);
    for (auto& bias : bias_) {
      bias.name = name + ".bias";
      f(bias);
    }
  }

  /// Raises: features of another number of nodes or columns, a layer that reads dense features.
  [[nodiscard]] Tensor<Scalar> operator()(Context<Scalar>& context, const SparseFeatures& x, const Graph& graph) const {
    check(true, x.nodes(), x.features(), graph);
    auto& self = const_cast<GraphAttention&>(*this);  // a forward pass of training is const in form only
    return self.finish_layer(context, project(context, x, self.weight_, options_.feature_dropout), graph);
  }
  /// `x`: one sample a node. Raises: as above, a layer that reads sparse features.
  [[nodiscard]] Tensor<Scalar> operator()(Context<Scalar>& context, const Tensor<Scalar>& x, const Graph& graph) const {
    check(false, x.batch(), x.shape().size(), graph);
    auto& self = const_cast<GraphAttention&>(*this);
    return self.finish_layer(context, project(context, dropout(context, x, options_.feature_dropout), self.weight_),
                             graph);
  }

  void store(const std::string& name, const std::string& /*norm_name*/, ParameterSink& sink) const {
    const index_t outputs = options_.heads * options_.out_features;
    const std::vector<float> weights = floats(weight_);
    if (is_dense(weight_)) {
      sink.array<float>(name + ".lin.weight", {outputs, options_.in_features}, 0, weights);
    } else if (!options_.sparse_input) {
      sink.leveled_csr(name + ".lin.weight",
                       leveled(outputs, options_.in_features, weights, weight_.strata, sink.levels()));
    } else {
      // By feature, heads innermost: the order in which a sparse row of features adds up.
      std::vector<float> values(weights.size());
      std::vector<std::uint8_t> strata(weights.size());
      for (index_t o = 0; o < outputs; ++o)
        for (index_t f = 0; f < options_.in_features; ++f) {
          const auto from = static_cast<std::size_t>(o * options_.in_features + f);
          const auto to = static_cast<std::size_t>(f * outputs + o % options_.out_features * options_.heads +
                                                   o / options_.out_features);
          values[to] = weights[from];
          strata[to] = weight_.strata[from];
        }
      sink.leveled_csr(name + ".lin.weight",
                       leveled(options_.in_features, outputs, values, std::move(strata), sink.levels()));
    }
    for (const auto& [suffix, vector] : {std::pair(".att_src", &source_), std::pair(".att_dst", &target_)}) {
      const std::vector<float> values = floats(*vector);
      if (is_dense(*vector)) {
        sink.array<float>(name + suffix, {1, options_.heads, options_.out_features}, 0, values);
      } else {
        sink.leveled_csr(name + suffix,
                         leveled(options_.heads, options_.out_features, values, vector->strata, sink.levels()));
      }
    }
    for (const auto& bias : bias_) sink.array<float>(name + ".bias", {options_.output_features()}, 0, floats(bias));
  }

 private:
  [[nodiscard]] static const GraphAttentionOptions& validated(const GraphAttentionOptions& options) {
    require_valid(options);
    return options;
  }
  [[nodiscard]] static std::vector<float> floats(const Parameter<Scalar>& parameter) {
    std::vector<float> result;
    for (const auto value : parameter.value) result.push_back(static_cast<float>(value));
    return result;
  }
  [[nodiscard]] static bool is_dense(const Parameter<Scalar>& parameter) {
    return std::all_of(parameter.strata.begin(), parameter.strata.end(), [](std::uint8_t s) { return s == 0; });
  }
  [[nodiscard]] static LeveledCsr<float, LinearIndex> leveled(index_t rows, index_t columns,
                                                              const std::vector<float>& values,
                                                              std::vector<std::uint8_t> strata, int levels) {
    const StratumMap map = StratumMap::from_strata(rows, columns, levels, std::move(strata)).value();
    return LeveledCsr<float, LinearIndex>::from_dense(values, map, linear_block_columns(columns));
  }

  void check(bool sparse, index_t nodes, index_t features, const Graph& graph) const {
    if (sparse == options_.sparse_input && nodes == graph.nodes() && features == options_.in_features) return;
    const auto kind = [](bool is_sparse) { return is_sparse ? " sparse features" : " dense features"; };
    raise(Error(
        weight_.name.empty() ? "graph attention" : weight_.name,
        std::to_string(graph.nodes()) + " x " + std::to_string(options_.in_features) + kind(options_.sparse_input),
        std::to_string(nodes) + " x " + std::to_string(features) + kind(sparse)));
  }

  [[nodiscard]] Tensor<Scalar> finish_layer(Context<Scalar>& context, const Tensor<Scalar>& h, const Graph& graph) {
    const Tensor<Scalar> y = attend(context, graph, h, source_, target_, options_.concat, options_.negative_slope,
                                    options_.attention_dropout);
    return finish<Scalar>(context, y, nullptr, bias_.empty() ? nullptr : &bias_.front(), nullptr, options_.activation);
  }

  GraphAttentionOptions options_;
  Parameter<Scalar> weight_, source_, target_;
  std::vector<Parameter<Scalar>> bias_;  ///< none or one
  std::vector<NormSet<Scalar>> norms_;   ///< always empty
};

}  // namespace strata::train
