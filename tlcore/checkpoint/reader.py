"""Restore: the parts of a checkpoint that this rank needs, read by range, proved, and copied to where they belong.

Owns: which bytes to read for which wanted rows, and reading them. Does not own: what the rows mean (`engine/`), nor
choosing the checkpoint (`verify.py`). Called by `engine/`, `train/` and the export.

Wanted and stored intervals are intersected, so that any world size and ZeRO stage reads any other. What is wanted of
a chunk is widened to leaves, neighbours up to `GAP_BYTES` apart become one request, and each request's bytes are
proved leaf by leaf before anything is copied. Threads do request, proof and copy of one range each; all three release
the GIL. Ranks that restore together share the reading (`exchange.py`).
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from tlcore.checkpoint.digest import first_bad_leaf
from tlcore.checkpoint.exchange import (
    AHEAD_BYTES,
    Alone,
    Extent,
    Part,
    Peers,
    ReadPlan,
    Request,
    Shipment,
    Wants,
    plan_reads,
    together,
)
from tlcore.checkpoint.intervals import ByteArray, Piece, Row, coalesce, intersect
from tlcore.checkpoint.manifest import (
    IndexRef,
    Manifest,
    RankIndex,
    StoredChunk,
    StoredRow,
    index_bytes,
    parse_index,
    read_index,
)
from tlcore.checkpoint.patience import Patience
from tlcore.errors import CheckpointCorrupt, CheckpointIncompatible, ObjectMissing, StorageError
from tlcore.storage.base import ObjectStore
from tlcore.storage.keys import chunk_key

CONNECTIONS = 8
ATTEMPTS = 4
GAP_BYTES = 64 << 10
"""Bytes worth reading to save a request: two leaves of a pack."""


@dataclass(frozen=True)
class ReadReport:
    """One `read_into` on one rank. `bytes_wanted` went to the caller, `bytes_read` came from the store in `requests`
    ranges, `bytes_received` from other ranks.
    """

    bytes_wanted: int
    bytes_read: int
    requests: int
    retries: int
    seconds: float
    bytes_received: int = 0


class CheckpointReader:
    """Reads one checkpoint. Indexes are read once, at the first need; safe to use from one thread at a time."""

    def __init__(self, store: ObjectStore, manifest: Manifest, connections: int = CONNECTIONS) -> None:
        self._store = store
        self._manifest = manifest
        self._connections = connections
        self._held: _Held | None = None

    @property
    def manifest(self) -> Manifest:
        """The checkpoint being read."""
        return self._manifest

    def rows(self) -> list[Row]:
        """Every stored row, over all ranks. Raises CheckpointCorrupt."""
        return [held.row for rows in self._index().rows.values() for _, held in rows]

    def states(self, parameter: str) -> list[str]:
        """Names of the states stored for `parameter` (for a tied one, for the parameter it is tied to), sorted."""
        name = self._resolve(parameter)
        return sorted(state for held, state in self._index().rows if held == name)

    def read_into(self, pieces: Sequence[Piece], peers: Peers | None = None) -> ReadReport:
        """Fill the pieces' views. With `peers` all ranks call it together, each with its own pieces.

        Raises CheckpointIncompatible, naming the parameter, where the checkpoint does not hold what is wanted
        in that dtype, before anything is read; CheckpointCorrupt where stored bytes are missing or not what
        they were. Views are then partly filled. What fails on one of the peers raises on all of them.
        """
        began = time.monotonic()
        group: Peers = peers or Alone()
        self._read_indexes_of(group)
        held = self._index()
        targets: dict[int, _Targets] = {}

        def wanted() -> bytes:
            targets.update(self._targets(pieces))
            return _wants(targets).tobytes()

        wants = [np.frombuffer(each, np.int64).reshape(-1, 3) for each in together(group, wanted)]
        plan = plan_reads(wants, [Extent(each.size_bytes, each.leaf_bytes) for each in held.chunks], GAP_BYTES)
        run = _Run(self._store, held.chunks, targets, plan, group)
        with ThreadPoolExecutor(self._connections, thread_name_prefix="checkpoint-get") as threads:
            try:
                run.windows(threads)
                together(group, run.alone)
            except BaseException:
                run.patience.abandon()
                threads.shutdown(cancel_futures=True)
                raise
        return ReadReport(
            bytes_wanted=sum(piece.row.size_bytes for piece in pieces),
            bytes_read=run.bytes_read,
            requests=run.requests,
            retries=run.patience.retries,
            seconds=time.monotonic() - began,
            bytes_received=run.bytes_received,
        )

    def _read_indexes_of(self, group: Peers) -> None:
        """Read each index on one rank of the group, and tell it to all."""
        if self._held is not None or group.world_size == 1:
            # All ranks have called the same methods, so what one has read, all have.
            return
        refs = self._manifest.indexes

        def read() -> bytes:
            own = refs[group.rank :: group.world_size]
            with ThreadPoolExecutor(self._connections, thread_name_prefix="checkpoint-index") as threads:
                return b"".join(threads.map(lambda ref: index_bytes(self._store, ref), own))

        found: dict[IndexRef, bytes] = {}
        for rank, joined in enumerate(together(group, read)):
            for ref in refs[rank :: group.world_size]:
                found[ref], joined = joined[: ref.size_bytes], joined[ref.size_bytes :]
        self._held = _Held.of([parse_index(found[ref], ref.key) for ref in refs])

    def _index(self) -> _Held:
        if self._held is None:
            self._held = _Held.of(read_indexes(self._store, self._manifest, self._connections))
        return self._held

    def _resolve(self, parameter: str) -> str:
        facts = self._manifest.parameters.get(parameter)
        return facts.tied_to if facts is not None and facts.tied_to is not None else parameter

    def _targets(self, pieces: Sequence[Piece]) -> dict[int, _Targets]:
        """Where the bytes of each chunk go, by the chunk's number."""
        copies: dict[int, list[_Copy]] = defaultdict(list)
        for piece in pieces:
            for chunk, copy in self._copies(piece):
                copies[chunk].append(copy)
        return {chunk: _Targets(found) for chunk, found in sorted(copies.items())}

    def _copies(self, piece: Piece) -> Iterator[tuple[int, _Copy]]:
        wanted = piece.row
        name = self._resolve(wanted.parameter)
        held = self._index().rows.get((name, wanted.state), [])
        same = Row(name, wanted.state, wanted.start, wanted.end, wanted.dtype)
        item = wanted.item_bytes
        position = wanted.start
        first = max(0, bisect_right(held, wanted.start, key=lambda each: each[1].row.start) - 1)
        for chunk, stored in held[first:]:
            if stored.row.start >= wanted.end:
                break
            common = intersect(same, stored.row)
            if common is None:
                continue
            start, end = common
            if stored.row.dtype != wanted.dtype:
                raise self._incompatible(wanted, f"it is stored as {stored.row.dtype}")
            if start > position:
                break
            target = piece.data[(start - wanted.start) * item : (end - wanted.start) * item]
            yield chunk, _Copy(stored.offset + (start - stored.row.start) * item, target)
            position = max(position, end)
        if position < wanted.end:
            raise self._incompatible(wanted, self._what_is_held(name, wanted.state))

    def _what_is_held(self, name: str, state: str) -> str:
        facts = self._manifest.parameters.get(name)
        if facts is None:
            return "the checkpoint has no such parameter"
        shape = f"there its shape is {list(facts.shape)}, {facts.elements} elements"
        states = self.states(name)
        return shape if state in states else f"{shape}, and its states are {', '.join(states) or 'none'}"

    def _incompatible(self, wanted: Row, text: str) -> CheckpointIncompatible:
        return CheckpointIncompatible(
            f"{self._manifest.key}: {wanted} is wanted; {text}",
            hint="the model or the recipe is not the one that wrote the checkpoint: start anew, or put it back",
            parameter=wanted.parameter,
        )


@dataclass(frozen=True)
class _Held:
    """What a checkpoint holds: its distinct chunks, numbered alike on every rank, and every row with its chunk's number."""

    chunks: tuple[StoredChunk, ...]
    rows: dict[tuple[str, str], list[tuple[int, StoredRow]]]

    @classmethod
    def of(cls, indexes: Sequence[RankIndex]) -> _Held:
        numbers: dict[str, int] = {}
        chunks: list[StoredChunk] = []
        rows: dict[tuple[str, str], list[tuple[int, StoredRow]]] = defaultdict(list)
        for index in indexes:
            for chunk in index.chunks:
                if chunk.digest not in numbers:
                    numbers[chunk.digest] = len(chunks)
                    chunks.append(chunk)
            for held in index.rows:
                rows[held.row.parameter, held.row.state].append((numbers[index.chunks[held.chunk].digest], held))
        for found in rows.values():
            found.sort(key=lambda each: each[1].row.start)
        return cls(tuple(chunks), dict(rows))


@dataclass(frozen=True, slots=True)
class _Copy:
    """Bytes `[start, start + len(target))` of a chunk belong to `target`."""

    start: int
    target: ByteArray

    @property
    def end(self) -> int:
        return self.start + self.target.nbytes


class _Targets:
    """Where the bytes of one chunk go on this rank."""

    def __init__(self, copies: Sequence[_Copy]) -> None:
        self._copies = sorted(copies, key=lambda copy: copy.start)
        self._ends = list(accumulate((copy.end for copy in self._copies), max))

    def spans(self) -> list[tuple[int, int]]:
        """What is wanted of the chunk."""
        return coalesce((copy.start, copy.end) for copy in self._copies)

    def fill(self, start: int, data: ByteArray) -> None:
        """Copy bytes from `start` of the chunk to where they belong."""
        end = start + data.nbytes
        for copy in self._copies[bisect_right(self._ends, start) :]:
            if copy.start >= end:
                break
            low, high = max(start, copy.start), min(end, copy.end)
            copy.target[low - copy.start : high - copy.start] = data[low - start : high - start]


def _wants(targets: dict[int, _Targets]) -> Wants:
    rows = [(chunk, start, end) for chunk, found in targets.items() for start, end in found.spans()]
    return np.array(rows, np.int64).reshape(-1, 3)


class _Run:
    """One `read_into` under way: its requests in threads, its exchanges in the caller's thread."""

    def __init__(
        self,
        store: ObjectStore,
        chunks: Sequence[StoredChunk],
        targets: dict[int, _Targets],
        plan: ReadPlan,
        group: Peers,
    ) -> None:
        self._store, self._chunks, self._targets, self._group = store, chunks, targets, group
        self._shipments = [Shipment.of(window, group.rank, group.world_size) for window in plan.windows]
        self._alone = plan.alone[group.rank]
        self._reading: list[Future[None]] = []
        self.patience = Patience(ATTEMPTS)
        shared = [request for shipment in self._shipments for request, _ in shipment.reads]
        self.bytes_read = sum(request.size_bytes for request in (*self._alone, *shared))
        self.requests = len(self._alone) + len(shared)
        self.bytes_received = sum(sum(shipment.receive_bytes) for shipment in self._shipments)

    def windows(self, threads: ThreadPoolExecutor) -> None:
        """Read and exchange window after window, reading ahead; then have the threads read what is for this rank alone."""
        waiting = deque(self._shipments)
        flying: deque[tuple[Shipment, ByteArray, list[Future[None]]]] = deque()
        while waiting or flying:
            while waiting and (not flying or self._has_room(flying, waiting[0])):
                flying.append(self._begin(waiting.popleft(), threads))
            if not waiting and not self._reading:
                self._begin_alone(threads)
            shipment, send, reads = flying.popleft()
            together(self._group, lambda reads=reads: _done(reads))  # type: ignore[misc]
            self._hand_over(shipment, send)
        if not self._reading:
            self._begin_alone(threads)

    def alone(self) -> bytes:
        """Wait until what is for this rank alone is there."""
        return _done(self._reading)

    def _has_room(self, flying: Sequence[tuple[Shipment, ByteArray, list[Future[None]]]], following: Shipment) -> bool:
        return sum(send.nbytes for _, send, _ in flying) + sum(following.send_bytes) <= AHEAD_BYTES

    def _begin(self, shipment: Shipment, threads: ThreadPoolExecutor) -> tuple[Shipment, ByteArray, list[Future[None]]]:
        send = np.empty(sum(shipment.send_bytes), np.uint8)
        reads = [threads.submit(self._read, request, parts, send) for request, parts in shipment.reads]
        return shipment, send, reads

    def _begin_alone(self, threads: ThreadPoolExecutor) -> None:
        self._reading = [threads.submit(self._read, request) for request in self._alone]

    def _read(self, request: Request, parts: Sequence[tuple[Part, int]] = (), send: ByteArray | None = None) -> None:
        data = read_verified(self._store, self._chunks[request.chunk], request.start, request.end, self.patience)
        if request.chunk in self._targets:
            self._targets[request.chunk].fill(request.start, data)
        for part, offset in parts:
            assert send is not None  # parts come with a buffer to put them in
            size = part.end - part.start
            send[offset : offset + size] = data[part.start - request.start : part.end - request.start]

    def _hand_over(self, shipment: Shipment, send: ByteArray) -> None:
        receive = np.empty(sum(shipment.receive_bytes), np.uint8)
        self._group.exchange(send, shipment.send_bytes, receive, shipment.receive_bytes)
        for chunk, part, offset in shipment.arrivals:
            self._targets[chunk].fill(part.start, receive[offset : offset + part.end - part.start])


def _done(reads: Sequence[Future[None]]) -> bytes:
    for read in reads:
        read.result()
    return b""


def read_indexes(store: ObjectStore, manifest: Manifest, connections: int = CONNECTIONS) -> list[RankIndex]:
    """All rank indexes of a checkpoint, read in parallel. Raises CheckpointCorrupt."""
    with ThreadPoolExecutor(connections, thread_name_prefix="checkpoint-index") as threads:
        return list(threads.map(lambda ref: read_index(store, ref), manifest.indexes))


def read_verified(store: ObjectStore, chunk: StoredChunk, start: int, end: int, patience: Patience) -> ByteArray:
    """Bytes `[start, end)` of a chunk, on leaf boundaries, proved by its leaves.

    A range that does not match is read once more, since the fault may lie on the way. Raises CheckpointCorrupt.
    """
    key = chunk_key(chunk.digest)
    bad: int | None = None
    for _ in range(2):
        try:
            data = patience.ask(lambda: store.get_range(key, start, end - start))
        except ObjectMissing as error:
            raise CheckpointCorrupt(f"{key}: the chunk is missing", key=key) from error
        except StorageError as error:
            # A plain StorageError says that the object is shorter than the range; its subclasses say other things.
            if type(error) is not StorageError:
                raise
            raise CheckpointCorrupt(
                f"{key}: the chunk is shorter than its {chunk.size_bytes} bytes: {error}", key=key
            ) from error
        view = memoryview(data).cast("B")
        bad = first_bad_leaf(view, chunk.leaves, chunk.leaf_bytes, start // chunk.leaf_bytes)
        if bad is None:
            return np.frombuffer(view, dtype=np.uint8)
    raise CheckpointCorrupt(
        f"{key}: bytes from {(bad or 0) * chunk.leaf_bytes} (leaf {bad}) do not match their digest", key=key
    )
