"""Copy one checkpoint to another place: a directory or another prefix, in the same layout.

Owns `fetch_checkpoint`. Called by `tlcore checkpoints fetch`. The copy is a run of its own with one checkpoint in it:
chunks, indexes, manifest last, and `run.json`, so that everything that takes a checkpoint's URL takes the copy's.

Every byte is proved by its digest between reading and writing. What is there already, and is proved to be what it should, is
not copied again, so an interrupted fetch goes on where it was, and the checkpoint exists at the destination only when it is whole.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from tlcore.checkpoint.intervals import ByteArray
from tlcore.checkpoint.manifest import Manifest, StoredChunk, index_bytes, parse_index, parse_manifest
from tlcore.checkpoint.patience import Patience
from tlcore.checkpoint.transfer import ATTEMPTS, read_verified
from tlcore.errors import CheckpointCorrupt, ObjectMissing, RequestError
from tlcore.storage.base import ObjectStore
from tlcore.storage.keys import CHUNKS_PREFIX, RUN_JSON, chunk_key

CONNECTIONS = 8

Progress = Callable[[int, int], None]
"""Told how many bytes are known to be at the destination, and of how many; called by several threads, one at a time."""


@dataclass(frozen=True)
class FetchReport:
    """What a fetch did. `manifest_key` is the checkpoint's place under the destination."""

    manifest_key: str
    chunks: int
    bytes_total: int
    bytes_copied: int


def fetch_checkpoint(
    source: ObjectStore, manifest: Manifest, destination: ObjectStore, progress: Progress | None = None
) -> FetchReport:
    """Copy a checkpoint between stores, both rooted at a run.

    Args:
        manifest: as read from `source`.
        progress: watches.

    Raises:
        RequestError: the destination is the source, or holds another checkpoint of this trial and step.
        CheckpointCorrupt: stored bytes are not what they were; the destination then has no manifest of it.
        StorageError: of either store.
    """
    if source.url == destination.url:
        raise RequestError(f"{source.url}: source and destination are the same place", hint="name another destination")
    document = source.get(manifest.key)
    if parse_manifest(document, manifest.key) != manifest:
        raise CheckpointCorrupt(f"{manifest.key}: replaced while it was about to be copied", key=manifest.key)
    _check_free(destination, manifest.key, document)
    patience = Patience(ATTEMPTS)
    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="checkpoint-fetch") as threads:
        try:
            read = threads.map(lambda ref: index_bytes(source, ref), manifest.indexes)
            indexes = dict(zip(manifest.indexes, read, strict=True))
            parsed = [parse_index(data, ref.key) for ref, data in indexes.items()]
            chunks = {chunk.digest: chunk for each in parsed for chunk in each.chunks}
            copied = _copy_chunks(source, destination, chunks.values(), threads, patience, progress)
        except BaseException:
            patience.abandon()
            threads.shutdown(cancel_futures=True)
            raise
        for ref, data in indexes.items():
            destination.put(ref.key, data)
    _copy_run(source, destination)
    if not destination.put_if_absent(manifest.key, document):
        _check_free(destination, manifest.key, document)
    return FetchReport(manifest.key, len(chunks), sum(each.size_bytes for each in chunks.values()), copied)


def _copy_chunks(
    source: ObjectStore,
    destination: ObjectStore,
    chunks: Iterable[StoredChunk],
    threads: ThreadPoolExecutor,
    patience: Patience,
    progress: Progress | None,
) -> int:
    """Copy what is missing or damaged; returns the bytes copied."""
    wanted = list(chunks)
    there = {each.key: each.size_bytes for each in destination.list(CHUNKS_PREFIX)}
    total = sum(each.size_bytes for each in wanted)
    done = 0
    lock = threading.Lock()

    def settle(chunk: StoredChunk) -> int:
        nonlocal done
        key, data = chunk_key(chunk.digest), np.empty(chunk.size_bytes, np.uint8)
        is_there = there.get(key) == chunk.size_bytes and _is_whole(destination, chunk, data, patience)
        if not is_there:
            read_verified(source, chunk, 0, [data], patience)
            patience.ask(lambda: destination.put(key, data.data))
        with lock:
            done += chunk.size_bytes
            if progress is not None:
                progress(done, total)
        return 0 if is_there else chunk.size_bytes

    if progress is not None:
        progress(done, total)
    return sum(threads.map(settle, wanted))


def _is_whole(store: ObjectStore, chunk: StoredChunk, memory: ByteArray, patience: Patience) -> bool:
    """Whether a chunk's bytes in a store are its own; reads them into `memory`."""
    try:
        read_verified(store, chunk, 0, [memory], patience)
    except CheckpointCorrupt:
        return False
    return True


def _check_free(destination: ObjectStore, key: str, document: bytes) -> None:
    try:
        held = destination.get(key)
    except ObjectMissing:
        return
    if held != document:
        raise RequestError(
            f"{destination.url}/{key} is another checkpoint of the same trial and step",
            hint="fetch into an empty place",
            key=key,
        )


def _copy_run(source: ObjectStore, destination: ObjectStore) -> None:
    """The run's identity, where there is one and none at the destination yet."""
    try:
        destination.put_if_absent(RUN_JSON, source.get(RUN_JSON))
    except ObjectMissing:
        return
