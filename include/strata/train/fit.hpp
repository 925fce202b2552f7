// Carries a recipe out: phases, paths, masks, ADMM, recalibration, and the state that a checkpoint holds. What is
// learnt from is the task's business (train/classification.hpp), what phases there are the recipe's (train/recipe.hpp).
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <string>
#include <system_error>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include <strata/core/archive.hpp>
#include <strata/core/error.hpp>
#include <strata/core/executor.hpp>
#include <strata/io/model_file.hpp>
#include <strata/train/allocation.hpp>
#include <strata/train/data.hpp>
#include <strata/train/fingerprint.hpp>
#include <strata/train/optimiser.hpp>
#include <strata/train/recalibration.hpp>
#include <strata/train/recipe.hpp>
#include <strata/train/training.hpp>

namespace strata::train {

/// Where a run is; passed to the progress callback after every step.
struct Progress {
  std::string phase;
  std::int64_t step = 0;    ///< steps done, of the whole run
  std::int64_t steps = 0;   ///< of the whole run
  double loss = 0;          ///< of the last step
  double seconds = 0;       ///< since `fit` was called
  double seconds_left = 0;  ///< from the mean time of a forward-backward pass so far
  double samples_per_second = 0;
};

/// What a network is trained on, as `Classification` is one: training samples, batches of them, the pass and the loss.
/// `load(indices, seed)` makes those samples the current batch, varied as follows from the seed alone (or
/// `load(indices, seed, levels)`, where levels may see other variations than the dense model); `run` passes it through
/// the network; `loss(output, teacher, share, temperature, weight)` returns `weight` times the batch's mean loss and
/// adds its derivative to the output's gradient, with `share` of it distillation from the teacher's outputs, unless
/// `teacher` is empty. `fingerprint` tells runs on other data or with other options apart. Optional:
/// `order(seed, epoch, batch)`, the numbers of all samples, one after the other in batches.
template <class Task, class Network>
concept TaskFor = requires(Task& task, const Network& network, Context<typename Task::Scalar>& context,
                           std::span<const std::uint32_t> indices, std::span<const typename Task::Scalar> teacher) {
  { task.size() } -> std::convertible_to<index_t>;
  { task.fingerprint() } -> std::convertible_to<std::string>;
  task.load(indices, std::uint64_t{0});
  { task.loss(task.run(network, context), teacher, 0.5, 1.0, 1.0) } -> std::convertible_to<double>;
};

/// One run of a recipe, step by step. The same seed, data and recipe give the same bits on any number of threads, and
/// a run that was saved and restored goes on as if it had not stopped.
template <class Network, TaskFor<Network> Task>
class Trainer {
 public:
  using Scalar = typename Task::Scalar;

  /// Raises, before any work: a recipe with bad numbers or floors for unknown weights, budgets that cannot be met, a
  /// network that does not fit the task, two layers of one name. `network`, `task` and `executor` have to outlive the
  /// trainer.
  Trainer(Network& network, Task& task, Recipe recipe, Executor& executor)
      : network_(network), task_(task), recipe_(std::move(recipe)), context_(executor) {
    (void)recipe_.check().value();
    (void)check_config<Network>().value();
    context_.seed = recipe_.seed;
    steps_per_epoch_ = ceil_div(task_.size(), recipe_.batch);
    phases_ = phases_of(recipe_, steps_per_epoch_);
    for (const Phase& phase : phases_) steps_ += phase.steps;
    const std::uint32_t first = 0;  // one sample tells how often each weight is used
    task_.load({&first, 1}, 0);
    std::set<std::string> names;
    for (const Parameter<Scalar>* parameter : parameters<Scalar>(network_))  // which names them
      if (!names.insert(parameter->name).second)
        raise(Error(parameter->name, "a name of its own", "it is taken: two layers or normalisations are called so"));
    context_.training = false;
    context_.checking = true;
    context_.begin(Level{0});
    (void)task_.run(network_, context_);
    context_.checking = false;
    context_.training = true;
    context_.bfloat16 = recipe_.bfloat16;
    stages_ = context_.stages();
    for (const auto& [name, density] : recipe_.floors) {
      bool known = false;
      for (const auto* parameter : parameters<Scalar>(network_))
        known = known || (is_budgeted(*parameter) && parameter->name == name);
      if (!known) {
        const auto all = parameters<Scalar>(network_);
        raise(Error("recipe.floors", "names of weight matrices, " + all.front()->name + " say", name));
      }
    }
    if (!recipe_.levels.empty()) (void)check_allocation(prunable(), recipe_.levels).value();
    if (recipe_.dense_epochs <= 0) start_ = start_text();
  }

  [[nodiscard]] bool done() const noexcept { return phase_ == phases_.size(); }
  [[nodiscard]] std::int64_t steps_done() const noexcept { return step_; }
  [[nodiscard]] std::int64_t steps() const noexcept { return steps_; }
  /// Levels that the network has at the end.
  [[nodiscard]] int levels() const noexcept { return recipe_.levels.empty() ? 1 : level_count(); }
  [[nodiscard]] std::string phase_name() const { return done() ? "done" : phases_[phase_].name(); }
  [[nodiscard]] Context<Scalar>& context() noexcept { return context_; }
  /// The network as dense training left it; null before that.
  [[nodiscard]] const Network* dense() const noexcept { return teacher_ ? &*teacher_ : nullptr; }

  /// Forward-backward passes of the steps that are left, for estimates of time.
  [[nodiscard]] double passes_left() const {
    double passes = 0;
    for (std::size_t p = phase_; p < phases_.size(); ++p)
      passes += passes_per_step(phases_[p]) * static_cast<double>(phases_[p].steps - (p == phase_ ? phase_step_ : 0));
    return passes;
  }
  [[nodiscard]] double passes_of_step() const { return done() ? 0 : passes_per_step(phases_[phase_]); }

  /// One optimiser step; the loss before it. After the last step statistics are recalibrated. Raises, with the weights
  /// as they were: a loss that is not finite. Precondition: not done.
  double step() {
    const Phase& phase = phases_[phase_];
    if (phase_step_ == 0) begin(phase);
    load_batch(step_, phase.kind != Phase::Kind::dense);
    const auto all = parameters<Scalar>(network_);
    clear_gradients(context_, all);
    context_.step = static_cast<std::uint64_t>(step_);
    const double loss = gradients(phase);
    if (!std::isfinite(loss))
      raise(Error({"training, step ", step_ + 1, " (", phase.name(), ")"},
                  {"a finite loss: data without infinite numbers, a rate that is not too high"}, {loss}));
    if (phase.kind == Phase::Kind::admm) add_penalty(phase.level);
    if (recipe_.clip > 0) clip_gradients(context_, all, recipe_.clip);
    Trainable trainable;
    if (phase.kind != Phase::Kind::dense && phase.kind != Phase::Kind::prune && phase.kind != Phase::Kind::fixed)
      trainable.frozen_below = phase.level;
    const double rate = phase.schedule(phase_step_);
    std::visit([&](auto& optimiser) { optimiser->step(context_, rate, trainable); }, optimiser_);
    ++phase_step_;
    ++step_;
    const std::int64_t interval = std::max<std::int64_t>(1, steps_per_epoch_ / recipe_.masks_per_epoch);
    const bool last = phase_step_ == phase.steps;
    if (phase.kind == Phase::Kind::prune && (last || phase_step_ % interval == 0)) prune(phase);
    if (phase.kind == Phase::Kind::admm && (last || phase_step_ % interval == 0)) project(phase.level, last);
    if (last) {
      if (phase.kind == Phase::Kind::dense) keep_teacher();
      ++phase_;
      phase_step_ = 0;
      if (done()) recalibrate();
    }
    return loss;
  }

  /// All that a run needs to go on. Restored by `restore` of a trainer for the same network, task and recipe.
  [[nodiscard]] Archive state() {
    Archive archive;
    archive.metadata()["checkpoint"] = fingerprint();
    const std::array<std::int64_t, 3> place = {static_cast<std::int64_t>(phase_), phase_step_, step_};
    archive.add<std::int64_t>("place", {3}, 0, place);
    visit_state([&](const std::string& name, auto&& array) {
      using T = typename std::remove_cvref_t<decltype(array)>::value_type;
      archive.add<T>(name, {static_cast<index_t>(array.size())}, 0,
                     std::span<const T>(array.data(), static_cast<std::size_t>(array.size())));
    });
    return archive;
  }

  /// Errors, with nothing changed: a checkpoint of another network, task or recipe, arrays missing or of another size.
  [[nodiscard]] Status restore(const Archive& archive) {
    const auto found = archive.metadata().find("checkpoint");
    if (found == archive.metadata().end()) return Error("checkpoint", "a training checkpoint", "another file");
    if (found->second != fingerprint()) return another_run("of this run", fingerprint(), found->second);
    const ArrayView* view = archive.find("place");
    if (view == nullptr || view->type != DataType::i64 || view->size() != 3)
      return Error("checkpoint place", "3 numbers", view == nullptr ? "none" : "others");
    const auto place = view->template as<std::int64_t>();
    std::int64_t before = 0;
    const bool in_range = place[0] >= 0 && place[0] <= static_cast<std::int64_t>(phases_.size());
    for (std::size_t p = 0; in_range && p < static_cast<std::size_t>(place[0]); ++p) before += phases_[p].steps;
    const std::int64_t length = in_range && place[0] < static_cast<std::int64_t>(phases_.size())
                                    ? phases_[static_cast<std::size_t>(place[0])].steps
                                    : 1;
    if (!in_range || place[1] < 0 || place[1] >= length || place[2] != before + place[1])
      return Error("checkpoint place", "a step of this run", "another");
    // The structure of that moment first, in copies, so that nothing is lost if an array is missing.
    const Network old_network = network_;
    const auto old = std::tuple(phase_, phase_step_, step_, teacher_, dual_);
    std::vector<Array> old_optimiser;
    visit_optimiser([&](const std::string&, Array& array) { old_optimiser.push_back(array); });
    phase_ = static_cast<std::size_t>(place[0]);
    phase_step_ = place[1];
    step_ = place[2];
    set_levels(network_, in_sparse_phase() ? level_count() : 1);
    teacher_.reset();
    if (has_teacher()) teacher_.emplace(network_);
    if (teacher_) set_levels(*teacher_, 1);
    prepare_duals();
    make_optimiser();
    Status status = success();
    visit_state([&](const std::string& name, auto&& array) { read_array(archive, name, array, status); });
    if (!status) {
      network_ = old_network;
      std::tie(phase_, phase_step_, step_, teacher_, dual_) = old;
      make_optimiser();
      auto next = old_optimiser.begin();
      visit_optimiser([&](const std::string&, Array& array) { array = *next++; });
    }
    return status;
  }

  /// Takes the dense model from the checkpoint of another run, as if this one had just ended its dense phase: the same
  /// bits, since that phase has to agree (network, task, seed, batch, optimiser, epochs and rates); arm and levels may
  /// differ. A finished run without levels will do as well, with the statistics that were recalibrated at its end.
  /// Errors, with nothing changed: another dense phase, a checkpoint from before its end, a recipe without a dense
  /// phase or levels.
  [[nodiscard]] Status start_from_dense(const Archive& archive) {
    const std::size_t first = first_sparse_phase();
    if (recipe_.levels.empty() || first == 0) return Error("recipe", "a dense phase and levels", "none");
    const auto found = archive.metadata().find("checkpoint");
    if (found == archive.metadata().end()) return Error("checkpoint", "a training checkpoint", "another file");
    if (const std::string wanted = dense_part(fingerprint()), is = dense_part(found->second); is != wanted)
      return another_run("with this dense phase", wanted, is);
    const ArrayView* place = archive.find("place");
    const bool only_dense = found->second.find(", levels.0.") == std::string::npos && place != nullptr &&
                            place->type == DataType::i64 && place->size() == 3 &&
                            place->as<std::int64_t>()[0] == static_cast<std::int64_t>(first);
    const Network old = network_;
    set_levels(network_, 1);
    Status status = success();
    visit_network(only_dense ? "" : "dense.", network_,
                  [&](const std::string& name, auto&& array) { read_array(archive, name, array, status); });
    if (!status) {
      network_ = old;
      return status;
    }
    teacher_.emplace(network_);
    phase_ = first;
    phase_step_ = 0;
    step_ = 0;
    for (std::size_t p = 0; p < first; ++p) step_ += phases_[p].steps;
    dual_.clear();
    make_optimiser();
    return status;
  }

 private:
  using Array = typename Parameter<Scalar>::Array;
  struct Dual {
    Array projection, scaled;  ///< Z and U of ADMM
  };

  [[nodiscard]] int level_count() const noexcept { return static_cast<int>(recipe_.levels.size()); }
  [[nodiscard]] std::size_t first_sparse_phase() const noexcept {
    std::size_t p = 0;
    while (p < phases_.size() && phases_[p].kind == Phase::Kind::dense) ++p;
    return p;
  }

  /// Whether the network has its levels by now.
  [[nodiscard]] bool in_sparse_phase() const noexcept {
    const std::size_t first = first_sparse_phase();
    return !recipe_.levels.empty() && (phase_ > first || (phase_ == first && phase_step_ > 0));
  }
  [[nodiscard]] bool has_teacher() const noexcept {
    const std::size_t first = first_sparse_phase();
    return in_sparse_phase() || (!recipe_.levels.empty() && phase_ == first && first > 0);
  }

  [[nodiscard]] double passes_per_step(const Phase& phase) const {
    return train::passes_per_step(recipe_, phase.kind, stages_ > 0);
  }

  [[nodiscard]] std::string fingerprint() const {
    std::string text = std::string(Network::architecture);
    auto config = network_.config();
    config.visit([&](const char* name, auto& value) {
      text += ", " + std::string(name) + " " + strata::detail::number_text(value);
    });
    recipe_.visit(
        [&](const std::string& name, double value) { text += ", " + name + " " + strata::detail::number_text(value); });
    // The rates of a dense phase that is a part of one cosine depend on the steps behind it.
    if (recipe_.one_cosine) text += ", steps " + std::to_string(steps_);
    return text + ", " + task_.fingerprint() + start_;
  }

  /// Tells the weights apart from which a run without a dense phase starts.
  [[nodiscard]] std::string start_text() {
    Fingerprint hash;
    for (const Parameter<Scalar>* parameter : parameters<Scalar>(network_))
      hash.add_bytes(parameter->value.data(), static_cast<std::size_t>(parameter->value.size()) * sizeof(Scalar));
    return ", start " + hash.text();
  }

  /// A fingerprint's entries, "name number" most of them.
  [[nodiscard]] static std::vector<std::string> entries(const std::string& fingerprint) {
    std::vector<std::string> all;
    for (std::size_t begin = 0; begin < fingerprint.size();) {
      const std::size_t end = std::min(fingerprint.find(", ", begin), fingerprint.size());
      all.push_back(fingerprint.substr(begin, end - begin));
      begin = end + 2;
    }
    return all;
  }

  /// What two fingerprints do not have in common.
  [[nodiscard]] static Error another_run(const char* which, const std::string& wanted, const std::string& found) {
    const auto only_in = [&](const std::string& one, const std::string& other) {
      const std::vector<std::string> others = entries(other);
      std::string text;
      for (const std::string& entry : entries(one))
        if (std::find(others.begin(), others.end(), entry) == others.end()) text += (text.empty() ? "" : ", ") + entry;
      return text.empty() ? std::string("no more") : text;
    };
    return {"checkpoint", std::string("one ") + which + ", that is with " + only_in(wanted, found),
            "one with " + only_in(found, wanted)};
  }

  /// The part of a fingerprint that the dense phase depends on. Its length and that of the warm-up are told in steps,
  /// so that epochs that were computed in another way (0.3 of 36 or 0.6 of 18) agree.
  [[nodiscard]] std::string dense_part(const std::string& fingerprint) const {
    std::string part;
    for (std::string& entry : entries(fingerprint)) {
      const std::string name = entry.substr(0, entry.find(' '));
      double epochs = 0;
      if ((name == "dense_epochs" || name == "warm_up_epochs") &&
          std::from_chars(entry.data() + name.size() + 1, entry.data() + entry.size(), epochs).ec == std::errc())
        entry = name + " in steps " + std::to_string(std::llround(epochs * static_cast<double>(steps_per_epoch_)));
      if (!Recipe::concerns_levels_only(name)) part += (part.empty() ? "" : ", ") + entry;
    }
    return part;
  }

  /// Fills `array` from the array of that name, unless `status` is an error already.
  template <class AnyArray>
  void read_array(const Archive& archive, const std::string& name, AnyArray&& array, Status& status) {
    using T = typename std::remove_cvref_t<AnyArray>::value_type;
    if (!status) return;
    const ArrayView* stored = archive.find(name);
    const bool flexible = name.ends_with(".strata");  // empty before pruning
    if (stored == nullptr || stored->type != data_type_of<T>() ||
        (!flexible && stored->size() != static_cast<index_t>(array.size())) ||
        (flexible && stored->size() != 0 && stored->size() != strata_size_)) {
      status = Error("checkpoint " + name, std::to_string(array.size()) + " entries",
                     stored == nullptr ? "none" : std::to_string(stored->size()));
      return;
    }
    if constexpr (requires { array.resize(std::size_t{0}); }) array.resize(static_cast<std::size_t>(stored->size()));
    const auto values = stored->template as<T>();
    std::copy(values.begin(), values.end(), array.data());
  }

  /// Calls `f(name, array)` for every array of `network`, names behind `prefix`.
  template <class F>
  void visit_network(const std::string& prefix, Network& network, F&& f) {
    for_each_layer(network, [&](const std::string& name, const std::string& norm_name, auto& layer) {
      if constexpr (std::remove_cvref_t<decltype(layer)>::has_parameters) {
        layer.for_each_parameter(name, norm_name, [&](Parameter<Scalar>& parameter) {
          f(prefix + parameter.name, ArrayRef{parameter.value});
          strata_size_ = parameter.value.size();
          if (parameter.levelled || is_budgeted(parameter)) f(prefix + parameter.name + ".strata", parameter.strata);
        });
        for (std::size_t level = 0; level < layer.norms().size(); ++level) {
          const std::string suffix = "." + std::to_string(level);
          f(prefix + norm_name + ".running_mean" + suffix, ArrayRef{layer.norms()[level].running_mean});
          f(prefix + norm_name + ".running_var" + suffix, ArrayRef{layer.norms()[level].running_variance});
        }
      }
    });
  }

  /// Calls `f(name, array)` for every array of the state. Arrays have size(), data() and value_type.
  template <class F>
  void visit_state(F&& f) {
    visit_network("", network_, f);
    if (teacher_) visit_network("dense.", *teacher_, f);
    for (std::size_t l = 0; l < dual_.size(); ++l) {
      f("admm.projection." + std::to_string(l), ArrayRef{dual_[l].projection});
      f("admm.scaled." + std::to_string(l), ArrayRef{dual_[l].scaled});
    }
    visit_optimiser([&](const std::string& name, Array& array) { f(name, ArrayRef{array}); });
  }

  /// Calls `f(name, array)` for every array of the optimiser. It has none that matter before a phase's first step.
  template <class F>
  void visit_optimiser(F&& f) {
    std::visit(
        [&](auto& optimiser) {
          if (!optimiser || phase_step_ == 0) return;
          optimiser->visit_state([&](const std::string& name, auto& arrays) {
            for (std::size_t p = 0; p < arrays.size(); ++p) f("optimiser." + name + "." + std::to_string(p), arrays[p]);
          });
        },
        optimiser_);
  }

  /// An Eigen array of fixed size in the form that `visit_state` passes.
  struct ArrayRef {
    using value_type = Scalar;
    Array& array;
    [[nodiscard]] index_t size() const { return array.size(); }
    [[nodiscard]] Scalar* data() const { return array.data(); }
  };

  void make_optimiser() {
    const auto all = parameters<Scalar>(network_);
    if (recipe_.adamw) {
      auto adam = std::make_unique<AdamW<Scalar>>(
          all, typename AdamW<Scalar>::Options{.decay = recipe_.decay, .decoupled = !recipe_.coupled_decay});
      adam->set_steps(phase_step_);
      optimiser_ = std::move(adam);
    } else {
      optimiser_ = std::make_unique<Sgd<Scalar>>(
          all, typename Sgd<Scalar>::Options{.momentum = recipe_.momentum, .decay = recipe_.decay, .nesterov = true});
    }
  }

  /// The levelled weights in the order of the layers, with the scales of the dense model once there is one.
  [[nodiscard]] std::vector<PrunableLayer<Scalar>> prunable() {
    std::vector<PrunableLayer<Scalar>> layers;
    const auto all = parameters<Scalar>(network_);
    std::vector<Parameter<Scalar>*> dense;
    if (teacher_) dense = parameters<Scalar>(*teacher_);
    const auto is_weight = [](const Parameter<Scalar>& parameter) { return is_budgeted(parameter); };
    std::size_t at = 0;  // norms differ in number between the two networks, weights do not
    for (auto* parameter : all) {
      if (!is_weight(*parameter)) continue;
      while (at < dense.size() && !is_weight(*dense[at])) ++at;
      PrunableLayer<Scalar> layer{parameter, weight_scale(at < dense.size() ? *dense[at] : *parameter), recipe_.floor};
      ++at;
      for (const auto& [name, density] : recipe_.floors)
        if (name == parameter->name) layer.floor = density;
      layers.push_back(layer);
    }
    return layers;
  }

  /// Keeps the network as the dense model.
  void keep_teacher() {
    if (recipe_.levels.empty()) return;
    teacher_.emplace(network_);
    forget_levels(*teacher_);
  }

  /// Makes a network with levels one without: its fullest level, whose absent weights are zeros.
  static void forget_levels(Network& network) {
    for_each_layer(network, [](const std::string& name, const std::string& norm_name, auto& layer) {
      if constexpr (std::remove_cvref_t<decltype(layer)>::has_parameters) {
        layer.for_each_parameter(name, norm_name, [](Parameter<Scalar>& parameter) { parameter.strata.clear(); });
        if (!layer.norms().empty()) layer.norms().front() = layer.norms().back();
        layer.set_levels(1);
      }
    });
  }

  void prepare_duals() {
    dual_.clear();
    if (done() || phases_[phase_].kind != Phase::Kind::admm || phase_step_ == 0) return;
    for (const auto& layer : prunable())
      dual_.push_back({Array::Zero(layer.weight->value.size()), Array::Zero(layer.weight->value.size())});
  }

  void begin(const Phase& phase) {
    if (phase.kind == Phase::Kind::dense) {
      forget_levels(network_);
    } else {
      if (!teacher_) keep_teacher();  // a run without a dense phase starts from the network as it is
      set_levels(network_, level_count());
    }
    dual_.clear();
    if (phase.kind == Phase::Kind::admm) {
      // What is not frozen starts again from the dense model.
      auto dense = parameters<Scalar>(*teacher_);
      std::erase_if(dense, [](const auto* parameter) { return !is_budgeted(*parameter); });
      const auto layers = prunable();
      for (std::size_t l = 0; l < layers.size(); ++l) {
        Parameter<Scalar>& weight = *layers[l].weight;
        if (weight.strata.empty())
          weight.strata.assign(static_cast<std::size_t>(weight.value.size()), StratumMap::absent);
        for (std::size_t i = 0; i < weight.strata.size(); ++i) {
          if (weight.strata[i] < phase.level) continue;
          weight.strata[i] = static_cast<std::uint8_t>(phase.level);
          weight.value[static_cast<index_t>(i)] = dense[l]->value[static_cast<index_t>(i)];
        }
        dual_.push_back({weight.value, Array::Zero(weight.value.size())});
      }
      project(phase.level, false);
    }
    make_optimiser();
  }

  void load_batch(std::int64_t step, bool levels) {
    const std::int64_t epoch = step / steps_per_epoch_;
    if (epoch != epoch_) {
      // A task may have reasons for an order of its own, such as batches of samples of one size.
      if constexpr (requires { task_.order(recipe_.seed, std::uint64_t{0}, recipe_.batch); }) {
        order_ = task_.order(recipe_.seed, static_cast<std::uint64_t>(epoch), recipe_.batch);
        if (static_cast<index_t>(order_.size()) != task_.size())
          raise(Error({"the task's order"}, {"all of its ", task_.size(), " samples"}, {order_.size()}));
      } else {
        order_ = shuffled(task_.size(), recipe_.seed, static_cast<std::uint64_t>(epoch));
      }
      epoch_ = epoch;
    }
    const auto first = static_cast<std::size_t>((step % steps_per_epoch_) * recipe_.batch);
    const std::size_t count = std::min(order_.size() - first, static_cast<std::size_t>(recipe_.batch));
    detail::load_samples(task_, {order_.data() + first, count}, seed_of(step, 1), levels);
  }

  [[nodiscard]] std::uint64_t seed_of(std::int64_t step, std::uint64_t purpose) const noexcept {
    return (recipe_.seed * 0x9E3779B97F4A7C15U) ^ (static_cast<std::uint64_t>(step) * 8 + purpose);
  }

  /// Runs this step's paths forwards and backwards; the mean of their losses.
  double gradients(const Phase& phase) {
    std::span<const Scalar> teacher;
    if (phase.kind != Phase::Kind::dense && recipe_.distillation > 0) {
      context_.training = false;
      context_.begin(Level{0});
      const auto logits = task_.run(*teacher_, context_);
      context_.training = true;
      teacher_logits_ = logits.value();
      teacher = {teacher_logits_.data(), static_cast<std::size_t>(teacher_logits_.size())};
    }
    struct Path {
      Level from;
      int drop_at = -1;
      Level to;
    };
    std::vector<Path> paths;
    const int top = level_count() - 1;
    const bool joint = phase.kind == Phase::Kind::prune || phase.kind == Phase::Kind::fixed;
    std::mt19937_64 random(seed_of(step_, 2));
    if (joint) {
      paths.push_back({Level{top}, -1, {}});
      if (top > 0) paths.push_back({Level{0}, -1, {}});
      for (int i = 0; top > 0 && i < recipe_.random_paths; ++i) {
        // From any level but the lowest to any below it, at any stage or (a plain level) not at all.
        const int from = 1 + static_cast<int>(random() % static_cast<std::uint64_t>(top));
        const int to = static_cast<int>(random() % static_cast<std::uint64_t>(from));
        const auto at = static_cast<int>(random() % static_cast<std::uint64_t>(stages_ + 1));
        paths.push_back({Level{from}, at < stages_ ? at : -1, Level{to}});
      }
    } else {
      paths.push_back({Level{phase.level}, -1, {}});
      const int switches = phase.kind == Phase::Kind::tune && stages_ > 0 ? recipe_.tune_paths : 0;
      for (int i = 0; i < switches; ++i) {
        const auto at = static_cast<int>(random() % static_cast<std::uint64_t>(stages_));
        paths.push_back({Level{top}, at, Level{static_cast<int>(random() % static_cast<std::uint64_t>(top))}});
      }
    }
    if (recipe_.paths_in_turn)
      paths = {paths[static_cast<std::size_t>(phase_step_ % static_cast<std::int64_t>(paths.size()))]};
    context_.keep_norms_below = phase.kind == Phase::Kind::tune ? phase.level : 0;
    context_.dropout_factors.clear();
    if (phase.kind != Phase::Kind::dense) context_.dropout_factors = recipe_.dropout_factors;
    const double weight = 1.0 / static_cast<double>(paths.size());
    const bool in_place = recipe_.in_place_distillation > 0 && paths.size() > 1;
    double sum = 0;
    for (std::size_t p = 0; p < paths.size(); ++p) {
      context_.drop_at_stage = paths[p].drop_at;
      context_.drop_to = paths[p].to;
      context_.begin(paths[p].from);
      const auto output = task_.run(network_, context_);
      if (in_place && p > 0) {
        sum += task_.loss(output, {top_logits_.data(), static_cast<std::size_t>(top_logits_.size())},
                          recipe_.in_place_distillation, recipe_.temperature, weight);
      } else {
        if (in_place) top_logits_ = output.value();
        sum += task_.loss(output, teacher, recipe_.distillation, recipe_.temperature, weight);
      }
      context_.backward();
    }
    context_.drop_at_stage = -1;
    context_.keep_norms_below = 0;
    return sum;
  }

  /// Gradual pruning: densities fall to the budgets with the cube of the share that is left (arXiv 1710.01878).
  void prune(const Phase& phase) {
    // The target is reached after four fifths of the phase; the rest heals.
    const double share =
        phase_step_ == phase.steps
            ? 1.0
            : std::min(1.0, static_cast<double>(phase_step_) / (0.8 * static_cast<double>(phase.steps)));
    const double rest = (1 - share) * (1 - share) * (1 - share);
    std::vector<LevelBudget> budgets = recipe_.levels;
    for (LevelBudget& budget : budgets) {
      budget.weights += (1 - budget.weights) * rest;
      budget.flops += (1 - budget.flops) * rest;
    }
    (void)allocate(prunable(), budgets).value();
  }

  void add_penalty(int level) {
    const auto layers = prunable();
    const auto rho = static_cast<Scalar>(recipe_.penalty);
    for (std::size_t l = 0; l < layers.size(); ++l) {
      Parameter<Scalar>& weight = *layers[l].weight;
      for (index_t i = 0; i < weight.value.size(); ++i)
        if (weight.strata[static_cast<std::size_t>(i)] >= level)
          weight.gradient[i] += rho * (weight.value[i] - dual_[l].projection[i] + dual_[l].scaled[i]);
    }
  }

  /// ADMM: Z = projection of W + U on the level's budget around the frozen strata, U += W - Z. `hard`: W becomes its
  /// own projection and the level's mask is fixed.
  void project(int level, bool hard) {
    auto layers = prunable();
    std::vector<Array> sums;
    for (std::size_t l = 0; l < layers.size(); ++l)
      sums.push_back(hard ? layers[l].weight->value : Array(layers[l].weight->value + dual_[l].scaled));
    for (std::size_t l = 0; l < layers.size(); ++l) layers[l].scores = &sums[l];
    const auto kept = std::move(choose_level(layers, recipe_.levels[static_cast<std::size_t>(level)], level)).value();
    for (std::size_t l = 0; l < layers.size(); ++l) {
      Parameter<Scalar>& weight = *layers[l].weight;
      for (std::size_t i = 0; i < kept[l].size(); ++i) {
        const auto at = static_cast<index_t>(i);
        dual_[l].projection[at] = kept[l][i] ? sums[l][at] : Scalar{0};
        if (hard && !kept[l][i]) weight.strata[i] = StratumMap::absent;
      }
      dual_[l].scaled += weight.value - dual_[l].projection;
      if (hard) detail::clear_absent(weight);
    }
  }

  /// Batch-norm statistics of every level as means over batches of the final weights.
  void recalibrate() {
    train::recalibrate(context_, levels(), recipe_.recalibration_batches, [&](index_t batch) {
      load_batch(batch % steps_per_epoch_, level_count() > 0);
      (void)task_.run(network_, context_);
    });
  }

  Network& network_;
  Task& task_;
  Recipe recipe_;
  Context<Scalar> context_;
  std::int64_t steps_per_epoch_ = 1;
  std::vector<Phase> phases_;
  std::int64_t steps_ = 0;
  int stages_ = 0;

  std::size_t phase_ = 0;
  std::int64_t phase_step_ = 0;
  std::int64_t step_ = 0;
  std::optional<Network> teacher_;
  std::vector<Dual> dual_;
  std::variant<std::unique_ptr<Sgd<Scalar>>, std::unique_ptr<AdamW<Scalar>>> optimiser_;

  std::int64_t epoch_ = -1;
  std::vector<std::uint32_t> order_;
  Array teacher_logits_;
  Array top_logits_;  ///< of this step's path at the top level, for in-place distillation
  index_t strata_size_ = 0;
  std::string start_;  ///< of the fingerprint of a run without a dense phase
};

struct FitOptions {
  std::function<void(const Progress&)> progress{};  ///< called after every step
  /// File to save the run to; empty: none. A checkpoint that is there, of whatever run, is replaced unless `resume`.
  std::string checkpoint{};
  double checkpoint_seconds = 30;  ///< between two saves
  bool resume = false;             ///< go on from `checkpoint` if that file exists
};

/// What a run gave.
template <class Network>
struct FitReport {
  std::optional<Network> dense;  ///< the dense model; empty for a recipe without levels
  int levels = 1;
  double seconds = 0;  ///< of this call
};

/// Raises if a run that is about to begin could not save itself to `path`, a directory that is not there, or, unless it
/// is to `resume`, would replace something else there than a checkpoint.
STRATA_COLD inline void check_checkpoint_path(const std::string& path, bool resume) {
  std::error_code unknown;
  if (const auto directory = std::filesystem::path(path).parent_path(); !directory.empty())
    if (!std::filesystem::is_directory(directory, unknown))
      raise(Error(path, "a file in a directory that exists", "none"));
  if (resume || !std::filesystem::exists(path, unknown)) return;
  const Result<Archive> held = io::read_model(path);
  if (!held || held.value().metadata().count("checkpoint") == 0)
    raise(Error(path, "no file, or a training checkpoint, which would be replaced", "another file"));
}

/// Trains `network` by `recipe`. Raises, before any work: what the constructor of `Trainer` refuses, a checkpoint of
/// another run that is to be resumed, what `check_checkpoint_path` refuses; later: a loss that is not finite, a
/// checkpoint that cannot be written.
template <class Network, class Task>
FitReport<Network> fit(Network& network, Task& task, const Recipe& recipe, Executor& executor,
                       const FitOptions& options = {}) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const auto since = [](Clock::time_point then) { return std::chrono::duration<double>(Clock::now() - then).count(); };
  Trainer<Network, Task> trainer(network, task, recipe, executor);
  if (!options.checkpoint.empty()) check_checkpoint_path(options.checkpoint, options.resume);
  if (options.resume && !options.checkpoint.empty()) {
    std::error_code unknown;  // such as a directory that may not be searched: the error is that of reading
    if (std::filesystem::exists(options.checkpoint, unknown) || unknown) {
      const Archive archive = std::move(io::read_model(options.checkpoint)).value();
      if (Status status = trainer.restore(archive); !status) raise(status.error().within(options.checkpoint));
    }
  }
  auto saved = Clock::now();
  double passes = 0;
  const std::int64_t first = trainer.steps_done();
  while (!trainer.done()) {
    Progress progress;
    progress.phase = trainer.phase_name();
    passes += trainer.passes_of_step();
    progress.loss = trainer.step();
    if (options.progress) {
      progress.step = trainer.steps_done();
      progress.steps = trainer.steps();
      progress.seconds = since(start);
      progress.seconds_left = progress.seconds / passes * trainer.passes_left();
      progress.samples_per_second = static_cast<double>((progress.step - first) * recipe.batch) / progress.seconds;
      options.progress(progress);
    }
    if (!options.checkpoint.empty() && (trainer.done() || since(saved) >= options.checkpoint_seconds)) {
      (void)io::write_model(trainer.state(), options.checkpoint).value();
      saved = Clock::now();
    }
  }
  FitReport<Network> report;
  if (trainer.dense() != nullptr) report.dense = *trainer.dense();
  report.levels = trainer.levels();
  report.seconds = since(start);
  return report;
}

}  // namespace strata::train
