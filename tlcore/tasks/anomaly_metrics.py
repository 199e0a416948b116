"""How well scores tell anomalies from what is normal, over a whole split.

Owns the gathering and both figures. Called by `anomaly_detection.py`. Not torchmetrics, as in `classification_metrics.py`; the unit
tests hold them against scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tlcore.errors import DataError
from tlcore.tasks.base import Batch, SumOverRanks
from tlcore.tasks.gathered import SLOT, GatheredSamples


class RankedScores:
    """A MetricAccumulator over the scores of a split, gathered from all ranks.

    Args:
        scores: gives [B] for a batch, higher for anomalies; the mean over normal samples is the loss.
    """

    def __init__(self, scores: Callable[[nn.Module, Batch], Tensor]) -> None:
        self._scores = scores
        self._samples = GatheredSamples(2)
        self._whole = torch.empty(0, 2, dtype=torch.float64)

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Keep a batch's scores."""
        with torch.no_grad():
            scores = self._scores(model, batch).double().cpu()
        self._samples.add(batch[SLOT], torch.stack([scores, batch["labels"].cpu().double()], dim=1))

    def merge(self, sum_over_ranks: SumOverRanks) -> None:
        """Every rank gets all of them."""
        self._whole = self._samples.merge(sum_over_ranks)

    def compute(self) -> dict[str, float]:
        """auroc (the chance that an anomaly scores above a normal sample, half for equal ones), average_precision, loss (mean
        score of normal samples). Raises DataError where there is only one kind."""
        scores, labels = self._whole[:, 0].numpy(), self._whole[:, 1].numpy() == 1
        if not labels.any() or labels.all():
            only = "anomalies" if labels.any() else "normal samples"
            raise DataError(f"only {only} were evaluated", hint="telling them apart can only be judged on both kinds")
        return {
            "auroc": area_under_roc(scores, labels),
            "average_precision": average_precision(scores, labels),
            "loss": float(scores[~labels].mean()),
        }


def area_under_roc(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.bool_]) -> float:
    """From the ranks of the positive ones (Mann and Whitney 1947)."""
    from scipy.stats import rankdata

    positives = int(labels.sum())
    negatives = len(labels) - positives
    above = rankdata(scores)[labels].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def average_precision(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.bool_]) -> float:
    """Mean of the precisions at each score, weighed by the recall that it adds; equal scores count at once."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order])
    last = np.r_[np.diff(scores[order]) != 0, True]
    hits, counts = hits[last], np.flatnonzero(last) + 1
    added = np.diff(np.r_[0, hits]) / labels.sum()
    return float((hits / counts * added).sum())
