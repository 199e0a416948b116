"""The labelled pictures of a recipe's splits, as batches.

Owns what classification, embedding and anomaly detection of pictures share: which samples a split has, their pictures in the
model's form, varied where that is asked for, and their labels. Called by those tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tlcore.tasks.base import Draws
from tlcore.tasks.images import ENDINGS, ImageModel, held_pictures, picture_examples
from tlcore.tasks.labelled_media import check_labelled_media, labelled_splits
from tlcore.tasks.splits import given_places

if TYPE_CHECKING:
    from torch import Tensor

    from tlcore.models import ModelSource
    from tlcore.recipe.data_schema import DataSection


class LabelledPictures:
    """`splits` are the recipe's, `image` the source's image processor."""

    def __init__(self, data: DataSection, source: ModelSource) -> None:
        self._data = data
        self.image = ImageModel(source, data.image_size)
        self.splits = labelled_splits(data, data.image_column, ENDINGS)

    def check(self, labels: Callable[[Sequence[Any], str], None] | None = None) -> None:
        """As `Task.check_data`.

        Args:
            labels: takes the distinct labels of a place and the place, where they need not be classes of the training data's.
        """
        check_labelled_media(self._data, self._data.image_column, ENDINGS, labels)

    def lengths(self, split: str) -> npt.NDArray[np.int32]:
        """As `Task.lengths`: pictures are all of one size."""
        return np.ones(len(self.splits[split].rows), dtype=np.int32)

    def pixels(self, split: str, rows: npt.NDArray[np.int64], draws: Draws) -> Tensor:
        """Pictures of these rows of the split's place, fp32 [B, 3, H, W]; training pictures varied where the recipe says so."""
        if split != "train" or not self._data.augment:
            return self.plain_pixels(split, rows)
        read, column, image = self.splits[split].read.rows, self._data.image_column, self.image
        whole = held_pictures(read, column, rows, f"whole, for {image.size}", image.shrink)
        return image.finish([image.vary(pixels, draws)[0] for pixels in whole])

    def plain_pixels(self, split: str, rows: npt.NDArray[np.int64]) -> Tensor:
        """The same without any variation."""
        read, column, image = self.splits[split].read.rows, self._data.image_column, self.image
        return image.finish(held_pictures(read, column, rows, image.key, image.shape))

    def examples(self, split: str, count: int) -> list[tuple[Any, Any]]:
        """As `Task.examples`."""
        if split not in dict(given_places(self._data)):
            return []
        read, data = self.splits[split].read, self._data
        names = read.labels.names if data.labels is None else None
        return picture_examples(read.rows, data.image_column, count, data.label, names)
