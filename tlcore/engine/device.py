"""How a checkpoint's snapshot reaches state that lies in a GPU's memory.

Owns: the copy to the host on a stream of its own, into page-locked memory. Does not own: what is copied when
(`checkpoint/snapshot.py`), nor which tensors are state (`state.py`). Called by `sharded.py`, which gives `TorchDevice`
to the writer and makes a `TensorPiece` of every interval that is not in host memory.

The limit is the bus: bytes / pinned-copy speed, and nothing of it is stall where the copy runs beside a forward and
backward pass, which read the same memory and do not change it. The optimizer's kernels wait for the copy on the
device; the host queues them and goes on. On a CPU device every call here does the same without a stream, so that the
worker loop needs no other code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from tlcore.checkpoint import Row
from tlcore.checkpoint.device import Landed
from tlcore.checkpoint.intervals import ByteArray


class TorchDevice:
    """Copies from one device's memory to the host; `checkpoint.device.Device` for the writer."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def empty(self, size_bytes: int) -> ByteArray:
        """Host memory, page-locked where there is a GPU: others are copied to through a hidden buffer, and wait."""
        memory: ByteArray = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=self._stream is not None).numpy()
        return memory

    def begin(self) -> None:
        """Copies from here on see what the caller's stream was told so far."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def mark(self) -> Landed:
        """A call that sleeps until every copy begun so far has landed."""
        if self._stream is None:
            return _already
        event = torch.cuda.Event(blocking=True)  # without `blocking` the waiting thread keeps a core busy
        event.record(self._stream)
        return event.synchronize

    def hold(self) -> None:
        """What the caller's stream is told next waits, on the device, for every copy begun so far."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    @contextlib.contextmanager
    def _copying(self) -> Iterator[None]:
        """On the copies' stream. The device too: a thread that is at the first GPU would come back to it, and open it for that."""
        if self._stream is None:
            yield
            return
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield

    def copy(self, source: torch.Tensor, target: ByteArray) -> None:
        """Begin to copy a 1-D uint8 tensor into host memory of its size."""
        with self._copying():
            torch.from_numpy(target).copy_(source, non_blocking=True)
        if self._stream is not None:
            # Should its owner free it meanwhile, the allocator must not hand it out before the copy is done.
            source.record_stream(self._stream)


@dataclass(frozen=True, eq=False)
class TensorPiece:
    """A row whose bytes lie in a device's memory; `checkpoint.device.StatePiece` for the writer."""

    row: Row
    data: torch.Tensor
    device: TorchDevice
    immutable: bool = False

    def copy_into(self, start: int, target: np.ndarray) -> None:
        """Begin to copy bytes `[start, start + target.nbytes)`; a later `device.mark()` says when they are there."""
        self.device.copy(self.data[start : start + target.nbytes], target)


def _already() -> None:
    return
