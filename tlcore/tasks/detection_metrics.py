"""Mean average precision of boxes over a whole split, by faster-coco-eval, and mean loss.

Owns gathering what was found and what there is from all ranks. Called by `object_detection.py`; what a model finds, and its loss,
are `detectors.py`'s.

Shapes: B pictures, K boxes found of each, M objects of the picture that has most.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn

from tlcore.errors import DataError
from tlcore.tasks.base import IGNORED, Batch, SumOverRanks
from tlcore.tasks.gathered import SLOT, GatheredSamples

MOST_FOUND: Final = 100
"""Boxes of a picture that count, the surest ones, as COCO's rule is."""
FIELDS: Final = 6
"""x, y, width, height, class, and score of what was found, or whether it is a crowd of what there is."""


class BoxCounts:
    """A MetricAccumulator over all boxes of a split.

    Args:
        names: of the classes.
        most: M over all splits, the same on every rank.
        run: gives what was found [B, K, 6] and losses times weights [B] for a batch (see `detectors.py`).
    """

    def __init__(
        self, names: tuple[str, ...], most: int, run: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
    ) -> None:
        self._names, self._most, self._run = names, most, run
        self._samples = GatheredSamples(2 + FIELDS * (MOST_FOUND + most))
        self._whole = torch.empty(0)

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Keep what was found and what there is of a batch, in each picture's own pixels."""
        with torch.no_grad():
            found, losses = self._run(model, batch)
        found = found.cpu().double()
        found[..., :4] *= batch["scale"].cpu()[:, None, None]
        held = torch.zeros(len(found), MOST_FOUND, FIELDS, dtype=torch.float64)
        held[..., 4] = IGNORED
        held[:, : found.shape[1]] = found
        there = torch.zeros(len(found), self._most, FIELDS, dtype=torch.float64)
        there[..., 4] = IGNORED
        objects = batch["labels"].shape[1]
        there[:, :objects, :4] = corner_first(batch["boxes"].cpu().double()) * batch["scale"].cpu()[:, None, None]
        there[:, :objects, 4] = batch["labels"].cpu().double()
        there[:, :objects, 5] = batch["crowds"].cpu().double()
        # A crowd has no label in the batch, since it is not learned; what kind it is stands in `crowds`.
        crowd = there[..., 5] > 0
        there[..., 4] = torch.where(crowd, there[..., 5] - 1, there[..., 4])
        weighed = torch.stack([losses.cpu().double(), batch["weights"].cpu().double()], dim=1)
        rows = torch.cat([weighed, held.flatten(1), there.flatten(1)], dim=1)
        self._samples.add(batch[SLOT], rows)

    def merge(self, sum_over_ranks: SumOverRanks) -> None:
        """Every rank gets all of it."""
        self._whole = self._samples.merge(sum_over_ranks)

    def compute(self) -> dict[str, float]:
        """map (mean of the average precisions at overlaps 0.50 to 0.95, over the classes that occur), map_50 (at 0.50), loss (mean
        over pictures by their weight)."""
        found, there = self._whole[:, 2:].split(
            [FIELDS * MOST_FOUND, FIELDS * self._most] if self._most else [FIELDS * MOST_FOUND, 0], dim=1
        )
        truth = list(_annotations(there.reshape(len(found), -1, FIELDS)))
        if not any(not each["iscrowd"] for each in truth):
            raise DataError("no picture of the split has an object", hint="mAP needs boxes to find")
        scores = _evaluate(truth, list(_detections(found.reshape(len(found), -1, FIELDS))), len(found), self._names)
        losses, weights = self._whole[:, :2].sum(dim=0).tolist()
        return {"map": scores[0], "map_50": scores[1], "loss": losses / weights}


def corner_first(boxes: Tensor) -> Tensor:
    """From centre x, y, width, height to x and y of the upper left corner, width, height [..., 4]."""
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., 2:]], dim=-1)


def _rows(table: Tensor) -> Iterator[tuple[int, list[float]]]:
    for picture, row in (table[..., 4] != IGNORED).nonzero().tolist():
        yield picture, table[picture, row].tolist()


def _annotations(table: Tensor) -> Iterator[dict[str, Any]]:
    for number, (picture, (x, y, width, height, kind, crowd)) in enumerate(_rows(table)):
        yield {
            "id": number + 1,
            "image_id": picture,
            "category_id": int(kind),
            "bbox": [x, y, width, height],
            "area": width * height,
            "iscrowd": int(crowd > 0),
        }


def _detections(table: Tensor) -> Iterator[dict[str, Any]]:
    for picture, (x, y, width, height, kind, score) in _rows(table):
        yield {"image_id": picture, "category_id": int(kind), "bbox": [x, y, width, height], "score": score}


def _evaluate(
    truth: list[dict[str, Any]], found: list[dict[str, Any]], pictures: int, names: tuple[str, ...]
) -> tuple[float, float]:
    from faster_coco_eval import COCO, COCOeval_faster

    with contextlib.redirect_stdout(io.StringIO()):  # its progress
        whole = COCO(
            {
                "images": [{"id": number} for number in range(pictures)],
                "annotations": truth,
                "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
            }
        )
        evaluation = COCOeval_faster(whole, whole.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])
