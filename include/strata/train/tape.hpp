// The tape of reverse-mode differentiation: values of a forward pass, channels last, and what to do with their
// gradients on the way back. The operations are in train/operations.hpp.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <strata/core/executor.hpp>
#include <strata/core/types.hpp>

namespace strata::train {

/// Buffers of past steps, by size, so that a step does not ask the system for memory again.
template <class Scalar>
class BufferPool {
 public:
  using Array = Eigen::Array<Scalar, Eigen::Dynamic, 1>;

  [[nodiscard]] Array take(index_t size) {
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
    free_elements_ += buffer.size();
    free_[buffer.size()].push_back(std::move(buffer));
  }

 private:
  static constexpr index_t most_free_elements = (index_t{1} << 30) / static_cast<index_t>(sizeof(Scalar));

  index_t free_elements_ = 0;
  std::map<index_t, std::vector<Array>> free_;
};

/// A batch of activations [batch][height][width][channels] on the tape. A handle: copies share the value.
template <class Scalar>
class Tensor {
 public:
  using Array = typename BufferPool<Scalar>::Array;
  using Matrix = Eigen::Map<Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>>;

  Tensor() = default;
  Tensor(std::shared_ptr<BufferPool<Scalar>> pool, index_t batch, Shape shape, bool needs_gradient)
      : node_(std::make_shared<Node>()) {
    node_->pool = std::move(pool);
    node_->batch = batch;
    node_->shape = shape;
    node_->needs_gradient = needs_gradient;
    node_->value = node_->pool->take(batch * shape.size());
  }

  [[nodiscard]] index_t batch() const noexcept { return node_->batch; }
  [[nodiscard]] Shape shape() const noexcept { return node_->shape; }
  [[nodiscard]] index_t pixels() const noexcept { return node_->batch * node_->shape.height * node_->shape.width; }
  [[nodiscard]] bool needs_gradient() const noexcept { return node_->needs_gradient; }

  [[nodiscard]] Array& value() const noexcept { return node_->value; }
  /// channels x pixels.
  [[nodiscard]] Matrix matrix() const noexcept { return {node_->value.data(), node_->shape.channels, pixels()}; }
  /// The gradient, zero when first asked for.
  [[nodiscard]] Array& gradient() const {
    if (node_->gradient.size() == 0) {
      node_->gradient = node_->pool->take(node_->value.size());
      node_->gradient.setZero();
    }
    return node_->gradient;
  }
  [[nodiscard]] Matrix gradient_matrix() const { return {gradient().data(), node_->shape.channels, pixels()}; }

 private:
  struct Node {
    std::shared_ptr<BufferPool<Scalar>> pool;
    index_t batch = 0;
    Shape shape;
    bool needs_gradient = false;
    Array value;
    Array gradient;

    Node() = default;
    Node(const Node&) = delete;
    Node& operator=(const Node&) = delete;
    ~Node() {
      pool->give_back(std::move(value));
      pool->give_back(std::move(gradient));
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
  [[nodiscard]] Tensor<Scalar> make(index_t batch, Shape shape, bool needs_gradient) {
    return Tensor<Scalar>(pool_, batch, shape, needs_gradient);
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

  /// A buffer of at least `size` elements for one part of the work.
  [[nodiscard]] Scalar* scratch(index_t part, index_t size) {
    auto& buffer = scratch_[static_cast<std::size_t>(part)];
    if (buffer.size() < size) buffer.resize(size);
    return buffer.data();
  }

 private:
  Executor& executor_;
  std::shared_ptr<BufferPool<Scalar>> pool_ = std::make_shared<BufferPool<Scalar>>();
  std::vector<std::function<void()>> backward_;
  std::array<typename BufferPool<Scalar>::Array, static_cast<std::size_t>(parts)> scratch_;
  int stages_ = 0;
  std::uint64_t operations_ = 0;
};

}  // namespace strata::train
