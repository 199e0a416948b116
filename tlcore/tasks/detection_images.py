"""Pictures and their boxes as detectors take them.

Owns bringing both to one square: the picture keeps its sides' ratio, fills the square's upper left and is followed by nothing,
also where the source is a classifier, which crops; and the random variations of training pictures with their boxes. Called by
`object_detection.py`.

Shapes: S the square's side, M objects of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

from tlcore.tasks.base import Draws
from tlcore.tasks.images import as_tensor
from tlcore.tasks.random_parts import vary_together

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from tlcore.models import ModelSource

_SMALLEST_PART: Final = 0.3
"""Of a picture's area that a random part of it has."""
_SMALLEST_SIDE: Final = 1.0
"""Pixels that a box must keep in a random part to stay."""


class DetectionImages:
    """The image processor of a source, set to squares.

    Args:
        image_size: `data.image_size` of the recipe: S in pixels, or the longer side of the source's own.
    """

    def __init__(self, source: ModelSource, image_size: Literal["auto"] | int) -> None:
        self._source, self._wanted = source, image_size

    @cached_property
    def processor(self) -> Any:
        """As it is exported, so that it does the same to a picture. Raises ModelError."""
        processor = self._source.load_preprocessor("AutoImageProcessor")
        own = dict(processor.size)
        if not hasattr(processor, "post_process_object_detection"):
            own = dict(processor.crop_size) if getattr(processor, "do_center_crop", None) else own
            processor = _for_boxes(processor)
        side = max(own.values()) if self._wanted == "auto" else self._wanted
        processor.size = {"max_height": side, "max_width": side}
        processor.do_pad, processor.pad_size = True, {"height": side, "width": side}
        return processor

    @property
    def side(self) -> int:
        """S."""
        return int(self.processor.pad_size["height"])

    def shape(self, picture: Image) -> Tensor:
        """Resized, uint8 [3, h, w], the longer of which is S."""
        found = self.processor(
            images=[as_tensor(picture)],
            do_rescale=False,
            do_normalize=False,
            do_pad=False,
            input_data_format="channels_first",
            return_tensors="pt",
        )
        pixels: Tensor = found["pixel_values"][0]
        return pixels

    def finish(self, pixels: Sequence[Tensor]) -> dict[str, Tensor]:
        """`pixel_values` fp32 [B, 3, S, S] and `pixel_mask` int64 [B, S, S], 1 where the picture is."""
        found = self.processor(
            images=list(pixels), do_resize=False, input_data_format="channels_first", return_tensors="pt"
        )
        return {"pixel_values": found["pixel_values"], "pixel_mask": found["pixel_mask"].long()}

    def largest(self, samples: int) -> dict[str, Tensor]:
        """Pictures of nothing."""
        import torch

        side = self.side
        return {
            "pixel_values": torch.zeros(samples, 3, side, side),
            "pixel_mask": torch.ones(samples, side, side, dtype=torch.int64),
        }


def _for_boxes(processor: Any) -> Any:
    """A detector's processor with the values that a classifier's gives its pictures."""
    from transformers import YolosImageProcessor

    kept = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "resample")
    return YolosImageProcessor(**{name: getattr(processor, name) for name in kept if hasattr(processor, name)})


def vary(pixels: Tensor, boxes: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """A random part, 30 % to all of a picture, brought to its size, in half of all cases as its mirror image.

    Args:
        pixels: uint8 [3, h, w].
        boxes: x, y, width, height in its pixels [M, 4].

    Returns the same, and which boxes are left [M]; those that are not have any numbers.
    """
    import torch
    from torchvision.tv_tensors import BoundingBoxes, Image

    size = (int(pixels.shape[1]), int(pixels.shape[2]))
    named: Any = BoundingBoxes(boxes, format="XYWH", canvas_size=size)
    varied = vary_together((Image(pixels), named), size, _SMALLEST_PART, draws)
    moved = varied[1].as_subclass(torch.Tensor)
    return varied[0].as_subclass(torch.Tensor), moved, (moved[:, 2:] >= _SMALLEST_SIDE).all(dim=1)
