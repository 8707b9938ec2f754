#!/usr/bin/env python3
"""Makes tests/expected/: Gaussian mixtures by scikit-learn from a fixed start, for test_sklearn.c.

    python3 tests/make_expected.py         (needs numpy and scikit-learn; the output is committed)

For each data set and covariance type, NAME-TYPE-start.npz is the start and NAME-TYPE-end.npz what GaussianMixture made of
it in 20 iterations, tol 0, reg_covar 1e-6; both are model files as flashgmm reads them. The rows are the committed
ones, widened to double. Each start (rows of the data as means) is the first of seeds 0, 1, ... from which the iteration is well
conditioned: a start moved by 1e-6 of a deviation ends within 1e-5 of one. From others the outcome is decided by
rounding, and no two programs agree.
"""
import json
import pathlib
import warnings

import numpy as np
import sklearn
from sklearn.mixture import GaussianMixture

HERE = pathlib.Path(__file__).resolve().parent
SETS = {
    "iris": (HERE / "data/iris.npy", 3),
    "wine": (HERE / "data/wine.npy", 3),
    "digits": (HERE.parent / "data/digits/X.npy", 10),
    "breast-cancer": (HERE / "data/breast-cancer.npy", 4),
}
ITERATIONS = 20
REG_COVAR = 1e-6


def start(x, k, covariance_type, seed):
    """K distinct rows as means, equal weights, the variances of the data."""
    means = x[np.random.default_rng(seed).choice(len(x), k, replace=False)]
    variance = x.var(axis=0) + 1e-3 * x.var(axis=0).mean()
    if covariance_type == "spherical":
        return means, np.full(k, variance.mean())
    return means, np.tile(variance, (k, 1))


def fit(x, means, covariances, covariance_type):
    k = len(means)
    mixture = GaussianMixture(
        k, covariance_type=covariance_type, tol=0, reg_covar=REG_COVAR, max_iter=ITERATIONS, init_params="random",
        random_state=0, weights_init=np.full(k, 1 / k), means_init=means, precisions_init=1 / covariances)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged is the point
        return mixture.fit(x)


def moved(one, other, deviation):
    return np.abs((one.means_ - other.means_) / deviation).max()


def well_conditioned(x, k, covariance_type):
    deviation = np.where(x.std(axis=0) > 0, x.std(axis=0), 1)
    for seed in range(100):
        means, covariances = start(x, k, covariance_type, seed)
        result = fit(x, means, covariances, covariance_type)
        nudges = np.random.default_rng(1).standard_normal((3,) + means.shape) * 1e-6 * deviation
        others = [fit(x, means + nudge, covariances, covariance_type) for nudge in nudges]
        if max(moved(result, other, deviation) for other in others) < 1e-5:
            return seed, means, covariances, result
    raise SystemExit(f"no well conditioned start for K = {k}, {covariance_type}")


def save(path, weights, means, covariances, covariance_type, lower_bound, n_iter):
    np.savez(path, weights=weights, means=means, covariances=covariances, covariance_type=np.array(covariance_type),
             lower_bound=np.float64(lower_bound), n_iter=np.int64(n_iter), converged=np.bool_(False))


def main():
    out = HERE / "expected"
    out.mkdir(exist_ok=True)
    record = {"made_by": "tests/make_expected.py", "scikit-learn": sklearn.__version__, "numpy": np.__version__,
              "iterations": ITERATIONS, "tol": 0, "reg_covar": REG_COVAR, "fits": {}}
    for name, (path, k) in SETS.items():
        x = np.load(path).astype(np.float64)
        for covariance_type in ("spherical", "diag"):
            seed, means, covariances, result = well_conditioned(x, k, covariance_type)
            assert result.n_iter_ == ITERATIONS
            stem = f"{name}-{covariance_type}"
            save(out / f"{stem}-start.npz", np.full(k, 1 / k), means, covariances, covariance_type, np.nan, 0)
            save(out / f"{stem}-end.npz", result.weights_, result.means_, result.covariances_, covariance_type,
                 result.lower_bound_, result.n_iter_)
            record["fits"][stem] = {"n": x.shape[0], "d": x.shape[1], "k": k, "seed": seed,
                                    "lower_bound": result.lower_bound_}
    (out / "made_by.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
