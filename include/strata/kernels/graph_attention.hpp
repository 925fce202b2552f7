// Kernels of a graph attention layer: projection of sparse or dense node features by level-sorted or dense weights, and
// the fused attention (scores, leaky ReLU, softmax over incoming edges, weighted sum, bias, activation). The plain form
// of the whole layer stands at the end. They know arrays; options and parameters are the layer's business.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <xsimd/xsimd.hpp>

#include <strata/core/activation.hpp>
#include <strata/core/types.hpp>
#include <strata/kernels/epilogue.hpp>
#include <strata/kernels/exponential.hpp>
#include <strata/kernels/lanes.hpp>
#include <strata/sparse/graph.hpp>
#include <strata/sparse/leveled_csr.hpp>

namespace strata::kernels {

/// Where the heads of a node lie: channel by channel with the heads innermost, `period` elements from one channel to
/// the next, so that the attention weights of an edge are one vector that fits every channel without shuffling.
struct HeadLayout {
  index_t heads = 1;
  index_t channels = 1;  ///< of each head
  index_t period = 1;    ///< heads rounded up to a divisor or a multiple of the vector's lanes
  index_t row = 1;       ///< elements of a node, whole vectors; those that belong to no head are zero
  index_t score = 1;     ///< elements of a node's score: one for one head, else the period repeated to whole vectors

  /// Preconditions: heads, channels, lanes >= 1; lanes a power of two.
  [[nodiscard]] static constexpr HeadLayout make(index_t heads, index_t channels, index_t lanes) noexcept {
    HeadLayout layout;
    layout.heads = heads;
    layout.channels = channels;
    layout.period = 1;
    while (layout.period < heads && layout.period < lanes) layout.period *= 2;
    if (layout.period < heads) layout.period = round_up(heads, lanes);
    layout.row = round_up(channels * layout.period, lanes);
    layout.score = layout.period == 1 ? 1 : (layout.period < lanes ? lanes : layout.period);
    return layout;
  }
  [[nodiscard]] constexpr index_t position(index_t head, index_t channel) const noexcept {
    return channel * period + head;
  }
};

namespace detail {

/// Sums of `count` vectors over the terms that `for_each(f)` passes as f(factor, row of weights).
template <class Arch, std::size_t count, class Scalar, class Terms>
[[gnu::always_inline]] inline void weighted_rows(const Terms& terms, index_t offset, Scalar* output) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  [&]<std::size_t... v>(std::index_sequence<v...>) {
    std::array<Batch, count> sums{((void)v, Batch(Scalar{0}))...};
    terms([&](Scalar factor, const Scalar* row) __attribute__((always_inline)) {
      const Batch f(factor);
      ((sums[v] = xsimd::fma(f, Batch::load_aligned(row + offset + static_cast<index_t>(v * Batch::size)), sums[v])),
       ...);
    });
    (sums[v].store_aligned(output + offset + static_cast<index_t>(v * Batch::size)), ...);
  }
  (std::make_index_sequence<count>());
}

/// `weighted_rows` for rows of any number of vectors, eight at a time.
template <class Arch, class Scalar, class Terms>
[[gnu::always_inline]] inline void weighted_row(const Terms& terms, index_t row, Scalar* output) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  index_t offset = 0;
  for (; row - offset >= 8 * lanes; offset += 8 * lanes) weighted_rows<Arch, 8>(terms, offset, output);
  for (; row - offset >= 4 * lanes; offset += 4 * lanes) weighted_rows<Arch, 4>(terms, offset, output);
  for (; offset < row; offset += lanes) weighted_rows<Arch, 1>(terms, offset, output);
}

}  // namespace detail

/// Nodes first .. last-1 of h = X W for sparse X and dense rows of weights in the order of the layout, `layout.row`
/// apart: feature f has row row_of[f], or row f if `row_of` is null. `h` is [node][layout.row]; `rows` and `h` are
/// aligned.
template <class Arch, class Scalar>
void project_sparse(const SparseFeatures& x, index_t first, index_t last, const Scalar* rows, const GraphIndex* row_of,
                    const HeadLayout& layout, Scalar* h) noexcept {
  const GraphIndex* const offsets = x.offsets().data();
  const GraphIndex* const indices = x.indices().data();
  const float* const values = x.values().data();
  for (index_t node = first; node < last; ++node) {
    const auto terms = [&](auto&& add) __attribute__((always_inline)) {
      for (GraphIndex k = offsets[node]; k < offsets[node + 1]; ++k)
        add(static_cast<Scalar>(values[k]), rows + (row_of == nullptr ? indices[k] : row_of[indices[k]]) * layout.row);
    };
    detail::weighted_row<Arch>(terms, layout.row, h + node * layout.row);
  }
}

namespace detail {

/// One vector of the rows of `count` nodes, so that their sums do not wait for each other.
template <class Arch, std::size_t count, class Scalar>
[[gnu::always_inline]] inline void project_vector(const Scalar* x, index_t pitch, const GraphIndex* places,
                                                  index_t features, const Scalar* weights, index_t row,
                                                  Scalar* h) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  [&]<std::size_t... n>(std::index_sequence<n...>) {
    std::array<Batch, count> sums{((void)n, Batch(Scalar{0}))...};
    for (index_t k = 0; k < features; ++k) {
      const Batch w = Batch::load_aligned(weights + k * row);
      const Scalar* const source = x + places[k];
      ((sums[n] = xsimd::fma(Batch(source[static_cast<index_t>(n) * pitch]), w, sums[n])), ...);
    }
    (sums[n].store_aligned(h + static_cast<index_t>(n) * row), ...);
  }
  (std::make_index_sequence<count>());
}

}  // namespace detail

/// As above for dense X, rows `pitch` apart, whose feature k lies at places[k] of its row and has row k of `weights`.
template <class Arch, class Scalar>
void project_dense(const Scalar* x, index_t pitch, const GraphIndex* places, index_t features, index_t first,
                   index_t last, const Scalar* weights, const HeadLayout& layout, Scalar* h) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  for (index_t at = 0; at < layout.row; at += lanes) {
    index_t node = first;
    for (; node + 8 <= last; node += 8)
      detail::project_vector<Arch, 8>(x + node * pitch, pitch, places, features, weights + at, layout.row,
                                      h + node * layout.row + at);
    for (; node < last; ++node)
      detail::project_vector<Arch, 1>(x + node * pitch, pitch, places, features, weights + at, layout.row,
                                      h + node * layout.row + at);
  }
}

/// Level-sorted weights become dense rows once a run: a level has far fewer weights than a graph has pairs of a node's
/// feature and a weight, and rows are added by whole vectors.

/// Writes the features that `level` uses at all as `rows`, [row][layout.row], after a row of zeros, and where each
/// begins to `row_of`; those without weights share the zeros. `weights`: features x outputs with the outputs in
/// heads-innermost order (column = channel * heads + head). Preconditions: `rows` has room for a row more than there
/// are features, `row_of` an entry for each.
template <class Scalar, class Index>
void expand_by_feature(const LeveledCsr<Scalar, Index>& weights, Level level, const HeadLayout& layout, Scalar* rows,
                       GraphIndex* row_of) noexcept {
  std::fill(row_of, row_of + weights.rows(), GraphIndex{0});
  std::fill(rows, rows + layout.row, Scalar{0});
  GraphIndex used = 1;
  weights.for_each_run(
      level, [&](index_t feature, index_t block, std::span<const Index> indices, std::span<const Scalar> values) {
        if (row_of[feature] == 0) {
          std::fill(rows + used * layout.row, rows + (used + 1) * layout.row, Scalar{0});
          row_of[feature] = used++;
        }
        Scalar* const row = rows + row_of[feature] * layout.row;
        for (std::size_t k = 0; k < indices.size(); ++k) {
          const index_t column = block + static_cast<index_t>(indices[k]);
          row[layout.period == layout.heads ? column : layout.position(column % layout.heads, column / layout.heads)] =
              values[k];
        }
      });
}

/// Writes all features as `rows`, [feature][layout.row]. `weights`: outputs x features with output = head * channels +
/// channel.
template <class Scalar, class Index>
void expand_by_output(const LeveledCsr<Scalar, Index>& weights, Level level, const HeadLayout& layout,
                      Scalar* rows) noexcept {
  std::fill(rows, rows + weights.columns() * layout.row, Scalar{0});
  weights.for_each(level, [&](index_t output, index_t feature, Scalar value) {
    rows[feature * layout.row + layout.position(output / layout.channels, output % layout.channels)] = value;
  });
}

namespace detail {

/// Adds to every lane those that lie multiples of `period` lanes away; `period` is a power of two.
template <class Batch, std::size_t width = Batch::size / 2>
[[nodiscard]] [[gnu::always_inline]] inline Batch fold_lanes(Batch x, index_t period) noexcept {
  if constexpr (width == 0) {
    return x;
  } else {
    if (static_cast<index_t>(width) < period) return x;
    return fold_lanes<Batch, width / 2>(x + rotate_lanes<width>(x), period);
  }
}

}  // namespace detail

/// Scores of nodes first .. last-1: a node's dot product, head by head, with the attention vectors `source` and
/// `target` ([layout.row], zero where no head is). Outputs are [node][layout.score].
template <class Arch, class Scalar>
void attention_scores(index_t first, index_t last, const Scalar* h, const HeadLayout& layout, const Scalar* source,
                      const Scalar* target, Scalar* source_scores, Scalar* target_scores) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const index_t groups = layout.period > lanes ? layout.period / lanes : 1;  // vectors of one channel
  for (index_t node = first; node < last; ++node) {
    const Scalar* const row = h + node * layout.row;
    for (index_t group = 0; group < groups; ++group) {
      Batch s(Scalar{0});
      Batch t(Scalar{0});
      for (index_t at = group * lanes; at < layout.row; at += groups * lanes) {
        const Batch x = Batch::load_aligned(row + at);
        s = xsimd::fma(x, Batch::load_aligned(source + at), s);
        t = xsimd::fma(x, Batch::load_aligned(target + at), t);
      }
      if (layout.period >= lanes) {
        s.store_aligned(source_scores + node * layout.score + group * lanes);
        t.store_aligned(target_scores + node * layout.score + group * lanes);
        continue;
      }
      // Several channels share a vector: folded by half and half, every lane ends with the sum of its head.
      s = detail::fold_lanes(s, layout.period);
      t = detail::fold_lanes(t, layout.period);
      if (layout.score == 1) {
        source_scores[node] = s.get(0);
        target_scores[node] = t.get(0);
      } else {
        s.store_aligned(source_scores + node * layout.score);
        t.store_aligned(target_scores + node * layout.score);
      }
    }
  }
}

/// What becomes of the weighted sums of a node.
template <class Scalar>
struct AttentionOutput {
  bool concat = true;            ///< false: mean over the heads
  const Scalar* bias = nullptr;  ///< concat: [layout.row], zero where no head is; else one a channel; null: none
  Activation activation = Activation::identity;
  /// [node][pitch], aligned: with `concat` in the order of the layout, pitch = layout.row; else channel by channel.
  Scalar* values = nullptr;
  index_t pitch = 0;
};

namespace detail {

/// Edges whose attention weights are computed before their neighbours are summed up.
inline constexpr index_t attention_chunk = 128;

template <class Arch, std::size_t count, bool one_group, class Scalar>
[[gnu::always_inline]] inline void add_neighbours(const GraphIndex* sources, index_t edges, const Scalar* h,
                                                  index_t pitch, const Scalar* weights, index_t score, index_t groups,
                                                  index_t offset, Scalar* row) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  [&]<std::size_t... v>(std::index_sequence<v...>) {
    std::array<Batch, count> sums{Batch::load_aligned(row + offset + static_cast<index_t>(v) * lanes)...};
    for (index_t e = 0; e < edges; ++e) {
      const Scalar* const from = h + sources[e] * pitch + offset;
      if constexpr (one_group) {
        const Batch w = score == 1 ? Batch(weights[e]) : Batch::load_aligned(weights + e * score);
        ((sums[v] = xsimd::fma(w, Batch::load_aligned(from + static_cast<index_t>(v) * lanes), sums[v])), ...);
      } else {
        const Scalar* const w = weights + e * score;
        ((sums[v] = xsimd::fma(Batch::load_aligned(w + (offset / lanes + static_cast<index_t>(v)) % groups * lanes),
                               Batch::load_aligned(from + static_cast<index_t>(v) * lanes), sums[v])),
         ...);
      }
    }
    (sums[v].store_aligned(row + offset + static_cast<index_t>(v) * lanes), ...);
  }
  (std::make_index_sequence<count>());
}

template <class Arch, bool one_group, class Scalar>
void add_neighbours(const GraphIndex* sources, index_t edges, const Scalar* h, index_t pitch, const Scalar* weights,
                    index_t score, index_t groups, Scalar* row) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  index_t offset = 0;
  for (; pitch - offset >= 8 * lanes; offset += 8 * lanes)
    add_neighbours<Arch, 8, one_group>(sources, edges, h, pitch, weights, score, groups, offset, row);
  for (; pitch - offset >= 4 * lanes; offset += 4 * lanes)
    add_neighbours<Arch, 4, one_group>(sources, edges, h, pitch, weights, score, groups, offset, row);
  for (; offset < pitch; offset += lanes)
    add_neighbours<Arch, 1, one_group>(sources, edges, h, pitch, weights, score, groups, offset, row);
}

/// The mean over the heads of a node's sums, then bias and activation.
template <class Scalar>
void mean_over_heads(const HeadLayout& layout, const Scalar* row, const AttentionOutput<Scalar>& output,
                     Scalar* target) noexcept {
  for (index_t channel = 0; channel < layout.channels; ++channel) {
    Scalar sum = 0;
    for (index_t head = 0; head < layout.heads; ++head) sum += row[layout.position(head, channel)];
    sum /= static_cast<Scalar>(layout.heads);
    if (output.bias != nullptr) sum += output.bias[channel];
    target[channel] = activate(sum, output.activation);
  }
}

/// exp(leaky_relu(score) - top) of each edge to `weights`, a vector each; returns their sum. With `halves` a vector's
/// halves hold the same heads, and two edges share an exponential.
template <class Batch, class Scalar>
[[gnu::always_inline]] inline Batch edge_weights(const GraphIndex* sources, index_t edges, const Scalar* source_scores,
                                                 const Batch& mine, const Batch& leak, const Batch& top, bool halves,
                                                 Scalar* weights) noexcept {
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const auto weigh = [&](const Batch& scores) __attribute__((always_inline)) {
    const Batch z = scores + mine;
    return bounded_exp(xsimd::max(z, z * leak) - top);
  };
  const auto scores_of = [&](index_t e) { return Batch::load_aligned(source_scores + sources[e] * lanes); };
  Batch total(Scalar{0});
  index_t e = 0;
  if (halves)
    for (; e + 2 <= edges; e += 2) {
      const Batch both = weigh(low_and_high(scores_of(e), scores_of(e + 1)));
      const Batch first = low_twice(both);
      const Batch second = high_twice(both);
      first.store_aligned(weights + e * lanes);
      second.store_aligned(weights + (e + 1) * lanes);
      total += first + second;
    }
  for (; e < edges; ++e) {
    const Batch w = weigh(scores_of(e));
    w.store_aligned(weights + e * lanes);
    total += w;
  }
  return total;
}

/// Below this a sum of attention weights has lost digits, because no edge's score is near the bound that was
/// subtracted.
template <class Scalar>
inline constexpr auto least_total = static_cast<Scalar>(1e-30);

/// Whether any lane's sum is so small.
template <class Batch>
[[nodiscard]] [[gnu::always_inline]] inline bool lost_digits(const Batch& total) noexcept {
  return xsimd::any(total < Batch(least_total<typename Batch::value_type>));
}

/// Bias and activation of `count` vectors of weighted sums, stored to `target`.
template <class Batch, std::size_t... v>
[[gnu::always_inline]] inline void finish_sums(std::array<Batch, sizeof...(v)>& sums, const Batch& total,
                                               const AttentionOutput<typename Batch::value_type>& output,
                                               typename Batch::value_type* target, std::index_sequence<v...>) noexcept {
  using Scalar = typename Batch::value_type;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const Batch factor = Batch(Scalar{1}) / total;
  ((sums[v] *= factor), ...);
  if (output.concat && output.bias != nullptr)
    ((sums[v] += Batch::load_aligned(output.bias + static_cast<index_t>(v) * lanes)), ...);
  (sums[v].store_aligned(target + static_cast<index_t>(v) * lanes), ...);
  if (output.concat && output.activation != Activation::identity)
    activate_stored<typename Batch::arch_type>(target, sizeof...(v), output.activation);
}

/// Weights and weighted sum of one node of one chunk of edges at most, sums in registers: for several heads whose
/// attention weights fit a vector and rows of `count` vectors. `top`: a bound of the node's scores, head by head.
/// Returns whether that served. (Exponentials have a loop of their own, for which two edges share a vector.)
template <class Arch, std::size_t count, class Scalar>
[[gnu::always_inline]] inline bool attend_in_registers(const GraphIndex* sources, index_t degree, const Scalar* h,
                                                       const Scalar* source_scores,
                                                       const xsimd::batch<Scalar, Arch>& mine,
                                                       const xsimd::batch<Scalar, Arch>& leak,
                                                       const xsimd::batch<Scalar, Arch>& top, bool halves,
                                                       const AttentionOutput<Scalar>& output, Scalar* weights,
                                                       Scalar* target) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  constexpr auto row = static_cast<index_t>(count) * lanes;
  constexpr std::make_index_sequence<count> each{};
  const Batch total = edge_weights(sources, degree, source_scores, mine, leak, top, halves, weights);
  if (lost_digits(total)) return false;
  [&]<std::size_t... v>(std::index_sequence<v...>) {
    std::array<Batch, count> sums{((void)v, Batch(Scalar{0}))...};
    for (index_t e = 0; e < degree; ++e) {
      const Batch w = Batch::load_aligned(weights + e * lanes);
      const Scalar* const from = h + sources[e] * row;
      ((sums[v] = xsimd::fma(w, Batch::load_aligned(from + static_cast<index_t>(v) * lanes), sums[v])), ...);
    }
    finish_sums(sums, total, output, target, each);
  }
  (each);
  return true;
}

/// The same for one head, whose edges lie in the lanes: the exponentials of all edges of nodes first .. last-1 in one
/// go, which are a chunk at most. Calls `otherwise(node)` for nodes that the bound does not serve.
template <class Arch, std::size_t count, class Scalar, class Otherwise>
[[gnu::always_inline]] inline void attend_with_one_head(const Graph& graph, index_t first, index_t last,
                                                        const Scalar* h, const Scalar* source_scores,
                                                        const Scalar* target_scores, Scalar largest, Scalar slope,
                                                        const AttentionOutput<Scalar>& output, Scalar* weights,
                                                        const Otherwise& otherwise) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  constexpr auto row = static_cast<index_t>(count) * lanes;
  constexpr std::make_index_sequence<count> each{};
  const GraphIndex* const offsets = graph.offsets().data();
  const GraphIndex* const sources = graph.sources().data();
  const auto leaky = [&](Scalar x) { return std::max(x, x * slope); };
  const index_t begin = offsets[first];
  const index_t edges = offsets[last] - begin;
  for (index_t node = first; node < last; ++node) {
    const Scalar own = target_scores[node];
    const Scalar top = leaky(largest + own);
    for (index_t e = offsets[node]; e < offsets[node + 1]; ++e)
      weights[e - begin] = leaky(source_scores[sources[e]] + own) - top;
  }
  std::fill(weights + edges, weights + round_up(edges, lanes), Scalar{0});
  for (index_t e = 0; e < edges; e += lanes) bounded_exp(Batch::load_aligned(weights + e)).store_aligned(weights + e);
  for (index_t node = first; node < last; ++node) {
    Scalar* const target = output.values + node * output.pitch;
    [&]<std::size_t... v>(std::index_sequence<v...>) {
      std::array<Batch, count> sums{((void)v, Batch(Scalar{0}))...};
      Batch total(Scalar{0});
      for (index_t e = offsets[node]; e < offsets[node + 1]; ++e) {
        const Batch w(weights[e - begin]);
        const Scalar* const from = h + sources[e] * row;
        total += w;
        ((sums[v] = xsimd::fma(w, Batch::load_aligned(from + static_cast<index_t>(v) * lanes), sums[v])), ...);
      }
      if (lost_digits(total)) {
        otherwise(node);
      } else {
        finish_sums(sums, total, output, target, each);
      }
    }
    (each);
  }
}

/// Calls `f` with the integral constant `count`, which is 1 to 8.
template <class F>
[[gnu::always_inline]] inline void with_count(index_t count, const F& f) {
  [&]<std::size_t... below>(std::index_sequence<below...>) {
    ((count == static_cast<index_t>(below + 1) ? f(std::integral_constant<std::size_t, below + 1>()) : void()), ...);
  }
  (std::make_index_sequence<8>());
}

/// One node of any degree with any layout: the largest score of its own edges is subtracted, sums pass through memory.
template <class Arch, class Scalar>
void attend(const GraphIndex* sources, index_t degree, const HeadLayout& layout, const Scalar* h,
            const Scalar* source_scores, const Scalar* own, Scalar slope, const AttentionOutput<Scalar>& output,
            Scalar* scratch, Scalar* target) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const bool single = layout.score == 1;  // edges lie in the lanes, else heads do
  const index_t groups = single ? 1 : layout.score / lanes;
  Scalar* const top = scratch + layout.row;
  Scalar* const total = top + round_up(layout.score, lanes);
  Scalar* const weights = total + round_up(layout.score, lanes);
  Scalar* const row = output.concat ? target : scratch;
  const Batch leak(slope);
  std::fill(row, row + layout.row, Scalar{0});
  // Leaky ReLU does not fall, so the largest score is that of the largest source.
  if (single) {
    Scalar largest = -std::numeric_limits<Scalar>::infinity();
    for (index_t e = 0; e < degree; ++e) largest = std::max(largest, source_scores[sources[e]]);
    largest += *own;
    *top = std::max(largest, largest * slope);
    *total = 0;
  } else {
    for (index_t g = 0; g < layout.score; g += lanes) {
      Batch largest(-std::numeric_limits<Scalar>::infinity());
      for (index_t e = 0; e < degree; ++e)
        largest = xsimd::max(largest, Batch::load_aligned(source_scores + sources[e] * layout.score + g));
      largest += Batch::load_aligned(own + g);
      xsimd::max(largest, largest * leak).store_aligned(top + g);
      Batch(Scalar{0}).store_aligned(total + g);
    }
  }
  for (index_t begin = 0; begin < degree; begin += attention_chunk) {
    const index_t edges = std::min(attention_chunk, degree - begin);
    const GraphIndex* const chunk = sources + begin;
    if (single) {
      const index_t padded = round_up(edges, lanes);
      for (index_t e = 0; e < edges; ++e) weights[e] = source_scores[chunk[e]];
      for (index_t e = edges; e < padded; ++e) weights[e] = 0;
      const Batch mine(*own);
      const Batch largest(*top);
      for (index_t e = 0; e < padded; e += lanes) {
        const Batch z = Batch::load_aligned(weights + e) + mine;
        bounded_exp(xsimd::max(z, z * leak) - largest).store_aligned(weights + e);
      }
      Scalar sum = 0;
      for (index_t e = 0; e < edges; ++e) sum += weights[e];
      *total += sum;
    } else {
      for (index_t g = 0; g < layout.score; g += lanes) {
        const Batch mine = Batch::load_aligned(own + g);
        const Batch largest = Batch::load_aligned(top + g);
        Batch sum = Batch::load_aligned(total + g);
        for (index_t e = 0; e < edges; ++e) {
          const Batch z = Batch::load_aligned(source_scores + chunk[e] * layout.score + g) + mine;
          const Batch w = bounded_exp(xsimd::max(z, z * leak) - largest);
          sum += w;
          w.store_aligned(weights + e * layout.score + g);
        }
        sum.store_aligned(total + g);
      }
    }
    if (groups == 1) {
      add_neighbours<Arch, true>(chunk, edges, h, layout.row, weights, layout.score, groups, row);
    } else {
      add_neighbours<Arch, false>(chunk, edges, h, layout.row, weights, layout.score, groups, row);
    }
  }
  if (degree > 0) {
    for (index_t v = 0; v < layout.row / lanes; ++v) {
      const Batch sum = single ? Batch(*total) : Batch::load_aligned(total + v % groups * lanes);
      (Batch::load_aligned(row + v * lanes) / sum).store_aligned(row + v * lanes);
    }
  }
  if (!output.concat) {
    mean_over_heads(layout, row, output, target);
    return;
  }
  for (index_t at = 0; at < layout.row; at += lanes) {
    Batch y = Batch::load_aligned(row + at);
    if (output.bias != nullptr) y += Batch::load_aligned(output.bias + at);
    if (output.activation != Activation::identity) y = activate(y, output.activation);
    y.store_aligned(row + at);
  }
}

}  // namespace detail

/// Elements of scratch that one task of `graph_attention` needs, aligned.
template <class Arch, class Scalar>
[[nodiscard]] constexpr index_t attention_scratch(const HeadLayout& layout) noexcept {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);
  return layout.row + 2 * round_up(layout.score, lanes) + 2 * detail::attention_chunk * layout.score;
}

/// The largest source score of all nodes, head by head, to `largest`: [layout.score].
template <class Arch, class Scalar>
void largest_scores(index_t nodes, const HeadLayout& layout, const Scalar* source_scores, Scalar* largest) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  if (layout.score == 1) {
    *largest = nodes == 0 ? Scalar{0} : *std::max_element(source_scores, source_scores + nodes);
    return;
  }
  for (index_t g = 0; g < layout.score; g += lanes) {
    Batch most(-std::numeric_limits<Scalar>::infinity());
    for (index_t node = 0; node < nodes; ++node)
      most = xsimd::max(most, Batch::load_aligned(source_scores + node * layout.score + g));
    most.store_aligned(largest + g);
  }
}

/// Nodes first .. last-1 of the layer's second half, fused: for every incoming edge leaky_relu(source score + target
/// score), softmax over the node's edges, weighted sum of the sources' `h`, then `output`. Nothing is stored per edge
/// beyond a chunk of them. A node without incoming edges has a sum of zero.
///
/// `largest`: of all nodes (`largest_scores`). Leaky ReLU does not fall, so leaky_relu(largest + target score) bounds a
/// node's scores; subtracting it is as good as subtracting their largest unless that is 69 below, and spares a pass
/// over the edges. Nodes for which it is not take that pass.
/// Precondition: 0 <= slope <= 1, `scratch` of `attention_scratch` elements, 64-byte aligned.
template <class Arch, class Scalar>
void graph_attention(const Graph& graph, index_t first, index_t last, const HeadLayout& layout, const Scalar* h,
                     const Scalar* source_scores, const Scalar* target_scores, const Scalar* largest, Scalar slope,
                     const AttentionOutput<Scalar>& output, Scalar* scratch) noexcept {
  using Batch = xsimd::batch<Scalar, Arch>;
  constexpr auto lanes = static_cast<index_t>(Batch::size);
  const GraphIndex* const offsets = graph.offsets().data();
  const GraphIndex* const sources = graph.sources().data();
  // Behind what `attend` uses, which may be called while there are weights.
  Scalar* const weights =
      scratch + layout.row + 2 * round_up(layout.score, lanes) + detail::attention_chunk * layout.score;
  const auto attend = [&](index_t node) {
    detail::attend<Arch>(sources + offsets[node], offsets[node + 1] - offsets[node], layout, h, source_scores,
                         target_scores + node * layout.score, slope, output, scratch,
                         output.values + node * output.pitch);
  };
  const bool in_registers = layout.score <= lanes && layout.row <= 8 * lanes;
  if (in_registers && layout.score > 1) {
    const Batch leak(slope);
    const Batch most = Batch::load_aligned(largest);
    const bool halves = 2 * layout.period <= lanes;
    detail::with_count(
        layout.row / lanes, [&](auto count) __attribute__((always_inline)) {
          for (index_t node = first; node < last; ++node) {
            const index_t degree = offsets[node + 1] - offsets[node];
            const Batch mine = Batch::load_aligned(target_scores + node * layout.score);
            const Batch top = most + mine;
            Scalar* const target = output.values + node * output.pitch;
            Scalar* const row = output.concat ? target : scratch;
            if (degree > detail::attention_chunk || !detail::attend_in_registers<Arch, count()>(
                                                        sources + offsets[node], degree, h, source_scores, mine, leak,
                                                        xsimd::max(top, top * leak), halves, output, weights, row)) {
              attend(node);
            } else if (!output.concat) {
              detail::mean_over_heads(layout, row, output, target);
            }
          }
        });
  } else if (in_registers && output.concat) {
    detail::with_count(
        layout.row / lanes, [&](auto count) __attribute__((always_inline)) {
          for (index_t node = first; node < last;) {
            index_t end = node;  // of as many nodes as a chunk has edges for
            while (end < last && offsets[end + 1] - offsets[node] <= detail::attention_chunk) ++end;
            if (end == node) {
              attend(node++);
              continue;
            }
            detail::attend_with_one_head<Arch, count()>(graph, node, end, h, source_scores, target_scores, *largest,
                                                        slope, output, weights, attend);
            node = end;
          }
        });
  } else {
    for (index_t node = first; node < last; ++node) attend(node);
  }
}

namespace reference {

/// The whole layer in plain loops, as in the paper: `x` [node][features], `weights` [heads * channels][features],
/// `source` and `target` [heads][channels], `bias` empty or one an output. Returns [node][outputs].
template <class Scalar>
[[nodiscard]] std::vector<Scalar> graph_attention(const Graph& graph, std::span<const Scalar> x, index_t features,
                                                  index_t heads, index_t channels, std::span<const Scalar> weights,
                                                  std::span<const Scalar> source, std::span<const Scalar> target,
                                                  std::span<const Scalar> bias, Scalar slope, bool concat,
                                                  Activation activation) {
  const auto at = [](index_t i) { return static_cast<std::size_t>(i); };
  const index_t nodes = graph.nodes();
  const index_t width = heads * channels;
  const index_t outputs = concat ? width : channels;
  std::vector<Scalar> h(at(nodes * width), Scalar{0});
  for (index_t node = 0; node < nodes; ++node)
    for (index_t o = 0; o < width; ++o)
      for (index_t f = 0; f < features; ++f)
        h[at(node * width + o)] += weights[at(o * features + f)] * x[at(node * features + f)];
  std::vector<Scalar> y(at(nodes * outputs), Scalar{0});
  for (index_t node = 0; node < nodes; ++node) {
    for (index_t head = 0; head < heads; ++head) {
      std::vector<Scalar> scores;
      for (index_t e = graph.offsets()[at(node)]; e < graph.offsets()[at(node + 1)]; ++e) {
        Scalar score = 0;
        for (index_t c = 0; c < channels; ++c)
          score += source[at(head * channels + c)] * h[at(graph.sources()[at(e)] * width + head * channels + c)] +
                   target[at(head * channels + c)] * h[at(node * width + head * channels + c)];
        scores.push_back(score > 0 ? score : slope * score);
      }
      if (scores.empty()) continue;
      const Scalar largest = *std::max_element(scores.begin(), scores.end());
      Scalar sum = 0;
      for (Scalar& score : scores) sum += score = std::exp(score - largest);
      for (index_t e = graph.offsets()[at(node)]; e < graph.offsets()[at(node + 1)]; ++e)
        for (index_t c = 0; c < channels; ++c)
          y[at(node * outputs + (concat ? head * channels : 0) + c)] +=
              scores[at(e - graph.offsets()[at(node)])] / sum *
              h[at(graph.sources()[at(e)] * width + head * channels + c)] /
              (concat ? Scalar{1} : static_cast<Scalar>(heads));
    }
    for (index_t o = 0; o < outputs; ++o) {
      Scalar& value = y[at(node * outputs + o)];
      value = activate(bias.empty() ? value : value + bias[at(o)], activation);
    }
  }
  return y;
}

}  // namespace reference

}  // namespace strata::kernels
