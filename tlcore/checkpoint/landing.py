"""Where the bytes of one request land: straight in the memory that wants them, without a stop on the way.

Owns: which memory takes which byte of a range, and what is wanted more than once. Does not own the reading
(`transfer.py`, which calls it).

A range is received and proved where it will stay. What nobody wants of it (the rest of a leaf, a gap between two
wanted runs) goes to memory of its own, and what is wanted in two places is received in one and copied to the other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

import numpy as np

from tlcore.checkpoint.intervals import ByteArray


class Landing:
    """Memory for bytes `[start, end)` of a chunk, given the places that want some of them."""

    def __init__(self, start: int, end: int, places: Iterable[tuple[int, ByteArray]]) -> None:
        """Args:
        places: for each wanted run its first byte's position in the chunk, and its memory, inside `[start, end)`.
        """
        self.parts: list[ByteArray] = []
        """One after the other they are the whole range."""
        self._starts: list[int] = []
        self._again: list[tuple[int, ByteArray]] = []
        self._position = start
        for at, memory in sorted(places, key=lambda place: place[0]):
            taken = min(memory.nbytes, max(0, self._position - at))
            if taken:
                self._again.append((at, memory[:taken]))
            if taken < memory.nbytes:
                self._skip_to(at + taken)
                self._take(memory[taken:])
        self._skip_to(end)

    def settle(self) -> None:
        """Once everything is there: copy what is wanted in more than one place."""
        for at, memory in self._again:
            done = 0
            while done < memory.nbytes:
                index = bisect_right(self._starts, at + done) - 1
                offset = at + done - self._starts[index]
                found = self.parts[index][offset : offset + memory.nbytes - done]
                memory[done : done + found.nbytes] = found
                done += found.nbytes

    def _take(self, memory: ByteArray) -> None:
        self._starts.append(self._position)
        self.parts.append(memory)
        self._position += memory.nbytes

    def _skip_to(self, position: int) -> None:
        if position > self._position:
            self._take(np.empty(position - self._position, np.uint8))
