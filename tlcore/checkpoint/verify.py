"""Is this checkpoint whole? Asked by people (`tlcore checkpoints verify`), by tests, and by whoever restores after a
fault.

Owns: `verify`, `newest_intact`. Changes nothing in the store.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tlcore.checkpoint.intervals import Row, cover_faults
from tlcore.checkpoint.manifest import Manifest, RankIndex, StoredChunk, list_manifests, read_manifest
from tlcore.checkpoint.patience import Patience
from tlcore.checkpoint.reader import ATTEMPTS, CONNECTIONS, read_indexes, read_verified
from tlcore.errors import CheckpointCorrupt, CheckpointError
from tlcore.storage.base import ObjectStore


@dataclass(frozen=True)
class Problem:
    """One thing wrong: the object it is about, and one sentence."""

    key: str
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Intact:
    """The newest checkpoint that is whole, None when there is none, and what was wrong with the newer ones."""

    manifest: Manifest | None
    problems: tuple[Problem, ...]


def verify(store: ObjectStore, manifest: Manifest, every_byte: bool = True) -> list[Problem]:
    """Everything wrong with a checkpoint whose manifest could be read; empty when it restores.

    `every_byte`: read and prove all chunks; otherwise only that each is there and long enough (one small request
    per chunk).
    """
    try:
        indexes = read_indexes(store, manifest)
    except CheckpointCorrupt as error:
        return [_problem(error, manifest.key)]
    problems = [Problem(manifest.key, f"{manifest.key}: {fault}") for fault in _structure_faults(manifest, indexes)]
    chunks = {chunk.digest: chunk for index in indexes for chunk in index.chunks}
    return problems + _chunk_problems(store, chunks.values(), every_byte)


def newest_intact(store: ObjectStore, trial: str, before_step: int | None = None, every_byte: bool = False) -> Intact:
    """The checkpoint to restore from, and why not a newer one.

    Proves manifest, indexes and the presence of every chunk; flipped bytes in chunks show up while they are read, after
    which a caller asks again with `before_step` set to the step that failed.
    """
    problems: list[Problem] = []
    for step in reversed(list_manifests(store, trial)):
        if before_step is not None and step >= before_step:
            continue
        try:
            manifest = read_manifest(store, trial, step)
        except CheckpointError as error:
            problems.append(_problem(error, f"trials/{trial}/step {step}"))
            continue
        found = verify(store, manifest, every_byte)
        if not found:
            return Intact(manifest, tuple(problems))
        problems.extend(found)
    return Intact(None, tuple(problems))


def _structure_faults(manifest: Manifest, indexes: Iterable[RankIndex]) -> list[str]:
    faults: list[str] = []
    rows: list[Row] = []
    for ref, index in zip(manifest.indexes, indexes, strict=True):
        if (index.rank, index.world_size) != (ref.rank, manifest.world_size):
            faults.append(
                f"{ref.key} is rank {index.rank} of {index.world_size}, not rank {ref.rank} of {manifest.world_size}"
            )
        rows.extend(held.row for held in index.rows)
    return faults + cover_faults(rows, manifest.parameters)


def _chunk_problems(store: ObjectStore, chunks: Iterable[StoredChunk], every_byte: bool) -> list[Problem]:
    patience = Patience(ATTEMPTS)

    def check(chunk: StoredChunk) -> Problem | None:
        # The last leaf alone proves that the object is there and long enough.
        start = 0 if every_byte else (chunk.size_bytes - 1) // chunk.leaf_bytes * chunk.leaf_bytes
        try:
            read_verified(store, chunk, start, chunk.size_bytes, patience)
        except CheckpointCorrupt as error:
            return _problem(error, chunk.digest)
        return None

    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="checkpoint-verify") as threads:
        return [problem for problem in threads.map(check, chunks) if problem is not None]


def _problem(error: CheckpointError, key: str) -> Problem:
    return Problem(str(error.fields.get("key", key)), error.message)
