"""What the comparisons in this directory share: the time of a call and the file of rows."""
import json
import os
import statistics
import time


def median_microseconds(function, calls):
    """Median time of `calls` calls of `function` after one that is not counted."""
    function()
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def write_rows(path, rows):
    """Writes `rows` as JSON; `path` is replaced only by a whole file."""
    with open(path + ".part", "w") as file:
        json.dump(rows, file, indent=2)
        file.write("\n")
    os.replace(path + ".part", path)
