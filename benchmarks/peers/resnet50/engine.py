"""One engine with one model, driven by lines on standard input: ENGINE PRECISION MODEL.onnx CORES BATCH INPUT, the last
a file of batch x 3 x 224 x 224 floats. It says `ready T` with the time of a run in milliseconds; `run N` answers with N
times, `output FILE` writes the logits as floats. Runs under the engine's own Python."""
import os
import sys
import time

import numpy as np


def load(engine, precision, path, cores, batch):
    """A function from the input array to the logits."""
    if engine == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"input": x})[0]
    if engine == "openvino":
        import openvino

        hint = "bf16" if precision == "bf16" else "f32"
        settings = {"INFERENCE_NUM_THREADS": cores, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
        request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
        return lambda x: list(request.infer({0: x}).values())[0]
    if engine == "deepsparse":
        import deepsparse

        compiled = deepsparse.Engine(path, batch_size=batch, num_cores=cores)
        return lambda x: compiled.run([x])[0]
    sys.exit(f"unknown engine {engine!r}")


def main():
    engine, precision, path, cores, batch, input_file = sys.argv[1:7]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the engine prints goes to the error stream
    x = np.fromfile(input_file, dtype=np.float32).reshape(int(batch), 3, 224, 224)
    run = load(engine, precision, path, int(cores), int(batch))

    def milliseconds():
        start = time.perf_counter()
        run(x)
        return (time.perf_counter() - start) * 1e3

    milliseconds()
    print(f"ready {milliseconds():.4f}", file=answers, flush=True)
    for line in sys.stdin:
        command, argument = line.split(maxsplit=1)
        if command == "output":
            np.asarray(run(x), dtype=np.float32).tofile(argument.strip())
            print("done", file=answers, flush=True)
        else:
            print(" ".join(f"{milliseconds():.4f}" for _ in range(int(argument))), file=answers, flush=True)


main()
