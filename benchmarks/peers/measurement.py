"""What the comparisons in this directory share: the time of a call and the file of rows."""
import json
import os
import statistics
import struct
import time

import numpy as np


def median_microseconds(function, calls):
    """Median time of `calls` calls of `function` after one that is not counted."""
    function()
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def median_milliseconds(function, seconds):
    """Median time of a call of `function`, called for so many seconds, five times at least."""
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def read_safetensors(path, prefix=""):
    """The arrays of floats whose names begin with `prefix`, by the rest of their names."""
    with open(path, "rb") as file:
        data = file.read()
    (length,) = struct.unpack("<Q", data[:8])
    arrays = {}
    for name, entry in json.loads(data[8:8 + length]).items():
        if name == "__metadata__" or entry["dtype"] != "F32" or not name.startswith(prefix):
            continue
        first, last = entry["data_offsets"]
        values = np.frombuffer(data[8 + length + first:8 + length + last], dtype="<f4").copy()
        arrays[name.removeprefix(prefix)] = values.reshape(entry["shape"])
    return arrays


def write_rows(path, rows):
    """Writes `rows` as JSON; `path` is replaced only by a whole file."""
    with open(path + ".part", "w") as file:
        json.dump(rows, file, indent=2)
        file.write("\n")
    os.replace(path + ".part", path)
