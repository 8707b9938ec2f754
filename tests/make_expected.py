#!/usr/bin/env python3
"""Makes tests/expected/: Gaussian mixtures by scikit-learn from a fixed start, for test_sklearn.c.

    python3 tests/make_expected.py         (needs numpy and scikit-learn; the output is committed)

For each data set and covariance type, with GaussianMixture run for 30 iterations, tol 0, reg_covar 1e-6, in double:

    NAME-TYPE-start.npz   the start, a model file as flashgmm reads it
    NAME-TYPE-end.npz     the end, likewise; of full covariances only the diagonals, as a model of type diag
    NAME-TYPE-score.npy   the lower bound of each iteration, then AIC and BIC of the end
    NAME-TYPE-proba.npy   predict_proba of the end, of at most 300 rows: every STEP-th, STEP = ceil(N / 300)

The rows are the committed ones, widened to double. Each start (rows of the data as means) is the first of seeds
0, 1, ... from which the iteration is well conditioned: a start moved by 1e-6 of a deviation ends within 1e-5 of one. From
others the outcome is decided by rounding, and no two programs agree. The end must also be one that a model moved by 1e-9 of a
deviation sees alike: responsibilities within 1e-6.
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
    "old-faithful": (HERE / "data/old-faithful.npy", 2),
}
TYPES = ("spherical", "diag", "tied", "full")
ITERATIONS = 30
REG_COVAR = 1e-6
PROBA_ROWS = 300


def start(x, k, covariance_type, seed):
    """K distinct rows as means, equal weights, the variances of the data."""
    means = x[np.random.default_rng(seed).choice(len(x), k, replace=False)]
    variance = x.var(axis=0) + 1e-3 * x.var(axis=0).mean()
    covariances = {
        "spherical": lambda: np.full(k, variance.mean()),
        "diag": lambda: np.tile(variance, (k, 1)),
        "tied": lambda: np.diag(variance),
        "full": lambda: np.tile(np.diag(variance), (k, 1, 1)),
    }[covariance_type]()
    return means, covariances


def fit(x, means, covariances, covariance_type):
    k = len(means)
    precisions = 1 / covariances if covariance_type in ("spherical", "diag") else np.linalg.inv(covariances)
    mixture = GaussianMixture(
        k, covariance_type=covariance_type, tol=0, reg_covar=REG_COVAR, max_iter=ITERATIONS, init_params="random",
        random_state=0, weights_init=np.full(k, 1 / k), means_init=means, precisions_init=precisions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged is the point
        return mixture.fit(x)


def moved(one, other, deviation):
    return np.abs((one.means_ - other.means_) / deviation).max()


def sees_alike(x, mixture, deviation):
    proba = mixture.predict_proba(x)
    means = mixture.means_
    mixture.means_ = means + np.random.default_rng(2).standard_normal(means.shape) * 1e-9 * deviation
    change = np.abs(mixture.predict_proba(x) - proba).max()
    mixture.means_ = means
    return change < 1e-6


def well_conditioned(x, k, covariance_type):
    deviation = np.where(x.std(axis=0) > 0, x.std(axis=0), 1)
    for seed in range(100):
        means, covariances = start(x, k, covariance_type, seed)
        try:
            result = fit(x, means, covariances, covariance_type)
            nudges = np.random.default_rng(1).standard_normal((3,) + means.shape) * 1e-6 * deviation
            others = [fit(x, means + nudge, covariances, covariance_type) for nudge in nudges]
        except ValueError:  # scikit-learn gives up on a covariance that is not positive definite
            continue
        if max(moved(result, other, deviation) for other in others) < 1e-5 and sees_alike(x, result, deviation):
            return seed, means, covariances, result
    raise SystemExit(f"no well conditioned start for K = {k}, {covariance_type}")


def save(path, weights, means, covariances, covariance_type, lower_bound, n_iter):
    np.savez_compressed(path, weights=weights, means=means, covariances=covariances,
                        covariance_type=np.array(covariance_type), lower_bound=np.float64(lower_bound),
                        n_iter=np.int64(n_iter), converged=np.bool_(False))


def main():
    out = HERE / "expected"
    out.mkdir(exist_ok=True)
    record = {"made_by": "tests/make_expected.py", "scikit-learn": sklearn.__version__, "numpy": np.__version__,
              "iterations": ITERATIONS, "tol": 0, "reg_covar": REG_COVAR, "fits": {}}
    for name, (path, k) in SETS.items():
        x = np.load(path).astype(np.float64)
        for covariance_type in TYPES:
            seed, means, covariances, result = well_conditioned(x, k, covariance_type)
            assert result.n_iter_ == ITERATIONS and len(result.lower_bounds_) == ITERATIONS
            stem = f"{name}-{covariance_type}"
            save(out / f"{stem}-start.npz", np.full(k, 1 / k), means, covariances, covariance_type, np.nan, 0)
            end, end_type = result.covariances_, covariance_type
            if covariance_type == "full":
                end, end_type = np.diagonal(end, axis1=1, axis2=2), "diag"
            save(out / f"{stem}-end.npz", result.weights_, result.means_, end, end_type, result.lower_bound_,
                 result.n_iter_)
            np.save(out / f"{stem}-score.npy", np.array(result.lower_bounds_ + [result.aic(x), result.bic(x)]))
            step = -(-len(x) // PROBA_ROWS)
            np.save(out / f"{stem}-proba.npy", result.predict_proba(x[::step]).astype(np.float32))
            record["fits"][stem] = {"n": x.shape[0], "d": x.shape[1], "k": k, "seed": seed,
                                    "lower_bound": result.lower_bound_}
            print(stem, "seed", seed, "lower bound", result.lower_bound_)
    (out / "made_by.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
