"""Telling one number per sample, with `data.regression`.

Owns what that decides for a task, method by method as `Choice` does for classes: targets, loss, counts, the model's `problem_type`
and the answer; and which labels are numbers. Called by `choice.py` for the tasks that classify, and by `classes.py` before workers
start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sized
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from tlcore.errors import DataError
from tlcore.tasks.base import Batch, MetricAccumulator

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.recipe.data_schema import DataSection
    from tlcore.tasks.sample_labels import SampleLabels
    from tlcore.tasks.splits import Splits

_FILLER: Final = (math.nan, -1.0)
"""Target of a sample without weight: every number may be somebody's label, so this is none."""

Read = TypeVar("Read", bound=Sized)


class Numbers(Generic[Read]):
    """The numbers in a recipe's label column, over its splits. The arguments are `Choice`'s."""

    def __init__(self, data: DataSection, splits: Splits[Read], labels: Callable[[Read], SampleLabels]) -> None:
        self._data, self._splits, self._labels = data, splits, labels
        self._of_split: dict[str, npt.NDArray[np.float64]] = {}

    def check(self, split: str) -> None:
        """Raises DataError: a label of the split's place that is no number."""
        self._at(split)

    def targets(self, split: str, rows: npt.NDArray[np.int64], *, filler: bool) -> Tensor:
        """Of each of these rows of the split's place, its number and where it stands in the split, for the gathering, float64
        [B, 2]; (NaN, -1) for a filler."""
        import torch

        slots = np.searchsorted(self._splits[split].rows, rows)
        found = np.stack([self._at(split)[rows], slots.astype(np.float64)], axis=1)
        return torch.from_numpy(np.full_like(found, _FILLER) if filler else found)

    def largest(self, samples: int) -> Tensor:
        """Targets of that many samples, of the same shape."""
        import torch

        return torch.zeros(samples, 2, dtype=torch.float64)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error over the samples that count: an fp32 scalar with gradient."""
        wanted = labels[:, 0].to(logits.device, logits.dtype)
        counted = ~wanted.isnan()
        told = logits[:, 0]
        # A filler is off by nothing from itself, so that it gives a zero with a gradient; NaN times 0 would be NaN.
        errors = told - wanted.where(counted, told.detach())
        return errors.square().sum() / counted.sum().clamp(min=1)

    def counts(self, logits: Callable[[nn.Module, Batch], Tensor]) -> MetricAccumulator:
        """An evaluation's counts.

        Args:
            logits: gives [B, 1] in fp32 for a batch.
        """
        from tlcore.tasks.regression_metrics import NumberErrors

        return NumberErrors(logits)

    def probabilities(self, logits: Tensor) -> Tensor:
        """What the answers are made of [B, 1]: the numbers themselves."""
        return logits

    def answers(self, numbers: Tensor) -> list[dict[str, Any]]:
        """A `prediction` for each row of [B, 1]."""
        return [{"prediction": number} for number in numbers[:, 0].tolist()]

    def as_config(self) -> dict[str, Any]:
        """What a transformers configuration says of one output that is a number."""
        return {"num_labels": 1, "problem_type": "regression"}

    def facts(self) -> dict[str, Any]:
        """Nothing that the recipe does not say."""
        return {}

    def _at(self, split: str) -> npt.NDArray[np.float64]:
        """The number of each row of the split's place."""
        if split not in self._of_split:
            chosen = self._splits[split]
            labels = self._labels(chosen.read)
            self._of_split[split] = numbers_of(labels, chosen.place, self._data.label)[labels.index]
        return self._of_split[split]


def numbers_of(labels: SampleLabels, place: str, column: str) -> npt.NDArray[np.float64]:
    """The number that each distinct label is, also one written as text. Raises DataError: a label that is none, with its row."""
    found = [_number(value) for value in labels.values]
    for at, number in enumerate(found):
        if number is None:
            raise DataError(
                f"{place}, row {labels.first_row(at)}: {column!r} is {str(labels.values[at])[:80]!r}, no number",
                hint="with data.regression each label is a finite number; correct the row, or name another data.label",
                column=column,
            )
    return np.array(found, dtype=np.float64)


def _number(value: Any) -> float | None:
    """Yes and no are classes, and what is not finite is no target."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
