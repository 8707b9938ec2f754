#!/usr/bin/env python3
"""What faiss does with an IndexIVFFlat: the baselines of flashgmm's own index.

    bench_ivf_faiss.py BASE (--query FILE | --hold-out N) --metric l2|angular [--lists 256] [--budgets 1,1.5,2]
                       [--json OUT.json] [--singles OUT.npz] [--truth OUT.ivecs]

Coarse quantizers are faiss's k-means, all rows, without subsampling; where vectors are normalised also its spherical
k-means. For each budget m there is an index of m times the lists, which has as many entries a list as a row in m lists
would give. Recall is that of the k nearest by id. A row is found if and only if its list is probed, so recall and
distances at every nprobe follow from the order of the lists of each query; a search by faiss at the tuned nprobe has to
agree. Queries with even numbers tune, those with odd numbers are reported.

Columns: nprobe tuned so that the recall is at least the target (whole), the mixture of two that meets it (between), or
every list within a gap of the nearest (adaptive, which faiss does not do; the lists are its own). Distances a query are
those to rows; with the centroids, K more.

Files: npy, fvecs, bvecs, fbin, u8bin, i8bin, idx3-ubyte, idx3-ubyte.gz, FILE.hdf5[:DATASET].
"""
import argparse
import gzip
import json
import os
import sys
import time

import faiss
import numpy as np

WAYS = ("whole", "between", "adaptive")


# ---- files ----

def read_rows(path, default="train"):
    name, _, dataset = path.rpartition(":")
    if not name or os.path.exists(path):
        name, dataset = path, default
    if name.endswith((".hdf5", ".h5")):
        import h5py  # only where it is asked for
        with h5py.File(name, "r") as file:
            return file[dataset][:]
    if path.endswith(".npy"):
        return np.load(path)
    if path.endswith((".fvecs", ".bvecs")):
        item = 4 if path.endswith(".fvecs") else 1
        raw = np.fromfile(path, np.uint8)
        d = int(raw[:4].view("<i4")[0])
        return np.ascontiguousarray(raw.reshape(-1, 4 + d * item)[:, 4:]).view("<f4" if item == 4 else "u1")
    for ending, dtype in ((".fbin", "<f4"), (".u8bin", "u1"), (".i8bin", "i1")):
        if path.endswith(ending):
            n, d = (int(x) for x in np.fromfile(path, "<u4", 2))
            return np.fromfile(path, dtype, offset=8).reshape(n, d)
    if path.endswith(("idx3-ubyte", "idx3-ubyte.gz")):
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            n = int.from_bytes(file.read(16)[4:8], "big")
            return np.frombuffer(file.read(), np.uint8).reshape(n, -1)
    sys.exit(f"{path}: the ending tells no known format")


def write_truth(path, ids, distances):
    ids32 = ids.astype("<i4")
    if path.endswith(".ivecs"):
        np.hstack([np.full((len(ids), 1), ids.shape[1], "<i4"), ids32]).tofile(path)
    elif path.endswith(".ibin"):
        with open(path, "wb") as file:
            np.array(ids.shape, "<u4").tofile(file)
            ids32.tofile(file)
            distances.astype("<f4").tofile(file)
    elif path.endswith(".npy"):
        np.save(path, ids.astype("<i8"))
    else:
        sys.exit(f"{path}: ground truth goes to .ivecs, .ibin or .npy")


def load(options):
    base = read_rows(options.base)
    if options.hold_out:
        base, query = base[:-options.hold_out], base[-options.hold_out:]
    else:
        query = read_rows(options.query, "test")
    base, query = (np.ascontiguousarray(x, np.float32) for x in (base, query[:options.queries]))
    if options.metric == "angular":
        base, query = (np.ascontiguousarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)
                       for x in (base, query))
    return base, query


# ---- one index ----

def build(base, n_lists, spherical, seed, options):
    """A trained and filled index, with the seconds that both took."""
    d = base.shape[1]
    faiss.omp_set_num_threads(options.threads)
    if spherical:
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, n_lists, faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(d), d, n_lists, faiss.METRIC_L2)
    index.cp.niter = options.iterations
    index.cp.spherical = spherical
    index.cp.min_points_per_centroid = 1
    index.cp.max_points_per_centroid = len(base)
    index.cp.seed = 1234 + seed
    start = time.perf_counter()
    index.train(base)
    trained = time.perf_counter()
    index.add(base)
    return index, trained - start, time.perf_counter() - trained


def lists_of(index, n):
    """Which list each row is in, and the sizes of the lists."""
    lists, sizes = np.empty(n, np.int64), np.empty(index.nlist, np.int64)
    for j in range(index.nlist):
        sizes[j] = index.invlists.list_size(j)
        if sizes[j]:
            lists[faiss.rev_swig_ptr(index.invlists.get_ids(j), int(sizes[j]))] = j
    return lists, sizes


class Probing:
    """Recall and distances of queries at any nprobe or gap."""

    def __init__(self, index, query, truth, lists, sizes):
        near, order = index.quantizer.search(query, index.nlist)
        self.gaps = np.abs(near - near[:, :1])
        self.rank = np.empty_like(order)
        np.put_along_axis(self.rank, order, np.arange(index.nlist)[None, :], axis=1)
        self.sizes = sizes[order]
        self.cumulated = self.sizes.cumsum(axis=1)
        self.true_rank = np.take_along_axis(self.rank, lists[truth], axis=1)
        self.true_gap = np.take_along_axis(self.gaps, self.true_rank, axis=1)

    def recalls(self, part):
        """[nlist]: recall at nprobe 1, 2, ..."""
        counts = np.bincount(self.true_rank[part].ravel(), minlength=self.gaps.shape[1])
        return counts.cumsum() / self.true_rank[part].size

    def at(self, target, tune, report):
        """For each way: (nprobe or gap, recall and distances of the reported queries, each query its own)."""
        recall = self.recalls(tune)
        p = int(np.searchsorted(recall, target - 1e-12))
        found = lambda q: (self.true_rank[report] < q).mean(axis=1)
        paid = lambda q: self.cumulated[report, q - 1] if q else np.zeros(len(self.cumulated[report]))
        low = recall[p - 1] if p else 0.0
        f = (target - low) / (recall[p] - low)
        gap = np.quantile(self.true_gap[tune], target, method="inverted_cdf")
        return {"whole": (p + 1, found(p + 1), paid(p + 1)),
                "between": (p + f, (1 - f) * found(p) + f * found(p + 1), (1 - f) * paid(p) + f * paid(p + 1)),
                "adaptive": (float(gap), (self.true_gap[report] <= gap).mean(axis=1),
                             np.where(self.gaps[report] <= gap, self.sizes[report], 0).sum(axis=1))}


def rate(index, query, k, n_probe, repeats):
    """Queries a second on one thread, all at once and one by one; the best of the repeats."""
    faiss.omp_set_num_threads(1)
    index.nprobe = n_probe
    best = [0.0, 0.0]
    few = query[:1000]
    for _ in range(repeats):
        start = time.perf_counter()
        index.search(query, k)
        best[0] = max(best[0], len(query) / (time.perf_counter() - start))
        start = time.perf_counter()
        for i in range(len(few)):
            index.search(few[i:i + 1], k)
        best[1] = max(best[1], len(few) / (time.perf_counter() - start))
    return best


def agree(index, base, query, truth, n_probe, recall, distances):
    """A search by faiss finds what the order of the lists says, a row as far as the last true one counting too: which
    of equal rows are the neighbours is anybody's choice."""
    index.nprobe = n_probe
    faiss.cvar.indexIVF_stats.reset()
    _, ids = index.search(query, truth.shape[1])
    computed = faiss.cvar.indexIVF_stats.ndis / len(query)
    near = lambda rows: np.square(base[rows] - query[:, None, :]).sum(axis=2, dtype=np.float64)
    last = near(truth).max(axis=1, keepdims=True)
    got = np.mean((ids >= 0) & (near(ids) <= last * (1 + 1e-5) + 1e-9))
    # Near-duplicates: some rows at the last one's distance are in lists not probed, with their equals found.
    if abs(got - recall) > 5e-3 or abs(computed - distances) > 1e-3 * distances:
        sys.exit(f"faiss found {got:.4f} with {computed:.1f} distances where {recall:.4f} with {distances:.1f} was due")


def measure(base, query, truth, n_lists, spherical, seed, options, singles):
    index, train_seconds, add_seconds = build(base, n_lists, spherical, seed, options)
    lists, sizes = lists_of(index, len(base))
    probing = Probing(index, query, truth, lists, sizes)
    tune, report = np.arange(len(query)) % 2 == 0, np.arange(len(query)) % 2 == 1
    out = {"seed": seed, "train_seconds": train_seconds, "add_seconds": add_seconds,
           "imbalance": float(n_lists * np.square(sizes / len(base)).sum()), "targets": []}
    for target in options.recalls:
        found = probing.at(target, tune, report)
        entry = {"target": target}
        for way, (knob, recall, distances) in found.items():
            entry[way] = {"knob": knob, "recall": recall.mean(), "distances": distances.mean(),
                          "distances_error": distances.std(ddof=1) / len(distances) ** 0.5}
            name = f"{'spherical' if spherical else 'kmeans'}-{n_lists}-{target:g}-{way}"
            singles.setdefault(f"{name}-recall", []).append(recall.astype(np.float32))
            singles.setdefault(f"{name}-distances", []).append(distances.astype(np.float32))
        agree(index, base, query[report], truth[report], entry["whole"]["knob"], entry["whole"]["recall"],
              entry["whole"]["distances"])
        out["targets"].append(entry)
        if target == options.rate_recall and options.repeats:
            out["queries_per_second"], out["queries_per_second_singly"] = rate(
                index, query[report], truth.shape[1], entry["whole"]["knob"], options.repeats)
    return out


# ---- all of them ----

def mean(values):
    values = list(values)
    return sum(values) / len(values)


def show(case, options):
    kind = "spherical k-means" if case["spherical"] else "k-means"
    k, runs = case["lists"], case["runs"]
    line = f"{kind}, {k} lists (m = {case['budget']:g}): train {mean(r['train_seconds'] for r in runs):.2f} s, " \
           f"add {mean(r['add_seconds'] for r in runs):.2f} s, {options.threads} threads"
    if "queries_per_second" in runs[0]:
        line += f"; one thread at {options.rate_recall:g}: {mean(r['queries_per_second'] for r in runs):.0f} queries/s, " \
                f"one by one {mean(r['queries_per_second_singly'] for r in runs):.0f}"
    print(line)
    for i, target in enumerate(options.recalls):
        for way in WAYS:
            entries = [r["targets"][i][way] for r in runs]
            distances = [e["distances"] for e in entries]
            print(f"  {target:.2f}  {way:<9} {mean(e['knob'] for e in entries):>9.4g}  "
                  f"recall {mean(e['recall'] for e in entries):.4f}  distances {mean(distances):>8.0f}  "
                  f"with centroids {mean(distances) + k:>8.0f}   seeds {min(distances):.0f} .. {max(distances):.0f}, "
                  f"error over queries {mean(e['distances_error'] for e in entries):.0f}")
    sys.stdout.flush()


def numbers(text):
    return [float(x) for x in text.split(",")]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="the rows")
    queries = parser.add_mutually_exclusive_group(required=True)
    queries.add_argument("--query", help="the queries")
    queries.add_argument("--hold-out", type=int, help="take this many rows from the end as queries")
    parser.add_argument("--metric", choices=("l2", "angular"), required=True)
    parser.add_argument("--queries", type=int, help="only the first of them")
    parser.add_argument("--lists", type=int, default=256)
    parser.add_argument("--budgets", type=numbers, default=[1.0, 1.25, 1.5, 2.0], help="m, m, ... (1,1.25,1.5,2)")
    parser.add_argument("--recalls", type=numbers, default=[0.9, 0.95, 0.96, 0.98], help="targets (.90,.95,.96,.98)")
    parser.add_argument("--rate-recall", type=float, default=0.95, help="target at which queries are timed (.95)")
    parser.add_argument("--repeats", type=int, default=3, help="timed searches, the best counts; 0: none (3)")
    parser.add_argument("-k", type=int, default=10, help="neighbours (10)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=25, help="of k-means (25)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of train and add")
    parser.add_argument("--truth", help="write the neighbours: .ivecs, .ibin (with distances) or .npy")
    parser.add_argument("--json", help="write every figure")
    parser.add_argument("--singles", metavar="OUT.npz", help="write recall and distances of each reported query, for paired "
                        "differences: KIND-LISTS-TARGET-WAY-recall and -distances, [seeds, queries]")
    return parser.parse_args()


def main():
    options = arguments()
    base, query = load(options)
    start = time.perf_counter()
    exact = (faiss.IndexFlatIP if options.metric == "angular" else faiss.IndexFlatL2)(base.shape[1])
    exact.add(base)
    distances, truth = exact.search(query, options.k)
    seconds = time.perf_counter() - start
    if options.truth:
        write_truth(options.truth, truth, 1 - distances if options.metric == "angular" else distances)
    print(f"faiss {faiss.__version__}: {len(base)} rows, {len(query)} queries, {base.shape[1]} features, {options.metric}, "
          f"recall@{options.k}, {options.seeds} seeds; exact search {seconds:.1f} s")
    print(f"{len(query) - len(query) // 2} queries (even) tune, {len(query) // 2} (odd) are reported")
    cases, singles = [], {}
    for spherical in (False, True) if options.metric == "angular" else (False,):
        for budget in options.budgets:
            n_lists = round(budget * options.lists)
            cases.append({"lists": n_lists, "budget": budget, "spherical": spherical,
                          "runs": [measure(base, query, truth, n_lists, spherical, seed, options, singles)
                                   for seed in range(options.seeds)]})
            show(cases[-1], options)
    if options.singles:
        np.savez(options.singles, **{name: np.array(values) for name, values in singles.items()})
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"faiss": faiss.__version__, "base": os.path.basename(options.base), "n_rows": len(base),
                       "n_queries": len(query), "n_features": base.shape[1], "metric": options.metric, "k": options.k,
                       "threads": options.threads, "exact_seconds": seconds, "cases": cases}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
