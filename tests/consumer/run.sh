#!/usr/bin/env bash
# Builds and runs the consumer against the source tree, then against an installed copy.
# Arguments: source directory, its build directory, a scratch directory.
set -eu
rm -rf "$3"
here=$(dirname "$0")
cmake -S "$here" -B "$3/subdirectory" -DSTRATA_SOURCE="$1"
cmake --build "$3/subdirectory"
"$3/subdirectory/consumer"
cmake --install "$2" --prefix "$3/prefix"
cmake -S "$here" -B "$3/package" -DCMAKE_PREFIX_PATH="$3/prefix"
cmake --build "$3/package"
"$3/package/consumer"
