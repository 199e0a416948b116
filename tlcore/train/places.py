"""Where exported files go: a local directory, or a prefix of an object store, that is a model when all of it is there.

Owns that promise and the refusal to write over what is no export, or an export of the other kind. Called by `export.py` and
`adapter.py`. `config.json` (or, for an adapter, `adapter_config.json`) is what makes a directory a model, so where an earlier
export is written over it is taken away first and put last. Nothing goes but files that an export writes: whatever else lies beside
an earlier export stays. `UNFINISHED` says that one was being written over, so that the next may be written there too.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Final, Protocol

from typing_extensions import Buffer

from tlcore.errors import RequestError
from tlcore.storage import open_store
from tlcore.storage.urls import LocalPlace, parse_url

MODEL: Final = "config.json"
ADAPTER: Final = "adapter_config.json"
MARKERS: Final = {MODEL: "whole model", ADAPTER: "adapter"}
UNFINISHED: Final = ".tlcore-export"
"""Lies where an earlier export is being written over: on a store an object, in a directory one with the files to come."""
LARGEST_PUT_BYTES = 5 << 30
"""What S3 takes in one request; nothing here is sent in parts."""
_WEIGHTS: Final = re.compile(r"(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


class Place(Protocol):
    """A destination that is being written."""

    @property
    def url(self) -> str:
        """What to tell people."""

    def write(self, name: str, data: Buffer) -> None:
        """Add one file. Raises RequestError where it is of one kind of export and the place holds the other."""

    def commit(self) -> None:
        """Everything has been written: let it be seen."""

    def abandon(self) -> None:
        """It will not be completed: leave nothing half-written in view."""


def open_place(destination: str) -> Place:
    """A place for an export. Raises RequestError where something else is there, StorageError."""
    place = parse_url(destination)
    return LocalDirectory(place.path) if isinstance(place, LocalPlace) else StorePrefix(destination)


def _kind(name: str) -> str | None:
    """The marker of the exports that have this file and those of the other kind have not; None for any other file."""
    weights = _WEIGHTS.fullmatch(name)
    if weights:
        return ADAPTER if weights[1] else MODEL
    return name if name in MARKERS else None


def _check_earlier(names: Collection[str], what: str, hint: str) -> None:
    """Raise RequestError unless these are the files of an earlier export: a marker and its weights, or what one has left."""
    has_weights = {_kind(name) for name in names if name not in MARKERS}
    if UNFINISHED not in names and not any(marker in names and marker in has_weights for marker in MARKERS):
        raise RequestError(f"{what} and is no exported model", hint=hint)


def _check_kind(name: str, held: Collection[str], url: str) -> None:
    """Raise RequestError where `held` has a file of the kind that `name` is not of: both together are neither to any loader."""
    kind = _kind(name)
    other = next((each for each in sorted(held) if kind is not None and _kind(each) not in (None, kind)), None)
    if kind is not None and other is not None:
        raise RequestError(
            f"{url} holds {other}, and {name} of an exported {MARKERS[kind]} cannot be put beside it",
            hint=f"name another place for the {MARKERS[kind]}, or delete {other} if it is not needed",
        )


def _stale(held: Collection[str], written: Collection[str]) -> list[str]:
    """Weights of an earlier export that the new one, of the same kind, has not replaced."""
    kinds = {_kind(name) for name in written}
    return sorted(name for name in held if name not in written and _WEIGHTS.fullmatch(name) and _kind(name) in kinds)


class LocalDirectory:
    """A new directory appears with all files at once; an earlier export keeps its files until all of the new ones are written, and
    they then replace them one by one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held = frozenset(each.name for each in path.iterdir()) if path.is_dir() else frozenset()
        self._is_new = not path.exists()
        if self._held or path.is_file():  # an empty directory is as good as none
            _check_earlier(self._held, f"{path} exists", "name a directory that does not exist")
        # Inside what is there already: beside it may be another file system.
        self._partial = path.with_name(f".{path.name}.partial") if self._is_new else path / UNFINISHED
        self._replacing = False
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir()

    @property
    def url(self) -> str:
        return str(self._path)

    def write(self, name: str, data: Buffer) -> None:
        _check_kind(name, self._held, self.url)
        with (self._partial / name).open("wb", buffering=0) as file:
            view = memoryview(data).cast("B")
            while view:
                view = view[file.write(view) :]

    def commit(self) -> None:
        if self._is_new:
            self._partial.rename(self._path)
        else:
            self._replace([each.name for each in self._partial.iterdir()])

    def _replace(self, written: list[str]) -> None:
        self._replacing = True
        for name in [*(each for each in MARKERS if each in self._held), *_stale(self._held, written)]:
            (self._path / name).unlink(missing_ok=True)
        for name in sorted(written, key=lambda each: each in MARKERS):
            (self._partial / name).replace(self._path / name)
        self._partial.rmdir()

    def abandon(self) -> None:
        """What is left in the middle of replacing stays, and with it the word that it is an export."""
        if not self._replacing:
            shutil.rmtree(self._partial, ignore_errors=True)


class StorePrefix:
    """Objects under a prefix: weights are put as soon as they are made, small files at the end, what makes them a model last."""

    def __init__(self, url: str) -> None:
        self._store = open_store(url)
        self._held = frozenset(each.key for each in self._store.list())
        if self._held:
            _check_earlier(self._held, f"{url} holds objects", "name a prefix that holds nothing")
        self._begun = False
        self._put: set[str] = set()
        self._small: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return self._store.url

    def write(self, name: str, data: Buffer) -> None:
        _check_kind(name, self._held, self.url)
        size = memoryview(data).nbytes
        if size > LARGEST_PUT_BYTES:
            raise RequestError(
                f"{name} has {size} bytes, and an object store takes at most {LARGEST_PUT_BYTES} in one request",
                hint="give a smaller --max-shard-size, or export to a directory",
            )
        if not _WEIGHTS.fullmatch(name):
            self._small[name] = bytes(memoryview(data).cast("B"))
            return
        self._begin()
        self._put.add(name)
        self._store.put(name, data)

    def commit(self) -> None:
        self._begin()
        self._store.delete(_stale(self._held, {*self._put, *self._small}))
        for name in sorted(self._small, key=lambda each: each in MARKERS):
            self._store.put(name, self._small[name])
        self._store.delete([UNFINISHED])

    def abandon(self) -> None:
        """Without its config.json the prefix is no model; an export to it again replaces what is there."""
        if not self._begun:
            return
        self._store.delete([marker for marker in MARKERS if marker in self._small])
        self._store.delete(sorted(self._put))
        if not self._held:
            self._store.delete([*sorted(self._small), UNFINISHED])

    def _begin(self) -> None:
        """Before the first object: from here on, and until the end, what is there is no model."""
        if not self._begun:
            self._begun = True
            self._store.put(UNFINISHED, b"an export to this place is under way, or was broken off\n")
            self._store.delete([marker for marker in MARKERS if marker in self._held])
