#!/usr/bin/env python3
"""Runs flashgmm and its peers in turns on the same data from the same start and prints one table; see bench-peers.sh.

Rows x = c + N(0, I) of K clusters, float32; centres c from 2 N(0, I), or 0.1 N(0, I) for overlapping data. Start: the centres
moved by 0.15 of their spread, variance 1, equal weights. Each turn is a process of its own, so that no side's threads wait
beside the other's. The time is that of a whole iteration (E-step and M-step) after the first; on overlapping data ours is
the first. Printed: the medians over all turns, and the largest relative difference of the log-likelihoods (k-means:
objectives) of the first two E-steps. scikit-learn gets float32 rows and start, and so computes in the type printed.

Exit status 0: all was compared; 1: sides differ, or a run failed. A goal that is missed is a row of the table, no failure.
"""
import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

TOOLS = pathlib.Path(__file__).resolve().parent
OLD_FAITHFUL = TOOLS.parent / "tests/data/old-faithful.npy"
# Likelihoods and objectives are sums of float32 arithmetic over all rows on some sides.
TOLERANCE = 1e-5
# Two fits from different seeds stop somewhere within tol (1e-3 nats a row) of the same maximum.
TOLERANCE_FIT = 1e-3
# Slower iterations than this are run in two turns only.
SLOW_MS = 2000
# The share of a goal that overlapping data may fall back to.
OVERLAPPING = 0.4


@dataclasses.dataclass
class Shape:
    covariance: str
    n: int
    k: int
    d: int
    overlapping: bool = False

    def __str__(self):
        return f"{self.covariance} N={self.n} K={self.k} D={self.d}" + (" overlapping" if self.overlapping else "")


# Shape, and by peer how many times faster we want to be.
GOALS = [
    (Shape("diag", 20000, 1024, 128), {"vlfeat": 15, "armadillo": 15, "sklearn": 30}),
    (Shape("diag", 50000, 256, 64), {"vlfeat": 12, "armadillo": 15, "sklearn": 15}),
    (Shape("diag", 100000, 64, 32), {"vlfeat": 5, "armadillo": 15, "sklearn": 15}),
    (Shape("spherical", 20000, 1024, 128), {"sklearn": 6}),
    (Shape("kmeans", 20000, 1024, 128), {"faiss": 4}),
    (Shape("full", 20000, 64, 64), {"sklearn": 5}),
    (Shape("tied", 20000, 1024, 128), {"sklearn": 20}),
]


def smaller(shape):
    return dataclasses.replace(shape, n=shape.n // 10, k=max(16, shape.k // 16))


class Failed(Exception):
    pass


def run_json(command, env=None):
    """The JSON object that a command prints."""
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=env)
    except (OSError, ValueError) as why:
        raise Failed(why) from why
    if done.returncode:
        how = f"exit status {done.returncode}" if done.returncode > 0 else f"killed by signal {-done.returncode}"
        lines = done.stderr.strip().splitlines() or [how]
        raise Failed(lines[0] if len(lines) < 3 else lines[-1])
    try:
        return json.loads(done.stdout)
    except ValueError as why:
        raise Failed(why) from why


def blas_core():
    """The name by which an OpenBLAS too old to know this processor is told what it can do."""
    try:
        flags = set(pathlib.Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split())
    except (OSError, IndexError):
        return None
    known = {"avx512vl": "SkylakeX", "avx2": "Haswell"}
    return next((core for flag, core in known.items() if flag in flags), None)


class Peer:
    """A peer's program, run on a shape's files."""

    def __init__(self, name, kind, command, threads):
        self.name, self.kind, self.command = name, kind, command
        self.env = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}

    def run(self, shape, folder, iterations):
        files = [folder / "rows.npy", folder / "means.npy"]
        sizes = [shape.n, shape.k, shape.d] if self.kind == "built" else []
        mode = ["em", shape.covariance] if self.kind == "sklearn" else []
        out = run_json([*self.command, *mode, *files, *sizes, iterations], self.env)
        if out.get("blas") == "Prescott" and blas_core() and "OPENBLAS_CORETYPE" not in self.env:
            self.env["OPENBLAS_CORETYPE"] = blas_core()
            return self.run(shape, folder, iterations)
        return out


def find_peers(args):
    """Peers by the name their goals are under, and a line for each that is missing."""
    found, missing = {"vlfeat": [], "armadillo": [], "faiss": [], "sklearn": []}, []
    for name in ("vlfeat", "armadillo", "faiss"):
        why = args.built / f"{name}.missing"
        if (args.built / name).exists():
            found[name].append(Peer(name, "built", [args.built / name], args.threads))
        else:
            missing.append(f"{name}: {why.read_text().strip() if why.exists() else 'it is not built'}")
    for python in args.python:
        for name, module in (("sklearn", "sklearn"), ("faiss", "faiss")):
            if subprocess.run([python, "-c", f"import {module}, numpy"], capture_output=True).returncode:
                missing.append(f"{name} for Python: {python} has no module {module}")
                continue
            found[name].append(Peer(name, "sklearn" if name == "sklearn" else "script",
                                    [python, TOOLS / f"bench_{name}.py"], args.threads))
    return found, missing


class Bench:
    def __init__(self, args, scratch):
        self.args, self.scratch = args, scratch
        self.table, self.notes, self.broken = [], [], False
        self.goals = [(smaller(shape), goals) for shape, goals in GOALS] if args.quick else GOALS
        self.first, self.spherical = self.goals[0][0], self.goals[3][0]
        self.peaks = []  # (one thread, all threads), GFLOP/s
        self.peers, missing = find_peers(args)
        self.notes += [f"skipped: {line}" for line in missing]

    # ---- our side ----

    def em(self, shape, *more, threads=None):
        """`flashgmm bench em` (or another bench) on a shape."""
        kind = ["--hard"] if shape.covariance == "kmeans" else ["--covariance", shape.covariance]
        data = ["--data", "overlapping"] if shape.overlapping else []
        out = run_json([self.args.program, "bench", "em", "-n", shape.n, "-k", shape.k, "-d", shape.d, *kind, *data,
                        "--device", "cpu", "--threads", threads or self.args.threads, "--json", *more])
        if threads is None:
            self.peaks.append((out["peak_gflops_one_thread"], out["peak_gflops"]))
        return out

    def fit(self, *more):
        return run_json([self.args.program, "fit", *more, "--json"])

    def folder(self, shape):
        """The shape's files, written once."""
        out = self.scratch / str(shape).replace(" ", "-")
        if not out.exists():
            out.mkdir()
            covariance = "spherical" if shape.covariance == "kmeans" else shape.covariance
            data = ["--data", "overlapping"] if shape.overlapping else []
            command = [self.args.program, "bench", "em", "-n", shape.n, "-k", shape.k, "-d", shape.d, "--covariance",
                       covariance, *data, "--device", "cpu", "--write", out]
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
            if done.returncode:
                out.rmdir()
                raise Failed(done.stderr.strip())
        return out

    # ---- the table ----

    def row(self, work, against, ours, theirs, ratio, goal, check="", more_is_better=True):
        met = ratio >= goal if more_is_better else ratio <= goal
        short = 1 - ratio / goal if more_is_better else ratio / goal - 1
        verdict = "met" if met else f"missed by {100 * short:.0f}%"
        self.table.append([work, against, ours, theirs, f"{ratio:.3g}", f"{goal:.3g}", verdict, check])

    def lost(self, work, against, why):
        self.table.append([work, against, "", "", "", "", f"not run: {why}", ""])
        self.broken = True

    def wanted(self, work):
        take = self.args.only is None or self.args.only in str(work)
        if take:
            print(f"... {work}", file=sys.stderr, flush=True)
        return take

    def same(self, ours, theirs, tolerance):
        """The largest relative difference of what both have, at most the first two."""
        pairs = list(zip(ours[:2], theirs[:2]))
        worst = max(abs(a - b) / max(1.0, abs(b)) for a, b in pairs) if pairs else float("inf")
        if not worst <= tolerance:
            self.broken = True
            return f"DIFFERENT: {worst:.1e}"
        return f"{worst:.0e}"

    # ---- what is compared ----

    def against(self, shape, peer, goal):
        """Us and one peer in turns."""
        first = ["--first"] if shape.overlapping else []
        ours, theirs, mine = [], [], None
        try:
            folder = self.folder(shape)
            other = peer.run(shape, folder, 2)  # what the first run of a program pays for is not counted
            slow = max(other["ms_each"]) > SLOW_MS
            for turn in range(self.args.rounds):
                mine = self.em(shape, "--reps", self.args.reps, *first)
                ours += mine["ms_each"]
                if turn < 2 or not slow:
                    other = peer.run(shape, folder, 2 if slow else 4)
                    theirs += other["ms_each"]
        except Failed as why:
            return self.lost(shape, peer.name, why)
        a, b = statistics.median(ours), statistics.median(theirs)
        values = mine["square_distances" if shape.covariance == "kmeans" else "log_likelihoods"]
        check = self.same(values, other["values"], TOLERANCE)
        name = other["peer"] + (f", {other['blas']}" if "blas" in other else "")
        return self.row(shape, name, f"{a:.4g} ms", f"{b:.4g} ms", b / a, goal, check)

    def shapes(self):
        for shape, goals in self.goals:
            self.shape(shape, goals, 1)
        for shape, goals in self.goals:
            if shape.covariance != "kmeans":
                self.shape(dataclasses.replace(shape, overlapping=True), goals, OVERLAPPING)

    def shape(self, shape, goals, share):
        """One shape against all its peers. @param share of the goals"""
        if self.wanted(shape):
            for name, goal in goals.items():
                for peer in self.peers[name]:
                    self.against(shape, peer, goal * share)

    def arithmetic(self):
        shape = self.spherical
        work = f"E-step, {shape}"
        if not self.wanted(work):
            return
        rates, peaks = [], []
        try:
            for _ in range(self.args.rounds):
                peaks.append(self.em(shape, "--reps", 1)["peak_gflops"])
                rates.append(run_json([self.args.program, "bench", "estep", "-n", shape.n, "-k", shape.k, "-d", shape.d,
                                       "--device", "cpu", "--threads", self.args.threads, "--reps", self.args.reps,
                                       "--json"])["gflops"])
        except Failed as why:
            self.lost(work, "measured peak", why)
            return
        rate, peak = statistics.median(rates), statistics.median(peaks)
        self.row(work, "measured peak", f"{rate:.4g} GFLOP/s", f"{peak:.4g} GFLOP/s", rate / peak, 0.75)

    def scaling(self):
        work = f"1 to {self.args.threads} threads, {self.first}"
        if self.args.threads < 2 or not self.wanted(work):
            return
        one, every, peaks = [], [], []
        try:
            for _ in range(self.args.rounds):
                one += self.em(self.first, "--reps", self.args.reps, threads=1)["ms_each"]
                out = self.em(self.first, "--reps", self.args.reps)
                every += out["ms_each"]
                peaks.append(out["peak_gflops"] / out["peak_gflops_one_thread"])
        except Failed as why:
            self.lost(work, "measured peaks", why)
            return
        gain, peak = statistics.median(one) / statistics.median(every), statistics.median(peaks)
        self.row(work, "ratio of the measured peaks", f"{gain:.3g}", f"{peak:.3g}", gain / peak, 0.95)

    def memory(self):
        work = f"memory beside the rows, {self.first}"
        if not self.wanted(work):
            return
        try:
            mib = self.em(self.first, "--reps", 2)["peak_host_bytes"] / 2**20
        except Failed as why:
            self.lost(work, "", why)
            return
        self.row(work, "", f"{mib:.3g} MiB", "", mib, 16, more_is_better=False)

    def seeding(self):
        work = f"k-means++ seeding, {self.first}"
        if not self.wanted(work):
            return
        seeded, given, whole = [], [], []
        try:
            folder = self.folder(self.first)
            base = [folder / "rows.npy", "--covariance", self.first.covariance, "--tol", 0, "--device", "cpu", "--threads",
                    self.args.threads]
            for seed in range(self.args.rounds):
                start = ["-k", self.first.k, "--seed", seed]
                seeded.append(self.fit(*base, *start, "--max-iter", 1)["seconds"])
                given.append(self.fit(*base, "--init", folder / "start.npz", "--max-iter", 1)["seconds"])
                whole.append(self.fit(*base, *start, "--max-iter", 30)["seconds"])
        except Failed as why:
            self.lost(work, "", why)
            return
        seconds, fit = statistics.median(seeded) - statistics.median(given), statistics.median(whole)
        self.row(work, "a fit of 30 iterations", f"{1e3 * seconds:.4g} ms", f"{1e3 * fit:.4g} ms", seconds / fit, 0.1,
                 more_is_better=False)

    def process(self):
        """A whole process of ours against scikit-learn's fit alone."""
        work = "whole process, Old Faithful, K=2, full"
        if not self.wanted(work):
            return
        for peer in self.peers["sklearn"]:
            model = self.scratch / "old-faithful.npz"
            command = [str(word) for word in (self.args.program, "fit", OLD_FAITHFUL, "-k", 2, "--covariance", "full",
                                              "--device", "cpu", "--threads", self.args.threads, "-q", "-o", model)]
            ours, theirs = [], []
            try:
                for _ in range(self.args.rounds):
                    for _ in range(self.args.reps):
                        ours.append(1e3 * spawn_seconds(command))
                    other = run_json([*peer.command, "fit", "full", OLD_FAITHFUL, 2, self.args.reps], peer.env)
                    theirs += other["ms_each"]
                score = run_json([self.args.program, "score", OLD_FAITHFUL, "-m", model, "--json"])
            except Failed as why:
                self.lost(work, peer.name, why)
                continue
            check = self.same([score["log_likelihood"]], other["values"], TOLERANCE_FIT)
            a, b = statistics.median(ours), statistics.median(theirs)
            self.row(work, other["peer"] + ", fit()", f"{a:.4g} ms", f"{b:.4g} ms", b / a, 1, check)

    def report(self):
        heads = ["work", "against", "ours", "theirs", "ratio", "goal", "verdict", "differs by"]
        table = [heads, *[[str(cell) for cell in row] for row in self.table]]
        widths = [max(len(row[i]) for row in table) for i in range(len(heads))]
        for row in table:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        print()
        if self.peaks:
            one, every = (statistics.median(values) for values in zip(*self.peaks))
            print(f"peak: {one:.4g} GFLOP/s with one thread, {every:.4g} with {self.args.threads}")
        for note in self.notes:
            print(note)


def spawn_seconds(command):
    start = time.perf_counter()
    child = os.posix_spawn(command[0], command, os.environ)
    _, status = os.waitpid(child, 0)
    seconds = time.perf_counter() - start
    if status:
        raise Failed(f"{command[0]}: exit status {os.waitstatus_to_exitcode(status)}")
    return seconds


def options():
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--program", type=pathlib.Path, required=True, help="flashgmm")
    out.add_argument("--built", type=pathlib.Path, required=True, help="folder of the peers in C and C++")
    out.add_argument("--python", action="append", default=[], help="a Python with peers; may be given again")
    out.add_argument("--threads", type=int, default=os.cpu_count(), help="for all sides (default: all processors)")
    out.add_argument("--rounds", type=int, default=5, help="turns of each side (default 5)")
    out.add_argument("--reps", type=int, default=5, help="iterations of ours a turn (default 5)")
    out.add_argument("--only", help="rows whose name holds this")
    out.add_argument("--quick", action="store_true", help="small shapes and two turns: does it all run?")
    args = out.parse_args()
    if args.quick:
        args.rounds = 2
    return args


def main():
    args = options()
    load = os.getloadavg()[0]
    if load > 0.3:
        print(f"warning: the machine is busy (load {load:.2f}): these times will mean little", file=sys.stderr)
    print(f"threads: {args.threads} for all sides (OMP_NUM_THREADS, OPENBLAS_NUM_THREADS); "
          f"{args.rounds} turns each; load {load:.2f} at the start")
    with tempfile.TemporaryDirectory(prefix="flashgmm-bench-") as scratch:
        bench = Bench(args, pathlib.Path(scratch))
        bench.shapes()
        bench.arithmetic()
        bench.scaling()
        bench.process()
        bench.memory()
        bench.seeding()
        bench.report()
    sys.exit(1 if bench.broken else 0)


if __name__ == "__main__":
    main()
