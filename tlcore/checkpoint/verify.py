"""Is this checkpoint whole? Asked by people (`tlcore checkpoints verify`), by tests, and by whoever restores after a
fault.

Owns: `verify`, `newest_intact`. Changes nothing in the store.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from tlcore.checkpoint.intervals import Row, cover_faults
from tlcore.checkpoint.manifest import Manifest, RankIndex, StoredChunk, list_manifests, read_manifest
from tlcore.checkpoint.patience import Patience
from tlcore.checkpoint.reader import CONNECTIONS, read_indexes
from tlcore.checkpoint.transfer import ATTEMPTS, read_verified
from tlcore.errors import CheckpointCorrupt, CheckpointError, CheckpointIncompatible
from tlcore.storage.base import ObjectStore
from tlcore.storage.keys import manifest_key

SPAN_BYTES = 16 << 20
"""Most bytes of a chunk read at once, so that memory is bounded by `CONNECTIONS` of these whatever an index says."""

Progress = Callable[[int], None]
"""Told how many bytes have been proved since it was last told; may be called by several threads, one at a time."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong: the object it is about, and one sentence; `step` of the checkpoint, where several were looked at."""

    key: str
    text: str
    step: int = 0

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Intact:
    """The newest checkpoint that is whole, None when there is none, and what was wrong with the newer ones."""

    manifest: Manifest | None
    problems: tuple[Problem, ...]


def verify(
    store: ObjectStore, manifest: Manifest, every_byte: bool = True, progress: Progress | None = None
) -> list[Problem]:
    """Everything wrong with a checkpoint whose manifest could be read; empty when it restores.

    `every_byte`: read and prove all chunks; otherwise only that each is there and long enough (one small request
    per chunk). Raises StorageError where the store does not answer, which says nothing about the checkpoint.
    """
    try:
        indexes = read_indexes(store, manifest)
    except (CheckpointCorrupt, CheckpointIncompatible) as error:
        return [_problem(error, manifest.key)]
    problems = [Problem(manifest.key, f"{manifest.key}: {fault}") for fault in _structure_faults(manifest, indexes)]
    chunks = {chunk.digest: chunk for index in indexes for chunk in index.chunks}
    return problems + _chunk_problems(store, chunks.values(), every_byte, progress or (lambda size: None))


def newest_intact(
    store: ObjectStore,
    trial: str,
    before_step: int | None = None,
    every_byte: bool = False,
    *,
    chunks: bool = True,
    excluding: Collection[int] = (),
) -> Intact:
    """The checkpoint to restore from, and why not a newer one.

    Newer is the later attempt, then the higher step: what lies ahead of a training that went back is no longer its own.
    Proves manifest, indexes and, with `chunks`, the presence of every chunk; flipped bytes in chunks show up while they
    are read, after which a caller asks again, `excluding` the step that failed. Raises StorageError.
    """
    problems: list[Problem] = []
    steps = [each for each in list_manifests(store, trial) if before_step is None or each < before_step]
    readable: list[Manifest] = []
    for step in sorted(set(steps) - set(excluding), reverse=True):
        try:
            readable.append(read_manifest(store, trial, step))
        except CheckpointError as error:
            problems.append(replace(_problem(error, manifest_key(trial, step)), step=step))
    for manifest in sorted(readable, key=lambda each: (each.attempt, each.step), reverse=True):
        found = verify(store, manifest, every_byte) if chunks else _index_problems(store, manifest)
        if not found:
            return Intact(manifest, tuple(problems))
        problems.extend(replace(each, step=manifest.step) for each in found)
    return Intact(None, tuple(problems))


def _index_problems(store: ObjectStore, manifest: Manifest) -> list[Problem]:
    try:
        indexes = read_indexes(store, manifest)
    except (CheckpointCorrupt, CheckpointIncompatible) as error:
        return [_problem(error, manifest.key)]
    return [Problem(manifest.key, f"{manifest.key}: {fault}") for fault in _structure_faults(manifest, indexes)]


def _structure_faults(manifest: Manifest, indexes: Sequence[RankIndex]) -> list[str]:
    faults: list[str] = []
    rows: list[Row] = []
    for ref, index in zip(manifest.indexes, indexes, strict=True):
        if (index.rank, index.world_size) != (ref.rank, manifest.world_size):
            faults.append(
                f"{ref.key} is rank {index.rank} of {index.world_size}, not rank {ref.rank} of {manifest.world_size}"
            )
        rows.extend(held.row for held in index.rows)
    return faults + cover_faults(rows, manifest.parameters)


def _chunk_problems(
    store: ObjectStore, chunks: Iterable[StoredChunk], every_byte: bool, progress: Progress
) -> list[Problem]:
    patience = Patience(ATTEMPTS)
    one_at_a_time = threading.Lock()

    def check(chunk: StoredChunk) -> Problem | None:
        try:
            for start, end in spans(chunk) if every_byte else (_last_leaf(chunk),):
                read_verified(store, chunk, start, [np.empty(end - start, np.uint8)], patience)
                with one_at_a_time:
                    progress(end - start)
        except CheckpointCorrupt as error:
            return _problem(error, chunk.digest)
        return None

    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="checkpoint-verify") as threads:
        return [problem for problem in threads.map(check, chunks) if problem is not None]


def spans(chunk: StoredChunk) -> list[tuple[int, int]]:
    """The whole of a chunk in runs of leaves, each about `SPAN_BYTES` at most."""
    step = max(1, SPAN_BYTES // chunk.leaf_bytes) * chunk.leaf_bytes
    return [(start, min(chunk.size_bytes, start + step)) for start in range(0, chunk.size_bytes, step)]


def _last_leaf(chunk: StoredChunk) -> tuple[int, int]:
    """It alone proves that the object is there and long enough."""
    return (chunk.size_bytes - 1) // chunk.leaf_bytes * chunk.leaf_bytes, chunk.size_bytes


def _problem(error: CheckpointError, key: str) -> Problem:
    return Problem(str(error.fields.get("key", key)), error.message)
