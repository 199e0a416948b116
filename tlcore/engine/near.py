"""Memory that the ranks of one machine share, through which they hand bytes to each other without a socket.

Owns that memory and the agreement that all ranks see each other's. Does not own what is said (`checkpoint/exchange.py`), nor how
words reach the others (`peers.py`, which calls this).

Each rank has one file of memory without a name (memfd), which the others map through /proc: nothing is left behind by a killed
rank, and a container's small /dev/shm does not matter. What is to be sent is received from the store right there, and whoever gets
it copies it from there to its place. Parts of the file are used again: fresh memory for each exchange was tried and cost more than
sockets do, for the sake of its new pages. Above what reading costs anyway, two ranks need 0.17 CPU-s for a GB
that they hand on this way and 0.6 over gloo's sockets, in half the time or less.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
from collections.abc import Callable, Sequence
from io import FileIO
from itertools import accumulate
from pathlib import Path

import numpy as np

from tlcore.checkpoint.intervals import ByteArray

Gather = Callable[[bytes], list[bytes]]
"""What every rank gave, in rank order."""

_NAME = "tlcore-exchange"
_MARK_BYTES = 16
"""At the head of each file: others know it by that. The rest of the first page stays empty."""
_SEEN, _UNSEEN = b"+", b"-"


class OwnMemory:
    """This rank's file, in parts that are taken and given back. Raises OSError where the machine has no room for it."""

    def __init__(self) -> None:
        self.file = FileIO(os.memfd_create(_NAME), "r+")
        self.mark = secrets.token_bytes(_MARK_BYTES)
        self.file.write(self.mark)
        self._end = mmap.ALLOCATIONGRANULARITY
        self._taken: dict[int, tuple[int, ByteArray]] = {}
        self._free: list[tuple[int, ByteArray]] = []

    def take(self, size_bytes: int) -> ByteArray:
        """Memory of that size: the smallest part that is free and large enough, else a new one."""
        fitting = [part for part in self._free if part[1].nbytes >= size_bytes]
        if fitting:
            part = min(fitting, key=lambda each: each[1].nbytes)
            self._free = [each for each in self._free if each is not part]
        else:
            part = self._grow(size_bytes)
        self._taken[part[1].ctypes.data] = part
        return part[1][:size_bytes]

    def _grow(self, size_bytes: int) -> tuple[int, ByteArray]:
        start = self._end
        self._end += -(-max(1, size_bytes) // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        # Reserved here, so that a machine without room raises instead of ending the process at a write.
        os.posix_fallocate(self.file.fileno(), 0, self._end)
        mapped = mmap.mmap(self.file.fileno(), self._end - start, offset=start)
        return start, np.frombuffer(mapped, np.uint8)

    def place(self, data: ByteArray) -> int:
        """Where in the file memory lies that was taken."""
        return self._taken[data.ctypes.data][0]

    def give_back(self, data: ByteArray) -> None:
        """Let memory that was taken be taken again."""
        self._free.append(self._taken.pop(data.ctypes.data))


class OthersMemory:
    """Another rank's file as this rank sees it, never written to."""

    def __init__(self, pid: int, number: int, mark: bytes) -> None:
        """Args: `number`: of the file in that process. Raises OSError where this process may not look, or sees another's."""
        path = Path(f"/proc/{pid}/fd/{number}")
        # Where ranks have process numbers of their own (a container each), this may be anybody's file: a pipe must not be opened.
        if not str(path.readlink()).startswith(f"/memfd:{_NAME}"):
            raise FileNotFoundError(f"{path} is another file here")
        self._file = FileIO(path, "r")
        if self._file.read(_MARK_BYTES) != mark:
            raise FileNotFoundError(f"{path} is another rank's here")
        self._data: ByteArray = np.empty(0, np.uint8)

    def part(self, start: int, end: int) -> ByteArray:
        """Bytes `[start, end)` of the file."""
        if self._data.nbytes < end:
            size_bytes = os.fstat(self._file.fileno()).st_size
            self._data = np.frombuffer(mmap.mmap(self._file.fileno(), size_bytes, access=mmap.ACCESS_READ), np.uint8)
        return self._data[start:end]


class NearRanks:
    """All ranks of a group, on one machine; `near_ranks` makes it."""

    def __init__(self, gather: Gather, rank: int, own: OwnMemory, others: dict[int, OthersMemory]) -> None:
        self._gather, self._rank, self._own, self._others = gather, rank, own, others
        self._sent: ByteArray | None = None

    def memory(self, size_bytes: int) -> ByteArray:
        """Memory for what is to be sent. It is lent until the exchange after the one that sends it."""
        return self._own.take(size_bytes)

    def exchange(self, send: ByteArray, send_bytes: Sequence[int]) -> Sequence[ByteArray]:
        """What came from each rank, to be copied before the next exchange. Collective. `send` is as `memory` gave it."""
        first = self._own.place(send)
        told = self._gather(np.array([first, *accumulate(send_bytes, initial=first)][1:], np.int64).tobytes())
        # Every rank is here, so none still copies what came with the exchange before.
        if self._sent is not None:
            self._own.give_back(self._sent)
        self._sent = send
        parts: list[ByteArray] = []
        for sender, words in enumerate(told):
            start, end = np.frombuffer(words, np.int64)[self._rank : self._rank + 2].tolist()
            own = sender == self._rank
            parts.append(send[start - first : end - first] if own else self._others[sender].part(start, end))
        return parts


def near_ranks(gather: Gather, rank: int) -> NearRanks | None:
    """The ranks of a group where every one of them can see every other's memory, else None on all. Collective."""
    own: OwnMemory | None = None
    others: dict[int, OthersMemory] = {}
    try:
        own = OwnMemory()
    except (OSError, AttributeError):  # a system without memfd
        name = None
    else:
        name = [os.getpid(), own.file.fileno(), own.mark.hex()]
    told = [json.loads(each) for each in gather(json.dumps(name).encode())]
    try:
        for other, (pid, number, mark) in enumerate(each for each in told if each):
            if other != rank:
                others[other] = OthersMemory(pid, number, bytes.fromhex(mark))
    except OSError:
        others.clear()
    sees_all = own is not None and all(told) and len(others) == len(told) - 1
    agreed = all(each == _SEEN for each in gather(_SEEN if sees_all else _UNSEEN))
    return NearRanks(gather, rank, own, others) if agreed and own is not None else None
