"""The whole surface between tlcore and an object store: six methods and two ways to name a place.

Owns the contract, not an implementation (`s3.py`, `local.py`). Called by every room that keeps something. Methods
block and are safe to call from many threads at once; whoever wants concurrency brings threads, since the clients
release the GIL. Vendor errors are translated to `tlcore.errors` inside the implementations, after their own retries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

from typing_extensions import Buffer

from tlcore.errors import StorageError


@dataclass(frozen=True)
class ObjectInfo:
    """One object as a listing gives it. `key` is relative to the store's root; `modified` is timezone-aware."""

    key: str
    size_bytes: int
    modified: datetime


@runtime_checkable
class ObjectStore(Protocol):
    """A flat map from keys to immutable bytes under one root URL (`s3://bucket/prefix` or `file:///dir`)."""

    @property
    def url(self) -> str:
        """Root, without credentials and without a trailing slash."""

    def put(self, key: str, data: Buffer) -> None:
        """Write one object whole, replacing any other; readers see all of it or none. One request, never multipart."""

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write only where nothing is; True when the object now holds `data`, False when other bytes were there first.

        True also where a retry met its own first attempt, or another writer wrote equal bytes."""

    def get(self, key: str) -> bytes:
        """Read one object whole. Raises ObjectMissing."""

    def get_into(self, key: str, start: int, parts: Sequence[memoryview]) -> None:
        """Fill the parts (of bytes), one after the other, with what the object holds from byte `start`.

        Raises ObjectMissing; the StorageError of `too_short` where it is shorter. The parts then hold anything."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix`, in key order, paging as needed."""

    def delete(self, keys: Sequence[str]) -> None:
        """Remove these objects; absent ones are no error."""


def too_short(what: str, start: int, length: int, got: int, **fields: Any) -> StorageError:
    """The error of a range that reaches past the end of its object; `what` names the object, `fields` go with the error.

    `is_too_short` knows it by its field `got`, which no other error has: stores answer with plain StorageErrors of many kinds.
    """
    return StorageError(f"{what}: wanted {length} bytes from byte {start}, got {got}", **fields, got=got)


def is_too_short(error: StorageError) -> bool:
    """Whether a read failed because the object is shorter, and not because the store would not give it."""
    return "got" in error.fields


def scatter(data: memoryview, parts: Sequence[memoryview]) -> None:
    """Copy `data`, which is as long as all parts together, into the parts, one after the other."""
    at = 0
    for part in parts:
        part[:] = data[at : at + len(part)]
        at += len(part)
