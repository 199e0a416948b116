"""Restore: the parts of a checkpoint that this rank needs, read by range to where they belong, and proved.

Owns: which bytes to read for which wanted rows, and reading them. Does not own: what the rows mean (`engine/`), nor
choosing the checkpoint (`verify.py`). Called by `engine/`, `train/` and the export.

Wanted and stored intervals are intersected, so that any world size and ZeRO stage reads any other. What is wanted of
a chunk is widened to leaves, neighbours up to `GAP_BYTES` apart become one request, and each request's bytes are
received where they belong (`landing.py`) and proved there, leaf by leaf. Threads do request and proof of one range each;
both release the GIL. Ranks that restore together share the reading (`exchange.py`), which `transfer.py` carries out.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from tlcore.checkpoint.exchange import Alone, Extent, Peers, plan_reads, together
from tlcore.checkpoint.intervals import Piece, Row, intersect
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
from tlcore.checkpoint.transfer import Copy, Targets, Transfer, wants_of
from tlcore.errors import CheckpointIncompatible
from tlcore.storage.base import ObjectStore

CONNECTIONS = 8
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
        self._ahead: Future[bytes] | None = None

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

    def begin(self, peers: Peers | None = None) -> None:
        """Start to read the indexes in a thread, for the `read_into` with the same peers that follows."""
        if self._held is None and self._ahead is None:
            thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-index")
            self._ahead = thread.submit(self._own_indexes, peers or Alone())
            thread.shutdown(wait=False)

    def read_into(
        self,
        pieces: Sequence[Piece],
        peers: Peers | None = None,
        first: AbstractSet[str] = frozenset(),
        then: Callable[[], None] = lambda: None,
    ) -> ReadReport:
        """Fill the pieces' views. With `peers` all ranks call it together, each with its own pieces.

        What is wanted of the states in `first` is read before the rest, and `then` is called as soon as it is there on all
        ranks, while threads read on; `first` is the same on all ranks.

        Raises CheckpointIncompatible, naming the parameter, where the checkpoint does not hold what is wanted
        in that dtype, before anything is read; CheckpointCorrupt where stored bytes are missing or not what
        they were. Views are then partly filled. What fails on one of the peers raises on all of them.
        """
        began = time.monotonic()
        group: Peers = peers or Alone()
        self._read_indexes_of(group)
        held = self._index()
        targets: dict[int, Targets] = {}

        def wanted() -> bytes:
            targets.update(self._targets(pieces))
            return wants_of(targets).tobytes()

        wants = [np.frombuffer(each, np.int64).reshape(-1, 3) for each in together(group, wanted)]
        extents = [Extent(each.size_bytes, each.leaf_bytes) for each in held.chunks]
        plan = plan_reads(wants, extents, GAP_BYTES, held.chunks_of(first))
        with ThreadPoolExecutor(self._connections, thread_name_prefix="checkpoint-get") as threads:
            run = Transfer(self._store, held.chunks, targets, plan, group, threads)
            try:
                run.begin()
                if first:
                    run.urgent()
                    then()
                run.rest()
            except BaseException:
                run.abandon()
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
        if self._held is not None:
            # All ranks have called the same methods, so what one has read, all have.
            return
        refs = self._manifest.indexes
        ahead, self._ahead = self._ahead, None
        found: dict[IndexRef, bytes] = {}
        for rank, joined in enumerate(together(group, ahead.result if ahead else lambda: self._own_indexes(group))):
            for ref in refs[rank :: group.world_size]:
                found[ref], joined = joined[: ref.size_bytes], joined[ref.size_bytes :]
        self._held = _Held.of([parse_index(found[ref], ref.key) for ref in refs])

    def _own_indexes(self, group: Peers) -> bytes:
        """This rank's share of the indexes, one after the other."""
        own = self._manifest.indexes[group.rank :: group.world_size]
        with ThreadPoolExecutor(self._connections, thread_name_prefix="checkpoint-index") as threads:
            return b"".join(threads.map(lambda ref: index_bytes(self._store, ref), own))

    def _index(self) -> _Held:
        if self._held is None:
            self._held = _Held.of(read_indexes(self._store, self._manifest, self._connections))
        return self._held

    def _resolve(self, parameter: str) -> str:
        facts = self._manifest.parameters.get(parameter)
        return facts.tied_to if facts is not None and facts.tied_to is not None else parameter

    def _targets(self, pieces: Sequence[Piece]) -> dict[int, Targets]:
        """Where the bytes of each chunk go, by the chunk's number."""
        copies: dict[int, list[Copy]] = defaultdict(list)
        for piece in pieces:
            for chunk, copy in self._copies(piece):
                copies[chunk].append(copy)
        return {chunk: Targets(found) for chunk, found in sorted(copies.items())}

    def _copies(self, piece: Piece) -> Iterator[tuple[int, Copy]]:
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
            yield chunk, Copy(stored.offset + (start - stored.row.start) * item, target)
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

    def chunks_of(self, states: AbstractSet[str]) -> frozenset[int]:
        """Numbers of the chunks that hold anything of these states."""
        return frozenset(chunk for (_, state), found in self.rows.items() if state in states for chunk, _ in found)


def read_indexes(store: ObjectStore, manifest: Manifest, connections: int = CONNECTIONS) -> list[RankIndex]:
    """All rank indexes of a checkpoint, read in parallel. Raises CheckpointCorrupt."""
    with ThreadPoolExecutor(connections, thread_name_prefix="checkpoint-index") as threads:
        return list(threads.map(lambda ref: read_index(store, ref), manifest.indexes))
