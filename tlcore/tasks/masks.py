"""Masks: pictures whose pixels are class numbers.

Owns reading them, bringing them to a picture's size, and what of them is kept. Called by `image_segmentation.py`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from tlcore.data import MediaRows
from tlcore.errors import DataError
from tlcore.tasks.recent import Held, Recent

if TYPE_CHECKING:
    from torch import Tensor

NOTHING: Final = 255
"""Class number of a pixel that counts nowhere."""
HELD_BYTES: Final = 256 << 20
"""Masks kept per process, a byte a pixel: half of what pictures take."""
_AT_A_TIME: Final = 64
_LOOKED_AT: Final = 200
"""Masks in which a class beside 0 must turn up, where there is a 255."""
_FIRST: Final = 8
"""So many of them at a time: of right masks the first few have one."""
_held: Held[Tensor] = Held(HELD_BYTES, lambda tensor: tensor.numel())
_largest: Recent[int] = Recent(4)


def decode_mask(content: bytes, name: str) -> npt.NDArray[np.uint8]:
    """Class numbers [h, w]. Raises DataError: no picture, one in colours, or a number above 255."""
    from PIL import Image, UnidentifiedImageError

    try:
        mask = np.asarray(Image.open(io.BytesIO(content)))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} cannot be read as a picture: {error}", hint="replace the file") from error
    if mask.ndim != 2 or (mask.size and (mask.max() > NOTHING or mask.min() < 0)):
        what = f"has {mask.shape[-1]} values per pixel" if mask.ndim != 2 else f"holds {mask.min()} to {mask.max()}"
        raise DataError(
            f"{name} is no mask: it {what}",
            hint="a mask is a PNG of one class number per pixel, 0 to 254, 255 for none",
        )
    return mask.astype(np.uint8)


def held_masks(
    rows: MediaRows,
    column: str,
    indices: npt.NDArray[np.int64],
    how: str,
    sizes: Sequence[tuple[int, ...]],
    classes: int,
) -> list[Tensor]:
    """Masks of these rows, uint8 [1, h, w] each.

    Args:
        how: how the pictures were prepared, which settles the sizes.
        sizes: height and width of each.
        classes: how many there are; a larger number in a mask is an error.

    Raises DataError, StorageError.
    """
    size_of = {int(row): size for row, size in zip(indices, sizes, strict=True)}

    def make(absent: Sequence[int]) -> list[Tensor]:
        contents = rows.read(column, absent)
        return [
            _prepare(content, rows.name(column, row), size_of[row], classes)
            for content, row in zip(contents, absent, strict=True)
        ]

    return _held.get((rows.digest, column, how, classes), [int(row) for row in indices], make)


def largest_class(rows: MediaRows, column: str) -> int:
    """The largest class number of all masks, -1 where no pixel has a class; reads them all, once per process."""
    return _largest.get((rows.digest, column), lambda: _find_largest(rows, column))


def _find_largest(rows: MediaRows, column: str) -> int:
    largest = -1
    for start in range(0, len(rows), _AT_A_TIME):
        some = range(start, min(start + _AT_A_TIME, len(rows)))
        for content, row in zip(rows.read(column, some), some, strict=True):
            mask = decode_mask(content, rows.name(column, row))
            largest = max(largest, int(mask[mask != NOTHING].max(initial=0)) if (mask != NOTHING).any() else -1)
    return largest


def check_numbered(rows: MediaRows, column: str) -> None:
    """See that masks are not written as 0 and 255, black and white, of which 255 would count nowhere: any model that says 0
    everywhere were perfect. Reads the first masks, until one has a class beside 0. Raises DataError, StorageError."""
    marked = False
    for start in range(0, min(_LOOKED_AT, len(rows)), _FIRST):
        some = range(start, min(start + _FIRST, len(rows)))
        for content, row in zip(rows.read(column, some), some, strict=True):
            mask = decode_mask(content, rows.name(column, row))
            if ((mask > 0) & (mask < NOTHING)).any():
                return
            marked = marked or bool((mask == NOTHING).any())
    if marked:
        raise DataError(
            f"{rows.place}, column {column!r}: the first masks hold only 0 and 255, and 255 means no class",
            hint="write the object as 1; masks hold class numbers",
        )


def _prepare(content: bytes, name: str, size: tuple[int, ...], classes: int) -> Tensor:
    import torch
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    mask = decode_mask(content, name)
    known = mask[mask != NOTHING]
    if known.size and known.max() >= classes:
        raise DataError(
            f"{name} has class {known.max()}, but there are {classes} classes, 0 to {classes - 1}",
            hint="correct the mask, or name every class in data.labels",
        )
    whole = torch.from_numpy(mask)[None]
    resized: Tensor = resize(whole, list(size), interpolation=InterpolationMode.NEAREST_EXACT)
    return resized
