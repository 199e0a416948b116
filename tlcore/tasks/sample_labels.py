"""The labels of samples as they stand in a column: one each, or any number.

Owns telling samples' labels apart and, once the classes are known, their numbers. What a label may be called is `data/labels.py`'s,
which classes there are `classes.py`'s. Called by tasks that choose classes of pictures and sounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

BETWEEN: Final = "|"
"""Between classes in a cell of text, with `data.multi_label`."""


@dataclass(frozen=True)
class SampleLabels:
    """`values`: the distinct labels; sample i has `values[index[offsets[i]:offsets[i + 1]]]`."""

    values: tuple[Any, ...]
    index: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]

    @classmethod
    def read(cls, column: pa.ChunkedArray, multi_label: bool) -> SampleLabels:
        """Of a column of labels; with `multi_label` of lists, or of texts with `|` between labels, either of which may be empty."""
        cells = column.combine_chunks()
        if not multi_label:
            encoded = cells.dictionary_encode()
            index = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
            return cls(tuple(encoded.dictionary.to_pylist()), index, np.arange(len(cells) + 1, dtype=np.int64))
        numbers: dict[Any, int] = {}
        each = [[numbers.setdefault(label, len(numbers)) for label in _labels(cell)] for cell in cells.to_pylist()]
        offsets = np.cumsum([0, *(len(some) for some in each)], dtype=np.int64)
        return cls(tuple(numbers), np.array([one for some in each for one in some], dtype=np.int64), offsets)

    def one_of(self, rows: npt.NDArray[np.int64], class_of: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Class of each row [B], where each has one label.

        Args:
            class_of: class of each of `values`.
        """
        return class_of[self.index[rows]]

    def any_of(
        self, rows: npt.NDArray[np.int64], class_of: npt.NDArray[np.int64], classes: int
    ) -> npt.NDArray[np.int64]:
        """1 for each class of each row, else 0 [B, C]."""
        found = np.zeros((len(rows), classes), dtype=np.int64)
        for place, row in enumerate(rows):
            found[place, class_of[self.index[self.offsets[row] : self.offsets[row + 1]]]] = 1
        return found


def _labels(cell: Any) -> list[Any]:
    if isinstance(cell, str):
        return [part for part in (each.strip() for each in cell.split(BETWEEN)) if part]
    return cell if isinstance(cell, list) else [cell]
