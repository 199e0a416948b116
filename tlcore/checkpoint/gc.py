"""Garbage collection: delete the chunks of a run that no checkpoint needs, and what abandoned saves left behind.

Owns: the order of a collection and its report. Does not own: what a checkpoint needs (`marking.py`), what is said to
running saves (`notices.py`). Called by `tlcore checkpoints gc`; safe beside everything else that a run does.

    1. list the chunks; candidates are older than the grace period
    2. mark from all manifests, and from the indexes of every checkpoint directory in which anything is young
    3. post a notice naming the candidates that are not marked, and the leftovers under `trials/`
    4. list manifests and indexes again, and mark from what is new
    5. delete what neither marking needs
    6. say in the notice that it is done, and what is gone

Why no checkpoint can lose a chunk or an index. Let its manifest be put at time m, and let w be the moment before, when
its commit looks at the notices (`Committer.publish`); let this collection post its notice at n and begin its second
marking at s, so n < s.

* n < w: the commit finds the notice, waits until this collection is done, and is given up if something of its own is
  gone. Nothing is lost: the writer forgets what the notice names and sends it again.
* w < n, and so w < s: the second marking finds all that the checkpoint needs. Either its manifest is there already. Or it
  is a save: its indexes were put before w, and its directory is young, since rank 0 put its own index at most
  `commit.COMMIT_WITHIN_S` before m, which is less than any grace period. Or it is a clone: the donor's manifest was seen
  at most as long before m, so that it is there still, or its copy is, and as young.

It does not matter how a save came by its chunks: sent just now; sent anew while the old object of the same name was about
to be deleted (the case that no marking can see); or not sent, because an earlier checkpoint named them. What keeps saves
from being given up again and again is another matter:

* a running save: what it sends is young; what it reuses is named by the newest manifest that it saw, which retention
  leaves alone until the next commit, or was sent within `UNCOMMITTED_REUSE_S`, half of the least grace period;
* a restored run's first save reuses what the restored manifest names. Where that was deleted meanwhile (by a stale
  writer's retention), the copy that `retention.delete_checkpoint` leaves counts for the grace period;
* a clone of another trial needs its donor for as long as it takes to put one manifest;
* retention beside it: a manifest that is deleted between the markings was found by the first, or its copy is found by the
  second; one that goes while it is being read is passed over, for the same reason;
* a restore, an export or a fetch under way: whoever has read a manifest can read its chunks for the grace period after
  its deletion.

A manifest, or an index that counts, that cannot be read stops the collection before anything is deleted: what it named is
not known. Ages are differences of the store's own times. Listings of a network file system may be a minute old on another
host, so there the collection waits `2 * lag` between the notice and the second marking: a commit that could not see the
notice yet is then old enough to be seen. Two collections at once are harmless. One that was suspended for longer than
`RENEW_S` renews its notice and marks anew before it goes on; a commit takes one for dead after `DEAD_S`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tlcore.checkpoint.marking import Marker, Marking
from tlcore.checkpoint.notices import KEEP_S, RENEW_S, Posted, expired
from tlcore.checkpoint.upload import UNCOMMITTED_REUSE_S
from tlcore.errors import RequestError
from tlcore.storage import reclaim
from tlcore.storage.base import ObjectInfo, ObjectStore
from tlcore.storage.clock import listing_lag_s, store_now
from tlcore.storage.keys import CHUNKS_PREFIX, parse_chunk_key, parse_claim_key, parse_rank_index_key, parse_step_key

GRACE_S = 24 * 3600.0
LEAST_GRACE_S = 2 * UNCOMMITTED_REUSE_S
MOST_GRACE_S = 10 * 365 * 24 * 3600.0
"""Longer than any run is kept; without a bound its beginning would lie before the calendar's."""
DELETE_AT_ONCE = 1000

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and of how much."""


@dataclass
class TrialGarbage:
    """What goes of one trial: steps that never got a manifest or have lost it, and the chunks that only they named."""

    steps: set[int] = field(default_factory=set)
    objects: int = 0
    chunks: int = 0
    chunk_bytes: int = 0


@dataclass(frozen=True)
class GcReport:
    """What a collection found: chunks that stay; chunks and leftovers that went (or would go, on a dry run).

    `deleted_halves` are half-written files that killed writers left in a directory, known only once they are gone.
    `trials` says the same by trial; chunks that no index names any more are under the empty name.
    """

    kept: int
    kept_bytes: int
    deleted: int
    deleted_bytes: int
    deleted_leftovers: int
    deleted_halves: int = 0
    dry_run: bool = False
    trials: Mapping[str, TrialGarbage] = field(default_factory=dict)


def gc(
    store: ObjectStore,
    *,
    grace_s: float = GRACE_S,
    dry_run: bool = False,
    progress: Progress | None = None,
    now: datetime | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> GcReport:
    """Collect one run.

    Args:
        store: rooted at the run.
        grace_s: seconds for which everything stays, whoever needs it.
        now: the store's time, timezone-aware; None asks it.
        sleep, clock: for tests.

    Raises RequestError as `check_grace` does; CheckpointCorrupt or CheckpointIncompatible when a manifest or index cannot
    be read; StorageError.
    """
    check_grace(grace_s)
    return Collection(store, now or store_now(store), grace_s, progress or _silent, sleep, clock).run(dry_run)


def check_grace(grace_s: float) -> None:
    """Raise RequestError for a grace period that a collection cannot have; nothing was done then."""
    if not LEAST_GRACE_S <= grace_s <= MOST_GRACE_S:  # NaN is neither
        raise RequestError(
            f"a grace period of {grace_s:g} s: at least {LEAST_GRACE_S:g} s, or running saves would be given up, "
            "and at most ten years",
            hint=f"choose {LEAST_GRACE_S / 3600:g} to {MOST_GRACE_S / 3600:g} hours; a day is usual",
        )


def _silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


class Collection:
    """One collection; `spent.py` makes another of it by its marker and its candidates."""

    def __init__(
        self,
        store: ObjectStore,
        now: datetime,
        grace_s: float,
        progress: Progress,
        sleep: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        self._store, self._now, self._progress, self._sleep, self._clock = store, now, progress, sleep, clock
        self._before = now - timedelta(seconds=grace_s)
        self._marker: Marker = Marker(store, self._before)

    def run(self, dry_run: bool) -> GcReport:
        self._progress("listing chunks", 0, 0)
        chunks = {each.key: each for each in self._store.list(CHUNKS_PREFIX) if parse_chunk_key(each.key) is not None}
        self._progress("marking", 0, len(chunks))
        marked = self._marker.mark()
        doomed = self._needless(self._candidates(chunks), marked)
        shares = self._shares(doomed, marked)
        doomed |= {each.key: each for each in marked.leftovers}
        halves = 0
        if not dry_run:
            self._delete(doomed)
            halves = reclaim(self._store, self._before)
            self._store.delete(expired(self._store, self._now - timedelta(seconds=KEEP_S)))
        gone = [chunks[key] for key in doomed if key in chunks]
        gone_bytes = sum(each.size_bytes for each in gone)
        kept_bytes = sum(each.size_bytes for each in chunks.values()) - gone_bytes
        return GcReport(
            len(chunks) - len(gone), kept_bytes, len(gone), gone_bytes, len(doomed) - len(gone), halves, dry_run, shares
        )

    def _candidates(self, chunks: Mapping[str, ObjectInfo]) -> dict[str, ObjectInfo]:
        return {key: each for key, each in chunks.items() if each.modified < self._before}

    def _delete(self, doomed: dict[str, ObjectInfo]) -> None:
        """Delete all of `doomed` but what turns out to be needed, which is taken out of it.

        On an error the notice stays as it is: a request that timed out may still be carried out.
        """
        if not doomed:
            return
        posted = Posted(self._store, self._now, doomed)
        deleted: set[str] = set()
        waiting = self._announce(posted, doomed)
        since = self._clock()
        while waiting:
            if self._clock() - since > RENEW_S:
                waiting = self._announce(posted, waiting)
                since = self._clock()
            batch = sorted(waiting)[:DELETE_AT_ONCE]
            self._store.delete(batch)
            deleted.update(batch)
            waiting = {key: each for key, each in waiting.items() if key not in deleted}
            self._progress("deleting", len(deleted), len(deleted) + len(waiting))
        posted.done(deleted)
        for key in doomed.keys() - deleted:
            del doomed[key]

    def _announce(self, posted: Posted, doomed: Mapping[str, ObjectInfo]) -> dict[str, ObjectInfo]:
        """Post or renew the notice, mark again, and return what is still not needed."""
        posted.renew()
        lag = listing_lag_s(self._store)
        if lag:
            self._progress("waiting for other hosts to see the notice", 0, 0)
            self._sleep(2 * lag)
        self._progress("marking again", 0, len(doomed))
        return self._needless(doomed, self._marker.mark())

    @staticmethod
    def _needless(candidates: Mapping[str, ObjectInfo], marked: Marking) -> dict[str, ObjectInfo]:
        """Chunks that a marking does not name, and other objects that it calls leftovers."""
        leftovers = set(marked.leftovers)

        def is_needless(key: str, each: ObjectInfo) -> bool:
            digest = parse_chunk_key(key)
            return each in leftovers if digest is None else digest not in marked.named

        return {key: each for key, each in candidates.items() if is_needless(key, each)}

    def _shares(self, doomed: Mapping[str, ObjectInfo], marked: Marking) -> dict[str, TrialGarbage]:
        """By trial, before anything is deleted."""
        found: dict[str, TrialGarbage] = {}
        unnamed = {_digest(each): each.size_bytes for each in doomed.values()}
        for each in marked.leftovers:
            trial, step = _place(each)
            share = found.setdefault(trial, TrialGarbage())
            share.objects += 1
            if step is not None:
                share.steps.add(step)
            if parse_rank_index_key(each.key) is not None:
                mine = self._marker.digests_of(each) & unnamed.keys()
                share.chunks += len(mine)
                share.chunk_bytes += sum(unnamed.pop(digest) for digest in mine)
        if unnamed:
            found[""] = TrialGarbage(chunks=len(unnamed), chunk_bytes=sum(unnamed.values()))
        return dict(sorted(found.items()))


def _place(each: ObjectInfo) -> tuple[str, int | None]:
    step, claim = parse_step_key(each.key), parse_claim_key(each.key)
    if step is not None:
        return step.trial, step.step
    assert claim is not None  # a leftover is one or the other
    return claim.trial, None


def _digest(each: ObjectInfo) -> str:
    return each.key.rpartition("/")[2]
