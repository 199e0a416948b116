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
    """The largest log density of y under N(0, F F' / alpha + I / beta + wide 1 1'), by search, per sample: an intercept that may
    be anything, whose own density is taken out."""
    gram, wide = features @ features.T, 1e4

    def negative(logs):
        alpha, beta = np.exp(logs)
        covariance = gram / alpha + np.eye(len(y)) / beta + wide
        _, logdet = np.linalg.slogdet(covariance)
        density = logdet + y @ np.linalg.solve(covariance, y) + len(y) * np.log(2 * np.pi)
        return 0.5 * (density - np.log(2 * np.pi * wide * len(y)))

    return -min(minimize(negative, start, method="Nelder-Mead").fun for start in ([0, 0], [3, 1], [5, 2])) / len(y)


@pytest.mark.parametrize("features", [WEAK, STRONG, WEAK + 3.0], ids=["weak", "strong", "far from the origin"])
def test_logme_is_the_largest_evidence(features):
    found = np.mean([evidence(features, (c == CLASSES).astype(float)) for c in range(3)])
    assert logme(features, CLASSES) == pytest.approx(found, abs=2e-3)


def source(width: int, distance: float):
    """Features in which the classes stand so far apart, in deviations of the noise."""
    rng, classes = np.random.default_rng(100), np.arange(300) % 3
    centres = rng.normal(size=(3, width))
    centres *= distance / np.linalg.norm(centres, axis=1, keepdims=True)
    return rng.normal(size=(300, width)) + centres[classes], classes


def test_the_order_is_by_signal_and_not_by_width():
    found = [logme(*source(width, distance)) for width, distance in ((16, 3.0), (96, 5.0), (384, 8.0))]
    assert found == sorted(found)
    assert logme(*source(384, 3.0)) < found[0]


def test_where_the_features_lie_as_a_whole_is_no_signal():
    assert logme(WEAK + 7.0, CLASSES) == pytest.approx(logme(WEAK, CLASSES))


def test_features_that_tell_the_classes_exactly_have_a_finite_score():
    wide = np.random.default_rng(1).normal(size=(30, 200)) * 1e-9 + np.eye(3, 200)[CLASSES[:30]]
    assert np.isfinite(logme(wide, CLASSES[:30]))


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
