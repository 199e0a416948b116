"""Files with classes: the labelled pictures or sounds of one place.

Owns reading them and checking them before workers start. Opening and decoding is left to who knows what they are. Called by
classification of pictures, videos and sounds, by image embedding and anomaly detection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tlcore.data import MediaRows, bytes_read, read_media
from tlcore.data.media import MediaPlace, find_media
from tlcore.tasks.classes import MOST_CHECKED_BYTES, check_distinct
from tlcore.tasks.recent import Recent
from tlcore.tasks.sample_labels import SampleLabels, empty_cells
from tlcore.tasks.splits import Splits, given_places

if TYPE_CHECKING:
    from tlcore.recipe.data_schema import DataSection

_KEPT: Final = 4
"""Places kept per process: train, validation and test of one recipe, and one over. Bytes inside a table are kept with it."""


@dataclass(frozen=True)
class LabelledMedia:
    """All samples at one place: their files in `rows`, and their labels."""

    rows: MediaRows
    labels: SampleLabels

    def __len__(self) -> int:
        return len(self.rows)


_read: Recent[LabelledMedia] = Recent(_KEPT)


def read_labelled(
    data: DataSection, column: str, endings: Sequence[str], place: str | MediaPlace, split: str
) -> LabelledMedia:
    """The samples at a place. Raises as `read_media`."""
    empty = empty_cells(data.label, data.multi_label)
    rows = read_media(place, [column], endings, label=data.label, split=split, may_be_empty=empty)
    return LabelledMedia(rows, SampleLabels.read(rows.table, data.label, data.multi_label))


def labelled_splits(data: DataSection, column: str, endings: Sequence[str]) -> Splits[LabelledMedia]:
    """The splits of a task. A place is looked at once, and read if no task of this process has read it as it lies there now."""
    read: dict[tuple[str, str], LabelledMedia] = {}

    def remembered(place: str, split: str) -> LabelledMedia:
        if (place, split) not in read:
            found = find_media(place)
            key = (found.stamp(), split, column, tuple(endings), data.label, data.multi_label)
            read[place, split] = _read.get(key, lambda: read_labelled(data, column, endings, found, split))
        return read[place, split]

    return Splits(data, remembered)


def check_labelled_media(
    data: DataSection,
    column: str,
    endings: Sequence[str],
    check: Callable[[Sequence[Any], str], None] | None = None,
) -> None:
    """See that small places can be read, that their files on this machine are there, and their labels classes of the training
    data's. Raises DataError, StorageError.

    Args:
        check: takes a place's distinct labels and the place, instead of the rule that they are classes.
    """

    def distinct(split: str, place: str) -> SampleLabels | None:
        if bytes_read(place) > MOST_CHECKED_BYTES:
            return None
        found = read_labelled(data, column, endings, place, split)
        found.rows.check_present(column)
        return found.labels

    places = given_places(data)
    if check is None:
        check_distinct(data, places, distinct)
        return
    for split, place in places:
        if (labels := distinct(split, place)) is not None:
            check(labels.values, place)
