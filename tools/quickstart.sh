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

# fit NAME DEVICE: fits, labels the rows, compares them with the digits. A condition switches "set -e" off: hence "&&".
fit() {
    echo
    echo "\$ flashgmm fit $X -k 10 --n-init 10 --seed 3 --device $2 -o build/digits-$1.npz"
    $flashgmm fit $X -k 10 --n-init 10 --seed 3 --device "$2" -o "build/digits-$1.npz" &&
        $flashgmm predict $X -m "build/digits-$1.npz" --device cpu -q -o "build/digits-$1-labels.npy" &&
        printf 'digits      ' &&
        build/tools/digits-report "build/digits-$1-labels.npy" data/digits/y.npy "build/digits-$1.npz" build/digits-means.png
}

echo
echo '$ flashgmm devices'
$flashgmm devices || true

# A fit this small would be left to the CPU by "auto"; here the best device is to be seen at work: its kind and name.
best=$($flashgmm devices --json 2> /dev/null | python3 -c '
import json, sys
devices = [d for d in json.load(sys.stdin)["devices"] if d["usable"] and not d["native"]]
devices.sort(key=lambda d: (not d["default"], d["kind"] == "cpu"))
print(*[d["kind"] + " " + d["id"] for d in devices[:1]])' 2> /dev/null) || best=
echo
case "${FLASHGMM_DEVICE-} $best" in
"cpu "*) echo "FLASHGMM_DEVICE=cpu: OpenCL is not looked for." ;;
*" ") echo "No usable OpenCL device was found: the CPU is the best device here." ;;
*" cpu "*) echo "No GPU was found: a CPU behind OpenCL stands in for one. flashgmm's own CPU path, further down, is faster." ;;
*) echo "The best device is ${best#* }." ;;
esac
if [ -n "$best" ] && ! fit device "${best#* }"; then
    echo
    echo "The fit on ${best#* } failed, for the reason above. Going on with the CPU."
fi
fit cpu cpu

echo
echo "The ten mean images are in build/digits-means.png. Next: $flashgmm --help"
