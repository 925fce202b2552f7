// The dense convolution that sparse kernels are measured against: oneDNN's, in the layouts that it chooses.
#pragma once

#include <algorithm>
#include <dnnl.hpp>
#include <unordered_map>

#include <strata/kernels/convolution_shape.hpp>

namespace benchmarks {

/// A dense fp32 convolution with ReLU of one `size` x `size` picture.
class DensePeer {
 public:
  DensePeer(const strata::kernels::ConvolutionShape& shape, strata::index_t size, strata::index_t output_size)
      : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    using dnnl::memory;
    const auto any = [](const memory::dims& dims) {
      return memory::desc(dims, memory::data_type::f32, memory::format_tag::any);
    };
    const memory::dims stride{shape.stride.h, shape.stride.w};
    const memory::dims padding{shape.padding.h, shape.padding.w};
    const dnnl::convolution_forward::desc description(
        dnnl::prop_kind::forward_inference, dnnl::algorithm::convolution_auto, any({1, shape.in_channels, size, size}),
        any({shape.out_channels, shape.in_channels, shape.kernel.h, shape.kernel.w}), any({shape.out_channels}),
        any({1, shape.out_channels, output_size, output_size}), stride, padding, padding);
    dnnl::post_ops relu;
    relu.append_eltwise(1.0F, dnnl::algorithm::eltwise_relu, 0, 0);
    dnnl::primitive_attr attributes;
    attributes.set_post_ops(relu);
    const dnnl::convolution_forward::primitive_desc primitive(description, attributes, engine_);
    arguments_ = {{DNNL_ARG_SRC, filled(primitive.src_desc())},
                  {DNNL_ARG_WEIGHTS, filled(primitive.weights_desc())},
                  {DNNL_ARG_BIAS, filled(primitive.bias_desc())},
                  {DNNL_ARG_DST, filled(primitive.dst_desc())}};
    convolution_ = dnnl::convolution_forward(primitive);
  }

  void run() {
    convolution_.execute(stream_, arguments_);
    stream_.wait();
  }

 private:
  /// Memory whose numbers are all alike: what they are does not matter to a dense kernel.
  [[nodiscard]] dnnl::memory filled(const dnnl::memory::desc& description) const {
    const dnnl::memory memory(description, engine_);
    auto* const numbers = static_cast<float*>(memory.get_data_handle());
    std::fill_n(numbers, description.get_size() / sizeof(float), 0.01F);
    return memory;
  }

  dnnl::engine engine_;
  dnnl::stream stream_;
  dnnl::convolution_forward convolution_;
  std::unordered_map<int, dnnl::memory> arguments_;
};

}  // namespace benchmarks
