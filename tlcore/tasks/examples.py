"""A few samples of a split as people wrote them, to show what a trained model answers.

Owns that reading. Called by the tasks' `examples`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tlcore.data import class_names, read_split
from tlcore.tasks.sample_labels import empty_cells, named

if TYPE_CHECKING:
    from tlcore.recipe.data_schema import DataSection


def plain_examples(
    data: DataSection, split: str, count: int, given: str, expected: str | None, *, texts: bool = True
) -> list[tuple[Any, Any]]:
    """(cell of column `given`, cell of column `expected`, None without one) of the first `count` samples of a split with a place of
    its own; none of a split that is held out of another. `texts`: whether `given` must be text."""
    place = {"train": data.train, "validation": data.validation, "test": data.test}[split]
    if not isinstance(place, str):
        return []
    columns = [given] if expected is None else [given, expected]
    empty = empty_cells(data.label, data.multi_label)
    found = read_split(place, columns, texts=[given] if texts else [], split=split, may_be_empty=empty)
    rows = found.select(range(min(count, len(found))))
    if expected is None:
        return [(cell, None) for cell in rows[given]]
    names = class_names(found.data.table, expected) if data.labels is None else None
    return [(cell, named(label, names)) for cell, label in zip(rows[given], rows[expected], strict=True)]
