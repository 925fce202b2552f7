#!/usr/bin/env bash
# Builds and runs a program with a dispatched network against an installed copy, and shows that nothing of a variant
# leaks. Arguments: the build directory to install from, a scratch directory.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(realpath -m "$2")
rm -rf "$scratch"
fail() { echo "dispatch: $*" >&2; exit 1; }
cmake --install "$1" --prefix "$scratch/prefix" >/dev/null
configure() { cmake -S "$here" -B "$scratch/$1" -DCMAKE_PREFIX_PATH="$scratch/prefix" -DARCHS="$2"; }

# An instruction set that the build does not know is an error when configuring, by name.
if configure unknown 'sse2;avx1024' >"$scratch/unknown.log" 2>&1; then fail "avx1024 was accepted"; fi
tr -s ' \n' ' ' <"$scratch/unknown.log" | grep -q 'found "avx1024"' || fail "the error does not name avx1024"

case $(uname -m) in
x86_64) archs='sse2;avx2;avx512' ;;
aarch64) archs=neon64 ;;
*) echo "no instruction sets to dispatch between on $(uname -m)"; exit 0 ;;
esac
configure build "$archs" >/dev/null
cmake --build "$scratch/build" >/dev/null
program=$scratch/build/dispatched
best=$("$program")
echo "chosen here: $best"

# A variant shows its entry and nothing else, and has no group that the linker would merge with another one.
for arch in ${archs//;/ }; do
  object=$scratch/build/tiny_variants/$arch.o
  [ "$(nm --defined-only --extern-only --format=just-symbols "$object" | sort)" = "strata_variant_tiny_$arch" ] ||
    fail "$arch.o shows more than its entry"
  readelf --section-groups --wide "$object" | grep -q 'no section groups' || fail "$arch.o has section groups"
  if objdump -h "$object" | grep -qE '[.](pre)?init_array|[.]ctors'; then fail "$arch.o runs code before main"; fi
done
# Code that all machines run: no 512-bit register outside local symbols, that is, outside the variants.
if [ "$archs" != neon64 ]; then
  # By address: variants have functions of the same names as the program's common ones.
  nm --defined-only --extern-only "$program" | awk '{ print $1, $3 }' | sort -u >"$scratch/common"
  objdump -d --no-show-raw-insn "$program" |
    awk '/^[0-9a-f]+ <.*>:$/ { name = $1 " " substr($2, 2, length($2) - 3) } /%[yz]mm/ { print name }' | sort -u |
    comm -12 - "$scratch/common" | grep -v ' strata_variant_' >"$scratch/leaks" || true
  [ ! -s "$scratch/leaks" ] || fail "vector code in common functions: $(head -n 3 "$scratch/leaks")"
fi

# A variant may be forced; one that was not compiled is refused, not run.
first=${archs%%;*}
[ "$(STRATA_ARCH=$first "$program" 2>/dev/null)" = "$first" ] || fail "STRATA_ARCH=$first was not followed"
if STRATA_ARCH=mmx "$program" 2>"$scratch/forced.log"; then fail "STRATA_ARCH=mmx was accepted"; fi
grep -q 'STRATA_ARCH: expected an instruction set that was compiled' "$scratch/forced.log" || fail "no clear error"

# Older machines, where there is an emulator for them.
if [ "$archs" != neon64 ] && command -v qemu-x86_64 >/dev/null; then
  for machine in Nehalem:sse2 Haswell:avx2; do
    found=$(qemu-x86_64 -cpu "${machine%:*}" "$program" 2>"$scratch/qemu.log") || fail "on ${machine%:*}: $(cat "$scratch/qemu.log")"
    [ "$found" = "${machine#*:}" ] || fail "on ${machine%:*} expected ${machine#*:}, found $found"
  done
  if STRATA_ARCH=avx512 qemu-x86_64 -cpu Haswell "$program" 2>"$scratch/forced.log"; then fail "forced avx512"; fi
  grep -q 'STRATA_ARCH: expected an instruction set of this machine' "$scratch/forced.log" || fail "no clear error"
fi
