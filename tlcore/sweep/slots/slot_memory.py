"""When a warm worker group has kept too much of the trials before, and is to be replaced.

Owns the decision, on what each rank holds between two trials (`engine/resident.py`). Does not replace anything: `slot.py` does.

What is kept is compared with what was kept after the group's first trial: that one loads torch, kernels and libraries, which stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

AUTO_BYTES: Final = 1 << 30


class Growth:
    """One worker group's measurements, of any number of ranks. `bound`: bytes per rank, of either memory; auto is 1 GiB."""

    def __init__(self, bound: Literal["auto"] | int) -> None:
        self._bound = AUTO_BYTES if bound == "auto" else bound
        self._first: Sequence[Mapping[str, int]] | None = None

    def judge(self, ranks: Sequence[Mapping[str, int]]) -> str | None:
        """Why the group is to be replaced, or None. `ranks` are in rank order; each has `resident_bytes` and `device_bytes`."""
        if self._first is None or len(self._first) != len(ranks):
            self._first = ranks
            return None
        for rank, (now, then) in enumerate(zip(ranks, self._first, strict=True)):
            for what in ("resident_bytes", "device_bytes"):
                grown = now[what] - then[what]
                if grown > self._bound:
                    return (
                        f"rank {rank} holds {now[what]} {what.replace('_', ' ')} between trials, {grown} more than after its "
                        f"first trial; resources.slot_growth_bytes allows {self._bound}"
                    )
        return None
