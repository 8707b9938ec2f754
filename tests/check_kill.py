#!/usr/bin/env python3
"""check_kill.py FLASHGMM [KILLS]: fits that are killed go on to the file of one that was not.

Each trial starts a fit with a checkpoint after every iteration, kills it with SIGKILL at a random moment of its run, maybe
again as it goes on, and then lets it finish. All models must be the same file.
"""
import array
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

seed = int(os.environ.get("FLASHGMM_TEST_SEED") or time.time_ns())
draw = random.Random(seed)
print(f"FLASHGMM_TEST_SEED={seed}")
program = pathlib.Path(sys.argv[1]).resolve()
kills_wanted = int(sys.argv[2]) if len(sys.argv) > 2 else 10


def write_rows(path, n, d):
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, %d), }" % (n, d)
    header += " " * (117 - len(header)) + "\n"
    with open(path, "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
        array.array("f", [draw.gauss(i // d % 7, 1) for i in range(n * d)]).tofile(file)


with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    write_rows("rows.npy", 20000, 8)
    command = [program, *"fit rows.npy -k 12 --covariance full --init random_from_data --n-init 2 --max-iter 25 --tol 0 "
               "--on-dead reseed --device cpu --quiet".split()]
    began = time.monotonic()
    subprocess.run([*command, "-o", "whole.npz"], check=True)
    whole = pathlib.Path("whole.npz").read_bytes()
    subprocess.run([*command, "-o", "first.npz", "--checkpoint", "first-place.npz", "--every", "0"], check=True)
    run = time.monotonic() - began
    different, kills, resumed, trial = 0, 0, 0, 0
    while kills < kills_wanted:
        trial += 1
        place, model = pathlib.Path(f"place{trial}.npz"), pathlib.Path(f"model{trial}.npz")
        this = [*command, "-o", model, "--checkpoint", place, "--every", "0"]
        for _ in range(draw.choice((1, 1, 2))):
            fit = subprocess.Popen(this)
            time.sleep(draw.uniform(0, 0.6 * run))
            fit.kill()
            kills += fit.wait() < 0
            resumed += place.exists()
        done = subprocess.run(this).returncode
        if done != 0 or model.read_bytes() != whole:
            different += 1
            print(f"trial {trial}: exit {done}, {'another model' if done == 0 else 'no model'}")
    same_first = pathlib.Path("first.npz").read_bytes() == whole
    os.chdir("/")
print(f"{kills} kills in {trial} fits, {resumed} with a checkpoint to go on from: {trial - different} of {trial} models are the "
      "one of a fit left alone")
sys.exit(different > 0 or not same_first or resumed == 0)
