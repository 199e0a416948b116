"""One class per sound, through transformers' audio classification models.

Owns the task's data preparation, model class, collation, loss, prediction and export. Called through `build_task`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tlcore.tasks.base import IGNORED, Batch, MetricAccumulator
from tlcore.tasks.classes import Classes, assumed_labels
from tlcore.tasks.logits import mean_cross_entropy
from tlcore.tasks.model_task import ModelTask
from tlcore.tasks.sound_inputs import SoundInputs, model_inputs
from tlcore.tasks.sound_models import load_sound_config
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
        self._class_of: dict[str, npt.NDArray[np.int64]] = {}
        self._classes = Classes(recipe.data, facts, lambda: self._values_of(self._splits.read_training_place()))

    @staticmethod
    def assumed_facts(recipe: Recipe) -> dict[str, Any]:
        return assumed_labels(recipe.data)

    def check_data(self) -> None:
        check_sounds(self._recipe.data, label=self._recipe.data.label)

    def _check_split(self, split: str) -> None:
        self._classes_of(split)

    def lengths(self, split: str) -> npt.NDArray[np.int32]:
        chosen = self._splits[split]
        return chosen.read.frames[chosen.rows]

    def collate(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64]) -> Batch:
        import torch

        chosen = self._splits[split]
        filler = len(indices) == 0
        rows = chosen.rows_of([0] if filler else indices)
        classes = np.array([IGNORED]) if filler else self._classes_of(split)[rows]
        return {**self._inputs.batch(chosen.read.pcm(rows)), "labels": torch.from_numpy(classes)}

    def largest_batch(self, samples: int) -> Batch:
        import torch

        return {**self._inputs.largest(samples), "labels": torch.zeros(samples, dtype=torch.int64)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return mean_cross_entropy(_logits(model, batch), batch["labels"])

    def metrics(self) -> MetricAccumulator:
        from tlcore.tasks.classification_metrics import ClassificationCounts

        return ClassificationCounts(len(self._classes.names), _logits)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """The class of each sound: a path, an `s3://` URL, or a file's bytes. Of a longer one the windows' scores are averaged."""
        import torch

        answers = []
        for given in inputs:
            sound = open_sound(given, self._inputs.rate_hz)
            windows = np.array_split(sound, -(-len(sound) // self._inputs.window))
            with torch.no_grad():
                each = [_logits(model, self._inputs.batch([window])).softmax(dim=-1) for window in windows]
            answers.append(self._classes.answer(torch.cat(each).mean(dim=0).tolist()))
        return answers

    def examples(self, split: str, count: int) -> list[tuple[Any, Any]]:
        return sound_examples(self._recipe.data, split, count, self._recipe.data.label)

    def facts(self) -> dict[str, Any]:
        return self._classes.facts()

    def _processors(self) -> list[Any]:
        return [self._inputs.extractor]

    def _config(self) -> Any:
        return load_sound_config(self._source, **self._classes.as_config())

    def _classes_of(self, split: str) -> npt.NDArray[np.int64]:
        """Class index of every sound of the split's place."""
        if split not in self._class_of:
            chosen = self._splits[split]
            labels = chosen.read.cells(self._recipe.data.label)
            values = self._values_of(chosen.read)
            index_of = dict(zip(values, self._classes.encode(values, chosen.place), strict=True))
            self._class_of[split] = np.array([index_of[label] for label in labels], dtype=np.int64)
        return self._class_of[split]

    def _values_of(self, sounds: Sounds) -> tuple[Any, ...]:
        """The distinct labels, in the order in which they come."""
        return tuple(dict.fromkeys(sounds.cells(self._recipe.data.label)))

    def _read(self, place: str, hub_split: str) -> Sounds:
        data = self._recipe.data
        return read_sounds(place, data.audio, self._inputs.rate_hz, data.max_seconds, hub_split, label=data.label)


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    logits: Tensor = model(**model_inputs(model, batch)).logits
    return logits.float()
