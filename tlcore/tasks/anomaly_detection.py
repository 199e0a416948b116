"""How far a picture is from what is normal, learned from normal pictures alone.

Owns the task's batches, model, centre, loss, prediction and export. The method is deep support vector data description (Ruff et al.
2018; `models/families/one_class.py`): the mean square distance of normal pictures from a fixed centre falls, and a picture's
distance is its score. Called through `build_task`.

Labels: `good`, `normal`, `ok`, 0 or false is normal, anything else an anomaly, as inspection data sets lay out their folders; of
numbers that have names (`ClassLabel`) it is the names that say so.
Anomalies among the training pictures are left out of training; validation and test need both kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.errors import DataError
from tlcore.models import (
    build_pretrained,
    build_scratch,
    mark_new,
    new_parameters,
    quiet,
    seeded,
)
from tlcore.models.families import register_families
from tlcore.tasks.base import Batch, Draws, MetricAccumulator
from tlcore.tasks.gathered import SLOT, slots_of
from tlcore.tasks.image_logits import position_settings
from tlcore.tasks.labelled_media import LabelledMedia
from tlcore.tasks.labelled_pictures import LabelledPictures
from tlcore.tasks.logits import inputs_of
from tlcore.tasks.model_task import ModelTask
from tlcore.tasks.sample_labels import named

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.recipe import Recipe

NORMAL: Final = ("good", "normal", "ok", "0", "0.0", "false")
EMBEDDING_SIZE: Final = 32
"""As the authors' network for small pictures."""
_CENTRE_SAMPLES: Final = 1024
"""Normal training pictures whose mean is the centre: one forward pass of them when a trial is built."""
_AT_A_TIME: Final = 64
_AWAY: Final = 0.1
"""Least size of each number of the centre: near 0 it could be met by weights of 0 (the authors' own choice)."""


class AnomalyDetection(ModelTask[LabelledMedia]):
    """Implements `Task`; see there for what each method promises."""

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(recipe)
        self._pictures = LabelledPictures(recipe.data, self._source)
        self._splits = self._pictures.splits
        self._has_centre = facts is not None

    def check_data(self) -> None:
        self._pictures.check(lambda values, place: None)

    def load_data(self, splits: Sequence[str] = ("train", "validation")) -> dict[str, int]:
        counts = {name: len(self._rows(name)) for name in splits}
        for name in splits:
            kinds = set(self._anomalies(name, self._rows(name)).tolist())
            if name == "train" and not kinds:
                labels = self._pictures.splits[name].read.labels
                there = ", ".join(str(named(value, labels.names)) for value in labels.values[:10])
                raise DataError(
                    f"{self._pictures.splits[name].place} has no normal picture; its labels are {there}",
                    hint=f"normal ones are labelled {', '.join(NORMAL[:4])}",
                )
            if name != "train" and len(kinds) < 2:
                only = "no picture" if not kinds else "only anomalies" if 1 in kinds else "no anomaly"
                raise DataError(
                    f"the {name} pictures of {self._pictures.splits[name].place} have {only} among them",
                    hint="telling them apart can only be judged on both kinds",
                )
        return counts

    def lengths(self, split: str) -> npt.NDArray[np.int32]:
        return np.ones(len(self._rows(split)), dtype=np.int32)

    def build_model(self, from_scratch: bool) -> nn.Module:
        from transformers import AutoModelForImageClassification

        from tlcore.models.families.one_class import OneClassModel, take_off_head

        seed = self._recipe.train.seed
        build = build_scratch if from_scratch else build_pretrained
        network: Any = build(AutoModelForImageClassification, self._source, self._network_config(), seed)
        take_off_head(network)
        with seeded(seed), quiet():
            model = OneClassModel(self._config())
        model.network.load_state_dict(network.state_dict())
        inside = {f"network.{name}" for name in new_parameters(network)} & {
            name for name, _ in model.named_parameters()
        }
        mark_new(model, frozenset(inside | {"projection.weight"}))
        if not self._has_centre:
            model.centre.copy_(self._centre(model))
        trained: nn.Module = model.train()
        return trained

    def collate(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64], draws: Draws = None) -> Batch:
        import torch

        rows = self._rows(split)[np.asarray(indices if len(indices) else [0], dtype=np.int64)]
        return {
            "pixel_values": self._pictures.pixels(split, rows, draws),
            "labels": torch.from_numpy(self._anomalies(split, rows)),
            SLOT: torch.from_numpy(slots_of(indices)),
        }

    def largest_batch(self, samples: int) -> Batch:
        import torch

        nothing = torch.zeros(samples, dtype=torch.int64)
        return {"pixel_values": self._pictures.image.largest(samples), "labels": nothing, SLOT: nothing}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        distances = distances_of(model, batch)
        counted = (batch[SLOT] >= 0).to(distances.device)
        return (distances * counted).sum() / counted.sum().clamp(min=1)

    def metrics(self) -> MetricAccumulator:
        from tlcore.tasks.anomaly_metrics import RankedScores

        return RankedScores(distances_of)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        import torch

        answers: list[dict[str, Any]] = []
        for values in self._pictures.image.batches(inputs):
            with torch.no_grad():
                answers.extend({"score": score} for score in distances_of(model, {"pixel_values": values}).tolist())
        return answers

    def examples(self, split: str, count: int) -> list[tuple[Any, Any]]:
        return self._pictures.examples(split, count)

    def export_extras(self, directory: Path) -> None:
        from tlcore.models.families.one_class import OneClassModel

        config = self._config()
        config.architectures = [OneClassModel.__name__]
        self._save(config, directory)

    def _processors(self) -> list[Any]:
        return [self._pictures.image.processor]

    def _network_config(self) -> Any:
        return self._source.load_config(num_labels=2)

    def _config(self) -> Any:
        register_families()
        from tlcore.models.families.one_class import OneClassConfig

        return OneClassConfig(network=self._network_config().to_dict(), embedding_size=EMBEDDING_SIZE)

    def _centre(self, model: nn.Module) -> Tensor:
        """Mean embedding [E] of normal training pictures as the model stands, no number of it near 0."""
        import torch

        rows = self._rows("train")[:_CENTRE_SAMPLES]
        model.eval()
        total = torch.zeros(EMBEDDING_SIZE)
        with torch.no_grad():
            for start in range(0, len(rows), _AT_A_TIME):
                values = self._pictures.plain_pixels("train", rows[start : start + _AT_A_TIME])
                total += embeddings_of(model, {"pixel_values": values}).sum(dim=0)
        centre = total / len(rows)
        return torch.where(centre < 0, centre.clamp(max=-_AWAY), centre.clamp(min=_AWAY))

    def _rows(self, split: str) -> npt.NDArray[np.int64]:
        """Of the split's samples; for training the normal ones."""
        rows = self._pictures.splits[split].rows
        return rows[self._anomalies(split, rows) == 0] if split == "train" else rows

    def _anomalies(self, split: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """1 for each anomaly, else 0 [B]."""
        labels = self._pictures.splits[split].read.labels
        meant = [str(named(value, labels.names)).strip().lower() for value in labels.values]
        kinds = np.array([each not in NORMAL for each in meant], dtype=np.int64)
        return labels.one_of(rows, kinds)


def embeddings_of(model: nn.Module, batch: Batch) -> Tensor:
    """In fp32 [B, E]."""
    plain: Any = getattr(model, "module", model)
    pictures = {"pixel_values": batch["pixel_values"]}
    settings = position_settings(plain.network, batch["pixel_values"])
    embeddings: Tensor = model(**inputs_of(model, pictures), **settings).embeddings
    return embeddings.float()


def distances_of(model: nn.Module, batch: Batch) -> Tensor:
    """Square distance from the centre, the mean over the embedding's numbers, in fp32 [B]."""
    plain: Any = getattr(model, "module", model)
    embeddings = embeddings_of(model, batch)
    centre: Tensor = plain.centre
    return (embeddings - centre.to(embeddings)).square().mean(dim=1)
