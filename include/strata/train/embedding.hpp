// Embedding of the training family: rows of a table and the sums of their gradients.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <strata/layers/embedding.hpp>
#include <strata/layers/parameters.hpp>
#include <strata/train/operations.hpp>
#include <strata/train/parameter.hpp>
#include <strata/train/store.hpp>
#include <strata/train/tape.hpp>

namespace strata::train {

/// A sample for each of `words` from the rows of `table` [words, features] as the context's level holds them; the
/// padding word (-1: none) gives zeros. Raises: a number that is no word of the table.
template <class Scalar>
[[nodiscard]] Tensor<Scalar> embed(Context<Scalar>& context, std::span<const TokenId> words, Parameter<Scalar>& table,
                                   index_t padding_word) {
  const index_t features = table.shape[1];
  note_uses(context, table, 0);
  for (const TokenId word : words)
    if (word < 0 || word >= table.shape[0])
      raise(Error(table.name.empty() ? "embedding" : table.name, "words below " + std::to_string(table.shape[0]),
                  std::to_string(word)));
  const Level level = context.level;
  Tensor<Scalar> y = context.make(static_cast<index_t>(words.size()), {features, 1, 1}, true);
  context.for_parts(y.batch(), [&](index_t, index_t first, index_t last) {
    for (index_t n = first; n < last; ++n) {
      const auto word = static_cast<index_t>(words[static_cast<std::size_t>(n)]);
      Scalar* const to = y.value().data() + n * features;
      const Scalar* const from = table.value.data() + word * features;
      for (index_t f = 0; f < features; ++f)
        to[f] = word != padding_word && table.contains(word * features + f, level) ? from[f] : Scalar{0};
    }
  });
  auto kept = std::make_shared<std::vector<TokenId>>(words.begin(), words.end());
  context.record([=, &context, &table] {
    const Scalar* const dy = y.gradient().data();
    // By features, so that a word that comes twice is added up in one order.
    context.for_parts(features, [&](index_t, index_t first, index_t last) {
      for (std::size_t n = 0; n < kept->size(); ++n) {
        const auto word = static_cast<index_t>((*kept)[n]);
        if (word == padding_word) continue;
        const Scalar* const from = dy + static_cast<index_t>(n) * features;
        Scalar* const to = table.gradient.data() + word * features;
        for (index_t f = first; f < last; ++f)
          if (table.contains(word * features + f, level)) to[f] += from[f];
      }
    });
  });
  return y;
}

/// See `EmbeddingOptions`.
template <class Scalar>
class Embedding {
 public:
  static constexpr bool has_parameters = true;

  explicit Embedding(const EmbeddingOptions& options)
      : options_(validated(options)), weight_({options.words, options.features}, 0) {
    weight_.levelled = options.levelled;
    weight_.budgeted = options.levelled;
    initialise(0);
  }

  /// Uniform numbers in [-0.1, 0.1), as GNMT's; zeros for the padding word.
  void initialise(std::uint64_t seed) {
    std::mt19937_64 random(seed);
    for (Scalar& w : weight_.value)
      w = static_cast<Scalar>((static_cast<double>(random() >> 11U) * 0x1p-53 * 2 - 1) * 0.1);
    if (options_.padding_word >= 0)
      weight_.value.segment(options_.padding_word * options_.features, options_.features).setZero();
  }

  [[nodiscard]] const EmbeddingOptions& options() const noexcept { return options_; }
  [[nodiscard]] Parameter<Scalar>& weight() noexcept { return weight_; }
  [[nodiscard]] const Parameter<Scalar>& weight() const noexcept { return weight_; }
  /// None: the layer has no normalisation.
  [[nodiscard]] std::vector<NormSet<Scalar>>& norms() noexcept { return norms_; }
  void set_levels(int /*levels*/) noexcept {}

  template <class F>
  void for_each_parameter(const std::string& name, const std::string& /*norm_name*/, F&& f) {
    weight_.name = name + ".weight";
    f(weight_);
  }

  [[nodiscard]] Tensor<Scalar> operator()(Context<Scalar>& context, std::span<const TokenId> words) const {
    auto& self = const_cast<Embedding&>(*this);  // a forward pass of training is const in form only
    return embed(context, words, self.weight_, options_.padding_word);
  }

  void store(const std::string& name, const std::string& /*norm_name*/, ParameterSink& sink) const {
    detail::store_matrix(name + ".weight", weight_, sink);
  }

 private:
  [[nodiscard]] static const EmbeddingOptions& validated(const EmbeddingOptions& options) {
    require_valid(options);
    return options;
  }

  EmbeddingOptions options_;
  Parameter<Scalar> weight_;
  std::vector<NormSet<Scalar>> norms_;  ///< always empty
};

}  // namespace strata::train
