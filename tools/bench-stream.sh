#!/bin/sh
# A file eight times the limit on memory: what an iteration or a pass takes, beside reading the file alone and computing with
# its rows in memory. The better of three runs each, on the CPU.
#
#     tools/bench-stream.sh FLASHGMM [MIB] [FOLDER]
#
# MIB: size of the file, 1024 if not given; FOLDER: where it goes, on the disk to be measured. Needs Python with NumPy and GNU dd.
set -eu
program=$(realpath "$1")
mib=${2:-1024}
folder=$(mktemp -d "${3:-.}/bench-stream-XXXXXX")
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export FLASHGMM_DEVICE=cpu
# Threads that spin while they wait take the processor from the one that reads.
export OMP_WAIT_POLICY=passive
# Where another python3 stands first on the path, the system's may have NumPy.
if ! python3 -c 'import numpy' 2> /dev/null; then PATH=/usr/bin:$PATH; fi
limit=$((mib / 8))

# make D: rows of 64 clusters
make() {
    python3 - "$1" "$mib" << 'PYTHON'
import sys
import numpy as np
d, n = int(sys.argv[1]), int(sys.argv[2]) * 2**20 // (4 * int(sys.argv[1]))
rng = np.random.default_rng(1)
centres = rng.normal(0, 3, (64, d)).astype("f4")
with open("rows.fbin", "wb") as file:
    np.array([n, d], "u4").tofile(file)
    for first in range(0, n, 65536):
        m = min(65536, n - first)
        (centres[rng.integers(0, 64, m)] + rng.standard_normal((m, d), "f4")).tofile(file)
PYTHON
    sync rows.fbin
}

forget() { dd of=rows.fbin oflag=nocache conv=notrunc,fdatasync count=0 2> /dev/null; }
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }
least() { sort -g | head -n 1; }
thrice() { for round in 1 2 3; do "$@"; done | least; }

reading() {
    [ "$1" = warm ] || forget
    python3 -c '
import sys, time
began, room = time.monotonic(), bytearray(8 << 20)
with open("rows.fbin", "rb", buffering=0) as file:
    while file.readinto(room): pass
print(time.monotonic() - began)'
}
fitting() { # K LIMIT
    "$program" fit rows.fbin -k "$1" --init start.npz --max-iter 3 --tol 0 --host-memory "$2" --json 2> /dev/null > fit.json
    field seconds_per_iteration < fit.json
}
scoring() { # cold, and within the limit
    forget
    "$program" score rows.fbin -m start.npz --host-memory ${limit}M --json | field seconds
}

row() { # WHAT D K READING COMPUTING STREAMED PEAK
    python3 -c '
import sys
what, d, k, *times, peak = sys.argv[1:]
read, compute, streamed = map(float, times)
print(f"| {what} | {d} | {k} | {read:.2f} | {compute or none} | {streamed:.2f} | {streamed / max(read, compute):.2f} | {peak} |")' "$@"
}

echo "| $mib MiB, limit $limit MiB | D | K | reading, s | computing in memory, s | streamed, s | against the slower | peak, MiB |"
echo "| --- | --- | --- | --- | --- | --- | --- | --- |"
for shape in 32:64:warm 32:16:warm 512:2:cold; do
    d=${shape%%:*} k=${shape#*:} state=${shape##*:}
    k=${k%:*}
    [ "${made:-}" = "$d" ] || make "$d"
    made=$d
    "$program" fit rows.fbin -k "$k" --init random_from_data --seed 1 --max-iter 2 --tol 0 -q -o start.npz 2> /dev/null
    cat rows.fbin > /dev/null
    read=$(thrice reading "$state")
    if [ "$state" = cold ]; then
        streamed=$(thrice scoring)
        computing=$(thrice fitting "$k" 64G) # a pass that also sums
        peak=-
        what='one pass of score, from the disk'
    else
        computing=$(thrice fitting "$k" 64G)
        streamed=$(thrice fitting "$k" "${limit}M")
        peak=$(python3 -c 'import json; print(json.load(open("fit.json"))["peak_host_bytes"] >> 20)')
        what='an iteration of fit, from the page cache'
    fi
    row "$what" "$d" "$k" "$read" "$computing" "$streamed" "$peak"
done
