"""YOLOX's loss: which places answer for which object (SimOTA), and how far they are off.

Source: Ge et al. 2021, arXiv:2107.08430, section 2.1 and its authors' code: a place may answer for an object if it lies inside the
object's box or within 2.5 strides of its centre; the cost is that of class plus 3 times that of the overlap; an object gets as many
places as its 10 best overlaps add up to, the cheapest, those both inside and central before all others; a place wanted by several
objects goes to the cheapest. Loss: 5 (1 - IoU^2) for boxes, binary cross entropy for objectness, and for classes with the IoU as
target, all over the number of answering places of the batch. Called by `yolo.py`.

Everything is computed with masks over all places, so that shapes depend on the labels' shapes alone.

Shapes: B images, A places, C classes, G objects of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_convert, box_iou

Labels = dict[str, Tensor]
"""`class_labels` [G] and `boxes` [G, 4], centre and size over the image's."""

CENTRAL_STRIDES, CANDIDATES, OVERLAP_WEIGHT, BOX_WEIGHT = 2.5, 10, 3.0, 5.0
USUAL_ANSWERS = 5
"""Places that answer for an object, where there is none to count them by: its 10 best overlaps are then one half each."""
_APART = 1e5
_NEVER = 1e9
_SMALLEST = 1e-8


@dataclass(frozen=True)
class Places:
    """Corners [A, 2] of all maps' cells in cells, and strides [A] in pixels."""

    cells: Tensor
    strides: Tensor

    @classmethod
    def of(cls, sizes: Sequence[Sequence[int]], strides: Sequence[int], device: torch.device) -> Places:
        """Of maps of these heights and widths, row by row."""
        cells, each = [], []
        for (height, width), stride in zip(sizes, strides, strict=True):
            rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            cells.append(torch.stack([columns, rows], dim=-1).reshape(-1, 2))
            each.append(torch.full((height * width,), stride))
        return cls(torch.cat(cells).float().to(device), torch.cat(each).float().to(device))

    @property
    def centres(self) -> Tensor:
        """[A, 2] in pixels."""
        return (self.cells + 0.5) * self.strides.unsqueeze(-1)

    def decode(self, raw: Tensor) -> Tensor:
        """Boxes [B, A, 4] as centre and size in pixels, of the head's values."""
        strides = self.strides.unsqueeze(-1)
        return torch.cat([(raw[..., :2] + self.cells) * strides, raw[..., 2:].exp() * strides], dim=-1)


def detection_loss(
    raw: Tensor, boxes: Tensor, places: Places, labels: Sequence[Labels], size: Tensor
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """The loss, its parts, and the loss of each image by itself [B], over its own number of answering places; where it has none,
    over the number usual for its objects, or for one.

    Args:
        raw: [B, A, 4 + 1 + C], the head's values.
        boxes: [B, A, 4], decoded, in pixels.
        labels: one per image.
        size: [4], width, height, width, height of the images in pixels.

    Raises:
        ValueError: labels of another number of images, of another form, or a class that there is not.
    """
    if len(labels) != len(raw):
        raise ValueError(f"there are labels of {len(labels)} images for a batch of {len(raw)}")
    # 0, but it has gradients for all that was computed, also where no image has an object: ZeRO-3 waits for each of them
    sums = {name: raw.sum() * 0 for name in ("box", "objectness", "class")}
    answering, images = raw.new_zeros(()), []
    for values, found, label in zip(raw, boxes, labels, strict=True):
        target = _targets(label, values.shape[-1] - 5, size)
        one = _image_loss(values, found, places, *target)
        here = one.pop("answering", raw.new_zeros(()))
        answering = answering + here
        for name, part in one.items():
            sums[name] = sums[name] + part
        whole = BOX_WEIGHT * one.pop("box", 0.0) + sum(one.values()) + values.sum() * 0
        images.append(whole / torch.where(here > 0, here, USUAL_ANSWERS * max(len(target[0]), 1)))
    parts = {name: total / answering.clamp(min=1) for name, total in sums.items()}
    return BOX_WEIGHT * parts["box"] + parts["objectness"] + parts["class"], parts, torch.stack(images)


def _targets(label: Labels, classes: int, size: Tensor) -> tuple[Tensor, Tensor]:
    """Classes [G] and boxes [G, 4] in pixels."""
    kinds, boxes = label["class_labels"].to(size.device), label["boxes"].to(size.device, size.dtype)
    if boxes.dim() != 2 or boxes.shape[1] != 4 or kinds.shape != boxes.shape[:1]:
        raise ValueError(
            f"a label has boxes {list(boxes.shape)} and class_labels {list(kinds.shape)}; give [objects, 4] and [objects]"
        )
    return kinds.long().clamp(0, classes - 1) if _fake(kinds) else _checked(kinds.long(), classes), boxes * size


def _fake(values: Tensor) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(values, FakeTensor)


def _checked(kinds: Tensor, classes: int) -> Tensor:
    if kinds.numel() and not 0 <= int(kinds.min()) <= int(kinds.max()) < classes:
        raise ValueError(f"a label has classes from {int(kinds.min())} to {int(kinds.max())}; there are {classes}")
    return kinds


def _image_loss(raw: Tensor, boxes: Tensor, places: Places, kinds: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Sums of one image."""
    objectness, logits = raw[:, 4], raw[:, 5:]
    if not len(kinds):
        nothing = functional.binary_cross_entropy_with_logits(objectness, torch.zeros_like(objectness), reduction="sum")
        return {"objectness": nothing}
    with torch.no_grad():
        answers = assign(raw, boxes, places, kinds, targets)
        here = answers.any(dim=0)
        whose = answers.float().argmax(dim=0)
    overlap = _paired_iou(boxes, targets[whose])
    wanted = functional.one_hot(kinds[whose], logits.shape[-1]) * overlap.detach().unsqueeze(-1)
    each_class = functional.binary_cross_entropy_with_logits(logits, wanted.to(logits.dtype), reduction="none").sum(-1)
    return {
        "box": ((1 - overlap.square()) * here).sum(),
        "objectness": functional.binary_cross_entropy_with_logits(objectness, here.to(raw.dtype), reduction="sum"),
        "class": (each_class * here).sum(),
        "answering": here.sum(),
    }


def assign(raw: Tensor, boxes: Tensor, places: Places, kinds: Tensor, targets: Tensor) -> Tensor:
    """[G, A], true where a place answers for an object; each place for one at most.

    Args:
        raw, boxes: of one image, [A, 4 + 1 + C] and [A, 4] in pixels.
        kinds, targets: [G] and [G, 4] in pixels.
    """
    offsets = (places.centres - targets[:, None, :2]).abs()
    inside = (offsets < targets[:, None, 2:] / 2).all(dim=-1)
    central = (offsets < CENTRAL_STRIDES * places.strides[:, None]).all(dim=-1)
    candidates = (inside | central).any(dim=0)
    overlaps = box_iou(box_convert(targets, "cxcywh", "xyxy"), box_convert(boxes, "cxcywh", "xyxy")) * candidates
    likely = (raw[:, 5:].sigmoid() * raw[:, 4:5].sigmoid()).sqrt().clamp(_SMALLEST, 1 - 1e-6)
    class_cost = (-(1 - likely).log()).sum(-1) + ((1 - likely).log() - likely.log()).T[kinds]
    cost = class_cost - OVERLAP_WEIGHT * (overlaps + _SMALLEST).log() + _APART * ~(inside & central)
    cost = cost.masked_fill(~candidates, _NEVER)
    best = overlaps.topk(min(CANDIDATES, overlaps.shape[1]), dim=1).values
    wanted = best.sum(dim=1).int().clamp(min=1)
    ranks = cost.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    answers = (ranks < wanted.unsqueeze(1)) & candidates
    cheapest = functional.one_hot(cost.argmin(dim=0), len(kinds)).T.bool()
    contested = answers.sum(dim=0) > 1
    return torch.where(contested, cheapest, answers)


def _paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """[A] of boxes [A, 4] as centre and size."""
    first, second = box_convert(boxes, "cxcywh", "xyxy"), box_convert(others, "cxcywh", "xyxy")
    low, high = torch.maximum(first[:, :2], second[:, :2]), torch.minimum(first[:, 2:], second[:, 2:])
    common = (high - low).clamp(min=0).prod(dim=1)
    return common / (boxes[:, 2:].prod(dim=1) + others[:, 2:].prod(dim=1) - common + _SMALLEST)
