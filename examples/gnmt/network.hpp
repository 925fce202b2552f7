// Google's neural machine translation network (Wu et al., arXiv 1609.08144) with normalised Bahdanau attention, one
// text for training and inference. Names are those of the usual PyTorch definition.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/layers/options.hpp>
#include <strata/layers/sequence.hpp>

namespace gnmt {

using strata::index_t;

/// Embedding, a bidirectional LSTM layer, a plain one, then residual ones.
template <class Family>
struct Encoder {
  using Tensor = typename Family::Tensor;

  Encoder(index_t words, index_t width, index_t layers, double rate)
      : embedder({.words = words, .features = width, .padding_word = strata::padding_token}), drop(rate) {
    for (index_t i = 0; i < layers; ++i) {
      rnn_layers.push_back(typename Family::Lstm(
          {.in_features = i == 1 ? 2 * width : width, .hidden_features = width, .bidirectional = i == 0}));
      stages.push_back("encoder." + std::to_string(i));
    }
  }

  /// The memory of all positions. The level may fall between two layers.
  Tensor operator()(typename Family::Context& context, std::span<const strata::TokenId> words,
                    const strata::SequenceShape& shape) const {
    Tensor x = drop(context, embedder(context, words));
    for (std::size_t i = 0; i < rnn_layers.size(); ++i) {
      if (i > 0) {
        context.stage(stages[i]);
      }
      const Tensor before = x;
      x = rnn_layers[i](context, i > 0 ? drop(context, x) : x, shape, i > 1 ? &before : nullptr);
    }
    return x;
  }
  template <class V>
  void visit(V&& v) {
    v("embedder", embedder);
    v("rnn_layers", rnn_layers);
  }

  typename Family::Embedding embedder;
  std::vector<typename Family::Lstm> rnn_layers;
  typename Family::Dropout drop;
  std::vector<std::string> stages;
};

/// The decoder's first layer, whose hidden state asks the attention.
template <class Family>
struct AttentionLayer {
  AttentionLayer(index_t width, index_t memory)
      : rnn({.in_features = width, .hidden_features = width}),
        attn({.query_features = width, .memory_features = memory, .units = width}) {}
  template <class V>
  void visit(V&& v) {
    v("rnn", rnn);
    v("attn", attn);
  }
  typename Family::Lstm rnn;
  typename Family::BahdanauAttention attn;
};

template <class Family>
struct Classifier {
  Classifier(index_t width, index_t words) : classifier({.in_features = width, .out_features = words}) {}
  template <class V>
  void visit(V&& v) {
    v("classifier", classifier);
  }
  typename Family::Linear classifier;
};

/// Embedding, a layer that attends, layers that also read the context it found (residual from the third layer on), and
/// the projection to the vocabulary.
template <class Family>
struct Decoder {
  using Tensor = typename Family::Tensor;
  using Memory = typename Family::AttentionMemory;
  /// The recurrent state, layer by layer. A value: copies go on by themselves.
  using State = std::vector<strata::LstmState<Tensor>>;
  struct Output {
    Tensor logits;   ///< words of the vocabulary x 1 x 1, a sample a position
    Tensor weights;  ///< of attention: steps of the source x 1 x 1
  };

  Decoder(index_t words, index_t width, index_t memory, index_t layers, double rate)
      : embedder({.words = words, .features = width, .padding_word = strata::padding_token}),
        att_rnn(width, memory),
        classifier(width, words),
        drop(rate) {
    for (index_t i = 1; i < layers; ++i)
      rnn_layers.push_back(typename Family::Lstm({.in_features = width + memory, .hidden_features = width}));
  }

  [[nodiscard]] std::size_t layers() const { return 1 + rnn_layers.size(); }

  Output operator()(typename Family::Context& context, std::span<const strata::TokenId> words,
                    const strata::SequenceShape& shape, const Memory& memory, State& state) const {
    Tensor x = drop(context, embedder(context, words));
    x = att_rnn.rnn(context, x, shape, state[0]);
    const auto attended = att_rnn.attn(context, x, memory);
    for (std::size_t i = 0; i < rnn_layers.size(); ++i) {
      const Tensor before = x;
      x = rnn_layers[i](context, drop(context, beside(context, x, attended.context)), shape, state[i + 1],
                        i > 0 ? &before : nullptr);
    }
    return {classifier.classifier(context, x), attended.weights};
  }
  template <class V>
  void visit(V&& v) {
    v("embedder", embedder);
    v("att_rnn", att_rnn);
    v("rnn_layers", rnn_layers);
    v("classifier", classifier);
  }

  typename Family::Embedding embedder;
  AttentionLayer<Family> att_rnn;
  std::vector<typename Family::Lstm> rnn_layers;
  Classifier<Family> classifier;
  typename Family::Concatenate beside;
  typename Family::Dropout drop;
};

/// Encoder and decoder. Entry points: `encode` once a sentence, `decode` for each word of one or several hypotheses (or
/// for many at once), and the call operator, which reads both sides of sentence pairs as training does.
template <class Family>
struct Gnmt {
  struct Config {
    index_t source_words = 32000;
    index_t target_words = 32000;
    index_t width = 1024;
    index_t encoder_layers = 4;
    index_t decoder_layers = 4;
    double dropout = 0.2;  ///< of the inputs of all LSTM layers, in training

    template <class V>
    void visit(V&& v) {
      v("source_words", source_words);
      v("target_words", target_words);
      v("width", width);
      v("encoder_layers", encoder_layers);
      v("decoder_layers", decoder_layers);
      v("dropout", dropout);
    }
  };
  static constexpr std::string_view architecture = "gnmt.Gnmt";
  using Context = typename Family::Context;
  using Tensor = typename Family::Tensor;
  using Memory = typename Decoder<Family>::Memory;
  using State = typename Decoder<Family>::State;
  using Output = typename Decoder<Family>::Output;

  explicit Gnmt(const Config& config)
      : config_(checked(config)),
        encoder(config.source_words, config.width, config.encoder_layers, config.dropout),
        decoder(config.target_words, config.width, memory_features(config), config.decoder_layers, config.dropout) {}

  [[nodiscard]] const Config& config() const { return config_; }
  /// Words that the decoder chooses from.
  [[nodiscard]] index_t vocabulary() const { return config_.target_words; }
  /// A decoder's state that has seen nothing.
  [[nodiscard]] State initial_state() const { return State(decoder.layers()); }

  /// Reads source sentences. `shape.lengths` has to stay there with the memory.
  Memory encode(Context& context, std::span<const strata::TokenId> source, const strata::SequenceShape& shape) const {
    return decoder.att_rnn.attn.memory(context, encoder(context, source, shape), shape);
  }
  /// One word more for each hypothesis (or `shape.steps` words): `words` are the last ones. Sample n looks at the
  /// memory's sentence n mod memory.shape.batch. The level may fall before each call.
  Output decode(Context& context, std::span<const strata::TokenId> words, const strata::SequenceShape& shape,
                const Memory& memory, State& state) const {
    context.stage("word");
    return decoder(context, words, shape, memory, state);
  }
  /// The logits of every position of the targets.
  Tensor operator()(Context& context, const strata::SequencePairs& pairs) const {
    const Memory memory = encode(context, pairs.source, pairs.source_shape);
    State state = initial_state();
    return decode(context, pairs.words, pairs.shape, memory, state).logits;
  }

  template <class V>
  void visit(V&& v) {
    v("encoder", encoder);
    v("decoder", decoder);
  }

  Config config_;
  Encoder<Family> encoder;
  Decoder<Family> decoder;

 private:
  [[nodiscard]] static const Config& checked(const Config& config) {
    if (config.encoder_layers < 1 || config.decoder_layers < 1)
      strata::raise(
          strata::Error("GNMT", "at least 1 encoder and 1 decoder layer",
                        std::to_string(config.encoder_layers) + " and " + std::to_string(config.decoder_layers)));
    return config;
  }
  /// With one layer alone both directions are the memory.
  [[nodiscard]] static index_t memory_features(const Config& config) {
    return config.encoder_layers == 1 ? 2 * config.width : config.width;
  }
};

}  // namespace gnmt
