// A trained network with its vocabularies: one file for all of it, and the translation of many sentences at once.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/io/model_file.hpp>
#include <strata/runtime/model.hpp>
#include <strata/runtime/sequence_session.hpp>

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

/// The translations of `sources` at `level` in their order, each as `BeamSearch` finds it. Every thread has a session
/// of its own and takes one sentence after the other; the result does not depend on their number. Raises: what the
/// search and the session refuse.
[[nodiscard]] inline std::vector<std::vector<std::int32_t>> translate_all(
    const Model& model, strata::Level level, std::span<const std::vector<std::int32_t>> sources,
    const BeamOptions& options, int threads) {
  std::vector<std::vector<std::int32_t>> translations(sources.size());
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    strata::SequenceSession<Model> session(model);
    session.set_level(level);
    BeamSearch search(session, options);
    for (std::size_t i = next++; i < sources.size(); i = next++) {
      const Translation found = search.translate(sources[i]);
      translations[i].assign(found.words.begin(), found.words.end());
    }
  };
  std::vector<std::exception_ptr> failures(static_cast<std::size_t>(std::max(threads, 1)));
  std::vector<std::thread> helpers;
  const auto guarded = [&](std::size_t thread) {
    try {
      work();
    } catch (...) {
      failures[thread] = std::current_exception();
    }
  };
  for (std::size_t thread = 1; thread < failures.size(); ++thread) helpers.emplace_back(guarded, thread);
  guarded(0);
  for (std::thread& helper : helpers) helper.join();
  for (const std::exception_ptr& failure : failures)
    if (failure) std::rethrow_exception(failure);
  return translations;
}

}  // namespace gnmt
