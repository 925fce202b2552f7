// LSTM layer of the inference family: one product for the inputs of a whole sequence, then per step one product with
// the hidden state whose epilogue adds it up, and the fused cell.
#pragma once

#include <algorithm>
#include <array>
#include <span>
#include <string>
#include <utility>

#include <strata/core/types.hpp>
#include <strata/kernels/lstm.hpp>
#include <strata/layers/context.hpp>
#include <strata/layers/inference/product.hpp>
#include <strata/layers/inference/sequence.hpp>
#include <strata/layers/lstm.hpp>
#include <strata/layers/parameters.hpp>

namespace strata::inference {

/// The stored parameters of one LSTM layer.
template <class Scalar>
class LstmWeights {
 public:
  struct Direction {
    WeightMatrix<Scalar> input, hidden;
    std::span<const Scalar> input_bias, hidden_bias;  ///< empty: none
  };

  void load(const std::string& name, const LstmOptions& options, ParameterSource& source) {
    const index_t gates = 4 * options.hidden_features;
    count_ = options.directions();
    for (index_t d = 0; d < count_; ++d) {
      Direction& direction = directions_[static_cast<std::size_t>(d)];
      const std::string suffix = strata::detail::lstm_suffix(d);
      direction.input.load(name + ".weight_ih" + suffix, gates, options.in_features, source);
      direction.hidden.load(name + ".weight_hh" + suffix, gates, options.hidden_features, source);
      if (!options.bias) continue;
      direction.input_bias = source.array<Scalar>(name + ".bias_ih" + suffix, {gates});
      direction.hidden_bias = source.array<Scalar>(name + ".bias_hh" + suffix, {gates});
    }
  }

  [[nodiscard]] const Direction& direction(index_t d) const noexcept {
    return directions_[static_cast<std::size_t>(d)];
  }
  /// Weights that `level` holds.
  [[nodiscard]] index_t nnz(Level level) const noexcept {
    index_t count = 0;
    for (index_t d = 0; d < count_; ++d) count += direction(d).input.nnz(level) + direction(d).hidden.nnz(level);
    return count;
  }
  /// Bytes that `level` reads in one step.
  [[nodiscard]] index_t bytes(Level level) const noexcept {
    index_t count = 0;
    for (index_t d = 0; d < count_; ++d)
      count += direction(d).input.bytes(level) + direction(d).hidden.bytes(level) +
               static_cast<index_t>(direction(d).input_bias.size_bytes() + direction(d).hidden_bias.size_bytes());
    return count;
  }

 private:
  std::array<Direction, 2> directions_;
  index_t count_ = 1;
};

/// See `LstmOptions` and `SequenceShape`. Results do not depend on the number of threads.
template <class Scalar, class Arch>
class Lstm {
 public:
  static constexpr bool has_parameters = true;
  using Context = InferenceContext<Scalar, Arch>;
  using State = LstmState<Tensor<Scalar>>;

  explicit Lstm(const LstmOptions& options) : options_(options) { require_valid(options); }

  [[nodiscard]] const LstmOptions& options() const noexcept { return options_; }
  [[nodiscard]] const LstmWeights<Scalar>& weights() const noexcept { return weights_; }

  void load(const std::string& name, const std::string& /*norm_name*/, ParameterSource& source) {
    name_ = name;
    weights_.load(name, options_, source);
  }

  /// The hidden states of all positions of `x`, plus `residual` if it is not null (laid out as the result). `state` is
  /// where the sequences are and is replaced by where they are afterwards.
  [[nodiscard]] Tensor<Scalar> operator()(Context& context, const Tensor<Scalar>& x, const SequenceShape& shape,
                                          State& state, const Tensor<Scalar>* residual = nullptr) const {
    const Shape out{options_.output_features(), 1, 1};
    if (!check(context, x, shape, state, residual)) return context.make(shape.positions(), out);
    if (state.empty) {
      for (index_t d = 0; d < options_.directions(); ++d)
        for (auto* part : {&state.hidden, &state.cell}) {
          Tensor<Scalar>& zeros = (*part)[static_cast<std::size_t>(d)];
          zeros = context.make(shape.batch, {options_.hidden_features, 1, 1});
          std::fill_n(zeros.data(), zeros.layout().size(), Scalar{0});
        }
      state.empty = false;
    }
    // One step of one direction: the hidden state is the output as it lies.
    const bool direct = shape.steps == 1 && options_.directions() == 1 && !shape.has_padding() && residual == nullptr;
    Tensor<Scalar> y;
    if (!direct) y = context.make(shape.positions(), out);
    for (index_t d = 0; d < options_.directions(); ++d) {
      run(context, x, shape, d, state, direct ? nullptr : &y, residual);
      if (direct) y = state.hidden[0];
    }
    return y;
  }
  /// From a state of zeros.
  [[nodiscard]] Tensor<Scalar> operator()(Context& context, const Tensor<Scalar>& x, const SequenceShape& shape,
                                          const Tensor<Scalar>* residual = nullptr) const {
    State state;
    return (*this)(context, x, shape, state, residual);
  }

 private:
  [[nodiscard]] bool check(Context& context, const Tensor<Scalar>& x, const SequenceShape& shape, const State& state,
                           const Tensor<Scalar>* residual) const {
    if (!context.checking()) return true;
    const Shape in{options_.in_features, 1, 1};
    if (!context.check(!name_.empty(), [&] {
          return strata::detail::left_out(
              {"an LSTM of ", options_.in_features, " to ", options_.hidden_features, " features"});
        }))
      return false;
    if (!context.check(shape.valid(),
                       [&] { return Error(name_, "lengths within the steps, one a sequence", "others"); }))
      return false;
    if (!context.check(x.shape() == in && x.batch() == shape.positions(), [&] {
          return Error({name_}, {strata::detail::text(in), ", ", strata::detail::text(shape)},
                       {strata::detail::text(x.shape()), ", ", x.batch(), " positions"});
        }))
      return false;
    const Shape out{options_.output_features(), 1, 1};
    if (!context.check(residual == nullptr || (residual->shape() == out && residual->batch() == x.batch()), [&] {
          return Error({name_}, {"a residual of ", strata::detail::text(out)},
                       {strata::detail::text(residual->shape())});
        }))
      return false;
    const Shape hidden{options_.hidden_features, 1, 1};
    for (index_t d = 0; d < options_.directions() && !state.empty; ++d)
      for (const auto* part : {&state.hidden, &state.cell}) {
        const Tensor<Scalar>& tensor = (*part)[static_cast<std::size_t>(d)];
        if (!context.check(tensor.shape() == hidden && tensor.batch() == shape.batch, [&] {
              return Error({name_}, {"a state of ", strata::detail::text(hidden), " for ", shape.batch, " sequences"},
                           {strata::detail::text(tensor.shape()), " for ", tensor.batch()});
            }))
          return false;
      }
    return true;
  }

  /// All steps of direction `d`; `y` null: the state alone is wanted.
  void run(Context& context, const Tensor<Scalar>& x, const SequenceShape& shape, index_t d, State& state,
           const Tensor<Scalar>* y, const Tensor<Scalar>* residual) const {
    const index_t hidden = options_.hidden_features;
    const index_t batch = shape.batch;
    if (shape.positions() == 0) return;
    const auto& weights = weights_.direction(d);
    const Shape gates_shape{4 * hidden, 1, 1};
    const auto bias = [](std::span<const Scalar> values) { return values.empty() ? nullptr : values.data(); };
    Tensor<Scalar> inputs = context.make(shape.positions(), gates_shape);
    weights.input.multiply(context, x, inputs, {nullptr, bias(weights.input_bias), nullptr, Activation::identity});
    // The inputs step by step, each laid out as a batch of that many sequences.
    const TileLayout step_layout = TileLayout::make(batch, gates_shape, context.lanes);
    const index_t step_size = round_up(step_layout.size(), Block::alignment / static_cast<index_t>(sizeof(Scalar)));
    Block by_step;
    if (shape.steps > 1) {
      // Whole vectors of steps, so that there are few sizes of blocks.
      by_step =
          context.arena().take(round_up(shape.steps, context.lanes) * step_size * static_cast<index_t>(sizeof(Scalar)));
      split_steps(inputs, shape, step_layout, step_size, reinterpret_cast<Scalar*>(by_step.data()));
    }
    const Scalar* const first_step = shape.steps > 1 ? reinterpret_cast<const Scalar*>(by_step.data()) : inputs.data();

    const bool padded = shape.has_padding();
    const auto at = static_cast<std::size_t>(d);
    const Tensor<Scalar> gates = context.make(batch, gates_shape);
    for (index_t i = 0; i < shape.steps; ++i) {
      const index_t t = d == 0 ? i : shape.steps - 1 - i;
      weights.hidden.multiply(context, state.hidden[at], gates,
                              {nullptr, bias(weights.hidden_bias), first_step + t * step_size, Activation::identity});
      const Tensor<Scalar> h = context.make(batch, {hidden, 1, 1});
      const Tensor<Scalar> c = context.make(batch, {hidden, 1, 1});
      const TileLayout& layout = h.layout();
      for (index_t tile = 0; tile < layout.tiles; ++tile)
        kernels::lstm_cell<Arch>(layout.tile_size(), gates.data() + tile * step_layout.tile_size(),
                                 state.cell[at].data() + tile * layout.tile_size(),
                                 c.data() + tile * layout.tile_size(), h.data() + tile * layout.tile_size());
      for (index_t b = 0; padded && b < batch; ++b) {
        if (t < shape.length(b)) continue;
        for (const auto& [old, now] : {std::pair(&state.hidden[at], &h), std::pair(&state.cell[at], &c)}) {
          const auto from = sample(*old, b);
          const auto to = sample(*now, b);
          for (index_t j = 0; j < hidden; ++j) to[j] = from[j];
        }
      }
      state.hidden[at] = h;
      state.cell[at] = c;
      for (index_t b = 0; y != nullptr && b < batch; ++b) {
        const auto from = sample(h, b);
        SampleView<Scalar> to = sample(*y, t * batch + b);
        to.first += d * hidden * to.stride;
        const bool ended = t >= shape.length(b);
        for (index_t j = 0; j < hidden; ++j) to[j] = ended ? Scalar{0} : from[j];
        if (residual == nullptr) continue;
        SampleView<Scalar> added = sample(*residual, t * batch + b);
        added.first += d * hidden * added.stride;
        for (index_t j = 0; j < hidden; ++j) to[j] += added[j];
      }
    }
  }

  /// A few rows at a time, so that their pixels stay in the cache while they are dealt out to the steps.
  static void split_steps(const Tensor<Scalar>& inputs, const SequenceShape& shape, const TileLayout& step_layout,
                          index_t step_size, Scalar* steps) noexcept {
    constexpr index_t rows = 16;
    const index_t channels = inputs.shape().channels;
    for (index_t first = 0; first < channels; first += rows) {
      const index_t last = first + rows < channels ? first + rows : channels;
      for (index_t t = 0; t < shape.steps; ++t)
        for (index_t b = 0; b < shape.batch; ++b) {
          const SampleView<Scalar> from = sample(inputs, t * shape.batch + b);
          const SampleView<Scalar> to{steps + t * step_size + step_layout.row_offset(b, 0, 0), step_layout.tile_pitch};
          for (index_t row = first; row < last; ++row) to[row] = from[row];
        }
    }
  }

  LstmOptions options_;
  std::string name_;  ///< empty before `load`
  LstmWeights<Scalar> weights_;
};

}  // namespace strata::inference
