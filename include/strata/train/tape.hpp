// The tape of reverse-mode differentiation: values of a forward pass, channels last or in lanes (train/lanes.hpp), and
// what to do with their gradients on the way back. The operations are in train/operations.hpp.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <strata/core/executor.hpp>
#include <strata/core/types.hpp>
#include <strata/train/lanes.hpp>

namespace strata::train {

/// Buffers of past steps, by size, so that a step does not ask the system for memory again.
template <class Scalar>
class BufferPool {
 public:
  using Array = Eigen::Array<Scalar, Eigen::Dynamic, 1>;

  [[nodiscard]] Array take(index_t size) {
    const std::lock_guard lock(mutex_);
    used_ += size;
    most_used_ = std::max(most_used_, used_);
    auto& free = free_[size];
    if (free.empty()) {
      // Batches of many sizes, such as sentences of all lengths, must not pile up what each of them once needed.
      if (free_elements_ > most_used_) {
        free_.clear();
        free_elements_ = 0;
      }
      return Array(size);
    }
    Array buffer = std::move(free.back());
    free.pop_back();
    free_elements_ -= size;
    return buffer;
  }
  void give_back(Array&& buffer) {
    if (buffer.size() == 0) return;
    const std::lock_guard lock(mutex_);
    used_ -= buffer.size();
    free_elements_ += buffer.size();
    free_[buffer.size()].push_back(std::move(buffer));
  }

 private:
  std::mutex mutex_;
  index_t used_ = 0;       ///< elements of the buffers that are out
  index_t most_used_ = 0;  ///< at a time
  index_t free_elements_ = 0;
  std::map<index_t, std::vector<Array>> free_;
};

/// What tensors of a tape share: buffers of its numbers and of those kept as bfloat16, and the threads.
template <class Scalar>
class TapeResources {
 public:
  /// Reductions over the batch are cut into this many parts whatever the number of threads, and added up in order: the
  /// results are the same bits on any number of threads.
  static constexpr index_t parts = 8;

  explicit TapeResources(Executor& executor) noexcept : executor_(&executor) {}

  template <class Stored>
  [[nodiscard]] BufferPool<Stored>& pool() noexcept {
    if constexpr (std::is_same_v<Stored, Scalar>) {
      return whole_;
    } else {
      return half_;
    }
  }

  /// Runs tasks 0 .. count-1, side by side unless the caller is such a task itself. What one of them raises is raised
  /// when all have ended.
  void parallel_for(index_t count, TaskRef task) {
    if (executor_ == nullptr || in_tasks_) {
      for (index_t i = 0; i < count; ++i) task(i);
      return;
    }
    in_tasks_ = true;
#if defined(__cpp_exceptions)
    std::exception_ptr raised;
    std::mutex mutex;
    executor_->parallel_for(count, [&](index_t i) {
      try {
        task(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        raised = std::current_exception();
      }
    });
    in_tasks_ = false;
    if (raised) std::rethrow_exception(raised);
#else
    executor_->parallel_for(count, task);
    in_tasks_ = false;
#endif
  }
  /// Calls `f(part, first, last)` for `parts` fixed ranges of 0 .. count-1, side by side.
  template <class F>
  void for_parts(index_t count, F&& f) {
    parallel_for(parts, [&](index_t part) {
      const index_t first = part * count / parts;
      const index_t last = (part + 1) * count / parts;
      if (first < last) f(part, first, last);
    });
  }
  /// For tensors that outlive it.
  void forget_executor() noexcept {
    executor_ = nullptr;
  }

 private:
  BufferPool<Scalar> whole_;
  BufferPool<kernels::bfloat16> half_;
  Executor* executor_;
  bool in_tasks_ = false;  ///< written by the thread that starts tasks, while there are none
};

/// Numbers of half the size from a tape's pool, which has them back when this is gone. Empty: no numbers.
class HalfBuffer {
 public:
  using Pool = BufferPool<kernels::bfloat16>;

  HalfBuffer() = default;
  HalfBuffer(std::shared_ptr<Pool> pool, index_t size) : pool_(std::move(pool)), numbers_(pool_->take(size)) {}
  HalfBuffer(HalfBuffer&& other) noexcept { swap(other); }
  HalfBuffer& operator=(HalfBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~HalfBuffer() {
    if (pool_) pool_->give_back(std::move(numbers_));
  }

  /// Null if empty.
  [[nodiscard]] kernels::bfloat16* data() noexcept { return numbers_.data(); }
  [[nodiscard]] const kernels::bfloat16* data() const noexcept { return numbers_.data(); }

 private:
  void swap(HalfBuffer& other) noexcept {
    std::swap(pool_, other.pool_);
    numbers_.swap(other.numbers_);
  }

  std::shared_ptr<Pool> pool_;
  Pool::Array numbers_;
};

/// How the value of a tensor is written first. `half_lanes`: in lanes, rounded to bfloat16.
enum class Layout : std::uint8_t { channels_last, lanes, half_lanes };

/// A batch of activations [batch][height][width][channels] on the tape. A handle: copies share the value.
///
/// Convolutions and what goes with them keep values and gradients in lanes (train/lanes.hpp), with
/// `Context::bfloat16` as numbers of half the size; whoever asks for another layout or storage gets a copy, so that
/// operations need not know which one the tensor was made in. A value is written once, before another operation reads
/// it. Of the gradient there is one layout at a time, the one asked for last.
template <class Scalar>
class Tensor {
 public:
  using Array = typename BufferPool<Scalar>::Array;
  using Matrix = Eigen::Map<Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>>;
  using Half = kernels::bfloat16;

  /// A gradient in lanes: to be added to, or to be written if nothing has been added yet.
  template <class Stored = Scalar>
  struct LaneGradient {
    Stored* data = nullptr;
    bool fresh = true;  ///< uninitialised: every element has to be written
  };

  Tensor() = default;
  /// Precondition of layouts in lanes: `fits_lanes(batch)`.
  Tensor(std::shared_ptr<TapeResources<Scalar>> resources, index_t batch, Shape shape, bool needs_gradient,
         Layout layout = Layout::channels_last)
      : node_(std::make_shared<Node>()) {
    node_->resources = std::move(resources);
    node_->batch = batch;
    node_->shape = shape;
    node_->needs_gradient = needs_gradient;
    node_->has_value = layout == Layout::channels_last;
    if (layout == Layout::half_lanes) {
      take(node_->half_lanes);
    } else {
      take(layout == Layout::lanes ? node_->lanes : node_->value);
    }
  }

  [[nodiscard]] static bool fits_lanes(index_t batch) noexcept { return batch > 0 && batch % lanes_of<Scalar> == 0; }

  [[nodiscard]] index_t batch() const noexcept { return node_->batch; }
  [[nodiscard]] Shape shape() const noexcept { return node_->shape; }
  [[nodiscard]] index_t pixels() const noexcept { return node_->batch * node_->shape.height * node_->shape.width; }
  [[nodiscard]] bool needs_gradient() const noexcept { return node_->needs_gradient; }
  [[nodiscard]] LaneLayout lane_layout() const noexcept { return {lanes_of<Scalar>, node_->batch, node_->shape}; }
  /// Whether the value is there in this layout already.
  [[nodiscard]] bool has(Layout layout) const noexcept {
    if (layout == Layout::half_lanes) return node_->half_lanes.size() > 0;
    return layout == Layout::lanes ? node_->lanes.size() > 0 : node_->has_value.load(std::memory_order_acquire);
  }
  [[nodiscard]] bool in_lanes() const noexcept { return has(Layout::lanes) || has(Layout::half_lanes); }

  /// Channels last. May be asked for by several threads at a time.
  [[nodiscard]] Array& value() const {
    if (!has(Layout::channels_last)) {
      const std::lock_guard lock(node_->mutex);
      if (!has(Layout::channels_last)) {
        take(node_->value);
        if (has(Layout::lanes)) {
          leave_lanes(node_->lanes, node_->value);
        } else {
          leave_lanes(node_->half_lanes, node_->value);
        }
        node_->has_value.store(true, std::memory_order_release);
      }
    }
    return node_->value;
  }
  /// channels x pixels.
  [[nodiscard]] Matrix matrix() const { return {value().data(), node_->shape.channels, pixels()}; }
  /// The value in lanes, as it is or as bfloat16. Not for several threads at a time. Precondition:
  /// `fits_lanes(batch())`.
  template <class Stored = Scalar>
  [[nodiscard]] Stored* lanes() const {
    auto& mine = of<Stored>(node_->lanes, node_->half_lanes);
    const auto& other = of<Other<Stored>>(node_->lanes, node_->half_lanes);
    if (mine.size() == 0) {
      take(mine);
      if (other.size() > 0) {
        copy(other, mine);
      } else {
        enter_lanes(node_->value, mine);
      }
    }
    return mine.data();
  }

  /// The gradient, channels last, zero when first asked for. Not for several threads at a time.
  [[nodiscard]] Array& gradient() const {
    Node& node = *node_;
    if (node.gradient.size() > 0) return node.gradient;
    take(node.gradient);
    if (node.lane_gradient.size() > 0) {
      leave_lanes(node.lane_gradient, node.gradient);
      give_back(node.lane_gradient);
    } else if (node.half_gradient.size() > 0) {
      leave_lanes(node.half_gradient, node.gradient);
      give_back(node.half_gradient);
    } else {
      for_ranges(node.gradient.size(),
                 [&](index_t first, index_t last) { node.gradient.segment(first, last - first).setZero(); });
    }
    return node.gradient;
  }
  [[nodiscard]] Matrix gradient_matrix() const { return {gradient().data(), node_->shape.channels, pixels()}; }
  /// The gradient in lanes, as it is or as bfloat16. Not for several threads at a time. Precondition:
  /// `fits_lanes(batch())`.
  template <class Stored = Scalar>
  [[nodiscard]] LaneGradient<Stored> lane_gradient() const {
    Node& node = *node_;
    auto& mine = of<Stored>(node.lane_gradient, node.half_gradient);
    auto& other = of<Other<Stored>>(node.lane_gradient, node.half_gradient);
    const bool fresh = !has_gradient();
    if (mine.size() > 0) return {mine.data(), fresh};
    take(mine);
    if (node.gradient.size() > 0) {
      enter_lanes(node.gradient, mine);
      give_back(node.gradient);
    } else if (other.size() > 0) {
      copy(other, mine);
      give_back(other);
    }
    return {mine.data(), fresh};
  }
  /// The gradient in lanes as it is, zero if nothing has been added.
  template <class Stored = Scalar>
  [[nodiscard]] Stored* whole_lane_gradient() const {
    const auto gradient = lane_gradient<Stored>();
    if (gradient.fresh)
      for_ranges(batch() * shape().size(), [&](index_t first, index_t last) {
        std::fill(gradient.data + first, gradient.data + last, Stored{0});
      });
    return gradient.data;
  }
  /// Takes the buffer of `from`'s gradient in lanes, of the same size and storage, which `from` no longer needs, for
  /// its own gradient, if nothing has been added to that yet.
  template <class Stored = Scalar>
  [[nodiscard]] LaneGradient<Stored> take_lane_gradient(const Tensor& from) const {
    if (has_gradient()) return lane_gradient<Stored>();
    auto& mine = of<Stored>(node_->lane_gradient, node_->half_gradient);
    mine = std::exchange(of<Stored>(from.node_->lane_gradient, from.node_->half_gradient),
                         std::remove_cvref_t<decltype(mine)>());
    return {mine.data(), true};
  }

 private:
  using HalfArray = typename BufferPool<Half>::Array;
  template <class Stored>
  using Other = std::conditional_t<std::is_same_v<Stored, Scalar>, Half, Scalar>;

  struct Node {
    std::shared_ptr<TapeResources<Scalar>> resources;
    index_t batch = 0;
    Shape shape;
    bool needs_gradient = false;
    std::atomic<bool> has_value = false;  ///< channels last
    std::mutex mutex;                     ///< of making the value channels last
    Array value, lanes;
    HalfArray half_lanes;
    Array gradient, lane_gradient;
    HalfArray half_gradient;

    Node() = default;
    Node(const Node&) = delete;
    Node& operator=(const Node&) = delete;
    ~Node() {
      for (Array* array : {&value, &lanes, &gradient, &lane_gradient})
        resources->template pool<Scalar>().give_back(std::move(*array));
      for (HalfArray* array : {&half_lanes, &half_gradient})
        resources->template pool<Half>().give_back(std::move(*array));
    }
  };

  [[nodiscard]] bool has_gradient() const noexcept {
    return node_->gradient.size() > 0 || node_->lane_gradient.size() > 0 || node_->half_gradient.size() > 0;
  }
  template <class Stored>
  [[nodiscard]] static auto& of(Array& whole, HalfArray& half) noexcept {
    if constexpr (std::is_same_v<Stored, Scalar>) {
      return whole;
    } else {
      return half;
    }
  }
  template <class Buffer>
  void take(Buffer& buffer) const {
    buffer = node_->resources->template pool<typename Buffer::Scalar>().take(batch() * shape().size());
  }
  template <class Buffer>
  void give_back(Buffer& buffer) const {
    node_->resources->template pool<typename Buffer::Scalar>().give_back(std::exchange(buffer, Buffer()));
  }
  /// Calls `f(first, last)` for ranges that make up 0 .. count-1, on all threads.
  template <class F>
  void for_ranges(index_t count, F&& f) const {
    node_->resources->for_parts(count, [&](index_t, index_t first, index_t last) { f(first, last); });
  }
  /// Calls `f(group of pictures, first pixel, last pixel)` for ranges that make up all of them.
  template <class F>
  void for_pixels(const LaneLayout& layout, F&& f) const {
    for_ranges(layout.groups * layout.pixels, [&](index_t first, index_t last) {
      while (first < last) {
        const index_t group = first / layout.pixels;
        const index_t end = std::min(last, (group + 1) * layout.pixels);
        f(group, first - group * layout.pixels, end - group * layout.pixels);
        first = end;
      }
    });
  }
  template <class From, class To>
  void copy(const From& from, To& to) const {
    for_ranges(from.size(), [&](index_t first, index_t last) {
      kernels::copy_stored(from.data() + first, last - first, to.data() + first);
    });
  }
  template <class Buffer>
  void enter_lanes(const Array& channels_last, Buffer& lanes) const {
    const LaneLayout layout = lane_layout();
    for_pixels(layout, [&](index_t group, index_t first, index_t last) {
      to_lanes(layout, group, first, last, channels_last.data(), lanes.data());
    });
  }
  template <class Buffer>
  void leave_lanes(const Buffer& lanes, Array& channels_last) const {
    const LaneLayout layout = lane_layout();
    for_pixels(layout, [&](index_t group, index_t first, index_t last) {
      from_lanes(layout, group, first, last, lanes.data(), channels_last.data());
    });
  }

  std::shared_ptr<Node> node_;
};

/// What a forward pass of the training family carries: level, mode, threads and the tape.
template <class Scalar>
class Context {
 public:
  static constexpr index_t parts = TapeResources<Scalar>::parts;  ///< of work; see there

  explicit Context(Executor& executor) : resources_(std::make_shared<TapeResources<Scalar>>(executor)) {}
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  ~Context() {
    backward_.clear();
    resources_->forget_executor();
  }

  Level level;                 ///< the weights that take part
  bool training = true;        ///< batch statistics, dropout and a tape; otherwise running statistics and no tape
  std::uint64_t seed = 0;      ///< of dropout
  std::uint64_t step = 0;      ///< changes dropout's choice; set it once a step
  double norm_momentum = 0.1;  ///< of running statistics
  /// Levels below it normalise by the batch's statistics as the others do, but leave their running ones as they are.
  int keep_norms_below = 0;
  /// What layers' dropout rates are multiplied with while a level takes part, by level, each in [0, 1]; 1 for levels
  /// beyond its end. Sparse levels have less to drop.
  std::vector<double> dropout_factors;
  /// Whether convolutions in lanes keep their activations, and large products with weights round their operands, as
  /// bfloat16, where the instruction set multiplies such numbers and `Scalar` is float; weights, their gradients, sums
  /// and all else stay as they are. (Mixed precision as in arXiv 1905.12322.)
  bool bfloat16 = false;
  /// Whether a weight without a name, of a layer that the network's `visit` leaves out, is an error.
  bool checking = false;

  /// A path that drops its level: at the `stage_index`-th stage of the pass the level becomes `stage_level`.
  int drop_at_stage = -1;
  Level drop_to;

  /// A point between layers at which a path may lower its level.
  void stage(std::string_view /*name*/) noexcept {
    if (stages_++ == drop_at_stage) level = drop_to;
  }
  [[nodiscard]] int stages() const noexcept { return stages_; }
  /// By how much the running statistics of the level that takes part move towards those of a batch.
  [[nodiscard]] double momentum() const noexcept { return level.index < keep_norms_below ? 0 : norm_momentum; }

  /// Forgets the tape and starts a pass.
  void begin(Level at) {
    level = at;
    stages_ = 0;
    operations_ = 0;
    backward_.clear();
    static std::atomic<std::uint64_t> passes{0};
    pass_ = passes.fetch_add(1, std::memory_order_relaxed) + 1;
  }
  /// The number of the pass among all of the program; 0 before the first one.
  [[nodiscard]] std::uint64_t pass() const noexcept { return pass_; }
  /// A layer's dropout `rate`, as it is for the level that takes part now.
  [[nodiscard]] double dropout_rate(double rate) const noexcept {
    const auto at = static_cast<std::size_t>(level.index);
    return at < dropout_factors.size() ? rate * dropout_factors[at] : rate;
  }
  /// A number for each operation of a pass, the same in every pass.
  [[nodiscard]] std::uint64_t next_operation() noexcept { return operations_++; }

  [[nodiscard]] Tensor<Scalar> make(index_t batch, Shape shape, bool needs_gradient,
                                    Layout layout = Layout::channels_last) {
    return Tensor<Scalar>(resources_, batch, shape, needs_gradient, layout);
  }
  void record(std::function<void()> backward) {
    if (training) backward_.push_back(std::move(backward));
  }
  /// Runs the tape backwards; the gradients of outputs have to be there. Parameters' gradients are added to.
  void backward() {
    while (!backward_.empty()) {
      backward_.back()();
      backward_.pop_back();
    }
  }

  /// Runs tasks 0 .. count-1 side by side. What one of them raises is raised when all have ended.
  void parallel_for(index_t count, TaskRef task) { resources_->parallel_for(count, task); }
  /// Calls `f(part, first, last)` for `parts` fixed ranges of 0 .. count-1, side by side.
  template <class F>
  void for_parts(index_t count, F&& f) {
    resources_->for_parts(count, f);
  }

  /// A buffer of at least `size` elements for one part of the work; part `parts`: one more, for what all parts share.
  [[nodiscard]] Scalar* scratch(index_t part, index_t size) {
    auto& buffer = scratch_[static_cast<std::size_t>(part)];
    if (buffer.size() < size) buffer.resize(size);
    return buffer.data();
  }

  /// As `scratch`, for numbers of half the size.
  [[nodiscard]] kernels::bfloat16* half_scratch(index_t part, index_t size) {
    auto& buffer = half_scratch_[static_cast<std::size_t>(part)];
    if (buffer.size() < size) buffer.resize(size);
    return buffer.data();
  }

  /// The same for longer than an operation's part of the work.
  [[nodiscard]] HalfBuffer half_buffer(index_t size) {
    return {std::shared_ptr<HalfBuffer::Pool>(resources_, &resources_->template pool<kernels::bfloat16>()), size};
  }

  /// What an operation derived from masks and wants to find again in the next pass, by parameter and level.
  using CacheKey = std::pair<const void*, int>;
  [[nodiscard]] std::shared_ptr<void>& cached(const CacheKey& key) { return cache_[key]; }

 private:
  std::shared_ptr<TapeResources<Scalar>> resources_;
  std::vector<std::function<void()>> backward_;
  std::array<typename BufferPool<Scalar>::Array, static_cast<std::size_t>(parts) + 1> scratch_;
  std::array<typename BufferPool<kernels::bfloat16>::Array, static_cast<std::size_t>(parts)> half_scratch_;
  std::map<CacheKey, std::shared_ptr<void>> cache_;
  int stages_ = 0;
  std::uint64_t operations_ = 0;
  std::uint64_t pass_ = 0;
};

}  // namespace strata::train
