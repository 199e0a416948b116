"""ASHA whose survivors go on with more workers: they are put aside at the rung, and taken up re-sharded when there is room.

Owns where a survivor waits and which one goes first. A trial cannot grow in the place that it holds: its bigger group needs
workers that others may have, and only admission knows of them. So at a rung after which the number of workers is another, a
survivor is paused, its checkpoint committed, its place given back; it starts again as any waiting trial does, in a slot of its
new shape, from its own manifest, at which any world size can begin.

Nothing starves: the deepest survivor goes first and the better one among equals, one that fits passes one that does not, and no new
trial is started while a survivor waits (`Conductor.has_ready`). So what can hold a place is finite and ends, and the last survivor
waiting finds the cluster empty of the sweep's trials, where it fits, or the sweep would not have begun.

Does not own the rungs' rule, which is Tune's. Called by `schedulers.py`.
"""

from __future__ import annotations

import math
from typing import Any, Final

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from tlcore.recipe import Recipe, resizing_rungs, scheduler_fractions
from tlcore.sweep.schedule.seats import TIME, Seat

_NEAR: Final = 1e-6


class Asha(ASHAScheduler):
    """Asynchronous successive halving over the seats of a recipe's trials; time is the fraction of a trial."""

    def __init__(self, recipe: Recipe) -> None:
        asha = recipe.search.scheduler.asha
        assert asha is not None
        super().__init__(
            time_attr=TIME,
            metric=recipe.search.metric,
            mode=recipe.search.mode,
            max_t=1.0,
            grace_period=scheduler_fractions(recipe)[0],
            reduction_factor=asha.reduction,
        )
        self._resizing = resizing_rungs(recipe)

    def on_trial_result(self, tune_controller: Any, trial: Seat, result: dict[str, Any]) -> str:
        """Stop, go on, or wait for the workers of the next stretch."""
        decision = str(super().on_trial_result(tune_controller, trial, result))
        at_rung = any(abs(result[TIME] - rung) < _NEAR for rung in self._resizing)
        return str(TrialScheduler.PAUSE) if at_rung and decision == TrialScheduler.CONTINUE else decision

    def ready(self, tune_controller: Any) -> list[Seat]:
        """The survivors that wait, the one to start first at the front."""
        if not self._resizing:
            return []  # nobody ever waits; Tune asks after each of its events
        waiting = [seat for seat in tune_controller.get_trials() if seat.status == Trial.PAUSED]
        return sorted(waiting, key=self._turn)

    def choose_trial_to_run(self, tune_controller: Any) -> Seat | None:
        """The first of `ready`."""
        return next(iter(self.ready(tune_controller)), None)

    def _turn(self, seat: Seat) -> tuple[float, float]:
        value = seat.result.get(self._metric, math.nan)
        return -seat.result.get(TIME, 0.0), math.inf if math.isnan(value) else -self._metric_op * value
