#!/usr/bin/env bash
# Builds and runs the consumer against the source tree, then against an installed copy, each with and without Eigen.
# Arguments: source directory, its build directory, a scratch directory.
set -eu
rm -rf "$3"
here=$(dirname "$0")
cmake --install "$2" --prefix "$3/prefix"

build() {  # scratch directory, options
  directory=$1
  shift
  cmake -S "$here" -B "$directory" "$@"
  cmake --build "$directory"
  "$directory/consumer"
}
build "$3/subdirectory" -DSTRATA_SOURCE="$1" -DTRAINING=ON
build "$3/package" -DCMAKE_PREFIX_PATH="$3/prefix" -DTRAINING=ON
build "$3/subdirectory-inference" -DSTRATA_SOURCE="$1" -DCMAKE_DISABLE_FIND_PACKAGE_Eigen3=ON
build "$3/package-inference" -DCMAKE_PREFIX_PATH="$3/prefix" -DCMAKE_DISABLE_FIND_PACKAGE_Eigen3=ON
