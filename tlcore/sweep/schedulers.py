"""From the recipe to Tune's scheduler, and its state again from the journal.

Owns the mapping, and the two things Tune leaves to be done: rungs are fractions of a trial, and floating-point rungs (0.1 * 3 is
more than 0.3) must still be met by the fraction a trial reports; and a resumed sweep must go on with the same rungs, which
Tune's own restore forgets (ray#30838). Replay feeds the journal's results to a fresh scheduler in the order in which they came,
which needs neither Tune's trial objects nor a pickle. Called by `runner.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from tlcore.recipe import Recipe, scheduler_fractions
from tlcore.storage.journal import Entry
from tlcore.sweep.slot import TIME_ATTR

_NUDGE = 1e-9
"""Added to a trial's fraction: more than any rounding of a rung, far less than the way between two."""


class Asha(ASHAScheduler):
    """Tune's asynchronous successive halving over fractions of a trial. `rungs`: the fractions trials report at."""

    def __init__(self, rungs: tuple[float, ...], metric: str, mode: str, reduction: float) -> None:
        super().__init__(
            time_attr=TIME_ATTR, metric=metric, mode=mode, max_t=1.0, grace_period=rungs[0], reduction_factor=reduction
        )

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide on a report: CONTINUE or STOP."""
        decision: str = super().on_trial_result(tune_controller, trial, self._on_rung(result))
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Note the last report of a trial that ended."""
        super().on_trial_complete(tune_controller, trial, self._on_rung(result))

    def _on_rung(self, result: dict[str, Any]) -> dict[str, Any]:
        if TIME_ATTR not in result:
            return result
        return {**result, TIME_ATTR: min(1.0, result[TIME_ATTR] + _NUDGE)}


def make_scheduler(recipe: Recipe) -> TrialScheduler:
    """The scheduler that the recipe names."""
    asha = recipe.search.scheduler.asha
    if asha is None:
        return FIFOScheduler()
    return Asha(scheduler_fractions(recipe), recipe.search.metric, recipe.search.mode, asha.reduction)


@dataclass(frozen=True)
class _Replayed:
    """As much of a Tune trial as its schedulers look at when they are told of a report."""

    trial_id: str


def replay(scheduler: TrialScheduler, entries: Iterable[Entry]) -> set[str]:
    """Bring a fresh scheduler to where the journal ends.

    Returns:
        Trials it had decided to stop, whose stop the journal does not have: the driver died in between.
    """
    last: dict[str, dict[str, Any]] = {}
    decided: set[str] = set()
    for entry in entries:
        name = entry.get("trial")
        if not isinstance(name, str):
            continue
        trial, kind = _Replayed(name), entry["kind"]
        if kind == "suggested":
            scheduler.on_trial_add(None, trial)
        elif kind == "result":
            last[name] = {TIME_ATTR: entry["fraction"], **_numbers(entry["metrics"])}
            if entry["fraction"] < 1.0 and scheduler.on_trial_result(None, trial, last[name]) == TrialScheduler.STOP:
                decided.add(name)
        elif kind in {"completed", "stopped"}:
            scheduler.on_trial_complete(None, trial, last.get(name, {}))
            decided.discard(name)
        elif kind == "failed":
            decided.discard(name)
    return decided


def _numbers(metrics: dict[str, float | None]) -> dict[str, float]:
    """Metrics as they were reported: what was not finite stands as null in the journal."""
    return {name: math.nan if value is None else value for name, value in metrics.items()}
