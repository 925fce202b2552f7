// Convolution of the inference family, with norm, residual and activation in its epilogue.
#pragma once

#include <string>

#include <strata/kernels/convolution.hpp>
#include <strata/layers/context.hpp>
#include <strata/layers/inference/weights.hpp>
#include <strata/layers/options.hpp>

namespace strata::inference {

/// y = activation(norm(convolution(x) + b) + residual) at the context's level; see `Conv2dOptions`.
template <class Scalar, class Arch>
class Conv2d {
 public:
  static constexpr bool has_parameters = true;

  explicit Conv2d(const Conv2dOptions& options) : options_(options) { require_valid(options); }

  [[nodiscard]] const Conv2dOptions& options() const noexcept { return options_; }
  [[nodiscard]] const LayerWeights<Scalar, ConvIndex>& weights() const noexcept { return weights_; }

  STRATA_COLD void load(const std::string& name, const std::string& norm_name, ParameterSource& source) {
    name_ = name;
    const index_t taps = options_.kernel.h * options_.kernel.w;
    // 96 columns of three vectors stay in L1 while the dense kernel passes over all rows.
    const index_t block = taps >= 96 ? taps : 96 / taps * taps;
    weights_.load(name, norm_name,
                  {options_.out_channels, options_.in_channels / options_.groups, options_.kernel.h, options_.kernel.w},
                  options_.out_channels, options_.columns(), block, options_.norm, options_.bias, source);
    const index_t group_rows = options_.out_channels / options_.groups;
    if (weights_.is_sparse() && options_.groups > 1 && group_rows % weights_.sparse().row_group() != 0)
      source.fail(Error({name, ".weight"}, {"groups of rows within the ", group_rows, " of a group"},
                        {weights_.sparse().row_group(), " rows"}));
  }

  [[nodiscard]] Tensor<Scalar> operator()(InferenceContext<Scalar, Arch>& context, const Tensor<Scalar>& x) const {
    return run(context, x, nullptr, nullptr);
  }
  /// `residual` has the shape of the output.
  [[nodiscard]] Tensor<Scalar> operator()(InferenceContext<Scalar, Arch>& context, const Tensor<Scalar>& x,
                                          const Tensor<Scalar>& residual) const {
    return run(context, x, &residual, nullptr);
  }
  /// As before; if no other tensor, `x` neither, sees the residual's memory the result may be written there, which
  /// spares large pictures a tensor.
  [[nodiscard]] Tensor<Scalar> operator()(InferenceContext<Scalar, Arch>& context, const Tensor<Scalar>& x,
                                          Tensor<Scalar>&& residual) const {
    return run(context, x, &residual, &residual);
  }

 private:
  Tensor<Scalar> run(InferenceContext<Scalar, Arch>& context, const Tensor<Scalar>& x, const Tensor<Scalar>* residual,
                     Tensor<Scalar>* consumed) const {
    const Shape in = x.shape();
    Shape out{options_.out_channels, options_.output_height(in.height), options_.output_width(in.width)};
    if (!context.check(!name_.empty(), [&] {
          return strata::detail::left_out(
              {"a convolution of ", options_.in_channels, " to ", options_.out_channels, " channels"});
        }))
      return context.make(x.batch(), {out.channels, 1, 1});
    if (!context.check(in.channels == options_.in_channels && options_.fits(in.height, in.width),
                       [&] { return strata::detail::wrong_input(name_, options_, in); }))
      return context.make(x.batch(), {out.channels, 1, 1});
    if (!context.check(residual == nullptr || (residual->shape() == out && residual->batch() == x.batch()), [&] {
          return Error({name_}, {"a residual of shape ", strata::detail::text(out)},
                       {strata::detail::text(residual->shape())});
        }))
      return context.make(x.batch(), out);
    const Level level = context.level();
    const bool in_place =
        consumed != nullptr && consumed->unique() && consumed->data() != x.data() && weights_.writes_once();
    Tensor<Scalar> y = in_place ? *consumed : context.make(x.batch(), out);
    const kernels::ConvolutionShape shape{options_.in_channels, options_.out_channels, options_.kernel, options_.stride,
                                          options_.padding,     options_.dilation,     options_.groups};
    const auto epilogue = weights_.epilogue(context.last_switch(), level, options_.activation,
                                            residual == nullptr ? nullptr : residual->data());
    const TileLayout layout = y.layout();
    if (layout.tile_pitch == 1) {
      // One pixel has no lanes side by side: compute it as the first lane of a vector.
      run_one_pixel(context, shape, x, y, epilogue);
      return y;
    }
    const auto compute = [&](const auto& matrix) {
      kernels::convolution<Arch>(matrix, level, shape, x.layout(), x.data(), layout, y.data(), epilogue,
                                 context.arena(), context.executor());
    };
    // (What the choosing run computes is of no use afterwards: repeated, it adds a residual in place several times.)
    if (context.path_chooser() != nullptr) weights_.choose_path(name_, level, *context.path_chooser(), compute);
    weights_.with_matrix(level, compute);
    return y;
  }

  void run_one_pixel(InferenceContext<Scalar, Arch>& context, const kernels::ConvolutionShape& shape,
                     const Tensor<Scalar>& x, const Tensor<Scalar>& y,
                     const kernels::Epilogue<Scalar>& epilogue) const {
    TileLayout wide = y.layout();
    wide.row_pitch = wide.tile_pitch = InferenceContext<Scalar, Arch>::lanes;
    const Tensor<Scalar> spread(context.arena(), wide);
    kernels::Epilogue<Scalar> partial = epilogue;
    partial.residual = nullptr;
    partial.activation = Activation::identity;
    weights_.with_matrix(context.level(), [&](const auto& matrix) {
      kernels::convolution<Arch>(matrix, context.level(), shape, x.layout(), x.data(), wide, spread.data(), partial,
                                 context.arena(), context.executor());
    });
    kernels::Epilogue<Scalar> rest;
    rest.residual = epilogue.residual;
    rest.activation = epilogue.activation;
    for (index_t row = 0; row < shape.out_channels; ++row)
      y.data()[row] = kernels::finish(spread.data()[row * wide.tile_pitch], rest, row, row);
  }

  Conv2dOptions options_;
  std::string name_;  ///< empty before `load`
  LayerWeights<Scalar, ConvIndex> weights_;
};

}  // namespace strata::inference
