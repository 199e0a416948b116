"""One trial as every table of this room shows it, and what is computed over many of them: order, best, time left.

Owns the meaning of "sorted by metric" and of the estimate; not the folding of journal entries (`storage/journal.py`)
nor any rendering. Pure data, no clock. Called by every other module of this room.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

WAITING, RUNNING, COMPLETED, STOPPED, FAILED = "waiting", "running", "completed", "stopped", "failed"
UNFINISHED = "unfinished"
"""A stored trial that started and did not end: storage cannot tell whether it still runs."""
ENDED = frozenset({COMPLETED, STOPPED, FAILED})


@dataclass(frozen=True)
class TrialRow:
    """One trial at one moment.

    `rung` is the deepest fraction of the trial's own epochs at which it was evaluated, `fraction` where it is now;
    `metric` is the searched metric at the last report, `by_rung` the same at every fraction reported. `reason` says why
    it stopped or failed. `workers` are those it has, or had last. `stall_s` is how long the last save kept training,
    `save_bytes_per_s` how fast its new bytes went, `save_bytes_new` and `save_bytes_reused` how many went and how many were
    stored already, `save_retries` how many requests were made again, `saves` what all saves took by the last report
    (`SaveTotals` of `train/`), each on rank 0. `adapted` is what it runs with, besides its point, since memory ran out;
    `losses` how often a worker, a node or more was lost to it.
    """

    trial: str
    state: str
    point: Mapping[str, Any] = field(default_factory=dict)
    fraction: float = 0.0
    rung: float | None = None
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    metric: float | None = None
    samples_per_s: float | None = None
    checkpoint_step: int | None = None
    stall_s: float | None = None
    save_bytes_per_s: float | None = None
    save_bytes_new: int | None = None
    save_bytes_reused: int | None = None
    save_retries: int | None = None
    saves: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    workers: int | None = None
    by_rung: Mapping[float, float] = field(default_factory=dict)
    adapted: Mapping[str, Any] = field(default_factory=dict)
    losses: Mapping[str, int] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Nothing more will come of it."""
        return self.state in ENDED


def usable(value: float | None) -> bool:
    """Whether a metric can be compared at all (NaN cannot)."""
    return value is not None and not math.isnan(value)


def better(mode: str, value: float, other: float) -> bool:
    """Whether `value` beats `other` under `mode` ("max" or "min")."""
    return value > other if mode == "max" else value < other


def ranked(rows: Iterable[TrialRow], mode: str) -> list[TrialRow]:
    """By metric, best first, the deeper rung winning a tie; trials without a metric follow, in their own order."""
    sign = -1.0 if mode == "max" else 1.0

    def order(row: TrialRow) -> tuple[bool, float, float, str]:
        if row.metric is None or not usable(row.metric):
            return True, 0.0, 0.0, row.trial
        return False, sign * row.metric, -(row.rung or 0.0), row.trial

    return sorted(rows, key=order)


def best_of(rows: Iterable[TrialRow], mode: str) -> TrialRow | None:
    """The first of `ranked`, unless no trial has a metric."""
    order = ranked(rows, mode)
    return order[0] if order and usable(order[0].metric) else None


ENOUGH: Final = 0.25
"""Of one trial's epochs: from there on a pace counts as known."""
EARLY_STEPS: Final = 24
"""Optimizer steps from which on a first guess is made; fewer say more about caches that fill than about the pace."""


@dataclass(frozen=True)
class Estimate:
    """How much of the sweep's training is behind us, and the seconds left at the pace so far (None: nothing is known of it).

    `early`: the pace is that of a few steps; `workers` are those that the running trials have then, else 0.
    """

    share: float
    left_s: float | None
    early: bool = False
    workers: int = 0


def estimate(rows: Sequence[TrialRow], expected_trials: int, elapsed_s: float, share_before: float = 0.0) -> Estimate:
    """Time left, in units of "fractions of a trial's own epochs".

    Trials that have not ended are expected to run as far as the mean of those that did (all the way while none has),
    or as far as they already are. The pace is what was trained since the display began: `share_before` is the amount
    that an interrupted run had trained before it, so that a resumed sweep is not credited with work it did not do.
    It is an early one until a quarter of one trial has been trained, and says nothing before a few dozen optimizer steps.
    """
    ended = [row.fraction for row in rows if row.ended]
    typical = sum(ended) / len(ended) if ended else 1.0
    done = sum(row.fraction for row in rows)
    unseen = max(0, expected_trials - len(rows))
    ahead = sum(max(0.0, typical - row.fraction) for row in rows if not row.ended) + unseen * typical
    expected = done + ahead
    share = 1.0 if expected == 0 else done / expected
    trained = done - share_before
    if elapsed_s <= 0 or trained < min(ENOUGH, _fraction_of_steps(rows, EARLY_STEPS)):
        return Estimate(share, None)
    left_s = ahead * elapsed_s / trained
    if trained >= ENOUGH:
        return Estimate(share, left_s)
    return Estimate(share, left_s, True, sum(row.workers or 0 for row in rows if row.state == RUNNING))


def _fraction_of_steps(rows: Sequence[TrialRow], steps: int) -> float:
    """Which fraction of a trial's epochs so many steps are, by the shortest trial that told its length; infinite while none has."""
    totals = [row.total_steps for row in rows if row.total_steps]
    return steps / min(totals) if totals else math.inf
