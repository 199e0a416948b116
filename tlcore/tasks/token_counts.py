"""Loss, perplexity and accuracy over tokens, as sums.

Owns the counting for tasks that predict tokens. Called by `text_generation.py` and `masked_language_modeling.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tlcore.errors import DataError
from tlcore.tasks.base import IGNORED, Batch, SumOverRanks

_MOST_EXPONENT = 80.0
"""exp of more than this is no perplexity that anybody reads, and would end as infinity."""


class TokenCounts:
    """Summed cross entropy, right predictions, tokens told; a MetricAccumulator.

    Args:
        predict: gives logits [..., V] in fp32 and labels [...] of the same leading shape for a batch.
    """

    def __init__(self, predict: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]) -> None:
        self._predict = predict
        self._sums = torch.zeros(3, dtype=torch.float64)

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Count one batch; ignored tokens count nowhere."""
        with torch.no_grad():
            logits, labels = self._predict(model, batch)
            logits, labels = logits.flatten(0, -2), labels.flatten()
            loss = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
            right = (logits.argmax(dim=-1) == labels).sum()
            told = (labels != IGNORED).sum()
            self._sums += torch.stack([loss.double(), right.double(), told.double()]).cpu()

    def merge(self, sum_over_ranks: SumOverRanks) -> None:
        """One sum for all counts."""
        self._sums = sum_over_ranks(self._sums)

    def compute(self) -> dict[str, float]:
        """loss (mean over tokens), perplexity (its exponential), accuracy. Raises DataError when no token was told."""
        loss, right, told = self._sums.tolist()
        if told == 0:
            raise DataError("no token was evaluated", hint="the split is empty, or nothing in it is to be learned")
        mean = loss / told
        return {"loss": mean, "perplexity": math.exp(min(mean, _MOST_EXPONENT)), "accuracy": right / told}
