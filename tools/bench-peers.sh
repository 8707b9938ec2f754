#!/bin/sh
# flashgmm on the CPU beside its peers: builds the peers, runs all sides on the same data from the same start, and prints
# one table.
#
#     tools/bench-peers.sh [--peers VENV]... [--program FLASHGMM] [OPTION]...
#
# VLFeat, Armadillo and faiss are built against where their Debian packages are installed (libvlfeat-dev, libarmadillo-dev,
# libopenblas-dev, libfaiss-dev); scikit-learn and faiss for Python are taken from each environment given with --peers, else from
# python3. What is missing is skipped, saying so. Other options (--quick, --only, --rounds, --threads) go to bench_peers.py:
# see its --help.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
build=$root/build-bench
program=
pythons=

# A path is kept as one word.
quoted() { printf "'%s' " "$(printf %s "$1" | sed "s/'/'\\\\''/g")"; }

rest=
while [ $# -gt 0 ]; do
    case $1 in
    --peers | --program)
        [ $# -ge 2 ] || { echo "$0: $1 needs a value" >&2; exit 2; }
        if [ "$1" = --program ]; then
            folder=$(cd "$(dirname "$2")" && pwd)
            program=$folder/$(basename "$2")
        elif [ -x "$2/bin/python" ]; then
            folder=$(cd "$2" && pwd)
            pythons="$pythons$(quoted --python)$(quoted "$folder/bin/python")"
        else
            echo "$0: '$2' is not a Python environment: it has no bin/python" >&2
            exit 2
        fi
        shift
        ;;
    *) rest="$rest$(quoted "$1")" ;;
    esac
    shift
done
cd "$root"
mkdir -p "$build/peers"

if [ -z "$program" ]; then
    [ -f "$build/build.ninja" ] || meson setup "$build" -Dtests=false > "$build/setup.log" 2>&1 || { cat "$build/setup.log"; exit 1; }
    ninja -C "$build" > "$build/ninja.log" 2>&1 || { grep -v '^\[' "$build/ninja.log" | tail -n 30; exit 1; }
    program=$build/tools/flashgmm
fi
[ -n "$pythons" ] || pythons=$(quoted --python)$(quoted "$(command -v python3)")

# peer NAME PACKAGES COMPILER...: builds the peer, or leaves the reason why not beside its place
peer() {
    name=$1
    packages=$2
    shift 2
    rm -f "$build/peers/$name" "$build/peers/$name.missing"
    if ! "$@" -O3 -march=native -fopenmp -o "$build/peers/$name" > "$build/peers/$name.log" 2>&1; then
        echo "it cannot be built (see $build/peers/$name.log); it needs $packages" > "$build/peers/$name.missing"
    fi
}

peer vlfeat libvlfeat-dev "${CC:-cc}" tools/bench_vlfeat.c -lvl -lm
peer armadillo libarmadillo-dev "${CXX:-c++}" -DARMA_NO_DEBUG tools/bench_armadillo.cpp -larmadillo
peer faiss "libfaiss-dev and libopenblas-dev" "${CXX:-c++}" tools/bench_faiss.cpp -lfaiss -lopenblas

eval "exec python3 tools/bench_peers.py --program $(quoted "$program") --built $(quoted "$build/peers") $pythons $rest"
