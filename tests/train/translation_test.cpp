// The translation task: batches, order of an epoch, what is refused; a small network learns to copy sentences with two
// nested levels by the joint recipe, and its session writes them.
#include <algorithm>
#include <random>
#include <set>

#include <strata/runtime/sequence_session.hpp>
#include <strata/runtime/thread_pool.hpp>
#include <strata/train/fit.hpp>
#include <strata/train/translation.hpp>

#include "../../examples/gnmt/network.hpp"
#include "support/catch.hpp"

namespace {

using strata::index_t;
using strata::Level;
using strata::TokenId;
namespace train = strata::train;

/// Sentences of 1 to `longest` words whose translation is the sentence itself.
train::SentencePairs copies(int count, std::size_t longest, TokenId words, unsigned seed) {
  train::SentencePairs pairs;
  pairs.source_words = pairs.target_words = words;
  std::mt19937 random(seed);
  for (int i = 0; i < count; ++i) {
    std::vector<TokenId> sentence(1 + random() % longest);
    for (TokenId& word : sentence) word = static_cast<TokenId>(4 + random() % static_cast<unsigned>(words - 4));
    pairs.source.push_back(sentence);
    pairs.target.push_back(sentence);
  }
  return pairs;
}

}  // namespace

TEST_CASE("batches of sentence pairs are padded step by step") {
  train::SentencePairs pairs;
  pairs.source_words = pairs.target_words = 10;
  pairs.source = {{5, 6, 7}, {8}};
  pairs.target = {{9}, {4, 5}};
  train::Translation<float> task(pairs, {.step_multiple = 2});
  CHECK(task.size() == 2);
  const std::vector<std::uint32_t> both = {1, 0};
  task.load(both);
  const strata::SequencePairs& batch = task.pairs();
  CHECK(std::vector<TokenId>(batch.source.begin(), batch.source.end()) == std::vector<TokenId>{8, 5, 0, 6, 0, 7, 0, 0});
  CHECK(batch.source_shape.steps == 4);
  CHECK(batch.source_shape.length(0) == 1);
  CHECK(batch.source_shape.length(1) == 3);
  CHECK(std::vector<TokenId>(batch.words.begin(), batch.words.end()) == std::vector<TokenId>{1, 1, 4, 9, 5, 0, 0, 0});
  CHECK(std::vector<TokenId>(task.targets().begin(), task.targets().end()) ==
        std::vector<TokenId>{4, 9, 5, 2, 2, 0, 0, 0});
  CHECK(batch.shape.steps == 4);
  CHECK(batch.shape.batch == 2);
}

TEST_CASE("an epoch has every pair once, in batches of about equal length") {
  const auto pairs = copies(1003, 20, 30, 1);
  const train::Translation<float> task(pairs);
  const auto order = task.order(3, 5, 16);
  CHECK(std::set<std::uint32_t>(order.begin(), order.end()).size() == 1003);
  CHECK(order.size() == 1003);
  CHECK(order == task.order(3, 5, 16));
  CHECK(order != task.order(3, 6, 16));
  CHECK(order != task.order(4, 5, 16));
  std::size_t padded = 0, words = 0;
  for (std::size_t first = 0; first < 992; first += 16) {
    std::size_t longest = 0;
    for (std::size_t i = first; i < first + 16; ++i) {
      longest = std::max(longest, pairs.source[order[i]].size());
      words += pairs.source[order[i]].size();
    }
    padded += 16 * longest;
  }
  CHECK(static_cast<double>(padded) < 1.1 * static_cast<double>(words));
  CHECK(task.order(1, 1, 5000).size() == 1003);
}

TEST_CASE("sentence pairs and options that make no task are refused") {
  const auto refused = [](train::SentencePairs pairs) {
    CHECK(!pairs.check());
    CHECK_THROWS_AS(train::Translation<float>(pairs), strata::Error);
  };
  train::SentencePairs good = copies(2, 3, 9, 1);
  CHECK(good.check());
  refused({});
  auto pairs = good;
  pairs.target.pop_back();
  refused(pairs);
  pairs = good;
  pairs.source[1].clear();
  refused(pairs);
  for (const TokenId word : {0, -1, 9}) {
    pairs = good;
    pairs.source[0][0] = word;
    refused(pairs);
    pairs = good;
    pairs.target[0][0] = word;
    refused(pairs);
  }
  pairs = good;
  pairs.target_words = 3;
  refused(pairs);
  CHECK_THROWS_AS(train::Translation<float>(good, {.smoothing = 1}), strata::Error);
  CHECK_THROWS_AS(train::Translation<float>(good, {.step_multiple = 0}), strata::Error);
  CHECK(train::Translation<float>(good).fingerprint() !=
        train::Translation<float>(good, {.smoothing = 0}).fingerprint());
  const auto other = copies(2, 3, 9, 2);
  CHECK(train::Translation<float>(good).fingerprint() != train::Translation<float>(other).fingerprint());
}

TEST_CASE("a translation network learns to copy with two nested levels") {
  using Net = gnmt::Gnmt<train::Training<float>>;
  const auto pairs = copies(600, 4, 10, 1);
  train::Translation<float> task(pairs, {.smoothing = 0.05});
  Net network(
      {.source_words = 10, .target_words = 10, .width = 32, .encoder_layers = 2, .decoder_layers = 2, .dropout = 0});
  train::initialise(network, 2);
  train::Recipe recipe;
  recipe.levels = {{.weights = 0.2, .flops = 0.2}, {.weights = 0.4, .flops = 0.4}};
  recipe.batch = 30;
  recipe.dense_epochs = 14;
  recipe.dense_rate = 5e-3;
  recipe.prune_epochs = 4;
  recipe.fixed_epochs = 6;
  recipe.sparse_rate = 3e-3;
  recipe.tune_epochs = 1;
  recipe.tune_rate = 1e-3;
  recipe.adamw = true;
  recipe.decay = 0;
  recipe.clip = 5;
  recipe.recalibration_batches = 0;
  strata::ThreadPool pool(2);
  const auto report = train::fit(network, task, recipe, pool);
  CHECK(report.levels == 2);
  train::Context<float> context(pool);
  const auto unseen = copies(100, 4, 10, 9);
  CHECK(train::translation_loss(*report.dense, context, unseen, Level{0}) < 0.9);
  double losses[2];
  for (const int level : {0, 1}) losses[level] = train::translation_loss(network, context, unseen, Level{level});
  CHECK(losses[1] < 0.9);
  CHECK(losses[0] < 1.3);
  CHECK_THROWS_AS(train::translation_loss(network, context, unseen, Level{-1}), strata::Error);
  CHECK_THROWS_AS(train::translation_loss(network, context, unseen, Level{0}, 0), strata::Error);
  // Embeddings are not part of the budget.
  index_t all = 0, kept = 0;
  for (auto* parameter : train::parameters<float>(network)) {
    if (!train::is_budgeted(*parameter)) continue;
    all += parameter->value.size();
    for (const auto stratum : parameter->strata) kept += static_cast<index_t>(stratum == 0);
  }
  CHECK(static_cast<double>(kept) <= 0.2 * static_cast<double>(all));
  CHECK(static_cast<double>(kept) > 0.15 * static_cast<double>(all));

  using Model = strata::Model<gnmt::Gnmt>;
  strata::SequenceSession<Model> session(Model::from_archive(strata::to_archive(network, 2)).value());
  int correct = 0, words = 0;
  for (std::size_t i = 0; i < 50; ++i) {
    session.encode(unseen.source[i]);
    TokenId word = strata::begin_token;
    for (const TokenId wanted : unseen.target[i]) {
      const auto logits = session.step(std::span(&word, 1), {});
      word = static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
      correct += static_cast<int>(word == wanted);
      ++words;
      word = wanted;
    }
  }
  CHECK(correct * 10 > words * 5);  // a sixth by chance
}
