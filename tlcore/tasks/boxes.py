"""Pictures with boxes: tables with a column of objects, and COCO json files.

Owns reading them, and boxes as arrays. Called by `object_detection.py`.

A box is x, y, width, height in pixels from the upper left corner. Of COCO (Lin et al. 2014) what is taken is `images`, `categories`
and, of `annotations`, `bbox`, `category_id` and `iscrowd`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.data import MediaRows, Opener, class_names, fingerprint, read_media
from tlcore.errors import DataError
from tlcore.tasks.images import ENDINGS
from tlcore.tasks.telling import tell_once

_COCO: Final = ("images", "annotations", "categories")


@dataclass(frozen=True)
class Objects:
    """Of one picture: boxes [M, 4] float32, what each is [M] as an index into `BoxedPictures.values`, and which of them stand for a
    crowd [M], which is neither learned nor counted as missed."""

    boxes: npt.NDArray[np.float32]
    kinds: npt.NDArray[np.int64]
    crowds: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class BoxedPictures:
    """All samples at one place. `values`: the distinct categories; `names`: what numbers among them stand for, where data says so
    (`ClassLabel`)."""

    rows: MediaRows
    objects: tuple[Objects, ...]
    values: tuple[Any, ...]
    names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def most(self) -> int:
        """Objects of the picture that has most."""
        return max((len(each.kinds) for each in self.objects), default=0)


def read_boxes(place: str, image: str, objects: str, split: str) -> BoxedPictures:
    """The samples at a place: a COCO json file, or a table. Boxes without area are left out, which is said: COCO's own files have
    some.

    Args:
        image, objects: the table's columns.
        split: of a hub dataset that names none.

    Raises:
        DataError: nothing there, no such columns, boxes that are none, or all without area. StorageError.
    """
    if PurePosixPath(place).suffix.lower() == ".json" and (found := _as_coco(place)) is not None:
        return _read_coco(place, found, image)
    rows = read_media(place, [image], ENDINGS, others=[objects], split=split)
    numbers: dict[Any, int] = {}
    cells = rows.table.column(objects).to_pylist()
    each = tuple(
        _objects_of(cell, numbers, f"{place}, row {row + 1}, column {objects!r}") for row, cell in enumerate(cells)
    )
    _say_left_out(place, sum(len(cell["bbox"]) for cell in cells), each)
    return BoxedPictures(rows, each, tuple(numbers), class_names(rows.table, objects, "category"))


def _objects_of(cell: Any, numbers: dict[Any, int], where: str) -> Objects:
    if not isinstance(cell, dict) or cell.get("bbox") is None or cell.get("category") is None:
        raise DataError(f"{where} is not of the form {{bbox: [...], category: [...]}}", hint="give lists of both")
    boxes, categories = cell["bbox"], cell["category"]
    if len(boxes) != len(categories):
        raise DataError(f"{where} has {len(boxes)} boxes and {len(categories)} categories", hint="give one for each")
    return _objects(boxes, categories, [False] * len(boxes), numbers, where)


def _objects(
    boxes: Sequence[Any], categories: Iterable[Any], crowds: Sequence[bool], numbers: dict[Any, int], where: str
) -> Objects:
    for box in boxes:
        if not _is_box(box):
            raise DataError(
                f"{where}: box {box} is not x, y, width, height in pixels", hint="correct it, or take it out"
            )
    kept = [one for one in zip(boxes, categories, crowds, strict=True) if min(one[0][2:]) > 0]
    return Objects(
        np.array([box for box, _, _ in kept], dtype=np.float32).reshape(-1, 4),
        np.array([numbers.setdefault(category, len(numbers)) for _, category, _ in kept], dtype=np.int64),
        np.array([crowd for _, _, crowd in kept], dtype=np.bool_),
    )


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list) and len(box) == 4 and all(isinstance(one, int | float) and isfinite(one) for one in box)
    )


def _say_left_out(place: str, given: int, objects: Sequence[Objects]) -> None:
    """Of the boxes that are given those without area. Raises DataError where that is all of them."""
    left_out = given - sum(len(each.kinds) for each in objects)
    if left_out and left_out == given:
        raise DataError(
            f"{place}: none of its {given} boxes has a width and height above 0",
            hint="boxes are x, y, width, height in pixels",
        )
    if left_out:
        tell_once(f"{left_out} of {given} boxes of {place} have no width or height above 0 and were left out")


def _as_coco(place: str) -> dict[str, Any] | None:
    """None for a file that holds no single object with COCO's keys: it may be one object a line."""
    content = Opener().read(place)
    try:
        found = json.loads(content)
    except ValueError:
        return None
    if isinstance(found, dict) and all(isinstance(found.get(key), list) for key in _COCO[:2]):
        return found
    return None


def _read_coco(place: str, found: Mapping[str, Any], image: str) -> BoxedPictures:
    import pyarrow as pa

    try:
        name_of = {each["id"]: each["name"] for each in found.get("categories", [])}
        by_picture: dict[Any, list[Any]] = {each["id"]: [] for each in found["images"]}
        for each in found["annotations"]:
            by_picture[each["image_id"]].append(
                (each["bbox"], name_of.get(each["category_id"], each["category_id"]), bool(each.get("iscrowd", 0)))
            )
        files = [each["file_name"] for each in found["images"]]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{place} is no whole COCO file: {error!r} is missing",
            hint="annotations name their image_id and category_id",
        ) from error
    if not files:
        raise DataError(f"{place} has no images", hint="its list `images` is empty")
    numbers: dict[Any, int] = {each["name"]: at for at, each in enumerate(found.get("categories", []))}
    objects = tuple(
        _objects(*_columns(by_picture[each["id"]]), numbers, f"{place}, image {each['id']}") for each in found["images"]
    )
    _say_left_out(place, len(found["annotations"]), objects)
    digest = "\n".join(fingerprint(place))
    opener = Opener(_folder_of(place, files[0]))
    return BoxedPictures(MediaRows(place, pa.table({image: files}), digest, opener), objects, tuple(numbers))


def _columns(annotations: Sequence[tuple[Any, Any, bool]]) -> tuple[list[Any], list[Any], list[bool]]:
    return [one[0] for one in annotations], [one[1] for one in annotations], [one[2] for one in annotations]


def _folder_of(place: str, first: str) -> str:
    """Where a COCO file's pictures lie: beside it, in `images`, or as COCO itself has them, in a folder beside its own that is
    named like the end of the file (`annotations/instances_val2017.json`, `val2017/`)."""
    folders = list(_folders(place))
    for folder in folders:
        try:
            Opener(folder).read(first)
        except DataError:
            continue
        return folder
    raise DataError(f"{place}: its first picture {first!r} is nowhere", hint=f"looked in {', '.join(folders)}")


def _folders(place: str) -> Iterator[str]:
    folder, _, name = place.removeprefix("file://").rpartition("/")
    folder = folder or "."
    yield folder
    yield f"{folder}/images"
    yield f"{folder.rpartition('/')[0] or '.'}/{name.rpartition('.')[0].rpartition('_')[2]}"
