"""Pictures as unit vectors that lie close where the label is the same: recognition and search among classes never trained on.

Owns the task's batches, loss, prediction and export. The model is a transformers image classifier whose logits, brought to length
1, are the embedding, so that it loads in plain transformers. What is learned is the supervised contrastive loss within each
micro-batch (Khosla et al. 2020, arXiv:2004.11362, equation 2): a sample that is alone with its label in its micro-batch pulls
nothing, so `train.micro_batch_size` should be several times the number of labels. Called through `build_task`.

Labels of different splits have nothing to do with each other: the usual proof is on labels that training never saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tlcore.data import encode_labels
from tlcore.tasks.base import IGNORED, Batch, Draws, MetricAccumulator
from tlcore.tasks.gathered import SLOT, slots_of
from tlcore.tasks.image_logits import image_logits
from tlcore.tasks.labelled_media import LabelledMedia
from tlcore.tasks.labelled_pictures import LabelledPictures
from tlcore.tasks.model_task import ModelTask

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.recipe import Recipe


class ImageEmbedding(ModelTask[LabelledMedia]):
    """Implements `Task`; see there for what each method promises."""

    auto_class = "AutoModelForImageClassification"

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(recipe)
        self._pictures = LabelledPictures(recipe.data, self._source)
        self._splits = self._pictures.splits

    def check_data(self) -> None:
        self._pictures.check(self._check_labels)

    def load_data(self, splits: Sequence[str] = ("train", "validation")) -> dict[str, int]:
        for name in splits:
            self._check_labels(self._splits[name].read.labels.values, self._splits[name].place)
        return {name: len(self._splits[name].rows) for name in splits}

    def lengths(self, split: str) -> npt.NDArray[np.int32]:
        return self._pictures.lengths(split)

    def collate(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64], draws: Draws = None) -> Batch:
        import torch

        filler = len(indices) == 0
        chosen = self._splits[split]
        rows = chosen.rows_of([0] if filler else indices)
        labels = np.array([IGNORED]) if filler else chosen.read.labels.index[rows]
        return {
            "pixel_values": self._pictures.pixels(split, rows, draws),
            "labels": torch.from_numpy(labels),
            SLOT: torch.from_numpy(slots_of(indices)),
        }

    def largest_batch(self, samples: int) -> Batch:
        import torch

        nothing = torch.zeros(samples, dtype=torch.int64)
        return {"pixel_values": self._pictures.image.largest(samples), "labels": nothing, SLOT: nothing}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        from tlcore.tasks.retrieval_metrics import contrastive_losses

        embeddings, labels = embed(model, batch), batch["labels"]
        losses = contrastive_losses(embeddings, labels.to(embeddings.device))
        # Where there is no pair the loss is a constant; the zero keeps the gradient that a collective waits for.
        return (
            losses.nan_to_num().sum() / (labels != IGNORED).sum().clamp(min=1).to(losses.device) + 0 * embeddings.sum()
        )

    def metrics(self) -> MetricAccumulator:
        from tlcore.tasks.retrieval_metrics import Neighbours

        return Neighbours(self._recipe.data.embedding_size, embed)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        import torch

        answers: list[dict[str, Any]] = []
        for values in self._pictures.image.batches(inputs):
            with torch.no_grad():
                answers.extend({"embedding": row} for row in embed(model, {"pixel_values": values}).tolist())
        return answers

    def examples(self, split: str, count: int) -> list[tuple[Any, Any]]:
        return self._pictures.examples(split, count)

    def _processors(self) -> list[Any]:
        return [self._pictures.image.processor]

    def _config(self) -> Any:
        return self._source.load_config(num_labels=self._recipe.data.embedding_size)

    def _check_labels(self, values: Sequence[Any], place: str) -> None:
        """Where the recipe names the labels, there are no others."""
        data = self._recipe.data
        if data.labels is not None:
            encode_labels(values, data.labels, True, f"{place}, column {data.label!r}")


def embed(model: nn.Module, batch: Batch) -> Tensor:
    """Unit vectors in fp32 [B, embedding_size]."""
    from torch.nn.functional import normalize

    return normalize(image_logits(model, batch), dim=-1)
