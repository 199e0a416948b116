"""CTC forced alignment against every path there is, and the loss of torch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tlcore.errors import DataError
from tlcore.tasks.ctc_alignment import align, steps_needed

pytestmark = pytest.mark.unit

BLANK = 0


def log_probabilities(steps: int, signs: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(steps, signs)) * 2
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))


def collapsed(path: tuple[int, ...]) -> list[int]:
    return [sign for sign, _ in itertools.groupby(path) if sign != BLANK]


def best_of_all(told: np.ndarray, text: list[int]) -> tuple[tuple[int, ...], float]:
    paths = [path for path in itertools.product(range(told.shape[1]), repeat=len(told)) if collapsed(path) == text]
    scored = {path: float(sum(told[step, sign] for step, sign in enumerate(path))) for path in paths}
    best = max(scored, key=scored.__getitem__)
    return best, scored[best]


@pytest.mark.parametrize("text", [[1], [1, 2], [2, 2], [1, 1, 2], [3, 1, 3], [1, 2, 3]])
@pytest.mark.parametrize("seed", range(4))
def test_the_path_is_the_best_of_all(text: list[int], seed: int) -> None:
    told = log_probabilities(6, 4, seed)
    path, log_probability = best_of_all(told, text)
    found = align(told, np.array(text), BLANK)
    assert found.log_probability == pytest.approx(log_probability)
    said = [
        (sign, [step for step, _ in run])
        for sign, run in itertools.groupby(enumerate(path), key=lambda pair: pair[1])
        if sign != BLANK
    ]
    assert found.starts.tolist() == [steps[0] for _, steps in said]
    assert found.ends.tolist() == [steps[-1] + 1 for _, steps in said]
    scores = [np.exp(np.mean([told[step, sign] - told[step].max() for step in steps])) for sign, steps in said]
    np.testing.assert_allclose(found.scores, scores)


def test_all_paths_together_are_what_the_loss_sums() -> None:
    import torch

    told, text = log_probabilities(5, 3, 9), [1, 2]
    paths = [path for path in itertools.product(range(3), repeat=5) if collapsed(path) == text]
    total = np.log(sum(np.exp(sum(told[step, sign] for step, sign in enumerate(path))) for path in paths))
    loss = torch.nn.functional.ctc_loss(torch.from_numpy(told), torch.tensor(text), [5], [2], reduction="none")
    assert -loss.item() == pytest.approx(total)
    assert align(told, np.array(text), BLANK).log_probability < total


def test_a_sure_model_scores_one() -> None:
    told = np.log(np.full((6, 3), 1e-6))
    for step, sign in enumerate([0, 1, 1, 0, 2, 0]):
        told[step, sign] = 0.0
    found = align(told, np.array([1, 2]), BLANK)
    assert (found.starts.tolist(), found.ends.tolist()) == ([1, 4], [3, 5])
    np.testing.assert_allclose(found.scores, 1.0)


def test_as_many_steps_as_needed_do() -> None:
    assert [steps_needed(np.array(text)) for text in ([1], [1, 2], [1, 1], [1, 1, 1])] == [1, 2, 3, 5]
    found = align(log_probabilities(3, 3, 1), np.array([1, 1]), BLANK)
    assert (found.starts.tolist(), found.ends.tolist()) == ([0, 2], [1, 3])


def test_what_cannot_be_aligned_is_said() -> None:
    with pytest.raises(DataError, match="the text needs 5 steps of the model, and the sound has 4"):
        align(log_probabilities(4, 3, 1), np.array([1, 1, 1]), BLANK)
    with pytest.raises(DataError, match="has nothing in it that the model knows"):
        align(log_probabilities(4, 3, 1), np.array([], dtype=np.int64), BLANK)
