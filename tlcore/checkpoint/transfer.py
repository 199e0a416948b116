"""One read of a checkpoint under way: its requests in threads, its exchanges with other ranks in the caller's thread.

Owns: the order of requests, windows and exchanges, and the proof of what was read. Does not own where bytes belong
(`landing.py`), which rank reads what (`exchange.py`), nor which rows are wanted (`reader.py`). Called by `reader.py`;
`read_verified` by `verify.py` and `fetch.py` too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from tlcore.checkpoint.digest import first_bad_leaf
from tlcore.checkpoint.exchange import AHEAD_BYTES, Part, Peers, ReadPlan, Request, Shipment, Wants, together
from tlcore.checkpoint.intervals import ByteArray, coalesce
from tlcore.checkpoint.landing import Landing
from tlcore.checkpoint.manifest import StoredChunk
from tlcore.checkpoint.patience import Patience
from tlcore.errors import CheckpointCorrupt, ObjectMissing, StorageError
from tlcore.storage.base import ObjectStore, is_too_short
from tlcore.storage.keys import chunk_key

ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes `[start, start + len(target))` of a chunk belong to `target`."""

    start: int
    target: ByteArray

    @property
    def end(self) -> int:
        return self.start + self.target.nbytes


class Targets:
    """Where the bytes of one chunk go on this rank."""

    def __init__(self, copies: Sequence[Copy]) -> None:
        self._copies = sorted(copies, key=lambda copy: copy.start)
        self._ends = list(accumulate((copy.end for copy in self._copies), max))

    def spans(self) -> list[tuple[int, int]]:
        """What is wanted of the chunk."""
        return coalesce((copy.start, copy.end) for copy in self._copies)

    def within(self, start: int, end: int) -> Iterator[tuple[int, ByteArray]]:
        """Where bytes `[start, end)` of the chunk belong: the first byte of each run, and the memory for it."""
        for copy in self._copies[bisect_right(self._ends, start) :]:
            if copy.start >= end:
                break
            low, high = max(start, copy.start), min(end, copy.end)
            yield low, copy.target[low - copy.start : high - copy.start]

    def fill(self, start: int, data: ByteArray) -> None:
        """Copy bytes from `start` of the chunk to where they belong."""
        for at, memory in self.within(start, start + data.nbytes):
            memory[:] = data[at - start : at - start + memory.nbytes]


def wants_of(targets: dict[int, Targets]) -> Wants:
    """What this rank wants, as it tells the others."""
    rows = [(chunk, start, end) for chunk, found in targets.items() for start, end in found.spans()]
    return np.array(rows, np.int64).reshape(-1, 3)


class Transfer:
    """One `read_into` under way. `begin`, then `urgent` if anything is, then `rest`."""

    def __init__(
        self,
        store: ObjectStore,
        chunks: Sequence[StoredChunk],
        targets: dict[int, Targets],
        plan: ReadPlan,
        group: Peers,
        threads: ThreadPoolExecutor,
    ) -> None:
        self._store, self._chunks, self._targets, self._plan, self._group = store, chunks, targets, plan, group
        self._threads = threads
        self._waiting = deque(Shipment.of(window, group.rank, group.world_size) for window in plan.windows)
        self._flying: deque[tuple[Shipment, ByteArray, list[Future[None]]]] = deque()
        self._early: list[Future[None]] = []
        self._late: list[Future[None]] | None = None
        self.patience = Patience(ATTEMPTS)
        shared = [request for shipment in self._waiting for request, _ in shipment.reads]
        alone = plan.alone[group.rank]
        self.bytes_read = sum(request.size_bytes for request in (*alone, *shared))
        self.requests = len(alone) + len(shared)
        self.bytes_received = sum(sum(shipment.receive_bytes) for shipment in self._waiting)

    def begin(self) -> None:
        """Have the threads read: what is urgent first, then as much of the rest as there is room for."""
        self._early = self._read_alone(urgent=True)
        self._top_up()

    def urgent(self) -> None:
        """Return once what the plan calls urgent is there, on all ranks; the threads go on with the rest."""
        for _ in range(self._plan.urgent_windows):
            self._window()
        together(self._group, lambda: _done(self._early))

    def rest(self) -> None:
        """Return once everything is there, on all ranks."""
        while self._flying or self._waiting:
            self._window()
        together(self._group, lambda: _done([*self._early, *(self._late or ())]))

    def abandon(self) -> None:
        """Stop reading."""
        self.patience.abandon()
        self._threads.shutdown(cancel_futures=True)

    def _window(self) -> None:
        """Exchange the next window, reading ahead meanwhile."""
        self._top_up()
        shipment, send, reads = self._flying.popleft()
        together(self._group, lambda: _done(reads))
        self._hand_over(shipment, send)
        self._top_up()

    def _top_up(self) -> None:
        while self._waiting and (not self._flying or self._has_room(self._waiting[0])):
            shipment = self._waiting.popleft()
            send = np.empty(sum(shipment.send_bytes), np.uint8)
            reads = [self._threads.submit(self._read, request, parts, send) for request, parts in shipment.reads]
            self._flying.append((shipment, send, reads))
        if not self._waiting and self._late is None:
            self._late = self._read_alone(urgent=False)

    def _has_room(self, following: Shipment) -> bool:
        return sum(send.nbytes for _, send, _ in self._flying) + sum(following.send_bytes) <= AHEAD_BYTES

    def _read_alone(self, *, urgent: bool) -> list[Future[None]]:
        """What is for this rank alone."""
        requests = [each for each in self._plan.alone[self._group.rank] if (each.chunk in self._plan.urgent) == urgent]
        return [self._threads.submit(self._read, request) for request in requests]

    def _read(self, request: Request, parts: Sequence[tuple[Part, int]] = (), send: ByteArray | None = None) -> None:
        places: list[tuple[int, ByteArray]] = []
        if request.chunk in self._targets:
            places.extend(self._targets[request.chunk].within(request.start, request.end))
        for part, offset in parts:
            assert send is not None  # parts come with a buffer to put them in
            places.append((part.start, send[offset : offset + part.end - part.start]))
        landing = Landing(request.start, request.end, places)
        read_verified(self._store, self._chunks[request.chunk], request.start, landing.parts, self.patience)
        landing.settle()

    def _hand_over(self, shipment: Shipment, send: ByteArray) -> None:
        arrived = self._group.exchange(send, shipment.send_bytes, shipment.receive_bytes)
        for chunk, part, sender, offset in shipment.arrivals:
            self._targets[chunk].fill(part.start, arrived[sender][offset : offset + part.end - part.start])


def _done(reads: Sequence[Future[None]]) -> bytes:
    for read in reads:
        read.result()
    return b""


def read_verified(
    store: ObjectStore, chunk: StoredChunk, start: int, memory: Sequence[ByteArray], patience: Patience
) -> None:
    """Fill `memory`, one array after the other, with a chunk's bytes from `start`, on leaf boundaries, proved by its leaves.

    A range that does not match is read once more, since the fault may lie on the way. Raises CheckpointCorrupt; StorageError
    where the store would not give it, which says nothing about the chunk. The memory holds anything then.
    """
    key = chunk_key(chunk.digest)
    parts = [each.data for each in memory]
    bad: int | None = None
    for _ in range(2):
        try:
            patience.ask(lambda: store.get_into(key, start, parts))
        except ObjectMissing as error:
            raise CheckpointCorrupt(f"{key}: the chunk is missing", key=key) from error
        except StorageError as error:
            if not is_too_short(error):
                raise
            raise CheckpointCorrupt(
                f"{key}: the chunk is shorter than its {chunk.size_bytes} bytes: {error}", key=key
            ) from error
        bad = first_bad_leaf(parts, chunk.leaves, chunk.leaf_bytes, start // chunk.leaf_bytes)
        if bad is None:
            return
    raise CheckpointCorrupt(
        f"{key}: bytes from {(bad or 0) * chunk.leaf_bytes} (leaf {bad}) do not match their digest", key=key
    )
