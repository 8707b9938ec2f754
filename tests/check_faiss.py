#!/usr/bin/env python3
"""faiss reads what flashgmm writes for it, and searches with the same results: check_faiss.py TEST_FAISS [FLASHGMM]

Exit 0 right, 1 wrong, 77 where faiss is not there.
"""
import pathlib
import subprocess
import sys
import tempfile

SKIP = 77
try:
    import faiss
    import numpy as np
except ImportError as why:
    print(f"skipped: {why}")
    sys.exit(SKIP)


def by_hand(queries, arrays, inner_product, k, nprobe):
    """The k best of the nprobe best lists, in double; id -1 where those have fewer."""
    starts = np.concatenate([[0], np.cumsum(arrays["sizes"])])
    vectors, centroids = arrays["vectors"].astype(float), arrays["centroids"].astype(float)

    def far(q, x):
        return -(x @ q) if inner_product else ((x - q) ** 2).sum(axis=1)

    ids, distances = np.full((len(queries), k), -1), np.zeros((len(queries), k))
    for i, q in enumerate(queries.astype(float)):
        lists = np.argsort(far(q, centroids), kind="stable")[:nprobe]
        rows = np.concatenate([np.arange(starts[j], starts[j + 1]) for j in lists])
        found = far(q, vectors[rows])
        best = np.argsort(found, kind="stable")[:k]
        ids[i, :len(best)] = arrays["ids"][rows[best]]
        distances[i, :len(best)] = -found[best] if inner_product else found[best]
    return ids, distances


def check_ivf(folder, name):
    arrays = np.load(folder / f"{name}.npz")
    index = faiss.read_index(str(folder / f"{name}.faiss"))
    inner_product = name == "ip"
    assert isinstance(index, faiss.IndexIVFFlat), type(index)
    assert index.metric_type == (faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2)
    assert index.is_trained and index.ntotal == len(arrays["vectors"]) and index.nprobe == 3
    assert index.nlist == len(arrays["centroids"]) and index.d == arrays["vectors"].shape[1]
    queries = np.random.default_rng(1).normal(0, 3, (50, index.d)).astype(np.float32)
    queries[0] = arrays["vectors"][0]
    for nprobe in (1, 3, index.nlist):
        index.nprobe = nprobe
        distances, ids = index.search(queries, 4)
        due_ids, due_distances = by_hand(queries, arrays, inner_product, 4, nprobe)
        assert np.array_equal(ids, due_ids), (name, nprobe)
        assert np.allclose(distances[ids >= 0], due_distances[ids >= 0], rtol=1e-5, atol=1e-3), (name, nprobe)
    # An index that goes on living: rows can be added, and it can be written and read again.
    index.add_with_ids(queries[:1], np.array([7]))
    index.nprobe = index.nlist
    if not inner_product:
        assert index.search(queries[:1], 2)[1].tolist()[0].count(7) == 1
    again = faiss.deserialize_index(faiss.serialize_index(index))
    assert np.array_equal(again.search(queries, 4)[1], index.search(queries, 4)[1])
    print(f"{name}: {type(index).__name__} of {index.nlist} lists and {index.ntotal - 1} vectors searches as by hand")


def check_quantizer(folder, program):
    """The means of a model before an index that faiss fills itself."""
    rng = np.random.default_rng(2)
    data = np.concatenate([rng.normal(centre, 1, (200, 8)) for centre in rng.normal(0, 9, (12, 8))]).astype(np.float32)
    np.save(folder / "x.npy", data)

    def run(*arguments):
        subprocess.run([program, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL, cwd=folder)

    run("kmeans", "x.npy", "-k", 12, "-o", "m.npz", "--labels", "labels.npy", "--device", "cpu")
    means, labels = np.load(folder / "m.npz")["means"], np.load(folder / "labels.npy")
    for metric, kind in ("l2", faiss.METRIC_L2), ("inner_product", faiss.METRIC_INNER_PRODUCT), \
            ("angular", faiss.METRIC_INNER_PRODUCT):
        run("export", "-m", "m.npz", "-o", f"{metric}-means.faiss", "--metric", metric)
        quantizer = faiss.read_index(str(folder / f"{metric}-means.faiss"))
        due = means / np.linalg.norm(means, axis=1, keepdims=True) if metric == "angular" else means
        assert isinstance(quantizer, faiss.IndexFlat) and quantizer.metric_type == kind, type(quantizer)
        assert np.allclose(quantizer.reconstruct_n(0, quantizer.ntotal), due, rtol=1e-6)
    quantizer = faiss.read_index(str(folder / "l2-means.faiss"))
    index = faiss.IndexIVFFlat(quantizer, 8, quantizer.ntotal)
    index.train(data)  # nothing to do: the quantizer is trained and full
    index.add(data)
    assert np.array_equal(quantizer.reconstruct_n(0, 12), means.astype(np.float32))
    assert [index.invlists.list_size(k) for k in range(12)] == np.bincount(labels, minlength=12).tolist()
    print(f"means: an {type(quantizer).__name__} of them gives faiss the lists that flashgmm kmeans made")


def check_index(folder, program):
    """An index of ours, searched here and by faiss, list for list."""
    rng = np.random.default_rng(3)
    data, queries = rng.normal(0, 1, (3000, 12)).astype(np.float32), rng.normal(0, 1, (40, 12)).astype(np.float32)
    np.save(folder / "base.npy", data)
    np.save(folder / "queries.npy", queries)

    def run(*arguments):
        return subprocess.run([program, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder)

    for metric in "l2", "angular", "inner_product":
        kind = ["--metric", metric]
        for command in (["ivf", "train", "base.npy", "-k", 20, *kind, "-o", "lists.npz"],
                        ["ivf", "build", "base.npy", "-m", "lists.npz", *kind, "--rule", "single", "-o", "one.ivf"],
                        ["export", "-i", "one.ivf", "-o", "one.faiss"]):
            done = run(*command)
            assert done.returncode == 0, (command, done.stderr)
        index = faiss.read_index(str(folder / "one.faiss"))
        assert isinstance(index, faiss.IndexIVFFlat) and index.ntotal == len(data) and index.nlist == 20
        there = queries / np.linalg.norm(queries, axis=1, keepdims=True) if metric == "angular" else queries
        for nprobe in 1, 4, 20:
            done = run("ivf", "search", "queries.npy", "-i", "one.ivf", "-k", 5, "--nprobe", nprobe, "-o", "found.npz")
            assert done.returncode == 0, done.stderr
            index.nprobe = nprobe
            ours, theirs = np.load(folder / "found.npz")["ids"], index.search(there, 5)[1]
            assert np.mean(ours == theirs) > 0.99, (metric, nprobe, np.mean(ours == theirs))  # rounding may turn two round
    assert run("ivf", "build", "base.npy", "-m", "lists.npz", "--metric", "inner_product", "--rule", "nearest", "-o", "two.ivf").returncode == 0
    refused = run("export", "-i", "two.ivf", "-o", "two.faiss")
    assert refused.returncode == 1 and b"several lists" in refused.stderr, refused.stderr
    print("index: faiss finds in ours what we find, for l2, angular and inner_product")


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        subprocess.run([sys.argv[1], "--write", name], check=True, stdout=subprocess.DEVNULL)
        for metric in "l2", "ip":
            check_ivf(folder, metric)
        if len(sys.argv) == 3:
            check_quantizer(folder, pathlib.Path(sys.argv[2]).resolve())
            check_index(folder, pathlib.Path(sys.argv[2]).resolve())
    print(f"faiss {faiss.__version__}: right")


if __name__ == "__main__":
    main()
