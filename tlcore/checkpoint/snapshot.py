"""The snapshot: memory that is taken once and used again, and the copy of live state into it.

Owns: `SlotPool` (chunk-sized buffers, bounded) and `Snapshot` (one save's chunks, copied in order and handed over one by
one). Does not own: what goes into a chunk (`plan.py`), which thread copies (`writer.py`), how a device copies
(`device.py`). Called by `writer.py`.

A chunk has a buffer, or small ones share one: it is free again when the last of them was sent.
Buffers are kept between saves, so that only the first save of a topology pays for page faults; the last one released
is the first one taken again. A chunk's buffer is what is hashed and sent, without another copy. One numpy copy per
cut: about a microsecond of call for up to 16 MiB, and numpy releases the GIL inside.

The limit of an eager snapshot is bytes / speed of a copy into warm memory. What cannot change is no part of the copy:
large frozen pieces in host memory are sent from where they are; small ones, and those on a device, are copied behind
the training step, when all else has been handed over.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tlcore.checkpoint.device import Device, Landed, StatePiece
from tlcore.checkpoint.intervals import BUFFER, ByteArray, Piece, Row
from tlcore.checkpoint.manifest import StoredChunk
from tlcore.checkpoint.plan import PlannedChunk, by_buffer, in_order
from tlcore.errors import CheckpointError

PAGE_BYTES = 4096


class SlotPool:
    """Buffers of `slot_bytes` each, made by `make` on demand up to `limit` and then waited for."""

    def __init__(self, slot_bytes: int, limit: int, make: Callable[[int], ByteArray]) -> None:
        self.slot_bytes = slot_bytes
        self._limit = limit
        self._make = make
        self._free: list[ByteArray] = []
        self._made = 0
        self._changed = threading.Condition()

    @property
    def made(self) -> int:
        """Buffers that exist, free or taken."""
        return self._made

    @property
    def free(self) -> int:
        """Buffers that exist and are not taken."""
        return len(self._free)

    def allow(self, limit: int) -> None:
        """Raise the bound to `limit` buffers; a lower one changes nothing, since buffers are kept."""
        with self._changed:
            self._limit = max(self._limit, limit)
            self._changed.notify_all()

    def reserve(self, count: int) -> None:
        """Make buffers until `count` exist and write to each page, so that the first snapshot does not pay for that."""
        while True:
            with self._changed:
                if self._made >= min(count, self._limit):
                    return
                self._made += 1
            slot = self._new()
            slot[::PAGE_BYTES] = 0
            self.give(slot)

    def take(self) -> ByteArray:
        """A buffer with arbitrary contents; waits for one when all are taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._made < self._limit)
            if self._free:
                return self._free.pop()
            self._made += 1
        return self._new()

    def give(self, slot: ByteArray) -> None:
        """Hand a buffer back."""
        with self._changed:
            self._free.append(slot)
            self._changed.notify()

    def _new(self) -> ByteArray:
        try:
            return self._make(self.slot_bytes)
        except BaseException:
            with self._changed:
                self._made -= 1
                self._changed.notify()
            raise


class Lease:
    """A buffer of `pool` that so many chunks lie in, one after the other; given back when the last one is let go."""

    def __init__(self, pool: SlotPool, chunks: int) -> None:
        self.slot = pool.take()
        self.filled = 0
        self._pool = pool
        self._left = chunks
        self._lock = threading.Lock()

    def let_go(self, chunks: int = 1) -> None:
        """So many of them need the buffer no more."""
        with self._lock:
            self._left -= chunks
            last = self._left == 0
        if last:
            self._pool.give(self.slot)


def _nothing() -> None:
    return


@dataclass(frozen=True)
class Ready:
    """Chunk `number` of a plan, to be stored: its bytes (`body`) once `landed` returns, or what is known of it
    (`known`). Whoever is done with it calls `let_go`, once.
    """

    number: int
    planned: PlannedChunk
    body: memoryview | None = None
    landed: Landed | None = None
    let_go: Callable[[], None] = _nothing
    known: StoredChunk | None = None


def passes_through(chunk: PlannedChunk, pieces: Sequence[StatePiece]) -> bool:
    """Whether a chunk that cannot change must be copied all the same, not being in one place in host memory."""
    return chunk.immutable and (len(chunk.cuts) > 1 or not isinstance(pieces[chunk.cuts[0].piece], Piece))


class Stash:
    """Copies of what a forward pass may change, taken when a lazy save begins; their memory is used again."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._held: dict[Row, ByteArray] = {}

    def hold(self, pieces: Sequence[StatePiece]) -> tuple[list[StatePiece], Landed]:
        """`pieces` with every buffer among them replaced by a copy, and the wait for these copies."""
        held: dict[Row, ByteArray] = {}
        replaced = list(pieces)
        for index, piece in enumerate(pieces):
            if piece.row.state == BUFFER and not piece.immutable:
                row = piece.row
                copy = self._held.get(row)
                held[row] = copy if copy is not None else self._device.empty(row.size_bytes)
                piece.copy_into(0, held[row])
                replaced[index] = Piece(row, held[row])
        self._held = held
        return replaced, self._device.mark()


class Snapshot:
    """One save's state. `take` copies what may change into `slots`, in whatever thread; `chunks` hands everything to the
    sender, and copies what cannot change but is not in one place in host memory into `passing` as it goes: a store that
    is slow then does not keep the next save's `take` waiting.

    Larger chunks come first (`plan.in_order`).
    """

    def __init__(
        self,
        plan: Sequence[PlannedChunk],
        pieces: Sequence[StatePiece],
        slots: SlotPool,
        passing: SlotPool,
        device: Device,
        check: Callable[[], None],
        where: str,
    ) -> None:
        self._plan = plan
        self._pieces: Sequence[StatePiece] = pieces
        self._slots = slots
        self._passing = passing
        self._device = device
        self._check = check
        self._ready: queue.SimpleQueue[Ready | None] = queue.SimpleQueue()
        self._stashed: Landed | None = None
        self._exhausted = False
        self._incomplete = f"{where}: the snapshot was not completed"
        self._broken = self._incomplete

    def stash(self, stash: Stash) -> None:
        """Keep what may change before the optimizer's step, so that `take` may come later. For lazy saves."""
        self._pieces, self._stashed = stash.hold(self._pieces)
        self._device.hold()

    def take(self, wait: bool) -> None:
        """Copy what may change, waiting for memory where there is too little.

        Args:
            wait: return when all copies have landed, not when they have begun.

        Whatever goes wrong is raised here and ends `chunks` with a CheckpointError; never neither of them.
        """
        try:
            if self._stashed is not None:
                self._stashed()
            for run in by_buffer(self._plan, self._numbers(immutable=False), self._slots.slot_bytes):
                self._copy_run(run)
            if wait:
                self._device.mark()()
            self._broken = ""
        except BaseException as error:
            self._broken = f"{self._incomplete}: {type(error).__name__}: {error}"
            raise
        finally:
            self._ready.put(None)

    def chunks(self, known: Callable[[PlannedChunk], StoredChunk | None]) -> Iterator[Ready]:
        """Every chunk of the plan once; `known` says which of the immutable ones need not be looked at again.

        Raises CheckpointError when the snapshot broke off.
        """
        while not self._exhausted:
            each = self._ready.get()
            if each is None:
                self._exhausted = True
            else:
                yield each
        if self._broken:
            raise CheckpointError(self._broken)
        for number in self._numbers(immutable=True):
            self._check()
            yield self._immutable(number, self._plan[number], known(self._plan[number]))

    def release(self) -> None:
        """Give back what nobody asked `chunks` for; waits for `take` to end if it has begun."""
        while not self._exhausted:
            each = self._ready.get()
            if each is None:
                self._exhausted = True
            else:
                each.let_go()
        self._pieces = ()

    def _numbers(self, *, immutable: bool) -> list[int]:
        return [number for number in in_order(self._plan) if self._plan[number].immutable == immutable]

    def _copy_run(self, run: Sequence[int]) -> None:
        """Copy chunks that share a buffer, and hand each over as soon as it is there."""
        lease = Lease(self._slots, len(run))
        for place, number in enumerate(run):
            try:
                self._check()
                ready = self._copied(number, lease)
            except BaseException:
                lease.let_go(len(run) - place)
                raise
            self._ready.put(ready)

    def _immutable(self, number: int, chunk: PlannedChunk, known: StoredChunk | None) -> Ready:
        if known is not None:
            return Ready(number, chunk, known=known)
        cut = chunk.cuts[0]
        piece = self._pieces[cut.piece]
        if not isinstance(piece, Piece) or passes_through(chunk, self._pieces):
            return self._passed(number)
        return Ready(number, chunk, body=piece.data.data[cut.piece_offset : cut.piece_offset + chunk.size_bytes])

    def _passed(self, number: int) -> Ready:
        lease = Lease(self._passing, 1)
        try:
            return self._copied(number, lease)
        except BaseException:
            lease.let_go()
            raise

    def _copied(self, number: int, lease: Lease) -> Ready:
        chunk, begin = self._plan[number], lease.filled
        for cut in chunk.cuts:
            size = cut.row.size_bytes
            self._pieces[cut.piece].copy_into(cut.piece_offset, lease.slot[lease.filled : lease.filled + size])
            lease.filled += size
        return Ready(number, chunk, lease.slot.data[begin : lease.filled], self._device.mark(), lease.let_go)
