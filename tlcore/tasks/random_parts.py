"""Which part of a picture a training sample shows, drawn from a generator that is given.

Owns the draws; cutting and scaling are torchvision's, whose own random transforms draw from torch's global generator alone: batches
are made beside the training step, which draws from that. Called by `images.py` and `detection_images.py`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, TypeVar

from tlcore.tasks.base import Draws

if TYPE_CHECKING:
    from torchvision.tv_tensors import TVTensor

    Shown = TypeVar("Shown", bound=TVTensor)

_TRIES: Final = 10
_RATIOS: Final = (3 / 4, 4 / 3)
"""Width over height of a part, least and most."""


def random_part(
    height: int, width: int, least_share: float, draws: Draws, ratios: tuple[float, float] = _RATIOS
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a part that is `least_share` to all of a picture, by area, of any shape between `ratios`; the
    largest such part from the middle where none fits after some tries (Szegedy et al. 2015, as torchvision does it)."""
    for _ in range(_TRIES):
        area = height * width * _between(least_share, 1.0, draws)
        ratio = math.exp(_between(math.log(ratios[0]), math.log(ratios[1]), draws))
        part = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < part[0] <= height and 0 < part[1] <= width:
            return _whole(height - part[0], draws), _whole(width - part[1], draws), *part
    ratio = min(max(width / height, ratios[0]), ratios[1])
    part = min(height, round(width / ratio)), min(width, round(height * ratio))
    return (height - part[0]) // 2, (width - part[1]) // 2, *part


def vary_together(
    shown: tuple[Shown, ...], size: tuple[int, int], least_share: float, draws: Draws
) -> tuple[Shown, ...]:
    """The same random part of each (a picture, its mask, its boxes), brought to `size` (height, width), in half of all cases as its
    mirror image."""
    from torchvision.transforms.v2 import functional as pixels_of

    height, width = pixels_of.get_size(shown[0])
    top, left, *part = random_part(height, width, least_share, draws)
    cut = tuple(pixels_of.resized_crop(each, top, left, *part, list(size), antialias=True) for each in shown)
    if _between(0.0, 1.0, draws) >= 0.5:
        return cut
    return tuple(pixels_of.horizontal_flip(each) for each in cut)


def _between(least: float, most: float, draws: Draws) -> float:
    import torch

    return least + (most - least) * torch.rand((), generator=draws).item()


def _whole(most: int, draws: Draws) -> int:
    """0 to `most`."""
    import torch

    return int(torch.randint(most + 1, (), generator=draws))
