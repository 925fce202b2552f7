// What a forward pass of the inference family carries from layer to layer: the level, the arena, the executor, and in
// the first run the shape checks.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <xsimd/xsimd.hpp>

#include <strata/core/arena.hpp>
#include <strata/core/error.hpp>
#include <strata/core/executor.hpp>
#include <strata/core/tensor.hpp>
#include <strata/core/types.hpp>
#include <strata/layers/module.hpp>
#include <strata/layers/path_choice.hpp>

namespace strata {

/// The state of one running inference. Belongs to one thread; the weights do not, so that contexts at different levels
/// may run on the same network at once.
template <class Scalar, class Arch>
class InferenceContext {
 public:
  /// Called at a stage with its name and the present level; what it returns is the level from there on.
  using StageHook = Level (*)(void* object, std::string_view stage, Level level) noexcept;

  static constexpr auto lanes = static_cast<index_t>(xsimd::batch<Scalar, Arch>::size);

  explicit InferenceContext(Executor& executor) : executor_(executor) {}

  [[nodiscard]] Level level() const noexcept { return level_; }
  /// The last switch of level: layers that have statistics for it use them (`transition_name`).
  [[nodiscard]] const LevelSwitch& last_switch() const noexcept { return last_switch_; }
  void set_level(Level level) noexcept {
    level_ = level;
    last_switch_ = {level, 0};
  }
  [[nodiscard]] Arena& arena() noexcept { return arena_; }
  [[nodiscard]] Executor& executor() noexcept { return executor_; }

  /// A point between layers at which the level may change.
  void stage(std::string_view name) noexcept {
    if (hook_ == nullptr) return;
    const Level before = std::exchange(level_, hook_(hook_object_, name, level_));
    if (level_ == before) {
      ++last_switch_.stages;
    } else {
      last_switch_ = {before, 0};
    }
  }
  void set_stage_hook(StageHook hook, void* object) noexcept {
    hook_ = hook;
    hook_object_ = object;
  }

  /// An uninitialised tensor of `batch` x `shape`. Raises in the checking run: more than `max_elements`.
  [[nodiscard]] Tensor<Scalar> make(index_t batch, Shape shape) {
    if (checking_) require_array_size(batch, shape);
    return Tensor<Scalar>(arena_, TileLayout::make(batch, shape, lanes));
  }

  /// In the checking run layers compare shapes, which later runs need not: they are the same.
  [[nodiscard]] bool checking() const noexcept { return checking_; }
  void set_checking(bool checking) noexcept { checking_ = checking; }
  [[nodiscard]] const std::optional<Error>& error() const noexcept { return error_; }

  /// Set for a run in which layers choose between their sparse and their dense path.
  [[nodiscard]] PathChooser* path_chooser() const noexcept { return path_chooser_; }
  void set_path_chooser(PathChooser* chooser) noexcept { path_chooser_ = chooser; }

  /// False, and the first such error is kept, if the run is a checking one and `ok` does not hold or did not before.
  template <class Describe>
  [[nodiscard]] bool check(bool ok, Describe&& describe) {
    if (!checking_) return true;
    if (!ok && !error_) error_ = describe();
    return !error_;
  }

 private:
  STRATA_COLD static void require_array_size(index_t batch, Shape shape) {
    if (!is_array_size({batch, shape.channels, shape.height, shape.width}))
      raise(Error({"activations"}, {"at most ", max_elements, " numbers"}, {batch, " x ", detail::text(shape)}));
  }

  Level level_;
  LevelSwitch last_switch_;
  Arena arena_;
  Executor& executor_;
  StageHook hook_ = nullptr;
  void* hook_object_ = nullptr;
  PathChooser* path_chooser_ = nullptr;
  bool checking_ = false;
  std::optional<Error> error_;
};

}  // namespace strata
