"""One class per picture, or any number of them, through transformers' image classification models.

Owns the task's batches, model class, loss, prediction and export. Decoding is `images.py`'s, reading `labelled_media.py`'s. Called
through `build_task`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tlcore.tasks.base import Batch, Draws, MetricAccumulator
from tlcore.tasks.choice import choice_or_number
from tlcore.tasks.classes import assumed_labels
from tlcore.tasks.image_logits import image_logits
from tlcore.tasks.labelled_media import LabelledMedia
from tlcore.tasks.labelled_pictures import LabelledPictures
from tlcore.tasks.model_task import ModelTask

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.recipe import Recipe


class ImageClassification(ModelTask[LabelledMedia]):
    """Implements `Task`; see there for what each method promises."""

    auto_class = "AutoModelForImageClassification"

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(recipe)
        data = recipe.data
        self._pictures = LabelledPictures(data, self._source)
        self._splits = self._pictures.splits
        self._choice = choice_or_number(recipe, facts, self._splits, lambda read: read.labels)

    @staticmethod
    def assumed_facts(recipe: Recipe) -> dict[str, Any]:
        return assumed_labels(recipe.data)

    def check_data(self) -> None:
        self._pictures.check()

    def _check_split(self, split: str) -> None:
        self._choice.check(split)

    def lengths(self, split: str) -> npt.NDArray[np.int32]:
        return self._pictures.lengths(split)

    def collate(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64], draws: Draws = None) -> Batch:
        filler = len(indices) == 0
        rows = self._splits[split].rows_of([0] if filler else indices)
        labels = self._choice.targets(split, rows, filler=filler)
        return {"pixel_values": self._pictures.pixels(split, rows, draws), "labels": labels}

    def largest_batch(self, samples: int) -> Batch:
        return {"pixel_values": self._pictures.image.largest(samples), "labels": self._choice.largest(samples)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._choice.loss(image_logits(model, batch), batch["labels"])

    def metrics(self) -> MetricAccumulator:
        return self._choice.counts(image_logits)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        import torch

        answers: list[dict[str, Any]] = []
        for values in self._pictures.image.batches(inputs):
            with torch.no_grad():
                logits = image_logits(model, {"pixel_values": values})
            answers.extend(self._choice.answers(self._choice.probabilities(logits)))
        return answers

    def examples(self, split: str, count: int) -> list[tuple[Any, Any]]:
        return self._pictures.examples(split, count)

    def facts(self) -> dict[str, Any]:
        return self._choice.facts()

    def _processors(self) -> list[Any]:
        return [self._pictures.image.processor]

    def _config(self) -> Any:
        return self._source.load_config(**self._choice.as_config())
