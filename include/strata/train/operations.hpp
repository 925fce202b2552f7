// Differentiable operations on the tape: convolution, normalisation with residual and activation, pooling, flattening,
// dropout. Layers (train/training.hpp) hold the parameters; operations only use them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <strata/core/activation.hpp>
#include <strata/layers/options.hpp>
#include <strata/train/bfloat16_convolution.hpp>
#include <strata/train/lane_convolution.hpp>
#include <strata/train/lane_norm.hpp>
#include <strata/train/parameter.hpp>
#include <strata/train/tape.hpp>

namespace strata::train {

namespace detail {

template <class Scalar>
using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>;
template <class Scalar>
using Strided = Eigen::Map<Matrix<Scalar>, 0, Eigen::OuterStride<>>;

/// Weights of one group as rows x (kernel.h, kernel.w, channels): the order of columns gathered from channels-last
/// pictures. Weights above the level are zero.
template <class Scalar>
void pack_weights(Context<Scalar>& context, const Parameter<Scalar>& weight, const Conv2dOptions& options, Level level,
                  index_t group, Matrix<Scalar>& packed) {
  const index_t rows = options.out_channels / options.groups;
  const index_t channels = options.in_channels / options.groups;
  const index_t taps = options.kernel.h * options.kernel.w;
  packed.resize(rows, taps * channels);
  context.for_parts(rows, [&](index_t, index_t first, index_t last) {
    for (index_t row = first; row < last; ++row)
      for (index_t c = 0; c < channels; ++c)
        for (index_t tap = 0; tap < taps; ++tap) {
          const index_t at = ((group * rows + row) * channels + c) * taps + tap;
          packed(row, tap * channels + c) = weight.contains(at, level) ? weight.value[at] : Scalar{0};
        }
  });
}

/// Calls `f(output pixel, tap, input pixel)` for every tap of the picture that lies inside it.
template <class F>
void for_taps(const Conv2dOptions& options, Shape in, Shape out, F&& f) {
  for (index_t y = 0; y < out.height; ++y)
    for (index_t x = 0; x < out.width; ++x)
      for (index_t ky = 0; ky < options.kernel.h; ++ky) {
        const index_t sy = y * options.stride.h - options.padding.h + ky * options.dilation.h;
        if (sy < 0 || sy >= in.height) continue;
        for (index_t kx = 0; kx < options.kernel.w; ++kx) {
          const index_t sx = x * options.stride.w - options.padding.w + kx * options.dilation.w;
          if (sx < 0 || sx >= in.width) continue;
          f(y * out.width + x, ky * options.kernel.w + kx, sy * in.width + sx);
        }
      }
}

template <class Scalar>
[[nodiscard]] Scalar activate(Scalar z, Activation activation) {
  switch (activation) {
    case Activation::identity:
      return z;
    case Activation::relu:
      return z > 0 ? z : Scalar{0};
    case Activation::relu6:
      return z > 0 ? (z < 6 ? z : Scalar{6}) : Scalar{0};
    case Activation::leaky_relu:
      return z > 0 ? z : z * static_cast<Scalar>(leaky_relu_slope);
    case Activation::elu:
      return z > 0 ? z : std::expm1(z);
    case Activation::sigmoid:
      return 1 / (1 + std::exp(-z));
    case Activation::tanh:
      return std::tanh(z);
    case Activation::silu:
      return z / (1 + std::exp(-z));
  }
  return z;
}

/// d activation / dz.
template <class Scalar>
[[nodiscard]] Scalar derivative(Scalar z, Activation activation) {
  switch (activation) {
    case Activation::identity:
      return 1;
    case Activation::relu:
      return z > 0 ? Scalar{1} : Scalar{0};
    case Activation::relu6:
      return z > 0 && z < 6 ? Scalar{1} : Scalar{0};
    case Activation::leaky_relu:
      return z > 0 ? Scalar{1} : static_cast<Scalar>(leaky_relu_slope);
    case Activation::elu:
      return z > 0 ? Scalar{1} : std::exp(z);
    case Activation::sigmoid: {
      const Scalar s = 1 / (1 + std::exp(-z));
      return s * (1 - s);
    }
    case Activation::tanh: {
      const Scalar t = std::tanh(z);
      return 1 - t * t;
    }
    case Activation::silu: {
      const Scalar s = 1 / (1 + std::exp(-z));
      return s * (1 + z * (1 - s));
    }
  }
  return 1;
}

}  // namespace detail

/// Cross-correlation of `x` with the weights that the context's level holds; no bias. In lanes where the batch has
/// whole vectors of pictures (train/lane_convolution.hpp), with sparse kernels for levels of few weights. Otherwise
/// gathers columns for a few pictures at a time and multiplies.
template <class Scalar>
[[nodiscard]] Tensor<Scalar> conv2d(Context<Scalar>& context, const Tensor<Scalar>& x, Parameter<Scalar>& weight,
                                    const Conv2dOptions& options) {
  using detail::Strided;
  using Matrix = detail::Matrix<Scalar>;
  const Shape in = x.shape();
  if (in.channels != options.in_channels || !options.fits(in.height, in.width))
    raise(strata::detail::wrong_input(weight.name.empty() ? "convolution" : weight.name, options, in));
  const Shape out{options.out_channels, options.output_height(in.height), options.output_width(in.width)};
  note_uses(context, weight, out.height * out.width);
  if (detail::suits_lanes(x, options, out)) {
    if (context.bfloat16 && kernels::bfloat16_for<Scalar>) {
      Tensor<Scalar> y = context.make(x.batch(), out, true, Layout::half_lanes);
      detail::bfloat16_convolution(context, x, weight, options, y);
      return y;
    }
    Tensor<Scalar> y = context.make(x.batch(), out, true, Layout::lanes);
    const auto convolution = std::make_shared<detail::LaneConvolution<Scalar>>(context, x, weight, options, y);
    convolution->run(context);
    context.record([=, &context] { convolution->run_back(context); });
    return y;
  }
  (void)x.value();  // before the parts begin, should it have to be copied
  Tensor<Scalar> y = context.make(x.batch(), out, true);
  const Level level = context.level;
  const index_t in_pixels = in.height * in.width;
  const index_t out_pixels = out.height * out.width;
  const index_t group_in = options.in_channels / options.groups;
  const index_t group_out = options.out_channels / options.groups;
  const index_t columns = options.columns();
  const bool pointwise = options.pointwise();
  const index_t pictures = out_pixels >= 256 ? 1 : ceil_div(256, out_pixels);  // enough columns for a good product
  auto packed = std::make_shared<std::vector<Matrix>>(static_cast<std::size_t>(options.groups));
  for (index_t g = 0; g < options.groups; ++g)
    detail::pack_weights(context, weight, options, level, g, (*packed)[static_cast<std::size_t>(g)]);

  // Columns of pictures first .. last-1 for one group: taps * group_in rows, one column an output pixel.
  const auto gather = [=](index_t first, index_t last, index_t group, Scalar* target) {
    std::fill(target, target + columns * out_pixels * (last - first), Scalar{0});
    for (index_t image = first; image < last; ++image, target += columns * out_pixels) {
      const Scalar* source = x.value().data() + image * in_pixels * in.channels + group * group_in;
      detail::for_taps(options, in, out, [&](index_t pixel, index_t tap, index_t from) {
        const Scalar* a = source + from * in.channels;
        Scalar* b = target + pixel * columns + tap * group_in;
        for (index_t c = 0; c < group_in; ++c) b[c] = a[c];
      });
    }
  };
  context.for_parts(x.batch(), [&](index_t part, index_t begin, index_t end) {
    for (index_t first = begin; first < end; first += pictures) {
      const index_t last = first + pictures < end ? first + pictures : end;
      const index_t width = (last - first) * out_pixels;
      for (index_t g = 0; g < options.groups; ++g) {
        Strided<Scalar> target(y.value().data() + first * out_pixels * out.channels + g * group_out, group_out, width,
                               Eigen::OuterStride<>(out.channels));
        const Matrix& w = (*packed)[static_cast<std::size_t>(g)];
        if (pointwise) {
          target.noalias() = w * Strided<Scalar>(x.value().data() + first * in_pixels * in.channels + g * group_in,
                                                 group_in, width, Eigen::OuterStride<>(in.channels));
        } else {
          Scalar* gathered = context.scratch(part, columns * width);
          gather(first, last, g, gathered);
          target.noalias() = w * Eigen::Map<Matrix>(gathered, columns, width);
        }
      }
    }
  });
  context.record([=, &context, &weight] {
    Scalar* dx = x.needs_gradient() ? x.gradient().data() : nullptr;
    Scalar* dy = y.gradient().data();
    std::vector<std::vector<Matrix>> sums(static_cast<std::size_t>(Context<Scalar>::parts));
    context.for_parts(x.batch(), [&](index_t part, index_t begin, index_t end) {
      auto& part_sums = sums[static_cast<std::size_t>(part)];
      part_sums.assign(static_cast<std::size_t>(options.groups), Matrix::Zero(group_out, columns));
      for (index_t first = begin; first < end; first += pictures) {
        const index_t last = first + pictures < end ? first + pictures : end;
        const index_t width = (last - first) * out_pixels;
        Scalar* gathered = pointwise ? nullptr : context.scratch(part, 2 * columns * width);
        Eigen::Map<Matrix> back(gathered + (pointwise ? 0 : columns * width), columns, width);
        for (index_t g = 0; g < options.groups; ++g) {
          const Strided<Scalar> d(dy + first * out_pixels * out.channels + g * group_out, group_out, width,
                                  Eigen::OuterStride<>(out.channels));
          if (pointwise) {  // the columns are the pixels as they lie
            const index_t at = first * in_pixels * in.channels + g * group_in;
            const Eigen::OuterStride<> stride(in.channels);
            part_sums[static_cast<std::size_t>(g)].noalias() +=
                d * Strided<Scalar>(x.value().data() + at, group_in, width, stride).transpose();
            if (dx != nullptr)
              Strided<Scalar>(dx + at, group_in, width, stride).noalias() +=
                  (*packed)[static_cast<std::size_t>(g)].transpose() * d;
            continue;
          }
          gather(first, last, g, gathered);
          part_sums[static_cast<std::size_t>(g)].noalias() +=
              d * Eigen::Map<Matrix>(gathered, columns, width).transpose();
          if (dx == nullptr) continue;
          back.noalias() = (*packed)[static_cast<std::size_t>(g)].transpose() * d;
          for (index_t image = first; image < last; ++image) {
            const Scalar* source = back.data() + (image - first) * out_pixels * columns;
            Scalar* target = dx + image * in_pixels * in.channels + g * group_in;
            detail::for_taps(options, in, out, [&](index_t pixel, index_t tap, index_t to) {
              const Scalar* a = source + pixel * columns + tap * group_in;
              Scalar* b = target + to * in.channels;
              for (index_t c = 0; c < group_in; ++c) b[c] += a[c];
            });
          }
        }
      }
    });
    // The parts are added in order, column by column, so that the threads share the work and not the order.
    std::vector<Matrix> total(static_cast<std::size_t>(options.groups), Matrix::Zero(group_out, columns));
    context.for_parts(columns, [&](index_t, index_t first, index_t last) {
      for (const auto& part_sums : sums)
        for (std::size_t g = 0; g < part_sums.size(); ++g)
          total[g].middleCols(first, last - first) += part_sums[g].middleCols(first, last - first);
    });
    const index_t taps = options.kernel.h * options.kernel.w;
    context.for_parts(options.groups * group_out, [&](index_t, index_t first, index_t last) {
      for (index_t row = first; row < last; ++row) {
        const Matrix& sum = total[static_cast<std::size_t>(row / group_out)];
        for (index_t c = 0; c < group_in; ++c)
          for (index_t tap = 0; tap < taps; ++tap) {
            const index_t at = (row * group_in + c) * taps + tap;
            if (weight.contains(at, level)) weight.gradient[at] += sum(row % group_out, tap * group_in + c);
          }
      }
    });
  });
  return y;
}

/// Parameters and running statistics of one level's batch normalisation: y = gamma (x - mean) / sqrt(variance +
/// `norm_epsilon`) + beta, one of each a channel. A run of a stored model uses the running ones.
template <class Scalar>
struct NormSet {
  Parameter<Scalar> gamma, beta;
  typename Parameter<Scalar>::Array running_mean, running_variance;

  explicit NormSet(index_t channels = 0)
      : gamma({channels}, 1),
        beta({channels}, 0),
        running_mean(Parameter<Scalar>::Array::Zero(channels)),
        running_variance(Parameter<Scalar>::Array::Ones(channels)) {}
};

inline constexpr double norm_epsilon = 1e-5;

namespace detail {

/// Scale and offset of a normalisation with what it took from the batch.
template <class Scalar>
struct Affine {
  using Array = typename Parameter<Scalar>::Array;
  Array mean, inverse;  ///< inverse: 1 / standard deviation
  Array scale, offset;  ///< z = x * scale + offset

  /// norm(x + bias) with the running statistics; both may be null.
  Affine(index_t channels, const NormSet<Scalar>* norm, const Parameter<Scalar>* bias) {
    mean = Array::Zero(channels);
    inverse = Array::Ones(channels);
    if (norm != nullptr) {
      mean = norm->running_mean;
      inverse = (norm->running_variance + static_cast<Scalar>(norm_epsilon)).rsqrt();
    }
    if (bias != nullptr) mean -= bias->value;
    finish(norm);
  }
  /// norm(x + bias) with the statistics of x over `count` numbers a channel of the batch, in which the bias falls out;
  /// they move the running ones, those of x + bias.
  Affine(const Array& batch_mean, const Array& variance, index_t count, double momentum, NormSet<Scalar>& norm,
         const Parameter<Scalar>* bias)
      : mean(batch_mean), inverse((variance + static_cast<Scalar>(norm_epsilon)).rsqrt()) {
    const auto m = static_cast<Scalar>(momentum);
    const Scalar unbiased = count > 1 ? static_cast<Scalar>(count) / static_cast<Scalar>(count - 1) : Scalar{1};
    norm.running_mean += m * (mean - norm.running_mean);
    norm.running_variance += m * (variance * unbiased - norm.running_variance);
    if (bias != nullptr) norm.running_mean += m * bias->value;
    finish(&norm);
  }

 private:
  void finish(const NormSet<Scalar>* norm) {
    scale = inverse;
    if (norm != nullptr) scale *= norm->gamma.value;
    offset = -mean * scale;
    if (norm != nullptr) offset += norm->beta.value;
  }
};

/// Raises for a residual that is not like `x`, the output of `place`.
template <class Scalar>
void check_residual(const Tensor<Scalar>& x, const Tensor<Scalar>* residual, std::string_view place = "residual") {
  if (residual == nullptr || (residual->shape() == x.shape() && residual->batch() == x.batch())) return;
  raise(Error({place}, {"a residual of shape ", x.batch(), " x ", strata::detail::text(x.shape())},
              {residual->batch(), " x ", strata::detail::text(residual->shape())}));
}

/// `finish` for activations in lanes, stored as numbers of the tape or as bfloat16: a sweep for the statistics, one for
/// the result; two on the way back.
template <class Stored, class Scalar>
[[nodiscard]] Tensor<Scalar> finish_in_lanes(Context<Scalar>& context, const Tensor<Scalar>& x, NormSet<Scalar>* norm,
                                             Parameter<Scalar>* bias, const Tensor<Scalar>* residual,
                                             Activation activation) {
  using Arch = xsimd::default_arch;
  using Array = typename Parameter<Scalar>::Array;
  using Columns = Eigen::Array<Scalar, Eigen::Dynamic, Eigen::Dynamic>;
  check_residual(x, residual);
  const LaneLayout layout = x.lane_layout();
  const index_t channels = layout.channels;
  const index_t count = x.pixels();
  const kernels::LaneBlock block{layout.pixels, layout.block};
  // Calls f(where a block of channels of a group of pictures starts, its first channel, the group).
  const auto for_blocks = [&context, layout](auto&& f) {
    context.for_parts(layout.groups * layout.blocks(), [&](index_t, index_t first, index_t last) {
      for (index_t i = first; i < last; ++i)
        f(i * layout.block_step(), i % layout.blocks() * layout.block, i / layout.blocks());
    });
  };
  const Stored* const values = x.template lanes<Stored>();
  Affine<Scalar> affine = [&] {
    if (norm == nullptr || !context.training) return Affine<Scalar>(channels, norm, bias);
    Columns means(channels, layout.groups);
    Columns squares(channels, layout.groups);
    for_blocks([&](index_t at, index_t channel, index_t group) {
      kernels::lane_moments<Arch>(block, values + at, &means(channel, group), &squares(channel, group));
    });
    // Moments of the groups to those of the batch.
    const Array mean = means.rowwise().mean();
    const Array variance =
        squares.rowwise().sum() / static_cast<Scalar>(count) + (means.colwise() - mean).square().rowwise().mean();
    return Affine<Scalar>(mean, variance, count, context.momentum(), *norm, bias);
  }();
  const bool relu = activation == Activation::relu;
  const bool keep = activation != Activation::identity && !relu;
  Tensor<Scalar> y =
      context.make(x.batch(), x.shape(), true, std::is_same_v<Stored, Scalar> ? Layout::lanes : Layout::half_lanes);
  auto before = std::make_shared<Array>(keep && context.training ? count * channels : 0);  // z
  const Stored* const added = residual == nullptr ? nullptr : residual->template lanes<Stored>();
  for_blocks([&](index_t at, index_t channel, index_t) {
    Stored* const target = y.template lanes<Stored>() + at;
    kernels::lane_affine<Arch>(block, values + at, &affine.scale[channel], &affine.offset[channel],
                               added == nullptr ? nullptr : added + at, relu, target);
    if (!keep) return;
    if (context.training) kernels::copy_stored(target, layout.block_step(), before->data() + at);
    for (index_t i = 0; i < layout.block_step(); ++i)
      target[i] = kernels::stored_as<Stored>(activate(kernels::stored_as<Scalar>(target[i]), activation));
  });
  const Tensor<Scalar> shortcut = residual == nullptr ? Tensor<Scalar>() : *residual;
  const bool has_residual = residual != nullptr;
  const bool to_shortcut = has_residual && residual->needs_gradient();
  context.record([=, affine = std::move(affine)] {
    Stored* const dy = y.template whole_lane_gradient<Stored>();
    const auto inputs = [&](index_t at, index_t channel) {
      kernels::LaneBackward<Scalar, Stored> from;
      from.x = x.template lanes<Stored>() + at;
      from.scale = &affine.scale[channel];
      from.shift = &affine.offset[channel];
      from.y = has_residual ? y.template lanes<Stored>() + at : nullptr;
      from.dy = dy + at;
      from.relu = relu;
      return from;
    };
    Columns sums(channels, layout.groups);      // of dz
    Columns products(channels, layout.groups);  // of dz * (x - mean)
    for_blocks([&](index_t at, index_t channel, index_t group) {
      if (keep)
        for (index_t i = at; i < at + layout.block_step(); ++i)
          dy[i] = kernels::stored_as<Stored>(kernels::stored_as<Scalar>(dy[i]) * derivative((*before)[i], activation));
      kernels::lane_gradient_sums<Arch>(block, inputs(at, channel), &affine.mean[channel], &sums(channel, group),
                                        &products(channel, group));
    });
    const Array sum = sums.rowwise().sum();
    const Array product = products.rowwise().sum() * affine.inverse;
    if (bias != nullptr && norm == nullptr) bias->gradient += sum;  // the batch's mean takes it out again
    Array slope = Array::Zero(channels);
    Array offset = Array::Zero(channels);
    if (norm != nullptr) {
      norm->gamma.gradient += product;
      norm->beta.gradient += sum;
      // dx = scale * (dz - mean of dz - normalised x * mean of (dz * normalised x))
      slope = -affine.scale * affine.inverse * product / static_cast<Scalar>(count);
      offset = -affine.scale * sum / static_cast<Scalar>(count) - slope * affine.mean;
    }
    if (!x.needs_gradient() && !to_shortcut) return;
    using LaneGradient = typename Tensor<Scalar>::template LaneGradient<Stored>;
    const LaneGradient for_shortcut = to_shortcut ? shortcut.template lane_gradient<Stored>() : LaneGradient();
    // Nobody asks for the gradient of y any more: that of x takes its place.
    const LaneGradient dx = x.template take_lane_gradient<Stored>(y);
    for_blocks([&](index_t at, index_t channel, index_t) {
      kernels::LaneAffineGradient<Scalar, Stored> job{inputs(at, channel)};
      job.slope = &slope[channel];
      job.offset = &offset[channel];
      job.dx = dx.data + at;
      job.add = !dx.fresh;
      job.residual = for_shortcut.data == nullptr ? nullptr : for_shortcut.data + at;
      job.add_residual = !for_shortcut.fresh;
      kernels::lane_affine_gradient<Arch>(block, job);
    });
  });
  return y;
}

}  // namespace detail

/// y = activation(norm(x + bias) + residual) in two passes over x. `norm` null: no normalisation; `bias` and `residual`
/// may be null. In training mode batch statistics, and the running ones are updated (arXiv 1502.03167).
template <class Scalar>
[[nodiscard]] Tensor<Scalar> finish(Context<Scalar>& context, const Tensor<Scalar>& x, NormSet<Scalar>* norm,
                                    Parameter<Scalar>* bias, const Tensor<Scalar>* residual, Activation activation) {
  if constexpr (kernels::bfloat16_for<Scalar>)
    if (x.has(Layout::half_lanes))
      return detail::finish_in_lanes<kernels::bfloat16>(context, x, norm, bias, residual, activation);
  if (x.has(Layout::lanes)) return detail::finish_in_lanes<Scalar>(context, x, norm, bias, residual, activation);
  using Array = typename Parameter<Scalar>::Array;
  using Sums = Eigen::Array<Scalar, Eigen::Dynamic, Eigen::Dynamic>;
  constexpr index_t parts = Context<Scalar>::parts;
  const index_t channels = x.shape().channels;
  const index_t pixels = x.pixels();
  detail::check_residual(x, residual);
  if (residual != nullptr) (void)residual->value();  // before the parts begin, should it have to be copied
  Tensor<Scalar> y = context.make(x.batch(), x.shape(), true);
  const bool batch_statistics = norm != nullptr && context.training;
  const auto affine = [&] {
    if (!batch_statistics) return std::make_shared<detail::Affine<Scalar>>(channels, norm, bias);
    Sums sums = Sums::Zero(channels, parts);
    context.for_parts(pixels, [&](index_t part, index_t first, index_t last) {
      sums.col(part) = x.matrix().middleCols(first, last - first).rowwise().sum().array();
    });
    const Array mean = sums.rowwise().sum() / static_cast<Scalar>(pixels);
    sums.setZero();
    context.for_parts(pixels, [&](index_t part, index_t first, index_t last) {
      for (index_t p = first; p < last; ++p) sums.col(part) += (x.matrix().col(p).array() - mean).square();
    });
    const Array variance = sums.rowwise().sum() / static_cast<Scalar>(pixels);
    return std::make_shared<detail::Affine<Scalar>>(mean, variance, pixels, context.momentum(), *norm, bias);
  }();
  const bool keep = activation != Activation::identity && activation != Activation::relu && context.training;
  auto before = std::make_shared<Array>(keep ? x.value().size() : 0);  // z, where y does not tell the derivative
  context.for_parts(pixels, [&](index_t, index_t first, index_t last) {
    for (index_t p = first; p < last; ++p) {
      auto target = y.matrix().col(p).array();
      target = x.matrix().col(p).array() * affine->scale + affine->offset;
      if (residual != nullptr) target += residual->matrix().col(p).array();
      if (keep) before->segment(p * channels, channels) = target;
      if (activation == Activation::relu) {
        target = target.max(Scalar{0});
      } else if (activation == Activation::elu) {  // in this form for whole vectors at once
        target = target.max(Scalar{0}) + (target.min(Scalar{0}).exp() - Scalar{1});
      } else if (activation != Activation::identity) {
        for (index_t c = 0; c < channels; ++c) target[c] = detail::activate(Scalar(target[c]), activation);
      }
    }
  });
  const Tensor<Scalar> added = residual == nullptr ? Tensor<Scalar>() : *residual;
  const bool has_residual = residual != nullptr;
  context.record([=, &context] {
    auto dy = y.gradient_matrix();
    Sums sums = Sums::Zero(channels, parts);      // of dz
    Sums products = Sums::Zero(channels, parts);  // of dz * normalised x
    context.for_parts(pixels, [&](index_t part, index_t first, index_t last) {
      for (index_t p = first; p < last; ++p) {
        auto dz = dy.col(p).array();
        if (activation == Activation::relu) {
          dz = (y.matrix().col(p).array() > Scalar{0}).select(dz, Scalar{0});
        } else if (activation == Activation::elu) {
          dz *= before->segment(p * channels, channels).min(Scalar{0}).exp();
        } else if (keep) {
          for (index_t c = 0; c < channels; ++c) dz[c] *= detail::derivative((*before)[p * channels + c], activation);
        }
        sums.col(part) += dz;
        if (norm != nullptr) products.col(part) += dz * (x.matrix().col(p).array() - affine->mean) * affine->inverse;
      }
    });
    const Array sum = sums.rowwise().sum();
    const Array product = products.rowwise().sum();
    if (bias != nullptr && norm == nullptr) bias->gradient += sum;  // the batch's mean takes it out again
    if (norm != nullptr) {
      norm->gamma.gradient += product;
      norm->beta.gradient += sum;
    }
    if (has_residual && added.needs_gradient()) added.gradient() += y.gradient();
    if (!x.needs_gradient()) return;
    auto dx = x.gradient_matrix();
    const auto n = static_cast<Scalar>(pixels);
    context.for_parts(pixels, [&](index_t, index_t first, index_t last) {
      for (index_t p = first; p < last; ++p) {
        if (batch_statistics) {
          dx.col(p).array() +=
              affine->scale * (dy.col(p).array() - sum / n -
                               (x.matrix().col(p).array() - affine->mean) * affine->inverse * (product / n));
        } else {
          dx.col(p).array() += affine->scale * dy.col(p).array();
        }
      }
    });
  });
  return y;
}

namespace detail {

/// Mean of all pixels, for activations in lanes.
template <class Scalar>
[[nodiscard]] Tensor<Scalar> mean_in_lanes(Context<Scalar>& context, const Tensor<Scalar>& x) {
  using Vector = Eigen::Map<Eigen::Array<Scalar, Eigen::Dynamic, 1>, Eigen::AlignedMax>;
  using ConstVector = Eigen::Map<const Eigen::Array<Scalar, Eigen::Dynamic, 1>, Eigen::AlignedMax>;
  const LaneLayout layout = x.lane_layout();
  Tensor<Scalar> y = context.make(x.batch(), {layout.channels, 1, 1}, true, Layout::lanes);
  const index_t size = layout.block * layout.lanes;  // of a pixel's block of channels
  const index_t blocks = layout.groups * layout.blocks();
  const Scalar* const values = x.lanes();
  context.for_parts(blocks, [&](index_t, index_t first, index_t last) {
    for (index_t block = first; block < last; ++block) {
      const Scalar* const from = values + block * layout.block_step();
      Vector sum(y.lanes() + block * size, size);
      sum = ConstVector(from, size);
      for (index_t p = 1; p < layout.pixels; ++p) sum += ConstVector(from + p * size, size);
      sum /= static_cast<Scalar>(layout.pixels);
    }
  });
  context.record([=, &context] {
    if (!x.needs_gradient()) return;
    const Scalar* const dy = y.whole_lane_gradient();
    const auto dx = x.lane_gradient();
    context.for_parts(blocks, [&](index_t, index_t first, index_t last) {
      for (index_t block = first; block < last; ++block)
        for (index_t p = 0; p < layout.pixels; ++p) {
          Vector to(dx.data + block * layout.block_step() + p * size, size);
          const auto share = ConstVector(dy + block * size, size) / static_cast<Scalar>(layout.pixels);
          if (dx.fresh) {
            to = share;
          } else {
            to += share;
          }
        }
    });
  });
  return y;
}

}  // namespace detail

/// Maximum or mean of windows; a mean counts the pixels inside the picture only. A NaN in a window is its maximum, so
/// that a run that diverges shows in the loss; among equals the first pixel takes the gradient.
template <bool maximum, class Scalar>
[[nodiscard]] Tensor<Scalar> pool(Context<Scalar>& context, const Tensor<Scalar>& x, const PoolOptions& options) {
  const Shape in = x.shape();
  if (!options.fits(in.height, in.width))
    raise(Error({"pooling"},
                {"pictures of at least ", options.kernel.h - 2 * options.padding.h, " x ",
                 options.kernel.w - 2 * options.padding.w},
                {strata::detail::text(in)}));
  const Shape out{in.channels, options.output_height(in.height), options.output_width(in.width)};
  if (!maximum && x.in_lanes() && options.kernel == Pair(in.height, in.width) && options.padding == Pair(0))
    return detail::mean_in_lanes(context, x);
  (void)x.value();  // before the parts begin, should it have to be copied
  Tensor<Scalar> y = context.make(x.batch(), out, true);
  auto winners = std::make_shared<std::vector<std::int32_t>>(maximum ? static_cast<std::size_t>(y.value().size()) : 0);
  // Calls f(first input row, behind the last, first column, behind the last) of the window of output pixel (oy, ox).
  const auto window = [=](index_t oy, index_t ox, auto&& f) {
    const index_t top = oy * options.stride.h - options.padding.h;
    const index_t left = ox * options.stride.w - options.padding.w;
    f(std::max<index_t>(top, 0), std::min(top + options.kernel.h, in.height), std::max<index_t>(left, 0),
      std::min(left + options.kernel.w, in.width));
  };
  context.for_parts(x.batch(), [&](index_t, index_t first, index_t last) {
    for (index_t image = first; image < last; ++image)
      for (index_t oy = 0; oy < out.height; ++oy)
        for (index_t ox = 0; ox < out.width; ++ox)
          window(oy, ox, [&](index_t y0, index_t y1, index_t x0, index_t x1) {
            const index_t to = ((image * out.height + oy) * out.width + ox) * out.channels;
            for (index_t c = 0; c < in.channels; ++c) {
              Scalar best = maximum ? -std::numeric_limits<Scalar>::infinity() : Scalar{0};
              if constexpr (maximum)
                (*winners)[static_cast<std::size_t>(to + c)] = static_cast<std::int32_t>(y0 * in.width + x0);
              for (index_t sy = y0; sy < y1; ++sy)
                for (index_t sx = x0; sx < x1; ++sx) {
                  const index_t from = ((image * in.height + sy) * in.width + sx) * in.channels + c;
                  const Scalar value = x.value()[from];
                  if constexpr (maximum) {
                    if (value > best || std::isnan(value)) {
                      best = value;
                      (*winners)[static_cast<std::size_t>(to + c)] = static_cast<std::int32_t>(sy * in.width + sx);
                    }
                  } else {
                    best += value;
                  }
                }
              y.value()[to + c] = maximum ? best : best / static_cast<Scalar>((y1 - y0) * (x1 - x0));
            }
          });
  });
  context.record([=, &context] {
    if (!x.needs_gradient()) return;
    auto& dx = x.gradient();
    auto& dy = y.gradient();
    context.for_parts(x.batch(), [&](index_t, index_t first, index_t last) {
      for (index_t image = first; image < last; ++image)
        for (index_t oy = 0; oy < out.height; ++oy)
          for (index_t ox = 0; ox < out.width; ++ox)
            window(oy, ox, [&](index_t y0, index_t y1, index_t x0, index_t x1) {
              const index_t at = ((image * out.height + oy) * out.width + ox) * out.channels;
              for (index_t c = 0; c < in.channels; ++c) {
                if constexpr (maximum) {
                  const index_t pixel = (*winners)[static_cast<std::size_t>(at + c)];
                  dx[(image * in.height * in.width + pixel) * in.channels + c] += dy[at + c];
                } else {
                  const Scalar share = dy[at + c] / static_cast<Scalar>((y1 - y0) * (x1 - x0));
                  for (index_t sy = y0; sy < y1; ++sy)
                    for (index_t sx = x0; sx < x1; ++sx)
                      dx[((image * in.height + sy) * in.width + sx) * in.channels + c] += share;
                }
              }
            });
    });
  });
  return y;
}

/// channels x height x width -> features in that order, as PyTorch's flatten does (the tape has channels last).
template <class Scalar>
[[nodiscard]] Tensor<Scalar> flatten(Context<Scalar>& context, const Tensor<Scalar>& x) {
  const Shape in = x.shape();
  if (in.height == 1 && in.width == 1) return x;
  Tensor<Scalar> y = context.make(x.batch(), {in.size(), 1, 1}, true);
  const index_t pixels = in.height * in.width;
  for (index_t image = 0; image < x.batch(); ++image)
    for (index_t p = 0; p < pixels; ++p)
      for (index_t c = 0; c < in.channels; ++c)
        y.value()[image * in.size() + c * pixels + p] = x.value()[image * in.size() + p * in.channels + c];
  context.record([=] {
    if (!x.needs_gradient()) return;
    auto& dx = x.gradient();
    const auto& dy = y.gradient();
    for (index_t image = 0; image < x.batch(); ++image)
      for (index_t p = 0; p < pixels; ++p)
        for (index_t c = 0; c < in.channels; ++c)
          dx[image * in.size() + p * in.channels + c] += dy[image * in.size() + c * pixels + p];
  });
  return y;
}

namespace detail {

/// Which of an operation's numbers dropout keeps: follows from seed, step, operation and place alone (SplitMix64).
template <class Scalar>
class DropoutChoice {
 public:
  DropoutChoice(Context<Scalar>& context, double rate)
      : rate_(context.dropout_rate(rate)),
        base_((context.seed * 0x9E3779B97F4A7C15U + context.step * 0xD1B54A32D192ED03U + context.next_operation()) *
              0xBF58476D1CE4E5B9U),
        active_(context.training && rate_ > 0),
        limit_(static_cast<std::uint64_t>(std::ceil(std::ldexp(rate_, 53)))),
        kept_(static_cast<Scalar>(1 / (1 - rate_))) {}

  [[nodiscard]] bool active() const noexcept { return active_; }
  /// What kept numbers are multiplied with.
  [[nodiscard]] Scalar kept() const noexcept { return kept_; }
  /// 0 or `kept()`.
  [[nodiscard]] Scalar factor(index_t i) const noexcept {
    std::uint64_t h = base_ + static_cast<std::uint64_t>(i) * 0x9E3779B97F4A7C15U;
    h = (h ^ (h >> 30U)) * 0xBF58476D1CE4E5B9U;
    h = (h ^ (h >> 27U)) * 0x94D049BB133111EBU;
    h ^= h >> 31U;
    return h >> 11U < limit_ ? Scalar{0} : kept_;
  }

 private:
  double rate_;
  std::uint64_t base_;
  bool active_;
  std::uint64_t limit_;  ///< of the upper 53 bits; those below it are dropped
  Scalar kept_;
};

}  // namespace detail

/// In training each activation is dropped with probability `rate` (times the level's factor, if the context has one),
/// the others scaled by 1 / (1 - rate). The choice follows from seed, step and place alone (SplitMix64), so it does not
/// depend on threads.
template <class Scalar>
[[nodiscard]] Tensor<Scalar> dropout(Context<Scalar>& context, const Tensor<Scalar>& x, double rate) {
  const detail::DropoutChoice<Scalar> choice(context, rate);
  if (!choice.active()) return x;
  const index_t size = x.value().size();
  const Tensor<Scalar> y = context.make(x.batch(), x.shape(), true);
  const Tensor<Scalar> factors = context.make(x.batch(), x.shape(), false);
  Scalar* const f = factors.value().data();
  context.for_parts(size, [&](index_t, index_t first, index_t last) {
    for (index_t i = first; i < last; ++i) f[i] = choice.factor(i);
    y.value().segment(first, last - first) =
        x.value().segment(first, last - first) * factors.value().segment(first, last - first);
  });
  context.record([=, &context] {
    if (!x.needs_gradient()) return;
    auto& dx = x.gradient();
    const auto& dy = y.gradient();
    context.for_parts(size, [&](index_t, index_t first, index_t last) {
      dx.segment(first, last - first) += dy.segment(first, last - first) * factors.value().segment(first, last - first);
    });
  });
  return y;
}

}  // namespace strata::train
