"""Restoring as a group: who reads what, so that every stored byte is read once, and how it reaches the ranks that want it.

Owns: the `Peers` Protocol, the plan (which rank reads which range, what it hands on in which window), and errors that
end the restore on all ranks alike. Does not own: reading and proving (`reader.py`), nor the transport
(`engine/peers.py`). Called by `reader.py`.

At another ZeRO stage or world size the parts that one rank wants of a chunk lie between those of other ranks. Read
singly they are small requests, of which SeaweedFS serves 0.35 GB/s at 256 KiB and 0.41 at 1 MiB where whole chunks
come at 0.5 to 0.6 (two ranks of eight threads on two cores, SHA-256 included). So ranks first tell each other what they
want. What only one rank wants, it reads by itself, as at an unchanged topology, where nothing is handed on. The same
goes for long runs of a chunk (`DIRECT_BYTES`), at the price of the leaf in which two runs meet. The rest is read once in
large ranges, dealt out evenly among the ranks that want it, and handed on in windows of bounded size: while one window
is exchanged, threads read the next. Chunks are not cut up to keep more connections busy either: 0.25 GB on two ranks took
0.35 s whole, 0.39 s in pieces of 8 MiB, 0.46 s in pieces of 4 MiB (quiet machine, medians of six). With a `DIRECT_BYTES` of
1 MiB, 0.9 GB took 2.8 s for 1.4 on two ranks and 3.4 for 1.6 on three; windows of 32 MiB gained nothing (runs of their own).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tlcore.checkpoint.intervals import ByteArray, coalesce
from tlcore.errors import CheckpointCorrupt, CheckpointError, CheckpointIncompatible, TlcoreError

MIB = 1 << 20
DIRECT_BYTES = 4 * MIB
"""A run of a chunk that one rank wants is worth a request of its own from this size on."""
DIRECT_LEAVES = 32
"""And from this many leaves on, since neighbours both read the leaf in which they meet: at most 3 % more bytes."""
WINDOW_BYTES = 16 * MIB
"""Most that a rank sends, or receives, in one exchange, if one request is not more."""
AHEAD_BYTES = 128 * MIB
"""Most that a rank holds ready to be sent: bounds how far reading runs ahead of the exchange."""

Wants = npt.NDArray[np.int64]
"""Rows of (chunk number, first byte, end byte), sorted and disjoint: what one rank wants."""

_FINE, _FAILED = b"+", b"-"
_KINDS: dict[str, type[CheckpointError]] = {
    "corrupt": CheckpointCorrupt,
    "incompatible": CheckpointIncompatible,
    "other": CheckpointError,
}


class Peers(Protocol):
    """The ranks that restore together. `gather` and `exchange` are collective: all ranks call them in the same order.

    Both raise CheckpointError when a rank is gone.
    """

    @property
    def rank(self) -> int:
        """This rank, from 0."""

    @property
    def world_size(self) -> int:
        """How many ranks there are."""

    def gather(self, own: bytes) -> list[bytes]:
        """What every rank gave, in rank order; lengths may differ."""

    def exchange(self, send: ByteArray, send_bytes: Sequence[int], receive_bytes: Sequence[int]) -> Sequence[ByteArray]:
        """What came from each rank. `send` holds what goes to rank 0, then to rank 1, ..."""


class Alone:
    """The group of one rank."""

    rank = 0
    world_size = 1

    def gather(self, own: bytes) -> list[bytes]:
        return [own]

    def exchange(self, send: ByteArray, send_bytes: Sequence[int], receive_bytes: Sequence[int]) -> Sequence[ByteArray]:
        return [send]


def together(peers: Peers, work: Callable[[], bytes]) -> list[bytes]:
    """Do `work` on every rank and give all ranks all results; an error on one ends it on all, and leaves none waiting.

    Raises this rank's own error, or one that names the rank that failed: CheckpointCorrupt or CheckpointIncompatible
    where all that failed did so for that reason, else CheckpointError.
    """
    own: Exception | None = None
    try:
        said = _FINE + work()
    except Exception as error:  # noqa: BLE001 (raised below, once the other ranks know)
        own, said = error, _FAILED + _told(error)
    answers = peers.gather(said)
    failed = {rank: json.loads(answer[1:]) for rank, answer in enumerate(answers) if answer[:1] == _FAILED}
    if not failed:
        return [answer[1:] for answer in answers]
    joint = _joint(failed, own)
    if joint is own:
        raise joint
    raise joint from own


def _told(error: Exception) -> bytes:
    kind = next((name for name, each in _KINDS.items() if isinstance(error, each)), "")
    message = error.message if isinstance(error, TlcoreError) else f"{type(error).__name__}: {error}"
    key = error.fields.get("key") if isinstance(error, TlcoreError) else None
    return json.dumps({"kind": kind or "other", "message": message, "key": key}).encode()


def _joint(failed: dict[int, dict[str, str | None]], own: Exception | None) -> Exception:
    """What this rank raises: the same kind of error as all others, so that all fall back, or none does."""
    kinds = {str(told["kind"]) for told in failed.values()}
    kind = next(iter(kinds)) if len(kinds) == 1 else "other"
    if own is not None and json.loads(_told(own))["kind"] == kind:
        return own
    rank, told = next((each for each in failed.items() if each[1]["kind"] == kind), next(iter(failed.items())))
    fields = {"key": told["key"]} if told["key"] else {}
    return _KINDS[kind](
        f"rank {rank} could not read its part of the checkpoint: {told['message']}", rank=rank, **fields
    )


@dataclass(frozen=True, slots=True)
class Extent:
    """Size of a stored chunk, and of the leaves in which it can be proved, bytes."""

    size_bytes: int
    leaf_bytes: int

    def widen(self, start: int, end: int) -> tuple[int, int]:
        """The smallest run of whole leaves around `[start, end)`."""
        leaf = self.leaf_bytes
        return start // leaf * leaf, min(self.size_bytes, -(-end // leaf) * leaf)


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes `[start, end)` of a chunk that `rank` wants."""

    rank: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Request:
    """Bytes `[start, end)` of chunk number `chunk`, on leaf boundaries, read by rank `reader`; `parts` go to others."""

    chunk: int
    start: int
    end: int
    reader: int
    parts: tuple[Part, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes read from the store."""
        return self.end - self.start


@dataclass(frozen=True)
class ReadPlan:
    """Who reads what: `alone[rank]` for itself, `windows` to be handed on, one exchange each. Requests of `urgent` chunks come
    first, in windows of their own, `urgent_windows` of them.
    """

    alone: tuple[tuple[Request, ...], ...]
    windows: tuple[tuple[Request, ...], ...]
    urgent: AbstractSet[int] = frozenset()
    urgent_windows: int = 0


def plan_reads(
    wants: Sequence[Wants], extents: Sequence[Extent], gap_bytes: int, urgent: AbstractSet[int] = frozenset()
) -> ReadPlan:
    """The same plan on every rank, from the wants of all; `gap_bytes` apart is near enough for one request, `urgent` are numbers
    of chunks.
    """
    by_chunk: dict[int, list[Part]] = defaultdict(list)
    for rank, array in enumerate(wants):
        for chunk, start, end in array.tolist():
            by_chunk[chunk].append(Part(rank, start, end))
    alone: list[list[Request]] = [[] for _ in wants]
    shared: list[tuple[int, int, int, list[Part]]] = []  # chunk, start, end, the parts in there
    for chunk in sorted(by_chunk, key=lambda chunk: (chunk not in urgent, chunk)):
        parts = sorted(by_chunk[chunk], key=lambda part: (part.start, part.rank))
        for start, end, inside in _regions(parts, extents[chunk], gap_bytes):
            ranks = {part.rank for part in inside}
            if len(ranks) == 1:
                alone[inside[0].rank].append(Request(chunk, start, end, inside[0].rank))
            else:
                shared.extend((chunk, *piece) for piece in _split(start, end, inside, extents[chunk]))
    loads = [sum(request.size_bytes for request in requests) for requests in alone]
    dealt = [_deal(each, loads) for each in shared]
    early = list(_windows((each for each in dealt if each.chunk in urgent), len(wants)))
    late = _windows((each for each in dealt if each.chunk not in urgent), len(wants))
    return ReadPlan(
        tuple(tuple(sorted(requests, key=lambda each: -each.size_bytes)) for requests in alone),
        (*early, *late),
        urgent,
        len(early),
    )


def _regions(parts: Sequence[Part], extent: Extent, gap_bytes: int) -> Iterator[tuple[int, int, list[Part]]]:
    """The ranges to read of one chunk, each with the parts in it: long runs of one rank, and what lies between them."""
    long = max(DIRECT_BYTES, DIRECT_LEAVES * extent.leaf_bytes)
    rest: list[Part] = []
    for run in _runs(parts, gap_bytes):
        if len({part.rank for part in run}) == 1 and run[-1].end - run[0].start >= long:
            yield *extent.widen(run[0].start, run[-1].end), run
        else:
            rest.extend(run)
    position = 0
    for start, end in coalesce((extent.widen(part.start, part.end) for part in rest), gap_bytes):
        first = position
        while position < len(rest) and rest[position].start < end:
            position += 1
        yield start, end, rest[first:position]


def _runs(parts: Sequence[Part], gap_bytes: int) -> Iterator[list[Part]]:
    """Neighbouring parts of one rank together; parts that overlap, of whatever ranks, together."""
    run: list[Part] = []
    end = 0
    for part in parts:
        near = part.start - end <= gap_bytes and {each.rank for each in run} == {part.rank}
        if run and not near and part.start >= end:
            yield run
            run = []
        run.append(part)
        end = max(end, part.end)
    if run:
        yield run


def _split(start: int, end: int, parts: Sequence[Part], extent: Extent) -> Iterator[tuple[int, int, list[Part]]]:
    """Pieces of a range that several ranks want, each so small that what is sent of it fits a window, with its parts."""
    others = len({part.rank for part in parts}) - 1
    step = max(1, WINDOW_BYTES // others // extent.leaf_bytes) * extent.leaf_bytes
    for low in range(start, end, step):
        high = min(low + step, end)
        clipped = (Part(part.rank, max(part.start, low), min(part.end, high)) for part in parts)
        inside = [part for part in clipped if part.start < part.end]
        if inside:
            yield low, high, inside


def _deal(each: tuple[int, int, int, list[Part]], loads: list[int]) -> Request:
    """Give one range to a rank that wants some of it: one with little to read so far, the more so the more it wants."""
    chunk, start, end, parts = each
    wanted: dict[int, int] = defaultdict(int)
    for part in parts:
        wanted[part.rank] += part.end - part.start
    reader = min(wanted, key=lambda rank: (loads[rank] - wanted[rank], rank))
    loads[reader] += end - start
    return Request(chunk, start, end, reader, tuple(part for part in parts if part.rank != reader))


def _windows(requests: Iterable[Request], world_size: int) -> Iterator[tuple[Request, ...]]:
    """Consecutive requests, until a rank would send or receive more than a window holds."""
    window: list[Request] = []
    moved = np.zeros((2, world_size), np.int64)
    for request in requests:
        more = np.zeros_like(moved)
        for part in request.parts:
            more[0, request.reader] += part.end - part.start
            more[1, part.rank] += part.end - part.start
        if window and (moved + more).max() > WINDOW_BYTES:
            yield tuple(window)
            window, moved = [], np.zeros_like(moved)
        moved += more
        window.append(request)
    if window:
        yield tuple(window)


@dataclass(frozen=True)
class Shipment:
    """One window as one rank sees it. Offsets are bytes in its send buffer, and in what came from one sender."""

    reads: tuple[tuple[Request, tuple[tuple[Part, int], ...]], ...]
    send_bytes: tuple[int, ...]
    arrivals: tuple[tuple[int, Part, int, int], ...]
    receive_bytes: tuple[int, ...]

    @classmethod
    def of(cls, window: Sequence[Request], rank: int, world_size: int) -> Shipment:
        """What `rank` reads and sends, and what reaches it (chunk number, part, sender, offset)."""
        mine = [request for request in window if request.reader == rank]
        send_bytes = [0] * world_size
        for request in mine:
            for part in request.parts:
                send_bytes[part.rank] += part.end - part.start
        places = [sum(send_bytes[:to]) for to in range(world_size)]
        reads = []
        for request in mine:
            placed = []
            for part in request.parts:
                placed.append((part, places[part.rank]))
                places[part.rank] += part.end - part.start
            reads.append((request, tuple(placed)))
        arrivals, receive_bytes = [], [0] * world_size
        for request in window:
            for part in request.parts:
                if part.rank == rank:
                    arrivals.append((request.chunk, part, request.reader, receive_bytes[request.reader]))
                    receive_bytes[request.reader] += part.end - part.start
        return cls(tuple(reads), tuple(send_bytes), tuple(arrivals), tuple(receive_bytes))
