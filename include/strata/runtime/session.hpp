// One thread's way to run a model: input and output buffers, the arena, the threads. After construction a run neither
// allocates nor throws.
#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/executor.hpp>
#include <strata/core/types.hpp>
#include <strata/runtime/model.hpp>
#include <strata/runtime/thread_pool.hpp>

namespace strata {

struct SessionOptions {
  int threads = 1;               ///< threads of the session's own pool, the calling one included
  index_t batch = 1;             ///< pictures per run
  Executor* executor = nullptr;  ///< threads of the host program instead; has to outlive the session
};

/// Runs a model at a level chosen per call. A session belongs to one thread at a time; several sessions may run the
/// same model at once, each at its own level.
template <class Model>
class Session {
 public:
  using Family = typename Model::Family;
  using Scalar = typename Family::Scalar;

  /// Runs every level once: shapes are checked and the arena gets all memory it will need.
  /// Raises: threads or batch below 1, layers whose shapes do not fit together (names the layer).
  explicit Session(Model model, const SessionOptions& options = {})
      : model_(std::move(model)),
        batch_(options.batch),
        pool_(options.executor == nullptr ? std::make_unique<ThreadPool>(options.threads) : nullptr),
        context_(std::make_unique<typename Family::Context>(options.executor != nullptr ? *options.executor : *pool_)) {
    if (options.threads < 1) raise(Error("session", "at least 1 thread", std::to_string(options.threads)));
    if (options.batch < 1) raise(Error("session", "a batch of at least 1", std::to_string(options.batch)));
    input_.resize(static_cast<std::size_t>(batch_ * model_.input_shape().size()));
    context_->set_checking(true);
    for (int level = 0; level < model_.levels(); ++level) {
      context_->set_level(Level{level});
      const auto output = compute();
      if (context_->error()) raise(*context_->error());
      output_.resize(static_cast<std::size_t>(batch_ * output.shape().size()));
    }
    context_->set_checking(false);
  }

  [[nodiscard]] const Model& model() const noexcept { return model_; }
  [[nodiscard]] index_t batch() const noexcept { return batch_; }

  /// The input buffer, batch x channels x height x width row-major, for `forward`.
  [[nodiscard]] std::span<Scalar> input() noexcept { return input_; }
  /// The output of the last run, batch x channels x height x width row-major.
  [[nodiscard]] std::span<const Scalar> output() const noexcept { return output_; }

  /// Runs `level` on what `input()` holds. Neither allocates nor throws nor locks (beyond what the executor does).
  /// Precondition: 0 <= level.index < model().levels().
  std::span<const Scalar> forward(Level level) noexcept {
    context_->set_level(level);
    write_rows(compute(), output_.data());
    return output_;
  }

  /// Runs `level` on `input`; the result stays valid until the next run. Raises, before any work: an input of another
  /// size, a level that the model does not have, what the network's `check_input` refuses if it has one.
  std::span<const Scalar> run(std::span<const Scalar> input, Level level) {
    if (input.size() != input_.size())
      raise(Error("input", std::to_string(batch_) + " x " + detail::text(model_.input_shape()) + " numbers",
                  std::to_string(input.size()) + " numbers"));
    if (level.index < 0 || level.index >= model_.levels())
      raise(Error("level", "0 to " + std::to_string(model_.levels() - 1), std::to_string(level.index)));
    if constexpr (requires { model_.network().check_input(input); }) (void)model_.network().check_input(input).value();
    std::copy(input.begin(), input.end(), input_.begin());
    return forward(level);
  }

 private:
  [[nodiscard]] typename Family::Tensor compute() {
    typename Family::Tensor x = context_->make(batch_, model_.input_shape());
    read_rows(input_.data(), x);
    return model_.network()(*context_, x);
  }

  Model model_;
  index_t batch_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<typename Family::Context> context_;
  std::vector<Scalar> input_;
  std::vector<Scalar> output_;
};

}  // namespace strata
