"""One rank's bytes on their way to the store: hashed once, sent unless they are there already.

Owns: the order hash -> look up -> PUT, and which digests count as "there already". Does not own: the snapshot
(`snapshot.py`), the commit (`commit.py`). Called by `writer.py`, in its background thread.

The calling thread hashes chunk after chunk (one core is ahead of any network this is likely to meet) and hands each
to a pool of `connections` threads that only wait in PUT; both release the GIL. A thread and not a process: what they
hold the GIL for is some microseconds per leaf, and a process would have to share the snapshot's memory with its
parent to be no worse.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from tlcore.checkpoint.digest import chunk_digest, leaf_digests
from tlcore.checkpoint.intervals import ByteArray
from tlcore.checkpoint.manifest import StoredChunk
from tlcore.checkpoint.patience import Patience
from tlcore.checkpoint.plan import PlannedChunk
from tlcore.checkpoint.snapshot import SlotPool
from tlcore.errors import TlcoreError
from tlcore.storage.base import ObjectStore
from tlcore.storage.keys import chunk_key

UNCOMMITTED_REUSE_S = 3600.0
"""How long a chunk that this process sent may be reused without a commit that holds it; garbage collection must wait
longer.
"""


@dataclass(frozen=True)
class Ready:
    """A chunk to be stored: either its bytes (`body`, in `slot` when it must be given back), or what is known of
    it (`known`).
    """

    planned: PlannedChunk
    body: memoryview | None = None
    slot: ByteArray | None = None
    known: StoredChunk | None = None


@dataclass(frozen=True)
class Sent:
    """The chunks of one save in the plan's order, and what it took."""

    chunks: tuple[StoredChunk, ...]
    bytes_new: int
    bytes_reused: int


class Reusable:
    """Digests whose objects are surely in the store and stay there: those of the last commit seen, and those sent
    lately.

    Nothing older: retention may delete the manifest that kept a chunk alive, and garbage collection then the
    chunk.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._committed: frozenset[str] = frozenset()
        self._sent: dict[str, float] = {}

    def __contains__(self, digest: str) -> bool:
        with self._lock:
            sent = self._sent.get(digest)
            return digest in self._committed or (sent is not None and self._clock() - sent < UNCOMMITTED_REUSE_S)

    def sent(self, digests: Iterable[str]) -> None:
        """These were PUT just now."""
        now = self._clock()
        with self._lock:
            self._sent = {each: at for each, at in self._sent.items() if now - at < UNCOMMITTED_REUSE_S}
            self._sent.update(dict.fromkeys(digests, now))

    def committed(self, digests: Iterable[str]) -> None:
        """The newest manifest holds these; what only an older one held is forgotten."""
        with self._lock:
            self._committed = frozenset(digests)


class ChunkSender:
    """Stores chunks of one rank. One save at a time; `threads` may be shared."""

    def __init__(
        self, store: ObjectStore, reusable: Reusable, slots: SlotPool, threads: ThreadPoolExecutor, patience: Patience
    ) -> None:
        self._store = store
        self._reusable = reusable
        self._slots = slots
        self._threads = threads
        self._patience = patience

    def send(self, ready: Iterator[Ready]) -> Sent:
        """Store every chunk; returns when all are durable.

        Raises the first error, after every slot has been given back.
        """
        stored: list[StoredChunk] = []
        sending: dict[str, Future[None]] = {}
        failures: list[TlcoreError] = []
        new = reused = 0
        for each in ready:
            if failures:
                self._give_back(each)
                continue
            chunk = each.known or self._describe(each)
            stored.append(chunk)
            if each.body is None or chunk.digest in sending or chunk.digest in self._reusable:
                reused += chunk.size_bytes
                self._give_back(each)
            else:
                new += chunk.size_bytes
                sending[chunk.digest] = self._threads.submit(self._put, chunk.digest, each, failures)
        for future in sending.values():
            future.result()
        if failures:
            raise failures[0]
        self._reusable.sent(sending)
        return Sent(tuple(stored), new, reused)

    def _describe(self, each: Ready) -> StoredChunk:
        assert each.body is not None  # a chunk without bytes is a known one
        planned = each.planned
        leaves = leaf_digests(each.body, planned.leaf_bytes)
        digest = chunk_digest(leaves, planned.size_bytes, planned.leaf_bytes)
        return StoredChunk(digest, planned.size_bytes, planned.leaf_bytes, leaves)

    def _put(self, digest: str, each: Ready, failures: list[TlcoreError]) -> None:
        body = each.body
        assert body is not None
        try:
            self._patience.ask(lambda: self._store.put(chunk_key(digest), body))
        except TlcoreError as error:
            failures.append(error)
        finally:
            self._give_back(each)

    def _give_back(self, each: Ready) -> None:
        if each.slot is not None:
            self._slots.give(each.slot)
