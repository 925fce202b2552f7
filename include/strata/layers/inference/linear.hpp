// Fully connected layer of the inference family: a matrix-vector product for one sample, a product with narrow rows for
// a few, a tile product for a batch.
#pragma once

#include <string>
#include <type_traits>

#include <strata/kernels/convolution.hpp>
#include <strata/kernels/sparse_narrow.hpp>
#include <strata/kernels/sparse_vector.hpp>
#include <strata/layers/context.hpp>
#include <strata/layers/inference/weights.hpp>
#include <strata/layers/options.hpp>

namespace strata::inference {

/// y = activation(norm(W x + b) + residual) at the context's level; x has height = width = 1. See `LinearOptions`.
template <class Scalar, class Arch>
class Linear {
 public:
  static constexpr bool has_parameters = true;

  explicit Linear(const LinearOptions& options) : options_(options) { require_valid(options); }

  [[nodiscard]] const LinearOptions& options() const noexcept { return options_; }
  [[nodiscard]] const LayerWeights<Scalar, LinearIndex>& weights() const noexcept { return weights_; }

  void load(const std::string& name, const std::string& norm_name, ParameterSource& source) {
    name_ = name;
    weights_.load(name, norm_name, {options_.out_features, options_.in_features}, options_.out_features,
                  options_.in_features, 96, options_.norm, options_.bias, source);
  }

  [[nodiscard]] Tensor<Scalar> operator()(InferenceContext<Scalar, Arch>& context, const Tensor<Scalar>& x) const {
    return run(context, x, nullptr);
  }
  /// `residual` has the shape of the output.
  [[nodiscard]] Tensor<Scalar> operator()(InferenceContext<Scalar, Arch>& context, const Tensor<Scalar>& x,
                                          const Tensor<Scalar>& residual) const {
    return run(context, x, &residual);
  }

 private:
  Tensor<Scalar> run(InferenceContext<Scalar, Arch>& context, const Tensor<Scalar>& x,
                     const Tensor<Scalar>* residual) const {
    const Shape in{options_.in_features, 1, 1};
    const Shape out{options_.out_features, 1, 1};
    const bool residual_fits = residual == nullptr || (residual->shape() == out && residual->batch() == x.batch());
    if (!context.check(x.shape() == in && residual_fits, [&] {
          return Error(name_, residual_fits ? strata::detail::text(in) : "a residual of " + strata::detail::text(out),
                       strata::detail::text(residual_fits ? x.shape() : residual->shape()));
        }))
      return context.make(x.batch(), out);
    Tensor<Scalar> y = context.make(x.batch(), out);
    const Level level = context.level();
    const auto epilogue = weights_.epilogue(context.previous_level(), level, options_.activation,
                                            residual == nullptr ? nullptr : residual->data());
    if (y.layout().tile_pitch == 1) {
      weights_.with_matrix([&](const auto& matrix) {
        const kernels::WorkSplit split(1, options_.out_features, matrix.row_group(),
                                       static_cast<index_t>(context.executor().threads()));
        context.executor().parallel_for(split.tasks(), [&](index_t task) {
          split.for_each(task, [&](index_t, index_t first, index_t last) {
            if constexpr (requires { matrix.nnz(level); }) {
              kernels::sparse_vector<Arch>(matrix, level, first, last, x.data(), y.data(), epilogue);
            } else {
              kernels::dense_vector<Arch>(matrix, first, last, x.data(), y.data(), epilogue);
            }
          });
        });
      });
      return y;
    }
    if (weights_.is_sparse() && x.batch() <= kernels::max_narrow_batch<Scalar, Arch>) {
      run_narrow(context, x, y, epilogue);
      return y;
    }
    kernels::ConvolutionShape shape;
    shape.in_channels = options_.in_features;
    shape.out_channels = options_.out_features;
    weights_.with_matrix([&](const auto& matrix) {
      kernels::convolution<Arch, true>(matrix, level, shape, x.layout(), x.data(), y.layout(), y.data(), epilogue,
                                       context.arena(), context.executor());
    });
    return y;
  }

  /// A batch of at most two vectors: one tile, whose rows are squeezed to the vectors that are needed.
  void run_narrow(InferenceContext<Scalar, Arch>& context, const Tensor<Scalar>& x, const Tensor<Scalar>& y,
                  const kernels::Epilogue<Scalar>& epilogue) const {
    const index_t width = kernels::narrow_width<Scalar, Arch>(x.batch());
    const index_t pitch = x.layout().tile_pitch;
    const Scalar* panel = x.data();
    Block scratch;
    if (width < pitch) {
      scratch = context.arena().take(options_.in_features * width * static_cast<index_t>(sizeof(Scalar)));
      auto* const packed = reinterpret_cast<Scalar*>(scratch.data());
      kernels::pack_narrow<Arch>(x.data(), pitch, options_.in_features, width, packed);
      panel = packed;
    }
    const auto& matrix = weights_.sparse();
    const Level level = context.level();
    const kernels::WorkSplit split(1, options_.out_features, matrix.row_group(),
                                   static_cast<index_t>(context.executor().threads()));
    context.executor().parallel_for(split.tasks(), [&](index_t task) {
      split.for_each(task, [&](index_t, index_t first, index_t last) {
        kernels::sparse_narrow<Arch>(
            matrix, level, width,
            kernels::NarrowJob<Scalar>{first, last, panel, y.data(), y.layout().tile_pitch, epilogue});
      });
    });
  }

  LinearOptions options_;
  std::string name_ = "linear layer";
  LayerWeights<Scalar, LinearIndex> weights_;
};

}  // namespace strata::inference
