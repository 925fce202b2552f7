// What an embedding is, apart from its table: the options that both module families build it from. The layers
// themselves are layers/inference/embedding.hpp and train/embedding.hpp.
#pragma once

#include <string>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/layers/options.hpp>
#include <strata/layers/sequence.hpp>

namespace strata {

/// A row of a table for each word, as torch.nn.Embedding. Parameter: `weight` [words, features]. The table is not part
/// of the weights that budgets speak of unless it is levelled.
struct EmbeddingOptions {
  index_t words = 0;
  index_t features = 0;
  index_t padding_word = -1;  ///< gives zeros and gets no gradient; -1: none
  bool levelled = false;      ///< true: the table may be pruned
};

/// Raises for words or features below 1, a table of more than `max_elements`, a padding word beyond it.
inline void require_valid(const EmbeddingOptions& options) {
  if (options.words < 1 || options.features < 1)
    raise(Error({"embedding"}, {"at least 1 word and 1 feature"}, {options.words, " x ", options.features}));
  detail::require_array_size({options.words, options.features}, "embedding", "words x features");
  if (options.padding_word < -1 || options.padding_word >= options.words)
    raise(Error({"embedding"}, {"a padding word below ", options.words, " or -1"}, {options.padding_word}));
}

}  // namespace strata
