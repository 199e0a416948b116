"""The ranks of a trial as `checkpoint/` talks to them while it restores: bytes over a gloo group, or in shared memory.

Owns the group and the memory. Does not own what is said (`checkpoint/exchange.py`). Called by `sharded.py`.

Between ranks of one machine gloo copies through sockets: `all_to_all_single` on flat buffers moved 1.3 GB/s each way
between two ranks in blocks of 32 MiB, 1.05 in blocks of 8 MiB (batched isend and irecv 1.1 and 0.95, all_gather 0.2 and 0.4), and
took the processor time of four copies. So there the buffers that are sent lie in memory that the others map (Linux's memfd: no
file, no limit of /dev/shm, gone with the last process that holds it), and nothing is moved: what arrives is read in place. Whether
every rank reaches every other's memory is tried out once, by a random token; ranks of several hosts, or containers, keep gloo.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from itertools import accumulate
from pathlib import Path
from typing import IO

import numpy as np
import torch
import torch.distributed as dist

from tlcore.checkpoint import Peers
from tlcore.checkpoint.intervals import ByteArray
from tlcore.errors import CheckpointError

_INLINE_BYTES = 248
"""What `gather` tells of in one round: most of what it is for is a word."""
_TOKEN_BYTES = 16

_made: tuple[dist.ProcessGroup, dist.ProcessGroup] | None = None
_near: tuple[dist.ProcessGroup, bool] | None = None


def restoring_peers() -> Peers | None:
    """All ranks of the default group, None where there is only one. Collective at the first call of a default group."""
    global _near
    if dist.get_world_size() == 1:
        return None
    group = _host_group()
    words = GlooPeers(group)
    if _near is None or _near[0] is not group:
        _near = group, share_memory(words)
    return MemoryPeers(words) if _near[1] else words


def _host_group() -> dist.ProcessGroup:
    """A group that moves host memory: the default one where it is gloo, else one more, made once for this default group."""
    global _made
    whole = dist.group.WORLD
    assert whole is not None  # torch.distributed is initialised, or get_world_size would have raised
    if dist.get_backend() == "gloo":
        return whole
    if _made is None or _made[0] is not whole:
        made = dist.new_group(backend="gloo")
        assert isinstance(made, dist.ProcessGroup)  # a rank that is left out gets none, and all are in
        _made = whole, made
    return _made[1]


class GlooPeers:
    """`Peers` over one gloo group."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    @property
    def rank(self) -> int:
        return dist.get_rank(self._group)

    @property
    def world_size(self) -> int:
        return dist.get_world_size(self._group)

    def gather(self, own: bytes) -> list[bytes]:
        try:
            head = torch.zeros(8 + _INLINE_BYTES, dtype=torch.uint8)
            told = len(own).to_bytes(8, "little") + own[:_INLINE_BYTES]
            head[: len(told)] = torch.frombuffer(bytearray(told), dtype=torch.uint8)
            heads = [torch.empty_like(head) for _ in range(self.world_size)]
            dist.all_gather(heads, head, group=self._group)
            said = [each.numpy().tobytes() for each in heads]
            lengths = [int.from_bytes(each[:8], "little") for each in said]
            if max(lengths) > _INLINE_BYTES:
                return self._broadcast_all(own, lengths)
        except RuntimeError as error:
            raise _lost(self, error) from error
        return [each[8 : 8 + length] for each, length in zip(said, lengths, strict=True)]

    def _broadcast_all(self, own: bytes, lengths: Sequence[int]) -> list[bytes]:
        """Every rank's bytes, by a broadcast from each: faster over gloo than an all_gather, and nothing is padded."""
        found = [torch.empty(length, dtype=torch.uint8) for length in lengths]
        if own:
            found[self.rank] = torch.frombuffer(bytearray(own), dtype=torch.uint8)
        under_way = [
            dist.broadcast(each, group_src=sender, group=self._group, async_op=True)
            for sender, each in enumerate(found)
            if each.numel()
        ]
        for each in under_way:
            assert each is not None  # only a rank outside the group gets none
            each.wait()
        return [each.numpy().tobytes() for each in found]

    def buffer(self, size_bytes: int) -> ByteArray:
        return np.empty(size_bytes, np.uint8)

    def exchange(self, send: ByteArray, send_bytes: Sequence[int], receive_bytes: Sequence[int]) -> Sequence[ByteArray]:
        receive = np.empty(sum(receive_bytes), np.uint8)
        try:
            dist.all_to_all_single(
                _tensor(receive), _tensor(send), list(receive_bytes), list(send_bytes), group=self._group
            )
        except RuntimeError as error:
            raise _lost(self, error) from error
        return np.split(receive, list(accumulate(receive_bytes))[:-1])

    def release(self) -> None:
        return


def _lost(peers: Peers, error: RuntimeError | OSError) -> CheckpointError:
    return CheckpointError(
        f"rank {peers.rank} of {peers.world_size} lost the others while restoring: {error}",
        hint="see what ended the other ranks",
        rank=peers.rank,
    )


def _tensor(data: ByteArray) -> torch.Tensor:
    return torch.from_numpy(data) if data.nbytes else torch.empty(0, dtype=torch.uint8)


class MemoryPeers:
    """`Peers` of one machine: what they say goes through `words`, what they exchange lies in memory that all of them map."""

    def __init__(self, words: Peers) -> None:
        self._words = words
        self._lent: dict[int, IO[bytes]] = {}
        self._sent: list[IO[bytes]] = []

    @property
    def rank(self) -> int:
        return self._words.rank

    @property
    def world_size(self) -> int:
        return self._words.world_size

    def gather(self, own: bytes) -> list[bytes]:
        found = self._words.gather(own)
        # All ranks are here, so all are done with what was sent before.
        _close(self._sent)
        self._sent.clear()
        return found

    def release(self) -> None:
        _close(self._sent)
        self._sent.clear()
        _close(self._lent.values())
        self._lent.clear()

    def buffer(self, size_bytes: int) -> ByteArray:
        if not size_bytes:
            return np.empty(0, np.uint8)
        memory = _shared_memory(size_bytes)
        found = np.frombuffer(mmap.mmap(memory.fileno(), size_bytes), np.uint8)
        self._lent[found.ctypes.data] = memory
        return found

    def exchange(self, send: ByteArray, send_bytes: Sequence[int], receive_bytes: Sequence[int]) -> Sequence[ByteArray]:
        own = [os.getpid(), -1, 0, *accumulate(send_bytes[:-1])]
        if send.nbytes:
            self._sent.append(self._lent.pop(send.ctypes.data))
            own[1] = self._sent[-1].fileno()
        places = [np.frombuffer(each, np.int64).tolist() for each in self._words.gather(np.array(own).tobytes())]
        try:
            return [
                _read_memory(process, file, starts[self.rank], size)
                for (process, file, *starts), size in zip(places, receive_bytes, strict=True)
            ]
        except OSError as error:
            raise _lost(self, error) from error


def _close(files: Iterable[IO[bytes]]) -> None:
    for each in files:
        each.close()


def share_memory(words: Peers) -> bool:
    """Whether every rank reads what every other one puts into memory; the same answer on all. Collective."""
    token = secrets.token_bytes(_TOKEN_BYTES)
    with ExitStack() as until_tried:
        own = b""
        with suppress(OSError, AttributeError):  # forbidden, or no Linux
            memory = until_tried.enter_context(_shared_memory(_TOKEN_BYTES))
            memory.write(token)
            memory.flush()
            own = np.array([os.getpid(), memory.fileno()], np.int64).tobytes() + token
        reached = all(each and _reaches(each) for each in words.gather(own))
        return all(each == b"+" for each in words.gather(b"+" if reached else b"-"))


def _reaches(told: bytes) -> bool:
    process, at = np.frombuffer(told[:-_TOKEN_BYTES], np.int64).tolist()
    try:
        return _read_memory(process, at, 0, _TOKEN_BYTES).tobytes() == told[-_TOKEN_BYTES:]
    except (OSError, ValueError):
        return False  # another host, another container, or one that hides its processes


def _shared_memory(size_bytes: int) -> IO[bytes]:
    memory = os.fdopen(os.memfd_create("tlcore-restore"), "r+b")
    memory.truncate(size_bytes)
    return memory


def _read_memory(process: int, at: int, start: int, size_bytes: int) -> ByteArray:
    """Bytes `[start, start + size_bytes)` of the memory that a process of this machine has open as file number `at`."""
    if not size_bytes:
        return np.empty(0, np.uint8)
    first = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    length = start + size_bytes - first
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
    with Path(f"/proc/{process}/fd/{at}").open("rb") as memory:
        mapped = mmap.mmap(memory.fileno(), length, flags=flags, prot=mmap.PROT_READ, offset=first)
    return np.frombuffer(mapped, np.uint8)[start - first :]
