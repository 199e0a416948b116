"""The ranks of a trial as `checkpoint/` talks to them while it restores: bytes over a gloo group.

Owns the group. Does not own what is said (`checkpoint/exchange.py`). Called by `restore.py`.

`all_to_all_single` on flat buffers moved 1.3 GB/s each way between two ranks of one machine in blocks of 32 MiB, 1.05 in
blocks of 8 MiB; batched isend and irecv 1.1 and 0.95, all_gather 0.2 and 0.4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from tlcore.checkpoint import Peers
from tlcore.checkpoint.intervals import ByteArray
from tlcore.errors import CheckpointError

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
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
            dist.all_gather(sizes, torch.tensor([len(own)]), group=self._group)
            lengths = [int(size) for size in sizes]
            padded = torch.zeros(max(1, *lengths), dtype=torch.uint8)
            padded[: len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8) if own else padded[:0]
            found = [torch.empty_like(padded) for _ in lengths]
            dist.all_gather(found, padded, group=self._group)
        except RuntimeError as error:
            raise self._lost(error) from error
        return [each[:length].numpy().tobytes() for each, length in zip(found, lengths, strict=True)]

    def exchange(
        self, send: ByteArray, send_bytes: Sequence[int], receive: ByteArray, receive_bytes: Sequence[int]
    ) -> None:
        try:
            dist.all_to_all_single(
                _tensor(receive), _tensor(send), list(receive_bytes), list(send_bytes), group=self._group
            )
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> CheckpointError:
        return CheckpointError(
            f"rank {self.rank} of {self.world_size} lost the others while restoring: {error}",
            hint="see what ended the other ranks",
            rank=self.rank,
        )


def _tensor(data: ByteArray) -> torch.Tensor:
    return torch.from_numpy(data) if data.nbytes else torch.empty(0, dtype=torch.uint8)
