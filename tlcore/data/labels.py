"""Classes as people write them, and as numbers.

Owns the mapping between a label column and class indices. Called by classification tasks.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tlcore.errors import DataError

_PADDED = re.compile(r"0[0-9]{1,17}")
SHOWN = 10
"""How many classes a message lists at most."""


def find_label_names(values: Sequence[Any], given: Sequence[str] | None, where: str) -> tuple[str, ...]:
    """Class names in index order: those given, or the sorted distinct values of the training labels.

    Args:
        values: the distinct values of the training data's label column.
        given: `data.labels` of the recipe.
        where: what to call the column in a message.

    Raises:
        DataError: fewer than two classes, or labels that are numbers with a fraction.
    """
    if given is not None:
        return tuple(given)
    numbers = {_plain(value, where) for value in values}
    if len(numbers) < 2:
        only = f"the only one is {next(iter(numbers))!r}" if numbers else "there is none"
        raise DataError(
            f"{where}: a classifier needs at least two classes, and {only}", hint="check data.label and the file"
        )
    kinds = {isinstance(value, str) for value in numbers}
    ordered = sorted(numbers, key=str) if len(kinds) > 1 or True in kinds else sorted(numbers)
    return tuple(str(value) for value in ordered)


def encode_labels(values: Sequence[Any], names: Sequence[str], given: bool, where: str) -> npt.NDArray[np.int64]:
    """Class index of each distinct value.

    A value is a class name, or, where `data.labels` gives the names, the index of one.

    Raises:
        DataError: a value that is no class; says which there are, and the nearest one.
    """
    index_of = {name: index for index, name in enumerate(names)}
    return np.array([_index(_plain(value, where), index_of, given, where) for value in values], dtype=np.int64)


def _index(value: str | int, index_of: dict[str, int], given: bool, where: str) -> int:
    if str(value) in index_of:
        return index_of[str(value)]
    if given and isinstance(value, int):
        if 0 <= value < len(index_of):
            return value
        raise DataError(
            f"{where}: label {value} is outside 0..{len(index_of) - 1}, the range of the {len(index_of)} names in data.labels",
            hint="correct the data, or name every class in data.labels",
        )
    if isinstance(value, str) and (number := _number_of(value)) is not None:
        if str(number) in index_of:
            return index_of[str(number)]
        if given and 0 <= number < len(index_of):
            return number
    near = difflib.get_close_matches(str(value), index_of, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    origin = "data.labels" if given else "the training data"
    raise DataError(
        f"{where}: label {value!r} is none of the {len(index_of)} classes of {origin} ({_listed(list(index_of))}){meant}",
        hint="correct the data, or name every class in data.labels",
    )


def _number_of(text: str) -> int | None:
    """What earlier versions read in a csv's `True` and `007`: classes of older checkpoints are called so, and `data.labels` names
    such labels by their index."""
    if _PADDED.fullmatch(text):
        return int(text)
    return {"true": 1, "false": 0}.get(text.lower())


def _plain(value: Any, where: str) -> str | int:
    """Text or whole number; 1.0 is 1, since a csv column with a gap elsewhere is read as floats."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    raise DataError(
        f"{where}: label {value!r} is neither a text nor a whole number",
        hint="classes are names or whole numbers; check data.label",
    )


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
