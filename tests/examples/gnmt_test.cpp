// The translation example from text to text: a small network learns a handful of sentences with two nested levels, is
// saved with its vocabularies, loaded and translates; files that do not fit together are refused.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <strata/runtime/thread_pool.hpp>
#include <strata/train/fit.hpp>
#include <strata/train/translation.hpp>

#include "gnmt/bleu.hpp"
#include "gnmt/initialise.hpp"
#include "gnmt/pairs.hpp"
#include "gnmt/translator.hpp"
#include "support/catch.hpp"

namespace {

using gnmt::index_t;
using gnmt::Vocabulary;
using strata::Level;
namespace train = strata::train;
using Net = gnmt::Gnmt<train::Training<float>>;
using Lines = std::vector<std::string>;

/// "der rote Hund läuft." and "the red dog runs." in all combinations.
gnmt::ParallelText sentences() {
  const std::vector<std::pair<std::string, std::string>> colours = {
      {"rote", "red"}, {"blaue", "blue"}, {"große", "big"}};
  const std::vector<std::pair<std::string, std::string>> things = {
      {"Hund", "dog"}, {"Mann", "man"}, {"Zug", "train"}, {"Fußball", "football"}};
  const std::vector<std::pair<std::string, std::string>> actions = {{"läuft", "runs"}, {"fällt", "falls"}};
  gnmt::ParallelText text;
  for (const auto& [colour, color] : colours)
    for (const auto& [ding, thing] : things)
      for (const auto& [tut, does] : actions) {
        text.source.push_back("Der " + colour + " " + ding + " " + tut + ".");
        text.target.push_back("The " + color + " " + thing + " " + does + ".");
      }
  return text;
}

gnmt::Vocabularies learn(const gnmt::ParallelText& text, const gnmt::VocabularyOptions& options) {
  const std::span<const std::string> source(text.source), target(text.target);
  return {Vocabulary::learn({&source, 1}, options), Vocabulary::learn({&target, 1}, options)};
}

std::string temporary(const std::string& name) {
  return (std::filesystem::temp_directory_path() / (name + std::to_string(std::random_device{}()) + ".safetensors"))
      .string();
}

std::vector<std::vector<std::int32_t>> sources_of(const Lines& lines, const Vocabulary& vocabulary) {
  std::vector<std::vector<std::int32_t>> sources;
  for (const std::string& line : lines) sources.push_back(gnmt::source_of(vocabulary, line, 100));
  return sources;
}

}  // namespace

TEST_CASE("a network learns to translate with nested levels and keeps that in its file") {
  const gnmt::ParallelText text = sentences();
  const gnmt::Vocabularies words = learn(text, {.merges = 60});
  const auto learnt = gnmt::encode_pairs(text, words.source, words.target, 30);
  CHECK(learnt.pairs.size() == 24);
  train::Translation<float> task(learnt.pairs, {.smoothing = 0.05});
  Net network({.source_words = words.source.size(),
               .target_words = words.target.size(),
               .width = 32,
               .encoder_layers = 2,
               .decoder_layers = 2,
               .dropout = 0});
  gnmt::initialise(network, 3);
  train::Recipe recipe;
  recipe.levels = {{.weights = 0.25, .flops = 0.25}, {.weights = 0.5, .flops = 0.5}};
  recipe.batch = 4;
  recipe.adamw = true;
  recipe.decay = 0;
  recipe.clip = 5;
  recipe.dense_rate = recipe.sparse_rate = 5e-3;
  recipe.tune_rate = 2e-3;
  recipe.dense_epochs = 80;
  recipe.prune_epochs = 20;
  recipe.fixed_epochs = 30;
  recipe.tune_epochs = 5;
  recipe.recalibration_batches = 0;
  strata::ThreadPool pool(2);
  const auto report = train::fit(network, task, recipe, pool);

  const std::string path = temporary("gnmt-model-");
  gnmt::save_translator(network, report.levels, words, path);
  {
    const auto loaded = gnmt::load_translator(path, {.self_check = true});
    REQUIRE(loaded.ok());
    const gnmt::Translator& translator = loaded.value();
    CHECK(translator.words.source == words.source);
    CHECK(translator.words.target == words.target);
    auto sources = sources_of(text.source, translator.words.source);
    sources.push_back({});  // a line without words
    for (const int level : {0, 1}) {
      INFO("level " << level);
      const gnmt::BeamOptions options{.beam = 4, .coverage_penalty = 0.1, .longest = 30};
      const auto one = gnmt::translate_all(translator.model, Level{level}, sources, options, 1);
      const auto two = gnmt::translate_all(translator.model, Level{level}, sources, options, 2);
      CHECK(one == two);
      CHECK(one.back().empty());
      gnmt::Bleu bleu;
      for (std::size_t i = 0; i < text.target.size(); ++i)
        bleu.add(translator.words.target.decode(one[i]), text.target[i]);
      CHECK(bleu.score().score > 90);
    }
    CHECK_THROWS_AS(gnmt::translate_all(translator.model, Level{2}, sources, {}, 2), strata::Error);
    CHECK(gnmt::translate_all(translator.model, Level{0}, {}, {}, 3).empty());
    // Level 0 alone is a prefix of the file, with the vocabularies.
    const std::string small = temporary("gnmt-level0-");
    REQUIRE(strata::io::write_truncated(path, Level{0}, small).ok());
    const auto sparse = gnmt::load_translator(small);
    REQUIRE(sparse.ok());
    CHECK(sparse.value().words.target == words.target);
    CHECK(gnmt::translate_all(sparse.value().model, Level{0}, sources, {}, 1) ==
          gnmt::translate_all(translator.model, Level{0}, sources, {}, 1));
    std::filesystem::remove(small);
  }
  std::filesystem::remove(path);
}

TEST_CASE("model files without vocabularies or with others are refused") {
  const gnmt::Vocabularies words = learn(sentences(), {.merges = 10});
  Net network({.source_words = words.source.size(),
               .target_words = words.target.size(),
               .width = 8,
               .encoder_layers = 1,
               .decoder_layers = 1});
  train::initialise(network, 1);
  train::set_levels(network, 1);
  const std::string path = temporary("gnmt-refused-");
  const auto refusal = [&](auto&& change) {
    strata::Archive archive = strata::to_archive(network, 1);
    archive.metadata()[std::string(gnmt::source_vocabulary_key)] = words.source.to_text();
    archive.metadata()[std::string(gnmt::target_vocabulary_key)] = words.target.to_text();
    change(archive.metadata());
    REQUIRE(strata::io::write_model(archive, path).ok());
    const auto loaded = gnmt::load_translator(path);
    return loaded ? std::string() : std::string(loaded.error().what());
  };
  const auto mentions = [](const std::string& message, const std::string& part) {
    INFO(message);
    return message.find(part) != std::string::npos;
  };
  const std::string source(gnmt::source_vocabulary_key), target(gnmt::target_vocabulary_key);
  CHECK(refusal([](auto&) {}).empty());
  CHECK(mentions(refusal([&](auto& metadata) {
                   metadata.erase(source);
                   metadata.erase(target);
                 }),
                 "expected a vocabulary, found none"));
  CHECK(mentions(refusal([&](auto& metadata) { metadata[target] = "something else"; }), target + ": vocabulary:1"));
  CHECK(mentions(refusal([&](auto& metadata) { metadata[target] = Vocabulary().to_text(); }),
                 "a vocabulary of " + std::to_string(words.target.size()) + " words"));
  CHECK(mentions(gnmt::load_translator(path + ".none").error().what(), path + ".none"));
  std::filesystem::remove(path);
}

TEST_CASE("a joint vocabulary is stored once") {
  const gnmt::ParallelText text = sentences();
  const std::span<const std::string> both[] = {text.source, text.target};
  const Vocabulary joint = Vocabulary::learn(both, {.merges = 30});
  Net network({.source_words = joint.size(),
               .target_words = joint.size(),
               .width = 8,
               .encoder_layers = 1,
               .decoder_layers = 1});
  train::initialise(network, 1);
  train::set_levels(network, 1);
  const std::string path = temporary("gnmt-joint-");
  gnmt::save_translator(network, 1, {joint, joint}, path);
  CHECK(strata::io::read_model(path).value().metadata().count(std::string(gnmt::target_vocabulary_key)) == 0);
  CHECK(gnmt::load_translator(path).value().words.target == joint);
  std::filesystem::remove(path);
}
