"""Where live state may lie: in host memory, which numpy sees, or in a device's memory, which must be copied to the host.

Owns: the two Protocols between the writer and a device, and the device that is none (`HostMemory`). Does not own: the
CUDA side (`engine/device.py`), when copies happen (`snapshot.py`). Called by `snapshot.py` and `writer.py`.

A device copies asynchronously, on a stream of its own, in order. So there are three moments: `begin` (copies from here
on see what the caller's stream was told to compute so far), `mark` (a call that returns once the copies so far have
landed), and `hold` (what the caller's stream is told from here on waits for the copies so far; the caller does not).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from tlcore.checkpoint.intervals import ByteArray, Row

Landed = Callable[[], None]
"""Returns when the copies that it stands for are in host memory."""


class StatePiece(Protocol):
    """A row and the live memory that holds it, wherever that is. `Piece` is the one in host memory."""

    @property
    def row(self) -> Row:
        """What it holds."""

    @property
    def immutable(self) -> bool:
        """Whether its bytes never change while the writer lives."""

    def copy_into(self, start: int, target: ByteArray) -> None:
        """Begin to copy bytes `[start, start + target.nbytes)` to host memory; they are there after a later `mark`."""


class Device(Protocol):
    """What the writer needs of the device that holds the state. `begin` and `hold` concern the calling thread's stream."""

    def empty(self, size_bytes: int) -> ByteArray:
        """Host memory that copies from this device reach fastest (page-locked, on a GPU); contents arbitrary."""

    def begin(self) -> None:
        """Copies from here on see all that the caller's stream was told so far, and nothing older."""

    def mark(self) -> Landed:
        """A call that blocks until every copy begun so far has landed; may be made in any thread."""

    def hold(self) -> None:
        """Make what the caller's stream is told next wait for every copy begun so far."""


class HostMemory:
    """State in host memory: copies are done when they return."""

    def empty(self, size_bytes: int) -> ByteArray:
        """Ordinary memory."""
        return np.empty(size_bytes, dtype=np.uint8)

    def begin(self) -> None:
        """Nothing to order."""

    def mark(self) -> Landed:
        """Nothing to wait for."""
        return _already

    def hold(self) -> None:
        """Nothing to order."""


def _already() -> None:
    return
