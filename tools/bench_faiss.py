#!/usr/bin/env python3
"""faiss's k-means by its Python package as a peer; prints one JSON object as bench_peer.h says.

    bench_faiss.py ROWS.npy MEANS.npy ITERATIONS
"""
import json
import sys

import faiss
import numpy


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    x, means = numpy.load(sys.argv[1]), numpy.load(sys.argv[2])
    (n, d), k = x.shape, len(means)
    kmeans = faiss.Kmeans(d, k, niter=int(sys.argv[3]), min_points_per_centroid=1, max_points_per_centroid=n)
    kmeans.train(x, init_centroids=means)
    ends = [stats["time"] for stats in kmeans.iteration_stats]
    print(json.dumps({"peer": f"faiss {faiss.__version__}", "ms_each": [1e3 * (b - a) for a, b in zip(ends, ends[1:])],
                      "values": [stats["obj"] / n for stats in kmeans.iteration_stats]}))


if __name__ == "__main__":
    main()
