"""The three splits of a recipe's data: which place each is read from, and which of its samples belong to it.

Owns that mapping and the holding out of validation samples, by rows of the data where a row gives several of them: what one is
judged by must not be learned from another. Reads nothing itself. Called by every task, each with its own way of reading a place.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from tlcore.data import hold_out
from tlcore.errors import DataError

if TYPE_CHECKING:
    from tlcore.recipe.data_schema import DataSection

Read = TypeVar("Read", bound=Sized)


@dataclass(frozen=True)
class Split(Generic[Read]):
    """`read` is all that lies at `place`; the samples of this split are its `rows`, ascending."""

    place: str
    read: Read
    rows: npt.NDArray[np.int64]

    def rows_of(self, indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Rows in `read` of these samples of the split."""
        return self.rows[np.asarray(indices, dtype=np.int64)]


class Splits(Generic[Read]):
    """`splits["train"]`: prepared when first asked for, then kept.

    Args:
        read: gives all samples at a place; the second argument is the split of a hub dataset that names none. It should remember:
            training and held-out samples come from one place.

    Raises (on access): DataError, also where the recipe names no such data; what `read` raises.
    """

    def __init__(self, data: DataSection, read: Callable[[str, str], Read]) -> None:
        self._data, self._read = data, read
        self._splits: dict[str, Split[Read]] = {}

    def __getitem__(self, name: str) -> Split[Read]:
        if name not in self._splits:
            self._splits[name] = self._make(name)
        return self._splits[name]

    def read_training_place(self) -> Read:
        """All samples where the training samples are: what the classes are found from."""
        return self._read(self._data.train, "train")

    def _make(self, name: str) -> Split[Read]:
        data = self._data
        held_out = isinstance(data.validation, float)
        place = {"train": data.train, "validation": data.train if held_out else data.validation, "test": data.test}[
            name
        ]
        if place is None:
            raise DataError(f"the recipe names no {name} data", hint=f"set data.{name}")
        read = self._read(str(place), "train" if held_out and name == "validation" else name)
        rows = np.arange(len(read), dtype=np.int64)
        if isinstance(data.validation, float) and name != "test":
            kept, held = self._hold_out(read, data.validation)
            rows = kept if name == "train" else held
        return Split(str(place), read, rows)

    def _hold_out(self, read: Read, share: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Samples to train on and samples held out, both ascending. Raises DataError where there would be none."""
        return hold_out(len(read), share)


class HeldByRow(Sized, Protocol):
    """Samples of which reading has chosen those to hold out."""

    @property
    def held(self) -> npt.NDArray[np.bool_] | None:
        """Which they are; None where any may be."""


ReadByRow = TypeVar("ReadByRow", bound=HeldByRow)


class RowSplits(Splits[ReadByRow]):
    """Splits that hold out whole rows of the data, where a row gives several samples."""

    def _hold_out(self, read: ReadByRow, share: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        if read.held is None:
            return super()._hold_out(read, share)
        return np.flatnonzero(~read.held), np.flatnonzero(read.held)


def held_share(data: DataSection, place: str) -> float | None:
    """The share of a place's rows that is held out for validation; None where none is."""
    return data.validation if isinstance(data.validation, float) and place == data.train else None


def given_places(data: DataSection) -> list[tuple[str, str]]:
    """(split, place) of every split that has a place of its own, the training one first."""
    places = (("train", data.train), ("validation", data.validation), ("test", data.test))
    return [(split, place) for split, place in places if isinstance(place, str)]
