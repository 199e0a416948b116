"""One class per video, or any number of them, through transformers' video classification models.

Owns the task's batches, model class, loss, prediction and export; frames are prepared as `images.py` prepares pictures. A video is
a list of pictures, or an array file (.npy) of uint8 [frames, height, width, 3]; so many frames as the model takes are taken of it,
evenly from first to last. Called through `build_task`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.data import MediaRows, Opener
from tlcore.errors import DataError, Fault, RecipeError
from tlcore.tasks.base import Batch, Draws, MetricAccumulator
from tlcore.tasks.choice import choice_or_number
from tlcore.tasks.classes import assumed_labels
from tlcore.tasks.image_logits import image_logits
from tlcore.tasks.images import HELD_BYTES, ImageModel, decode
from tlcore.tasks.labelled_media import LabelledMedia, check_labelled_media, labelled_splits
from tlcore.tasks.model_task import ModelTask
from tlcore.tasks.recent import Held
from tlcore.tasks.splits import given_places

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.recipe import Recipe

ENDINGS: Final = (".npy",)
_held: Held[Tensor] = Held(HELD_BYTES, lambda tensor: tensor.numel())


class VideoClassification(ModelTask[LabelledMedia]):
    """Implements `Task`; see there for what each method promises."""

    auto_class = "AutoModelForVideoClassification"

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(recipe)
        data = recipe.data
        self._image = ImageModel(self._source, data.image_size)
        self._splits = labelled_splits(data, data.video, ENDINGS)
        self._choice = choice_or_number(recipe, facts, self._splits, lambda read: read.labels)

    @staticmethod
    def assumed_facts(recipe: Recipe) -> dict[str, Any]:
        return assumed_labels(recipe.data)

    def check_data(self) -> None:
        check_labelled_media(self._recipe.data, self._recipe.data.video, ENDINGS)

    def _check_split(self, split: str) -> None:
        self._choice.check(split)

    def lengths(self, split: str) -> npt.NDArray[np.int32]:
        return np.full(len(self._splits[split].rows), self._frames, dtype=np.int32)

    def collate(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64], draws: Draws = None) -> Batch:
        import torch

        filler = len(indices) == 0
        chosen = self._splits[split]
        rows = chosen.rows_of([0] if filler else indices)
        videos = _held.get((chosen.read.rows.digest, self._image.key, self._frames), rows.tolist(), self._reader(split))
        values = torch.stack([self._image.finish(list(frames)) for frames in videos])
        return {"pixel_values": values, "labels": self._choice.targets(split, rows, filler=filler)}

    def largest_batch(self, samples: int) -> Batch:
        pictures = self._image.largest(samples * self._frames)
        return {
            "pixel_values": pictures.unflatten(0, (samples, self._frames)),
            "labels": self._choice.largest(samples),
        }

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._choice.loss(image_logits(model, batch), batch["labels"])

    def metrics(self) -> MetricAccumulator:
        return self._choice.counts(image_logits)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        import torch

        answers: list[dict[str, Any]] = []
        opener = Opener()
        for number, given in enumerate(inputs):
            name = given if isinstance(given, str) else f"input {number}"
            frames = self._prepare(_contents(opener, given), name)
            with torch.no_grad():
                logits = image_logits(model, {"pixel_values": self._image.finish(list(frames))[None]})
            answers.extend(self._choice.answers(self._choice.probabilities(logits)))
        return answers

    def examples(self, split: str, count: int) -> list[tuple[Any, Any]]:
        data = self._recipe.data
        if split not in dict(given_places(data)):
            return []
        rows = self._splits[split].read.rows
        cells = [rows.cell(data.video, row) for row in range(min(count, len(rows)))]
        paths = [[rows.opener.path_of(each) for each in (cell if isinstance(cell, list) else [cell])] for cell in cells]
        return [
            (path if isinstance(cell, list) else path[0], rows.cell(data.label, row))
            for row, (cell, path) in enumerate(zip(cells, paths, strict=True))
            if None not in path
        ]

    def facts(self) -> dict[str, Any]:
        return self._choice.facts()

    def _processors(self) -> list[Any]:
        return [self._image.processor]

    @cached_property
    def _frames(self) -> int:
        """How many the model takes. Raises RecipeError: it takes another number, or pictures of another size."""
        data, config = self._recipe.data, self._source.load_config()
        own = {"frames": getattr(config, "num_frames", None), "image_size": getattr(config, "image_size", None)}
        for key, there in own.items():
            wanted = getattr(data, key)
            if there is not None and wanted not in ("auto", there):
                text = f"is {wanted}, but model {self._source.name!r} takes {there}; set it to {there} or auto"
                raise RecipeError([Fault(f"data.{key}", text)])
        if data.frames == "auto" and own["frames"] is None:
            text = f"is auto, but model {self._source.name!r} does not say how many it takes; give a number"
            raise RecipeError([Fault("data.frames", text)])
        return int(own["frames"] or 0) if data.frames == "auto" else data.frames

    def _config(self) -> Any:
        return self._source.load_config(**self._choice.as_config(), num_frames=self._frames)

    def _reader(self, split: str) -> Any:
        """Gives the prepared frames of rows of the split's place."""
        rows: MediaRows = self._splits[split].read.rows
        column = self._recipe.data.video

        def make(absent: Sequence[int]) -> list[Tensor]:
            return [
                self._prepare(_contents(rows.opener, rows.cell(column, row)), f"{rows.place}, row {row + 1}")
                for row in absent
            ]

        return make

    def _prepare(self, contents: list[bytes], name: str) -> Tensor:
        """Frames as the model takes them, uint8 [frames, 3, H, W]. Raises DataError."""
        import torch
        from PIL import Image

        if len(contents) > 1 or not contents[0].startswith(b"\x93NUMPY"):
            chosen = _evenly(len(contents), self._frames)
            pictures = [decode(contents[place], f"{name}, frame {place}") for place in chosen]
        else:
            array = _array(contents[0], name)
            pictures = [Image.fromarray(array[place]) for place in _evenly(len(array), self._frames)]
        return torch.stack([self._image.shape(picture) for picture in pictures])


def _contents(opener: Opener, cell: Any) -> list[bytes]:
    """Of one array file, or of each frame's picture."""
    return opener.read_all(cell if isinstance(cell, list) else [cell])


def _array(content: bytes, name: str) -> npt.NDArray[np.uint8]:
    try:
        array: npt.NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{name} cannot be read as an array file: {error}", hint="write it with numpy.save") from error
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8 or not len(array):
        raise DataError(
            f"{name} is {array.dtype} {list(array.shape)}, not uint8 [frames, height, width, 3]",
            hint="write frames in RGB, a byte a channel",
        )
    return array


def _evenly(there: int, wanted: int) -> list[int]:
    """Places of `wanted` frames from first to last; some more than once where there are fewer."""
    return [int(place) for place in np.linspace(0, there - 1, wanted).round()]
