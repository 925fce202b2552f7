// The translation example from text to text: a small network learns a handful of sentences with two nested levels, is
// saved with its vocabularies, loaded and translates, at one level and with drops on the way; runs go on from where
// they stopped; files that do not fit together are refused.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
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
#include "support/resumption.hpp"

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
    const auto dropping = [&](const std::optional<gnmt::LevelDrop>& drop, int threads) {
      return gnmt::translate_all(translator.model, Level{1}, sources, {.beam = 4, .longest = 30}, threads, drop);
    };
    CHECK(dropping(gnmt::LevelDrop{.to = Level{0}, .words = 30}, 1) == dropping({}, 1));
    for (const gnmt::LevelDrop& drop :
         {gnmt::LevelDrop{.to = Level{0}, .encoder_layer = 1}, gnmt::LevelDrop{.to = Level{0}, .words = 2}})
      CHECK(dropping(drop, 1) == dropping(drop, 2));
    CHECK_THROWS_AS(dropping(gnmt::LevelDrop{.to = Level{1}}, 2), strata::Error);
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

TEST_CASE("translations that drop on the way compute each part at its level") {
  Net network({.source_words = 20, .target_words = 20, .width = 12, .encoder_layers = 3, .decoder_layers = 2});
  gnmt::initialise(network, 3);
  for (auto* parameter : train::parameters<float>(network)) {
    if (!parameter->levelled) continue;
    parameter->strata.resize(static_cast<std::size_t>(parameter->value.size()));
    for (std::size_t i = 0; i < parameter->strata.size(); ++i) parameter->strata[i] = i % 3 == 0 ? 0 : 1;
  }
  train::set_levels(network, 2);
  const auto model = gnmt::Model::from_archive(strata::to_archive(network, 2)).value();
  const std::vector<std::int32_t> source = {7, 4, 12, 9, strata::end_token};
  const std::vector<std::int32_t> words = {strata::begin_token, 5, 17, 8};
  /// The logits of all steps; `at(step)` is the level of a step, and that of the encoder with -1.
  const auto by_hand = [&](std::string_view stage, auto&& at) {
    strata::SequenceSession<gnmt::Model> session(model);
    session.context().set_stage_hook(
        [](void* object, std::string_view name, Level level) noexcept {
          return name == *static_cast<std::string_view*>(object) ? Level{0} : level;
        },
        &stage);
    std::vector<float> logits;
    session.set_level(at(-1));
    session.encode(source);
    for (int step = 0; step < 4; ++step) {
      session.set_level(at(step));
      const auto row = session.step(std::span(words).subspan(static_cast<std::size_t>(step), 1), {});
      logits.insert(logits.end(), row.begin(), row.end());
    }
    return logits;
  };
  strata::SequenceSession<gnmt::Model> session(model);
  const auto scored = [&](const std::optional<gnmt::LevelDrop>& drop) {
    gnmt::LeveledScorer scorer(session, Level{1}, drop);
    std::vector<float> logits;
    for (int sentence = 0; sentence < 2; ++sentence) {  // the second one starts at level 1 as well
      logits.clear();
      scorer.encode(source);
      for (std::size_t step = 0; step < words.size(); ++step) {
        const auto row = scorer.step(std::span(words).subspan(step, 1), {});
        logits.insert(logits.end(), row.begin(), row.end());
      }
    }
    return logits;
  };
  const auto up_to = [](int last) { return [last](int step) { return Level{step <= last ? 1 : 0}; }; };
  const std::vector<std::vector<float>> wanted = {by_hand("encoder.1", up_to(-1)), by_hand("encoder.2", up_to(-1)),
                                                  by_hand("", up_to(-1)), by_hand("", up_to(1)), by_hand("", up_to(9))};
  const std::vector<gnmt::LevelDrop> drops = {{.to = Level{0}, .encoder_layer = 1},
                                              {.to = Level{0}, .encoder_layer = 2},
                                              {.to = Level{0}},
                                              {.to = Level{0}, .words = 2}};
  const std::vector<std::string> places = {"at encoder.1", "at encoder.2", "at decoder", "after word 2"};
  for (std::size_t i = 0; i < drops.size(); ++i) {
    INFO(places[i]);
    CHECK(drops[i].place() == places[i]);
    CHECK(scored(drops[i]) == wanted[i]);
    for (std::size_t j = 0; j < i; ++j) CHECK(wanted[j] != wanted[i]);
    CHECK(scored({}) == wanted.back());  // nothing of the drop is left in the session
  }
  for (const gnmt::LevelDrop& bad :
       {gnmt::LevelDrop{.to = Level{1}}, gnmt::LevelDrop{.to = Level{-1}},
        gnmt::LevelDrop{.to = {}, .encoder_layer = 3}, gnmt::LevelDrop{.to = {}, .encoder_layer = -1},
        gnmt::LevelDrop{.to = {}, .words = -1}})
    CHECK_THROWS_AS(scored(bad), strata::Error);
  CHECK(scored({}) == wanted.back());
}

TEST_CASE("a translation run that was saved and restored ends with the same bits, from every step") {
  const gnmt::ParallelText text = sentences();
  const gnmt::Vocabularies words = learn(text, {.merges = 20});
  auto pairs = gnmt::encode_pairs(text, words.source, words.target, 30).pairs;
  pairs.source.resize(10);
  pairs.target.resize(10);
  train::Translation<float> task(pairs);
  const Net::Config config{.source_words = words.source.size(),
                           .target_words = words.target.size(),
                           .width = 8,
                           .encoder_layers = 2,
                           .decoder_layers = 2,
                           .dropout = 0.3};
  train::Recipe recipe;
  recipe.levels = {{.weights = 0.3, .flops = 0.3}, {.weights = 0.6, .flops = 0.6}};
  recipe.dropout_factors = {0.5, 1};
  recipe.batch = 4;  // the last one of an epoch has 2 pairs
  recipe.adamw = true;
  recipe.clip = 0.05;
  recipe.dense_rate = recipe.sparse_rate = recipe.tune_rate = 1e-2;
  recipe.dense_epochs = recipe.prune_epochs = recipe.fixed_epochs = 1;
  recipe.tune_epochs = 0.67;
  recipe.tune_paths = 1;
  recipe.recalibration_batches = 0;
  test::check_resumption(task, recipe, 11, [&](unsigned seed) {
    Net network(config);
    gnmt::initialise(network, seed);
    return network;
  });
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
