// One thread's way to run a network that reads a sequence and writes another one word by word: memory of the source,
// recurrent state of the hypotheses, arena and threads. runtime/session.hpp is the same for pictures and vectors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <strata/core/arena.hpp>
#include <strata/core/error.hpp>
#include <strata/core/executor.hpp>
#include <strata/core/tensor.hpp>
#include <strata/core/types.hpp>
#include <strata/layers/inference/sequence.hpp>
#include <strata/layers/sequence.hpp>
#include <strata/runtime/model.hpp>
#include <strata/runtime/sample_run.hpp>
#include <strata/runtime/thread_pool.hpp>

namespace strata {

struct SequenceSessionOptions {
  int threads = 1;               ///< threads of the session's own pool, the calling one included
  Executor* executor = nullptr;  ///< threads of the host program instead; has to outlive the session
  index_t source_steps = 0;      ///< take the memory for sources of up to so many words at once (see `reserve`)
  index_t hypotheses = 1;        ///< and for so many hypotheses
};

/// Runs a model of a sequence network (examples/gnmt/network.hpp): `encode` a source, then `step` for each word more of
/// one or several hypotheses, each at a level of its own choice; memory and recurrent state carry over. Beside stage
/// hooks, `set_level` between two calls is the way to change it. A session belongs to one thread at a time; several
/// sessions may run the same model at once.
///
/// A call of a size that was there before (`encode`: so many words; `step`: so many hypotheses after a source of so
/// many words) neither allocates nor throws nor locks (beyond what the executor does), whatever came in between and
/// whatever the parents are; `reserve` makes that the first ones too.
template <class Model>
class SequenceSession {
 public:
  using Family = typename Model::Family;
  using Scalar = typename Family::Scalar;
  using Context = typename Family::Context;
  using Network = typename Model::Network;

  /// Runs every level once, so that shapes are checked. Raises: threads below 1, a model that does not fit together
  /// (names the layer).
  explicit SequenceSession(Model model, const SequenceSessionOptions& options = {})
      : model_(std::move(model)),
        pool_(options.executor == nullptr ? std::make_unique<ThreadPool>(options.threads) : nullptr),
        context_(options.executor == nullptr ? *pool_ : *options.executor),
        state_(model_.network().initial_state()) {
    if (options.threads < 1) raise(Error("sequence session", "at least 1 thread", options.threads));
    if (options.source_steps < 0 || options.hypotheses < 1)
      raise(Error({"sequence session"}, {"at least 0 source steps and 1 hypothesis"},
                  {options.source_steps, " and ", options.hypotheses}));
    context_.set_checking(true);
    for (int level = 0; level < model_.levels(); ++level) {
      level_ = Level{level};
      try_sizes(2, 2);
      if (context_.error()) raise(*context_.error());
    }
    context_.set_checking(false);
    if (options.source_steps > 0) reserve(options.source_steps, options.hypotheses);
    forget();
    model_.residency().forget_absent();
  }

  [[nodiscard]] const Model& model() const noexcept { return model_; }
  /// For stage hooks.
  [[nodiscard]] Context& context() noexcept { return context_; }
  /// Words that `step` gives logits for.
  [[nodiscard]] index_t vocabulary() const noexcept { return model_.network().vocabulary(); }

  /// The level that `encode` and `step` run at from now on, or the highest one present below it; the fullest one at
  /// first. Raises: no such level.
  void set_level(Level level) {
    if (level.index < 0 || level.index >= model_.levels())
      raise(Error({"level"}, {"0 to ", model_.levels() - 1}, {level.index}));
    level_ = level;
  }
  [[nodiscard]] Level level() const noexcept { return level_; }

  /// Takes all memory for sources of up to `source_steps` words and up to `hypotheses` hypotheses; forgets the source.
  void reserve(index_t source_steps, index_t hypotheses) {
    do {
      for_each_size(0, source_steps, [&](index_t steps) { try_sizes(steps, hypotheses); });
      forget();
    } while (context_.arena().unite());
    model_.residency().forget_absent();
  }

  /// Reads a source of any number of words (also none) and starts from one hypothesis that has written nothing. Numbers
  /// that are no words of the model read as zeros. Raises `std::bad_alloc` for want of memory for a source longer than
  /// any before and than what was reserved; nothing is encoded then.
  void encode(std::span<const TokenId> source) {
    const LevelGuard guard(model_.residency(), level_);
    encode_at(guard.level(), source);
  }

  /// Lets each of `words.size()` hypotheses go on: hypothesis i is the previous step's `parents[i]` followed by
  /// `words[i]` (in the first step: the begin token; all parents are the one hypothesis there is). Empty `parents`: the
  /// hypotheses are the same ones. The logits of the next word, [hypotheses][vocabulary], valid until the next call.
  /// Preconditions: `encode` was called; parents are below the previous step's number of hypotheses, and if there are
  /// none, words are as many as hypotheses (in the first step: any number). Raises `std::bad_alloc` for want of memory
  /// for more hypotheses than before and than were reserved; the source is to be encoded again then.
  std::span<const Scalar> step(std::span<const TokenId> words, std::span<const std::int32_t> parents) & {
    const LevelGuard guard(model_.residency(), level_);
    step_at(guard.level(), words, parents);
    return logits_;
  }

  /// The last step's attention weights, [hypotheses][source words].
  [[nodiscard]] std::span<const Scalar> attention() const noexcept { return attention_; }

 private:
  /// The next step begins with zeros.
  void forget() noexcept {
    for_each_part([](std::size_t, Tensor<Scalar>& part) { part = {}; });
    memory_ = {};
    hypotheses_ = 0;
  }

  void encode_at(Level level, std::span<const TokenId> source) {
    forget();
    context_.set_level(level);
    memory_ = model_.network().encode(context_, source, {static_cast<index_t>(source.size()), 1, {}});
  }

  void step_at(Level level, std::span<const TokenId> words, std::span<const std::int32_t> parents) {
    context_.set_level(level);
    const auto hypotheses = static_cast<index_t>(words.size());
    bring_state(hypotheses, parents);
    const auto output = model_.network().decode(context_, words, {1, hypotheses, {}}, memory_, state_);
    keep_state();
    hypotheses_ = hypotheses;
    copy_rows(output.logits, logits_);
    copy_rows(output.weights, attention_);
  }

  // Between two steps the state lies in an arena of its own, so that each step finds the context's arena as every other
  // one after a source of so many words does: with the memory alone. Left there, it would lie where the steps before
  // had put it, and which gaps are large enough would depend on all of them.

  /// The state in the context's arena: zeros in the first step, else that of the last step's `parents`. (In the
  /// session's very first step it has no shape yet, and the layers make their zeros.)
  void bring_state(index_t hypotheses, std::span<const std::int32_t> parents) {
    const bool same = parents.empty() || is_identity(parents);
    for_each_part([&](std::size_t i, Tensor<Scalar>& part) {
      if (i >= shapes_.size() || shapes_[i].channels == 0) return;
      if (hypotheses_ == 0) {
        part = context_.make(hypotheses, shapes_[i]);
        std::fill_n(part.data(), part.layout().size(), Scalar{0});
      } else {
        part = same ? copy_in(context_.arena(), part) : inference::select(context_, part, parents);
      }
    });
  }
  void keep_state() {
    for_each_part([&](std::size_t i, Tensor<Scalar>& part) {
      if (i >= shapes_.size()) shapes_.resize(i + 1);
      if (part.data() == nullptr) return;  // the other direction of a layer that has one
      shapes_[i] = part.shape();
      part = copy_in(kept_, part);
    });
  }

  /// Calls `f(i, part)` for the i-th tensor of the state.
  template <class F>
  void for_each_part(const F& f) {
    std::size_t i = 0;
    for (auto& layer : state_)
      for (auto* parts : {&layer.hidden, &layer.cell})
        for (Tensor<Scalar>& part : *parts) f(i++, part);
  }
  [[nodiscard]] static Tensor<Scalar> copy_in(Arena& arena, const Tensor<Scalar>& x) {
    const Tensor<Scalar> copy(arena, x.layout());
    std::copy_n(x.data(), x.layout().size(), copy.data());
    return copy;
  }

  [[nodiscard]] bool is_identity(std::span<const std::int32_t> parents) const noexcept {
    if (static_cast<index_t>(parents.size()) != hypotheses_) return false;
    for (std::size_t i = 0; i < parents.size(); ++i)
      if (parents[i] != static_cast<std::int32_t>(i)) return false;
    return true;
  }

  static void copy_rows(const Tensor<Scalar>& from, std::vector<Scalar>& to) {
    const index_t features = from.shape().channels;
    to.resize(static_cast<std::size_t>(from.batch() * features));
    for (index_t n = 0; n < from.batch() && features > 0; ++n) {
      const auto row = inference::sample(from, n);
      for (index_t f = 0; f < features; ++f) to[static_cast<std::size_t>(n * features + f)] = row[f];
    }
  }

  /// Calls `f` for numbers from `first` to `most` such that every other one takes blocks as one of them does: up to a
  /// vector each number may have its own, larger ones come in whole vectors.
  template <class F>
  static void for_each_size(index_t first, index_t most, const F& f) {
    for (index_t n = first; n < most; n += n < Context::lanes ? 1 : Context::lanes) f(n);
    if (first <= most) f(most);
  }

  /// A source of so many words and steps of up to so many hypotheses at `level_`, present or not.
  void try_sizes(index_t source_steps, index_t hypotheses) {
    const std::vector<TokenId> source(static_cast<std::size_t>(source_steps), end_token);
    const std::vector<TokenId> words(static_cast<std::size_t>(hypotheses), begin_token);
    const std::vector<std::int32_t> parents(words.size(), 0);
    encode_at(level_, source);
    for_each_size(1, hypotheses, [&](index_t n) {
      step_at(level_, std::span(words).first(static_cast<std::size_t>(n)),
              std::span(parents).first(static_cast<std::size_t>(n)));
    });
  }

  Model model_;
  std::unique_ptr<ThreadPool> pool_;
  Context context_;
  Arena kept_;                 ///< of the state between two steps
  std::vector<Shape> shapes_;  ///< of the state's parts; without channels: a part that no layer has
  Level level_;
  typename Network::Memory memory_;
  typename Network::State state_;
  index_t hypotheses_ = 0;
  std::vector<Scalar> logits_, attention_;
};

/// A network that a `SequenceSession` runs.
template <class Network>
concept SequenceNetwork = requires(const Network& network) {
  network.initial_state();
  network.vocabulary();
};

/// A source of a few words, and the logits of the words after the first ones of a translation.
template <class Model>
requires SequenceNetwork<typename Model::Network>
class SampleRun<Model> {
 public:
  using Scalar = typename Model::Family::Scalar;

  explicit SampleRun(Model model) : session_(std::move(model)) {}

  /// As in the primary template. Any number is an input: what is no word reads as zeros.
  template <class F>
  void visit_input(F&& f) {
    f("source", source_);
    f("words", words_);
  }

  [[nodiscard]] Result<std::span<const Scalar>> run(Level level) {
    session_.set_level(level);
    session_.encode(source_);
    output_.clear();
    for (const TokenId word : words_) {
      const auto logits = session_.step({&word, 1}, {});
      output_.insert(output_.end(), logits.begin(), logits.end());
    }
    return std::span<const Scalar>(output_);
  }

 private:
  SequenceSession<Model> session_;
  std::vector<TokenId> source_ = {5, 4, 7, 6, 4, 8, end_token};
  std::vector<TokenId> words_ = {begin_token, 6, 4};
  std::vector<Scalar> output_;
};

}  // namespace strata
