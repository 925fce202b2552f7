// Fully connected layer of the inference family: see inference/product.hpp for how its product is computed.
#pragma once

#include <string>

#include <strata/layers/context.hpp>
#include <strata/layers/inference/product.hpp>
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

  STRATA_COLD void load(const std::string& name, const std::string& norm_name, ParameterSource& source) {
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
    if (!context.check(!name_.empty(), [&] {
          return strata::detail::left_out(
              {"a linear layer of ", options_.in_features, " to ", options_.out_features, " features"});
        }))
      return context.make(x.batch(), out);
    if (!context.check(x.shape() == in && residual_fits, [&] {
          return Error(name_, residual_fits ? strata::detail::text(in) : "a residual of " + strata::detail::text(out),
                       strata::detail::text(residual_fits ? x.shape() : residual->shape()));
        }))
      return context.make(x.batch(), out);
    Tensor<Scalar> y = context.make(x.batch(), out);
    const Level level = context.level();
    const auto epilogue = weights_.epilogue(context.last_switch(), level, options_.activation,
                                            residual == nullptr ? nullptr : residual->data());
    const auto compute = [&](const auto& matrix) { multiply(context, matrix, x, y, epilogue); };
    if (context.path_chooser() != nullptr) weights_.choose_path(name_, level, *context.path_chooser(), compute);
    weights_.with_matrix(level, compute);
    return y;
  }

  LinearOptions options_;
  std::string name_;  ///< empty before `load`
  LayerWeights<Scalar, LinearIndex> weights_;
};

}  // namespace strata::inference
