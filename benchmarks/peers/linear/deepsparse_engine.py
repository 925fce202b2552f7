"""DeepSparse with one linear layer, driven by lines on standard input: OUT IN BATCH DENSITY. It says `ready`; `run N`
answers with the median of N runs in microseconds. The layer is a 1x1 convolution, since its Gemm does not use zeros."""
import os
import statistics
import sys
import tempfile
import time

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def model(rows, columns, batch, density, path):
    random = np.random.RandomState(0)
    weights = (random.randn(rows, columns) * (random.rand(rows, columns) < density)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[1, 1])
    graph = helper.make_graph([node], "linear",
                              [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, columns, 1, 1])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, rows, 1, 1])],
                              [numpy_helper.from_array(weights.reshape(rows, columns, 1, 1), "w")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])
    made.ir_version = 6
    onnx.save(made, path)


def main():
    rows, columns, batch = map(int, sys.argv[1:4])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the engine prints goes to the error stream
    import deepsparse

    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "linear.onnx")
        model(rows, columns, batch, float(sys.argv[4]), path)
        engine = deepsparse.Engine(path, batch_size=batch, num_cores=1)
    x = [np.random.RandomState(1).randn(batch, columns, 1, 1).astype(np.float32)]
    for _ in range(10):
        engine.run(x)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line.split()[1])):
            start = time.perf_counter()
            engine.run(x)
            times.append(time.perf_counter() - start)
        print(f"{statistics.median(times) * 1e6:.2f}", file=answers, flush=True)


main()
