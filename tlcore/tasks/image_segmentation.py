"""One class per pixel, through transformers' semantic segmentation models.

Owns the task's batches, loss, prediction and export. A mask is a picture of class numbers, 255 for none. Called through
`build_task`.

Pictures and masks are brought to one size together, the whole picture without cropping; training, loss and metrics are at that size
and not at each picture's own, so that a split of large pictures costs no more than its batches. Every picture weighs once in the
loss, however many of its pixels have a class; in the metrics every pixel does, as in the published ones.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.data import MediaRows, bytes_read, read_media
from tlcore.data.media import find_media
from tlcore.errors import DataError
from tlcore.tasks.base import IGNORED, Batch, Draws, MetricAccumulator
from tlcore.tasks.classes import ASSUMED, MOST_CHECKED_BYTES
from tlcore.tasks.images import ENDINGS, ImageModel, held_pictures, picture_examples, pictures_given
from tlcore.tasks.logits import logits_of
from tlcore.tasks.masks import NOTHING, check_numbered, held_masks, largest_class
from tlcore.tasks.model_task import ModelTask
from tlcore.tasks.recent import Recent
from tlcore.tasks.splits import Splits, given_places

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.recipe import Recipe

_KEPT: Final = 4
"""Places kept per process: train, validation and test of one recipe, and one over. Their masks are `masks.py`'s."""
_read: Recent[MediaRows] = Recent(_KEPT)


class ImageSegmentation(ModelTask[MediaRows]):
    """Implements `Task`; see there for what each method promises."""

    auto_class = "AutoModelForSemanticSegmentation"

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(recipe)
        self._image = ImageModel(self._source, recipe.data.image_size, crops=False)
        self._read: dict[tuple[str, str], MediaRows] = {}
        self._splits = Splits(recipe.data, self._remembered)
        self._known = None if facts is None else tuple(facts["labels"])

    @staticmethod
    def assumed_facts(recipe: Recipe) -> dict[str, Any]:
        return {"labels": list(recipe.data.labels or ASSUMED)}

    def check_data(self) -> None:
        data = self._recipe.data
        for split, place in given_places(data):
            if bytes_read(place) <= MOST_CHECKED_BYTES:
                rows = self._remembered(place, split)
                for column in (data.image_column, data.mask):
                    rows.check_present(column)
                if split == "train" and data.labels is not None:
                    check_numbered(rows, data.mask)

    def load_data(self, splits: Sequence[str] = ("train", "validation")) -> dict[str, int]:
        counts = {name: len(self._splits[name].rows) for name in splits}
        if self._known is None and self._recipe.data.labels is not None:
            check_numbered(self._splits.read_training_place(), self._recipe.data.mask)
        _ = self._names
        return counts

    def lengths(self, split: str) -> npt.NDArray[np.int32]:
        return np.ones(len(self._splits[split].rows), dtype=np.int32)

    def collate(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64], draws: Draws = None) -> Batch:
        import torch

        filler = len(indices) == 0
        chosen = self._splits[split]
        rows = chosen.rows_of([0] if filler else indices)
        data, image = self._recipe.data, self._image
        vary = split == "train" and data.augment
        how = f"whole, for {image.size}" if vary else image.key
        pixels = held_pictures(chosen.read, data.image_column, rows, how, image.shrink if vary else image.shape)
        # To the size that the picture was brought to: nearest, since between two class numbers there is no third.
        masks = held_masks(chosen.read, data.mask, rows, how, [each.shape[-2:] for each in pixels], len(self._names))
        if vary:
            varied = [image.vary(each, draws, mask) for each, mask in zip(pixels, masks, strict=True)]
            pixels, masks = [each[0] for each in varied], [each[1] for each in varied]
        labels = torch.stack(masks)[:, 0].long()
        labels[(labels == NOTHING) | filler] = IGNORED
        return {"pixel_values": image.finish(pixels), "labels": labels}

    def largest_batch(self, samples: int) -> Batch:
        import torch

        return {
            "pixel_values": self._image.largest(samples),
            "labels": torch.zeros(samples, *self._image.size, dtype=torch.int64),
        }

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        from tlcore.tasks.segmentation_metrics import pixel_losses

        losses, counted = pixel_losses(pixel_logits(model, batch), batch["labels"])
        return losses.sum() / counted.sum().clamp(min=1)

    def metrics(self) -> MetricAccumulator:
        from tlcore.tasks.segmentation_metrics import PixelCounts

        return PixelCounts(len(self._names), pixel_logits)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        import torch
        from torch.nn.functional import interpolate

        answers: list[dict[str, Any]] = []
        for given in inputs:
            (picture,) = pictures_given([given])
            with torch.no_grad():
                scores = pixel_logits(model, {"pixel_values": self._image.finish([self._image.shape(picture)])})
            whole = interpolate(scores, size=(picture.height, picture.width), mode="bilinear", align_corners=False)
            answers.append(self._answer(whole[0].argmax(dim=0).to(torch.uint8).cpu().numpy()))
        return answers

    def examples(self, split: str, count: int) -> list[tuple[Any, Any]]:
        data = self._recipe.data
        if split not in dict(given_places(data)):
            return []
        rows = self._splits[split].read
        if rows.opener.path_of(rows.cell(data.mask, 0)) is None:
            return []
        return picture_examples(rows, data.image_column, count, data.mask)

    def facts(self) -> dict[str, Any]:
        return {"labels": list(self._names)}

    def _processors(self) -> list[Any]:
        return [self._image.processor]

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """Of the classes, by number. Raises DataError."""
        if self._known is not None:
            return self._known
        data = self._recipe.data
        if data.labels is not None:
            return data.labels
        largest = largest_class(self._splits.read_training_place(), data.mask)
        if largest < 1:
            raise DataError(
                f"{data.train}, column {data.mask!r}: no mask has a class beside 0",
                hint="masks hold class numbers, 255 for none: write an object as 1; or, if they are right, name data.labels",
            )
        return tuple(str(number) for number in range(largest + 1))

    def _config(self) -> Any:
        names = self._names
        config = self._source.load_config(
            num_labels=len(names),
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
        )
        if hasattr(config, "use_auxiliary_head"):
            config.use_auxiliary_head = False  # a second head (UPerNet, BEiT, DPT), which no answer comes from
        return config

    def _answer(self, mask: npt.NDArray[np.uint8]) -> dict[str, Any]:
        """The share of each class that occurs, and the mask as a PNG file in base64, both of the picture's own size."""
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(mask).save(file, format="PNG")
        counts = np.bincount(mask.ravel(), minlength=len(self._names)) / mask.size
        shares = {name: float(share) for name, share in zip(self._names, counts, strict=True) if share}
        return {"shares": shares, "mask_png": base64.b64encode(file.getvalue()).decode()}

    def _remembered(self, place: str, split: str) -> MediaRows:
        columns = (self._recipe.data.image_column, self._recipe.data.mask)
        if (place, split) not in self._read:
            found = find_media(place)
            key = (found.stamp(), split, columns)
            self._read[place, split] = _read.get(key, lambda: read_media(found, columns, ENDINGS, split=split))
        return self._read[place, split]


def pixel_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits in fp32 [B, C, H, W], at the pictures' size whatever grid the model answers on."""
    from torch.nn.functional import interpolate

    logits = logits_of(model, batch)
    size = batch["pixel_values"].shape[-2:]
    return interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)
