"""Boxes around objects and what each is, through transformers' detectors of the DETR kind (YOLOS, DETR), and YOLOX.

Owns the task's batches, loss, prediction and export. Reading is `boxes.py`'s, pictures `detection_images.py`'s; in what detectors
differ is `detectors.py`'s, and with it what a picture weighs in the loss. Called through `build_task`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.data import bytes_read
from tlcore.data.media import find_media
from tlcore.errors import DataError, Fault, RecipeError
from tlcore.tasks.base import IGNORED, Batch, Draws, MetricAccumulator
from tlcore.tasks.boxes import BoxedPictures, Objects, read_boxes
from tlcore.tasks.classes import ASSUMED, MOST_CHECKED_BYTES, NamedClasses
from tlcore.tasks.detection_images import DetectionImages, vary
from tlcore.tasks.gathered import SLOT, slots_of
from tlcore.tasks.images import pictures_given, prepared_pictures
from tlcore.tasks.model_task import ModelTask
from tlcore.tasks.recent import Recent
from tlcore.tasks.sample_labels import named
from tlcore.tasks.splits import Splits, given_places

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.recipe import Recipe
    from tlcore.tasks.detectors import Detector

_LIKELY: Final = 0.5
"""Score from which a box is part of a prediction."""
_KEPT: Final = 4
"""Places kept per process: train, validation and test of one recipe, and one over."""
_read: Recent[BoxedPictures] = Recent(_KEPT)


class ObjectDetection(ModelTask[BoxedPictures]):
    """Implements `Task`; see there for what each method promises."""

    auto_class = "AutoModelForObjectDetection"

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(recipe)
        self._images = DetectionImages(self._source, recipe.data.image_size)
        self._read: dict[tuple[str, str], BoxedPictures] = {}
        self._splits = Splits(recipe.data, self._remembered)
        self._known = None if facts is None else NamedClasses.known(facts)
        self._class_of: dict[str, npt.NDArray[np.int64]] = {}

    @staticmethod
    def assumed_facts(recipe: Recipe) -> dict[str, Any]:
        return {"labels": list(recipe.data.labels or ASSUMED)}

    def check_data(self) -> None:
        _ = self._detector
        for split, place in given_places(self._recipe.data):
            if bytes_read(place) <= MOST_CHECKED_BYTES:
                found = self._remembered(place, split)
                found.rows.check_present(self._recipe.data.image_column)
                self._encode(found, place)

    def _check_split(self, split: str) -> None:
        self._classes_of(split)

    def lengths(self, split: str) -> npt.NDArray[np.int32]:
        return np.ones(len(self._splits[split].rows), dtype=np.int32)

    def weights(self, split: str) -> npt.NDArray[np.float64]:
        chosen = self._splits[split]
        return np.array([self._weight(chosen.read.objects[row]) for row in chosen.rows], dtype=np.float64)

    def collate(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64], draws: Draws = None) -> Batch:
        import torch

        chosen, data, side = self._splits[split], self._recipe.data, self._images.side
        rows = chosen.rows_of(indices if len(indices) else [0])
        kept = prepared_pictures(chosen.read.rows, data.image_column, rows, f"for {side}", self._images.shape)
        pixels = [each.pixels for each in kept]
        varies = split == "train" and data.augment
        objects = []
        for at, (row, (_, whole)) in enumerate(zip(rows, kept, strict=True)):
            boxes, labels, crowds = self._objects(chosen.read, int(row), self._classes_of(split))
            scale = max(whole) / side
            boxes = boxes / scale
            if varies:
                pixels[at], boxes, left = vary(pixels[at], boxes, draws)
                boxes, labels, crowds = boxes[left], labels[left], crowds[left]
            objects.append((_centred(boxes) / side, labels, crowds, torch.tensor([scale * side], dtype=torch.float64)))
        padded = {
            name: torch.nn.utils.rnn.pad_sequence([each[at] for each in objects], True, float(filler))
            for at, (name, filler) in enumerate((("boxes", 0), ("labels", IGNORED), ("crowds", 0)))
        }
        scales = torch.cat([each[3] for each in objects])
        return {
            **self._images.finish(pixels),
            **padded,
            "scale": scales,
            # Of the picture as it lies there: random crops leave objects out, and the weights must be known before.
            "weights": torch.tensor([self._weight(chosen.read.objects[row]) for row in rows], dtype=torch.float32),
            SLOT: torch.from_numpy(slots_of(indices)),
        }

    def largest_batch(self, samples: int) -> Batch:
        import torch

        nothing = torch.zeros(samples, 0, dtype=torch.int64)
        return {
            **self._images.largest(samples),
            "boxes": torch.zeros(samples, 0, 4),
            "labels": nothing,
            "crowds": nothing,
            "scale": torch.ones(samples, dtype=torch.float64),
            "weights": torch.ones(samples),
            SLOT: torch.zeros(samples, dtype=torch.int64),
        }

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        losses = self._detector.losses(model, batch)
        counted = (batch[SLOT] >= 0).to(losses.device)
        return (losses * counted).sum() / (batch["weights"].to(losses.device) * counted).sum().clamp(min=1)

    def metrics(self) -> MetricAccumulator:
        from tlcore.tasks.detection_metrics import BoxCounts

        most = max((found.most for found in self._read.values()), default=0)
        return BoxCounts(self._names, most, self._detector.run)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        import torch

        answers: list[dict[str, Any]] = []
        for given in inputs:
            (picture,) = pictures_given([given])
            with torch.no_grad():
                found = self._detector.find(model, self._images.finish([self._images.shape(picture)]))[0].cpu()
            found[:, :4] *= max(picture.size)
            answers.append({"objects": [self._answer(row) for row in found.tolist() if row[5] >= _LIKELY]})
        return answers

    def examples(self, split: str, count: int) -> list[tuple[Any, Any]]:
        data = self._recipe.data
        if split not in dict(given_places(data)):
            return []
        read = self._splits[split].read
        shown = []
        for row in range(min(count, len(read))):
            path = read.rows.opener.path_of(read.rows.cell(data.image_column, row))
            there = read.objects[row]
            kinds = named([read.values[kind] for kind in there.kinds], read.names if data.labels is None else None)
            if path is not None:
                shown.append((path, {"bbox": there.boxes.tolist(), "category": kinds}))
        return shown

    def facts(self) -> dict[str, Any]:
        return self._classes.facts()

    def _processors(self) -> list[Any]:
        return [self._images.processor]

    @property
    def _names(self) -> tuple[str, ...]:
        """Of the classes, by number. Raises DataError."""
        return self._classes.names

    @cached_property
    def _classes(self) -> NamedClasses:
        data = self._recipe.data
        if self._known is not None:
            return self._known
        if data.labels is not None:
            return NamedClasses(tuple(data.labels))
        read = self._splits.read_training_place()
        if not read.values:
            raise DataError(f"{data.train} has no box in it", hint="a detector needs objects to learn")
        if read.names is not None:
            return NamedClasses(read.names, numbered=True)
        return NamedClasses(tuple(sorted({str(value) for value in read.values})))

    def _config(self) -> Any:
        names = self._names
        config = self._source.load_config(
            num_labels=len(names),
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
        )
        config.auxiliary_loss = False
        return config

    @cached_property
    def _detector(self) -> Detector:
        """Raises RecipeError: its pictures cannot be of the side that the recipe asks for; ModelError: no detector known here."""
        from tlcore.tasks.detectors import detector_of

        detector, side = detector_of(self._source.load_config()), self._images.side
        if side % detector.multiple:
            nearest = max(1, round(side / detector.multiple)) * detector.multiple
            text = f"pictures of {side} pixels, and this detector takes multiples of {detector.multiple}, such as {nearest}"
            raise RecipeError([Fault("data.image_size", text)], self._recipe.name)
        return detector

    def _objects(self, read: BoxedPictures, row: int, class_of: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """Of one picture: boxes in its pixels [M, 4], classes [M], ignored for crowds, and of those their class + 1, else 0 [M]."""
        import torch

        there = read.objects[row]
        kinds = torch.from_numpy(class_of[there.kinds])
        crowd = torch.from_numpy(there.crowds)
        return torch.from_numpy(there.boxes), kinds.masked_fill(crowd, IGNORED), (kinds + 1) * crowd

    def _weight(self, there: Objects) -> int:
        """Of a picture in the mean loss; crowds are not learned."""
        return max(1, int((~there.crowds).sum())) if self._detector.by_objects else 1

    def _classes_of(self, split: str) -> npt.NDArray[np.int64]:
        """Class of each distinct category of the split's place."""
        if split not in self._class_of:
            chosen = self._splits[split]
            self._class_of[split] = self._encode(chosen.read, chosen.place)
        return self._class_of[split]

    def _encode(self, read: BoxedPictures, place: str) -> npt.NDArray[np.int64]:
        data = self._recipe.data
        where = f"{place}, column {data.objects!r}"
        return self._classes.encode(read, data, where)

    def _answer(self, row: Sequence[float]) -> dict[str, Any]:
        return {"label": self._names[int(row[4])], "score": row[5], "bbox": list(row[:4])}

    def _remembered(self, place: str, split: str) -> BoxedPictures:
        data = self._recipe.data
        if (place, split) not in self._read:
            key = (find_media(place).stamp(), split, data.image_column, data.objects)
            make = partial(read_boxes, place, data.image_column, data.objects, split)
            self._read[place, split] = _read.get(key, make)
        return self._read[place, split]


def _centred(boxes: Tensor) -> Tensor:
    """From x, y, width, height to centre x, y, width, height [M, 4]."""
    import torch

    return torch.cat([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], dim=1)
