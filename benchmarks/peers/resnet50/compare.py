"""Times strata and its peers alternately on one ResNet-50 with nested masks; see `run`."""
import argparse
import json
import os
import statistics
import subprocess
import sys

import numpy as np
from safetensors.numpy import load_file

import onnx_model

HERE = os.path.dirname(os.path.abspath(__file__))
TOLERANCE = 1e-3  # of fp32 outputs, relative to the largest logit


class Peer:
    """An engine in a process of its own, so that all can stay loaded while one is timed."""

    def __init__(self, python, engine, precision, level, model, options, directory):
        self.engine, self.precision, self.level, self.times = engine, precision, level, []
        self.batch = options.batch
        command = [python, os.path.join(HERE, "engine.py"), engine, precision, model, str(options.cores),
                   os.path.join(directory, "input.npy")]
        self.log = open(os.path.join(directory, "engines.log"), "ab")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True)
        if self.process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{engine} {precision} did not start: see {self.log.name}")

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def output(self, path):
        self.ask(f"output {path}")
        return np.load(path)

    def measure(self, runs):
        self.times += [float(t) / self.batch for t in self.ask(f"run {runs}").split()]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Strata:
    """The benchmark program at one level; it alternates nothing itself here."""

    engine, precision = "strata", "fp32"

    def __init__(self, level, options, directory):
        self.level, self.times = level, []
        self.report = os.path.join(directory, "strata.json")
        self.command = [options.strata, "--benchmark", "--threads", str(options.cores), "--batch", str(options.batch),
                        "--seconds", str(options.seconds), "--level", str(level), "--report", self.report]

    def measure(self, _):
        subprocess.run(self.command, check=True, stdout=subprocess.DEVNULL)
        with open(self.report) as file:
            self.times.append(json.load(file)[0]["median_ms"])

    def close(self):
        pass


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strata", required=True)
    parser.add_argument("--deepsparse", required=True, help="Python of DeepSparse's environment")
    parser.add_argument("--directory", required=True, help="for the models")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="of one engine in one round")
    parser.add_argument("--report", help="JSON file for the rows")
    parser.add_argument("--plot", help="SVG or PNG file")
    return parser.parse_args()


def prepare(options, directory):
    """The weights that strata runs, as ONNX files; returns the logits strata computed."""
    os.makedirs(directory, exist_ok=True)
    subprocess.run([options.strata, "--benchmark", "--batch", str(options.batch), "--seconds", "0",
                    "--save-masked", directory], check=True, stdout=subprocess.DEVNULL)
    reference = load_file(os.path.join(directory, "reference.safetensors"))
    np.save(os.path.join(directory, "input.npy"), reference["input"])
    size = reference["input"].shape[2]
    for name in ("dense", "level1", "level0"):
        onnx_model.build(os.path.join(directory, name + ".safetensors"), os.path.join(directory, name + ".onnx"),
                         options.batch, size)
    onnx_model.quantise(os.path.join(directory, "dense.onnx"), os.path.join(directory, "dense_int8.onnx"),
                        os.path.join(directory, "input.npy"))
    return reference


def start(options, directory, reference):
    """All contenders whose fp32 outputs agree with strata's."""
    wanted = [("onnxruntime", "fp32", "dense", "dense"), ("openvino", "fp32", "dense", "dense"),
              ("openvino", "bf16", "dense", "dense"), ("openvino", "int8", "dense", "dense_int8"),
              ("deepsparse", "fp32", "dense", "dense"), ("deepsparse", "fp32", 1, "level1"),
              ("deepsparse", "fp32", 0, "level0")]
    contenders = []
    for engine, precision, level, model in wanted:
        python = options.deepsparse if engine == "deepsparse" else sys.executable
        if not os.path.exists(python):
            continue
        path = os.path.join(directory, model + ".onnx")
        try:
            peer = Peer(python, engine, precision, level, path, options, directory)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            continue
        expected = reference[f"logits.{level}"]
        difference = np.abs(peer.output(os.path.join(directory, "output.npy")) - expected).max() / np.abs(expected).max()
        print(f"{engine} {precision} {level}: largest difference to strata {difference:.1e} of the largest logit")
        if precision == "fp32" and difference > TOLERANCE:
            sys.exit(f"{engine} computes something else: {difference:.2e} of the largest logit, allowed {TOLERANCE}")
        contenders.append(peer)
    return contenders + [Strata(level, options, directory) for level in ("dense", 1, 0)]


def table(contenders, options):
    dense = min(statistics.median(c.times) for c in contenders
                if c.level == "dense" and c.precision == "fp32" and c.engine != "strata")
    rows = []
    print(f"\nResNet-50, 224 x 224, batch {options.batch}, {options.cores} cores, ms a picture")
    print(f"{'engine':12} {'precision':9} {'level':6} {'median':>8} {'spread':>7} {'against dense fp32':>19}")
    for contender in contenders:
        median = statistics.median(contender.times)
        spread = (max(contender.times) - min(contender.times)) / median
        print(f"{contender.engine:12} {contender.precision:9} {contender.level!s:6} {median:8.2f} {spread:6.0%} "
              f"{dense / median:18.2f}x")
        rows.append({"engine": contender.engine, "precision": contender.precision, "level": contender.level,
                     "cores": options.cores, "batch": options.batch, "median_ms": round(median, 4)})
    return rows


def plot(rows, options):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [f"{row['engine']} {row['precision']} {row['level']}" for row in rows]
    colours = ["tab:orange" if row["engine"] == "strata" else "tab:blue" for row in rows]
    figure, axes = pyplot.subplots(figsize=(8, 0.4 * len(rows) + 1), layout="constrained")
    bars = axes.barh(names, [row["median_ms"] for row in rows], color=colours)
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("ms a picture")
    axes.set_title(f"ResNet-50, 224 x 224, batch {options.batch}, {options.cores} cores")
    figure.savefig(options.plot)


def main():
    options = parse()
    directory = os.path.join(options.directory, f"batch{options.batch}")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-options.cores:])
    reference = prepare(options, directory)
    contenders = start(options, directory, reference)
    runs = max(1, round(options.seconds * 1000 / 60 / options.batch))
    for index in range(options.rounds):
        for contender in contenders:
            contender.measure(runs)
        if sys.stderr.isatty():
            print(f"\rround {index + 1} of {options.rounds}", end="", file=sys.stderr, flush=True)
    for contender in contenders:
        contender.close()
    rows = table(contenders, options)
    if options.report:
        with open(options.report + ".part", "w") as file:
            json.dump(rows, file, indent=2)
            file.write("\n")
        os.replace(options.report + ".part", options.report)
    if options.plot:
        plot(rows, options)


main()
