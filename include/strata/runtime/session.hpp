// One thread's way to run a model: input and output buffers, the arena, the threads, and the router of runs with a
// deadline. After construction a run neither allocates nor throws.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <strata/core/at_exit.hpp>
#include <strata/core/error.hpp>
#include <strata/core/executor.hpp>
#include <strata/core/types.hpp>
#include <strata/runtime/clock.hpp>
#include <strata/runtime/model.hpp>
#include <strata/runtime/policy.hpp>
#include <strata/runtime/profile.hpp>
#include <strata/runtime/router.hpp>
#include <strata/runtime/thread_pool.hpp>

namespace strata {

struct SessionOptions {
  int threads = 1;               ///< threads of the session's own pool, the calling one included
  index_t batch = 1;             ///< pictures per run
  index_t micro_batch = 0;       ///< pictures computed together; 0: as many as stay in the caches
  Executor* executor = nullptr;  ///< threads of the host program instead; has to outlive the session
};

/// What came of a run with a deadline. The spans stay valid until the session's next run, `set_profile` or
/// `choose_paths`.
template <class Scalar>
struct DeadlineRun {
  std::span<const Scalar> output;  ///< batch x channels x height x width row-major
  std::span<const Level> path;     ///< the level of every stage
  Duration first_prediction{};     ///< finish since arrival, as predicted at the start
  Duration last_prediction{};      ///< and at the last stage boundary
  Duration finish{};               ///< really, since arrival, with the output written
  bool met = false;                ///< finish <= limit
  bool late_at_start = false;      ///< the limit had passed before the run began
  bool absent = false;             ///< levels above `highest` had no memory
  Level highest;                   ///< that could be chosen
  /// Whether a later stage ran at another level than the first.
  [[nodiscard]] bool rerouted() const noexcept {
    return std::any_of(path.begin(), path.end(), [&](Level level) { return level != path.front(); });
  }
};

/// Bytes of activations that a session keeps in the caches: a larger batch is computed in micro-batches.
inline constexpr index_t cached_activations = index_t{2} << 20;

/// Parts of a batch in runs by stages: more would make profiles long and change nothing.
inline constexpr index_t max_micro_batches = 64;

/// Runs a model at a level chosen per call. A session belongs to one thread at a time; several sessions may run the
/// same model at once, each at its own level.
///
/// A batch whose activations would leave the caches is computed in micro-batches, which the threads share: every thread
/// takes some of them through the whole network. Runs by stages (with a deadline, or timed) take one after the other of
/// `threads() * micro_batch()` pictures through it, all threads together, so that the level may change in between; at
/// most `max_micro_batches` of them.
template <class Model>
class Session {
 public:
  using Family = typename Model::Family;
  using Scalar = typename Family::Scalar;
  using Context = typename Family::Context;

  /// Runs every level once: shapes are checked and the arena gets all memory it will need. Levels whose memory was
  /// released are read from the file for it and released again.
  /// Raises: threads or batch below 1, more threads than the system has, an input of more than `max_elements`, layers
  /// whose shapes do not fit together (names the layer) or that the network's `visit` leaves out; `std::bad_alloc` for
  /// want of memory.
  STRATA_COLD explicit Session(Model model, const SessionOptions& options = {})
      : model_(std::move(model)),
        batch_(options.batch),
        pool_(options.executor == nullptr ? std::make_unique<ThreadPool>(options.threads) : nullptr),
        context_(std::make_unique<Context>(options.executor != nullptr ? *options.executor : *pool_)) {
    if (options.threads < 1) raise(Error("session", "at least 1 thread", options.threads));
    if (options.batch < 1) raise(Error("session", "a batch of at least 1", options.batch));
    if (options.micro_batch < 0) raise(Error("session", "a micro-batch of at least 0", options.micro_batch));
    const Shape shape = model_.input_shape();
    if (!is_array_size({batch_, shape.channels, shape.height, shape.width}))
      raise(
          Error({"session"}, {"an input of at most ", max_elements, " numbers"}, {batch_, " x ", detail::text(shape)}));
    input_.resize(static_cast<std::size_t>(batch_ * model_.input_shape().size()));
    source_ = input_.data();
    micro_batch_ = options.micro_batch == 0 ? chosen_micro_batch() : std::min(options.micro_batch, batch_);
    staged_batch_ = std::min(batch_, std::max(micro_batch_ * threads(), ceil_div(batch_, max_micro_batches)));
    if (micro_batch_ == batch_) {
      prepare_staged();
    } else {
      const index_t parts = std::min<index_t>(threads(), ceil_div(batch_, micro_batch_));
      for (index_t part = 0; part < parts; ++part) {
        parts_.push_back(std::make_unique<Context>(serial_));
        prepare(*parts_.back(), micro_batch_, batch_ % micro_batch_);
      }
    }
    for (index_t part = 0; part < ceil_div(batch_, staged_batch_); ++part)
      for (const std::string& stage : network_stages_) stages_.push_back(stage_name(stage, part));
  }

  [[nodiscard]] const Model& model() const noexcept { return model_; }
  [[nodiscard]] index_t batch() const noexcept { return batch_; }
  /// Pictures computed together, by one thread if there are several micro-batches.
  [[nodiscard]] index_t micro_batch() const noexcept { return micro_batch_; }

  /// The input buffer, batch x channels x height x width row-major, for `forward`.
  [[nodiscard]] std::span<Scalar> input() & noexcept { return input_; }
  /// The output of the last run, batch x `output_shape()` row-major: what the network's pass returns, as it is.
  [[nodiscard]] std::span<const Scalar> output() const& noexcept { return output_; }
  /// Channels, height and width of one output.
  [[nodiscard]] Shape output_shape() const noexcept { return output_shape_; }

  /// Memory that belongs to this session: input, output and activations. The weights are the model's
  /// (`Model::bytes`), which all sessions of it share.
  [[nodiscard]] index_t bytes() const noexcept {
    auto bytes = static_cast<index_t>((input_.size() + output_.size()) * sizeof(Scalar));
    bytes += context_->arena().capacity();
    for (const auto& part : parts_) bytes += part->arena().capacity();
    return bytes;
  }

  [[nodiscard]] int threads() const noexcept { return context_->executor().threads(); }
  /// Names of the stages between which the level may change, of one micro-batch after the other: `first_stage`, then
  /// the markers of the network in order (`stage_name`).
  [[nodiscard]] const std::vector<std::string>& stages() const noexcept { return stages_; }
  /// The level of the last run, at its start: below the one asked for if that one's memory was not there.
  [[nodiscard]] Level level() const noexcept { return level_; }

  /// Times both paths of every convolution and linear layer at each level that is at least `options.least_density`
  /// dense, sparse as stored and dense as a copy, on this session's batch and threads, and from then on takes the
  /// faster one. For models whose fullest levels are nearly dense. The copies belong to the model, whose other sessions
  /// take them too and grow their memory at their next run; no other run may be under way. Sums are rounded in another
  /// order on the dense path. A profile set before no longer holds and is dropped; one for another session of the model
  /// is to be measured again too. Returns what was measured.
  STRATA_COLD std::vector<LayerPath> choose_paths(const PathOptions& options = {}) {
    router_.reset();
    PathChooser chooser(options);
    Context& context = parts_.empty() ? *context_ : *parts_.front();
    const auto choose = [&] {
      const detail::AtExit reset([&]() noexcept { context.set_path_chooser(nullptr); });
      context.set_path_chooser(&chooser);
      run_every_level(context, micro_batch_);
    };
    const auto prepare_all = [&] {
      for (const auto& part : parts_) prepare(*part, micro_batch_, batch_ % micro_batch_);
      if (staged_prepared_) prepare(*context_, staged_batch_, batch_ % staged_batch_);
    };
#if defined(__cpp_exceptions)
    try {
      choose();
    } catch (...) {
      prepare_all();  // some layers may have new paths
      throw;
    }
#else
    choose();
#endif
    prepare_all();
    return chooser.paths();
  }

  /// Runs `level`, or the highest one present below it, on what `input()` holds. Neither allocates nor throws nor locks
  /// (beyond what the executor does). Precondition: 0 <= level.index < model().levels().
  std::span<const Scalar> forward(Level level) & noexcept {
    const LevelGuard guard(model_.residency(), level);
    level_ = guard.level();
    if (parts_.empty()) {
      run_staged([this] { return level_; });
      return output_;
    }
    const index_t chunks = ceil_div(batch_, micro_batch_);
    const auto parts = static_cast<index_t>(parts_.size());
    context_->executor().parallel_for(parts, [&](index_t part) {
      Context& context = *parts_[static_cast<std::size_t>(part)];
      context.set_level(level_);
      for (index_t chunk = part * chunks / parts; chunk < (part + 1) * chunks / parts; ++chunk) {
        const index_t first = chunk * micro_batch_;
        const auto y = compute(context, first, std::min(micro_batch_, batch_ - first));
        write_rows(y, output_.data() + first * y.shape().size());
      }
    });
    return output_;
  }

  /// As `forward`, but by stages, whose memory the first call allocates; `starts[s]` is when stage s began and the
  /// entry after the last one when the output was written. Precondition: stages().size() + 1 entries.
  void forward_timed(Level level, const Clock& clock, std::span<TimePoint> starts) {
    struct Stamps {
      const Clock& clock;
      std::span<TimePoint> starts;
      std::size_t next = 1;
    } stamps{clock, starts};
    prepare_staged();
    context_->set_stage_hook(
        [](void* object, std::string_view, Level at) noexcept {
          auto& self = *static_cast<Stamps*>(object);
          self.starts[self.next++] = self.clock();
          return at;
        },
        &stamps);
    starts[0] = clock();
    const LevelGuard guard(model_.residency(), level);
    level_ = guard.level();
    run_staged([&] {
      starts[stamps.next++] = clock();
      return level_;
    });
    starts[stamps.next] = clock();
    context_->set_stage_hook(nullptr, nullptr);
  }

  /// Whether `input` may be run. Errors: another size, what the network's `check_input` refuses if it has one.
  [[nodiscard]] STRATA_COLD Status check_input(std::span<const Scalar> input) const {
    if (input.size() != input_.size())
      return Error({"input"}, {batch_, " x ", detail::text(model_.input_shape()), " numbers"},
                   {input.size(), " numbers"});
    if constexpr (requires { model_.network().check_input(input); }) return model_.network().check_input(input);
    return success();
  }

  /// Runs `level` on `input`; the result stays valid until the next run. Raises, before any work: what `check_input`
  /// says of the input, a level that the model does not have.
  std::span<const Scalar> run(std::span<const Scalar> input, Level level) & {
    (void)check_input(input).value();
    if (level.index < 0 || level.index >= model_.levels())
      raise(Error({"level"}, {"0 to ", model_.levels() - 1}, {level.index}));
    return reading(input, [&] { return forward(level); });
  }

  /// What a profile of this session belongs to.
  [[nodiscard]] ProfileKey profile_key() const {
    ProfileKey key;
    key.architecture = std::string(Model::Network::architecture);
    key.model = model_.fingerprint();
    for (int level = 0; level < model_.levels(); ++level) {
      key.level_nnz.push_back(model_.nnz(Level{level}));
      key.level_bytes.push_back(model_.bytes(Level{level}));
    }
    key.threads = threads();
    key.batch = batch_;
    key.micro_batch = staged_batch_;
    key.instruction_set = Family::Arch::name();
    return key;
  }

  /// Prepares runs with a deadline: what they predict from, how, and by which clock. Raises: a profile that is not
  /// whole or belongs to another model, level set, paths through the layers, thread count, batch, micro-batch or
  /// instruction set; options outside their range.
  void set_profile(const Profile& profile, const RouterOptions& options = {}, const Clock& clock = {}) {
    (void)check_profile(profile, profile_key(), stages_).value();
    prepare_staged();
    router_ = std::make_unique<Router>(profile, options);
    clock_ = clock;
  }
  /// The router of runs with a deadline; null before `set_profile`.
  [[nodiscard]] Router* router() noexcept {
    return router_.get();
  }

  /// Runs what `input()` holds by `deadline`, each stage at the level that `policy` chooses. Neither allocates nor
  /// throws nor locks (beyond what the executor does). Precondition: `set_profile` was called.
  template <RoutingPolicy Policy>
  DeadlineRun<Scalar> forward(const Deadline& deadline, Policy& policy) & noexcept {
    const TimePoint now = clock_();
    const Level top{model_.levels() - 1};
    const LevelGuard guard(model_.residency(), top);
    struct Call {
      Router& router;
      Policy& policy;
      const Clock& clock;
    } call{*router_, policy, clock_};
    level_ = router_->start(policy, deadline.arrival.value_or(now), deadline.limit, now, guard.level());
    context_->set_stage_hook(
        [](void* object, std::string_view, Level) noexcept {
          auto& self = *static_cast<Call*>(object);
          return self.router.next(self.policy, self.clock());
        },
        &call);
    run_staged([&] { return router_->next(policy, clock_()); });
    context_->set_stage_hook(nullptr, nullptr);
    DeadlineRun<Scalar> run;
    run.finish = router_->finish(clock_());
    run.output = output_;
    run.path = router_->path();
    run.first_prediction = router_->first_prediction();
    run.last_prediction = router_->last_prediction();
    run.met = run.finish <= deadline.limit;
    run.late_at_start = router_->late_at_start();
    run.highest = guard.level();
    run.absent = guard.level() != top;
    return run;
  }

  /// Runs `input` by `deadline`. Raises, before any work: what `check_input` says of the input, no profile.
  template <RoutingPolicy Policy>
  DeadlineRun<Scalar> run(std::span<const Scalar> input, const Deadline& deadline, Policy&& policy) & {
    if (router_ == nullptr)
      raise(Error("deadline", "a profile: session.set_profile(strata::profile(session))", "none"));
    // The deadline counts from the call.
    Deadline counted = deadline;
    if (!counted.arrival) counted.arrival = clock_();
    (void)check_input(input).value();
    return reading(input, [&] { return forward(counted, policy); });
  }
  /// With `ChooseAndReroute`: starts at the highest level that is predicted to meet the deadline, drops when late.
  DeadlineRun<Scalar> run(std::span<const Scalar> input, const Deadline& deadline) & {
    return run(input, deadline, ChooseAndReroute{});
  }

 private:
  static Level note_stage(void* names, std::string_view name, Level level) noexcept {
    static_cast<std::vector<std::string>*>(names)->emplace_back(name);
    return level;
  }

  /// `run`, which reads `input` where it is instead of `input()`.
  template <class Run>
  auto reading(std::span<const Scalar> input, const Run& run) noexcept {
    source_ = input.data();
    auto result = run();
    source_ = input_.data();
    return result;
  }

  /// Runs every level on `count` pictures in `context`, and on `rest` if there are any: it then has all memory it needs
  /// for so many.
  STRATA_COLD void prepare(Context& context, index_t count, index_t rest = 0) {
    const detail::AtExit reset([&]() noexcept { context.set_checking(false); });
    context.set_checking(true);
    do {
      run_every_level(context, count);
      if (rest > 0) run_every_level(context, rest);
    } while (context.arena().unite());
  }

  /// Once, for runs by stages.
  STRATA_COLD void prepare_staged() {
    if (!staged_prepared_) prepare(*context_, staged_batch_, batch_ % staged_batch_);
    staged_prepared_ = true;
  }

  STRATA_COLD void run_every_level(Context& context, index_t count) {
    // Not entered in the ledger: levels whose memory was released run too, since each may need other memory.
    for (int level = 0; level < model_.levels(); ++level) {
      context.set_level(Level{level});
      std::vector<std::string> names{std::string(first_stage)};
      const auto y = [&] {
        const detail::AtExit reset([&]() noexcept { context.set_stage_hook(nullptr, nullptr); });
        context.set_stage_hook(&note_stage, &names);
        return compute(context, 0, count);
      }();
      if (context.error()) raise(*context.error());
      if (network_stages_.empty()) network_stages_ = names;
      if (names != network_stages_) raise(Error({"stages of level ", level}, {"those of level 0"}, {"others"}));
      output_shape_ = y.shape();
      output_.resize(static_cast<std::size_t>(batch_ * output_shape_.size()));
    }
    model_.residency().forget_absent();
  }

  /// The whole batch if its activations stay in the caches, else as many pictures as do, at least one.
  [[nodiscard]] STRATA_COLD index_t chosen_micro_batch() {
    if (batch_ == 1) return 1;
    Context context(serial_);
    prepare(context, 1);
    const index_t bytes = std::max<index_t>(1, context.arena().capacity());  // of one picture
    if (batch_ <= cached_activations / bytes) return batch_;
    return std::clamp<index_t>(cached_activations / bytes, 1, ceil_div(batch_, static_cast<index_t>(threads())));
  }

  [[nodiscard]] typename Family::Tensor compute(Context& context, index_t first, index_t count) {
    typename Family::Tensor x = context.make(count, model_.input_shape());
    read_rows(source_ + first * model_.input_shape().size(), x);
    return model_.network()(context, x);
  }

  /// All pictures by stages: the first micro-batch starts at `level_`, each later one at what `next_level()` gives.
  template <class NextLevel>
  void run_staged(const NextLevel& next_level) noexcept {
    for (index_t first = 0; first < batch_; first += staged_batch_) {
      context_->set_level(first == 0 ? level_ : next_level());
      const auto y = compute(*context_, first, std::min(staged_batch_, batch_ - first));
      write_rows(y, output_.data() + first * y.shape().size());
    }
  }

  Model model_;
  index_t batch_;
  index_t micro_batch_ = 1;
  index_t staged_batch_ = 1;  // pictures that pass a stage together in runs by stages
  bool staged_prepared_ = false;
  std::unique_ptr<ThreadPool> pool_;
  inline static SerialExecutor serial_;          // has no state
  std::unique_ptr<Context> context_;             // of runs by stages
  std::vector<std::unique_ptr<Context>> parts_;  // of the threads that share micro-batches; empty if there are none
  std::vector<Scalar> input_;
  const Scalar* source_ = nullptr;  // what a run reads: `input_`, or the caller's
  std::vector<Scalar> output_;
  Shape output_shape_;
  std::vector<std::string> network_stages_;
  std::vector<std::string> stages_;  // of all micro-batches
  Level level_;
  std::unique_ptr<Router> router_;
  Clock clock_;
};

}  // namespace strata
