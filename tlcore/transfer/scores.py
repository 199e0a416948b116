"""How well features of a pre-trained model fit a labelled target set, without fine-tuning: four published scores.

Owns the formulas, over numpy arrays. Called by `select.py`.

Shapes: N samples, D features, C classes.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.float64]
Classes = npt.NDArray[np.int64]

_ROUNDS: Final = 11
"""Fixed-point rounds of LogME; its authors stop at 11."""
_TINY: Final = 1e-10
"""In place of nothing left over: features that tell the classes exactly."""
_RIDGES: Final = (1e-2, 1e-1, 1.0, 1e1, 1e2)
_FOLDS: Final = 5


def logme(features: Features, classes: Classes) -> float:
    """Log of the maximum evidence of a linear model on the features, per sample, the mean over classes (You et al., "LogME:
    Practical Assessment of Pre-trained Models for Transfer Learning", ICML 2021; the fixed point of You et al. 2022). More is
    better.

    The authors' model has no intercept, so that the mean of the features, which tells nothing of the classes, counts for or
    against a source. Here there is one, under a flat prior: features and targets are centred, which leaves N - 1 free values
    of the N (Harville, "Bayesian Inference for Variance Components Using Only Error Contrasts", Biometrika 1974).
    """
    f = _centred(features)
    free, width = len(f) - 1, f.shape[1]
    u, s, _ = np.linalg.svd(f, full_matrices=False)
    sigma = s**2
    found = []
    for y in _centred(np.eye(int(classes.max()) + 1)[classes]).T:
        x2 = (u.T @ y) ** 2
        rest = max(float(y @ y - x2.sum()), 0.0)
        alpha = beta = 1.0
        for _ in range(_ROUNDS):
            t = alpha / beta
            gamma = float((sigma / (sigma + t)).sum())
            m2 = float((sigma * x2 / (sigma + t) ** 2).sum())
            residual = float((x2 / (1 + sigma / t) ** 2).sum()) + rest
            alpha, beta = gamma / (m2 + _TINY), max(free - gamma, _TINY) / (residual + _TINY)
            if abs(alpha / beta - t) / t <= 1e-3:
                break
        evidence = width / 2 * np.log(alpha) + free / 2 * np.log(beta) - 0.5 * np.log(alpha + beta * sigma).sum()
        evidence -= 0.5 * (width - len(sigma)) * np.log(alpha)
        evidence -= beta / 2 * residual + alpha / 2 * m2 + free / 2 * np.log(2 * np.pi)
        found.append(evidence / len(f))
    return float(np.mean(found))


def h_score(features: Features, classes: Classes) -> float:
    """Trace of (covariance of features)^-1 (covariance of their class means) (Bao et al., "An Information-Theoretic Approach to
    Transferability", ICIP 2019), with the covariance shrunk towards its mean variance as Ibrahim et al. 2022 advise, since D is
    often near N. Between 0 and C - 1, more is better."""
    f = _centred(features)
    count, width = f.shape
    means = np.stack([f[classes == c].mean(axis=0) for c in classes])
    covariance = f.T @ f / count
    shrink = _shrinkage(f, covariance)
    shrunk = (1 - shrink) * covariance + shrink * np.trace(covariance) / width * np.eye(width)
    return float((1 - shrink) * np.trace(np.linalg.solve(shrunk, means.T @ means / count)))


def linear_probe(features: Features, classes: Classes) -> float:
    """Accuracy of ridge regression onto the classes on samples left out, in five folds, at the best of five penalties (Alain and
    Bengio, "Understanding intermediate layers using linear classifier probes", 2016). 0 to 1."""
    order = np.random.default_rng(0).permutation(len(classes))
    folds = np.array_split(order, min(_FOLDS, len(classes)))
    right = np.zeros(len(_RIDGES))
    for fold in folds:
        kept = np.setdiff1d(order, fold)
        mean, spread = features[kept].mean(axis=0), features[kept].std(axis=0) + 1e-8
        train, held = (features[kept] - mean) / spread, (features[fold] - mean) / spread
        targets = np.eye(int(classes.max()) + 1)[classes[kept]]
        offset = targets.mean(axis=0)
        u, s, vt = np.linalg.svd(train, full_matrices=False)
        for at, ridge in enumerate(_RIDGES):
            weights = vt.T @ ((s / (s**2 + ridge * len(kept)))[:, None] * (u.T @ (targets - offset)))
            right[at] += (np.argmax(held @ weights + offset, axis=1) == classes[fold]).sum()
    return float(right.max() / len(classes))


def similarity(features: Features, classes: Classes) -> float:
    """How alike the source sees samples of one class: the centred kernel alignment of its features with the classes (Kornblith et
    al. 2019, linear), 0 where the source's task tells nothing of the target's, 1 where it is the target's."""
    f, y = _centred(features), _centred(np.eye(int(classes.max()) + 1)[classes])
    shared = np.linalg.norm(f.T @ y) ** 2
    return float(shared / (np.linalg.norm(f.T @ f) * np.linalg.norm(y.T @ y) + 1e-12))


def _centred(values: npt.NDArray[Any]) -> Features:
    values = values.astype(np.float64)
    centred: Features = values - values.mean(axis=0)
    return centred


def _shrinkage(f: Features, covariance: Features) -> float:
    """Ledoit and Wolf 2004: the share of the mean variance that makes the covariance best in expectation."""
    count, width = f.shape
    target = np.trace(covariance) / width * np.eye(width)
    distance = np.linalg.norm(covariance - target) ** 2
    squared = (f**2).sum(axis=1)
    noise = float((squared**2).sum() / count - np.linalg.norm(covariance) ** 2) / count
    return float(np.clip(noise / max(distance, 1e-300), 0.0, 1.0))
