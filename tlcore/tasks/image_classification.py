"""One class per picture, or any number of them, through transformers' image classification models.

Owns the task's batches, model class, loss, prediction and export. Decoding is `images.py`'s, reading `labelled_media.py`'s. Called
through `build_task`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.tasks.base import IGNORED, Batch, MetricAccumulator
from tlcore.tasks.classes import Classes, assumed_labels
from tlcore.tasks.image_logits import image_logits
from tlcore.tasks.labelled_media import LabelledMedia
from tlcore.tasks.labelled_pictures import LabelledPictures
from tlcore.tasks.logits import mean_binary_cross_entropy, mean_cross_entropy
from tlcore.tasks.model_task import ModelTask

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.recipe import Recipe

_LIKELY: Final = 0.5
"""Probability from which a class counts as present, with `data.multi_label`."""


class ImageClassification(ModelTask[LabelledMedia]):
    """Implements `Task`; see there for what each method promises."""

    auto_class = "AutoModelForImageClassification"

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(recipe)
        data = recipe.data
        self._pictures = LabelledPictures(data, self._source)
        self._splits = self._pictures.splits
        self._classes = Classes(data, facts, lambda: self._splits.read_training_place().labels.values)
        self._class_of: dict[str, npt.NDArray[np.int64]] = {}

    @staticmethod
    def assumed_facts(recipe: Recipe) -> dict[str, Any]:
        return assumed_labels(recipe.data)

    def check_data(self) -> None:
        self._pictures.check()

    def _check_split(self, split: str) -> None:
        self._classes_of(split)

    def lengths(self, split: str) -> npt.NDArray[np.int32]:
        return self._pictures.lengths(split)

    def collate(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64]) -> Batch:
        import torch

        filler = len(indices) == 0
        rows = self._splits[split].rows_of([0] if filler else indices)
        labels = self._targets(split, rows)
        if filler:
            labels = np.full_like(labels, IGNORED)
        return {"pixel_values": self._pictures.pixels(split, rows), "labels": torch.from_numpy(labels)}

    def largest_batch(self, samples: int) -> Batch:
        import torch

        shape = (samples, len(self._classes.names)) if self._recipe.data.multi_label else (samples,)
        return {
            "pixel_values": self._pictures.image.largest(samples),
            "labels": torch.zeros(shape, dtype=torch.int64),
        }

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        mean_loss = mean_binary_cross_entropy if self._recipe.data.multi_label else mean_cross_entropy
        return mean_loss(image_logits(model, batch), batch["labels"])

    def metrics(self) -> MetricAccumulator:
        from tlcore.tasks.classification_metrics import ClassificationCounts, MultiLabelCounts

        counts = MultiLabelCounts if self._recipe.data.multi_label else ClassificationCounts
        return counts(len(self._classes.names), image_logits)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        import torch

        answers: list[dict[str, Any]] = []
        for values in self._pictures.image.batches(inputs):
            with torch.no_grad():
                answers.extend(self._answers(image_logits(model, {"pixel_values": values})))
        return answers

    def examples(self, split: str, count: int) -> list[tuple[Any, Any]]:
        return self._pictures.examples(split, count)

    def facts(self) -> dict[str, Any]:
        return self._classes.facts()

    def _processors(self) -> list[Any]:
        return [self._pictures.image.processor]

    def _config(self) -> Any:
        kind = "multi_label_classification" if self._recipe.data.multi_label else "single_label_classification"
        return self._source.load_config(**self._classes.as_config(), problem_type=kind)

    def _targets(self, split: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Class of each row [B], or 1 for each class of it, else 0 [B, C]."""
        labels, class_of = self._splits[split].read.labels, self._classes_of(split)
        if self._recipe.data.multi_label:
            return labels.any_of(rows, class_of, len(self._classes.names))
        return labels.one_of(rows, class_of)

    def _classes_of(self, split: str) -> npt.NDArray[np.int64]:
        """Class of each distinct label of the split's place."""
        if split not in self._class_of:
            chosen = self._splits[split]
            self._class_of[split] = self._classes.encode(chosen.read.labels.values, chosen.place)
        return self._class_of[split]

    def _answers(self, logits: Tensor) -> list[dict[str, Any]]:
        """Of [B, C]."""
        if not self._recipe.data.multi_label:
            return [self._classes.answer(scores) for scores in logits.softmax(dim=-1).tolist()]
        named = [dict(zip(self._classes.names, scores, strict=True)) for scores in logits.sigmoid().tolist()]
        return [
            {"labels": [name for name, score in scores.items() if score >= _LIKELY], "scores": scores}
            for scores in named
        ]
