"""The snapshot: memory that is taken once and used again, and the copy of live state into it.

Owns: `SlotPool` (chunk-sized buffers, bounded) and `copy_chunk`. Does not own: what goes into a chunk (`plan.py`).
Called by `writer.py`.

Buffers are kept between saves, so that only the first save of a topology pays for page faults; the last one released
is the first one taken again. A chunk's buffer is what is hashed and sent, without another copy. One numpy copy per
cut: about a microsecond of call for up to 16 MiB, and numpy releases the GIL inside.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from tlcore.checkpoint.intervals import ByteArray, Piece
from tlcore.checkpoint.plan import PlannedChunk

PAGE_BYTES = 4096


class SlotPool:
    """Buffers of `slot_bytes` each, made on demand up to `limit` and then waited for."""

    def __init__(self, slot_bytes: int, limit: int) -> None:
        self._slot_bytes = slot_bytes
        self._limit = limit
        self._free: list[ByteArray] = []
        self._made = 0
        self._changed = threading.Condition()

    @property
    def made(self) -> int:
        """Buffers that exist, free or taken."""
        return self._made

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
            slot = np.empty(self._slot_bytes, dtype=np.uint8)
            slot[::PAGE_BYTES] = 0
            self.give(slot)

    def take(self) -> ByteArray:
        """A buffer with arbitrary contents; waits for one when all are taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._made < self._limit)
            if self._free:
                return self._free.pop()
            self._made += 1
        return np.empty(self._slot_bytes, dtype=np.uint8)

    def give(self, slot: ByteArray) -> None:
        """Hand a buffer back."""
        with self._changed:
            self._free.append(slot)
            self._changed.notify()


def copy_chunk(chunk: PlannedChunk, pieces: Sequence[Piece], slot: ByteArray) -> memoryview:
    """Copy a chunk's cuts into `slot`, one behind the other; returns the filled part of it."""
    position = 0
    for cut in chunk.cuts:
        size = cut.row.size_bytes
        slot[position : position + size] = pieces[cut.piece].data[cut.piece_offset : cut.piece_offset + size]
        position += size
    return slot.data[:position]
