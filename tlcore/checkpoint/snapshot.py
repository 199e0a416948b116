"""The snapshot: memory that is taken once and used again, and the copy of live state into it.

Owns: `SlotPool` (chunk-sized buffers, bounded) and `Snapshot` (one save's chunks, copied in order and handed over one by
one). Does not own: what goes into a chunk (`plan.py`), which thread copies (`writer.py`), how a device copies
(`device.py`). Called by `writer.py`.

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
from tlcore.checkpoint.plan import PlannedChunk
from tlcore.errors import CheckpointError

PAGE_BYTES = 4096


class SlotPool:
    """Buffers of `slot_bytes` each, made by `make` on demand up to `limit` and then waited for."""

    def __init__(self, slot_bytes: int, limit: int, make: Callable[[int], ByteArray]) -> None:
        self._slot_bytes = slot_bytes
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
            return self._make(self._slot_bytes)
        except BaseException:
            with self._changed:
                self._made -= 1
                self._changed.notify()
            raise


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

    Larger chunks come first, since the last to be sent decide how long connections stand idle at the end. On eight
    connections of equal speed that costs 2 % of a BERT's 0.9 GB in 78 chunks, 7 % in the plan's order; 12 and 20 % of
    0.25 GB in 22 chunks.
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
            for number, chunk in self._in_order(immutable=False):
                self._check()
                self._ready.put(self._copied(number, chunk, self._slots))
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
        for number, chunk in self._in_order(immutable=True):
            self._check()
            yield self._immutable(number, chunk, known(chunk))

    def release(self) -> None:
        """Give back what nobody asked `chunks` for; waits for `take` to end if it has begun."""
        while not self._exhausted:
            each = self._ready.get()
            if each is None:
                self._exhausted = True
            else:
                each.let_go()
        self._pieces = ()

    def _in_order(self, *, immutable: bool) -> Iterator[tuple[int, PlannedChunk]]:
        numbered = [each for each in enumerate(self._plan) if each[1].immutable == immutable]
        yield from sorted(numbered, key=lambda each: -each[1].size_bytes)

    def _immutable(self, number: int, chunk: PlannedChunk, known: StoredChunk | None) -> Ready:
        if known is not None:
            return Ready(number, chunk, known=known)
        cut = chunk.cuts[0]
        piece = self._pieces[cut.piece]
        if not isinstance(piece, Piece) or passes_through(chunk, self._pieces):
            return self._copied(number, chunk, self._passing)
        return Ready(number, chunk, body=piece.data.data[cut.piece_offset : cut.piece_offset + chunk.size_bytes])

    def _copied(self, number: int, chunk: PlannedChunk, pool: SlotPool) -> Ready:
        slot = pool.take()
        try:
            position = 0
            for cut in chunk.cuts:
                size = cut.row.size_bytes
                self._pieces[cut.piece].copy_into(cut.piece_offset, slot[position : position + size])
                position += size
            landed = self._device.mark()
        except BaseException:
            pool.give(slot)
            raise
        return Ready(number, chunk, slot.data[:position], landed, lambda: pool.give(slot))
