#!/usr/bin/env bash
# Checks sources with clang++ -fsyntax-only, warnings as errors, two at a time, for the instruction set with the most code.
# Arguments: the compiler, a directory for the precompiled header, the source directory, the files.
set -eu
compiler=$1 scratch=$2 source=$3
shift 3
mkdir -p "$scratch"
march=()
[ "$(uname -m)" != x86_64 ] || march=(-march=sapphirerapids)
flags=(-std=c++20 "${march[@]}" -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror
       -I"$source/include" -I"$source/tests" -isystem /usr/include/eigen3 "-DSTRATA_SOURCE_DIR=\"$source\"")
printf '#include <strata/strata.hpp>\n#include <strata/train/training.hpp>\n#include <support/catch.hpp>\n' >"$scratch/common.hpp"
"$compiler" "${flags[@]}" -x c++-header "$scratch/common.hpp" -o "$scratch/common.pch"
printf '%s\0' "$@" | xargs -0 -n 1 -P 2 "$compiler" "${flags[@]}" -fsyntax-only -include-pch "$scratch/common.pch"
echo "$# files are clean"
