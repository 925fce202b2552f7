// The tape of reverse-mode differentiation: values of a forward pass, channels last or in lanes (train/lanes.hpp), and
// what to do with their gradients on the way back. The operations are in train/operations.hpp.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string_view>
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
    auto& free = free_[size];
    if (free.empty()) {
      // Batches of many sizes, such as sentences of all lengths, must not pile up what each of them once needed.
      if (free_elements_ > most_free_elements) {
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
    free_elements_ += buffer.size();
    free_[buffer.size()].push_back(std::move(buffer));
  }

 private:
  std::mutex mutex_;
  static constexpr index_t most_free_elements = (index_t{1} << 30) / static_cast<index_t>(sizeof(Scalar));

  index_t free_elements_ = 0;
  std::map<index_t, std::vector<Array>> free_;
};

/// How the value of a tensor is written first.
enum class Layout : std::uint8_t { channels_last, lanes };

/// A batch of activations [batch][height][width][channels] on the tape. A handle: copies share the value.
///
/// Convolutions and what goes with them keep values and gradients in lanes (train/lanes.hpp); whoever asks for the
/// other layout gets a copy, so that operations need not know which one the tensor was made in. A value is written
/// once, before another operation reads it. Of the gradient there is one layout at a time, the one asked for last.
template <class Scalar>
class Tensor {
 public:
  using Array = typename BufferPool<Scalar>::Array;
  using Matrix = Eigen::Map<Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>>;

  /// A gradient in lanes: to be added to, or to be written if nothing has been added yet.
  struct LaneGradient {
    Scalar* data = nullptr;
    bool fresh = true;  ///< uninitialised: every element has to be written
  };

  Tensor() = default;
  /// Precondition of `Layout::lanes`: `fits_lanes(batch)`.
  Tensor(std::shared_ptr<BufferPool<Scalar>> pool, index_t batch, Shape shape, bool needs_gradient,
         Layout layout = Layout::channels_last)
      : node_(std::make_shared<Node>()) {
    node_->pool = std::move(pool);
    node_->batch = batch;
    node_->shape = shape;
    node_->needs_gradient = needs_gradient;
    node_->has_value = layout == Layout::channels_last;
    (node_->has_value ? node_->value : node_->lanes) = node_->pool->take(batch * shape.size());
  }

  [[nodiscard]] static bool fits_lanes(index_t batch) noexcept { return batch > 0 && batch % lanes_of<Scalar> == 0; }

  [[nodiscard]] index_t batch() const noexcept { return node_->batch; }
  [[nodiscard]] Shape shape() const noexcept { return node_->shape; }
  [[nodiscard]] index_t pixels() const noexcept { return node_->batch * node_->shape.height * node_->shape.width; }
  [[nodiscard]] bool needs_gradient() const noexcept { return node_->needs_gradient; }
  [[nodiscard]] LaneLayout lane_layout() const noexcept { return {lanes_of<Scalar>, node_->batch, node_->shape}; }
  /// Whether the value is there in this layout already.
  [[nodiscard]] bool has(Layout layout) const noexcept {
    return layout == Layout::lanes ? node_->lanes.size() > 0 : node_->has_value.load(std::memory_order_acquire);
  }

  /// Channels last. May be asked for by several threads at a time.
  [[nodiscard]] Array& value() const {
    if (!has(Layout::channels_last)) {
      const std::lock_guard lock(node_->mutex);
      if (!has(Layout::channels_last)) {
        node_->value = node_->pool->take(node_->lanes.size());
        for (index_t g = 0; g < lane_layout().groups; ++g)
          from_lanes(lane_layout(), g, node_->lanes.data(), node_->value.data());
        node_->has_value.store(true, std::memory_order_release);
      }
    }
    return node_->value;
  }
  /// channels x pixels.
  [[nodiscard]] Matrix matrix() const { return {value().data(), node_->shape.channels, pixels()}; }
  /// The value in lanes. Not for several threads at a time. Precondition: `fits_lanes(batch())`.
  [[nodiscard]] Scalar* lanes() const {
    if (!has(Layout::lanes)) {
      node_->lanes = node_->pool->take(node_->value.size());
      for (index_t g = 0; g < lane_layout().groups; ++g)
        to_lanes(lane_layout(), g, node_->value.data(), node_->lanes.data());
    }
    return node_->lanes.data();
  }

  /// The gradient, channels last, zero when first asked for. Not for several threads at a time.
  [[nodiscard]] Array& gradient() const {
    Node& node = *node_;
    if (node.gradient.size() > 0) return node.gradient;
    node.gradient = node.pool->take(batch() * shape().size());
    if (node.lane_gradient.size() == 0) {
      node.gradient.setZero();
      return node.gradient;
    }
    for (index_t g = 0; g < lane_layout().groups; ++g)
      from_lanes(lane_layout(), g, node.lane_gradient.data(), node.gradient.data());
    node.pool->give_back(std::exchange(node.lane_gradient, Array()));
    return node.gradient;
  }
  [[nodiscard]] Matrix gradient_matrix() const { return {gradient().data(), node_->shape.channels, pixels()}; }
  /// The gradient in lanes. Not for several threads at a time. Precondition: `fits_lanes(batch())`.
  [[nodiscard]] LaneGradient lane_gradient() const {
    Node& node = *node_;
    const bool fresh = node.lane_gradient.size() == 0 && node.gradient.size() == 0;
    if (node.lane_gradient.size() == 0) node.lane_gradient = node.pool->take(batch() * shape().size());
    if (node.gradient.size() > 0) {
      for (index_t g = 0; g < lane_layout().groups; ++g)
        to_lanes(lane_layout(), g, node.gradient.data(), node.lane_gradient.data());
      node.pool->give_back(std::exchange(node.gradient, Array()));
    }
    return {node.lane_gradient.data(), fresh};
  }
  /// The gradient in lanes as it is, zero if nothing has been added.
  [[nodiscard]] Scalar* whole_lane_gradient() const {
    const LaneGradient gradient = lane_gradient();
    if (gradient.fresh) node_->lane_gradient.setZero();
    return gradient.data;
  }
  /// Takes the buffer of `other`'s gradient in lanes, of the same size, which `other` no longer needs, for its own
  /// gradient, if nothing has been added to that yet.
  [[nodiscard]] LaneGradient take_lane_gradient(const Tensor& other) const {
    if (node_->lane_gradient.size() > 0 || node_->gradient.size() > 0) return lane_gradient();
    node_->lane_gradient = std::exchange(other.node_->lane_gradient, Array());
    return {node_->lane_gradient.data(), true};
  }

 private:
  struct Node {
    std::shared_ptr<BufferPool<Scalar>> pool;
    index_t batch = 0;
    Shape shape;
    bool needs_gradient = false;
    std::atomic<bool> has_value = false;  ///< channels last
    std::mutex mutex;                     ///< of making the value channels last
    Array value, lanes;
    Array gradient, lane_gradient;

    Node() = default;
    Node(const Node&) = delete;
    Node& operator=(const Node&) = delete;
    ~Node() {
      for (Array* array : {&value, &lanes, &gradient, &lane_gradient}) pool->give_back(std::move(*array));
    }
  };
  std::shared_ptr<Node> node_;
};

/// What a forward pass of the training family carries: level, mode, threads and the tape.
template <class Scalar>
class Context {
 public:
  /// Reductions over the batch are cut into this many parts whatever the number of threads, and added up in order: the
  /// results are the same bits on any number of threads.
  static constexpr index_t parts = 8;

  explicit Context(Executor& executor) : executor_(executor) {}

  Level level;             ///< the weights that take part
  bool training = true;    ///< batch statistics, dropout and a tape; otherwise running statistics and no tape
  std::uint64_t seed = 0;  ///< of dropout
  std::uint64_t step = 0;  ///< changes dropout's choice; set it once a step
  double norm_momentum = 0.1;

  /// A path that drops its level: at the `stage_index`-th stage of the pass the level becomes `stage_level`.
  int drop_at_stage = -1;
  Level drop_to;

  /// A point between layers at which a path may lower its level.
  void stage(std::string_view /*name*/) noexcept {
    if (stages_++ == drop_at_stage) level = drop_to;
  }
  [[nodiscard]] int stages() const noexcept { return stages_; }

  /// Forgets the tape and starts a pass.
  void begin(Level at) {
    level = at;
    stages_ = 0;
    operations_ = 0;
    backward_.clear();
  }
  /// A number for each operation of a pass, the same in every pass.
  [[nodiscard]] std::uint64_t next_operation() noexcept { return operations_++; }

  [[nodiscard]] Executor& executor() noexcept { return executor_; }
  [[nodiscard]] Tensor<Scalar> make(index_t batch, Shape shape, bool needs_gradient,
                                    Layout layout = Layout::channels_last) {
    return Tensor<Scalar>(pool_, batch, shape, needs_gradient, layout);
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

  /// Calls `f(part, first, last)` for `parts` fixed ranges of 0 .. count-1, side by side.
  template <class F>
  void for_parts(index_t count, F&& f) {
    executor_.parallel_for(parts, [&](index_t part) {
      const index_t first = part * count / parts;
      const index_t last = (part + 1) * count / parts;
      if (first < last) f(part, first, last);
    });
  }

  /// A buffer of at least `size` elements for one part of the work; part `parts`: one more, for what all parts share.
  [[nodiscard]] Scalar* scratch(index_t part, index_t size) {
    auto& buffer = scratch_[static_cast<std::size_t>(part)];
    if (buffer.size() < size) buffer.resize(size);
    return buffer.data();
  }

  /// What an operation derived from masks and wants to find again in the next pass, by parameter and level.
  using CacheKey = std::pair<const void*, int>;
  [[nodiscard]] std::shared_ptr<void>& cached(const CacheKey& key) { return cache_[key]; }

 private:
  Executor& executor_;
  std::shared_ptr<BufferPool<Scalar>> pool_ = std::make_shared<BufferPool<Scalar>>();
  std::vector<std::function<void()>> backward_;
  std::array<typename BufferPool<Scalar>::Array, static_cast<std::size_t>(parts) + 1> scratch_;
  std::map<CacheKey, std::shared_ptr<void>> cache_;
  int stages_ = 0;
  std::uint64_t operations_ = 0;
};

}  // namespace strata::train
