"""The ranks of a trial as `checkpoint/` talks to them while it restores: bytes over a gloo group.

Owns the group. Does not own what is said (`checkpoint/exchange.py`). Called by `sharded.py`.

`all_to_all_single` on flat buffers moved 1.3 GB/s each way between two ranks of one machine in blocks of 32 MiB, 1.05 in
blocks of 8 MiB; batched isend and irecv 1.1 and 0.95, all_gather 0.2 and 0.4. Memory that ranks of one machine share (memfd,
mapped by the receivers) was tried in place of it, together with reading masters first: 0.43 CPU-s for a restore of 0.25 GB
from ZeRO-2 to ZeRO-3 on two ranks, 0.37 before (medians of seven interleaved turns, ranges apart). That new pages cost more
than the sockets' copies is the likely reason. It was tried again with parts of one memory file per rank, used again and received
into straight from the store: by itself it took 0.17 CPU-s for a GB handed on, where gloo takes 0.6; in a restore of 0.9 GB 1.9
CPU-s for 1.4 on two ranks and 2.5 for 2.0 on three (runs of their own, not interleaved). Reading runs 128 MiB ahead, so most pages
were new again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
import torch.distributed as dist

from tlcore.checkpoint import Peers
from tlcore.checkpoint.intervals import ByteArray
from tlcore.errors import CheckpointError

_INLINE_BYTES = 248
"""What `gather` tells of in one round: most of what it is for is a word."""

_made: tuple[dist.ProcessGroup, dist.ProcessGroup] | None = None


def restoring_peers() -> Peers | None:
    """All ranks of the default group, None where there is only one. Collective at the first call of a default group."""
    return None if dist.get_world_size() == 1 else GlooPeers(_host_group())


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
            raise self._lost(error) from error
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

    def exchange(self, send: ByteArray, send_bytes: Sequence[int], receive_bytes: Sequence[int]) -> Sequence[ByteArray]:
        receive = np.empty(sum(receive_bytes), np.uint8)
        try:
            dist.all_to_all_single(
                _tensor(receive), _tensor(send), list(receive_bytes), list(send_bytes), group=self._group
            )
        except RuntimeError as error:
            raise self._lost(error) from error
        return np.split(receive, list(accumulate(receive_bytes))[:-1])

    def _lost(self, error: RuntimeError) -> CheckpointError:
        return CheckpointError(
            f"rank {self.rank} of {self.world_size} lost the others while restoring: {error}",
            hint="see what ended the other ranks",
            rank=self.rank,
        )


def _tensor(data: ByteArray) -> torch.Tensor:
    return torch.from_numpy(data) if data.nbytes else torch.empty(0, dtype=torch.uint8)
