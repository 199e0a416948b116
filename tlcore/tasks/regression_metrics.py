"""How far told numbers are from the right ones, and how well they go with them.

Owns the gathering and the figures. Called by `regression.py`. Ranks need every sample of a split beside every other, so all are
brought together. Not torchmetrics, as in `classification_metrics.py`, whose rank correlation takes a pass over the split for every
number that occurs twice; the unit tests hold the results against it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tlcore.errors import DataError
from tlcore.tasks.base import Batch, SumOverRanks
from tlcore.tasks.gathered import GatheredSamples

Values = npt.NDArray[np.float64]


class NumberErrors:
    """A MetricAccumulator over the numbers of a whole split, gathered from all ranks.

    Args:
        logits: gives [B, 1] in fp32 for a batch.
    """

    def __init__(self, logits: Callable[[nn.Module, Batch], Tensor]) -> None:
        self._logits = logits
        self._samples = GatheredSamples(2)
        self._whole = torch.empty(0, 2, dtype=torch.float64)

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Keep a batch's numbers; a filler counts nowhere."""
        with torch.no_grad():
            told = self._logits(model, batch)[:, 0].double().cpu()
        labels = batch["labels"].cpu()
        self._samples.add(labels[:, 1].long(), torch.stack([told, labels[:, 0]], dim=1))

    def merge(self, sum_over_ranks: SumOverRanks) -> None:
        """Every rank gets all of them."""
        self._whole = self._samples.merge(sum_over_ranks)

    def compute(self) -> dict[str, float]:
        """mse and mae (mean squared and absolute error), pearson and spearman (correlation of the numbers, and of their ranks; 0
        where either side is one number throughout), loss (the mse). Raises DataError when no sample was counted."""
        if not len(self._whole):
            raise DataError("no sample was evaluated", hint="the split is empty")
        told, right = self._whole.numpy().T
        mse = float(np.square(told - right).mean())
        return {
            "mse": mse,
            "mae": float(np.abs(told - right).mean()),
            "pearson": _correlation(told, right),
            "spearman": _correlation(_ranks(told), _ranks(right)),
            "loss": mse,
        }


def _correlation(one: Values, other: Values) -> float:
    if (one == one[0]).all() or (other == other[0]).all():  # a mean of equal numbers may be off from them by a rounding
        return 0.0
    one, other = one - one.mean(), other - other.mean()
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def _ranks(values: Values) -> Values:
    """From 1; equal numbers share the mean of their ranks."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Values = (np.cumsum(counts) - (counts - 1) / 2)[which]
    return ranks
