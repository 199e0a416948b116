"""From the recipe to Tune's scheduler, over seats.

Owns the mapping, and one thing that Tune leaves to be done for ASHA: floating-point rungs (0.1 * 3 is more than 0.3) must still
be met by the fraction a trial reports. The other schedulers' units are whole numbers at their rungs (`brackets.py`,
`population.py`). Called by `driver.py` and by tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ray.tune.schedulers import FIFOScheduler, MedianStoppingRule, TrialScheduler

from tlcore.recipe import Recipe
from tlcore.sweep.schedule.brackets import Bohb, HyperBand, unit_time
from tlcore.sweep.schedule.population import Pb2, Pbt, interval_time
from tlcore.sweep.schedule.promotion import Asha
from tlcore.sweep.schedule.seats import TIME, Effects, Seats

_NUDGE = 1e-9
"""Added to a trial's fraction: more than any rounding of a rung, far less than the way between two."""


def make_seats(recipe: Recipe, effects: Effects) -> Seats:
    """The scheduler that the recipe names, with no trial yet."""
    scheduler, time_of = _made(recipe)
    return Seats(scheduler, time_of, effects)


def _made(recipe: Recipe) -> tuple[TrialScheduler, Callable[[float], float]]:
    search, chosen = recipe.search, recipe.search.scheduler
    if chosen.asha is not None:
        return Asha(recipe), lambda fraction: min(1.0, fraction + _NUDGE)
    if (brackets := chosen.brackets) is not None:
        kind = Bohb if chosen.bohb is not None else HyperBand
        return kind(brackets, search.metric, search.mode), unit_time(brackets)
    if chosen.median is not None:
        return _median(recipe), _as_it_is
    if chosen.pb2 is not None:
        return Pb2(recipe), interval_time(chosen.pb2)
    if chosen.pbt is not None:
        return Pbt(recipe), interval_time(chosen.pbt)
    return FIFOScheduler(), _as_it_is


def _as_it_is(fraction: float) -> float:
    return fraction


def _median(recipe: Recipe) -> MedianStoppingRule:
    median = recipe.search.scheduler.median
    assert median is not None
    return MedianStoppingRule(
        time_attr=TIME,
        metric=recipe.search.metric,
        mode=recipe.search.mode,
        grace_period=median.grace,
        min_samples_required=median.min_trials,
        min_time_slice=math.inf,  # never yield to others: who runs is for admission to say
    )
