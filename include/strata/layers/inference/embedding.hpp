// Embedding of the inference family: rows of a stored table.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <strata/core/types.hpp>
#include <strata/layers/context.hpp>
#include <strata/layers/embedding.hpp>
#include <strata/layers/inference/product.hpp>
#include <strata/layers/inference/sequence.hpp>

namespace strata::inference {

/// See `EmbeddingOptions`. The table is a dense array, or level-sorted if training pruned it.
template <class Scalar, class Arch>
class Embedding {
 public:
  static constexpr bool has_parameters = true;

  explicit Embedding(const EmbeddingOptions& options) : options_(options) { require_valid(options); }

  [[nodiscard]] const EmbeddingOptions& options() const noexcept { return options_; }

  void load(const std::string& name, const std::string& /*norm_name*/, ParameterSource& source) {
    table_.load(name + ".weight", options_.words, options_.features, source);
    // A row of a level-sorted table is found by its position in the order of rows.
    table_.with_matrix([&](const auto& matrix) {
      if constexpr (requires { matrix.row_at(0, 0); }) {
        auto starts = std::make_shared<std::vector<RowStart>>();
        for (int s = 0; s < matrix.levels(); ++s) {
          std::uint32_t next = 0;
          for (index_t block = 0; block < matrix.blocks(); ++block) {
            starts->resize(starts->size() + static_cast<std::size_t>(matrix.rows()));
            for (index_t position = 0; position < matrix.rows(); ++position) {
              const std::uint32_t length =
                  matrix.stratum(s).lengths[static_cast<std::size_t>(block * matrix.rows() + position)];
              (*starts)[static_cast<std::size_t>((s * matrix.blocks() + block) * matrix.rows() +
                                                 matrix.row_at(block, position))] = {next, length};
              next += length;
            }
          }
        }
        starts_ = std::move(starts);
      }
    });
  }

  /// A sample for each of `words`; numbers that are no word of the table, and the padding word, give zeros.
  [[nodiscard]] Tensor<Scalar> operator()(InferenceContext<Scalar, Arch>& context,
                                          std::span<const TokenId> words) const {
    Tensor<Scalar> y = context.make(static_cast<index_t>(words.size()), {options_.features, 1, 1});
    if (!context.check(table_.rows() > 0, [&] {
          return strata::detail::left_out(
              {"an embedding of ", options_.words, " words in ", options_.features, " features"});
        }))
      return y;
    const Level level = context.level();
    for (std::size_t i = 0; i < words.size(); ++i) {
      const auto to = sample(y, static_cast<index_t>(i));
      const auto word = static_cast<index_t>(words[i]);
      const bool known = word >= 0 && word < options_.words && word != options_.padding_word;
      table_.with_matrix([&](const auto& matrix) {
        if constexpr (requires { matrix.row_at(0, 0); }) {
          for (index_t f = 0; f < options_.features; ++f) to[f] = 0;
          for (int s = 0; known && s <= level.index; ++s)
            for (index_t block = 0; block < matrix.blocks(); ++block) {
              const RowStart& row =
                  (*starts_)[static_cast<std::size_t>((s * matrix.blocks() + block) * matrix.rows() + word)];
              for (std::uint32_t k = row.first; k < row.first + row.length; ++k)
                to[block * matrix.block_columns() + matrix.stratum(s).indices[k]] = matrix.stratum(s).values[k];
            }
        } else {
          for (index_t f = 0; f < options_.features; ++f)
            to[f] = known ? matrix.data()[word * options_.features + f] : Scalar{0};
        }
      });
    }
    return y;
  }

 private:
  struct RowStart {
    std::uint32_t first, length;
  };

  EmbeddingOptions options_;
  WeightMatrix<Scalar> table_;
  std::shared_ptr<const std::vector<RowStart>> starts_;  ///< [strata][blocks][words], of a level-sorted table
};

}  // namespace strata::inference
