"""Times the 1x1 convolutions of ResNet-50 in strata and, as sparse x dense products, in oneMKL, in turns on one core;
see `run`. Sparse Register Tiling (PLDI'23; the best of 244-700 configurations per shape) and XNNPACK's f32-spmm were
measured once on a machine of the same kind (Zen 4, AVX-512): quoted, in microseconds, not measured here."""
import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile

import numpy as np
import scipy.sparse

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import measurement
import mkl_sparse

CALLS = 7  # of oneMKL in a round; their median counts
# (out, in, pixels) -> density -> (Sparse Register Tiling, XNNPACK)
QUOTED = {
    (64, 64, 3136): {0.1338: (57, 103), 0.0538: (31, 53)},
    (256, 64, 3136): {0.1338: (214, 384), 0.0538: (118, 197)},
    (64, 256, 3136): {0.1338: (240, 500), 0.0538: (109, 220)},
    (128, 512, 784): {0.1338: (226, 486), 0.0538: (107, 199)},
    (512, 128, 784): {0.1338: (214, 383), 0.0538: (103, 168)},
    (256, 1024, 196): {0.1338: (281, 521), 0.0538: (127, 204)},
    (1024, 256, 196): {0.1338: (275, 349), 0.0538: (122, 148)},
    (512, 2048, 49): {0.1338: (349, 677), 0.0538: (164, 261)},
    (2048, 512, 49): {0.1338: (344, 525), 0.0538: (160, 205)},
}


def parse():
    parser = argparse.ArgumentParser(prog="run", description=__doc__)
    parser.add_argument("--kernels", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", action="store_true", help="only build and install")
    parser.add_argument("--time", action="store_true", help="only measure what --prepare has made")
    parser.add_argument("--rounds", type=int, default=5, help="in which engines take turns (default: %(default)s)")
    parser.add_argument("--report", help="JSON file for the rows")
    return parser.parse_args()


def strata_times(options):
    """Microseconds by (shape, density or 1) of one run of benchmarks/kernels."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        subprocess.run([options.kernels, f"--benchmark_out={report.name}", "--benchmark_out_format=json",
                        "--benchmark_min_time=0.005", "--benchmark_repetitions=3",
                        "--benchmark_filter=1x1, /1/(13.38 %|5.38 %|dense kernel)$"], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        rows = json.load(report)["benchmarks"]
    scale = {"ns": 1e-3, "us": 1, "ms": 1e3}
    times = {}
    for row in rows:
        if row.get("aggregate_name") != "median":
            continue
        name = re.match(r"(\d+) x (\d+), (\d+)x\d+, 1x1, /1/(?:([\d.]+) %|dense kernel)", row["run_name"])
        out, columns, size = map(int, name.groups()[:3])
        density = float(name[4]) / 100 if name[4] else 1
        times[(out, columns, size * size), round(density, 4)] = row["real_time"] * scale[row["time_unit"]]
    return times


def mkl_products():
    """(shape, density) -> a function that runs the product."""
    mkl = mkl_sparse.library()
    random = np.random.RandomState(0)
    products = {}
    for shape, densities in QUOTED.items():
        out, columns, pixels = shape
        x = random.randn(columns, pixels).astype(np.float32)
        for density in densities:
            matrix = scipy.sparse.random(out, columns, density, format="csr", dtype=np.float32, random_state=0)
            y = np.zeros((out, pixels), np.float32)
            products[shape, density] = mkl_sparse.SparseMatrix(mkl, matrix, pixels).product(x, y)
            products[shape, density]()
            if np.abs(y - matrix @ x).max() > 1e-3:
                sys.exit("oneMKL computes something else than SciPy")
    return products


def main():
    options = parse()
    if options.prepare and not options.time:
        return
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    products = mkl_products()
    strata, mkl = {}, {}
    for _ in range(options.rounds):
        for key, microseconds in strata_times(options).items():
            strata.setdefault(key, []).append(microseconds)
        for key, product in products.items():
            mkl.setdefault(key, []).append(measurement.median_microseconds(product, CALLS))
    print("1x1 convolutions of ResNet-50, one core, microseconds; in brackets the engine's time over strata's.\n"
          "strata and oneMKL: measured here, in turns; SRT (Sparse Register Tiling) and XNNPACK: quoted.\n")
    print(f"{'out x in x pixels':18} {'density':>8} {'strata':>8} {'GFLOP/s':>8} {'oneMKL':>15} {'SRT':>13} "
          f"{'XNNPACK':>13}")
    rows, ratios = [], {}
    for shape, densities in QUOTED.items():
        for density, (tiling, xnnpack) in densities.items():
            if (shape, density) not in strata:
                sys.exit(f"benchmarks/kernels has no {shape} at density {density}")
            ours = statistics.median(strata[shape, density])
            theirs = {"oneMKL": statistics.median(mkl[shape, density]), "SRT": tiling, "XNNPACK": xnnpack}
            gflops = 2 * density * math.prod(shape) / ours / 1e3
            cells = [f"{theirs[name]:.0f} ({theirs[name] / ours:.2f}x)" for name in theirs]
            print(f"{' x '.join(map(str, shape)):18} {density:8.2%} {ours:8.0f} {gflops:8.0f} {cells[0]:>15} "
                  f"{cells[1]:>13} {cells[2]:>13}")
            for name, microseconds in theirs.items():
                ratios.setdefault((name, density), []).append(microseconds / ours)
            for name, microseconds in {"strata": ours, **theirs}.items():
                rows.append({"engine": name, "shape": list(shape), "density": density, "us": round(microseconds, 2),
                             "measured": name in ("strata", "oneMKL")})
    print()
    for (name, density), values in ratios.items():
        print(f"{name} over strata at {density:.2%}: geometric mean {statistics.geometric_mean(values):.2f}, "
              f"least {min(values):.2f}")
    if options.report:
        measurement.write_rows(options.report, rows)


if __name__ == "__main__":
    main()
