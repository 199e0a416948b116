"""What single samples gave on different ranks, brought together.

Owns the gathering for metrics that need every sample of a split beside every other (ranked scores, nearest neighbours, boxes
matched over a whole data set). Called by such metrics' accumulators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import torch

from tlcore.errors import DataError
from tlcore.tasks.base import SumOverRanks

if TYPE_CHECKING:
    from torch import Tensor

SLOT: Final = "slot"
"""In a batch: where each sample stands in its split [B], -1 for a filler. For the gathering, not for the model."""


class GatheredSamples:
    """A row of `width` numbers per sample of a split, in the split's order once merged; a sample twice is an error.

    Rows are summed into slots of one tensor that every rank has whole, [samples, width] in float64: what is told of a sample must
    be small.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._slots: list[Tensor] = []
        self._rows: list[Tensor] = []

    def add(self, slots: Tensor, rows: Tensor) -> None:
        """Of some samples.

        Args:
            slots: [B]; those of fillers are negative, and their rows do not count.
            rows: [B, width].
        """
        counted = slots.cpu() >= 0
        self._slots.append(slots.cpu()[counted])
        self._rows.append(rows.detach().double().cpu()[counted])

    def merge(self, sum_over_ranks: SumOverRanks) -> Tensor:
        """[samples, width], the same on every rank. Raises DataError: no sample, or not each of a split once."""
        slots = torch.cat([torch.empty(0, dtype=torch.int64), *self._slots])
        rows = torch.cat([torch.empty(0, self._width, dtype=torch.float64), *self._rows])
        samples = int(sum_over_ranks(torch.tensor([float(len(slots))], dtype=torch.float64)).item())
        if samples == 0:
            raise DataError("no sample was evaluated", hint="the split is empty")
        whole = torch.zeros(samples, self._width + 1, dtype=torch.float64)
        inside = slots < samples
        whole[:, 0].index_add_(0, slots[inside], torch.ones(int(inside.sum()), dtype=torch.float64))
        whole[slots[inside], 1:] = rows[inside]
        whole = sum_over_ranks(whole)
        if not bool((whole[:, 0] == 1).all()):
            missing = int((whole[:, 0] != 1).nonzero()[0])
            raise DataError(
                f"sample {missing} of {samples} was evaluated {int(whole[missing, 0])} times",
                hint="a ranking needs every sample of a split once",
            )
        return whole[:, 1:]


def slots_of(indices: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """What a batch of these samples of a split tells of where they stand in it [B]; -1 for a filler."""
    return np.array(indices if len(indices) else [-1], dtype=np.int64)
