"""One engine with one model, driven by lines on standard input: ENGINE PRECISION MODEL.onnx CORES INPUT.npy.
`run N` answers with N times in milliseconds, `output FILE` writes the logits. Runs under the engine's own Python."""
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
    engine, precision, path, cores, input_file = sys.argv[1:6]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the engine prints goes to the error stream
    x = np.load(input_file)
    run = load(engine, precision, path, int(cores), len(x))
    for _ in range(3):
        run(x)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        command, argument = line.split(maxsplit=1)
        if command == "output":
            np.save(argument.strip(), run(x))
            print("done", file=answers, flush=True)
            continue
        times = []
        for _ in range(int(argument)):
            start = time.perf_counter()
            run(x)
            times.append((time.perf_counter() - start) * 1e3)
        print(" ".join(f"{t:.4f}" for t in times), file=answers, flush=True)


main()
