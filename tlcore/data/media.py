"""Samples that are files: pictures, sounds and videos, named in a table or lying in a folder.

Owns finding them (the rows of a place, what stands beside them) and opening their bytes; knows nothing of what is in them, nor
what a label means. Called by the tasks of pictures and of sound.

A place is either a table (csv, jsonl, parquet, a hub dataset) with a column of paths, URLs, bytes or Hugging Face's
`{bytes, path}`; or a folder, on this machine or `s3://`, whose files lie in one folder per class. Files are opened when they are
asked for, never copied to local disk: a split may be larger than the machine's memory. Bytes inside a table are held with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from tlcore.data.files import FORMATS, find_files, fingerprint, hub_dataset, suffix
from tlcore.data.reading import read_split
from tlcore.errors import DataError, ObjectMissing

if TYPE_CHECKING:
    import pyarrow as pa

    from tlcore.storage.base import ObjectStore

READERS: Final = 16
"""Objects of the store read at a time: one picture's request is nearly all waiting."""
_SHOWN: Final = 5


class Opener:
    """Opens what a cell names; keeps the store's clients.

    Args:
        folder: what relative paths begin at, a directory or an `s3://` prefix; None: there are none.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder
        self._stores: dict[str, ObjectStore] = {}

    def path_of(self, cell: Any) -> str | None:
        """Where a cell's file lies, a URL of the store or a path; None where the cell holds the bytes themselves."""
        if isinstance(cell, dict):
            cell = cell["path"] if cell.get("bytes") is None else cell["bytes"]
        if not isinstance(cell, str):
            return None
        if cell.startswith("s3://"):
            return cell
        plain = cell.removeprefix("file://")
        if "://" in plain:
            raise DataError(
                f"nothing is known of {plain.partition('://')[0]}:// (in {cell})", hint="give s3:// or a path"
            )
        if self._folder is None or Path(plain).expanduser().is_absolute():
            return str(Path(plain).expanduser())
        return f"{self._folder}/{plain}"

    def read(self, cell: Any) -> bytes:
        """The bytes of one cell: a path, a URL of the store, bytes, or `{bytes, path}`.

        Raises DataError (nothing there, not such a cell), StorageError.
        """
        path = self.path_of(cell)
        if path is None:
            content = cell.get("bytes") if isinstance(cell, dict) else cell
            if not isinstance(content, bytes | bytearray | memoryview):
                raise DataError(
                    f"{cell!r} is neither a path nor a file's bytes", hint="give a path, an s3:// URL, or bytes"
                )
            return bytes(content)
        try:
            return self._from_store(path) if path.startswith("s3://") else Path(path).read_bytes()
        except (OSError, ObjectMissing) as error:
            reason = error.strerror if isinstance(error, OSError) else "no such object"
            beside = f"; relative paths begin at {self._folder}" if self._folder else ""
            raise DataError(f"cannot read {path}: {reason}", hint=f"correct the path{beside}", path=path) from error

    def read_all(self, cells: Sequence[Any]) -> list[bytes]:
        """The bytes of several cells, objects of the store side by side."""
        if len(cells) > 1 and any((self.path_of(cell) or "").startswith("s3://") for cell in cells):
            with ThreadPoolExecutor(min(READERS, len(cells))) as pool:
                return list(pool.map(self.read, cells))
        return [self.read(cell) for cell in cells]

    def _from_store(self, url: str) -> bytes:
        from tlcore.storage import open_store

        bucket, _, key = url.removeprefix("s3://").partition("/")
        if bucket not in self._stores:
            self._stores[bucket] = open_store(f"s3://{bucket}")
        return self._stores[bucket].get(key)


@dataclass(frozen=True)
class MediaRows:
    """All samples at one place, in file order. `table` has the columns asked for; `digest` tells their content (hex): of a
    table its own and not that of the files it names, of a folder every file's name, size and time."""

    place: str
    table: pa.Table
    digest: str
    opener: Opener = field(repr=False)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def cell(self, column: str, row: int) -> Any:
        """What stands in the table."""
        return self.table.column(column)[int(row)].as_py()

    def read(self, column: str, rows: Iterable[int]) -> list[bytes]:
        """The bytes of these rows' files. Raises DataError, StorageError."""
        return self.opener.read_all([self.cell(column, row) for row in rows])

    def name(self, column: str, row: int) -> str:
        """What to call a sample's file in a message."""
        cell = self.cell(column, row)
        path = self.opener.path_of(cell) if isinstance(cell, str | dict) else None
        return path or f"{self.place}, row {row + 1}"

    def check_present(self, column: str, most: int = 10_000) -> None:
        """See that the first `most` files on this machine are there; the store is not asked. Raises DataError."""
        for row in range(min(most, len(self))):
            for cell in _flat(self.cell(column, row)):
                path = self.opener.path_of(cell)
                if path is not None and not path.startswith("s3://") and not Path(path).is_file():
                    raise DataError(
                        f"{self.place}, row {row + 1}: column {column!r} names {path}, which is no file",
                        hint="paths are relative to the table's own folder",
                        column=column,
                    )


@dataclass(frozen=True)
class _File:
    """`inside` is its path below the folder, `stamp` its size and time."""

    inside: str
    stamp: str


@dataclass(frozen=True)
class MediaPlace:
    """What lies at a place, before any of it is read. `files`: every one of a folder; None: it is a table, or nothing."""

    url: str
    files: Sequence[_File] | None = field(repr=False)

    def stamp(self) -> str:
        """What to remember under what was read of it: of the files' names, sizes and times. Raises DataError, StorageError."""
        if self.files is None:
            return _digest(fingerprint(self.url))
        return _digest([self.url, *(f"{file.inside} {file.stamp}" for file in self.files)])


def find_media(url: str) -> MediaPlace:
    """Look at a place; a folder is walked, which for very many files takes a while. Raises StorageError."""
    return MediaPlace(url, None if hub_dataset(url) is not None else _folder_files(url))


def read_media(
    place: str | MediaPlace,
    media: Sequence[str],
    endings: Sequence[str],
    label: str | None = None,
    others: Sequence[str] = (),
    texts: Sequence[str] = (),
    split: str = "train",
    may_be_empty: Sequence[str] = (),
) -> MediaRows:
    """The samples at a place.

    Args:
        place: a table's file, directory or pattern, a hub id, or a folder of files; local or `s3://`. Or what `find_media` found.
        media: columns that hold files; a folder has one.
        endings: how files of this kind end (`.png`), lower case: what is taken from a folder.
        label: column of classes, if wanted; in a folder, the name of the folder that a file is in.
        others: further columns to read, which a folder does not have.
        texts: columns that must be text.
        split: of a hub dataset that names none.
        may_be_empty: columns of a table whose cells need not hold anything.

    Raises:
        DataError: nothing there, no such column, cells that are no files, a folder without classes.
        StorageError: the store refused, failed, or did not answer.
    """
    found = find_media(place) if isinstance(place, str) else place
    place = found.url
    if found.files is not None:
        return _read_folder(place, found.files, media, endings, label, others)
    columns = [*media, *([] if label is None else [label]), *others]
    table = read_split(place, columns, texts=texts, split=split, may_be_empty=may_be_empty).data.table
    for column in media:
        _check_media(table, column, place)
    hub = hub_dataset(place) is not None
    folder = None if hub else find_files(place)[0].path.rpartition("/")[0]
    return MediaRows(place, table, _digest(fingerprint(place)), Opener(folder))


def bytes_read(place: str) -> float:
    """What `read_media` would read of a place into memory: a table's files whole, of a folder only names; a hub dataset's size is
    not known before it is fetched."""
    if hub_dataset(place):
        return float("inf")
    return 0 if _folder_files(place) is not None else sum(file.size_bytes for file in find_files(place))


def _folder_files(place: str) -> list[_File] | None:
    """Every file below a folder; None where the place is a table, or nothing."""
    files = list(_stored(place) if place.startswith("s3://") else _local(place))
    if not files or any("/" not in file.inside and _is_table(file.inside) for file in files):
        return None
    return [file for file in files if not any(part.startswith(".") for part in PurePosixPath(file.inside).parts)]


def _is_table(name: str) -> bool:
    return suffix(name) in FORMATS


def _local(place: str) -> Iterator[_File]:
    root = _local_root(place)
    if not root.is_dir() or any(_is_table(path.name) for path in root.iterdir()):
        return  # not walked: a table's pictures often lie below it, and may be millions
    for path in sorted(root.rglob("*")):
        if path.is_file():
            stat = path.stat()
            yield _File(path.relative_to(root).as_posix(), f"{stat.st_size} {stat.st_mtime_ns}")


def _local_root(place: str) -> Path:
    return Path(place.removeprefix("file://")).expanduser().absolute()


def _stored(place: str) -> Iterator[_File]:
    from tlcore.storage import open_store

    if "*" in place or _is_table(place):
        return
    for one in open_store(place).list():
        if not one.key.endswith("/"):
            yield _File(one.key, f"{one.size_bytes} {one.modified.isoformat()}")


def _read_folder(
    place: str,
    files: Sequence[_File],
    media: Sequence[str],
    endings: Sequence[str],
    label: str | None,
    others: Sequence[str],
) -> MediaRows:
    import pyarrow as pa

    missing = [*media[1:], *others]
    if missing:
        raise DataError(
            f"{place} is a folder of files, which has no column {missing[0]!r}",
            hint="give a table (csv, jsonl, parquet) beside the files",
        )
    taken = [file for file in files if PurePosixPath(file.inside).suffix.lower() in endings]
    if not taken:
        there = ", ".join(file.inside for file in files[:_SHOWN])
        raise DataError(f"{place} holds no file that ends in {', '.join(endings)}", hint=f"it holds {there}")
    columns = {media[0]: [file.inside for file in taken]}
    if label is not None:
        if loose := next((file.inside for file in taken if "/" not in file.inside), None):
            raise DataError(
                f"{place} is a folder of files, and {loose} lies in no class's folder",
                hint="put the files into one folder per class, or give a table with their classes",
            )
        columns[label] = [file.inside.partition("/")[0] for file in taken]
    root = place.rstrip("/") if place.startswith("s3://") else str(_local_root(place))
    stamp = _digest([place, *(f"{file.inside} {file.stamp}" for file in taken)])
    return MediaRows(place, pa.table(columns), stamp, Opener(root))


def _check_media(table: pa.Table, column: str, place: str) -> None:
    """Raise DataError for a column that can hold no files."""
    import pyarrow as pa

    kind = table.schema.field(column).type
    held = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    held = held.value_type if pa.types.is_dictionary(held) else held
    as_struct = pa.types.is_struct(held) and {"bytes", "path"} <= {each.name for each in held.fields}
    plain = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if not as_struct and not any(fits(held) for fits in plain):
        raise DataError(
            f"{place}: column {column!r} holds {kind}, neither paths nor bytes",
            hint="give paths beside the table, s3:// URLs, bytes, or {bytes, path}",
            column=column,
        )


def _flat(cell: Any) -> list[Any]:
    return cell if isinstance(cell, list) else [cell]


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
