"""What a run's checkpoints need: one marking of chunks and indexes, from manifests.

Owns the rule of what counts. Does not delete anything (`gc.py`). Called by `gc.py`, at least twice per collection.

Needed are: every manifest, the indexes that it names, wherever they lie (a clone names those of its donor), and their
chunks. In a directory `trials/<trial>/step-<n>/` in which anything is younger than the grace period, all the rest counts
too: the indexes of a save under way (its rank 0 puts its own minutes before the manifest, so the directory is young when
it matters), and the manifests that were deleted or replaced lately (`RETIRED-...`), which somebody may still be reading
or cloning.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from tlcore.checkpoint.manifest import Manifest, parse_index, parse_manifest, read_index
from tlcore.errors import CheckpointCorrupt, CheckpointError, ObjectMissing
from tlcore.storage.base import ObjectInfo, ObjectStore
from tlcore.storage.keys import (
    TRIALS_PREFIX,
    parse_claim_key,
    parse_manifest_key,
    parse_rank_index_key,
    parse_retired_key,
    parse_step_key,
)

READERS = 16


@dataclass(frozen=True)
class Marking:
    """One look at everything under `trials/`: the digests that are needed, and the objects that are not."""

    named: frozenset[str]
    leftovers: tuple[ObjectInfo, ...]


@dataclass
class Needed:
    """Keys of indexes and digests of chunks."""

    keys: set[str] = field(default_factory=set)
    digests: set[str] = field(default_factory=set)


class Marker:
    """Marks a run. What one marking has read the next one does not read again."""

    def __init__(self, store: ObjectStore, before: datetime) -> None:
        self._store = store
        self._before = before
        self._manifests: dict[ObjectInfo, Manifest] = {}
        self._indexes: dict[ObjectInfo, frozenset[str]] = {}

    def mark(self) -> Marking:
        """Look at all trials now.

        Raises CheckpointCorrupt or CheckpointIncompatible when a manifest, or an index that counts, cannot be read: what
        it names is then not known; StorageError.
        """
        listed = {each.key: each for each in self._store.list(TRIALS_PREFIX)}
        steps: dict[tuple[str, int], list[ObjectInfo]] = defaultdict(list)
        for each in listed.values():
            parsed = parse_step_key(each.key)
            if parsed is not None:
                steps[parsed.trial, parsed.step].append(each)
        keys: set[str] = set()
        named: set[str] = set()
        with ThreadPoolExecutor(READERS, thread_name_prefix="checkpoint-mark") as threads:
            for needed in threads.map(lambda beside: self._needed_by(beside, listed), steps.values()):
                keys |= needed.keys
                named |= needed.digests
        old = (each for beside in steps.values() if not self._is_young(beside) for each in beside)
        leftovers = [each for each in old if each.key not in keys]
        return Marking(frozenset(named), (*leftovers, *_old_claims(listed.values(), self._before)))

    def digests_of(self, each: ObjectInfo) -> frozenset[str]:
        """What an index names; nothing where it cannot be read."""
        try:
            return self._index(each)
        except CheckpointError:
            return frozenset()

    def _is_young(self, beside: Iterable[ObjectInfo]) -> bool:
        return any(each.modified >= self._before for each in beside)

    def _needed_by(self, beside: list[ObjectInfo], listed: dict[str, ObjectInfo]) -> Needed:
        """What the objects of one step need."""
        needed = Needed()
        young = self._is_young(beside)
        for each in beside:
            if parse_manifest_key(each.key) is not None:
                needed.keys.add(each.key)
                self._add_manifest(each, listed, needed)
            elif young and parse_retired_key(each.key) is not None:
                # What cannot be read of a checkpoint that was deleted is nobody's any more.
                with suppress(CheckpointError):
                    self._add_manifest(each, listed, needed)
            elif young and parse_rank_index_key(each.key) is not None:
                needed.digests |= self._index(each)
        return needed

    def _add_manifest(self, each: ObjectInfo, listed: dict[str, ObjectInfo], needed: Needed) -> None:
        try:
            if each not in self._manifests:
                self._manifests[each] = parse_manifest(self._store.get(each.key), each.key)
        except ObjectMissing:
            return  # deleted since it was listed, which left a copy for the next marking to find
        for ref in self._manifests[each].indexes:
            needed.keys.add(ref.key)
            info = listed.get(ref.key)
            if info is None or info not in self._indexes:
                try:
                    found = frozenset(chunk.digest for chunk in read_index(self._store, ref).chunks)
                except CheckpointCorrupt:
                    if not any(now.key == each.key for now in self._store.list(each.key)):
                        return  # the whole checkpoint went meanwhile
                    raise
                if info is not None:
                    self._indexes[info] = found
                needed.digests |= found
            else:
                needed.digests |= self._indexes[info]

    def _index(self, each: ObjectInfo) -> frozenset[str]:
        if each not in self._indexes:
            try:
                found = parse_index(self._store.get(each.key), each.key).chunks
            except ObjectMissing:
                return frozenset()
            self._indexes[each] = frozenset(chunk.digest for chunk in found)
        return self._indexes[each]


def _old_claims(listed: Iterable[ObjectInfo], before: datetime) -> list[ObjectInfo]:
    """Claims of attempts that a newer one has followed; the newest stays, since the next attempt is numbered by it."""
    claims: dict[str, list[tuple[int, ObjectInfo]]] = defaultdict(list)
    for each in listed:
        parsed = parse_claim_key(each.key)
        if parsed is not None:
            claims[parsed.trial].append((parsed.attempt, each))
    newest = {trial: max(attempt for attempt, _ in found) for trial, found in claims.items()}
    return [
        each
        for trial, found in claims.items()
        for attempt, each in found
        if attempt < newest[trial] and each.modified < before
    ]
