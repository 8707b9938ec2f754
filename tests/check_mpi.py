#!/usr/bin/env python3
"""check_mpi.py FLASHGMM MPIRUN: `flashgmm fit` on 1, 2 and 4 ranks gives one model, and a rank that fails ends all."""
import array
import json
import math
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

program, mpirun = os.path.realpath(sys.argv[1]), sys.argv[2]
seed = int(os.environ.get("FLASHGMM_TEST_SEED") or time.time_ns())
draw = random.Random(seed)
print(f"FLASHGMM_TEST_SEED={seed}")
failed = 0
PATIENCE = 120  # a deadlock is a failure, not a hang


if "Open MPI" not in subprocess.run([mpirun, "--version"], capture_output=True, text=True).stdout:
    print("skipped: the options below are Open MPI's")
    sys.exit(77)


def ranks(count, *command):
    return subprocess.run([mpirun, "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", str(count), *command],
                          capture_output=True, text=True, timeout=PATIENCE, env=os.environ | {"OMP_NUM_THREADS": "1"})


def holds(what, condition, done=None):
    global failed
    if not condition:
        failed += 1
        print(f"FAILED: {what}" + (f"\nexit {done.returncode}\n{done.stdout}{done.stderr}" if done else ""))


def write_rows(path, n, d, spoil=()):
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, %d), }" % (n, d)
    header += " " * (117 - len(header)) + "\n"
    values = [draw.gauss(i // d % 5, 1) for i in range(n * d)]
    for row in spoil:
        values[row * d] = math.nan
    with open(path, "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
        array.array("f", values).tofile(file)


with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    write_rows("rows.npy", 6001, 6)
    write_rows("spoilt.npy", 1000, 6, spoil=[900])
    write_rows("few.npy", 3, 6)
    fit = [program, "fit", "rows.npy", "--device", "cpu"]
    for covariance in ("spherical", "diag", "tied", "full"):
        subprocess.run([*fit, "-k", "9", "--covariance", covariance, "--max-iter", "1", "--tol", "0", "-o", "start.npz", "-q"],
                       check=True)
        bounds = {}
        for count in (1, 2, 4):
            models = []
            for turn in range(2):
                done = ranks(count, *fit, "--init", "start.npz", "--max-iter", "10", "--tol", "0", "-o", "model.npz", "--json")
                holds(f"{covariance} on {count} ranks", done.returncode == 0, done)
                models.append(pathlib.Path("model.npz").read_bytes())
            report = json.loads(done.stdout)
            holds(f"{covariance}: {count} ranks are told", report.get("n_ranks", 1) == count and report["n_rows"] == 6001)
            holds(f"{covariance} on {count} ranks repeats to the bit", models[0] == models[1])
            bounds[count] = report["lower_bound"]
        off = max(abs(bound - bounds[1]) / abs(bounds[1]) for bound in bounds.values())
        print(f"{covariance}: log-likelihood of 1, 2 and 4 ranks within {off:.1e} of each other")
        holds(f"{covariance}: the log-likelihood of all ranks", off <= 1e-12)

    done = ranks(3, *fit, "-k", "9", "--n-init", "2", "--max-iter", "5", "-o", "seeded.npz")
    holds("ranks seed together", done.returncode == 0 and "ranks       3" in done.stdout, done)
    done = ranks(2, program, "fit", "spoilt.npy", "-k", "3", "--device", "cpu", "-o", "none.npz")
    holds("a row with NaN in one share ends all", done.returncode != 0 and "rank 1: row" in done.stderr, done)
    done = ranks(4, program, "fit", "few.npy", "-k", "2", "--device", "cpu", "-o", "none.npz")
    holds("too few rows are told", done.returncode != 0 and "too few for 4 ranks" in done.stderr, done)
    # One rank has another file, or none, or other options, or is killed.
    other = "if [ $OMPI_COMM_WORLD_RANK = 1 ]; then exec %s; fi; exec " + " ".join(fit) + " -k 4 --max-iter %s -o none.npz"
    done = ranks(2, "sh", "-c", other % (f"{program} fit nothing.npy -k 4 --device cpu", 5))
    holds("a missing file on one rank ends all", done.returncode != 0 and "nothing.npy" in done.stderr, done)
    done = ranks(2, "sh", "-c", other % (" ".join(fit) + " -k 5", 5))
    holds("other options on one rank are told", done.returncode != 0 and "n_components of rank 1 is 5" in done.stderr, done)
    done = ranks(2, "sh", "-c", other % ("timeout -s KILL 1 " + " ".join(fit) + " -k 4 --max-iter 100000000 --tol 0",
                                        "100000000 --tol 0"))
    holds("a rank that is killed ends all", done.returncode != 0 and done.stderr.strip() != "", done)
    holds("no fit that failed left a model", not pathlib.Path("none.npz").exists())
    os.chdir("/")
sys.exit(failed > 0)
