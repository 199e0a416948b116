"""Restore: the parts of a checkpoint that this rank needs, read by range, proved, and copied to where they belong.

Owns: which bytes to read for which wanted rows, and reading them. Does not own: what the rows mean (`engine/`), nor
choosing the checkpoint (`fallback.py`). Called by `engine/`, `train/` and the export.

Wanted and stored intervals are intersected, so that any world size and ZeRO stage reads any other. What is wanted of
a chunk is widened to leaves, neighbours up to `GAP_BYTES` apart become one request, and each request's bytes are
proved leaf by leaf before anything is copied. Threads do request, proof and copy of one range each; all three release
the GIL.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from tlcore.checkpoint.digest import first_bad_leaf
from tlcore.checkpoint.intervals import ByteArray, Piece, Row, coalesce, intersect
from tlcore.checkpoint.manifest import Manifest, RankIndex, StoredChunk, StoredRow, read_index
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
    """One `read_into`. `bytes_wanted` went to the caller, `bytes_read` came from the store in `requests` ranges."""

    bytes_wanted: int
    bytes_read: int
    requests: int
    retries: int
    seconds: float


@dataclass(frozen=True)
class _Copy:
    """Bytes `[start, start + len(target))` of a chunk belong to `target`."""

    start: int
    target: ByteArray


@dataclass(frozen=True)
class _Range:
    """One request: bytes `[start, end)` of a chunk, on leaf boundaries, and where they go."""

    chunk: StoredChunk
    start: int
    end: int
    copies: tuple[_Copy, ...]


class CheckpointReader:
    """Reads one checkpoint. Indexes are read once, at the first need; safe to use from one thread at a time."""

    def __init__(self, store: ObjectStore, manifest: Manifest, connections: int = CONNECTIONS) -> None:
        self._store = store
        self._manifest = manifest
        self._connections = connections
        self._stored: dict[tuple[str, str], list[tuple[RankIndex, StoredRow]]] | None = None

    @property
    def manifest(self) -> Manifest:
        """The checkpoint being read."""
        return self._manifest

    def rows(self) -> list[Row]:
        """Every stored row, over all ranks. Raises CheckpointCorrupt."""
        return [held.row for rows in self._index().values() for _, held in rows]

    def states(self, parameter: str) -> list[str]:
        """Names of the states stored for `parameter` (for a tied one, for the parameter it is tied to), sorted."""
        name = self._resolve(parameter)
        return sorted(state for held, state in self._index() if held == name)

    def read_into(self, pieces: Sequence[Piece]) -> ReadReport:
        """Fill the pieces' views.

        Raises CheckpointIncompatible, naming the parameter, where the checkpoint does not hold what is wanted
        in that dtype, before anything is read; CheckpointCorrupt where stored bytes are missing or not what
        they were. Views are then partly filled.
        """
        began = time.monotonic()
        ranges = self._ranges(pieces)
        patience = Patience(ATTEMPTS)
        with ThreadPoolExecutor(self._connections, thread_name_prefix="checkpoint-get") as threads:
            try:
                for _ in threads.map(lambda each: self._read(each, patience), ranges):
                    pass
            except BaseException:
                patience.abandon()
                threads.shutdown(cancel_futures=True)
                raise
        return ReadReport(
            bytes_wanted=sum(piece.row.size_bytes for piece in pieces),
            bytes_read=sum(each.end - each.start for each in ranges),
            requests=len(ranges),
            retries=patience.retries,
            seconds=time.monotonic() - began,
        )

    def _index(self) -> dict[tuple[str, str], list[tuple[RankIndex, StoredRow]]]:
        if self._stored is None:
            stored: dict[tuple[str, str], list[tuple[RankIndex, StoredRow]]] = defaultdict(list)
            for index in read_indexes(self._store, self._manifest, self._connections):
                for held in index.rows:
                    stored[held.row.parameter, held.row.state].append((index, held))
            for rows in stored.values():
                rows.sort(key=lambda each: each[1].row.start)
            self._stored = dict(stored)
        return self._stored

    def _resolve(self, parameter: str) -> str:
        facts = self._manifest.parameters.get(parameter)
        return facts.tied_to if facts is not None and facts.tied_to is not None else parameter

    def _ranges(self, pieces: Sequence[Piece]) -> list[_Range]:
        """The requests that fill `pieces`, largest first, so that the last ones to end are short."""
        copies: dict[str, list[_Copy]] = defaultdict(list)
        chunks: dict[str, StoredChunk] = {}
        for piece in pieces:
            for chunk, copy in self._copies(piece):
                chunks[chunk.digest] = chunk
                copies[chunk.digest].append(copy)
        ranges = [each for digest, wanted in copies.items() for each in _chunk_ranges(chunks[digest], wanted)]
        return sorted(ranges, key=lambda each: each.start - each.end)

    def _copies(self, piece: Piece) -> list[tuple[StoredChunk, _Copy]]:
        wanted = piece.row
        name = self._resolve(wanted.parameter)
        held = self._index().get((name, wanted.state), [])
        found: list[tuple[StoredChunk, _Copy]] = []
        position = wanted.start
        for index, stored in held:
            same = Row(name, wanted.state, wanted.start, wanted.end, wanted.dtype)
            common = intersect(same, stored.row)
            if common is None:
                continue
            start, end = common
            if stored.row.dtype != wanted.dtype:
                raise self._incompatible(wanted, f"it is stored as {stored.row.dtype}")
            if start > position:
                break
            item = wanted.item_bytes
            target = piece.data[(start - wanted.start) * item : (end - wanted.start) * item]
            found.append((index.chunks[stored.chunk], _Copy(stored.offset + (start - stored.row.start) * item, target)))
            position = max(position, end)
        if position < wanted.end:
            raise self._incompatible(wanted, self._what_is_held(name, wanted.state))
        return found

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

    def _read(self, each: _Range, patience: Patience) -> None:
        data = read_verified(self._store, each.chunk, each.start, each.end, patience)
        for copy in each.copies:
            start = copy.start - each.start
            copy.target[:] = data[start : start + copy.target.nbytes]


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


def _chunk_ranges(chunk: StoredChunk, copies: Sequence[_Copy]) -> list[_Range]:
    leaf = chunk.leaf_bytes
    spans = (
        (copy.start // leaf * leaf, min(chunk.size_bytes, -(-(copy.start + copy.target.nbytes) // leaf) * leaf))
        for copy in copies
    )
    ranges = []
    ordered = sorted(copies, key=lambda copy: copy.start)
    position = 0
    for start, end in coalesce(spans, GAP_BYTES):
        first = position
        while position < len(ordered) and ordered[position].start < end:
            position += 1
        ranges.append(_Range(chunk, start, end, tuple(ordered[first:position])))
    return ranges
