"""What a run has used: hours, worker-hours and their cost, as a pure fold over its journal.

Owns the arithmetic, for budgets, displays and `tlcore show` alike; there is no other count. A driver's life runs from its first
entry to the one that ends it (`finished`, `interrupted`), or to its last one where it was killed: time in which no driver lived is
never counted, and only times that one driver wrote are compared with each other, so clocks of different machines need not agree.
A driver writes an `alive` entry when it has had nothing else to say for `ALIVE_EVERY_S`, so a kill hides no more than that.

A trial holds its workers from `started` until it is paused, put aside, ended, or loses its slot; the best one holds some once more
from `testing` to its test figures (`final`). From `queued` to `placed` it holds none: others had the room, or it was still to be
made. The time in which a worker group starts counts; the time in which a warm one waits for its next trial does not. A journal that
does not say how many workers a trial held tells no worker-hours. Called by `journal.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

ALIVE_EVERY_S: Final = 300.0
_TAKES: Final = frozenset({"started", "testing"})
_LETS_GO: Final = frozenset({"paused", "took_over", "left", "stopped", "completed", "failed", "final"})
_ENDS: Final = frozenset({"finished", "interrupted"})
_HOUR_S: Final = 3600.0


def utc_now() -> datetime:
    """The time that a run's entries are dated by."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Usage:
    """`hours` of wall time over all drivers; `worker_hours`; `cost` of those worker-hours that had a price, None where none had."""

    hours: float = 0.0
    worker_hours: float = 0.0
    cost: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """JSON-able."""
        return {"hours": self.hours, "worker_hours": self.worker_hours, "cost": self.cost}


@dataclass(frozen=True)
class _Hold:
    since: datetime
    workers: int
    price: float | None


class Account:
    """Folds entries in order. Entries without a time count nothing."""

    def __init__(self) -> None:
        self._began: datetime | None = None
        self._last: datetime | None = None
        self._holds: dict[str, _Hold] = {}
        self._queued: dict[str, _Hold] = {}
        """What those will hold whose workers wait for room."""
        self._wall_s = 0.0
        self._worker_s = 0.0
        self._cost: float | None = None

    def apply(self, entry: Mapping[str, Any]) -> None:
        """Fold one more entry."""
        kind = entry["kind"]
        if kind == "resumed":
            self._end_life()
        if not entry.get("time") or (kind == "final" and self._began is None):  # once taken after the end, by no worker
            return
        now = datetime.fromisoformat(entry["time"])
        self._began = self._began or now
        self._last = now if self._last is None else max(self._last, now)
        trial = entry.get("trial") or ""
        if kind in _TAKES:
            self._let_go(trial)
            self._holds[trial] = _Hold(self._last, int(entry.get("workers", 0)), entry.get("price"))
        elif kind == "queued" and trial in self._holds:
            hold = self._holds[trial]
            self._let_go(trial)
            self._queued[trial] = hold
        elif kind == "placed" and trial in self._queued:
            self._holds[trial] = replace(self._queued.pop(trial), since=self._last)
        elif kind in _LETS_GO or (kind == "lost" and "slot" in entry):
            self._let_go(trial)
        elif kind in _ENDS:
            self._end_life()

    def used(self, now: datetime | None = None) -> Usage:
        """What was used up to the last entry; with `now`, by the driver that lives, up to now."""
        if self._began is None or self._last is None:
            return Usage(self._wall_s / _HOUR_S, self._worker_s / _HOUR_S, self._cost)
        until = self._last if now is None else max(self._last, now)
        wall_s, worker_s, cost = self._wall_s + _seconds(self._began, until), self._worker_s, self._cost
        for hold in self._holds.values():
            held_s = _seconds(hold.since, until) * hold.workers
            worker_s, cost = worker_s + held_s, _priced(cost, held_s, hold.price)
        return Usage(wall_s / _HOUR_S, worker_s / _HOUR_S, cost)

    def _let_go(self, trial: str) -> None:
        self._queued.pop(trial, None)
        hold = self._holds.pop(trial, None)
        if hold is not None and self._last is not None:
            held_s = _seconds(hold.since, self._last) * hold.workers
            self._worker_s, self._cost = self._worker_s + held_s, _priced(self._cost, held_s, hold.price)

    def _end_life(self) -> None:
        self._queued.clear()
        for trial in list(self._holds):
            self._let_go(trial)
        if self._began is not None and self._last is not None:
            self._wall_s += _seconds(self._began, self._last)
        self._began = self._last = None


def _seconds(start: datetime, end: datetime) -> float:
    return max(0.0, (end - start).total_seconds())


def _priced(cost: float | None, held_s: float, price: float | None) -> float | None:
    return cost if price is None else (cost or 0.0) + held_s / _HOUR_S * price
