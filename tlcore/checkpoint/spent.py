"""Collection at once of what deleted checkpoints alone needed, for the driver of a sweep on its own run.

Owns what may go without the day of grace that `gc.py` gives. Called by `prune.py`. `gc.py`'s order is kept: two markings,
the notice between them, and its proof that no manifest can lose a chunk; what differs is whom a collection waits for.

The day of grace is for those that a collection knows nothing of: saves under way, readers of a checkpoint that was deleted,
clones. The driver knows the run's writers and clones, so here:

* Candidates are only chunks that a deleted manifest named, never those that nobody names yet: what a running save has sent
  is no candidate, even before its index is there. One sent again less than `SENT_LATELY_S` ago stays.
* Every rank index counts, however old, unless a deleted manifest names those very bytes (by digest): so a save is marked
  from its first index on, which is before it looks at the notices. Should it have counted on a chunk before that, it finds
  the notice, is given up as `notices.py` says, and the next save sends the chunk again.
* A manifest that was deleted counts for `reading_s`, for readers from outside: an export, a fetch, another run's start.
  With 0 such a reader may find the chunks gone; its error says so, and nothing wrong is ever read, since every chunk is
  proved by its digest.
* A donor whose clone is being made must be pinned from before the donor is looked at until the clone is there. `pinned` is
  asked at each marking.
* `still_mine` is asked after the second marking: a driver that was suspended while another one took the run over, whose
  clones it cannot know, deletes nothing.

Everything else, such as abandoned saves, is left to `gc.py`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import datetime, timedelta

from tlcore.checkpoint.gc import GRACE_S, GcReport
from tlcore.checkpoint.gc import Collection as GarbageCollection
from tlcore.checkpoint.keeping import Place
from tlcore.checkpoint.manifest import IndexRef, parse_manifest, read_index
from tlcore.checkpoint.marking import Marker, Marking, Needed
from tlcore.checkpoint.notices import Posted
from tlcore.errors import CheckpointError, ObjectMissing
from tlcore.storage.base import ObjectInfo, ObjectStore
from tlcore.storage.clock import store_now
from tlcore.storage.keys import (
    TRIALS_PREFIX,
    parse_manifest_key,
    parse_rank_index_key,
    parse_retired_key,
    parse_step_key,
)

SENT_LATELY_S = 30.0


def collect_spent(
    store: ObjectStore,
    *,
    reading_s: float,
    pinned: Callable[[], Collection[Place]] = tuple,
    still_mine: Callable[[], None] = lambda: None,
    now: datetime | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> GcReport:
    """Delete what only deleted checkpoints needed. Where none was deleted, nothing is read and the report says nothing.

    Args:
        store: rooted at the run that the caller drives.
        reading_s: seconds for which a deleted checkpoint can be read on.
        pinned: checkpoints that count although they were deleted; asked at each marking.
        still_mine: raises when the run is another driver's.
        now: the store's time; None asks it.

    Raises CheckpointCorrupt, CheckpointIncompatible when a manifest or index that counts cannot be read, and then deletes
    nothing; StorageError; what `still_mine` raises.
    """
    now = now or store_now(store)
    readable = now - timedelta(seconds=reading_s)
    if not any(parse_retired_key(each.key) and each.modified <= readable for each in store.list(TRIALS_PREFIX)):
        return GcReport(0, 0, 0, 0, 0)
    marker = SpentMarker(store, readable, pinned)
    return _SpentCollection(store, now, marker, still_mine, sleep).run(dry_run=False)


class SpentMarker(Marker):
    """Marks as needed all but what manifests deleted before `readable` named, pins aside."""

    def __init__(self, store: ObjectStore, readable: datetime, pinned: Callable[[], Collection[Place]]) -> None:
        super().__init__(store, readable)
        self._readable, self._pinned = readable, pinned
        self._spent_by: dict[ObjectInfo, tuple[tuple[IndexRef, ...], frozenset[str]]] = {}
        self.spent: frozenset[str] = frozenset()

    def mark(self) -> Marking:
        """As `Marker.mark`; leaves the digests that deleted manifests named in `spent`."""
        listed = {each.key: each for each in self._store.list(TRIALS_PREFIX)}
        pinned = set(self._pinned())
        steps: dict[Place, list[ObjectInfo]] = defaultdict(list)
        for each in listed.values():
            if (parsed := parse_step_key(each.key)) is not None:
                steps[parsed.trial, parsed.step].append(each)
        done = {
            each: self._read_spent(each)
            for place, beside in steps.items()
            if place not in pinned
            for each in beside
            if self._is_spent(each)
        }
        # of all trials: a deleted clone's indexes lie in the directory of its donor
        refs = {ref.key: ref for found, _ in done.values() for ref in found}
        gone = {key for key, ref in refs.items() if key in listed and self._is_that(ref)}
        needed = Needed()
        for beside in steps.values():
            for each in beside:
                self._add(each, listed, needed, done, gone)
        self.spent = frozenset().union(*(digests for _, digests in done.values()))
        leftovers = [*done, *(listed[key] for key in sorted(gone))]
        return Marking(frozenset(needed.digests), tuple(each for each in leftovers if each.key not in needed.keys))

    def _add(
        self,
        each: ObjectInfo,
        listed: dict[str, ObjectInfo],
        needed: Needed,
        done: Collection[ObjectInfo],
        gone: Collection[str],
    ) -> None:
        """Add what one object needs."""
        if parse_manifest_key(each.key) is not None:
            needed.keys.add(each.key)
            self._add_manifest(each, listed, needed)
        elif parse_retired_key(each.key) is not None and each not in done:
            with suppress(CheckpointError):
                self._add_manifest(each, listed, needed)
        elif parse_rank_index_key(each.key) is not None and each.key not in gone:
            needed.digests |= self._index(each)

    def _is_spent(self, each: ObjectInfo) -> bool:
        return parse_retired_key(each.key) is not None and each.modified <= self._readable

    def _read_spent(self, each: ObjectInfo) -> tuple[tuple[IndexRef, ...], frozenset[str]]:
        """The indexes of a deleted manifest and what they name; nothing where they cannot be read any more."""
        if each not in self._spent_by:
            found: set[str] = set()
            refs: tuple[IndexRef, ...] = ()
            try:
                refs = parse_manifest(self._store.get(each.key), each.key).indexes
            except (CheckpointError, ObjectMissing):
                refs = ()
            for ref in refs:
                with suppress(CheckpointError):
                    found.update(chunk.digest for chunk in read_index(self._store, ref).chunks)
            self._spent_by[each] = refs, frozenset(found)
        return self._spent_by[each]

    def _is_that(self, ref: IndexRef) -> bool:
        """Whether there are the bytes that the deleted manifest meant, and not another save's."""
        try:
            read_index(self._store, ref)
        except CheckpointError:
            return False
        return True


class _SpentCollection(GarbageCollection):
    """A collection whose candidates are what a `SpentMarker` found."""

    _marker: SpentMarker

    def __init__(
        self,
        store: ObjectStore,
        now: datetime,
        marker: SpentMarker,
        still_mine: Callable[[], None],
        sleep: Callable[[float], None],
    ) -> None:
        super().__init__(store, now, GRACE_S, lambda what, done, total: None, sleep, time.monotonic)
        self._marker, self._still_mine = marker, still_mine

    def _candidates(self, chunks: Mapping[str, ObjectInfo]) -> dict[str, ObjectInfo]:
        before = self._now - timedelta(seconds=SENT_LATELY_S)
        spent = self._marker.spent
        return {
            key: each for key, each in chunks.items() if key.rpartition("/")[2] in spent and each.modified <= before
        }

    def _announce(self, posted: Posted, doomed: Mapping[str, ObjectInfo]) -> dict[str, ObjectInfo]:
        waiting = super()._announce(posted, doomed)
        self._still_mine()
        return waiting
