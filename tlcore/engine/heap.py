"""A heap that holds no memory: how far an allocator must grow for a sequence of requests.

Owns the arithmetic of blocks and gaps. Sums of what is live at a time fall short where large buffers come and go: a gap that a
gradient left is no room for a larger bucket, so the heap grows, and glibc, told to keep what it has (`process.py`), does not shrink
again. The rule here is glibc's for large blocks: the smallest gap that fits, else more at the end. Whether the gaps of two
neighbours become one is for the caller to say: they do not where small objects, such as the tensors that were views of them, lie
between. A device's caching allocator gives whole free segments back when it would fail, so there `compact` counts what is live.

What is small and short-lived (activations) fits into gaps of any size and is told as a sum, `fluid`. Called by `zero_memory.py`.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable


class Heap:
    """Blocks by name. Args: `compact`: gaps cost nothing; `joins`: gaps that touch become one."""

    def __init__(self, compact: bool = False, joins: bool = False) -> None:
        self._compact, self._joins = compact, joins
        self._blocks: dict[str, tuple[int, int]] = {}
        self._gaps: list[tuple[int, int]] = []
        self._end = self._live = 0
        self.peak_bytes = 0

    def take(self, name: str, size: float) -> None:
        """Allocate `size` bytes under a name that is free."""
        need = max(0, round(size))
        assert name not in self._blocks, name
        self._live += need
        gap = min((gap for gap in self._gaps if gap[1] >= need), key=lambda gap: gap[1], default=None)
        if gap is None:
            start = self._end
            if self._gaps and sum(self._gaps[-1]) == self._end:  # what is free at the end is part of the growth
                start = self._gaps.pop()[0]
            self._end = start + need
        else:
            self._gaps.remove(gap)
            start = gap[0]
            if gap[1] > need:
                insort(self._gaps, (start + need, gap[1] - need))
        self._blocks[name] = (start, need)
        self.fluid(0)

    def give(self, *names: str) -> None:
        """Free blocks."""
        for name in names:
            start, size = self._blocks.pop(name)
            self._live -= size
            if size:
                insort(self._gaps, (start, size))
        if self._joins:
            self._join()

    def _join(self) -> None:
        joined: list[tuple[int, int]] = []
        for start, size in self._gaps:
            if joined and sum(joined[-1]) == start:
                start, size = joined[-1][0], joined.pop()[1] + size
            joined.append((start, size))
        self._gaps = joined

    def give_all(self, names: Iterable[str]) -> None:
        """Free those blocks of the names that exist."""
        self.give(*[name for name in names if name in self._blocks])

    def holds(self, name: str) -> bool:
        """Whether there is a block of that name."""
        return name in self._blocks

    def fluid(self, size: float) -> None:
        """Note that `size` bytes in small pieces are there besides, just now."""
        free = self._end - self._live
        used = self._live + size if self._compact else self._end + max(0.0, size - free)
        self.peak_bytes = max(self.peak_bytes, round(used))

    def passing(self, size: float) -> None:
        """A block that comes and goes."""
        self.take("passing", size)
        self.give("passing")
