"""ResNet-50 as ONNX from a state_dict in safetensors, batch norm folded into the convolutions, zeros kept as zeros."""
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

BLOCKS = (3, 4, 6, 3)
NORM_EPSILON = 1e-5


def build(weights_file, onnx_file, batch, size):
    """Writes `onnx_file`: input batch x 3 x size x size, output batch x 1000 `logits`."""
    state = load_file(weights_file)
    nodes, tensors = [], []

    def tensor(name, values):
        tensors.append(numpy_helper.from_array(np.ascontiguousarray(values, dtype=np.float32), name))
        return name

    def convolution(x, name, norm, stride=1, relu=True):
        kernel = state[name + ".weight"]
        scale = state[norm + ".weight"] / np.sqrt(state[norm + ".running_var"] + NORM_EPSILON)
        bias = state[norm + ".bias"] - state[norm + ".running_mean"] * scale
        side = kernel.shape[2]
        inputs = [x, tensor(name + ".w", kernel * scale[:, None, None, None]), tensor(name + ".b", bias)]
        nodes.append(helper.make_node("Conv", inputs, [name], name=name, kernel_shape=[side, side],
                                      strides=[stride, stride], pads=[side // 2] * 4))
        if relu:
            nodes.append(helper.make_node("Relu", [name], [name + ".relu"]))
        return name + ".relu" if relu else name

    x = convolution("input", "conv1", "bn1", stride=2)
    nodes.append(helper.make_node("MaxPool", [x], ["pool"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4))
    x = "pool"
    for stage, count in enumerate(BLOCKS, start=1):
        for index in range(count):
            block = f"layer{stage}.{index}"
            stride = 2 if index == 0 and stage > 1 else 1
            y = convolution(x, block + ".conv1", block + ".bn1")
            y = convolution(y, block + ".conv2", block + ".bn2", stride=stride)
            y = convolution(y, block + ".conv3", block + ".bn3", relu=False)
            if index == 0:
                x = convolution(x, block + ".downsample.0", block + ".downsample.1", stride=stride, relu=False)
            nodes.append(helper.make_node("Add", [y, x], [block + ".sum"]))
            nodes.append(helper.make_node("Relu", [block + ".sum"], [block + ".out"]))
            x = block + ".out"
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["average"]))
    nodes.append(helper.make_node("Flatten", ["average"], ["features"]))
    classifier = ["features", tensor("fc.w", state["fc.weight"]), tensor("fc.b", state["fc.bias"])]
    nodes.append(helper.make_node("Gemm", classifier, ["logits"], transB=1))
    graph = helper.make_graph(
        nodes, "resnet50", [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, len(state["fc.bias"])])], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 7
    onnx.save(model, onnx_file)


def quantise(onnx_file, int8_file, pictures):
    """Writes a statically quantised copy (8-bit weights per channel and activations, calibrated on `pictures`)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class OneBatch(CalibrationDataReader):
        def __init__(self):
            self.batches = iter([{"input": pictures}])

        def get_next(self):
            return next(self.batches, None)

    quantize_static(onnx_file, int8_file, OneBatch(), quant_format=QuantFormat.QDQ, per_channel=True,
                    weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8)
