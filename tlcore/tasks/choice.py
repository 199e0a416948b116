"""Choosing classes: one per sample or, with `data.multi_label`, any number; or, with `data.regression`, telling a number instead.

Owns what that decides for a task: the targets of a batch, their loss, the counts of an evaluation, the model's `problem_type`
and what is answered; for numbers `regression.py` does. The classes' names are `classes.py`'s, labels as they stand in the data
`sample_labels.py`'s. Called by the tasks that classify texts, pictures, videos and sounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from tlcore.tasks.base import IGNORED, Batch, MetricAccumulator
from tlcore.tasks.classes import Classes, tell_unseen
from tlcore.tasks.logits import mean_binary_cross_entropy, mean_cross_entropy
from tlcore.tasks.regression import Numbers

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.recipe import Recipe
    from tlcore.recipe.data_schema import DataSection
    from tlcore.tasks.sample_labels import SampleLabels
    from tlcore.tasks.splits import Splits

LIKELY: Final = 0.5
"""Probability from which a class counts as present, with `data.multi_label`."""

Read = TypeVar("Read", bound=Sized)


def choice_or_number(
    recipe: Recipe,
    facts: Mapping[str, Any] | None,
    splits: Splits[Read],
    labels: Callable[[Read], SampleLabels],
) -> Choice[Read] | Numbers[Read]:
    """What a recipe asks of each sample. The arguments are `Choice`'s."""
    if recipe.data.regression:
        return Numbers(recipe.data, splits, labels)
    return Choice(recipe.data, facts, splits, labels, recipe.train.label_smoothing)


class Choice(Generic[Read]):
    """The classes of a recipe's label column, over its splits.

    Args:
        facts: of an earlier `Task.facts()`, or None.
        labels: gives the labels of what was read at a place.
        smoothing: share of each target that all classes have alike (Szegedy et al. 2015), for one class per sample.
    """

    def __init__(
        self,
        data: DataSection,
        facts: Mapping[str, Any] | None,
        splits: Splits[Read],
        labels: Callable[[Read], SampleLabels],
        smoothing: float = 0.0,
    ) -> None:
        self._many, self._balanced, self._smoothing = data.multi_label, data.class_weights == "balanced", smoothing
        self._splits, self._labels = splits, labels
        self._classes = Classes(data, facts, lambda: labels(splits.read_training_place()))
        self._of_split: dict[str, tuple[SampleLabels, npt.NDArray[np.int64]]] = {}

    def check(self, split: str) -> None:
        """Rank 0 says which classes a split has that training, where it was read before, has not.

        Raises DataError: a label of the split's place that is no class.
        """
        self._at(split)
        if split != "train" and "train" in self._of_split and not self._many:
            counts, trained = self._counts(split), self._counts("train")
            tell_unseen(split, self._splits[split].place, self._classes.names, counts, trained)

    def targets(self, split: str, rows: npt.NDArray[np.int64], *, filler: bool) -> Tensor:
        """Class of each of these rows of the split's place, int64 [B], or 1 for each class of it, else 0 [B, C]; `IGNORED`
        throughout for a filler."""
        import torch

        labels, class_of = self._at(split)
        many, classes = self._many, len(self._classes.names)
        found = labels.any_of(rows, class_of, classes) if many else labels.one_of(rows, class_of)
        return torch.from_numpy(np.full_like(found, IGNORED) if filler else found)

    def largest(self, samples: int) -> Tensor:
        """Targets of that many samples, of the same shape."""
        import torch

        return torch.zeros((samples, len(self._classes.names)) if self._many else (samples,), dtype=torch.int64)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over the samples that count: an fp32 scalar with gradient."""
        if self._many:
            return mean_binary_cross_entropy(logits, labels)
        # An estimate of memory reads no data, and needs no weights.
        weights = self._class_weights if self._balanced and "train" in self._of_split else None
        return mean_cross_entropy(logits, labels, self._smoothing, weights)

    def counts(self, logits: Callable[[nn.Module, Batch], Tensor]) -> MetricAccumulator:
        """An evaluation's counts.

        Args:
            logits: gives [B, C] in fp32 for a batch.
        """
        from tlcore.tasks.classification_metrics import ClassificationCounts, MultiLabelCounts

        return (MultiLabelCounts if self._many else ClassificationCounts)(len(self._classes.names), logits)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of each class [B, C]: over all classes together, or each by itself."""
        return logits.sigmoid() if self._many else logits.softmax(dim=-1)

    def answers(self, probabilities: Tensor) -> list[dict[str, Any]]:
        """A prediction for each row of [B, C]: `label` and `score` of the likeliest class, or `labels`, those that are likely; and
        every class's `scores`."""
        if not self._many:
            return [self._classes.answer(scores) for scores in probabilities.tolist()]
        named = [dict(zip(self._classes.names, scores, strict=True)) for scores in probabilities.tolist()]
        return [
            {"labels": [name for name, score in scores.items() if score >= LIKELY], "scores": scores}
            for scores in named
        ]

    def as_config(self) -> dict[str, Any]:
        """What a transformers configuration says of the classes."""
        kind = "multi_label_classification" if self._many else "single_label_classification"
        return {**self._classes.as_config(), "problem_type": kind}

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return self._classes.facts()

    @cached_property
    def _class_weights(self) -> Tensor:
        """Of each class [C], so that in the training samples each weighs as much as any other, and a sample 1 in the mean."""
        import torch

        counts = self._counts("train")
        occurring = np.maximum(counts, 1) * np.count_nonzero(counts)
        return torch.from_numpy((counts.sum() / occurring).astype(np.float32))

    def _counts(self, split: str) -> npt.NDArray[np.int64]:
        """Samples of each class [C]."""
        labels, class_of = self._at(split)
        return labels.counts(class_of, len(self._classes.names), self._splits[split].rows)

    def _at(self, split: str) -> tuple[SampleLabels, npt.NDArray[np.int64]]:
        """Labels of the split's place, and the class of each distinct one."""
        if split not in self._of_split:
            chosen = self._splits[split]
            labels = self._labels(chosen.read)
            self._of_split[split] = labels, self._classes.encode(labels, chosen.place)
        return self._of_split[split]
