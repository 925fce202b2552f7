// LSTM of the training family: the whole sequence as one operation on the tape, with back-propagation through time, and
// the layer that holds its parameters. See layers/lstm.hpp for the formula.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <strata/layers/lstm.hpp>
#include <strata/layers/parameters.hpp>
#include <strata/train/bfloat16_product.hpp>
#include <strata/train/operations.hpp>
#include <strata/train/parameter.hpp>
#include <strata/train/product.hpp>
#include <strata/train/sparse_product.hpp>
#include <strata/train/store.hpp>
#include <strata/train/tape.hpp>

namespace strata::train {

/// The parameters of one direction of an LSTM layer.
template <class Scalar>
struct LstmDirection {
  Parameter<Scalar> input_weight, hidden_weight;
  std::vector<Parameter<Scalar>> input_bias, hidden_bias;  ///< none or one each
};

namespace detail {

/// Hidden units are cut into the context's parts; a part's gates lie together, [part][i, f, g, o][unit], so that what
/// one part computes in a step is one product and no other part waits for it before the next step.
template <class Scalar>
[[nodiscard]] std::vector<index_t> gate_order(index_t hidden) {
  std::vector<index_t> order;
  for (index_t part = 0; part < Context<Scalar>::parts; ++part)
    for (index_t gate = 0; gate < 4; ++gate)
      for (index_t unit = part * hidden / Context<Scalar>::parts; unit < (part + 1) * hidden / Context<Scalar>::parts;
           ++unit)
        order.push_back(gate * hidden + unit);
  return order;
}

}  // namespace detail

/// One direction of an LSTM over the sequences `x` of `shape`, backwards in time if `reverse`. Writes the hidden states
/// to rows first_row .. first_row+hidden-1 of `y` (a sample for each position, zero behind a sequence's end) plus
/// those of `residual` if it is not null, and replaces `hidden` and `cell` (a sample for each sequence; both empty
/// handles: zeros) by the states afterwards.
template <class Scalar>
void lstm(Context<Scalar>& context, const Tensor<Scalar>& x, const SequenceShape& shape, bool reverse,
          LstmDirection<Scalar>& parameters, bool from_zeros, Tensor<Scalar>& hidden, Tensor<Scalar>& cell,
          const Tensor<Scalar>& y, index_t first_row, const Tensor<Scalar>* residual) {
  using Map = Eigen::Map<Eigen::Array<Scalar, Eigen::Dynamic, 1>>;
  using ConstMap = Eigen::Map<const Eigen::Array<Scalar, Eigen::Dynamic, 1>>;
  const index_t units = parameters.hidden_weight.shape[1];
  const index_t steps = shape.steps;
  const index_t batch = shape.batch;
  const index_t rows = 4 * units;
  const index_t y_rows = y.shape().channels;
  note_uses(context, parameters.input_weight, 1);
  note_uses(context, parameters.hidden_weight, 1);
  const Level level = context.level;
  auto order = std::make_shared<const std::vector<index_t>>(detail::gate_order<Scalar>(units));
  // Each matrix either by its non-zeros or whole.
  const auto sparse_input =
      detail::SparseMatrix<Scalar>::find(context, parameters.input_weight, level, steps * batch, order.get());
  const auto sparse_hidden =
      detail::SparseMatrix<Scalar>::find(context, parameters.hidden_weight, level, batch, order.get());
  std::shared_ptr<const detail::WeightRows<Scalar>> input_rows;
  std::shared_ptr<const detail::WeightRows<Scalar>> hidden_rows;
  if (!sparse_input)
    input_rows =
        std::make_shared<const detail::WeightRows<Scalar>>(context, parameters.input_weight, level, order.get());
  if (!sparse_hidden)
    hidden_rows =
        std::make_shared<const detail::WeightRows<Scalar>>(context, parameters.hidden_weight, level, order.get());
  // The states before and after every step: the one before position t is in slot t, or t + 1 if time runs backwards.
  const Tensor<Scalar> gates = context.make(steps * batch, {rows, 1, 1}, false);
  const Tensor<Scalar> hiddens = context.make((steps + 1) * batch, {units, 1, 1}, false);
  const Tensor<Scalar> cells = context.make((steps + 1) * batch, {units, 1, 1}, false);
  const index_t before = reverse ? 1 : 0;
  const index_t after = 1 - before;
  const index_t first_slot = reverse ? steps : 0;
  const index_t last_slot = reverse ? 0 : steps;
  const index_t slot = units * batch;
  if (from_zeros) {
    hiddens.value().segment(first_slot * slot, slot).setZero();
    cells.value().segment(first_slot * slot, slot).setZero();
  } else {
    hiddens.value().segment(first_slot * slot, slot) = hidden.value();
    cells.value().segment(first_slot * slot, slot) = cell.value();
  }

  Eigen::Array<Scalar, Eigen::Dynamic, 1> bias = Eigen::Array<Scalar, Eigen::Dynamic, 1>::Zero(rows);
  for (index_t i = 0; i < rows && !parameters.input_bias.empty(); ++i) {
    const index_t at = (*order)[static_cast<std::size_t>(i)];
    bias[i] = parameters.input_bias.front().value[at] + parameters.hidden_bias.front().value[at];
  }
  context.for_parts(steps * batch, [&](index_t, index_t first, index_t last) {
    for (index_t n = first; n < last; ++n) gates.matrix().col(n).array() = bias;
  });
  detail::SampleTiles<Scalar> inputs;
  if (sparse_input) {
    inputs = detail::SampleTiles<Scalar>(context, detail::values_of(x));
    sparse_input->add_product(context, inputs, detail::mutable_values_of(gates));
  } else if (steps * batch > 0) {
    detail::add_weighted<Scalar>(context, *input_rows, detail::values_of(x), detail::mutable_values_of(gates));
  }

  const auto lengths = std::make_shared<const std::vector<std::int32_t>>(shape.lengths.begin(), shape.lengths.end());
  const auto ended = [lengths](index_t t, index_t b) {
    return !lengths->empty() && t >= static_cast<index_t>((*lengths)[static_cast<std::size_t>(b)]);
  };
  // What all steps or all parts multiply is put in blocks once, if its pieces are whole blocks.
  const bool blocked = !sparse_hidden && units % (kernels::bfloat16_depth * Context<Scalar>::parts) == 0 &&
                       detail::bfloat16_pays(units / Context<Scalar>::parts, batch, rows);
  const auto blocks = [&context, blocked](detail::Factor factor, index_t vectors, index_t sums) {
    return blocked ? detail::blocked_factor(context, factor, vectors, sums) : detail::BlockedFactor();
  };
  detail::BlockedFactor weights = blocks(detail::Factor::first, rows, units);
  // The states before a step and those it makes, in turns.
  std::array<detail::BlockedFactor, 2> states{blocks(detail::Factor::second, batch, units),
                                              blocks(detail::Factor::second, batch, units)};
  const auto fill = [&](index_t, index_t first, index_t last) {
    weights.set<Scalar>(hidden_rows->transposed(4 * first, 4 * (last - first)), false, 4 * first, 0);
    const Scalar* const h = hiddens.value().data() + first_slot * slot + first;
    states[0].set<Scalar>(detail::view(h, last - first, batch, units), false, 0, first);
  };
  if (!weights.empty()) context.for_parts(units, fill);
  // The same in tiles for the product with non-zeros.
  std::array<detail::SampleTiles<Scalar>, 2> state_tiles;
  if (sparse_hidden) {
    state_tiles[0] = detail::SampleTiles<Scalar>(
        context, detail::view(std::as_const(hiddens.value()).data() + first_slot * slot, units, batch, units));
    state_tiles[1] = detail::SampleTiles<Scalar>(context, units, batch);
  }
  for (index_t i = 0; i < steps; ++i) {
    const index_t t = reverse ? steps - 1 - i : i;
    context.for_parts(units, [&](index_t part, index_t first, index_t last) {
      const index_t n = last - first;
      Scalar* const g = gates.value().data() + t * batch * rows + 4 * first;
      const Scalar* const h_before = hiddens.value().data() + (t + before) * slot;
      const auto gates_of_part = detail::view(g, 4 * n, batch, rows);
      const auto turn = static_cast<std::size_t>(i % 2);
      const bool has_state = i > 0 || !from_zeros;
      if (has_state && sparse_hidden) {
        sparse_hidden->add_product(context, part, state_tiles[turn], 4 * first, 4 * last, gates_of_part);
      } else if (has_state) {
        detail::add_product<Scalar>(context, part, detail::Transposed::first, hidden_rows->transposed(4 * first, 4 * n),
                                    detail::view(h_before, units, batch, units), gates_of_part,
                                    weights.blocks(4 * first), states[turn].blocks());
      }
      const Scalar* const c_before = cells.value().data() + (t + before) * slot;
      Scalar* const h_after = hiddens.value().data() + (t + after) * slot;
      Scalar* const c_after = cells.value().data() + (t + after) * slot;
      for (index_t b = 0; b < batch; ++b) {
        const ConstMap old_c(c_before + b * units + first, n);
        Map c(c_after + b * units + first, n);
        Map h(h_after + b * units + first, n);
        Map output(y.value().data() + (t * batch + b) * y_rows + first_row + first, n);
        if (ended(t, b)) {
          c = old_c;
          h = ConstMap(h_before + b * units + first, n);
          output.setZero();
        } else {
          Map in(g + b * rows, n);
          Map forget(g + b * rows + n, n);
          Map update(g + b * rows + 2 * n, n);
          Map out(g + b * rows + 3 * n, n);
          in = in.logistic();
          forget = forget.logistic();
          update = update.tanh();
          out = out.logistic();
          c = forget * old_c + in * update;
          h = out * c.tanh();
          output = h;
        }
        if (residual != nullptr)
          output += ConstMap(residual->value().data() + (t * batch + b) * y_rows + first_row + first, n);
      }
      const auto made = detail::view(static_cast<const Scalar*>(h_after + first), n, batch, units);
      if (sparse_hidden) {
        state_tiles[1 - turn].set(made, first);
      } else {
        states[1 - turn].template set<Scalar>(made, false, 0, first);
      }
    });
  }

  const Tensor<Scalar> hidden_before = hidden;
  const Tensor<Scalar> cell_before = cell;
  hidden = context.make(batch, {units, 1, 1}, true);
  cell = context.make(batch, {units, 1, 1}, true);
  hidden.value() = hiddens.value().segment(last_slot * slot, slot);
  cell.value() = cells.value().segment(last_slot * slot, slot);
  const Tensor<Scalar> added = residual == nullptr ? Tensor<Scalar>() : *residual;
  const bool has_residual = residual != nullptr && residual->needs_gradient();
  context.record([=, &context, &parameters, hidden_after = hidden, cell_after = cell] {
    const Tensor<Scalar> dh = context.make(batch, {units, 1, 1}, false);
    const Tensor<Scalar> dc = context.make(batch, {units, 1, 1}, false);
    dh.value() = hidden_after.gradient();
    dc.value() = cell_after.gradient();
    const Scalar* const dy = y.gradient().data();
    const Tensor<Scalar> d_gates = context.make(steps * batch, {rows, 1, 1}, false);
    Scalar* const dgates = d_gates.value().data();
    detail::BlockedFactor weights_back = blocks(detail::Factor::first, units, rows);
    // The gradients that a step makes and those of the step after it in time, in turns.
    std::array<detail::BlockedFactor, 2> d_blocks{blocks(detail::Factor::second, batch, rows),
                                                  blocks(detail::Factor::second, batch, rows)};
    if (!weights_back.empty())
      context.for_parts(units, [&](index_t, index_t first, index_t last) {
        const auto w = hidden_rows->transposed(0, rows);
        weights_back.set<Scalar>(detail::view(w.data() + first, last - first, rows, units), true, first, 0);
      });
    std::array<detail::SampleTiles<Scalar>, 2> d_tiles;
    if (sparse_hidden)
      for (auto& tiles : d_tiles) tiles = detail::SampleTiles<Scalar>(context, rows, batch);
    // The gradient of the state before position t, from the gates there; ended sequences hand theirs on.
    const auto back = [&](index_t part, index_t i, index_t first, index_t n) {
      const index_t t = reverse ? steps - 1 - i : i;
      for (index_t b = 0; b < batch; ++b)
        if (!ended(t, b)) Map(dh.value().data() + b * units + first, n).setZero();
      const auto dh_of_part = detail::view(dh.value().data() + first, n, batch, units);
      const auto turn = static_cast<std::size_t>(i % 2);
      if (sparse_hidden)
        return sparse_hidden->add_product_back(context, part, d_tiles[turn], first, first + n, dh_of_part);
      const auto w = hidden_rows->transposed(0, rows);
      detail::add_product<Scalar>(
          context, part, detail::Transposed::none, detail::view(w.data() + first, n, rows, units),
          detail::view(static_cast<const Scalar*>(dgates + t * batch * rows), rows, batch, rows), dh_of_part,
          weights_back.blocks(first), d_blocks[turn].blocks());
    };
    for (index_t i = steps - 1; i >= 0; --i) {
      const index_t t = reverse ? steps - 1 - i : i;
      context.for_parts(units, [&](index_t part, index_t first, index_t last) {
        const index_t n = last - first;
        if (i < steps - 1) back(part, i + 1, first, n);
        const Scalar* const g = gates.value().data() + t * batch * rows + 4 * first;
        Scalar* const dg = dgates + t * batch * rows + 4 * first;
        for (index_t b = 0; b < batch; ++b) {
          if (ended(t, b)) {
            for (index_t gate = 0; gate < 4; ++gate) Map(dg + b * rows + gate * n, n).setZero();
            continue;
          }
          const ConstMap in(g + b * rows, n);
          const ConstMap forget(g + b * rows + n, n);
          const ConstMap update(g + b * rows + 2 * n, n);
          const ConstMap out(g + b * rows + 3 * n, n);
          const ConstMap c(cells.value().data() + (t + after) * slot + b * units + first, n);
          const ConstMap old_c(cells.value().data() + (t + before) * slot + b * units + first, n);
          Map h_gradient(dh.value().data() + b * units + first, n);
          Map c_gradient(dc.value().data() + b * units + first, n);
          h_gradient += ConstMap(dy + (t * batch + b) * y_rows + first_row + first, n);
          Map d_in(dg + b * rows, n);
          Map d_forget(dg + b * rows + n, n);
          Map d_update(dg + b * rows + 2 * n, n);
          Map d_out(dg + b * rows + 3 * n, n);
          d_update = c.tanh();  // kept here until its turn comes
          d_out = h_gradient * d_update * out * (1 - out);
          c_gradient += h_gradient * out * (1 - d_update.square());
          d_in = c_gradient * update * in * (1 - in);
          d_forget = c_gradient * old_c * forget * (1 - forget);
          d_update = c_gradient * in * (1 - update.square());
          c_gradient *= forget;
        }
        const auto made = detail::view(static_cast<const Scalar*>(dg), 4 * n, batch, rows);
        const auto turn = static_cast<std::size_t>(i % 2);
        if (sparse_hidden) {
          d_tiles[turn].set(made, 4 * first);
        } else {
          d_blocks[turn].template set<Scalar>(made, false, 0, 4 * first);
        }
      });
    }
    if (!from_zeros) {
      if (hidden_before.needs_gradient()) {
        if (steps > 0)
          context.for_parts(units,
                            [&](index_t part, index_t first, index_t last) { back(part, 0, first, last - first); });
        hidden_before.gradient() += dh.value();
      }
      if (cell_before.needs_gradient()) cell_before.gradient() += dc.value();
    }
    if (has_residual) {
      Scalar* const d_added = added.gradient().data();
      context.for_parts(steps * batch, [&](index_t, index_t first, index_t last) {
        for (index_t p = first; p < last; ++p)
          Map(d_added + p * y_rows + first_row, units) += ConstMap(dy + p * y_rows + first_row, units);
      });
    }
    if (steps * batch == 0) return;
    const auto d = detail::values_of(d_gates);
    const auto states_before =
        detail::view(std::as_const(hiddens.value()).data() + before * slot, units, steps * batch, units);
    detail::SampleTiles<Scalar> all_d;
    if (sparse_input || sparse_hidden) all_d = detail::SampleTiles<Scalar>(context, d);
    if (sparse_input) {
      sparse_input->add_gradient(context, inputs, all_d, parameters.input_weight);
    } else {
      detail::add_weight_gradient<Scalar>(context, detail::values_of(x), d, level, parameters.input_weight,
                                          order.get());
    }
    if (sparse_hidden) {
      sparse_hidden->add_gradient(context, detail::SampleTiles<Scalar>(context, states_before), all_d,
                                  parameters.hidden_weight);
    } else {
      detail::add_weight_gradient<Scalar>(context, states_before, d, level, parameters.hidden_weight, order.get());
    }
    if (!parameters.input_bias.empty()) {
      Eigen::Array<Scalar, Eigen::Dynamic, 1> sums = Eigen::Array<Scalar, Eigen::Dynamic, 1>::Zero(rows);
      context.for_parts(rows, [&](index_t, index_t first, index_t last) {
        for (index_t p = 0; p < d.cols(); ++p)
          sums.segment(first, last - first) += d.col(p).segment(first, last - first).array();
      });
      for (index_t i = 0; i < rows; ++i) {
        const index_t at = (*order)[static_cast<std::size_t>(i)];
        parameters.input_bias.front().gradient[at] += sums[i];
        parameters.hidden_bias.front().gradient[at] += sums[i];
      }
    }
    if (!x.needs_gradient()) return;
    if (sparse_input) {
      sparse_input->add_product_back(context, all_d, detail::mutable_gradients_of(x));
    } else {
      detail::add_weighted_back<Scalar>(context, *input_rows, d, detail::mutable_gradients_of(x));
    }
  });
}

/// See `LstmOptions` and `SequenceShape`.
template <class Scalar>
class Lstm {
 public:
  static constexpr bool has_parameters = true;
  using State = LstmState<Tensor<Scalar>>;

  explicit Lstm(const LstmOptions& options) : options_(validated(options)) {
    const index_t gates = 4 * options.hidden_features;
    for (index_t d = 0; d < options.directions(); ++d) {
      LstmDirection<Scalar> direction{Parameter<Scalar>({gates, options.in_features}, 0),
                                      Parameter<Scalar>({gates, options.hidden_features}, 0),
                                      {},
                                      {}};
      for (auto* weight : {&direction.input_weight, &direction.hidden_weight}) {
        weight->levelled = options.levelled;
        weight->decay = true;
      }
      if (options.bias) {
        direction.input_bias.push_back(Parameter<Scalar>({gates}, 0));
        direction.hidden_bias.push_back(Parameter<Scalar>({gates}, 0));
      }
      directions_.push_back(std::move(direction));
    }
    initialise(0);
  }

  /// Uniform in +-1/sqrt(hidden_features), as torch.nn.LSTM.
  void initialise(std::uint64_t seed) {
    std::mt19937_64 random(seed);
    const double bound = 1 / std::sqrt(static_cast<double>(options_.hidden_features));
    const auto draw = [&](Parameter<Scalar>& parameter) {
      for (Scalar& w : parameter.value)
        w = static_cast<Scalar>((static_cast<double>(random() >> 11U) * 0x1p-53 * 2 - 1) * bound);
    };
    for (LstmDirection<Scalar>& direction : directions_) {
      draw(direction.input_weight);
      draw(direction.hidden_weight);
      for (auto& bias : direction.input_bias) draw(bias);
      for (auto& bias : direction.hidden_bias) draw(bias);
    }
  }

  [[nodiscard]] const LstmOptions& options() const noexcept { return options_; }
  /// None: the layer has no normalisation.
  [[nodiscard]] std::vector<NormSet<Scalar>>& norms() noexcept { return norms_; }
  void set_levels(int /*levels*/) noexcept {}

  /// In the order of torch.nn.LSTM's state_dict.
  template <class F>
  void for_each_parameter(const std::string& name, const std::string& /*norm_name*/, F&& f) {
    for (std::size_t d = 0; d < directions_.size(); ++d) {
      LstmDirection<Scalar>& direction = directions_[d];
      const std::string suffix = strata::detail::lstm_suffix(static_cast<index_t>(d));
      const auto pass = [&](const char* part, Parameter<Scalar>& parameter) {
        parameter.name = name + part + suffix;
        f(parameter);
      };
      pass(".weight_ih", direction.input_weight);
      pass(".weight_hh", direction.hidden_weight);
      for (auto& bias : direction.input_bias) pass(".bias_ih", bias);
      for (auto& bias : direction.hidden_bias) pass(".bias_hh", bias);
    }
  }

  /// The hidden states of all positions of `x`, plus `residual` if it is not null. `state` is where the sequences are
  /// and is replaced by where they are afterwards; gradients pass through it. Raises: `x`, `shape`, `state` and
  /// `residual` that do not fit.
  [[nodiscard]] Tensor<Scalar> operator()(Context<Scalar>& context, const Tensor<Scalar>& x, const SequenceShape& shape,
                                          State& state, const Tensor<Scalar>* residual = nullptr) const {
    check(x, shape, state, residual);
    auto& self = const_cast<Lstm&>(*this);  // a forward pass of training is const in form only
    Tensor<Scalar> y = context.make(shape.positions(), {options_.output_features(), 1, 1}, true);
    for (std::size_t d = 0; d < directions_.size(); ++d)
      lstm(context, x, shape, d == 1, self.directions_[d], state.empty, state.hidden[d], state.cell[d], y,
           static_cast<index_t>(d) * options_.hidden_features, residual);
    state.empty = false;
    return y;
  }
  /// From a state of zeros.
  [[nodiscard]] Tensor<Scalar> operator()(Context<Scalar>& context, const Tensor<Scalar>& x, const SequenceShape& shape,
                                          const Tensor<Scalar>* residual = nullptr) const {
    State state;
    return (*this)(context, x, shape, state, residual);
  }

  void store(const std::string& name, const std::string& /*norm_name*/, ParameterSink& sink) const {
    for (std::size_t d = 0; d < directions_.size(); ++d) {
      const LstmDirection<Scalar>& direction = directions_[d];
      const std::string suffix = strata::detail::lstm_suffix(static_cast<index_t>(d));
      detail::store_matrix(name + ".weight_ih" + suffix, direction.input_weight, sink);
      detail::store_matrix(name + ".weight_hh" + suffix, direction.hidden_weight, sink);
      for (const auto& bias : direction.input_bias)
        sink.array<float>(name + ".bias_ih" + suffix, bias.shape, 0, detail::floats(bias));
      for (const auto& bias : direction.hidden_bias)
        sink.array<float>(name + ".bias_hh" + suffix, bias.shape, 0, detail::floats(bias));
    }
  }

 private:
  [[nodiscard]] static const LstmOptions& validated(const LstmOptions& options) {
    require_valid(options);
    return options;
  }

  void check(const Tensor<Scalar>& x, const SequenceShape& shape, const State& state,
             const Tensor<Scalar>* residual) const {
    const std::string& first = directions_.front().input_weight.name;
    const std::string name = first.empty() ? "LSTM" : first.substr(0, first.rfind('.'));
    const Shape in{options_.in_features, 1, 1};
    const Shape out{options_.output_features(), 1, 1};
    if (!shape.valid()) raise(Error(name, "lengths within the steps, one a sequence", "others"));
    if (x.shape() != in || x.batch() != shape.positions())
      raise(Error(name, strata::detail::text(in) + ", " + strata::detail::text(shape),
                  strata::detail::text(x.shape()) + ", " + std::to_string(x.batch()) + " positions"));
    if (residual != nullptr && (residual->shape() != out || residual->batch() != x.batch()))
      raise(Error(name, "a residual of " + strata::detail::text(out), strata::detail::text(residual->shape())));
    const Shape hidden{options_.hidden_features, 1, 1};
    for (std::size_t d = 0; d < directions_.size() && !state.empty; ++d)
      for (const auto* tensor : {&state.hidden[d], &state.cell[d]})
        if (tensor->shape() != hidden || tensor->batch() != shape.batch)
          raise(Error(
              name, "a state of " + strata::detail::text(hidden) + " for " + std::to_string(shape.batch) + " sequences",
              strata::detail::text(tensor->shape()) + " for " + std::to_string(tensor->batch())));
  }

  LstmOptions options_;
  std::vector<LstmDirection<Scalar>> directions_;
  std::vector<NormSet<Scalar>> norms_;  ///< always empty
};

}  // namespace strata::train
