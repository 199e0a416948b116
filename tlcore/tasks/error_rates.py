"""Word and character error rates as sums of edits, beside the mean loss.

Owns the counting and its sum over ranks. Called by the transcribers. Edits are jiwer's: substitutions, deletions and insertions of
the shortest way from what was said to what was understood; the rate is over the words (characters) that were said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tlcore.errors import DataError
from tlcore.tasks.base import Batch, SumOverRanks


@dataclass(frozen=True)
class Heard:
    """What a model made of a batch. `loss_sum` is over `units` (tokens, signs); `said` and `understood` are of the samples that
    count."""

    loss_sum: Tensor
    units: Tensor
    said: Sequence[str]
    understood: Sequence[str]


class ErrorRates:
    """A MetricAccumulator.

    Args:
        hear: gives what the model makes of a batch, without gradients; every rank calls it equally often.
    """

    def __init__(self, hear: Callable[[nn.Module, Batch], Heard]) -> None:
        self._hear = hear
        self._sums = torch.zeros(6, dtype=torch.float64)

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Count one batch."""
        with torch.no_grad():
            heard = self._hear(model, batch)
        losses = [heard.loss_sum.double().item(), heard.units.double().item()]
        counts = edits(heard.said, heard.understood) if heard.said else [0] * 4
        self._sums += torch.tensor([*losses, *counts], dtype=torch.float64)

    def merge(self, sum_over_ranks: SumOverRanks) -> None:
        """One sum for all counts."""
        self._sums = sum_over_ranks(self._sums)

    def compute(self) -> dict[str, float]:
        """wer, cer, loss (mean over units). Raises DataError when no word was said."""
        loss, units, word_edits, words, character_edits, characters = self._sums.tolist()
        if words == 0 or units == 0:
            raise DataError("no word was evaluated", hint="the split is empty, or nothing is said in it")
        return {"wer": word_edits / words, "cer": character_edits / characters, "loss": loss / units}


def edits(said: Sequence[str], understood: Sequence[str]) -> list[int]:
    """[edits of words, words said, edits of characters, characters said] over these texts."""
    import jiwer

    counts = []
    for process in (jiwer.process_words, jiwer.process_characters):
        found = process(list(said), list(understood))
        wrong = found.substitutions + found.deletions
        counts += [wrong + found.insertions, wrong + found.hits]
    return counts
