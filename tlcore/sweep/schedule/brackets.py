"""HyperBand and BOHB's HyperBand: Tune's, with what Tune leaves broken put right.

Owns four repairs, each with a test in `test_sweep_brackets.py`. Tune fills a bracket up again whenever a trial of it has ended, so
that where only a few run at a time all of them run to their end in the first, which never halves: here a bracket has had its trials
once as many have joined. Tune halves a bracket as soon as all trials in it have reported,
also when most of its trials have not been suggested yet, which is always so where only a few run at a time: here a bracket waits
until it is full, or until no more trials will come. Tune stops looking at a bracket after its first halving, so one failed
trial leaves the others paused for ever. And it cuts a float power to an integer for the first rung, which makes 49 * 7**-2 zero.

Time is in units of the deepest bracket's first rung. Does not own seats (`seats.py`). Called by `schedulers.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.schedulers import HyperBandForBOHB, HyperBandScheduler, TrialScheduler
from ray.tune.schedulers.hyperband import _Bracket

from tlcore.recipe.search_schema import HyperBand as Settings
from tlcore.sweep.schedule.seats import TIME

_DIGITS = 9


def unit_time(settings: Settings) -> Callable[[float], float]:
    """From a fraction of a trial to units of the deepest bracket's first rung, so that rungs are whole numbers."""
    whole = settings.reduction ** (settings.brackets - 1)
    return lambda fraction: round(fraction * whole, _DIGITS)


class Bracket(_Bracket):
    """One bracket, which only so many trials ever join."""

    def filled(self) -> bool:
        """Whether nobody joins it any more."""
        return bool(len(self._all_trials) >= self._n0)


class _Repaired(HyperBandScheduler):
    """The repairs, over either of Tune's two classes."""

    def __init__(self, settings: Settings, metric: str, mode: str) -> None:
        deepest = settings.brackets - 1
        super().__init__(
            time_attr=TIME,
            metric=metric,
            mode=mode,
            max_t=settings.reduction**deepest,
            reduction_factor=settings.reduction,
        )
        self._s_max_1 = settings.brackets
        self._get_r0 = lambda s: settings.reduction ** (deepest - s)

    def _create_bracket(self, s: int) -> Bracket:
        return Bracket(TIME, self._get_n0(s), self._get_r0(s), self._max_t_attr, self._eta, s, self._stop_last_trials)

    def settle(self, controller: Any) -> None:
        """Fewer trials may come than were awaited: halve what waits for nobody any more."""
        for band in self._hyperbands:
            for bracket in band:
                if bracket is not None and bracket.current_trials() and not bracket.finished():
                    self._process_bracket(controller, bracket)

    def _process_bracket(self, tune_controller: Any, bracket: Any) -> str:
        current = bracket is self._state["bracket"]
        if current and not bracket.filled() and tune_controller.more_to_come():
            return str(TrialScheduler.PAUSE)
        if current and bracket.cur_iter_done():
            self._state["bracket"] = None  # halved: nobody joins it any more, also when one of its trials fails
        try:
            return str(super()._process_bracket(tune_controller, bracket))
        finally:
            bracket.is_being_processed = False


class HyperBand(_Repaired):
    """HyperBand, the shallowest bracket first."""


class Bohb(_Repaired, HyperBandForBOHB):
    """BOHB's HyperBand: the deepest bracket first, so that the model has results early. The rest is HyperBand's: what Tune's class
    does besides works round Tune's own searchers, and changes brackets when nothing was reported."""

    on_trial_add = HyperBandForBOHB.on_trial_add
    on_trial_result = HyperBandScheduler.on_trial_result
    choose_trial_to_run = HyperBandScheduler.choose_trial_to_run
    _unpause_trial = HyperBandScheduler._unpause_trial
