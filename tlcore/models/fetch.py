"""Brings a model that lies under an `s3://` prefix into this machine's cache, once per node.

Owns `~/.cache/tlcore/models/`: one folder per content, named after the prefix and every object's key, size and time, so that a
changed prefix is a new folder and a folder never changes. Knows nothing of what a model is. Called by `source.py`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from tlcore.errors import ModelError
from tlcore.storage import open_store
from tlcore.storage.base import ObjectInfo, ObjectStore

PART_BYTES = 64 << 20
"""Objects are read in pieces of this size, so that a shard of several GiB never stands in memory."""


def fetch_prefix(url: str, cache: Path | None = None) -> Path:
    """Make sure that every object under `url` lies in one local directory, and return it.

    A directory appears whole or not at all: objects are written beside it and renamed at the end. Other processes of this
    machine that want the same wait for the first instead of reading it again.

    Raises:
        ModelError: nothing under the prefix, or the cache cannot be written.
        StorageError: the store refused, failed, or did not answer.
    """
    store = open_store(url)
    objects = [one for one in store.list() if not one.key.endswith("/") and "/" not in one.key.strip("/")]
    if not objects:
        raise ModelError(
            f"model source {url!r}: nothing lies directly under that prefix",
            hint="give the prefix that holds config.json",
        )
    folder = (cache or Path.home() / ".cache" / "tlcore" / "models") / _content_name(url, objects)
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                _download(store, objects, folder)
    except OSError as error:
        raise ModelError(
            f"model source {url!r}: cannot keep it in {folder.parent}: {error}",
            hint="free space there, or make it writable",
        ) from error
    return folder


def _content_name(url: str, objects: Sequence[ObjectInfo]) -> str:
    listing = "\n".join(
        [url.rstrip("/"), *(f"{one.key} {one.size_bytes} {one.modified.isoformat()}" for one in objects)]
    )
    return f"{PurePosixPath(url).name}-{hashlib.sha256(listing.encode()).hexdigest()[:24]}"


def _download(store: ObjectStore, objects: Sequence[ObjectInfo], folder: Path) -> None:
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for one in objects:
            with (building / one.key).open("wb") as file:
                for start in range(0, one.size_bytes, PART_BYTES):
                    file.write(store.get_range(one.key, start, min(PART_BYTES, one.size_bytes - start)))
                file.flush()
                os.fsync(file.fileno())
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
