"""Times linear layers at small batches in strata, oneMKL, SciPy and DeepSparse, in turns on one core; see `run`."""
import argparse
import functools
import json
import os
import statistics
import subprocess
import sys

import numpy as np
import scipy.sparse

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import measurement
import mkl_sparse

DENSITIES = (0.1338, 0.0538)
CALLS = 15  # of a peer in a round; its median counts


def parse():
    parser = argparse.ArgumentParser(prog="run", description=__doc__)
    parser.add_argument("--linear", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--deepsparse", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", action="store_true", help="only build and install")
    parser.add_argument("--time", action="store_true", help="only measure what --prepare has made")
    parser.add_argument("--out", type=int, default=4096, help="features (default: %(default)s)")
    parser.add_argument("--in", type=int, default=1024, dest="columns", help="features (default: %(default)s)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="default: 1 8")
    parser.add_argument("--rounds", type=int, default=7, help="in which engines take turns (default: %(default)s)")
    parser.add_argument("--report", help="JSON file for the rows")
    return parser.parse_args()


class DeepSparse:
    def __init__(self, python, options, batch, density):
        command = [python, os.path.join(HERE, "deepsparse_engine.py"), str(options.out), str(options.columns),
                   str(batch), str(density)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True)
        if self.process.stdout.readline().strip() != "ready":
            sys.exit("DeepSparse did not start")

    def __call__(self):
        self.process.stdin.write(f"run {CALLS}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def strata_times(options):
    """Microseconds by (batch, density or 1, strata) of one run of benchmarks/linear."""
    batches = "|".join(map(str, options.batch))
    output = subprocess.run([options.linear, "--benchmark_format=json", "--benchmark_min_time=0.005",
                             "--benchmark_repetitions=3",
                             f"--benchmark_filter=out:{options.out}/in:{options.columns}/batch:({batches})/"],
                            check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    times = {}
    for row in json.loads(output)["benchmarks"]:
        if row.get("aggregate_name") != "median":
            continue
        fields = dict(field.split(":") for field in row["run_name"].split("/")[1:])
        times[int(fields["batch"]), int(fields["density"]) / 1e4, int(fields["strata"])] = row["real_time"]
    if not times:
        sys.exit(f"benchmarks/linear has no {options.out} x {options.columns} at batch {options.batch}")
    return times


def contenders(options):
    """(engine, batch, density) -> a function that gives microseconds."""
    median = functools.partial(measurement.median_microseconds, calls=CALLS)
    mkl = mkl_sparse.library()
    random = np.random.RandomState(0)
    result = {}
    for batch in options.batch:
        x = random.randn(options.columns, batch).astype(np.float32)
        for density in DENSITIES:
            matrix = scipy.sparse.random(options.out, options.columns, density, format="csr", dtype=np.float32,
                                         random_state=0)
            vector = x[:, 0].copy() if batch == 1 else x
            y = np.zeros((options.out, batch), np.float32)
            prepared = mkl_sparse.SparseMatrix(mkl, matrix, batch)
            product = prepared.product(x, y)
            product()
            if np.abs(y - matrix @ x).max() > 1e-3:
                sys.exit("oneMKL computes something else than SciPy")
            plain = mkl_sparse.SparseMatrix(mkl, matrix, batch, optimise=False).product(x, np.zeros_like(y))
            result["oneMKL", batch, density] = lambda f=plain: median(f)
            result["oneMKL, optimised", batch, density] = lambda f=product: median(f)
            result["SciPy", batch, density] = lambda a=matrix, b=vector: median(lambda: a @ b)
            if os.path.exists(options.deepsparse):
                result["DeepSparse", batch, density] = DeepSparse(options.deepsparse, options, batch, density)
        dense = random.randn(options.out, options.columns).astype(np.float32)
        vector = x[:, 0].copy() if batch == 1 else x
        result["dense (OpenBLAS)", batch, 1.0] = lambda a=dense, b=vector: median(lambda: a @ b)
    return result


def main():
    options = parse()
    if options.prepare and not options.time:
        return
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    peers = contenders(options)
    times = {}
    for _ in range(options.rounds):
        for (batch, density, strata), microseconds in strata_times(options).items():
            name = "dense (strata)" if density == 1 else "strata" if strata == 1 else f"strata, {strata} levels"
            times.setdefault((name, batch, density), []).append(microseconds)
        for key, function in peers.items():
            times.setdefault(key, []).append(function())
    medians = {key: statistics.median(values) for key, values in times.items()}
    print(f"{options.out} x {options.columns}, one core, microseconds a product; ratio: the engine's time over "
          "strata's")
    rows = []
    for batch in options.batch:
        for density in DENSITIES:
            base = medians["strata", batch, density]
            print(f"\nbatch {batch}, density {density:.2%}")
            for (name, at, of), microseconds in medians.items():
                if at == batch and of in (density, 1.0):
                    print(f"  {name:18} {microseconds:8.1f} {microseconds / base:7.2f}x")
        rows += [{"engine": name, "batch": at, "density": of, "median_us": round(microseconds, 3)}
                 for (name, at, of), microseconds in medians.items() if at == batch]
    if options.report:
        measurement.write_rows(options.report, rows)


if __name__ == "__main__":
    main()
