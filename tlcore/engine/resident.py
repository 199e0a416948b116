"""What a process holds when it should hold nothing: resident memory and device memory between two trials.

Owns the measurement. Does not own what is done about it (`sweep/slots/slot_memory.py`). Called by `sweep/slots/worker.py` on every
rank after a trial's session was closed; importable without torch, and does not load it.

Resident memory counts anonymous pages alone (`RssAnon`): weights mapped from a file are the page cache's, shared by the ranks
of a node and given back under pressure, so they are nobody's leak.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tlcore.engine.process import give_memory_back

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Resident:
    """Bytes of one process: private resident memory, and memory that torch has allocated on its device (0 without one)."""

    resident_bytes: int
    device_bytes: int


def measure() -> Resident:
    """Give back what can be given back, then say what is held."""
    give_memory_back()
    return Resident(_private_bytes(), _device_bytes())


def _private_bytes() -> int:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:  # no /proc: not Linux
        import psutil

        return int(psutil.Process().memory_info().rss)
    (line,) = [line for line in lines if line.startswith("RssAnon:")]
    return int(line.split()[1]) << 10


def _device_bytes() -> int:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return 0
    torch.cuda.empty_cache()
    return int(torch.cuda.memory_allocated())
