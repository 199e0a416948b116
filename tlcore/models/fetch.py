"""Brings a model that lies under an `s3://` prefix into this machine's cache, once per node.

Owns the name of the content: after the prefix and every object's key, size and time, so that a changed prefix is another folder.
How folders are kept is `shelf.py`'s. Knows nothing of what a model is. Called by `source.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from tlcore.errors import ModelError
from tlcore.storage import open_store
from tlcore.storage.base import ObjectInfo, ObjectStore
from tlcore.storage.shelf import node_shelf, shelved

PART_BYTES = 16 << 20
"""Objects are read in pieces of this size, so that a shard of several GiB never stands in memory."""
CONNECTIONS = 8
"""Pieces on their way at once: stores limit what one connection carries."""


def fetch_prefix(url: str, cache: Path | None = None) -> Path:
    """Make sure that every object under `url` lies in one local directory, and return it.

    A directory appears whole or not at all: objects are written beside it and renamed at the end. Other processes of this
    machine that want the same wait for the first instead of reading it again.

    Raises:
        ModelError: nothing under the prefix, or the cache cannot be written.
        StorageError: the store refused, failed, or did not answer.
    """
    store = open_store(url)
    objects = _directly_under(store)
    if not objects:
        raise ModelError(
            f"model source {url!r}: nothing lies directly under that prefix",
            hint="give the prefix that holds config.json",
        )
    shelf = cache or node_shelf("models")
    try:
        return shelved(shelf, _content_name(url, objects), lambda building: _download(store, objects, building))
    except OSError as error:
        raise ModelError(
            f"model source {url!r}: cannot keep it in {shelf}: {error}", hint="free space there, or make it writable"
        ) from error


def _content_name(url: str, objects: Sequence[ObjectInfo]) -> str:
    listing = "\n".join(
        [url.rstrip("/"), *(f"{one.key} {one.size_bytes} {one.modified.isoformat()}" for one in objects)]
    )
    return f"{PurePosixPath(url).name}-{hashlib.sha256(listing.encode()).hexdigest()[:24]}"


def _directly_under(store: ObjectStore) -> list[ObjectInfo]:
    return [one for one in store.list() if not one.key.endswith("/") and "/" not in one.key.strip("/")]


def _download(store: ObjectStore, objects: Sequence[ObjectInfo], building: Path) -> None:
    def fetch(one: ObjectInfo, start: int) -> None:
        piece = memoryview(bytearray(min(PART_BYTES, one.size_bytes - start)))
        store.get_into(one.key, start, [piece])
        with (building / one.key).open("r+b") as file:
            file.seek(start)
            file.write(piece)

    for one in objects:
        (building / one.key).touch()
    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="fetch") as pool:
        pieces = [pool.submit(fetch, one, start) for one in objects for start in range(0, one.size_bytes, PART_BYTES)]
        try:
            for piece in pieces:
                piece.result()
        finally:
            pool.shutdown(cancel_futures=True)  # after the first one that failed
    if _directly_under(store) != objects:  # pieces of two versions may stand in one file
        raise ModelError(
            f"model source {store.url!r} changed while it was fetched", hint="start again once it is whole"
        )
