"""Data that is too large for every process's memory: on the node's disk, made once by one of its processes, mapped by all.

Owns when that is (`are_large`), the two kinds of it, tables of the columns asked for and arrays made of them, and where they lie
(`storage/shelf.py`). Does not know what they mean. Called by `reading.py`, and by tasks with what they prepare.

A rank, and each trial after the other, would otherwise read and tokenize all of the data for itself and hold it: eight ranks on a
node eight times. Mapped, it takes the page cache that they share, and what does not fit there is read again from the disk. Who
makes it holds a block at a time (`growing.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from tlcore.data.files import DataFile
from tlcore.data.formats import filesystem, tables_of
from tlcore.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

HELD_BYTES: Final = 256 << 20
"""So much of a place every process holds in memory by itself."""
_PACKED: Final = 4
"""Bytes in memory for one of a packed file, roughly."""
_UNUSED_S: Final = 7 * 24 * 3600.0
_FACTS: Final = "facts.json"

Arrays = TypeVar("Arrays")


def are_large(files: Sequence[DataFile]) -> bool:
    """Whether these files are mapped from the node's disk instead of held."""
    packed = (file.size_bytes * (_PACKED if file.is_gzipped or file.format == "parquet" else 1) for file in files)
    return sum(packed) > HELD_BYTES


def is_held(table: pa.Table) -> bool:
    """Whether what is made of this table is held, too."""
    return bool(table.nbytes <= HELD_BYTES)


def tables_on_node(url: str, files: Sequence[DataFile], columns: Sequence[str]) -> list[pa.Table]:
    """The columns of each file, mapped from this node's disk.

    Raises DataError: as `formats.tables_of` does, or the disk cannot be written; StorageError.
    """
    import pyarrow as pa

    def fill(folder: Path) -> None:
        opened = filesystem(url)
        for number, file in enumerate(files):
            tables = tables_of(opened, file, columns)
            first = next(tables)
            # a stream: in Arrow's files all blocks of a column of categories would need the same ones
            with (
                pa.OSFile(str(folder / f"{number:06d}.arrow"), "wb") as out,
                pa.ipc.new_stream(out, first.schema) as sink,
            ):
                sink.write_table(first)
                for table in tables:
                    sink.write_table(table)

    content = [url, *(f"{file.path} {file.size_bytes} {file.stamp}" for file in files), *columns]
    folder = _shelved(f"table-{_digest([*content, *_made_by('pyarrow')])}", fill, url)
    parts = sorted(folder.glob("*.arrow"))
    return [pa.ipc.open_stream(pa.memory_map(str(part))).read_all() for part in parts]


def arrays_on_node(kind: type[Arrays], content: Sequence[object], place: str, make: Callable[[], Arrays]) -> Arrays:
    """What `make` gives, its arrays mapped from this node's disk; `make` is called by one process of the node, once.

    Args:
        kind: a dataclass of arrays, numbers, None and such dataclasses.
        content: everything that the result depends on, the versions of packages apart.
        place: where the data is from, for messages.

    Raises DataError: the disk cannot be written; what `make` raises.
    """

    def fill(folder: Path) -> None:
        facts: dict[str, Any] = {}
        _write(make(), folder, "", facts)
        (folder / _FACTS).write_text(json.dumps(facts))

    made_by = _made_by("transformers", "tokenizers", "numpy")
    name = f"{kind.__name__.lower()}-{_digest([kind.__qualname__, *map(repr, content), *made_by])}"
    folder = _shelved(name, fill, place)
    found: Arrays = _read(kind, folder, "", json.loads((folder / _FACTS).read_text()))
    return found


def data_shelf() -> Path:
    """Where this node keeps data."""
    from tlcore.storage.shelf import node_shelf

    return node_shelf("data")


def _shelved(name: str, fill: Callable[[Path], None], place: str) -> Path:
    from tlcore.storage.shelf import shelved

    try:
        return shelved(data_shelf(), name, fill, unused_s=_UNUSED_S)
    except OSError as error:
        raise no_room(place, error) from error


def no_room(what: str, error: OSError) -> DataError:
    """That the node's disk does not take what is too large for the memory."""
    return DataError(
        f"{what} is too large to be held in memory, and cannot be kept on this node's disk in {data_shelf()}: {error}",
        hint="free space there, or let HOME be where there is room",
    )


def _made_by(*packages: str) -> list[str]:
    """What another version of would make something else of the same data."""
    return [f"{package} {version(package)}" for package in ("tlcore", *packages)]


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _write(value: Any, folder: Path, name: str, facts: dict[str, Any]) -> None:
    for field in dataclasses.fields(value):
        inner, each = f"{name}{field.name}", getattr(value, field.name)
        if dataclasses.is_dataclass(each):
            facts[inner] = None
            _write(each, folder, f"{inner}.", facts)
        elif isinstance(each, np.ndarray):
            facts[inner] = None
            np.save(folder / f"{inner}.npy", each, allow_pickle=False)
        else:
            facts[inner] = {"is": each}


def _read(kind: Any, folder: Path, name: str, facts: dict[str, Any]) -> Any:
    types, values = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        inner, declared = f"{name}{field.name}", types[field.name]
        inside = next((one for one in (declared, *typing.get_args(declared)) if dataclasses.is_dataclass(one)), None)
        if facts[inner] is not None:
            values[field.name] = facts[inner]["is"]
        elif inside is not None:
            values[field.name] = _read(inside, folder, f"{inner}.", facts)
        else:
            # as a plain array: slices of numpy's own class for mapped ones take three times as long
            values[field.name] = np.asarray(np.load(folder / f"{inner}.npy", mmap_mode="r", allow_pickle=False))
    return kind(**values)
