// The stored parameters of a layer with a weight matrix: level-sorted or dense weights and the per-level epilogue. Used
// by the convolution and linear layers, which differ only in how they are applied.
#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <strata/core/types.hpp>
#include <strata/kernels/dense_tile.hpp>
#include <strata/kernels/epilogue.hpp>
#include <strata/layers/parameters.hpp>
#include <strata/layers/path_choice.hpp>
#include <strata/sparse/leveled_csr.hpp>

namespace strata::inference {

/// Scale and bias of one layer per level and per switch of level, viewing the archive they were loaded from. Apart from
/// the weights because it does not depend on their index type.
template <class Scalar>
class LayerStatistics {
 public:
  /// With `norm` its folded scale and bias per level and, where the archive has them, per switch of level
  /// (`transition_name`), else with `bias` the one bias `<name>.bias`. The first error is left in `source`.
  STRATA_COLD void load(const std::string& name, const std::string& norm_name, index_t rows, bool norm, bool bias,
                        ParameterSource& source) {
    transitions_.clear();
    if (norm) {
      scale_ = source.per_level<Scalar>(norm_name + ".scale", rows);
      bias_ = source.per_level<Scalar>(norm_name + ".bias", rows);
      const auto levels = static_cast<std::size_t>(source.levels());
      for (int from = 0; from < source.levels(); ++from)
        for (int to = 0; to < source.levels(); ++to) {
          auto stages = load_transitions(norm_name, Level{from}, Level{to}, rows, source);
          if (stages.empty()) continue;
          transitions_.resize(levels * levels);
          transitions_[transition_at(Level{from}, Level{to})] = std::move(stages);
        }
    } else if (bias) {
      bias_.assign(static_cast<std::size_t>(source.levels()), source.array<Scalar>(name + ".bias", {rows}));
    }
  }

  /// Bytes that a run reads.
  [[nodiscard]] index_t bytes() const noexcept {
    index_t count = 0;
    if (!scale_.empty()) count += static_cast<index_t>(scale_[0].size_bytes());
    if (!bias_.empty()) count += static_cast<index_t>(bias_[0].size_bytes());
    return count;
  }

  /// With the statistics of the run's last switch, if there are any for as many stages behind it.
  [[nodiscard]] kernels::Epilogue<Scalar> epilogue(const LevelSwitch& last, Level level, Activation activation,
                                                   const Scalar* residual) const noexcept {
    if (last.from != level && !transitions_.empty()) {
      const auto& stages = transitions_[transition_at(last.from, level)];
      if (const auto since = static_cast<std::size_t>(last.stages); since < stages.size())
        return {stages[since].scale.data(), stages[since].bias.data(), residual, activation};
    }
    const auto at = static_cast<std::size_t>(level.index);
    return {scale_.empty() ? nullptr : scale_[at].data(), bias_.empty() ? nullptr : bias_[at].data(), residual,
            activation};
  }

 private:
  struct Transition {
    std::span<const Scalar> scale;
    std::span<const Scalar> bias;
  };

  /// Its place in `transitions_`; there are as many levels as sets of statistics.
  [[nodiscard]] std::size_t transition_at(Level from, Level to) const noexcept {
    return static_cast<std::size_t>(from.index) * scale_.size() + static_cast<std::size_t>(to.index);
  }

  /// By the stages since the switch.
  [[nodiscard]] STRATA_COLD static std::vector<Transition> load_transitions(const std::string& norm_name, Level from,
                                                                            Level to, index_t rows,
                                                                            ParameterSource& source) {
    std::vector<Transition> stages;
    if (from == to) return stages;
    for (int since = 0;; ++since) {
      const std::string name = transition_name(norm_name, from, to, since);
      const std::string scale = name + ".scale";
      const std::string bias = name + ".bias";
      if (!source.has(scale) && !source.has(bias)) return stages;
      stages.push_back({source.array<Scalar>(scale, {rows}), source.array<Scalar>(bias, {rows})});
    }
  }

  std::vector<std::span<const Scalar>> scale_;
  std::vector<std::span<const Scalar>> bias_;
  std::vector<std::vector<Transition>> transitions_;  ///< by levels from and to, then stages; empty: none
};

/// Weights, per-level scale and bias of one layer, viewing the archive they were loaded from.
template <class Scalar, class Index>
class LayerWeights {
 public:
  /// What the archive holds under `name` for a rows x columns matrix: `<name>.weight` dense of shape `dense_shape`, or
  /// level-sorted; with `norm` or `bias` as `LayerStatistics::load` says. The first error is left in `source`.
  STRATA_COLD void load(const std::string& name, const std::string& norm_name, const std::vector<index_t>& dense_shape,
                        index_t rows, index_t columns, index_t dense_block_columns, bool norm, bool bias,
                        ParameterSource& source) {
    owner_ = source.owner();
    const std::string weight = name + ".weight";
    if (source.levels() > kernels::max_strata)
      source.fail(Error({weight}, {"at most ", kernels::max_strata, " levels"}, {source.levels()}));
    is_sparse_ = source.has(weight + ".shape");
    dense_block_columns_ = dense_block_columns;
    expanded_.clear();
    if (is_sparse_) {
      sparse_ = source.leveled_csr<Scalar, Index>(weight, rows, columns);
    } else {
      dense_ = {source.array<Scalar>(weight, dense_shape).data(), rows, columns, dense_block_columns};
    }
    statistics_.load(name, norm_name, rows, norm, bias, source);
  }

  /// Calls `f` with what `level` is computed from: the `LeveledCsr` or a `DenseMatrix`.
  template <class F>
  decltype(auto) with_matrix(Level level, F&& f) const {
    const auto at = static_cast<std::size_t>(level.index);
    if (at < expanded_.size() && expanded_[at].weights != nullptr) return f(expanded_[at].matrix);
    return with_matrix(f);
  }

  /// Tries a dense copy of `level` and keeps it if the chooser of a run finds it faster. `run(matrix)` computes the
  /// layer named `name` once. Not while others run the layer.
  template <class Run>
  STRATA_COLD void choose_path(const std::string& name, Level level, PathChooser& chooser, const Run& run) const {
    const index_t size = is_sparse_ ? sparse_.rows() * sparse_.columns() : 0;
    const double density = size == 0 ? 0 : static_cast<double>(sparse_.nnz(level)) / static_cast<double>(size);
    if (size == 0 || density < chooser.options().least_density) return;
    Expanded dense{std::make_shared<const std::vector<Scalar>>(sparse_.to_dense(level)), {}};
    dense.matrix = {dense.weights->data(), sparse_.rows(), sparse_.columns(), dense_block_columns_};
    struct Both {
      const LeveledCsr<Scalar, Index>& sparse;
      const kernels::DenseMatrix<Scalar>& dense;
      const Run& run;
    } both{sparse_, dense.matrix, run};
    const bool faster = chooser.choose(
        name, level, density,
        [](void* object, bool take_dense) {
          const auto& paths = *static_cast<Both*>(object);
          if (take_dense) {
            paths.run(paths.dense);
          } else {
            paths.run(paths.sparse);
          }
        },
        &both);
    const auto at = static_cast<std::size_t>(level.index);
    if (faster && expanded_.size() <= at) expanded_.resize(at + 1);
    if (faster) {
      expanded_[at] = std::move(dense);
    } else if (at < expanded_.size()) {
      expanded_[at] = {};
    }
  }

  /// Calls `f` with the stored `LeveledCsr` or `DenseMatrix`.
  template <class F>
  decltype(auto) with_matrix(F&& f) const {
    if (is_sparse_) return f(sparse_);
    return f(dense_);
  }

  /// Whether sums of no level pass through the output, so that it may be what the epilogue reads. One answer for all
  /// levels: the memory that a layer takes must not depend on its level, or a run that switches level might meet an
  /// arena that no run of a single level has prepared.
  [[nodiscard]] bool writes_once() const noexcept {
    if (!is_sparse_) return dense_.blocks() == 1;
    const bool in_one_pass =
        sparse_.levels() <= kernels::strata_of_a_pass || sparse_.row_group() <= kernels::waiting_rows;
    return sparse_.blocks() == 1 && in_one_pass &&
           std::all_of(expanded_.begin(), expanded_.end(),
                       [](const Expanded& level) { return level.weights == nullptr || level.matrix.blocks() == 1; });
  }

  [[nodiscard]] bool is_sparse() const noexcept { return is_sparse_; }
  [[nodiscard]] const LeveledCsr<Scalar, Index>& sparse() const noexcept { return sparse_; }

  /// Weights that `level` holds.
  [[nodiscard]] index_t nnz(Level level) const noexcept {
    return is_sparse_ ? sparse_.nnz(level) : dense_.rows() * dense_.columns();
  }
  /// Bytes that `level` reads.
  [[nodiscard]] index_t bytes(Level level) const noexcept {
    const auto at = static_cast<std::size_t>(level.index);
    if (at < expanded_.size() && expanded_[at].weights != nullptr)
      return statistics_.bytes() + static_cast<index_t>(expanded_[at].weights->size() * sizeof(Scalar));
    return statistics_.bytes() + (is_sparse_ ? sparse_.bytes(level)
                                             : dense_.rows() * dense_.columns() * static_cast<index_t>(sizeof(Scalar)));
  }

  /// See `LayerStatistics::epilogue`.
  [[nodiscard]] kernels::Epilogue<Scalar> epilogue(const LevelSwitch& last, Level level, Activation activation,
                                                   const Scalar* residual) const noexcept {
    return statistics_.epilogue(last, level, activation, residual);
  }
  [[nodiscard]] kernels::Epilogue<Scalar> epilogue(Level level, Activation activation,
                                                   const Scalar* residual) const noexcept {
    return statistics_.epilogue({level, 0}, level, activation, residual);
  }

 private:
  /// A level with zeros for what it lacks.
  struct Expanded {
    std::shared_ptr<const std::vector<Scalar>> weights;  ///< null: none; copies of the layer share them
    kernels::DenseMatrix<Scalar> matrix;                 ///< a view of them
  };

  bool is_sparse_ = false;
  index_t dense_block_columns_ = 1;
  LeveledCsr<Scalar, Index> sparse_;
  kernels::DenseMatrix<Scalar> dense_;
  // By level, empty where the sparse path is taken. Derived from the weights, hence mutable: a network that is run does
  // not change, but what it is computed from may be chosen.
  mutable std::vector<Expanded> expanded_;
  LayerStatistics<Scalar> statistics_;
  std::shared_ptr<const void> owner_;
};

}  // namespace strata::inference
