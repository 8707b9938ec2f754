#!/usr/bin/env python3
"""scikit-learn's GaussianMixture as a peer, run as its users run it; prints one JSON object as bench_peer.h says.

    bench_sklearn.py em COVARIANCE ROWS.npy MEANS.npy ITERATIONS
        fit() with these means, precisions 1 and equal weights, tol 0, reg_covar 1e-6, float32 rows. The time is taken at the end of
        each E-step: from one to the next lies one M-step and one E-step.
    bench_sklearn.py fit COVARIANCE ROWS.npy K FITS
        whole fit() calls with its defaults, timed one by one; the import is not counted.
"""
import json
import sys
import time
import warnings

import numpy
import sklearn
import threadpoolctl
from sklearn.mixture import GaussianMixture


def one_precisions(covariance, k, d, dtype):
    eye = numpy.eye(d, dtype=dtype)
    return {"spherical": numpy.ones(k, dtype), "diag": numpy.ones((k, d), dtype), "tied": eye,
            "full": numpy.broadcast_to(eye, (k, d, d)).copy()}[covariance]


def em(covariance, rows, means, iterations):
    x, means = numpy.load(rows), numpy.load(means)
    k, d = means.shape
    gmm = GaussianMixture(k, covariance_type=covariance, means_init=means, weights_init=numpy.full(k, 1 / k, x.dtype),
                          precisions_init=one_precisions(covariance, k, d, x.dtype), max_iter=int(iterations), tol=0,
                          reg_covar=1e-6)
    ticks, values = [], []
    step = gmm._e_step

    def timed_step(*args, **kwargs):
        out = step(*args, **kwargs)
        ticks.append(time.perf_counter())
        values.append(float(out[0]))
        return out

    gmm._e_step = timed_step
    gmm.fit(x)
    # The last E-step only labels the rows; it has no M-step before it.
    ticks, values = ticks[:-1], values[:-1]
    return {"ms_each": [1e3 * (b - a) for a, b in zip(ticks, ticks[1:])], "values": values,
            "dtype": str(gmm.means_.dtype)}


def fit(covariance, rows, k, fits):
    x = numpy.load(rows)
    times, values = [], []
    for _ in range(int(fits)):
        start = time.perf_counter()
        gmm = GaussianMixture(int(k), covariance_type=covariance).fit(x)
        times.append(1e3 * (time.perf_counter() - start))
        values.append(float(gmm.score(x)))
    return {"ms_each": times, "values": values, "dtype": str(gmm.means_.dtype)}


def main():
    warnings.simplefilter("ignore")  # that it did not converge in so few iterations
    modes = {"em": em, "fit": fit}
    if len(sys.argv) != 6 or sys.argv[1] not in modes:
        sys.exit(__doc__)
    result = modes[sys.argv[1]](*sys.argv[2:])
    # Which processor NumPy's OpenBLAS has taken this one for; SciPy may bring another.
    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["internal_api"] == "openblas"]
    pools.sort(key=lambda pool: (pool["architecture"] != "Prescott", "numpy" not in pool["filepath"]))
    blas = {"blas": pools[0]["architecture"]} if pools else {}
    print(json.dumps({"peer": f"scikit-learn {sklearn.__version__}, {result.pop('dtype')}", **blas, **result}))


if __name__ == "__main__":
    main()
