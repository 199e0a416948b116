"""Scores of features for a target set: against brute force, and at their ends."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from tlcore.transfer.scores import h_score, linear_probe, logme, similarity

pytestmark = pytest.mark.unit

RNG = np.random.default_rng(4)
CLASSES = np.arange(120) % 3
NOISE = RNG.normal(size=(120, 10))
WEAK = NOISE + 0.7 * np.eye(3)[CLASSES] @ RNG.normal(size=(3, 10))
STRONG = NOISE + 5.0 * np.eye(3)[CLASSES] @ RNG.normal(size=(3, 10))


def evidence(features, y):
    """The largest log density of y under N(0, F F' / alpha + I / beta), by search, per sample."""
    f = features - features.mean(axis=0)
    gram = f @ f.T

    def negative(logs):
        alpha, beta = np.exp(logs)
        covariance = gram / alpha + np.eye(len(y)) / beta
        _, logdet = np.linalg.slogdet(covariance)
        return 0.5 * (logdet + y @ np.linalg.solve(covariance, y) + len(y) * np.log(2 * np.pi))

    return -min(minimize(negative, start, method="Nelder-Mead").fun for start in ([0, 0], [3, 1], [5, 2])) / len(y)


@pytest.mark.parametrize("features", [WEAK, STRONG])
def test_logme_is_the_largest_evidence(features):
    found = np.mean([evidence(features, (c == CLASSES).astype(float)) for c in range(3)])
    assert logme(features, CLASSES) == pytest.approx(found, abs=2e-3)


@pytest.mark.parametrize("score", [logme, h_score, linear_probe, similarity])
def test_better_features_score_higher(score):
    assert score(NOISE, CLASSES) < score(WEAK, CLASSES) < score(STRONG, CLASSES)


def test_the_ends_of_each_scale():
    perfect = np.eye(3)[CLASSES]
    assert similarity(perfect, CLASSES) == pytest.approx(1.0)
    assert h_score(STRONG + 20 * perfect @ RNG.normal(size=(3, 10)), CLASSES) == pytest.approx(2.0, abs=0.05)
    assert linear_probe(perfect + 1e-3 * NOISE[:, :3], CLASSES) == 1.0
    assert linear_probe(NOISE, CLASSES) == pytest.approx(1 / 3, abs=0.17)


@pytest.mark.parametrize("score", [logme, h_score, linear_probe, similarity])
def test_more_features_than_samples(score):
    wide = RNG.normal(size=(30, 200)) + 0.5 * np.eye(3)[CLASSES[:30]] @ RNG.normal(size=(3, 200))
    assert np.isfinite(score(wide, CLASSES[:30]))
