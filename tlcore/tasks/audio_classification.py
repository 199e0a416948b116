"""One class per sound, or any number of them, through transformers' audio classification models.

Owns the task's data preparation, model class, collation, loss, prediction and export. Called through `build_task`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tlcore.tasks.base import Batch, Draws, MetricAccumulator
from tlcore.tasks.choice import choice_or_number
from tlcore.tasks.classes import assumed_labels
from tlcore.tasks.model_task import ModelTask
from tlcore.tasks.sample_labels import SampleLabels, empty_cells
from tlcore.tasks.sound_inputs import SoundInputs, model_inputs
from tlcore.tasks.sounds import Sounds, check_sounds, open_sound, read_sounds, sound_examples
from tlcore.tasks.splits import Splits

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.recipe import Recipe


class AudioClassification(ModelTask[Sounds]):
    """Implements `Task`; see there for what each method promises."""

    auto_class = "AutoModelForAudioClassification"

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(recipe)
        self._inputs = SoundInputs(self._source, recipe.data.max_seconds)
        self._splits = Splits(recipe.data, self._read)
        self._choice = choice_or_number(recipe, facts, self._splits, self._labels_of)

    @staticmethod
    def assumed_facts(recipe: Recipe) -> dict[str, Any]:
        return assumed_labels(recipe.data)

    def check_data(self) -> None:
        check_sounds(self._recipe.data, label=self._recipe.data.label)

    def _check_split(self, split: str) -> None:
        self._choice.check(split)

    def lengths(self, split: str) -> npt.NDArray[np.int32]:
        chosen = self._splits[split]
        return chosen.read.frames[chosen.rows]

    def collate(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64], draws: Draws = None) -> Batch:
        chosen = self._splits[split]
        filler = len(indices) == 0
        rows = chosen.rows_of([0] if filler else indices)
        labels = self._choice.targets(split, rows, filler=filler)
        return {**self._inputs.batch(chosen.read.pcm(rows)), "labels": labels}

    def largest_batch(self, samples: int) -> Batch:
        return {**self._inputs.largest(samples), "labels": self._choice.largest(samples)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._choice.loss(_logits(model, batch), batch["labels"])

    def metrics(self) -> MetricAccumulator:
        return self._choice.counts(_logits)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """The class of each sound: a path, an `s3://` URL, or a file's bytes. Of a longer one the windows' scores are averaged."""
        import torch

        answers: list[dict[str, Any]] = []
        for given in inputs:
            sound = open_sound(given, self._inputs.rate_hz)
            windows = np.array_split(sound, -(-len(sound) // self._inputs.window))
            with torch.no_grad():
                each = [self._choice.probabilities(_logits(model, self._inputs.batch([one]))) for one in windows]
            answers.extend(self._choice.answers(torch.cat(each).mean(dim=0, keepdim=True)))
        return answers

    def examples(self, split: str, count: int) -> list[tuple[Any, Any]]:
        return sound_examples(self._recipe.data, split, count, self._recipe.data.label)

    def facts(self) -> dict[str, Any]:
        return self._choice.facts()

    def _processors(self) -> list[Any]:
        return [self._inputs.extractor]

    def _config(self) -> Any:
        return self._source.load_config(**self._choice.as_config())

    def _labels_of(self, sounds: Sounds) -> SampleLabels:
        data = self._recipe.data
        return sounds.labels(data.label, data.multi_label)

    def _read(self, place: str, hub_split: str) -> Sounds:
        data = self._recipe.data
        empty = empty_cells(data.label, data.multi_label)
        rate_hz = self._inputs.rate_hz
        return read_sounds(place, data.audio, rate_hz, data.max_seconds, hub_split, data.label, may_be_empty=empty)


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    logits: Tensor = model(**model_inputs(model, batch)).logits
    return logits.float()
