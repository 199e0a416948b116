"""What detectors give and how they are taught: transformers' DETR kind, and YOLOX with whatever backbone.

Owns the two ways from a batch to boxes and to the loss of each picture; `detector_of` tells them apart by the configuration. Called
by `object_detection.py`. Losses are such that their mean by weight does not depend on how pictures are spread over ranks and
micro-batches. DETR's of a picture is over its own objects, and every picture weighs once.

YOLOX's is a sum over thousands of places, most of them empty. Published, a batch's sum is divided by its places that answer for
objects (`yolo_loss.py`), which are known only after each rank's pass; over a picture's own, one without objects would outweigh all
others. So a picture's sum is divided by its own answering places, and it weighs as many times as it has objects: where objects have
equally many places, that is the published loss, and the objects of the global batch are known ahead, as what DETR's authors divide
by (arXiv:2005.12872, `num_boxes`). A picture without objects counts as one with one, which has the usual number of places. Over
objects alone the loss would rise in training, since an object gets more places the better the boxes are.

Shapes: B pictures, Q boxes that the model gives of each, C classes, M objects of the picture that has most, K boxes found.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from torch import Tensor, nn

from tlcore.errors import ModelError
from tlcore.tasks.base import IGNORED, Batch
from tlcore.tasks.detection_metrics import FIELDS, MOST_FOUND, corner_first
from tlcore.tasks.logits import inputs_of

if TYPE_CHECKING:
    from tlcore.models.families.yolo_loss import Labels

_PICTURES: Final = ("pixel_values", "pixel_mask")
_ANY_SCORE: Final = 1e-3
"""From which a YOLOX box counts in an evaluation, as its authors have it: average precision looks at unsure ones too."""


class Detector(Protocol):
    """A kind of detector. `multiple`: pixels of which the side of its pictures must be one; `by_objects`: a picture weighs as many
    times as it has objects in the mean loss, and once if it has none; else each weighs once."""

    multiple: int
    by_objects: bool

    def find(self, model: nn.Module, pictures: Batch) -> Tensor:
        """x, y, width, height as parts of the square, class and score of the surest boxes [B, K, 6], at most 100; the class of
        what is no box is `IGNORED`."""

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of each picture times its weight [B], and no boxes, which training has no use for."""

    def run(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Both, from one pass."""


class Detr:
    """Carion et al. 2020, arXiv:2005.12872, and what answers likewise (YOLOS, Table Transformer)."""

    multiple = 1
    by_objects = False

    def find(self, model: nn.Module, pictures: Batch) -> Tensor:
        """As `Detector.find`."""
        outputs = self._outputs(model, pictures)
        return best_boxes(outputs.logits.float(), outputs.pred_boxes.float())

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """As `Detector.losses`."""
        outputs = self._outputs(model, batch)
        return box_losses(outputs.logits.float(), outputs.pred_boxes.float(), batch, _plain(model).config)

    def run(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """As `Detector.run`."""
        outputs = self._outputs(model, batch)
        logits, boxes = outputs.logits.float(), outputs.pred_boxes.float()
        return best_boxes(logits, boxes), box_losses(logits, boxes, batch, _plain(model).config)

    def _outputs(self, model: nn.Module, pictures: Batch) -> Any:
        takes = inspect.signature(_plain(model).forward).parameters
        return model(**inputs_of(model, {name: pictures[name] for name in _PICTURES if name in takes}))


class Yolox:
    """Ge et al. 2021, arXiv:2107.08430, as in `models/families/yolo.py`, and its heads on other networks (`dense.py` there)."""

    multiple = 32
    by_objects = True

    def find(self, model: nn.Module, pictures: Batch) -> Tensor:
        """As `Detector.find`."""
        return self._best(model, self._outputs(model, pictures, None))

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """As `Detector.losses`."""
        return _by_objects(self._outputs(model, batch, _labels(batch)).image_losses, batch)

    def run(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """As `Detector.run`."""
        outputs = self._outputs(model, batch, _labels(batch))
        return self._best(model, outputs), _by_objects(outputs.image_losses, batch)

    def _outputs(self, model: nn.Module, pictures: Batch, labels: list[Labels] | None) -> Any:
        given = inputs_of(model, {"pixel_values": pictures["pixel_values"]})
        return model(**given, labels=labels)

    @torch.no_grad()
    def _best(self, model: nn.Module, outputs: Any) -> Tensor:
        found: Tensor = outputs.pred_boxes.new_zeros(len(outputs.logits), MOST_FOUND, FIELDS)
        found[..., 4] = IGNORED
        kept = _plain(model).post_process_object_detection(outputs, _ANY_SCORE)
        for at, one in enumerate(kept):
            boxes, kinds, scores = (one[name][:MOST_FOUND] for name in ("boxes", "labels", "scores"))
            rows = [boxes[:, :2], boxes[:, 2:] - boxes[:, :2], kinds[:, None], scores[:, None]]
            found[at, : len(scores)] = torch.cat(rows, dim=1)
        return found


_KINDS: Final[dict[str, type[Detr] | type[Yolox]]] = {
    **dict.fromkeys(("detr", "yolos", "table-transformer"), Detr),
    **dict.fromkeys(("tlcore-yolox", "tlcore-torchvision", "tlcore-efficientnet-lite"), Yolox),
}
"""By `model_type`. RT-DETR, Deformable DETR and their kin judge each class by itself, and learn by other losses."""


def detector_of(config: Any) -> Detector:
    """The kind that a configuration is of. Raises ModelError: none that is known here."""
    if config.model_type not in _KINDS:
        raise ModelError(
            f"a model of type {config.model_type!r} is no detector that can be trained here",
            hint=f"take one of type {', '.join(_KINDS)}; a classifier of torchvision (torchvision:resnet50) becomes one's backbone",
        )
    return _KINDS[config.model_type]()


def box_losses(logits: Tensor, boxes: Tensor, batch: Batch, config: Any) -> Tensor:
    """Loss of each picture [B] as DETR's authors define it: the boxes given are matched to the objects at least cost, and pay for
    class, distance and overlap; a picture's loss is over its own number of objects.

    Args:
        logits: [B, Q, C + 1], the last for no object.
        boxes: centre x, y, width, height as parts of the picture [B, Q, 4].
        batch: with `boxes` [B, M, 4] likewise and `labels` [B, M], `IGNORED` where there is none.
        config: the model's, with the weights of the parts.
    """
    from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

    losses = []
    for number, target in enumerate(_labels(batch)):
        one = slice(number, number + 1)
        if batch["labels"].shape[1] == 0:  # none in the whole batch: for estimates there is no tensor to look into
            nothing = torch.full(logits[one].shape[:2], logits.shape[2] - 1, device=logits.device)
            losses.append(nn.functional.cross_entropy(logits[one].transpose(1, 2), nothing) + 0 * boxes[one].sum())
            continue
        here = {name: tensor.to(logits.device) for name, tensor in target.items()}
        losses.append(ForObjectDetectionLoss(logits[one], [here], logits.device, boxes[one], config)[0])
    return torch.stack(losses)


def best_boxes(logits: Tensor, boxes: Tensor) -> Tensor:
    """As `Detector.find`, of logits [B, Q, C + 1] and boxes [B, Q, 4] of the DETR kind."""
    scores, kinds = logits.softmax(dim=-1)[..., :-1].max(dim=-1)
    best = scores.topk(min(MOST_FOUND, scores.shape[1]), dim=1).indices
    rows = torch.cat([corner_first(boxes), kinds[..., None], scores[..., None]], dim=-1)
    return rows.gather(1, best[..., None].expand(-1, -1, FIELDS))


def _labels(batch: Batch) -> list[Labels]:
    """What there is in each picture, as both losses take it."""
    found = []
    for labels, boxes in zip(batch["labels"], batch["boxes"], strict=True):
        there = labels != IGNORED if len(labels) else slice(None)  # nothing to look into where memory is counted
        found.append({"class_labels": labels[there], "boxes": boxes[there]})
    return found


def _by_objects(losses: Tensor, batch: Batch) -> Tensor:
    """Each picture's loss [B] as many times as it has objects, and once if it has none."""
    return losses * (batch["labels"] != IGNORED).sum(dim=1).clamp(min=1).to(losses.device)


def _plain(model: nn.Module) -> Any:
    return getattr(model, "module", model)
