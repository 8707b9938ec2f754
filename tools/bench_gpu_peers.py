#!/usr/bin/env python3
"""flashgmm on an NVIDIA GPU beside the peers that run there, on the same data from the same start; prints one table.

    bench_gpu_peers.py --program FLASHGMM [--flash-gmm FOLDER] [--flash-kmeans FOLDER] [--work kmeans mixtures overlapping]
                       [-n N] [-k K] [-d D] [--device NAME]

FOLDER: a checkout of github.com/IBM/Flash-GMM and of github.com/svg-project/flash-kmeans. Needs PyTorch with CUDA and Triton.
Ours is a whole EM iteration, host included, the median after the first (`flashgmm bench em`). A peer's is one call of its E-step with
statistics, or of an assignment with new centroids, by CUDA events after warm-up, the median of 20. Errors are those of one iteration
against the same in double, computed here: of the mean log-likelihood, relative to the larger of 1 and itself; of the counts and of
the variances, the largest relative one over the components. Clusters lie apart, but for the rows that say overlapping. A peer that
is missing or fails is a line that says so. Rows of the table also go to standard error as they come, since peers that tune themselves
take minutes.

Exit status 0: done; 1: a run failed.
"""
import argparse
import datetime
import importlib.util
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy
import torch

LOG_2PI = math.log(2 * math.pi)
CHUNK = 1 << 15
WORK = ["kmeans", "mixtures", "overlapping"]


def run_json(command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command[0]}: {done.stderr.strip() or done.returncode}")
    return json.loads(done.stdout)


def load(folder, name):
    """A module from a checkout."""
    path = pathlib.Path(folder) / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def milliseconds(call, times=20, warm=5):
    for _ in range(warm):
        call()
    torch.cuda.synchronize()
    out = []
    for _ in range(times):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        out.append(begin.elapsed_time(end))
    return statistics.median(out)


def in_double(x, means, diag):
    """Mean log-likelihood, counts and new variances of one iteration from unit variances and equal weights."""
    k, d = means.shape
    m = means.double()
    total, counts = 0.0, torch.zeros(k, dtype=torch.float64, device=x.device)
    s1 = torch.zeros(k, d, dtype=torch.float64, device=x.device)
    s2 = torch.zeros_like(s1)
    for at in range(0, x.shape[0], CHUNK):
        part = x[at:at + CHUNK].double()
        logits = -0.5 * (torch.cdist(part, m, compute_mode="donot_use_mm_for_euclid_dist") ** 2 + d * LOG_2PI) - math.log(k)
        z = torch.logsumexp(logits, 1)
        r = torch.exp(logits - z[:, None])
        total += float(z.sum())
        counts += r.sum(0)
        s1 += r.T @ part
        s2 += r.T @ part**2
    return total / x.shape[0], counts, variances(counts, s1, s2, diag)


def variances(counts, s1, s2, diag):
    each = s2 / counts[:, None] - (s1 / counts[:, None]) ** 2
    return each if diag else each.mean(1)


def errors(got, want):
    worst = [abs(got[0] - want[0]) / max(1.0, abs(want[0]))]
    worst += [float(((a - b).abs() / b.abs()).max()) for a, b in zip(got[1:], want[1:])]
    return " / ".join(f"{error:.0e}" for error in worst)


class Bench:
    def __init__(self, args, scratch):
        self.args, self.scratch, self.table, self.notes = args, scratch, [], []

    def make(self, data):
        """Rows and the means to start from."""
        args = self.args
        self.shape = ["-n", args.n, "-k", args.k, "-d", args.d, "--data", data]
        done = subprocess.run([str(word) for word in (args.program, "bench", "em", *self.shape, "--covariance", "spherical",
                                                      "--device", "cpu", "--write", self.scratch)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr.strip())
        self.x = torch.from_numpy(numpy.load(self.scratch / "rows.npy")).cuda()
        self.means = torch.from_numpy(numpy.load(self.scratch / "means.npy")).float().cuda()

    def row(self, work, who, ms, against=None, check=""):
        self.table.append([work, who, f"{ms:.3f}", "" if against is None else f"{ms / against:.2f}", check])
        print("  ".join(self.table[-1]), file=sys.stderr, flush=True)

    def ours(self, covariance, *more):
        kind = ["--hard"] if covariance == "kmeans" else ["--covariance", covariance]
        return run_json([self.args.program, "bench", "em", *self.shape, *kind, "--device", self.args.device, "--reps", 20,
                         "--json", *more])["ms"]

    def our_errors(self, covariance, want, *more):
        """Of one iteration from the start that the peers get."""
        start, model = self.scratch / "start.npz", self.scratch / "model.npz"
        k, d = self.means.shape
        variance = numpy.ones((k, d)) if covariance == "diag" else numpy.ones(k)
        numpy.savez(start, weights=numpy.full(k, 1 / k), means=self.means.cpu().numpy().astype(float), covariances=variance,
                    covariance_type=covariance)
        out = run_json([self.args.program, "fit", self.scratch / "rows.npy", "--init", start, "--covariance", covariance,
                        "--max-iter", 1, "--tol", 0, "--reg-covar", 0, "--device", self.args.device, "-o", model, "--json", *more])
        fitted = numpy.load(model)
        counts = torch.from_numpy(fitted["weights"]).cuda() * self.x.shape[0]
        return errors((out["lower_bound"], counts, torch.from_numpy(fitted["covariances"]).cuda()), want)

    def attempt(self, name, call, *arguments):
        """A peer that fails, as kernels that tune themselves to a GPU may, costs its row alone."""
        try:
            call(*arguments)
        except Exception as error:
            self.notes.append(f"failed: {name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            print(self.notes[-1], file=sys.stderr, flush=True)

    def flash_gmm(self, work, name, call, covariance, against, want):
        """One of Flash-GMM's kernels; its variances are about the old means."""
        ms = milliseconds(call)
        z, counts, s1, s2 = (out.double() for out in call())
        shift = s1 / counts[:, None] - self.means
        old = s2 / counts[:, None] if covariance == "diag" else s2 / counts / self.x.shape[1]
        got = old - (shift**2 if covariance == "diag" else (shift**2).mean(1))
        self.row(work, name, ms, against, errors((float(z.mean()), counts, got), want))

    def mixture(self, work, covariance, kernels, *engine):
        """Ours and the peer's kernels: (module, name, function, shape of its first zeros) each."""
        k = self.means.shape[0]
        weights = torch.full((k,), -math.log(k), device="cuda")
        want = in_double(self.x, self.means, covariance == "diag")
        fast = ("--precision", "fast")
        ms = self.ours(covariance, *engine)
        self.row(work, "flashgmm, exact", ms, None, self.our_errors(covariance, want, *engine))
        self.row(work, "flashgmm, fast", self.ours(covariance, *engine, *fast), ms, self.our_errors(covariance, want, *engine, *fast))
        for module, name, function, shape in kernels:
            if not self.args.flash_gmm:
                self.notes.append(f"skipped: {name} ({work}): no --flash-gmm")
                continue
            kernel, zeros = getattr(load(self.args.flash_gmm, module), function), torch.zeros(shape, device="cuda")
            self.attempt(name, self.flash_gmm, work, name, lambda: kernel(self.x, self.means, zeros, weights), covariance, ms, want)

    def tuned(self):
        return ("flash_gmm_h100", "Flash-GMM, H100-tuned", "flash_gmm_estep", (self.means.shape[0],))

    def mixtures(self):
        k, d = self.means.shape
        self.mixture("spherical", "spherical", [("flash_gmm", "Flash-GMM, released", "flash_gmm_estep", (k,)), self.tuned()])
        self.mixture("diag", "diag", [("flash_gmm_diag_h100", "Flash-GMM, H100-tuned", "flash_gmm_estep_diag", (k, d))])

    def overlapping(self):
        """Every component counts for every row: the dense engine from the first iteration on."""
        self.mixture("spherical, overlapping", "spherical", [self.tuned()], "--engine", "dense")

    def kmeans(self):
        ms = self.ours("kmeans", "--type", "f16")
        self.row("kmeans", "flashgmm, f16 rows", ms)
        self.row("kmeans", "flashgmm, f32 rows", self.ours("kmeans"), ms)
        if not self.args.flash_kmeans:
            self.notes.append("skipped: flash-kmeans: no --flash-kmeans")
            return
        sys.path.insert(0, str(self.args.flash_kmeans))
        from flash_kmeans.assign_euclid_triton import euclid_assign_triton
        from flash_kmeans.centroid_update_triton import triton_centroid_update_sorted_euclid
        for dtype, name in ((torch.float16, "f16"), (torch.float32, "f32")):
            x, c = self.x.to(dtype)[None], self.means.to(dtype)[None]
            square = (x.float() ** 2).sum(-1)

            def step():
                ids = euclid_assign_triton(x, c, square, use_heuristic=True)
                return triton_centroid_update_sorted_euclid(x, ids, c)

            who = f"flash-kmeans, {name} rows"
            self.attempt(who, lambda: self.row("kmeans", who, milliseconds(step), ms))

    def report(self):
        heads = ["work", "who", "ms", "of ours", "errors: likelihood / counts / variances"]
        table = [heads, *self.table]
        widths = [max(len(row[i]) for row in table) for i in range(len(heads))]
        driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True,
                                text=True).stdout.strip()
        print(f"N = {self.args.n}, K = {self.args.k}, D = {self.args.d}; {torch.cuda.get_device_name()}, driver {driver}, PyTorch "
              f"{torch.__version__}, {datetime.date.today()}")
        for row in table:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        for note in self.notes:
            print(note)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=pathlib.Path, required=True, help="flashgmm")
    parser.add_argument("--flash-gmm", type=pathlib.Path, help="a checkout of Flash-GMM")
    parser.add_argument("--flash-kmeans", type=pathlib.Path, help="a checkout of flash-kmeans")
    parser.add_argument("--device", default="opencl", help="as flashgmm takes it (default opencl)")
    parser.add_argument("--work", nargs="+", choices=WORK, default=WORK, help="what to run (default all)")
    parser.add_argument("-n", type=int, default=1000000, help="rows (default 1000000)")
    parser.add_argument("-k", type=int, default=1024, help="components (default 1024)")
    parser.add_argument("-d", type=int, default=128, help="features (default 128)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flashgmm-bench-") as scratch:
        bench = Bench(args, pathlib.Path(scratch))
        for data, works in (("separated", ("kmeans", "mixtures")), ("overlapping", ("overlapping",))):
            if any(work in args.work for work in works):
                bench.make(data)
            for work in works:
                if work in args.work:
                    getattr(bench, work)()
        bench.report()


if __name__ == "__main__":
    main()
