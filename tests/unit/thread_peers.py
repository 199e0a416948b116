"""Ranks that restore together, as threads of this process. For unit tests only."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

from tlcore.errors import CheckpointError, StorageDenied


class ThreadPeers:
    """`Peers` among the threads of this process. A rank that leaves breaks the barrier, so a test fails instead of hanging."""

    def __init__(self, rank: int, world_size: int, board: list, barrier: threading.Barrier) -> None:
        self.rank, self.world_size = rank, world_size
        self._board, self._barrier = board, barrier

    @classmethod
    def group(cls, world_size: int) -> list[ThreadPeers]:
        board, barrier = [None] * world_size, threading.Barrier(world_size, timeout=30)
        return [cls(rank, world_size, board, barrier) for rank in range(world_size)]

    def gather(self, own):
        self._board[self.rank] = own
        self._barrier.wait()
        found = list(self._board)
        self._barrier.wait()
        return found

    def exchange(self, send, send_bytes, receive_bytes):
        assert sum(send_bytes) == send.nbytes
        starts = [0, *itertools.accumulate(send_bytes)]
        sent = self.gather([send[start : start + size] for start, size in zip(starts, send_bytes, strict=False)])
        assert [parts[self.rank].nbytes for parts in sent] == list(receive_bytes)
        return [parts[self.rank] for parts in sent]


def together(world_size, work):
    """`work(rank, peers)` on every rank at once: results or exceptions, in rank order."""
    peers = ThreadPeers.group(world_size)

    def one(rank):
        try:
            return work(rank, peers[rank])
        except CheckpointError as error:
            return error
        except StorageDenied as error:
            return error

    with ThreadPoolExecutor(world_size) as threads:
        return list(threads.map(one, range(world_size)))
