"""When things happened in a bench's processes: each appends its stamps to one file, and the gaps between trials follow from them.

Owns the file and the arithmetic; loads nothing heavy. The file is named by an environment variable, which Ray carries to every
process. Stamps are wall-clock seconds, so all processes must be on one machine. Called by `turnaround.py` and both patterns.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

STAMPS_FILE: Final = "TLCORE_BENCH_STAMPS"

Event = Literal["asked", "first_step", "end"]


@dataclass(frozen=True)
class Stamp:
    """`event` of trial `trial` in sweep `sweep`, at `time_s` (seconds since 1970).

    `asked`: the driver is about to start the sweep (no trial). `first_step`: the trial's first optimizer step is done, on rank 0.
    `end`: the trial's last report is done there, its checkpoint durable.
    """

    sweep: str
    event: Event
    trial: str
    time_s: float


def stamp(sweep: str, event: Event, trial: str = "") -> None:
    """Note an event, now."""
    line = json.dumps(asdict(Stamp(sweep, event, trial, time.time()))) + "\n"
    with Path(os.environ[STAMPS_FILE]).open("a") as file:
        file.write(line)  # one write of one short line: processes do not tear each other's


def read_stamps(path: Path) -> list[Stamp]:
    """Every stamp of the file, in the order of time."""
    stamps = (Stamp(**json.loads(line)) for line in path.read_text().splitlines())
    return sorted(stamps, key=lambda one: one.time_s)


def turnarounds(stamps: Iterable[Stamp], sweep: str) -> list[float]:
    """Seconds from each trial's end to the next one's first step, in one sweep that runs one trial at a time.

    Raises:
        ValueError: trials overlap, or one has no end: then there is no such time.
    """
    events = [one for one in stamps if one.sweep == sweep and one.event != "asked"]
    expected = ["first_step", "end"] * (len(events) // 2)
    pairs = list(zip(events[::2], events[1::2], strict=False))
    if [one.event for one in events] != expected or any(first.trial != last.trial for first, last in pairs):
        seen = ", ".join(f"{one.trial} {one.event}" for one in events)
        raise ValueError(f"sweep {sweep}: not one whole trial after another: {seen}")
    return [after.time_s - before.time_s for before, after in zip(events[1::2], events[2::2], strict=False)]


def cold_start(stamps: Iterable[Stamp], sweep: str) -> float:
    """Seconds from asking for a sweep to its first trial's first step."""
    times = {one.event: one.time_s for one in reversed([one for one in stamps if one.sweep == sweep])}
    return times["first_step"] - times["asked"]
