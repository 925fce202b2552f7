// A trained network with its vocabularies: one file for all of it, and the translation of many sentences at once.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/io/model_file.hpp>
#include <strata/runtime/model.hpp>
#include <strata/runtime/sequence_session.hpp>
#include <strata/runtime/thread_pool.hpp>

#include "beam_search.hpp"
#include "network.hpp"
#include "pairs.hpp"
#include "vocabulary.hpp"

namespace gnmt {

/// Keys of a model file's metadata: the vocabulary of each side in its text form. A joint one stands there once, as
/// that of the source.
inline constexpr std::string_view source_vocabulary_key = "gnmt.vocabulary.source";
inline constexpr std::string_view target_vocabulary_key = "gnmt.vocabulary.target";

/// The vocabularies of both sides; equal if they are a joint one.
struct Vocabularies {
  Vocabulary source, target;
};

using Model = strata::Model<Gnmt>;

struct Translator {
  Model model;
  Vocabularies words;
};

/// Writes a network of the training family with levels 0 .. levels-1 and its vocabularies as a model file with a
/// self-check. Raises: a network that does not work, writing that fails.
template <class Network>
void save_translator(const Network& network, int levels, const Vocabularies& words, const std::string& path) {
  strata::Archive archive = strata::to_archive(network, levels);
  archive.metadata()[std::string(source_vocabulary_key)] = words.source.to_text();
  if (!(words.target == words.source)) archive.metadata()[std::string(target_vocabulary_key)] = words.target.to_text();
  (void)strata::add_self_check<Gnmt>(archive).value();
  (void)strata::io::write_model(archive, path).value();
}

/// Errors name the file: what `strata::try_load` refuses, vocabularies missing, malformed or of another size than the
/// network's.
[[nodiscard]] inline strata::Result<Translator> load_translator(const std::string& path,
                                                                const strata::LoadOptions& options = {}) {
  auto archive = strata::io::read_model(path);
  if (!archive) return archive.error();
  auto model = Model::from_archive(archive.value());
  if (!model) return model.error().within(path);
  if (options.self_check)
    if (const auto status = strata::run_self_check(model.value(), archive.value()); !status)
      return status.error().within(path);
  Vocabularies words;
  const auto& metadata = archive.value().metadata();
  const auto& config = model.value().network().config();
  for (const auto& [key, vocabulary, size] : {std::tuple(source_vocabulary_key, &words.source, config.source_words),
                                              std::tuple(target_vocabulary_key, &words.target, config.target_words)}) {
    auto text = metadata.find(std::string(key));
    if (text == metadata.end()) text = metadata.find(std::string(source_vocabulary_key));
    if (text == metadata.end()) return strata::Error(path + ": metadata " + std::string(key), "a vocabulary", "none");
    auto read = Vocabulary::from_text(text->second);
    if (!read) return read.error().within(path + ": metadata " + std::string(key));
    *vocabulary = std::move(read).value();
    if (vocabulary->size() != size)
      return strata::Error(path + ": metadata " + std::string(key),
                           "a vocabulary of " + std::to_string(size) + " words, as the network's",
                           std::to_string(vocabulary->size()));
  }
  return Translator{std::move(model).value(), std::move(words)};
}

/// Where translations drop to a lower level, at which all the rest of them is computed.
struct LevelDrop {
  strata::Level to;
  index_t encoder_layer = 0;  ///< the first layer of the encoder at `to`, 1 or more; 0: the whole encoder runs before
  index_t words = 0;          ///< with 0: words that are decoded before

  /// "at encoder.1", "at decoder", or "after word 5".
  [[nodiscard]] std::string place() const {
    if (encoder_layer > 0) return "at encoder." + std::to_string(encoder_layer);
    return words == 0 ? "at decoder" : "after word " + std::to_string(words);
  }
};

/// A session as `BeamSearch` asks it, at one level or with a drop on the way of every translation. All hypotheses drop
/// at the same word.
class LeveledScorer {
 public:
  /// `session` has to outlive it. Raises: a level that the model does not have, a drop to one that is not below it, at
  /// a layer that the encoder does not have or that is its first, or after a negative number of words.
  LeveledScorer(strata::SequenceSession<Model>& session, strata::Level level, const std::optional<LevelDrop>& drop = {})
      : session_(session), level_(level), drop_(drop) {
    session.set_level(level);
    if (!drop) return;
    if (drop->to.index < 0 || drop->to.index >= level.index)
      strata::raise(strata::Error({"drop"}, {"a level below ", level.index}, {drop->to.index}));
    const auto& stages = session.model().network().encoder.stages;
    const auto layers = static_cast<index_t>(stages.size());
    if (drop->encoder_layer < 0 || drop->encoder_layer >= layers || drop->words < 0)
      strata::raise(strata::Error({"drop"}, {"a layer of the encoder below ", layers, " and at least 0 words"},
                                  {drop->encoder_layer, " and ", drop->words}));
    if (drop->encoder_layer == 0) return;
    stage_ = stages[static_cast<std::size_t>(drop->encoder_layer)];
    session.context().set_stage_hook(&at_stage, this);
  }
  LeveledScorer(const LeveledScorer&) = delete;
  LeveledScorer& operator=(const LeveledScorer&) = delete;
  ~LeveledScorer() {
    if (!stage_.empty()) session_.context().set_stage_hook(nullptr, nullptr);
  }

  void encode(std::span<const std::int32_t> source) {
    session_.set_level(level_);
    decoded_ = 0;
    session_.encode(source);
    if (!stage_.empty()) session_.set_level(drop_->to);
  }
  std::span<const float> step(std::span<const std::int32_t> words, std::span<const std::int32_t> parents) {
    if (drop_ && drop_->encoder_layer == 0 && decoded_ == drop_->words) session_.set_level(drop_->to);
    ++decoded_;
    return session_.step(words, parents);
  }
  [[nodiscard]] std::span<const float> attention() const { return session_.attention(); }

 private:
  static strata::Level at_stage(void* object, std::string_view stage, strata::Level level) noexcept {
    const auto& self = *static_cast<const LeveledScorer*>(object);
    return stage == self.stage_ && self.drop_->to.index < level.index ? self.drop_->to : level;
  }

  strata::SequenceSession<Model>& session_;
  strata::Level level_;
  std::optional<LevelDrop> drop_;
  std::string stage_;    ///< of the encoder, at which it drops; empty: it does not drop there
  index_t decoded_ = 0;  ///< words of the translation
};

/// The translations of `sources` at `level`, or with a `drop` from it, in their order, each as `BeamSearch` finds it.
/// Every thread has a session of its own and takes one sentence after the other; the result does not depend on their
/// number. Raises: what the search, the session and the scorer refuse, more threads than the system has.
[[nodiscard]] inline std::vector<std::vector<std::int32_t>> translate_all(
    const Model& model, strata::Level level, std::span<const std::vector<std::int32_t>> sources,
    const BeamOptions& options, int threads, const std::optional<LevelDrop>& drop = {}) {
  std::vector<std::vector<std::int32_t>> translations(sources.size());
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    strata::SequenceSession<Model> session(model);
    LeveledScorer scorer(session, level, drop);
    BeamSearch search(scorer, options);
    for (std::size_t i = next++; i < sources.size(); i = next++) {
      const Translation found = search.translate(sources[i]);
      translations[i].assign(found.words.begin(), found.words.end());
    }
  };
  strata::ThreadPool pool(threads);
  std::vector<std::exception_ptr> failures(static_cast<std::size_t>(pool.threads()));
  pool.parallel_for(pool.threads(), [&](index_t part) {
    try {
      work();
    } catch (...) {
      failures[static_cast<std::size_t>(part)] = std::current_exception();
      next = sources.size();  // the others need not go on
    }
  });
  for (const std::exception_ptr& failure : failures)
    if (failure) std::rethrow_exception(failure);
  return translations;
}

}  // namespace gnmt
