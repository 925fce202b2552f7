"""Graphs for ONNX Runtime, put together operation by operation."""
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

OPSET = 18


class Graph:
    """What a session computes: `constant`, `input` and `node` return names, which other nodes take."""

    def __init__(self):
        self.nodes, self.initializers, self.inputs = [], [], []

    def constant(self, value, dtype=np.float32):
        name = f"constant{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.array(value, dtype, order="C"), name))
        return name

    def integers(self, *values):
        return self.constant(values, np.int64)

    def input(self, name, shape, dtype=TensorProto.FLOAT):
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def node(self, kind, *arguments, results=1, **attributes):
        """The name of its result, or a list of them if there are several."""
        names = [f"{kind}{len(self.nodes)}_{i}" for i in range(results)]
        self.nodes.append(helper.make_node(kind, arguments, names, **attributes))
        return names if results > 1 else names[0]

    def perceptron(self, x, weight, bias):
        """Rows of inputs by out x in weights."""
        return self.node("Gemm", x, self.constant(weight), self.constant(bias), transB=1)

    def session(self, *outputs):
        """What computes `outputs`, on one thread."""
        results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "graph", self.inputs, results, self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
