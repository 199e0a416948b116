"""The classes of a recipe's label column, for every task whose samples have one: their names, and numbers for samples.

Owns what is common to classification of texts, pictures and sounds. What a label may look like is `data/labels.py`'s. Called by
those tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.data import encode_labels, find_files, find_label_names, hub_dataset, read_split
from tlcore.tasks.sample_labels import SampleLabels
from tlcore.tasks.splits import given_places

if TYPE_CHECKING:
    from tlcore.recipe.schema import DataSection

MOST_CHECKED_BYTES: Final = 256 << 20
"""Largest place that is read before workers start; what is larger, and hub datasets, the workers find faults in."""
ASSUMED: Final = ("0", "1")
"""Classes where no data is looked at: the memory of a trial hardly depends on them."""


class Classes:
    """Names in index order: those known from a checkpoint, those of `data.labels`, or the training data's, sorted.

    Args:
        facts: of an earlier `Task.facts()`, or None.
        training_values: gives the distinct labels of the training data.
    """

    def __init__(
        self, data: DataSection, facts: Mapping[str, Any] | None, training_values: Callable[[], Sequence[Any]]
    ) -> None:
        self._data, self._training_values = data, training_values
        self._known = None if facts is None else tuple(facts["labels"])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Raises DataError: no classes in the training data, or labels that cannot name any."""
        if self._known is not None:
            return self._known
        values = () if self._data.labels is not None else self._training_values()
        return find_label_names(values, self._data.labels, self._where(self._data.train))

    def encode(self, values: Sequence[Any], place: str) -> npt.NDArray[np.int64]:
        """Class index of each of these distinct values. Raises DataError."""
        return encode_labels(values, self.names, self._data.labels is not None, self._where(place))

    def as_config(self) -> dict[str, Any]:
        """What a transformers configuration calls the classes."""
        return {
            "num_labels": len(self.names),
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: index for index, name in enumerate(self.names)},
        }

    def answer(self, scores: Sequence[float]) -> dict[str, Any]:
        """A prediction: the likeliest class, its score, and every class's."""
        by_name = dict(zip(self.names, scores, strict=True))
        label = max(by_name, key=by_name.__getitem__)
        return {"label": label, "score": by_name[label], "scores": by_name}

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps of them."""
        return {"labels": list(self.names)}

    def _where(self, place: str) -> str:
        return f"{place}, column {self._data.label!r}"


def assumed_labels(data: DataSection) -> dict[str, Any]:
    """Facts for a task that is built without reading data."""
    return {"labels": list(data.labels or ASSUMED)}


def check_labelled(
    data: DataSection, places: Sequence[tuple[str, str]], others: Sequence[str], texts: Sequence[str]
) -> None:
    """Read the label column and `others` of small places, and see that every label is a class of the training data's.

    Args:
        places: (split, place), the training one first.
        texts: which of the columns must be text.

    Raises DataError, StorageError.
    """

    def distinct(split: str, place: str) -> Sequence[Any] | None:
        if size_bytes(place) > MOST_CHECKED_BYTES:
            return None
        table = read_split(place, [*others, data.label], texts=texts, split=split).data.table
        return SampleLabels.read(table.column(data.label), data.multi_label).values

    check_distinct(data, places, distinct)


def check_distinct(
    data: DataSection, places: Sequence[tuple[str, str]], distinct: Callable[[str, str], Sequence[Any] | None]
) -> None:
    """See that every label is a class of the training data's. Raises DataError, and what `distinct` raises.

    Args:
        places: (split, place), the training one first.
        distinct: the labels of a split and place, each once; None for a place that is not looked at.
    """
    names = data.labels
    for split, place in places:
        values = distinct(split, place)
        if values is None:
            continue
        where = f"{place}, column {data.label!r}"
        if names is None or split == "train":
            names = find_label_names(values, data.labels, where)
        encode_labels(values, names, data.labels is not None, where)


def checked_places(data: DataSection) -> list[tuple[str, str]]:
    """(split, place) of what is small enough to be read before workers start."""
    return [each for each in given_places(data) if size_bytes(each[1]) <= MOST_CHECKED_BYTES]


def size_bytes(place: str) -> float:
    """Of all files at a place; a hub dataset's is not known before it is fetched."""
    return float("inf") if hub_dataset(place) else sum(file.size_bytes for file in find_files(place))
