// Layers of the inference family without weights or windows: flattening, dropout (nothing to do) and activations that
// stand alone.
#pragma once

#include <strata/kernels/epilogue.hpp>
#include <strata/layers/context.hpp>
#include <strata/layers/options.hpp>

namespace strata::inference {

/// channels x height x width -> (channels * height * width) x 1 x 1, in that order.
template <class Scalar, class Arch>
class Flatten {
 public:
  static constexpr bool has_parameters = false;
  [[nodiscard]] Tensor<Scalar> operator()(InferenceContext<Scalar, Arch>& context, const Tensor<Scalar>& x) const {
    const Shape in = x.shape();
    if (in.height == 1 && in.width == 1) return x;
    Tensor<Scalar> y = context.make(x.batch(), {in.size(), 1, 1});
    for (index_t image = 0; image < x.batch(); ++image) {
      index_t feature = 0;
      for (index_t channel = 0; channel < in.channels; ++channel)
        for (index_t row = 0; row < in.height; ++row) {
          const Scalar* source = x.row(image, channel, row);
          for (index_t column = 0; column < in.width; ++column, ++feature) *y.row(image, feature, 0) = source[column];
        }
    }
    return y;
  }
};

/// The identity: dropout acts in training only.
template <class Scalar, class Arch>
class Dropout {
 public:
  static constexpr bool has_parameters = false;
  explicit Dropout(double /*rate*/ = 0.5) {}
  [[nodiscard]] Tensor<Scalar> operator()(InferenceContext<Scalar, Arch>&, const Tensor<Scalar>& x) const { return x; }
};

/// An activation where there is no layer before it to fuse it into.
template <class Scalar, class Arch>
class ActivationLayer {
 public:
  static constexpr bool has_parameters = false;
  explicit ActivationLayer(Activation activation) : activation_(activation) {}
  [[nodiscard]] Tensor<Scalar> operator()(InferenceContext<Scalar, Arch>& context, const Tensor<Scalar>& x) const {
    using Batch = xsimd::batch<Scalar, Arch>;
    constexpr auto lanes = static_cast<index_t>(Batch::size);
    Tensor<Scalar> y(context.arena(), x.layout());
    const index_t size = x.layout().size();
    // Blocks are whole vectors long, so the last one may be computed whole.
    for (index_t i = 0; i < size; i += lanes)
      kernels::activate(Batch::load_aligned(x.data() + i), activation_).store_aligned(y.data() + i);
    return y;
  }

 private:
  Activation activation_;
};

}  // namespace strata::inference
