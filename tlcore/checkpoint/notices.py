"""Notices: what a garbage collection says to running saves before it deletes anything, and what they make of it.

Owns the notice (`gc/<name>.json`), its life, and the check that every commit makes. Called by `gc.py`, which posts, and
by `commit.py` and `writer.py`, which read.

A collection posts the keys of what it is about to delete, marks once more, deletes, and then says that it is done; the notice
stays for `KEEP_S`. A commit looks at the notices when all indexes of its step are there and before the manifest: where
one names a chunk of the step, it waits until that collection is done and looks whether the chunk is still there. So
either the collection's last marking saw the step's indexes, or the commit saw the notice: no manifest ever names a chunk
that was deleted, not even one that was old and unneeded, sent anew, and deleted a moment later.

A collection that was killed never says that it is done. It renews its notice every `RENEW_S` while it deletes, so one
that has not changed for `DEAD_S` is taken for dead.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from tlcore.checkpoint.digest import seal, unseal
from tlcore.checkpoint.fields import Fields
from tlcore.errors import CheckpointCorrupt, CheckpointError, ObjectMissing
from tlcore.storage.base import ObjectInfo, ObjectStore
from tlcore.storage.keys import NOTICES_PREFIX, parse_chunk_key

FORMAT = 1
RENEW_S = 60.0
DEAD_S = 300.0
KEEP_S = 7 * 24 * 3600.0
"""Longer than any save may take."""
KEYS_PER_NOTICE = 20_000
_LOOKS_AT_ONCE = 8


@dataclass(frozen=True)
class Notice:
    """One notice as a reader finds it. `keys` None: it cannot be read, so it may name anything."""

    key: str
    modified: datetime
    keys: frozenset[str] | None
    done: bool


class Posted:
    """The notices of one collection: a key stands in the same one from beginning to end. Not for several threads."""

    def __init__(self, store: ObjectStore, now: datetime, keys: Iterable[str]) -> None:
        self._store = store
        name = f"{NOTICES_PREFIX}{now:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        ordered = sorted(keys)
        self._parts = {
            f"{name}-{at // KEYS_PER_NOTICE}.json": ordered[at : at + KEYS_PER_NOTICE]
            for at in range(0, len(ordered), KEYS_PER_NOTICE)
        }

    def renew(self) -> None:
        """Say, or say again, what is about to be deleted."""
        for key, named in self._parts.items():
            self._put(key, named, done=False)

    def done(self, deleted: AbstractSet[str]) -> None:
        """Say what was deleted, and that no more will be; a notice of which nothing was deleted goes."""
        for key, named in self._parts.items():
            gone = [each for each in named if each in deleted]
            if gone:
                self._put(key, gone, done=True)
            else:
                self._store.delete([key])

    def _put(self, key: str, named: Sequence[str], done: bool) -> None:
        self._store.put(key, seal({"format": FORMAT, "kind": "gc-notice", "done": done, "keys": list(named)}))


def read_notice(store: ObjectStore, each: ObjectInfo) -> Notice | None:
    """One notice; None when it was withdrawn meanwhile. Raises StorageError."""
    try:
        top = Fields(unseal(store.get(each.key), each.key), each.key)
        top.integer("format", 1, FORMAT)
        found = [top.as_text(value, "keys") for value in top.sequence("keys")]
        return Notice(each.key, each.modified, frozenset(found), top.flag("done"))
    except ObjectMissing:
        return None
    except CheckpointCorrupt:
        return Notice(each.key, each.modified, None, done=True)


class Noticeboard:
    """The notices of a run as one writer sees them. Each is read once; safe in several threads."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._known: dict[tuple[str, datetime], Notice] = {}
        self._told: set[tuple[str, datetime]] = set()
        self._first_seen: dict[tuple[str, datetime], float] = {}

    def fresh(self) -> AbstractSet[str] | None:
        """Digests of chunks in the notices that are not done, or were not at the last call; None: one cannot be read.

        Such chunks must not be counted on to be in the store, even if they were sent a moment ago.
        """
        found: set[str] = set()
        unreadable = False
        for notice in self._all():
            at = notice.key, notice.modified
            if at not in self._told:
                if notice.done:
                    self._told.add(at)
                unreadable |= notice.keys is None
                found.update(digest for key in notice.keys or () if (digest := parse_chunk_key(key)) is not None)
        return None if unreadable else found

    def check(self, needed: Callable[[], AbstractSet[str]], polls: Iterable[None], what: str) -> None:
        """Return when every object that a collection was about to delete, and that is needed, is known to be there still.

        Args:
            needed: keys of all that a checkpoint needs; asked only when there are notices.
            polls: yields now and then while there is time to wait for a collection that is at work.
            what: the save, for the message.

        Raises CheckpointError when one is gone; the save must then not be committed.
        """
        touched: set[str] = set()
        keys: AbstractSet[str] | None = None
        for _ in polls:
            at_work = False
            for notice in self._all():
                keys = needed() if keys is None else keys
                common = keys if notice.keys is None else keys & notice.keys
                touched |= common
                at_work |= bool(common) and not notice.done and not self._is_dead(notice)
            if not at_work:
                break
        else:
            raise CheckpointError(f"{what}: a garbage collection is still deleting; it is not committed")
        gone = self._absent(sorted(touched))
        if gone:
            raise CheckpointError(
                f"{what}: {len(gone)} of its objects were garbage-collected before it was complete, {gone[0]} among them",
                hint="nothing is lost: the next save sends them again; `tlcore checkpoints gc --grace-hours` must be "
                "longer than a save takes",
            )

    def _is_dead(self, notice: Notice) -> bool:
        now = time.monotonic()
        return now - self._first_seen.setdefault((notice.key, notice.modified), now) >= DEAD_S

    def _absent(self, keys: Sequence[str]) -> list[str]:
        if not keys:
            return []

        def is_there(key: str) -> bool:
            try:
                self._store.get_into(key, 0, [memoryview(bytearray(1))])
            except ObjectMissing:
                return False
            return True

        with ThreadPoolExecutor(_LOOKS_AT_ONCE, thread_name_prefix="checkpoint-notice") as threads:
            there = list(threads.map(is_there, keys))
        return [key for key, found in zip(keys, there, strict=True) if not found]

    def _all(self) -> list[Notice]:
        """Every notice there is. Raises StorageError."""
        with self._lock:
            listed = list(self._store.list(NOTICES_PREFIX))
            now = {(each.key, each.modified) for each in listed}
            self._known = {at: notice for at, notice in self._known.items() if at in now}
            for each in listed:
                at = (each.key, each.modified)
                # One that is not done is read again: times in listings are whole seconds.
                if at not in self._known or not self._known[at].done:
                    notice = read_notice(self._store, each)
                    if notice is not None:
                        self._known[at] = notice
            return list(self._known.values())


def expired(store: ObjectStore, before: datetime) -> list[str]:
    """Keys of notices that no running save can need any more: unchanged since `before`."""
    return [each.key for each in store.list(NOTICES_PREFIX) if each.modified < before]
