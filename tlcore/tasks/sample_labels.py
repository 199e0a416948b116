"""The labels of samples as they stand in a column: one each, or any number.

Owns telling samples' labels apart and, once the classes are known, their numbers. What a label may be called is `data/labels.py`'s,
which classes there are `classes.py`'s. Called by tasks that choose classes of pictures and sounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from tlcore.data import class_names
from tlcore.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

BETWEEN: Final = "|"
"""Between classes in a cell of text, with `data.multi_label`."""


class Labels(Protocol):
    """The labels of one place."""

    @property
    def values(self) -> tuple[Any, ...]:
        """Each distinct one, as it stands in the data."""

    @property
    def names(self) -> tuple[str, ...] | None:
        """What numbers among them stand for, where the data says so (`ClassLabel`)."""


@dataclass(frozen=True)
class SampleLabels:
    """`values`: the distinct labels; sample i has `values[index[offsets[i]:offsets[i + 1]]]`. `names` as in `Labels`. `rows`: where
    each sample stands in its table; None where all of it was read."""

    values: tuple[Any, ...]
    index: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    names: tuple[str, ...] | None = None
    rows: npt.NDArray[np.int64] | None = None

    @classmethod
    def read(
        cls, table: pa.Table, column: str, multi_label: bool, rows: npt.NDArray[np.int64] | None = None
    ) -> SampleLabels:
        """Of a table's column of labels; with `multi_label` of lists, or of texts with `|` between labels, either of which may be
        empty.

        Args:
            rows: which samples' labels, in which order; None for all.

        Raises DataError: lists of labels without `multi_label`.
        """
        names = class_names(table, column)
        chosen = table.column(column)
        cells = (chosen if rows is None else chosen.take(rows)).combine_chunks()
        if not multi_label:
            _check_single(cells, column)
            encoded = cells.dictionary_encode()
            index = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
            return cls(
                tuple(encoded.dictionary.to_pylist()), index, np.arange(len(cells) + 1, dtype=np.int64), names, rows
            )
        numbers: dict[Any, int] = {}
        each = [[numbers.setdefault(label, len(numbers)) for label in _labels(cell)] for cell in cells.to_pylist()]
        offsets = np.cumsum([0, *(len(some) for some in each)], dtype=np.int64)
        return cls(
            tuple(numbers), np.array([one for some in each for one in some], dtype=np.int64), offsets, names, rows
        )

    def one_of(self, rows: npt.NDArray[np.int64], class_of: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Class of each row [B], where each has one label.

        Args:
            class_of: class of each of `values`.
        """
        return class_of[self.index[rows]]

    def first_row(self, value: int) -> int:
        """Row of the table, from 1, where the one of `values` with this number first stands; each sample has one label."""
        sample = int(np.flatnonzero(self.index == value)[0])
        return (sample if self.rows is None else int(self.rows[sample])) + 1

    def counts(
        self, class_of: npt.NDArray[np.int64], classes: int, rows: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.int64]:
        """How many samples have each class [C], where each has one label: of these rows, or of all."""
        index = self.index if rows is None else self.index[rows]
        return np.bincount(class_of[index], minlength=classes)

    def any_of(
        self, rows: npt.NDArray[np.int64], class_of: npt.NDArray[np.int64], classes: int
    ) -> npt.NDArray[np.int64]:
        """1 for each class of each row, else 0 [B, C]."""
        found = np.zeros((len(rows), classes), dtype=np.int64)
        for place, row in enumerate(rows):
            found[place, class_of[self.index[self.offsets[row] : self.offsets[row + 1]]]] = 1
        return found


def empty_cells(column: str, multi_label: bool) -> list[str]:
    """The label column, where a sample may have none: an empty cell is then the empty set."""
    return [column] if multi_label else []


def _check_single(cells: pa.Array, column: str) -> None:
    import pyarrow as pa

    if pa.types.is_nested(cells.type):
        raise DataError(
            f"column {column!r} holds {cells.type} where a sample has one label",
            hint="where samples have any number of labels, as lists, set data.multi_label: true",
            column=column,
        )


def _labels(cell: Any) -> list[Any]:
    if cell is None:
        return []
    if isinstance(cell, str):
        return [part for part in (each.strip() for each in cell.split(BETWEEN)) if part]
    return cell if isinstance(cell, list) else [cell]


def named(cell: Any, names: Sequence[str] | None) -> Any:
    """A label, or a list of them, with the name of each number that has one."""
    if names is None:
        return cell
    if isinstance(cell, list):
        return [named(one, names) for one in cell]
    return names[cell] if isinstance(cell, int) and 0 <= cell < len(names) else cell
