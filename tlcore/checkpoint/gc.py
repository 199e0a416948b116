"""Garbage collection: delete the chunks of a run that no checkpoint needs.

Owns: marking, the grace period, the deletion. Called by `tlcore checkpoints gc`; safe beside running saves.

A chunk is deleted only when nothing names it and it is older than the grace period. Named by: every manifest, and
every rank index of a save that has no manifest yet and is itself younger than the grace period. Why no save can lose
a chunk: what it uploads is young; what it reuses is named by the newest manifest, which retention never deletes, or
was sent by the same process within an hour (`upload.UNCOMMITTED_REUSE_S`), which is why the grace period has a floor.
A manifest that vanishes while it is read means that retention is at work: marking begins again, since the manifest
that took its place may not have been listed. A manifest or index that cannot be read stops the collection: what it
named is not known.

Limits of this version: clocks are the store's (`modified`) against `now`; two collections at once are harmless but
wasteful.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta

from tlcore.checkpoint.manifest import parse_index, parse_manifest, read_index
from tlcore.checkpoint.upload import UNCOMMITTED_REUSE_S
from tlcore.errors import CheckpointError, ObjectMissing, RequestError
from tlcore.storage.base import ObjectInfo, ObjectStore
from tlcore.storage.keys import (
    CHUNKS_PREFIX,
    TRIALS_PREFIX,
    checkpoint_prefix,
    parse_chunk_key,
    parse_manifest_key,
    parse_rank_index_key,
)

GRACE_S = 24 * 3600.0
LEAST_GRACE_S = 2 * UNCOMMITTED_REUSE_S
MARK_TRIES = 5
DELETE_AT_ONCE = 1000


@dataclass(frozen=True)
class GcReport:
    """What a collection found: chunks that stay, and chunks and abandoned indexes that went (or would go, on a
    dry run).
    """

    kept: int
    kept_bytes: int
    deleted: int
    deleted_bytes: int
    deleted_indexes: int


class _Moved(Exception):
    """The set of manifests changed while it was read."""


def gc(
    store: ObjectStore,
    now: datetime,
    grace_s: float = GRACE_S,
    dry_run: bool = False,
    progress: Callable[[int], None] | None = None,
) -> GcReport:
    """Collect one run's chunks; `store` is rooted at the run, `now` is timezone-aware, `progress` gets the number
    of deleted chunks so far.

    Raises RequestError for a grace period below two hours, CheckpointCorrupt when a manifest or index cannot be
    read (nothing has been deleted then), CheckpointError when manifests change faster than they can be read.
    """
    if grace_s < LEAST_GRACE_S:
        raise RequestError(
            f"a grace period of {grace_s:g} s: at least {LEAST_GRACE_S:g} s, or running saves could lose chunks"
        )
    before = now - timedelta(seconds=grace_s)
    # Candidates are listed before marking: a chunk that appears later is not one.
    chunks = list(store.list(CHUNKS_PREFIX))
    named, abandoned = _mark(store, before)
    doomed = [
        each for each in chunks if each.modified < before and _digest(each) is not None and _digest(each) not in named
    ]
    if not dry_run:
        for at in range(0, len(doomed), DELETE_AT_ONCE):
            store.delete([each.key for each in doomed[at : at + DELETE_AT_ONCE]])
            if progress is not None:
                progress(min(len(doomed), at + DELETE_AT_ONCE))
        store.delete([each.key for each in abandoned])
    total = sum(each.size_bytes for each in chunks)
    gone = sum(each.size_bytes for each in doomed)
    return GcReport(len(chunks) - len(doomed), total - gone, len(doomed), gone, len(abandoned))


def _mark(store: ObjectStore, before: datetime) -> tuple[set[str], list[ObjectInfo]]:
    """Digests that are needed, and what is left under steps that never got a manifest."""
    for _ in range(MARK_TRIES):
        try:
            return _mark_once(store, before)
        except _Moved:
            continue
    raise CheckpointError(
        f"{store.url}: checkpoints changed {MARK_TRIES} times while they were read", hint="run gc again later"
    )


def _mark_once(store: ObjectStore, before: datetime) -> tuple[set[str], list[ObjectInfo]]:
    listed = list(store.list(TRIALS_PREFIX))
    committed: set[tuple[str, int]] = {
        parsed for each in listed if (parsed := parse_manifest_key(each.key)) is not None
    }
    named: set[str] = set()
    for trial, step in committed:
        named |= _named_by(store, f"{checkpoint_prefix(trial, step)}MANIFEST.json")
    loose = [each for each in listed if not _is_committed(each.key, committed)]
    for each in loose:
        if each.modified >= before and parse_rank_index_key(each.key) is not None:
            named |= _named_by_index(store, each.key)
    return named, [each for each in loose if each.modified < before]


def _named_by(store: ObjectStore, key: str) -> set[str]:
    try:
        manifest = parse_manifest(store.get(key), key)
    except ObjectMissing:
        raise _Moved from None
    try:
        return {chunk.digest for ref in manifest.indexes for chunk in read_index(store, ref).chunks}
    except CheckpointError:
        if not any(each.key == key for each in store.list(key)):
            raise _Moved from None
        raise


def _named_by_index(store: ObjectStore, key: str) -> set[str]:
    try:
        return {chunk.digest for chunk in parse_index(store.get(key), key).chunks}
    except ObjectMissing:
        raise _Moved from None


def _is_committed(key: str, committed: AbstractSet[tuple[str, int]]) -> bool:
    """Whether `key` belongs to a committed checkpoint, or is nothing of a checkpoint's at all."""
    trial, _, rest = key.removeprefix(TRIALS_PREFIX).partition("/")
    step, _, name = rest.partition("/")
    if not name.startswith("rank-") or not step.removeprefix("step-").isdecimal():
        return True
    return (trial, int(step.removeprefix("step-"))) in committed


def _digest(each: ObjectInfo) -> str | None:
    return parse_chunk_key(each.key)
