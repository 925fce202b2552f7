"""Compares strata with its peers on one ResNet-50 with nested masks; see `run`."""
import argparse
import os
import statistics
import subprocess
import sys

import numpy as np
from safetensors.numpy import load_file

import export

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import measurement

TOLERANCE = 1e-3  # of fp32 outputs, relative to the largest logit
LEVELS = ("dense", 1, 0)
# Engine, precision, level, ONNX file.
PEERS = [("onnxruntime", "fp32", "dense", "dense"), ("openvino", "fp32", "dense", "dense"),
         ("openvino", "bf16", "dense", "dense"), ("openvino", "int8", "dense", "dense_int8"),
         ("deepsparse", "fp32", "dense", "dense"), ("deepsparse", "fp32", 1, "level1"),
         ("deepsparse", "fp32", 0, "level0")]


class Engine:
    """An engine with one model in a process of its own, so that all stay loaded while one is timed."""

    def __init__(self, command, engine, precision, level, batch, directory):
        self.engine, self.precision, self.level, self.batch = engine, precision, level, batch
        self.times = []  # of every run, milliseconds a picture
        self.output_file = os.path.join(directory, "output.f32")
        self.log = open(os.path.join(directory, "engines.log"), "ab")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
                                        text=True)
        answer = self.process.stdout.readline().split()
        if len(answer) != 2 or answer[0] != "ready":
            raise RuntimeError(f"{engine} {precision} {level} did not start: see {self.log.name}")
        self.first = float(answer[1])

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.engine} {self.precision} {self.level} ended: see {self.log.name}")
        return answer

    def output(self):
        self.ask(f"output {self.output_file}")
        return np.fromfile(self.output_file, dtype=np.float32).reshape(self.batch, -1)

    def measure(self, seconds):
        """Runs for about `seconds`, at least once; one more run before brings the model back into the caches."""
        runs = max(1, round(seconds * 1e3 / self.first))
        times = [float(t) / self.batch for t in self.ask(f"run {runs + 1}").split()]
        self.times += times[1:]

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def parse():
    parser = argparse.ArgumentParser(prog="run", description=__doc__)
    parser.add_argument("--resnet50", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--engine", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--deepsparse", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--directory", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", action="store_true",
                        help="only build, draw masks, export, quantise and check that all engines agree")
    parser.add_argument("--time", action="store_true", help="only measure what --prepare has made")
    parser.add_argument("--masks", choices=("budgets", "uniform"), default="budgets",
                        help="densities by layer within the budgets of weights and FLOPs, or the same for all layers "
                        "(default: %(default)s)")
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="default: 1 16")
    parser.add_argument("--rounds", type=int, default=7, help="in which engines take turns (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.4, help="of one engine in one round (default: %(default)s)")
    parser.add_argument("--report", help="JSON file for the rows")
    parser.add_argument("--plot", help="SVG or PNG file")
    return parser.parse_args()


def prepare(options, directory):
    """The weights that strata runs, as ONNX files for every batch, and the input."""
    os.makedirs(directory, exist_ok=True)
    largest = max(options.batch)
    masks = ["--uniform"] if options.masks == "uniform" else []
    subprocess.run([options.resnet50, "--benchmark", "--batch", str(largest), "--seconds", "0", "--save-masked",
                    directory] + masks, check=True, stdout=subprocess.DEVNULL)
    reference = load_file(os.path.join(directory, "reference.safetensors"))
    size = reference["input"].shape[2]
    for batch in options.batch:
        reference["input"][:batch].tofile(input_file(directory, batch))
        for name in ("dense", "level1", "level0"):
            export.build(os.path.join(directory, name + ".safetensors"), model_file(directory, name, batch), batch,
                             size)
        export.quantise(model_file(directory, "dense", batch), model_file(directory, "dense_int8", batch),
                            reference["input"][:batch])
        for engine in start(options, directory, max(options.cores), batch):
            check(engine, reference[f"logits.{engine.level}"][:batch])
            engine.close()


def input_file(directory, batch):
    return os.path.join(directory, f"input_{batch}.f32")


def model_file(directory, name, batch):
    return os.path.join(directory, f"{name}_{batch}.onnx")


def start(options, directory, cores, batch):
    """All engines, one after the other; those whose Python is not there are left out."""
    for engine, precision, level, model in PEERS:
        python = options.deepsparse if engine == "deepsparse" else sys.executable
        if os.path.exists(python):
            path = model_file(directory, model, batch)
            if not os.path.exists(path):
                sys.exit(f"{path} is missing: call run --prepare with this --batch and --masks first")
            command = [python, os.path.join(HERE, "engine.py"), engine, precision, path, str(cores), str(batch),
                       input_file(directory, batch)]
            yield Engine(command, engine, precision, level, batch, directory)
    for level in LEVELS:
        model = "dense_model" if level == "dense" else "model"
        command = [options.engine, os.path.join(directory, model + ".safetensors"),
                   str(0 if level == "dense" else level), str(cores), str(batch), input_file(directory, batch)]
        yield Engine(command, "strata", "fp32", level, batch, directory)


def check(engine, expected):
    """Ends the program if an fp32 engine computes something else than strata."""
    difference = np.abs(engine.output() - expected).max() / np.abs(expected).max()
    print(f"batch {engine.batch}: {engine.engine} {engine.precision} {engine.level}: largest difference to strata "
          f"{difference:.1e} of the largest logit", flush=True)
    if engine.precision == "fp32" and not difference <= TOLERANCE:
        sys.exit(f"{engine.engine} computes something else: {difference:.2e} of the largest logit, allowed {TOLERANCE}")


def measure(options, directory, cores, batch):
    """Rows of one table: all engines in turns, pinned to the last `cores` cores."""
    every = sorted(os.sched_getaffinity(0))
    if len(every) < cores:
        sys.exit(f"--cores {cores}: {len(every)} may be used")
    os.sched_setaffinity(0, every[-cores:])
    engines = list(start(options, directory, cores, batch))
    for index in range(options.rounds):
        for engine in engines:
            engine.measure(options.seconds)
        if sys.stderr.isatty():
            print(f"\rround {index + 1} of {options.rounds}", end="", file=sys.stderr, flush=True)
    for engine in engines:
        engine.close()
    os.sched_setaffinity(0, every)
    return table(engines, options, cores, batch)


def table(engines, options, cores, batch):
    medians = [statistics.median(engine.times) for engine in engines]
    dense = min(median for engine, median in zip(engines, medians)
                if engine.level == "dense" and engine.precision == "fp32" and engine.engine != "strata")
    rows = []
    print(f"\nResNet-50, 224 x 224, {options.masks} masks, batch {batch}, {cores} core{'s' * (cores > 1)}, ms a "
          "picture")
    print(f"{'engine':12} {'precision':9} {'level':6} {'median':>8} {'middle half':>15} {'against dense fp32':>19}")
    for engine, median in zip(engines, medians):
        low, high = np.quantile(engine.times, [0.25, 0.75])
        print(f"{engine.engine:12} {engine.precision:9} {engine.level!s:6} {median:8.2f} "
              f"{f'{low:.2f} - {high:.2f}':>15} {dense / median:18.2f}x", flush=True)
        rows.append({"engine": engine.engine, "precision": engine.precision, "level": engine.level, "cores": cores,
                     "batch": batch, "median_ms": round(median, 4), "masks": options.masks})
    return rows


def plot(rows, options):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = sorted({(row["batch"], row["cores"]) for row in rows})
    most = max(sum((row["batch"], row["cores"]) == case for row in rows) for case in cases)
    figure, axes = pyplot.subplots(len(cases), 1, figsize=(8, len(cases) * (0.3 * most + 0.9)), layout="constrained",
                                   squeeze=False)
    for axis, (batch, cores) in zip(axes[:, 0], cases):
        shown = [row for row in rows if (row["batch"], row["cores"]) == (batch, cores)]
        names = [f"{row['engine']} {row['precision']} {'' if row['level'] == 'dense' else 'level '}{row['level']}"
                 for row in shown]
        colours = ["tab:orange" if row["engine"] == "strata" else "tab:blue" for row in shown]
        bars = axis.barh(names, [row["median_ms"] for row in shown], color=colours)
        axis.bar_label(bars, fmt="%.1f", padding=3)
        axis.margins(x=0.1)
        axis.invert_yaxis()
        axis.set_title(f"batch {batch}, {cores} core{'s' * (cores > 1)}")
    axes[-1, 0].set_xlabel("ms a picture")
    figure.suptitle(f"ResNet-50, 224 x 224, {options.masks} masks")
    figure.savefig(options.plot)


def main():
    options = parse()
    directory = os.path.join(options.directory, options.masks)
    if options.prepare or not options.time:
        prepare(options, directory)
    if options.prepare and not options.time:
        return
    rows = [row for batch in options.batch for cores in options.cores
            for row in measure(options, directory, cores, batch)]
    if options.report:
        measurement.write_rows(options.report, rows)
    if options.plot:
        plot(rows, options)


if __name__ == "__main__":
    main()
