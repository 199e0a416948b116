"""`file://`: an object is a file, its key the path under a root directory.

Owns atomicity on a local or network file system. A write goes to a temporary file in the object's own directory, is
fsynced, and only then gets its name: by `rename` (put) or by a hard link, which fails where the name exists
(put-if-absent). The directory is fsynced too, so what a call has returned for survives a power cut. A killed write
leaves a `.tlcore-tmp-` file, which no listing shows and which garbage collection removes once it is old (`reclaim.py`).

On NFS the guarantees are the same: rename and link are one request each, atomic on the server; a client whose answer was lost
may see its own link as "exists", and the bytes are compared then; fsync returns when the server has them on stable storage
(export with `sync`, the default); the link fails where the name exists whichever client made it. A reader on another client
may see a listing up to the attribute cache's age late (`acregmax`, 60 s by default), which only delays what polls for a key.

Limits that S3 does not have: a key may not continue another one (`a` and `a/b`), and put-if-absent needs a file
system with hard links.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from typing_extensions import Buffer

from tlcore.errors import ObjectMissing, StorageError
from tlcore.storage.base import ObjectInfo, too_short
from tlcore.storage.translate import os_error
from tlcore.storage.urls import TEMPORARY_PREFIX, LocalPlace, check_key

_MKDIR_ATTEMPTS = 20


class LocalObjectStore:
    """The six methods of ObjectStore over a directory, which comes into being with the first object."""

    def __init__(self, place: LocalPlace) -> None:
        self._root = place.path
        self._url = place.url

    def __repr__(self) -> str:
        return f"LocalObjectStore({self._url!r})"

    @property
    def url(self) -> str:
        return self._url

    def put(self, key: str, data: Buffer) -> None:
        path = self._path(key)
        try:
            self._write(path, data, lambda temporary: temporary.replace(path))
        except OSError as error:
            raise os_error(error, "write", str(path), key) from error

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        path = self._path(key)
        try:
            self._write(path, data, lambda temporary: os.link(temporary, path))
        except FileExistsError as error:
            if not path.is_file():
                raise os_error(error, "write", str(path), key) from error
            return self.get(key) == memoryview(data).cast("B")
        except OSError as error:
            if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP) and os.access(path.parent, os.W_OK):
                raise StorageError(
                    f"cannot write {path} only where nothing is: this file system has no hard links",
                    hint="choose a directory on another file system, or an s3:// storage",
                    key=key,
                ) from error
            raise os_error(error, "write", str(path), key) from error
        return True

    def get(self, key: str) -> bytes:
        path = self._path(key)
        try:
            return path.read_bytes()
        except OSError as error:
            raise self._read_error(error, path, key) from error

    def get_into(self, key: str, start: int, parts: Sequence[memoryview]) -> None:
        path = self._path(key)
        got = 0
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(start)
                for part in parts:
                    got += _filled(file, part)
        except OSError as error:
            raise self._read_error(error, path, key) from error
        length = sum(len(part) for part in parts)
        if got != length:
            raise too_short(f"{path} is too short", start, length, got, key=key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        top = self._root / prefix.rpartition("/")[0]
        try:
            found = list(self._walk(top, prefix))
        except OSError as error:
            raise os_error(error, "list", str(error.filename or top), prefix) from error
        return iter(sorted(found, key=lambda info: info.key))

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            path = self._path(key)
            try:
                path.unlink(missing_ok=True)
            except NotADirectoryError:
                continue  # `a/b` where `a` is an object: absent, as on S3
            except OSError as error:
                raise os_error(error, "delete", str(path), key) from error
            self._prune(path.parent)

    def remove_leftovers(self, before: datetime) -> int:
        """Delete what killed writes left before `before` (by the file system's clock); returns how many files that were."""
        try:
            found = [
                Path(directory, name)
                for directory, _, names in os.walk(self._root, onerror=_unless_gone)
                for name in names
                if name.startswith(TEMPORARY_PREFIX)
            ]
        except OSError as error:
            raise os_error(error, "list", str(error.filename or self._root), "") from error
        removed = 0
        for path in found:
            try:
                if datetime.fromtimestamp(path.stat().st_mtime, UTC) < before:
                    path.unlink()
                    removed += 1
                    self._prune(path.parent)
            except FileNotFoundError:
                continue  # its writer has ended in the meantime
            except OSError as error:
                raise os_error(error, "delete", str(path), path.relative_to(self._root).as_posix()) from error
        return removed

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _read_error(self, error: OSError, path: Path, key: str) -> StorageError:
        if isinstance(error, NotADirectoryError | IsADirectoryError):
            return ObjectMissing(f"cannot read {path}: no such object", key=key)
        return os_error(error, "read", str(path), key)

    def _write(self, path: Path, data: Buffer, give_name: Callable[[Path], object]) -> None:
        temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
        descriptor = _create(temporary)
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                view = memoryview(data).cast("B")
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
            give_name(temporary)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)

    def _walk(self, top: Path, prefix: str) -> Iterator[ObjectInfo]:
        for directory, _, names in os.walk(top, onerror=_unless_gone):
            place = Path(directory).relative_to(self._root).as_posix()
            for name in names:
                key = name if place == "." else f"{place}/{name}"
                # looked at before the file is: a journal's directory holds a hundred thousand, of which few are asked for
                if name.startswith(TEMPORARY_PREFIX) or not key.startswith(prefix):
                    continue
                with suppress(FileNotFoundError, NotADirectoryError):  # deleted since the directory was read
                    stat = Path(directory, name).stat()
                    yield ObjectInfo(key, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))

    def _prune(self, directory: Path) -> None:
        """Remove directories that have become empty, as an object store has none."""
        while directory != self._root:
            try:
                directory.rmdir()
            except OSError:
                return
            directory = directory.parent


def _unless_gone(error: OSError) -> None:
    """What a walk does about a directory that it cannot read.

    It passes over one that is not there (any more), and over an object. Anything else goes up: a listing that left out what it
    could not see would have a collection delete what is needed, and a restore begin anew.
    """
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _filled(file: FileIO, part: memoryview) -> int:
    """How many bytes of `part` there were in the file to fill."""
    at = 0
    while at < len(part):
        got = file.readinto(part[at:])
        if not got:
            break
        at += got
    return at


def _create(path: Path) -> int:
    """Open a new file, making its directory; a delete next door may remove that directory in between, so try again."""
    for _ in range(_MKDIR_ATTEMPTS):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            if path.parent.exists():  # a file stands there; else the directory went between mkdir's look and this one
                raise
            continue
        with suppress(FileNotFoundError):
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))


def _sync_directory(directory: Path) -> None:
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:
        return  # the object was deleted, and its directory with it
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
