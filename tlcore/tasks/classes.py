"""The classes of a recipe's label column, for every task whose samples have one: their names, and numbers for samples.

Owns what is common to classification of texts, pictures and sounds. What a label may look like is `data/labels.py`'s. Called by
those tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.data import encode_labels, find_files, find_label_names, hub_dataset, read_split
from tlcore.data.labels import SHOWN
from tlcore.errors import DataError
from tlcore.tasks.regression import numbers_of
from tlcore.tasks.sample_labels import Labels, SampleLabels, empty_cells
from tlcore.tasks.splits import given_places
from tlcore.tasks.telling import tell_once

if TYPE_CHECKING:
    from tlcore.recipe.data_schema import DataSection

MOST_CHECKED_BYTES: Final = 256 << 20
"""Largest place that is read before workers start; what is larger, and hub datasets, the workers find faults in."""
ASSUMED: Final = ("0", "1")
"""Classes where no data is looked at: the memory of a trial hardly depends on them."""


class Classes:
    """Names in index order: those known from a checkpoint, those of `data.labels`, those that the training data gives its numbers
    (`ClassLabel`), or the labels of the training data, sorted.

    Args:
        facts: of an earlier `Task.facts()`, or None.
        training_labels: gives the labels of the training data.
    """

    def __init__(
        self, data: DataSection, facts: Mapping[str, Any] | None, training_labels: Callable[[], Labels]
    ) -> None:
        self._data, self._training_labels = data, training_labels
        self._known = None if facts is None else NamedClasses.known(facts)

    @property
    def names(self) -> tuple[str, ...]:
        """Raises DataError: no classes in the training data, or labels that cannot name any."""
        return self._found.names

    @cached_property
    def _found(self) -> NamedClasses:
        if self._known is not None:
            return self._known
        if self._data.labels is not None:
            return NamedClasses(tuple(self._data.labels))
        return _found_in(self._training_labels(), self._where(self._data.train))

    def encode(self, labels: Labels, place: str) -> npt.NDArray[np.int64]:
        """Class index of each distinct one. Raises DataError."""
        return self._found.encode(labels, self._data, self._where(place))

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
        return self._found.facts()

    def _where(self, place: str) -> str:
        return f"{place}, column {self._data.label!r}"


@dataclass(frozen=True)
class NamedClasses:
    """Classes in index order. `numbered`: the training data had their numbers, so that a number in data that says nothing of its
    meaning is one of those."""

    names: tuple[str, ...]
    numbered: bool = False

    @classmethod
    def known(cls, facts: Mapping[str, Any]) -> NamedClasses:
        """Those of an earlier `facts`."""
        return cls(tuple(facts["labels"]), bool(facts.get("numbered", False)))

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps of them."""
        return {"labels": list(self.names), **({"numbered": True} if self.numbered else {})}

    def encode(self, labels: Labels, data: DataSection, where: str) -> npt.NDArray[np.int64]:
        """Class index of each distinct label. Raises DataError."""
        if data.labels is not None:
            return encode_labels(labels.values, self.names, True, where)
        meaning = labels.names or (self.names if self.numbered else None)
        values = labels.values if meaning is None else [self._meant(value, meaning, where) for value in labels.values]
        return encode_labels(values, self.names, False, where)

    def _meant(self, value: Any, meaning: Sequence[str], where: str) -> Any:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int):
            return value
        if not 0 <= value < len(meaning):
            raise DataError(
                f"{where}: label {value} is outside 0..{len(meaning) - 1}, the range of its {len(meaning)} classes",
                hint="a published test split often has -1 for labels that are kept back; name another split",
            )
        # A checkpoint from before names were read calls its classes by their numbers.
        return value if meaning[value] not in self.names and str(value) in self.names else meaning[value]


def _found_in(labels: Labels, where: str) -> NamedClasses:
    """The classes of training data. Raises DataError."""
    if labels.names is not None and len(labels.names) > 1:
        return NamedClasses(labels.names, numbered=True)
    return NamedClasses(find_label_names(labels.values, None, where))


def assumed_labels(data: DataSection) -> dict[str, Any]:
    """Facts for a task that is built without reading data."""
    return {} if data.regression else {"labels": list(data.labels or ASSUMED)}


def check_labelled(
    data: DataSection, places: Sequence[tuple[str, str]], others: Sequence[str], texts: Sequence[str]
) -> None:
    """Read the label column and `others` of small places, and see that every label is a class of the training data's, or a number.

    Args:
        places: (split, place), the training one first.
        texts: which of the columns must be text.

    Raises DataError, StorageError.
    """

    def distinct(split: str, place: str) -> Labels | None:
        if size_bytes(place) > MOST_CHECKED_BYTES:
            return None
        empty = empty_cells(data.label, data.multi_label)
        table = read_split(place, [*others, data.label], texts=texts, split=split, may_be_empty=empty).data.table
        return SampleLabels.read(table, data.label, data.multi_label)

    check_distinct(data, places, distinct)


def check_distinct(
    data: DataSection, places: Sequence[tuple[str, str]], distinct: Callable[[str, str], Labels | None]
) -> None:
    """See that every label is a class of the training data's, or with `data.regression` a number. Raises DataError, and what
    `distinct` raises.

    Args:
        places: (split, place), the training one first.
        distinct: the labels of a split and place; None for a place that is not looked at.
    """
    classes = None if data.labels is None else NamedClasses(tuple(data.labels))
    trained: npt.NDArray[np.int64] | None = None
    for split, place in places:
        labels = distinct(split, place)
        if labels is None:
            continue
        if data.regression and isinstance(labels, SampleLabels):
            numbers_of(labels, place, data.label)
            continue
        where = f"{place}, column {data.label!r}"
        if classes is None:
            classes = _found_in(labels, where)
        class_of = classes.encode(labels, data, where)
        if isinstance(labels, SampleLabels) and not data.multi_label:
            counts = labels.counts(class_of, len(classes.names))
            if split == "train":
                trained = counts
            elif split == "test" and trained is not None:  # of validation the workers tell, who hold it out
                tell_unseen(split, place, classes.names, counts, trained)


def tell_unseen(
    split: str, place: str, names: Sequence[str], counts: npt.NDArray[np.int64], trained: npt.NDArray[np.int64]
) -> None:
    """Say which classes samples of a split have and no training sample has; nothing where there are none.

    Args:
        counts, trained: samples of each class, in the split and in training.
    """
    unseen = np.flatnonzero((counts > 0) & (trained == 0))
    if len(unseen):
        shown = ", ".join(f"{names[index]!r} ({counts[index]})" for index in unseen[:SHOWN])
        more = f", and {len(unseen) - SHOWN} more" if len(unseen) > SHOWN else ""
        tell_once(f"{split} samples of {place} have classes that no training sample has: {shown}{more}")


def checked_places(data: DataSection) -> list[tuple[str, str]]:
    """(split, place) of what is small enough to be read before workers start."""
    return [each for each in given_places(data) if size_bytes(each[1]) <= MOST_CHECKED_BYTES]


def size_bytes(place: str) -> float:
    """Of all files at a place; a hub dataset's is not known before it is fetched."""
    return float("inf") if hub_dataset(place) else sum(file.size_bytes for file in find_files(place))
