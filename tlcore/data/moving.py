"""How far this process has got with data that takes long to read: a count that grows with each block.

Owns the count. Grown by `formats.py` and by the tasks' tokenizing; read by `sweep/slots/`, which takes ranks that do not get on for
hung, and cannot tell reading for hours from standing still otherwise.
"""

from __future__ import annotations

_done = [0]


def block_done() -> None:
    """Count one block, of whatever is read or made."""
    _done[0] += 1


def blocks_done() -> int:
    """How many there were in this process; for any thread."""
    return _done[0]
