#!/bin/sh
# From a fresh clone to a fitted mixture: installs what is missing, builds, fits the handwritten digits on the best
# device and on the CPU, and leaves a picture of what was found. Running it again does only what is left to do.
set -eu
cd "$(dirname "$0")/.."
. tools/setup.sh

need gcc libc6-dev meson ninja-build pkg-config python3 libzip-dev ocl-icd-opencl-dev opencl-headers

echo "Building into build/"
mkdir -p build
[ -f build/build.ninja ] || meson setup build -Dtests=false > build/setup.log 2>&1 || { cat build/setup.log; exit 1; }
ninja -C build > build/ninja.log 2>&1 || { grep -v '^\[' build/ninja.log | tail -n 30; exit 1; }

flashgmm=build/tools/flashgmm
X=data/digits/X.npy

# fit NAME DEVICE: fits, labels the rows, compares them with the digits.
fit() {
    echo
    echo "\$ flashgmm fit $X -k 10 --n-init 10 --seed 3 --device $2 -o build/digits-$1.npz"
    $flashgmm fit $X -k 10 --n-init 10 --seed 3 --device "$2" -o "build/digits-$1.npz"
    $flashgmm predict $X -m "build/digits-$1.npz" --device cpu -q -o "build/digits-$1-labels.npy"
    printf 'digits      '
    build/tools/digits-report "build/digits-$1-labels.npy" data/digits/y.npy "build/digits-$1.npz" build/digits-means.png
}

echo
echo '$ flashgmm devices'
$flashgmm devices

# A fit this small would be left to the CPU by "auto"; here the best device is to be seen at work. Where there is no
# GPU, a CPU that OpenCL offers shows that path.
best=$($flashgmm devices --json | python3 -c '
import json, sys
devices = [d for d in json.load(sys.stdin)["devices"] if d["usable"] and not d["native"]]
print(next((d["id"] for d in sorted(devices, key=lambda d: not d["default"])), "none"))')
if [ "$best" = none ]; then
    echo
    echo "No OpenCL device was found: the CPU is the best device here."
else
    fit device "$best"
fi
fit cpu cpu

echo
echo "The ten mean images are in build/digits-means.png. Next: $flashgmm --help"
