"""Where exported files go: a local directory that appears whole or not at all, or a prefix of an object store.

Owns that promise and the refusal to write over what is no export. Called by `export.py` and `adapter.py`. `config.json` (or, for an
adapter, `adapter_config.json`) is what makes a directory a model, so on a store, which has no rename, it is taken away first and
put last.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Protocol

from typing_extensions import Buffer

from tlcore.errors import RequestError
from tlcore.storage import open_store
from tlcore.storage.urls import LocalPlace, parse_url

MARKERS = ("config.json", "adapter_config.json")
LARGEST_PUT_BYTES = 5 << 30
"""What S3 takes in one request; nothing here is sent in parts."""


class Place(Protocol):
    """A destination that is being written."""

    @property
    def url(self) -> str:
        """What to tell people."""

    def write(self, name: str, data: Buffer) -> None:
        """Add one file."""

    def commit(self) -> None:
        """Everything has been written: let it be seen."""

    def abandon(self) -> None:
        """It will not be completed: leave nothing half-written in view."""


def open_place(destination: str) -> Place:
    """A place for an export. Raises RequestError where something else is there, StorageError."""
    place = parse_url(destination)
    return LocalDirectory(place.path) if isinstance(place, LocalPlace) else StorePrefix(destination)


class LocalDirectory:
    """Files are written beside the destination and renamed to it together; an earlier export there is replaced."""

    def __init__(self, path: Path) -> None:
        if path.exists() and not any((path / marker).exists() for marker in MARKERS):
            raise RequestError(f"{path} exists and is no exported model", hint="name a directory that does not exist")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir()

    @property
    def url(self) -> str:
        return str(self._path)

    def write(self, name: str, data: Buffer) -> None:
        with (self._partial / name).open("wb", buffering=0) as file:
            view = memoryview(data).cast("B")
            while view:
                view = view[file.write(view) :]

    def commit(self) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
        self._partial.rename(self._path)

    def abandon(self) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)


class StorePrefix:
    """Objects under a prefix, each put whole as soon as it is made; what makes them a model comes last."""

    def __init__(self, url: str) -> None:
        self._store = open_store(url)
        self._before = {each.key for each in self._store.list()}
        if self._before and not self._before & set(MARKERS):
            raise RequestError(f"{url} holds objects and is no exported model", hint="name a prefix that holds nothing")
        self._store.delete([marker for marker in MARKERS if marker in self._before])
        self._written: set[str] = set()
        self._last: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return self._store.url

    def write(self, name: str, data: Buffer) -> None:
        size = memoryview(data).nbytes
        if size > LARGEST_PUT_BYTES:
            raise RequestError(
                f"{name} has {size} bytes, and an object store takes at most {LARGEST_PUT_BYTES} in one request",
                hint="give a smaller --max-shard-size, or export to a directory",
            )
        if name in MARKERS:
            self._last[name] = bytes(memoryview(data).cast("B"))
        else:
            self._store.put(name, data)
        self._written.add(name)

    def commit(self) -> None:
        stale = {key for key in self._before - self._written if "/" not in key and ".safetensors" in key}
        self._store.delete(sorted(stale))
        for name, data in self._last.items():
            self._store.put(name, data)

    def abandon(self) -> None:
        """Without its config.json the prefix is no model; an export to it again replaces what is there."""
        self._store.delete(sorted(self._written - set(self._last)))
