"""One rank's bytes on their way to the store: hashed once, sent unless they are there already.

Owns: the order hash -> look up -> PUT, and which digests count as "there already". Does not own: the snapshot
(`snapshot.py`), the commit (`commit.py`). Called by `writer.py`, in its background thread.

A few threads hash, chunk by chunk, and hand each to a pool of threads that only wait in PUT (`puts.py`); both release the
GIL, but for some microseconds per leaf.

Threads and not a process of its own, as far as that could be measured: ZeRO-1 on one rank, 0.1 GB of state, SeaweedFS
on the same two cores, a save under way all the time, three runs. Beside threads a training step took 1.15, 1.67 and
1.51 times as long as without saves; beside a spawned process that hashed and sent the snapshot out of shared memory
1.41 and 1.22 in the two runs that had one; single turns lay between 0.7 and 2.6, the store's own work included. CPU was
1.07 to 1.15 CPU-s/GB either way (with SHA-256 then). So no side is ahead by more than the spread, and the process would bring an
interpreter and a client of its own for every rank, and shared memory that is neither page-locked nor bounded by
`memory_bytes`. Threads of lowered priority (nice 10) showed no gain.

Two threads hash, 4 GB/s each where a core is free; on two busy cores one, two and four were equal within the spread
(0.26 to 0.45 GB/s with `file://` on tmpfs and SHA-256).

Limits: BLAKE3 (0.25 CPU-s/GB, `digest.py`) and the client's copy to the socket, 1.2 CPU-s/GB together with the snapshot at
most; measured 0.95 to 1.17 with the store on the same two cores. The target for a save with hashing and
commit is 0.90 of the raw concurrent PUT of the same bytes (`python -m jobs.bench.checkpoint`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from tlcore.checkpoint.digest import chunk_digest, leaf_digests
from tlcore.checkpoint.manifest import StoredChunk
from tlcore.checkpoint.puts import PutPool
from tlcore.checkpoint.snapshot import Ready
from tlcore.storage.keys import chunk_key

UNCOMMITTED_REUSE_S = 3600.0
"""How long a chunk that this process sent may be reused without a commit that holds it; garbage collection must wait
longer.
"""


@dataclass(frozen=True)
class Sent:
    """The chunks of one save in the plan's order, and what it took; `seconds` from the first chunk to the last."""

    chunks: tuple[StoredChunk, ...] = ()
    bytes_new: int = 0
    bytes_reused: int = 0
    seconds: float = 0.0


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

    def forget(self, digests: AbstractSet[str] | None) -> None:
        """A garbage collection may have deleted these; None: any."""
        with self._lock:
            self._committed = frozenset() if digests is None else self._committed - digests
            self._sent = {each: at for each, at in self._sent.items() if digests is not None and each not in digests}

    def committed(self, digests: Iterable[str]) -> None:
        """The newest manifest holds these; what only an older one held is forgotten."""
        with self._lock:
            self._committed = frozenset(digests)


class ChunkSender:
    """Stores chunks of one rank. One save at a time; `hashers` are the threads that hash."""

    def __init__(self, reusable: Reusable, hashers: ThreadPoolExecutor, puts: PutPool) -> None:
        self._reusable = reusable
        self._hashers = hashers
        self._puts = puts

    def send(self, ready: Iterator[Ready]) -> Sent:
        """Store every chunk; returns when all are durable.

        Raises the first error, after every slot that is not being sent has been given back.
        """
        began = time.monotonic()
        save = _Sending()
        hashing: list[Future[None]] = []
        try:
            for each in ready:
                hashing.append(self._hashers.submit(self._one, each, save))
        finally:
            wait(hashing)
            wait(save.puts.values())
        for done in (*hashing, *save.puts.values()):
            done.result()
        self._reusable.sent(save.puts)
        chunks = tuple(save.chunks[number] for number in range(len(save.chunks)))
        new = sum(
            chunk.size_bytes for chunk in {each.digest: each for each in chunks}.values() if chunk.digest in save.puts
        )
        total = sum(chunk.size_bytes for chunk in chunks)
        return Sent(chunks, new, total - new, time.monotonic() - began)

    def _one(self, each: Ready, save: _Sending) -> None:
        """Hash one chunk and see that it is sent, unless it need not be or the save has failed."""
        passed_on = False
        try:
            if save.failed.is_set():
                return
            chunk = each.known or _describe(each)
            save.chunks[each.number] = chunk
            if each.body is not None and chunk.digest not in self._reusable:
                passed_on = save.send(chunk.digest, lambda: self._put(chunk.digest, each, save))
        except BaseException:
            save.failed.set()
            raise
        finally:
            if not passed_on:
                each.let_go()

    def _put(self, digest: str, each: Ready, save: _Sending) -> Future[None]:
        assert each.body is not None  # a chunk without bytes is a known one
        future = self._puts.submit(chunk_key(digest), each.body, each.let_go)
        future.add_done_callback(lambda done: save.failed.set() if done.exception() else None)
        return future


@dataclass
class _Sending:
    """What the threads of one save share."""

    chunks: dict[int, StoredChunk] = field(default_factory=dict)
    puts: dict[str, Future[None]] = field(default_factory=dict)
    failed: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, digest: str, begin: Callable[[], Future[None]]) -> bool:
        """Begin to send these bytes unless they are on their way already; whether that was done."""
        with self._lock:
            if digest in self.puts:
                return False
            self.puts[digest] = begin()
            return True


def _describe(each: Ready) -> StoredChunk:
    assert each.body is not None  # a chunk without bytes is a known one
    if each.landed is not None:
        each.landed()
    planned = each.planned
    leaves = leaf_digests([each.body], planned.leaf_bytes)
    digest = chunk_digest(leaves, planned.size_bytes, planned.leaf_bytes)
    return StoredChunk(digest, planned.size_bytes, planned.leaf_bytes, leaves)
