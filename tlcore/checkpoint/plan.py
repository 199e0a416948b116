"""Which bytes go into which chunk: decided once per topology, the same whatever the bytes are.

Owns: the grid, the packing, and the sharing of frozen parameters among ranks. Does not own: copying (`snapshot.py`)
or sending (`upload.py`). Called by: `writer.py`; `engine/` calls `frozen_shares`.

Each (parameter, state) is cut at fixed element offsets, multiples of `chunk_bytes` from its own beginning, never from
where a rank's partition happens to begin: equal bytes then make equal chunks. A cut of half a chunk or more is a
chunk of its own; smaller ones are packed together in the order given, mutable and immutable apart, ordered by state
so that reading one state (the weights, for export) reads neighbours. A new pack begins when the next cut does not
fit, which makes packing of a run of whole packs independent of what went before: that is why `frozen_shares` can hand
runs of packs to any number of ranks and every topology still produces the same chunks.

With N connections, all chunks but the last few go N at a time, and while those few go the other connections stand idle: of
186 chunks on eight, 3 % of the save. So the remainder, what is left of the changing chunks after whole rounds, is cut in quarters,
which the connections share. Quarters of the grid, so that a cut still lies in one cell of it. Each costs one more
request to send and another to restore: with 27 chunks of a rank on 16 connections, quarters took 1.38 CPU-s/GB for 1.21, and
restores 0.80 of raw GET for 0.87. So it is done where it makes at most an eighth more requests.

Chunks are 16 MiB: large enough that a request's fixed cost is small (20 ms of round trip is 6 % at 50 MB/s per
connection), small enough that a quarter of a gigabyte keeps sixteen connections busy and that hashing is ahead of
sending after the first ten milliseconds. Leaves are 256 KiB where a chunk is one cut, 32 KiB in packs, whose parts
are read singly when the world size changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tlcore.checkpoint.intervals import Row
from tlcore.errors import CheckpointError

MIB = 1 << 20
CHUNK_BYTES = 16 * MIB
CUT_LEAF_BYTES = 256 << 10
PACK_LEAF_BYTES = 32 << 10
QUARTERS = 4
MORE_REQUESTS = 1 / 8
_ALIGNED = 16


@dataclass(frozen=True, slots=True)
class Cut:
    """One row inside one grid cell: bytes `[piece_offset, piece_offset + row.size_bytes)` of piece number `piece`."""

    row: Row
    piece: int
    piece_offset: int


@dataclass(frozen=True, slots=True)
class PlannedChunk:
    """Cuts that lie one after the other in one object."""

    cuts: tuple[Cut, ...]
    size_bytes: int
    leaf_bytes: int
    immutable: bool

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of the cuts, in the order in which they lie."""
        return tuple(cut.row for cut in self.cuts)


def plan_chunks(
    rows: Sequence[Row], immutable: Sequence[bool], chunk_bytes: int = CHUNK_BYTES, connections: int = 0
) -> tuple[PlannedChunk, ...]:
    """Chunks holding every row exactly once; `immutable[i]` says whether row i's bytes never change.

    Args:
        connections: how many chunks are sent at a time, where the last ones are to be cut smaller; 0 cuts none.

    Raises CheckpointError when `chunk_bytes` is not a multiple of 16 (the largest element) above zero.
    """
    if chunk_bytes < _ALIGNED or chunk_bytes % _ALIGNED:
        raise CheckpointError(f"a chunk of {chunk_bytes} bytes: a positive multiple of {_ALIGNED} is needed")
    cuts: dict[bool, list[Cut]] = {True: [], False: []}
    for index, row in enumerate(rows):
        cuts[immutable[index]].extend(_cuts(row, index, chunk_bytes))
    changing = _chunks(cuts[False], False, chunk_bytes)
    left = len(changing) % connections if connections else 0
    if (QUARTERS - 1) * left <= MORE_REQUESTS * len(changing) and chunk_bytes % (QUARTERS * _ALIGNED) == 0:
        changing = _with_last_in_quarters(changing, chunk_bytes // QUARTERS, left)
    return (*changing, *_chunks(cuts[True], True, chunk_bytes))


def in_order(chunks: Sequence[PlannedChunk]) -> list[int]:
    """Numbers of the chunks in the order in which they are sent: the last ones decide how long connections stand idle, so that the
    largest go first."""
    return sorted(range(len(chunks)), key=lambda number: -chunks[number].size_bytes)


def by_buffer(chunks: Sequence[PlannedChunk], numbers: Sequence[int], buffer_bytes: int) -> list[list[int]]:
    """The numbered chunks, in this order, cut into runs that fit into one buffer each."""
    runs: list[list[int]] = []
    filled = buffer_bytes
    for number in numbers:
        if filled + chunks[number].size_bytes > buffer_bytes:
            runs.append([])
            filled = 0
        runs[-1].append(number)
        filled += chunks[number].size_bytes
    return runs


def frozen_shares(rows: Sequence[Row], world_size: int, chunk_bytes: int = CHUNK_BYTES) -> tuple[tuple[Row, ...], ...]:
    """Which rank stores which part of the frozen parameters, so that each is stored once and the chunks do not
    depend on `world_size`.

    `rows` are whole frozen parameters in the model's order, equal on every rank. Returns one tuple of rows per
    rank, cut on the grid, about equal in bytes; a rank passes exactly these as immutable pieces, in this order.
    """
    chunks = plan_chunks(rows, [True] * len(rows), chunk_bytes)
    total = sum(chunk.size_bytes for chunk in chunks)
    shares: list[list[Row]] = [[] for _ in range(world_size)]
    position = 0
    for chunk in chunks:
        middle = position + chunk.size_bytes // 2
        shares[min(world_size - 1, middle * world_size // total)].extend(chunk.rows)
        position += chunk.size_bytes
    return tuple(tuple(share) for share in shares)


def _cuts(row: Row, piece: int, chunk_bytes: int) -> Iterator[Cut]:
    cell = chunk_bytes // row.item_bytes
    start = row.start
    while start < row.end:
        end = min(row.end, (start // cell + 1) * cell)
        yield Cut(replace(row, start=start, end=end), piece, (start - row.start) * row.item_bytes)
        start = end


def _chunks(cuts: Sequence[Cut], immutable: bool, chunk_bytes: int) -> list[PlannedChunk]:
    """Large cuts alone, small ones packed."""
    large = [cut for cut in cuts if 2 * cut.row.size_bytes >= chunk_bytes]
    small = [cut for cut in cuts if 2 * cut.row.size_bytes < chunk_bytes]
    alone = [PlannedChunk((cut,), cut.row.size_bytes, CUT_LEAF_BYTES, immutable) for cut in large]
    return [*alone, *_packs(small, immutable, chunk_bytes)]


def _with_last_in_quarters(chunks: list[PlannedChunk], quarter_bytes: int, count: int) -> list[PlannedChunk]:
    last = in_order(chunks)[len(chunks) - count :]
    smaller = [
        replace(part, piece_offset=cut.piece_offset + part.piece_offset)
        for number in sorted(last)
        for cut in chunks[number].cuts
        for part in _cuts(cut.row, cut.piece, quarter_bytes)
    ]
    kept = [chunk for number, chunk in enumerate(chunks) if number not in last]
    return [*kept, *_chunks(smaller, False, quarter_bytes)]


def _packs(cuts: Sequence[Cut], immutable: bool, chunk_bytes: int) -> Iterator[PlannedChunk]:
    pack: list[Cut] = []
    size = 0
    for cut in sorted(cuts, key=lambda each: each.row.state):
        if pack and size + cut.row.size_bytes > chunk_bytes:
            yield PlannedChunk(tuple(pack), size, PACK_LEAF_BYTES, immutable)
            pack, size = [], 0
        pack.append(cut)
        size += cut.row.size_bytes
    if pack:
        yield PlannedChunk(tuple(pack), size, PACK_LEAF_BYTES, immutable)
