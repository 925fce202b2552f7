// A translation network in a session, word by word, against the training family's teacher forcing on the same weights:
// several hypotheses with parents, levels that change between words, nothing allocated after the first call at a size.
#include <cmath>
#include <cstdio>
#include <new>
#include <random>

#include <strata/io/model_file.hpp>
#include <strata/runtime/sequence_session.hpp>
#include <strata/train/allocation.hpp>

#include "../../examples/gnmt/network.hpp"
#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/sequence_layers.hpp"

namespace {

using strata::index_t;
using strata::Level;
using strata::TokenId;
using TrainingNet = gnmt::Gnmt<strata::train::Training<double>>;
using Model = strata::Model<gnmt::Gnmt>;
using Session = strata::SequenceSession<Model>;

TrainingNet random_network(int levels, const TrainingNet::Config& config) {
  TrainingNet network(config);
  test::randomise_levels(strata::train::parameters<double>(network), levels, 3);
  return network;
}

const TrainingNet::Config small{
    .source_words = 23, .target_words = 37, .width = 19, .encoder_layers = 3, .decoder_layers = 3, .dropout = 0.3};

/// Logits of every position of `words`, one sentence, all at `level`.
std::vector<double> taught(const TrainingNet& network, const std::vector<TokenId>& source,
                           const std::vector<TokenId>& words, Level level) {
  strata::SerialExecutor serial;
  strata::train::Context<double> tape(serial);
  tape.training = false;
  tape.begin(level);
  return test::numbers_of(network(
      tape,
      {source, {static_cast<index_t>(source.size()), 1, {}}, words, {static_cast<index_t>(words.size()), 1, {}}}));
}

std::vector<double> row(std::span<const float> logits, std::size_t hypothesis, std::size_t width) {
  return {logits.begin() + static_cast<std::ptrdiff_t>(hypothesis * width),
          logits.begin() + static_cast<std::ptrdiff_t>((hypothesis + 1) * width)};
}

std::vector<double> part(const std::vector<double>& all, std::size_t position, std::size_t width) {
  return {all.begin() + static_cast<std::ptrdiff_t>(position * width),
          all.begin() + static_cast<std::ptrdiff_t>((position + 1) * width)};
}

}  // namespace

TEST_CASE("a session writes what teacher forcing computes, at every level") {
  for (const int levels : {1, 2})
    for (const int threads : {1, 2}) {
      TrainingNet network = random_network(levels == 1 ? 0 : levels, small);
      Session session(Model::from_archive(strata::to_archive(network, levels)).value(), {.threads = threads});
      CHECK(session.vocabulary() == 37);
      for (const std::vector<TokenId>& source : {std::vector<TokenId>{5}, std::vector<TokenId>{4, 9, 22, 3, 2},
                                                 std::vector<TokenId>(40, 7), std::vector<TokenId>()})
        for (int level = 0; level < levels; ++level) {
          session.set_level(Level{level});
          const std::vector<TokenId> words = {1, 8, 36, 8};
          const auto wanted = taught(network, source, words, Level{level});
          session.encode(source);
          for (std::size_t t = 0; t < words.size(); ++t) {
            const auto logits = session.step(std::span(words).subspan(t, 1), {});
            CHECK(test::difference(row(logits, 0, 37), part(wanted, t, 37)) < 1e-4);
            REQUIRE(session.attention().size() == source.size());
            double sum = 0;
            for (const float weight : session.attention()) sum += static_cast<double>(weight);
            CHECK(std::abs(sum - (source.empty() ? 0 : 1)) < 1e-5);
          }
        }
    }
}

TEST_CASE("hypotheses follow their parents") {
  TrainingNet network = random_network(2, small);
  Session session(Model::from_archive(strata::to_archive(network, 2)).value());
  const std::vector<TokenId> source = {4, 9, 22, 3, 2};
  session.encode(source);
  std::vector<std::vector<TokenId>> hypotheses = {{1}};
  (void)session.step(hypotheses[0], std::vector<std::int32_t>{0});
  std::mt19937 random(1);
  for (const std::size_t count : {3U, 5U, 5U, 2U, 1U, 4U}) {
    std::vector<std::vector<TokenId>> next;
    std::vector<std::int32_t> parents;
    std::vector<TokenId> words;
    for (std::size_t i = 0; i < count; ++i) {
      parents.push_back(static_cast<std::int32_t>(random() % hypotheses.size()));
      words.push_back(static_cast<TokenId>(4 + random() % 30));
      next.push_back(hypotheses[static_cast<std::size_t>(parents.back())]);
      next.back().push_back(words.back());
    }
    hypotheses = next;
    const auto logits = session.step(words, parents);
    REQUIRE(logits.size() == count * 37);
    REQUIRE(session.attention().size() == count * source.size());
    for (std::size_t i = 0; i < count; ++i) {
      const auto wanted = taught(network, source, hypotheses[i], Level{1});
      CHECK(test::difference(row(logits, i, 37), part(wanted, hypotheses[i].size() - 1, 37)) < 1e-4);
    }
  }
}

TEST_CASE("the level may change between words and between layers of the encoder") {
  TrainingNet network = random_network(2, small);
  Session session(Model::from_archive(strata::to_archive(network, 2)).value());
  const std::vector<TokenId> source = {4, 9, 22, 3, 2};
  strata::SerialExecutor serial;
  strata::train::Context<double> tape(serial);
  tape.training = false;
  // The encoder's second layer and what follows at level 0, the second word at level 1 again, the third at level 0.
  tape.begin(Level{1});
  tape.drop_at_stage = 0;
  const strata::SequenceShape one{1, 1, {}};
  const auto memory = network.encode(tape, source, {5, 1, {}});
  auto state = network.initial_state();
  const std::vector<TokenId> words = {1, 8, 30};
  std::vector<std::vector<double>> wanted;
  for (std::size_t t = 0; t < words.size(); ++t) {
    tape.level = Level{t == 1 ? 1 : 0};
    wanted.push_back(test::numbers_of(network.decode(tape, std::span(words).subspan(t, 1), one, memory, state).logits));
  }
  int calls = 0;
  session.context().set_stage_hook(
      [](void* object, std::string_view name, Level level) noexcept {
        ++*static_cast<int*>(object);
        return name == "encoder.1" ? Level{0} : level;
      },
      &calls);
  session.encode(source);
  CHECK(calls == 2);
  for (std::size_t t = 0; t < words.size(); ++t) {
    session.set_level(Level{t == 1 ? 1 : 0});
    const auto logits = session.step(std::span(words).subspan(t, 1), {});
    CHECK(test::difference(row(logits, 0, 37), wanted[t]) < 1e-4);
  }
  CHECK(calls == 5);
  CHECK_THROWS_AS(session.set_level(Level{2}), strata::Error);
  CHECK_THROWS_AS(session.set_level(Level{-1}), strata::Error);
}

TEST_CASE("a session allocates nothing after the first call at a size, or after reserving") {
  TrainingNet network = random_network(2, small);
  const Model model = Model::from_archive(strata::to_archive(network, 2)).value();
  const std::vector<TokenId> source(33, 5);
  const std::vector<TokenId> words = {1, 6, 7, 8};
  const std::vector<std::int32_t> parents = {0, 0, 0, 0};
  /// The library's own allocations in translations of all sizes.
  const auto translate = [&](Session& session) {
    long count = 0;
    for (const std::size_t length : {1U, 2U, 17U, 33U})
      for (const int level : {0, 1}) {
        session.set_level(Level{level});
        const auto read = std::span(source).first(length);
        const long before = allocations();
        session.encode(read);
        for (const std::size_t hypotheses : {1U, 4U, 4U, 3U, 1U})
          (void)session.step(std::span(words).first(hypotheses), std::span(parents).first(hypotheses));
        count += allocations() - before;
      }
    return count;
  };
  Session session(model);
  CHECK(translate(session) > 0);
  CHECK(translate(session) == 0);
  Session reserved(model, {.source_steps = 33, .hypotheses = 4});
  CHECK(translate(reserved) == 0);
}

TEST_CASE("no parents make a session allocate at a size that was there before, nor any at a reserved one") {
  TrainingNet network = random_network(2, small);
  const Model model = Model::from_archive(strata::to_archive(network, 2)).value();
  constexpr std::size_t longest = 36;
  constexpr std::size_t most = 5;
  const std::vector<TokenId> source(longest, 5);
  const std::vector<TokenId> words(most, 8);
  std::vector<std::int32_t> parents(most, 0);
  std::mt19937 random(7);
  /// The library's own allocations in a translation whose every step has a number of hypotheses that `next` gives, and
  /// random parents.
  const auto translate = [&](Session& session, std::size_t length, std::size_t steps, auto&& next) {
    session.set_level(Level{static_cast<int>(random() % 2)});
    long before = allocations();
    session.encode(std::span(source).first(length));
    long count = allocations() - before;
    std::size_t last = 1;
    for (std::size_t step = 0; step < steps; ++step) {
      const std::size_t hypotheses = next();
      for (std::int32_t& parent : parents) parent = static_cast<std::int32_t>(random() % last);
      const bool same = hypotheses == last && random() % 4 == 0;
      before = allocations();
      (void)session.step(std::span(words).first(hypotheses), std::span(parents).first(same ? 0 : hypotheses));
      count += allocations() - before;
      last = hypotheses;
    }
    return count;
  };
  const auto any = [&] { return 1 + random() % most; };
  Session session(model);
  std::vector<std::size_t> seen;
  for (const std::size_t length : {17U, 1U, 4U, 33U, 9U, 0U, 16U}) {
    std::size_t hypotheses = 0;
    (void)translate(session, length, most, [&] { return ++hypotheses; });
    seen.push_back(length);
    for (int sentence = 0; sentence < 10; ++sentence)
      CHECK(translate(session, seen[random() % seen.size()], random() % 8, any) == 0);
  }
  Session reserved(model, {.source_steps = longest, .hypotheses = most});
  for (int sentence = 0; sentence < 40; ++sentence)
    CHECK(translate(reserved, random() % (longest + 1), random() % 8, any) == 0);
}

TEST_CASE("a source for which there is no memory is an error, and the session goes on with others") {
  TrainingNet network = random_network(2, small);
  Session session(Model::from_archive(strata::to_archive(network, 2)).value());
  const std::vector<TokenId> words = {1};
  const auto logits_after = [&](std::size_t length) {
    const std::vector<TokenId> source(length, 5);
    session.encode(source);
    const auto logits = session.step(words, {});
    return std::vector<float>(logits.begin(), logits.end());
  };
  const auto expected = logits_after(3);
  const std::vector<TokenId> source(100000, 5);
  {
    const FailingAllocations failing(std::size_t{1} << 20);
    CHECK_THROWS_AS(session.encode(source), std::bad_alloc);
  }
  CHECK(logits_after(3) == expected);

  // Nor does a step that found none leave anything behind: sizes that were there before find their memory.
  const std::vector<TokenId> few = {5, 6, 7, 2};
  session.encode(few);
  {
    const std::vector<TokenId> many(20000, 1);
    const FailingAllocations failing(std::size_t{1} << 20);
    CHECK_THROWS_AS(session.step(many, {}), std::bad_alloc);
  }
  const auto again = logits_after(3);
  const std::vector<TokenId> one = {1};
  const long before = allocations();
  session.encode(few);
  (void)session.step(one, {});
  CHECK(allocations() == before);
  CHECK(again == expected);
}

TEST_CASE("what is no word reads as zeros, and the model comes back from its file") {
  TrainingNet network = random_network(2, small);
  const strata::Archive archive = strata::to_archive(network, 2);
  const std::string path = "sequence_session_test.safetensors";
  (void)strata::io::write_model(archive, path).value();
  Session stored(Model::from_archive(strata::io::read_model(path).value()).value());
  Session session(Model::from_archive(archive).value());
  const std::vector<TokenId> strange = {-5, 23, 1000000};
  const std::vector<TokenId> word = {-7};
  for (Session* each : {&session, &stored}) {
    each->encode(strange);
    for (const float logit : each->step(word, {})) CHECK(std::isfinite(logit));
  }
  session.encode(strange);
  stored.encode(strange);
  const auto a = session.step(word, {});
  const auto b = stored.step(word, {});
  CHECK(std::equal(a.begin(), a.end(), b.begin(), b.end()));
  (void)std::remove(path.c_str());
}

TEST_CASE("words are written at the highest level present") {
  TrainingNet network = random_network(2, small);
  const std::string path = "sequence_session_residency.safetensors";
  (void)strata::io::write_model(strata::to_archive(network, 2), path).value();
  const auto model = strata::load<gnmt::Gnmt>(path);
  Session session(model);
  const std::vector<TokenId> source = {5, 6, 2};
  const std::vector<TokenId> word = {1};
  const auto logits = [&](int level) {
    session.set_level(Level{level});
    session.encode(source);
    const auto row = session.step(word, {});
    return std::vector<float>(row.begin(), row.end());
  };
  const auto lower = logits(0);
  const auto upper = logits(1);
  REQUIRE(lower != upper);
  (void)model.release_above(Level{0});
  CHECK(logits(1) == lower);
  model.restore(Level{1});
  model.wait_restored();
  CHECK(logits(1) == upper);
  (void)std::remove(path.c_str());
}

TEST_CASE("configurations that describe no translation network are refused") {
  using Config = TrainingNet::Config;
  CHECK_THROWS_AS(TrainingNet(Config{.encoder_layers = 0}), strata::Error);
  CHECK_THROWS_AS(TrainingNet(Config{.decoder_layers = 0}), strata::Error);
  CHECK_THROWS_AS(TrainingNet(Config{.width = 0}), strata::Error);
  TrainingNet network = random_network(2, small);
  const Model model = Model::from_archive(strata::to_archive(network, 2)).value();
  CHECK_THROWS_AS(Session(model, {.threads = 0}), strata::Error);
  CHECK_THROWS_AS(Session(model, {.hypotheses = 0}), strata::Error);
  CHECK(model.nnz(Level{0}) < model.nnz(Level{1}));
  CHECK(model.bytes(Level{0}) < model.bytes(Level{1}));
}

TEST_CASE("networks of one layer each work in both families") {
  TrainingNet network = random_network(
      2, {.source_words = 9, .target_words = 11, .width = 6, .encoder_layers = 1, .decoder_layers = 1, .dropout = 0});
  Session session(Model::from_archive(strata::to_archive(network, 2)).value());
  const std::vector<TokenId> source = {4, 8, 3}, words = {1, 5};
  const auto wanted = taught(network, source, words, Level{1});
  session.encode(source);
  for (std::size_t t = 0; t < 2; ++t)
    CHECK(test::difference(row(session.step(std::span(words).subspan(t, 1), {}), 0, 11), part(wanted, t, 11)) < 1e-4);
}
