#!/bin/sh
# The command line as a user meets it: what it prints, what it writes, and how it fails.
#
#   tools/check-cli.sh FLASHGMM
set -u
flashgmm=$(realpath "$1")
here=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 1
export FLASHGMM_DEVICE=cpu
passed=0 failed=0
digits=$here/data/digits/X.npy

# expect CODE PATTERN ARGUMENT...: the exit code, and a pattern that stdout and stderr together must hold
expect() {
    code=$1 pattern=$2
    shift 2
    "$flashgmm" "$@" > out.txt 2> err.txt < /dev/null
    got=$?
    if [ $got = "$code" ] && { [ -z "$pattern" ] || cat out.txt err.txt | grep -qE -- "$pattern"; }; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: flashgmm $* gave $got where $code was expected, with /$pattern/ in:"
        sed 's/^/    /' out.txt err.txt
    fi
}

# holds WHAT COMMAND...: a plain condition
holds() {
    what=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $what"
    fi
}

json_has() {
    python3 -c 'import json, sys; d = json.load(open("out.txt")); sys.exit(any(k not in d for k in sys.argv[1:]))' "$@"
}

# ---- files to work on
python3 - << 'PYTHON'
import array, random
def save(name, n, d, values):
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, %d), }" % (n, d)
    header += " " * (117 - len(header)) + "\n"
    with open(name, "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
        array.array("f", values).tofile(file)
random.seed(1)
many = [random.gauss(0, 1) for _ in range(5000 * 8)]
save("many.npy", 5000, 8, many)
save("many-a.npy", 2000, 8, many[:16000])
save("many-b.npy", 2900, 8, many[16000:39200])
save("many-c.npy", 100, 8, many[39200:])
save("small.npy", 8, 8, [float(i * i % 13) for i in range(64)])
save("nan.npy", 8, 8, [float("nan") if i == 37 else float(i * i % 13) for i in range(64)])
for name, descr in ("cut1", "'"), ("cut2", "'<"), ("cut3", "'<f"), ("cut4", "'<f8"):
    header = "{'shape': (8,), 'descr': " + descr
    with open(name + ".npy", "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
with open("found.ivecs", "wb") as file:
    array.array("i", [3, 5, 0, 2, 3, 4, 1, -1]).tofile(file)
with open("found.ibin", "wb") as file:
    array.array("i", [2, 2, 5, 0, 4, 1]).tofile(file)
    array.array("f", [0.5, 1.5, 2.5, 3.5]).tofile(file)
save("negative.npy", 8, 1, [1, 1, -1, 1, 1, 1, 1, 1])
save("ones.npy", 1797, 1, [1] * 1797)
save("sixteen.npy", 16, 8, [float(i * i % 13) for i in range(128)])
save("half-nan.npy", 16, 8, [float("nan") if i < 64 else float(i * i % 13) for i in range(128)])
save("all-nan.npy", 8, 8, [float("nan")] * 64)
save("few-heavy.npy", 16, 1, [1000] * 2 + [0] * 6 + [1] * 8)
PYTHON

# ---- usage
expect 2 'usage: flashgmm COMMAND'
expect 0 'bench estep' --help
expect 0 '^flashgmm [0-9]+\.[0-9]+\.[0-9]+$' --version
expect 2 "unknown command 'fitt'" fitt
expect 2 "unknown option '--versio'" --versio
expect 2 'bench what\? try: flashgmm bench estep' bench
expect 2 "unknown command 'bench fit'" bench fit
expect 2 'ivf what\? try' ivf
expect 2 "unknown command 'ivf fit'" ivf fit
for command in devices fit kmeans merge partial-fit select predict score sample export info tune "bench estep" "bench em" "ivf train" "ivf build" \
    "ivf search" "ivf eval"; do
    expect 0 'example:' $command --help
    expect 2 "unknown option '--frob'" $command --frob
done
expect 2 'missing' fit
expect 2 '-k, the number' fit "$digits"
expect 2 "'x' is not a whole number" fit "$digits" -k x
expect 2 "'4x' is not a whole number" fit "$digits" -k 4x
expect 2 'outside' fit "$digits" -k 0
expect 2 'outside' fit "$digits" -k 99999999999999999999
expect 2 "'nan' is not a number" fit "$digits" -k 2 --tol nan
expect 2 'outside' fit "$digits" -k 2 --tol -1
expect 2 'spherical\|diag' fit "$digits" -k 2 --covariance round
expect 2 "'mean' is not one of" fit "$digits" -k 2 --freeze weights,mean
expect 2 'kmeans\+\+, kmeans' fit "$digits" -k 2 --init magic
expect 2 '--init MODEL.npz' fit "$digits" -k 2 --freeze means
expect 2 '--on-dead keep' fit "$digits" --init m.npz --freeze means --on-dead drop
expect 2 "-o 's.npy'.*--labels 's.npy'" sample -m m.npz -n 5 -o s.npy --labels s.npy
expect 2 'needs a value' fit "$digits" -k
for bytes in 0 -1 4X 4GB G 1e99 0x; do expect 2 'option --host-memory' fit "$digits" -k 2 --host-memory $bytes; done
expect 2 'one file name too many' fit "$digits" other.npy -k 2
expect 2 "'-1' is not a whole number" fit "$digits" -k 2 --seed -1
expect 2 'must end in .npz' fit "$digits" -k 2 -o model.txt
expect 2 'unknown device' fit "$digits" -k 2 --device gpu
expect 2 '--min-resp needs --top' predict "$digits" -m m.npz -o l.npy --min-resp 0.1
expect 2 '--renormalise needs --top' predict "$digits" -m m.npz -o l.npy --renormalise
expect 2 'choose one' predict "$digits" -m m.npz -o l.npy --top 2 --proba
expect 2 'needs? --mini-batch' fit "$digits" -k 2 --t0 3
expect 2 'neither restarts nor policies' fit "$digits" -k 2 --mini-batch 100 --n-init 2
expect 2 '--every needs --checkpoint' fit "$digits" -k 2 --every 3
expect 2 'not a list of 2 positive numbers' fit "$digits" -k 2 --device cpu,cpu --shares 1
expect 2 'needs several devices' fit "$digits" -k 2 --shares 1
expect 2 'empty or too long' fit "$digits" -k 2 --device cpu,
expect 2 'needs --shares' fit "$digits" -k 2 --device cpu,cpu --checkpoint c.npz
expect 2 'makes no model' fit "$digits" --init m.npz --stats-only -k 3 -o s.npz
expect 2 'is for one device' fit "$digits" -k 2 --device cpu,cpu --mini-batch 100
expect 0 'share       0.750, 1348 rows: cpu' fit "$digits" -k 3 --device cpu,cpu --shares 3,1 -o shared.npz
expect 0 '"share": 0.75' fit "$digits" -k 3 --device cpu,cpu --shares 3,1 -o again.npz --json
holds 'given shares repeat to the bit' cmp shared.npz again.npz
expect 0 'rows: cpu' fit "$digits" -k 3 --device cpu,cpu
expect 0 'share       1.000, 1797 rows: cpu' fit "$digits" -k 3 --device all # FLASHGMM_DEVICE leaves the CPU alone
expect 2 'keeps no checkpoints' fit "$digits" -k 2 --mini-batch 100 --checkpoint c.npz
expect 2 'must end in .npz' fit "$digits" -k 2 --checkpoint c.txt
expect 2 'input itself' fit "$digits" -k 2 -o c.npz --checkpoint ./c.npz
if ! ldd "$flashgmm" | grep -q libmpi; then
    export OMPI_COMM_WORLD_SIZE=3
    expect 2 'built without MPI: 3 copies' fit "$digits" -k 2
    unset OMPI_COMM_WORLD_SIZE
fi
expect 2 '-k, the number of means' kmeans "$digits"
expect 2 '--stats-only needs --init' fit "$digits" -k 2 --stats-only -o s.npz
expect 2 '--stats-only needs --init' fit "$digits" --init m.npz --stats-only
expect 2 'makes no model' fit "$digits" --init m.npz --stats-only -o s.npz --reg-covar 1
expect 2 'makes no model' fit "$digits" --init m.npz --stats-only -o s.npz --tol 0
expect 2 'missing' merge -o merged.npz
expect 2 '-o, where the model goes' merge s.npz
expect 2 '--stats makes none' merge s.npz -o merged.npz --stats --reg-covar 0
expect 2 "'nothing.npz' yet" partial-fit "$digits" -s nothing.npz
expect 2 'missing' partial-fit "$digits"
expect 2 'above 0.5' fit "$digits" -k 2 --mini-batch 100 --kappa 0.5
expect 2 '-m, the model' export -o means.faiss
expect 2 'exclude each other' export -m m.npz -i i.ivf -o means.faiss
expect 2 '-o, the file' export -m m.npz
expect 2 'l2\|angular\|inner_product' export -m m.npz -o means.faiss --metric cosine
expect 2 '-k, the numbers' select "$digits"
for range in 0 4:2 2:x 2:8:0 2:3:4:5 :3 -1:3 9223372036854775807 2:3:9223372036854775807; do expect 2 'option -k' select "$digits" -k $range; done
expect 2 'must end in .png' select "$digits" -k 2:3 --plot curve.pdf
expect 2 "'round' is not one of" select "$digits" -k 2:3 --covariance diag,round
expect 2 'fits of several kinds' select "$digits" -k 2:3 --init m.npz

# ---- the way through
expect 0 'cpu' devices
expect 0 '"devices"' devices --json
holds 'devices --json is JSON' json_has devices note
expect 0 'converged' fit "$digits" -k 10 --seed 1 --max-iter 200 -o m.npz
expect 0 '"n_iter": 7,' fit "$digits" -k 10 --covariance diag --seed 1 --max-iter 7 --tol 0 -o d.npz --json
holds 'fit --json has its keys' json_has n_rows n_features n_components covariance_type device precision engine n_iter \
    converged lower_bound seconds seconds_per_iteration survivors_per_row dropped_mass peak_host_bytes peak_device_bytes \
    warnings
expect 0 '' fit "$digits" -k 10 --seed 1 --max-iter 200 -o again.npz --quiet
holds 'the same seed gives the same file' cmp m.npz again.npz
holds '--quiet prints nothing' [ ! -s out.txt ]
expect 0 '10 components' fit "$digits" --init m.npz --freeze means,covariances --max-iter 2
# ---- limits on memory
fits="fit many.npy -k 3 --seed 1 --max-iter 5 --tol 0 --init-sample 100"
expect 0 '' $fits -o whole.npz
expect 0 '' $fits -o limited.npz --host-memory 420K --json
holds 'a limit on memory changes no bit' cmp whole.npz limited.npz
holds 'the peak is within the limit' python3 -c 'import json; d = json.load(open("out.txt")); assert d["peak_host_bytes"] < 420 * 1024'
# ---- the log
expect 0 '' $fits --log run.jsonl -q
expect 0 '' fit many.npy -k 3 --mini-batch 1000 --max-iter 3 --tol 0 --log batches.jsonl -q
expect 0 '' kmeans many.npy -k 3 --max-iter 4 --n-init 2 --log means.jsonl -q
holds 'the log has a line an iteration' python3 - << 'PYTHON'
import json
lines = [json.loads(line) for line in open("run.jsonl")]
assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 5], lines
assert all(line["rows_per_second"] > 0 and line["compute_gbs"] > 0 for line in lines), lines
assert lines[4]["change"] == lines[4]["lower_bound"] - lines[3]["lower_bound"], lines
assert [json.loads(line)["iteration"] for line in open("batches.jsonl")] == [1, 2, 3]
assert {json.loads(line)["restart"] for line in open("means.jsonl")} == {0, 1}
PYTHON
expect 1 "cannot write 'nowhere/run.jsonl'" $fits --log nowhere/run.jsonl
expect 2 "would be written over 'many.npy'" $fits --log ./many.npy
if [ -w /dev/full ]; then expect 0 "cannot write '/dev/full'.*it ends here" $fits --log /dev/full; fi
# ---- shards and pipes
python3 - << 'PYTHON'
import os
os.mkdir("shards")
data = open("many.npy", "rb").read()[128:]
for name, first, end in ("a", 0, 1), ("b", 1, 1500), ("c", 1500, 5000):
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 8), }" % (end - first)
    header += " " * (117 - len(header)) + "\n"
    with open("shards/%s.npy" % name, "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data[first * 32:end * 32])
PYTHON
for data in shards 'shards/?.npy'; do
    expect 0 '5000 rows' fit "$data" -k 3 --seed 1 --max-iter 5 --tol 0 --init-sample 100 -o shards.npz
    holds "$data is one file" cmp whole.npz shards.npz
done
expect 2 'quoted pattern' fit shards/a.npy shards/b.npy -k 3
expect 1 'no file has such a name' fit 'shards/x*.npy' -k 3
piped() { gzip -c many.npy | gunzip | "$flashgmm" fit - -k 3 --seed 1 --max-iter 5 --tol 0 --init-sample 100 -q "$@"; }
piped -o piped.npz
holds 'a pipe is a file' cmp whole.npz piped.npz
TMPDIR=$folder/none piped --host-memory 300K -o none.npz 2> err.txt
holds 'rows too many for the memory are put aside in TMPDIR' grep -q "cannot put standard input aside in $folder/none" err.txt
piped --host-memory 300K -o spooled.npz
holds 'a pipe through a file is a file' cmp whole.npz spooled.npz
head -c 5000 many.npy | "$flashgmm" score - -m whole.npz > out.txt 2> err.txt
holds 'a pipe that ends in a row says which' grep -q 'ends inside row 152: 152 of 5000' err.txt
expect 1 'limit on host memory is 40960 bytes, and .* need' $fits --host-memory 40K
expect 0 '10 components x 64 features, spherical' info m.npz
expect 0 '"kind": "model"' info d.npz --json
expect 0 '1797 rows x 64 features, u8' info "$digits"
expect 0 'BIC' score "$digits" -m m.npz -o density.npy
expect 0 '"aic"' score "$digits" -m m.npz --json
expect 0 'rows  ' predict "$digits" -m m.npz -o labels.npy
expect 0 'entries_per_row' predict "$digits" -m m.npz -o top.npz --top 3 --min-resp 0.01 --json
expect 0 'above zero' predict "$digits" -m m.npz -o proba.npy --proba
expect 0 '1797 rows x 10 features, f32' info proba.npy
expect 0 'listed a row' predict "$digits" -m m.npz -o top.npz --top 3 --min-resp 0.01 --renormalise
expect 0 'nearest mean|inertia' kmeans "$digits" -k 10 --seed 1 -o means.npz --labels nearest.npy
expect 0 '"inertia"' kmeans "$digits" --init means.npz --max-iter 3 --json
holds 'kmeans --json has its keys' json_has n_rows n_components n_iter converged inertia weight n_empty counts seconds warnings
expect 0 'rows  ' predict "$digits" -m means.npz -o again.npy
holds 'predict gives the nearest mean' cmp nearest.npy again.npy
expect 0 '"n_steps": 18,' fit "$digits" -k 10 --seed 1 --mini-batch 300 --max-iter 3 --tol 0 -o batches.npz --json
expect 0 'after 6 steps' partial-fit "$digits" -s state.npz --start m.npz --mini-batch 300
expect 0 '"n_steps": 7,' partial-fit "$digits" -s state.npz -o went-on.npz --json
expect 0 'partial fit after 7 steps' info state.npz
# With all frozen, the likelihood of a pass by batches is that of all rows at once.
expect 0 '' fit sixteen.npy -k 2 -o sixteen.npz
for rows in 8 16; do
    rm -f frozen.npz
    expect 0 '"lower_bound"' partial-fit sixteen.npy -s frozen.npz --start sixteen.npz --freeze weights,means,covariances \
        --weights few-heavy.npy --mini-batch $rows --precision double --json
    grep -o '"lower_bound": [-0-9]*\.[0-9]\{6\}' out.txt > bound-$rows.txt
done
holds 'batches count by their weight' cmp bound-8.txt bound-16.txt
# Shares by themselves and merged: an iteration of all rows at once.
expect 0 '' fit many.npy -k 4 --max-iter 2 --tol 0 --covariance full -o many0.npz
expect 0 '' fit many.npy --init many0.npz --max-iter 1 --tol 0 --precision double -o many1.npz --reg-covar 0.01
for share in a b c; do
    expect 0 'statistics  under many0.npz' fit many-$share.npy --init many0.npz --stats-only --precision double -o share-$share.npz
done
expect 0 'statistics +of 2900 rows' info share-b.npz
expect 0 '5000 rows in 3 files' merge share-a.npz share-b.npz share-c.npz -o merged1.npz --reg-covar 0.01
expect 0 '"n_rows": 4900,' merge share-a.npz share-b.npz -o share-ab.npz --stats --json
holds 'merge --json has its keys' json_has n_files n_rows weight n_features n_components covariance_type lower_bound
expect 0 '' merge share-c.npz share-ab.npz -o merged2.npz --reg-covar 0.01 -q
for model in many1 merged1 merged2; do
    expect 0 '' score many.npy -m $model.npz --precision double --json
    grep -o '"log_likelihood": [-0-9]*\.[0-9]\{11\}' out.txt > $model.score
done
holds 'score tells a likelihood' [ -s many1.score ]
holds 'merged shares are an iteration' cmp many1.score merged1.score
holds 'shares merge in steps' cmp many1.score merged2.score
expect 0 '' fit many-c.npy --init merged1.npz --stats-only -o share-d.npz --json
holds 'fit --stats-only --json has its keys' json_has n_rows n_features n_components device lower_bound seconds warnings
expect 1 "'share-a.npz' and 'share-d.npz': .*different models" merge share-a.npz share-d.npz -o none.npz
expect 1 'many0.npz: not statistics' merge share-a.npz many0.npz -o none.npz
expect 1 'nothing.npz' merge share-a.npz nothing.npz -o none.npz
expect 2 'input itself' merge share-a.npz share-b.npz -o ./share-b.npz
expect 2 'input itself' fit many.npy --init many0.npz --stats-only -o ./many0.npz
expect 2 'there twice' merge share-a.npz share-b.npz ./share-a.npz -o none.npz
holds 'a merge that fails writes nothing' [ ! -e none.npz ]
# A checkpoint goes on for longer, is a model, and belongs to one fit.
expect 0 'not converged' fit "$digits" -k 10 --seed 1 --max-iter 4 --checkpoint place.npz --every 0
expect 0 'fit +4 iterations' info place.npz
expect 0 'going on from place.npz, iteration 4' fit "$digits" -k 10 --seed 1 --max-iter 200 -o longer.npz --checkpoint place.npz -v
holds 'a fit that went on gives the file of one that did not stop' cmp m.npz longer.npz
expect 1 'place.npz: its seed is 1, here it is 2: .*remove it' fit "$digits" -k 10 --seed 2 --max-iter 200 --checkpoint place.npz
expect 1 'features' fit many.npy -k 10 --seed 1 --max-iter 200 --checkpoint place.npz
head -c 3000 place.npz > short-place.npz
expect 1 'short-place.npz' fit "$digits" -k 10 --seed 1 --max-iter 200 --checkpoint short-place.npz
expect 1 "m.npz: not a checkpoint" fit "$digits" -k 10 --seed 1 --max-iter 200 --checkpoint m.npz
expect 2 'there already' partial-fit "$digits" -s state.npz --start m.npz
expect 2 'go with --start' partial-fit "$digits" -s state.npz --kappa 0.6
expect 0 '^ \* ' select "$digits" -k 2:8:3 --covariance spherical,diag -o best.npz
holds 'select draws a curve' grep -q 'K = 2' out.txt
expect 0 'components x 64 features' info best.npz
expect 0 '"fits"' select "$digits" -k 3 --covariance spherical --criterion aic --json
holds 'select --json has its keys' json_has n_rows criterion fits best_covariance_type best_n_components best
expect 0 '50 x 64' sample -m m.npz -n 50 --seed 3 -o drawn.npy --labels drawn-labels.npy
expect 0 '50 rows x 64 features, f64' info drawn.npy
expect 0 'means +10 x 64, an IndexFlatL2' export -m m.npz -o means.faiss
holds 'an index of faiss has the size of its means' [ "$(wc -c < means.faiss)" = $((45 + 4 * 640)) ]
expect 0 '"kind": "IndexFlatIP"' export -m m.npz -o means.index --metric angular --json
expect 2 'must end in .faiss' export -m m.npz -o means.npz
expect 0 '3 of each of 2 queries, without distances' info found.ivecs
expect 0 'ids +0 .. 5, and 1 times none' info found.ivecs
expect 0 '"distances": true' info found.ibin --json
cp found.ibin found.bin
expect 0 '2 of each of 2 queries' info found.bin --format ibin
expect 0 'GFLOP/s' bench estep --n 4096 --k 16 --d 8 --reps 3
expect 0 'GFLOP/s' bench em --n 4096 --k 16 --d 8 --reps 2 --device cpu
likelihoods() { "$flashgmm" bench em --n 4096 --k 16 --d 8 --reps 2 --device cpu --seed 5 "$@" | grep '^likelihood'; }
in_memory=$(likelihoods)
holds 'made rows are those in memory' [ "${in_memory:-none}" = "$(likelihoods --rows made --block-rows 1024 --host-memory 1M)" ]
expect 2 'needs rows in memory' bench em --rows made --write .
expect 0 '"square_distances"' bench em --n 4096 --k 16 --d 8 --reps 2 --device cpu --hard --json
expect 0 '"ms"' bench estep --n 4096 --k 16 --d 8 --reps 3 --covariance diag --data overlapping --json

# ---- tuning
export FLASHGMM_TUNING=/dev/null
expect 2 "'cpu' has no tiles" tune --device cpu
expect 2 "'cpu' has no tiles" tune # FLASHGMM_DEVICE
if FLASHGMM_DEVICE=auto "$flashgmm" devices --json | grep -q '"opencl:'; then
    "$flashgmm" fit "$digits" -k 12 --max-iter 3 --tol 0 --device opencl -q -o untuned.npz
    expect 0 'rows     .*tiles.tsv' tune --device OpenCL --seconds 0.01 -o here/tiles.tsv
    holds 'no search, no rows' [ ! -e here/tiles.tsv ]
    device=$("$flashgmm" tune --device auto --seconds 0 -o none.tsv | sed -n 's/^device   //p')
    bench=$(dirname "$flashgmm")/flashgmm-bench-predict
    timed() { "$bench" --name "$device" --n 2000 --k 8 --d 4 --reps 2 "$@" | grep -qE -- 'predict_top2 .*of an iteration|"predict_top2_ms": '; }
    holds 'predict and score of rows on the device are timed' timed
    holds 'and of rows on the host' timed --host --json
    printf '# mine\nother card\tscreen\t*\t*\t8\t8\t2\t2\t8\n%s\tscreen\t17-64\t*\t16\t16\t4\t4\t16\n*\tdense\t*\t*\t8\t8\t4\t4\t0' \
        "$device" > old.tsv
    cp old.tsv real.tsv
    ln -s real.tsv link.tsv
    expect 0 'rows     .*real.tsv' tune --device opencl --seconds 5 -o link.tsv
    holds 'a linked file of rows stays linked' [ -L link.tsv ]
    holds "others' rows stay" [ "$(grep -c -e '^# mine$' -e '^other card' -e '^\*' real.tsv)" = 3 ]
    holds "the device's own row stays, or a better one comes" [ "$(grep -cF "$device	screen	17-64" real.tsv)" = 1 ]
    printf '*\tscreen\t*\t*\t8\t8\t2\t2\t8\nnothing\n' > some.tsv
    FLASHGMM_TUNING=some.tsv expect 0 'line 2 is left out' fit "$digits" -k 12 --max-iter 3 --tol 0 --device opencl -o tuned.npz
    holds 'another tile of the screen changes no bit' cmp tuned.npz untuned.npz
    expect 1 'cannot write' tune --device opencl --seconds 300 -o /dev/null/tiles.tsv
    expect 1 'cannot write /proc/tiles.tsv' tune --device opencl --seconds 300 -o /proc/tiles.tsv
    expect 1 'it is no regular file' tune --device opencl --seconds 300
    holds '/dev/null stays what it is' [ -c /dev/null ]
fi

# ---- indexes
expect 2 '-k, the number of lists' ivf train "$digits" -o lists.npz
expect 2 'choose one' ivf build "$digits" -m m.npz -o d.ivf --budget 1.5 --threshold 3
expect 2 'need an index' ivf search "$digits" --exact "$digits" --nprobe 3
expect 2 'is missing, or --exact' ivf search "$digits"
expect 2 'not a list of up to' ivf eval "$digits" --queries "$digits" -k 4 --budgets 1,x
expect 2 'must end in .png, .svg or .gp' ivf eval "$digits" --queries "$digits" -k 4 --picture p.jpg
expect 0 '16 by tied-spherical' ivf train "$digits" -k 16 --method tied-spherical --em-iter 3 -o lists.npz
expect 0 '"n_iter"' ivf train "$digits" -k 16 -o lists.npz --json
holds 'ivf train --json has its keys' json_has n_rows n_lists metric method device seconds
expect 2 'must end in .ivf' ivf build "$digits" -m lists.npz -o digits.npz
expect 2 'single' ivf build "$digits" -m lists.npz -o d.ivf --rule single --max-lists 2
expect 1 'have room for' ivf build "$digits" -m lists.npz -o digits.ivf --list-max 100
expect 0 'the longest of 1[0-9][0-9] entries' ivf build "$digits" -m lists.npz -o digits.ivf --list-max 180
expect 0 'calibrated  for the 10 nearest' ivf build "$digits" -m lists.npz -o digits.ivf --calibrate "$digits"
expect 0 'at most 2 lists a row, 1.5 on average' info digits.ivf
expect 0 '"kind": "index"' info digits.ivf --json
holds 'info --json has the keys of an index' json_has n_entries bytes_per_row longest rule threshold
expect 0 'recall      1.0000' ivf search "$digits" -i digits.ivf --exact "$digits" --nprobe 16 -o found.npz
holds 'ivf search writes ids and distances' python3 -c "
import zipfile
assert sorted(zipfile.ZipFile('found.npz').namelist()) == ['distances.npy', 'ids.npy']"
expect 0 '"recall"' ivf search "$digits" -i digits.ivf --exact "$digits" --recall 0.95 --json
holds 'ivf search --json has its keys' json_has n_queries k queries_per_second distances entries centroid_distances
expect 0 'queries a second' ivf search "$digits" --exact "$digits" -k 3 --metric angular -o truth.npz
expect 0 'queries a second' ivf search "$digits" --exact "$digits" -o truth.ivecs
expect 0 'recall      1.0000' ivf search "$digits" -i digits.ivf --truth truth.ivecs --nprobe 16 -o found.ibin
expect 0 '"recall": ?1' ivf search "$digits" --exact "$digits" --truth found.ibin --json
if "$flashgmm" ivf search "$digits" --exact "$digits" --metric angular -o truth.hdf5 -q 2> /dev/null; then
    expect 0 '"metric": "angular"' ivf train truth.hdf5:distances -k 2 -o by-file.npz --json
    expect 0 '"metric": "l2"' ivf train truth.hdf5:distances -k 2 -o by-file.npz --metric l2 --json
fi
expect 0 'kmeans 16, single' ivf eval "$digits" --queries "$digits" -k 16 --limit 200 --truth truth.ivecs
expect 1 'neighbours of' ivf eval "$digits" --queries "$digits" -k 16 --neighbours 11 --truth truth.ivecs
expect 0 'kmeans 16, soar m=1.5, adaptive' ivf eval "$digits" --queries "$digits" -k 16 --limit 200 --speed --picture p.gp
holds 'ivf eval writes a script' grep -q 'set logscale x' p.gp
expect 0 '"fewer_than_baseline"' ivf eval "$digits" --queries "$digits" -k 16 --limit 200 --rules gap --more-lists --json
expect 1 'features' ivf search many.npy -i digits.ivf
expect 0 '' ivf build "$digits" -m lists.npz -o fresh.ivf -q
expect 1 'has been calibrated' ivf search "$digits" -i fresh.ivf --recall 0.9
head -c 9000 digits.ivf > short.ivf
expect 1 'short.ivf' info short.ivf
expect 1 'short.ivf' ivf search "$digits" -i short.ivf

# ---- what goes wrong: named, exit 1, nothing written over
cp m.npz kept.npz
expect 1 'nothing.npy' fit nothing.npy -k 2
head -c 5000 "$digits" > short.npy
expect 1 'short.npy' fit short.npy -k 2 -o kept.npz
printf 'not an array at all, by any measure' > text.npy
expect 1 'text.npy' fit text.npy -k 2
: > empty.npy
expect 1 'empty.npy' info empty.npy
expect 1 '1798' fit "$digits" -k 1798 -o kept.npz
expect 1 'nowhere' fit "$digits" -k 2 -o nowhere/model.npz
mkdir folder.npz
expect 1 'folder' fit "$digits" -k 2 -o folder.npz

head -c 30 found.ivecs > short.ivecs
expect 1 'short.ivecs' info short.ivecs
cp "$digits" copy.npy
expect 2 'input itself' predict copy.npy -m m.npz -o copy.npy
expect 2 'input itself' kmeans "$digits" -k 2 --weights ones.npy --labels ones.npy
expect 2 'input itself' predict "$digits" -m m.npz --top 2 -o m.npz
expect 2 'input itself' partial-fit "$digits" -s new.npz --start m.npz -o ./new.npz
holds 'what would lose a state writes none' [ ! -e new.npz ]
expect 1 'weights' fit "$digits" -k 2 --weights text.npy -o kept.npz
for cut in 1 2 3 4; do expect 1 "cut$cut.npy" fit small.npy -k 2 --weights cut$cut.npy; done
expect 1 '50' fit "$digits" -k 2 --weights drawn-labels.npy -o kept.npz
head -c 500 m.npz > short.npz
expect 1 'short.npz' info short.npz
expect 1 'features' score small.npy -m m.npz
expect 1 'weight' fit small.npy -k 2 --weights negative.npy
expect 1 'online' partial-fit "$digits" -s means.npz
expect 1 'no fit succeeded' select "$digits" -k 1798 --covariance spherical -o kept.npz
expect 2 'cannot make it diag' fit "$digits" --init m.npz --covariance diag
expect 1 'nosuchdevice|OpenCL|opencl' fit "$digits" -k 2 --device opencl:nosuchdevice -o kept.npz
cp labels.npy kept.npy
(ulimit -f 1; "$flashgmm" predict "$digits" -m m.npz -o kept.npy > out.txt 2> err.txt)
holds 'a write that fails exits 1' [ $? = 1 ]
holds 'a write that fails is named' grep -q 'kept.npy' err.txt
holds 'a write that fails leaves the old file whole' cmp labels.npy kept.npy
holds 'a write that fails leaves nothing else' [ "$(ls -A | grep -c 'kept.npy')" = 1 ]
holds 'failed commands leave an old file whole' cmp m.npz kept.npz
if [ -w /dev/full ]; then
    "$flashgmm" fit "$digits" -k 2 --json > /dev/full 2> err.txt
    holds 'a full standard output is a failure' [ $? = 1 ]
fi
# A file system without room: found out before the work.
mkdir small
if [ "$(id -u)" = 0 ] && mount -t tmpfs -o size=16k none small 2> /dev/null; then
    expect 1 'needs about .* bytes' fit "$digits" -k 1000 -o small/model.npz
    # One that fills up later loses the new checkpoint alone.
    expect 0 '' fit many.npy -k 10 --max-iter 2 --tol 0 --checkpoint small/place.npz --every 0 -q
    cp small/place.npz held.npz
    head -c 100000 /dev/zero > small/rest 2> err.txt
    expect 0 'warning: no checkpoint of iteration 3: cannot write small/place.npz: .*space' fit many.npy -k 10 --max-iter 4 --tol 0 \
        --checkpoint small/place.npz --every 0
    holds 'a full disk leaves the old checkpoint whole' cmp held.npz small/place.npz
    rm small/rest
    expect 0 'iterations  4, not' fit many.npy -k 10 --max-iter 4 --tol 0 --checkpoint small/place.npz --every 0
    umount small
fi

# ---- Ctrl-C: the last whole iteration is kept
expect 1 'row 4.*column 5' fit nan.npy -k 2
expect 0 '1 left out' fit nan.npy -k 2 --on-nonfinite skip
expect 0 '' fit small.npy -k 2 -o small-model.npz
expect 0 '8 left out' fit half-nan.npy -k 2 --on-nonfinite skip --mini-batch 8 --max-iter 2
expect 1 'sum to 0' partial-fit all-nan.npy -s nan-state.npz --start small-model.npz --on-nonfinite skip
# The bar, which is drawn where stderr is a terminal, tells when an iteration has been done.
python3 - "$flashgmm" << 'PYTHON'
import os, pty, re, select, signal, subprocess, sys, time
command = [sys.argv[1], *"fit many.npy -k 4 --max-iter 1000000 --tol 0 -o stopped.npz".split()]
ours, theirs = pty.openpty()
# A shell starts its background jobs with Ctrl-C ignored, and this may be one.
listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
fit = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, preexec_fn=listen)
os.close(theirs)
seen, sent, deadline = b"", None, time.time() + 120
while time.time() < deadline:
    if select.select([ours], [], [], 1)[0]:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    if sent is None and re.search(rb"iteration [1-9]", seen):
        fit.send_signal(signal.SIGINT)
        sent, deadline = time.time(), time.time() + 20
fit.kill()
code = fit.wait()
with open("err.txt", "wb") as err:
    err.write(seen)
sys.exit(not (code == 1 and sent is not None))
PYTHON
holds 'Ctrl-C ends the fit with exit 1' [ $? = 0 ]
holds 'Ctrl-C says what it kept' grep -q "'stopped.npz' holds the model of iteration" err.txt
expect 0 'not converged' info stopped.npz

echo "$passed passed, $failed failed"
[ $failed = 0 ]
