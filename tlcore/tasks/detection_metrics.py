"""Mean average precision of boxes over a whole split, by faster-coco-eval, and mean loss.

Owns gathering what was found and what there is from all ranks, and the loss of each picture. Called by `object_detection.py`.

Shapes: B pictures, Q boxes that the model gives of each, C classes, M objects of the picture that has most.
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
_FIELDS: Final = 6
"""x, y, width, height, class, and score of what was found, or whether it is a crowd of what there is."""


def box_losses(logits: Tensor, boxes: Tensor, batch: Batch, config: Any) -> Tensor:
    """Loss of each picture [B] as DETR's authors define it (Carion et al. 2020, arXiv:2005.12872): the boxes given are matched to
    the objects at least cost, and pay for class, distance and overlap; a picture's loss is over its own number of objects.

    Args:
        logits: [B, Q, C + 1], the last for no object.
        boxes: centre x, y, width, height as parts of the picture [B, Q, 4].
        batch: with `boxes` [B, M, 4] likewise and `labels` [B, M], `IGNORED` where there is none.
        config: the model's, with the weights of the parts.
    """
    from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

    labels, wanted = batch["labels"].to(logits.device), batch["boxes"].to(logits.device)
    losses = []
    for number in range(len(logits)):
        one = slice(number, number + 1)
        if labels.shape[1] == 0:  # none in the whole batch: nothing to match, and for estimates no tensor to look into
            nothing = torch.full(logits[one].shape[:2], logits.shape[2] - 1, device=logits.device)
            losses.append(nn.functional.cross_entropy(logits[one].transpose(1, 2), nothing) + 0 * boxes[one].sum())
            continue
        there = labels[number] != IGNORED
        target = {"class_labels": labels[number][there], "boxes": wanted[number][there]}
        losses.append(ForObjectDetectionLoss(logits[one], [target], logits.device, boxes[one], config)[0])
    return torch.stack(losses)


class BoxCounts:
    """A MetricAccumulator over all boxes of a split.

    Args:
        names: of the classes.
        most: M over all splits, the same on every rank.
        run: gives logits [B, Q, C + 1], boxes [B, Q, 4] and losses [B] for a batch.
    """

    def __init__(
        self, names: tuple[str, ...], most: int, run: Callable[[nn.Module, Batch], tuple[Tensor, Tensor, Tensor]]
    ) -> None:
        self._names, self._most, self._run = names, most, run
        self._samples = GatheredSamples(1 + _FIELDS * (MOST_FOUND + most))
        self._whole = torch.empty(0)

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Keep what was found and what there is of a batch, in each picture's own pixels."""
        with torch.no_grad():
            logits, boxes, losses = self._run(model, batch)
        found = best_boxes(logits, boxes).cpu().double()
        found[..., :4] *= batch["scale"].cpu()[:, None, None]
        held = torch.zeros(len(found), MOST_FOUND, _FIELDS, dtype=torch.float64)
        held[..., 4] = IGNORED
        held[:, : found.shape[1]] = found
        there = torch.zeros(len(found), self._most, _FIELDS, dtype=torch.float64)
        there[..., 4] = IGNORED
        objects = batch["labels"].shape[1]
        there[:, :objects, :4] = corner_first(batch["boxes"].cpu().double()) * batch["scale"].cpu()[:, None, None]
        there[:, :objects, 4] = batch["labels"].cpu().double()
        there[:, :objects, 5] = batch["crowds"].cpu().double()
        # A crowd has no label in the batch, since it is not learned; what kind it is stands in `crowds`.
        crowd = there[..., 5] > 0
        there[..., 4] = torch.where(crowd, there[..., 5] - 1, there[..., 4])
        rows = torch.cat([losses.cpu().double()[:, None], held.flatten(1), there.flatten(1)], dim=1)
        self._samples.add(batch[SLOT], rows)

    def merge(self, sum_over_ranks: SumOverRanks) -> None:
        """Every rank gets all of it."""
        self._whole = self._samples.merge(sum_over_ranks)

    def compute(self) -> dict[str, float]:
        """map (mean of the average precisions at overlaps 0.50 to 0.95, over the classes that occur), map_50 (at 0.50), loss (mean
        over pictures)."""
        found, there = self._whole[:, 1:].split(
            [_FIELDS * MOST_FOUND, _FIELDS * self._most] if self._most else [_FIELDS * MOST_FOUND, 0], dim=1
        )
        truth = list(_annotations(there.reshape(len(found), -1, _FIELDS)))
        if not any(not each["iscrowd"] for each in truth):
            raise DataError("no picture of the split has an object", hint="mAP needs boxes to find")
        scores = _evaluate(truth, list(_detections(found.reshape(len(found), -1, _FIELDS))), len(found), self._names)
        return {"map": scores[0], "map_50": scores[1], "loss": float(self._whole[:, 0].mean())}


def best_boxes(logits: Tensor, boxes: Tensor) -> Tensor:
    """x, y, width, height as parts of the picture, class and score of the surest boxes [B, at most 100, 6]."""
    scores, kinds = logits.softmax(dim=-1)[..., :-1].max(dim=-1)
    best = scores.topk(min(MOST_FOUND, scores.shape[1]), dim=1).indices
    rows = torch.cat([corner_first(boxes), kinds[..., None], scores[..., None]], dim=-1)
    return rows.gather(1, best[..., None].expand(-1, -1, _FIELDS))


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
