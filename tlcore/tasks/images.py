"""Pictures as models take them.

Owns decoding, the model's own image processor, the random variations of training pictures, and what of a split's pictures is kept
decoded. Where pictures lie is `data/media.py`'s; what stands beside them, the tasks'. Called by the tasks of pictures and videos.

Pictures are opened when a batch needs them, and then kept as bytes per pixel, as far as `HELD_BYTES` go: 3,500 pictures of 224
pixels square. A larger split is read again in each epoch, which costs reading and decoding but no memory.

Shapes: B samples of a micro-batch, H and W the pixels that the model takes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from tlcore.data import MediaRows, Opener
from tlcore.errors import DataError
from tlcore.tasks.base import Draws
from tlcore.tasks.random_parts import vary_together
from tlcore.tasks.recent import Held
from tlcore.tasks.sample_labels import named

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image
    from torch import Tensor

    from tlcore.models import ModelSource

ENDINGS: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
HELD_BYTES: Final = 512 << 20
"""Decoded pictures kept per process."""
_PREDICT_BATCH: Final = 32
_LEAST_PART: Final = 0.08
_ROOM: Final = 2
"""Pictures to be cropped at random are kept with a shorter side of so many times the model's: a quarter is still sharp."""


class Prepared(NamedTuple):
    """What is kept of a picture: its pixels as they were prepared, and its width and height as it lies there."""

    pixels: Tensor
    size: tuple[int, int]


_held: Held[Prepared] = Held(HELD_BYTES, lambda kept: kept.pixels.numel() * kept.pixels.element_size())


class ImageModel:
    """The image processor of a source.

    Args:
        image_size: `data.image_size` of the recipe: pixels, or the source's own.
        crops: leave off the margin that the source's processor leaves off; else the whole picture is brought to the size.
    """

    def __init__(self, source: ModelSource, image_size: Literal["auto"] | int, crops: bool = True) -> None:
        self._source, self._wanted, self._crops = source, image_size, crops

    @cached_property
    def processor(self) -> Any:
        """With the sizes that this recipe trains at. Raises ModelError."""
        processor = self._source.load_preprocessor("AutoImageProcessor")
        set_sizes(processor, self._wanted)
        if not self._crops and getattr(processor, "do_center_crop", None):
            processor.size, processor.do_center_crop = dict(processor.crop_size), False
        return processor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        processor = self.processor
        found = processor.crop_size if getattr(processor, "do_center_crop", None) else processor.size
        return int(found["height"]), int(found["width"])

    @property
    def key(self) -> str:
        """Same for pictures prepared alike."""
        return str(self.processor.to_json_string())

    def shape(self, picture: Image) -> Tensor:
        """Resized and cropped as for evaluation, uint8 [3, H, W]."""
        return self._run([picture], do_rescale=False, do_normalize=False, **self._plain_values)[0]

    def finish(self, pixels: Sequence[Tensor]) -> Tensor:
        """Values as the model takes them, fp32 [B, 3, H, W], of uint8 [3, H, W] each."""
        return self._run(list(pixels), do_resize=False, do_center_crop=False, input_data_format="channels_first")

    def _run(self, pictures: Sequence[Any], **settings: Any) -> Tensor:
        values: Tensor = self.processor(pictures, return_tensors="pt", **settings)["pixel_values"]
        return values.flatten(0, 1) if values.ndim == 5 else values  # a processor of videos takes them as frames of one

    @cached_property
    def _plain_values(self) -> dict[str, Any]:
        # EfficientNet's processor divides by the deviation a second time, whatever do_normalize says.
        return {"include_top": False} if hasattr(self.processor, "include_top") else {}

    def batches(self, inputs: Sequence[Any]) -> Iterator[Tensor]:
        """Inputs of a prediction (paths, URLs of the store, files' bytes), some at a time, [B, 3, H, W]. Raises DataError,
        StorageError."""
        for start in range(0, len(inputs), _PREDICT_BATCH):
            yield self.finish(
                [self.shape(picture) for picture in pictures_given(inputs[start : start + _PREDICT_BATCH])]
            )

    def largest(self, samples: int) -> Tensor:
        """Pictures of nothing, fp32 [B, 3, H, W]."""
        import torch

        return torch.zeros(samples, 3, *self.size)

    def shrink(self, picture: Image) -> Tensor:
        """What random crops are taken of: the whole picture, not larger than they need it, uint8 [3, h, w]."""
        shorter, most = min(picture.size), _ROOM * max(self.size)
        if shorter > most:
            width, height = (max(most, round(side * most / shorter)) for side in picture.size)
            picture = picture.resize((width, height))
        return as_tensor(picture)

    def vary(self, pixels: Tensor, draws: Draws, *masks: Tensor) -> list[Tensor]:
        """A random part, 8 % to all of a picture, brought to the model's size, in half of all cases as its mirror image (Szegedy et
        al. 2015). uint8 [3, h, w] to uint8 [3, H, W]; and the same part of its masks, [1, h, w] to [1, H, W]."""
        import torch
        from torchvision.tv_tensors import Image, Mask

        shown = (Image(pixels), *(Mask(mask) for mask in masks))
        return [each.as_subclass(torch.Tensor) for each in vary_together(shown, self.size, _LEAST_PART, draws)]


def set_sizes(processor: Any, image_size: Literal["auto"] | int) -> None:
    """Bring a processor to `image_size` pixels square, keeping the share that its crop leaves off; and have one that only knows the
    shorter side crop a square."""
    size: dict[str, int] = dict(processor.size)
    crop: dict[str, int] = dict(processor.crop_size) if getattr(processor, "do_center_crop", None) else {}
    own = int((crop or size).get("height") or size["shortest_edge"])
    wanted = own if image_size == "auto" else image_size
    if image_size != "auto":
        scaled = {side: round(pixels * wanted / own) for side, pixels in size.items()}
        processor.size = scaled if crop or "shortest_edge" in size else {"height": wanted, "width": wanted}
    if crop or "shortest_edge" in size:
        processor.do_center_crop = True
        height, width = (crop["height"], crop["width"]) if crop and image_size == "auto" else (wanted, wanted)
        processor.crop_size = {"height": height, "width": width}


def decode(content: bytes, name: str) -> Image:
    """A picture in RGB, turned upright, what is transparent white, of 16 bits the upper 8. Raises DataError."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        picture = _eight_bits(ImageOps.exif_transpose(Image.open(io.BytesIO(content))), name)
        if picture.has_transparency_data:
            above = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
        return picture.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0][:200]
        raise DataError(
            f"{name} cannot be read as a picture: {reason}", hint="replace the file, or take its row out"
        ) from error


def _eight_bits(picture: Image, name: str) -> Image:
    """A picture of grey levels in 16 bits, or in floats from 0 to 1, in 8, where PIL would cut all above 255 off. Raises
    DataError: other floats, numbers of 32 bits."""
    import numpy as np
    from PIL import Image

    if picture.mode not in ("I", "F") and not picture.mode.startswith("I;16"):
        return picture
    levels = np.asarray(picture)
    least, most = levels.min(), levels.max()
    upper = 1 if picture.mode == "F" else 65535
    if not (least >= 0 and most <= upper):  # and no NaN
        raise DataError(
            f"{name} has grey levels from {least:g} to {most:g}, which are not of 0 to {upper}",
            hint="write it with 8 or 16 bits a channel",
        )
    if picture.mode == "F":
        levels = (levels * 255).round()
    elif picture.mode != "I" or most > 255:
        levels = levels >> 8
    return Image.fromarray(levels.astype(np.uint8))


def as_tensor(picture: Image) -> Tensor:
    """uint8 [3, h, w]."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    pixels: Tensor = pil_to_tensor(picture)
    return pixels


def held_pictures(
    rows: MediaRows, column: str, indices: npt.NDArray[np.int64], how: str, prepare: Callable[[Image], Tensor]
) -> list[Tensor]:
    """Pixels of `prepared_pictures`, alone."""
    return [each.pixels for each in prepared_pictures(rows, column, indices, how, prepare)]


def prepared_pictures(
    rows: MediaRows, column: str, indices: npt.NDArray[np.int64], how: str, prepare: Callable[[Image], Tensor]
) -> list[Prepared]:
    """What `prepare` makes of these rows' pictures, from what is kept where it is there.

    Args:
        how: names the preparation: what is kept is known by it.

    Raises DataError, StorageError.
    """

    def make(absent: Sequence[int]) -> list[Prepared]:
        import torch

        def open_one(content: bytes, row: int) -> Prepared:
            picture = decode(content, rows.name(column, row))
            return Prepared(prepare(picture), picture.size)

        # As many at a time as this process has processors: decoded they are large, and decoding leaves Python to other threads.
        with ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="pictures") as threads:
            return list(threads.map(open_one, rows.read(column, absent), absent))

    return _held.get((rows.digest, column, how), [int(row) for row in indices], make)


def pictures_given(inputs: Sequence[Any]) -> list[Image]:
    """Decoded inputs of a prediction: paths, URLs of the store, or files' bytes. Raises DataError, StorageError."""
    opener = Opener()
    for number, each in enumerate(inputs):
        if not isinstance(each, str | bytes | dict):
            raise DataError(
                f"input {number} is {each!r}, not a picture", hint="give a path, an s3:// URL, or a file's bytes"
            )
    contents = opener.read_all(inputs)
    return [
        decode(content, each if isinstance(each, str) else f"input {number}")
        for number, (content, each) in enumerate(zip(contents, inputs, strict=True))
    ]


def picture_examples(
    rows: MediaRows, column: str, count: int, expected: str, names: Sequence[str] | None = None
) -> list[tuple[Any, Any]]:
    """(path or URL, cell of column `expected`) of the first `count` samples that are files of their own.

    Args:
        names: what numbers in `expected` stand for.
    """
    first = range(min(count, len(rows)))
    shown = ((rows.opener.path_of(rows.cell(column, row)), rows.cell(expected, row)) for row in first)
    return [(path, named(cell, names)) for path, cell in shown if path is not None]
