"""The steps that the ranks of a sweep really did, as they wrote them down one by one.

Owns the lines as the bench reads them; loads nothing heavy. Written by `session.py`, read by `campaign.py` while the sweep runs and
by `figures.py` afterwards. Times are seconds since 1970, so all processes must be on one machine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

STEPS_FILE: Final = "TLCORE_BENCH_STEPS"
"""Environment variable with the file's name."""


@dataclass(frozen=True)
class StepDone:
    """`rank` of `trial` has done optimizer step `step` (from 1), at `at_s`.

    `life` is one start of the trial on that rank, `committed` the newest committed checkpoint's step as the rank knew it then.
    """

    trial: str
    step: int
    rank: int
    life: str
    pid: int
    committed: int | None
    at_s: float


@dataclass
class StepLog:
    """The file so far; `refresh` reads what came since. In order of arrival, which for one rank is the order of its steps."""

    path: Path
    lines: list[StepDone] = field(default_factory=list)
    distinct: set[tuple[str, int]] = field(default_factory=set)
    _read_bytes: int = 0

    def refresh(self) -> None:
        """Take in whole lines."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read_bytes)
            whole, _, _ = file.read().rpartition(b"\n")
        if not whole:
            return
        self._read_bytes += len(whole) + 1
        fresh = [StepDone(**json.loads(line)) for line in whole.splitlines()]
        self.lines += fresh
        self.distinct.update((line.trial, line.step) for line in fresh)
