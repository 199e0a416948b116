"""Population-based training and population-based bandits: Tune's, with takeovers that can be written down and replayed.

Owns what differs from Tune. Tune draws donor and settings from the process's global random numbers, multiplies settings out of
their domain, takes a donor's state from a future that may be a save under way, and keeps all of it in memory. Here the draws
follow from seed, trial and count; a takeover is of what the donor has committed (`seats.py`), and goes through
`Seats.take_over`, which hands back what the journal has when a sweep is replayed. When a trial of a synchronous population ends
while the others wait for it, Tune leaves them waiting; `_let_go` does not.

Where trials wait for room, or a metric gets worse with time, Tune's population may never end: of those furthest behind it runs the
first, and whoever goes ahead is worse than a donor behind it, goes back to the donor's time, and is the first again. Here the one
that took over least often runs, nobody takes over what is no better, and from any interval a trial goes back once.

Time is in units of the interval. Called by `schedulers.py`.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.schedulers.pbt import _PBTTrialState

from tlcore.errors import RequestError
from tlcore.recipe import Point, Recipe
from tlcore.recipe.domains import from_unit, unit_of
from tlcore.recipe.pairs import mutated_keys
from tlcore.recipe.search_schema import Population as Settings
from tlcore.recipe.space import fits
from tlcore.sweep.schedule.explore import perturb
from tlcore.sweep.schedule.seats import TIME, Seat

_DIGITS = 6


def interval_time(settings: Settings) -> Callable[[float], float]:
    """From a fraction of a trial to intervals, so that 0.3 lies exactly one interval of 0.1 after 0.2."""
    return lambda fraction: round(fraction / settings.interval, _DIGITS)


class Pbt(PopulationBasedTraining):
    """PBT over the seats of a recipe's trials."""

    def __init__(self, recipe: Recipe, **more: Any) -> None:
        settings, search = recipe.search.scheduler.population, recipe.search
        assert settings is not None
        super().__init__(
            **{
                "time_attr": TIME,
                "metric": search.metric,
                "mode": search.mode,
                "perturbation_interval": 1,
                "quantile_fraction": settings.quantile,
                "synch": settings.synchronous,
                "log_config": False,
                "custom_explore_fn": _unused,
                **more,
            }
        )
        self._recipe, self._settings = recipe, settings
        self._keys = mutated_keys(recipe)
        self._went_back: dict[Seat, float] = {}

    def on_trial_add(self, tune_controller: Any, trial: Seat) -> None:
        """A new member of the population."""
        self._trial_state[trial] = _PBTTrialState(trial)

    def on_trial_error(self, tune_controller: Any, trial: Seat) -> None:
        """A member is gone."""
        self._let_go(tune_controller, trial)

    def on_trial_complete(self, tune_controller: Any, trial: Seat, result: dict[str, Any]) -> None:
        """A member is through."""
        self._let_go(tune_controller, trial)

    def settle(self, tune_controller: Any) -> None:
        """Nobody waits for a trial that will not come."""
        self._let_go(tune_controller, None)

    def _let_go(self, controller: Any, ended: Seat | None) -> None:
        """In a synchronous population that waits for nobody any more: on to the next interval, without a look at this one."""
        live = [seat for seat in controller.get_live_trials() if seat is not ended]
        times = [self._trial_state[seat].last_train_time for seat in live]
        running = any(seat.status == Trial.RUNNING for seat in live)
        if self._synch and times and not running and min(times) >= self._next_perturbation_sync:
            self._next_perturbation_sync: float = min(times) + self._perturbation_interval

    def _checkpoint_or_exploit(
        self, trial: Seat, tune_controller: Any, upper_quantile: list[Seat], lower_quantile: list[Seat]
    ) -> None:
        donors = self._donors(trial, upper_quantile) if trial in lower_quantile else []
        if not donors:
            return
        stream = f"{self._recipe.train.seed}/{trial}/{trial.takeovers}"
        donor = random.Random(stream).choice(donors)
        taken = tune_controller.take_over(trial, donor, lambda: self._propose(donor, stream))
        if taken is None:
            return
        self._num_perturbations += 1
        mine, theirs = self._trial_state[trial], self._trial_state[taken]
        if theirs.last_train_time < mine.last_train_time:
            self._went_back[trial] = mine.last_train_time
        mine.last_perturbation_time, mine.last_train_time = theirs.last_perturbation_time, theirs.last_train_time
        self._took_over(trial, taken)

    def _donors(self, trial: Seat, upper_quantile: Sequence[Seat]) -> list[Seat]:
        """Those that are better, and behind only where the trial has not gone back from here before."""
        mine = self._trial_state[trial]
        may_go_back = mine.last_train_time > self._went_back.get(trial, 0.0)
        states = ((seat, self._trial_state[seat]) for seat in upper_quantile)
        return [
            seat
            for seat, theirs in states
            if theirs.last_score > mine.last_score and (may_go_back or theirs.last_train_time >= mine.last_train_time)
        ]

    def choose_trial_to_run(self, tune_controller: Any) -> Seat | None:
        """Whoever is furthest behind, and of those whoever has taken over least often."""
        waiting = [
            seat
            for seat in tune_controller.get_trials()
            if seat.status in (Trial.PENDING, Trial.PAUSED)
            and not (self._synch and self._trial_state[seat].last_train_time >= self._next_perturbation_sync)
        ]
        return min(waiting, key=lambda seat: (self._trial_state[seat].last_train_time, seat.takeovers), default=None)

    def _propose(self, donor: Seat, stream: str) -> Point:
        settings = self._recipe.search.scheduler.pbt
        resample, factors = (settings.resample, settings.factors) if settings is not None else (0.0, (0.8, 1.2))
        return perturb(self._recipe, donor.config, self._keys, resample, factors, stream)

    def _took_over(self, trial: Seat, donor: Seat) -> None:
        """What a model remembers of it."""


class Pb2(Pbt):
    """PB2 over the seats: Tune's Gaussian process, over each setting's place in its range (so learning rates by their logarithm).

    Tune copies the donor's settings unchanged while the donor has no two reports to compare; here they are perturbed as in PBT.
    """

    def __init__(self, recipe: Recipe) -> None:
        _require_model()
        import pandas as pd

        super().__init__(recipe, resample_probability=0)
        self._domains = {key: recipe.search.space[key] for key in self._keys}
        self._columns = ["Trial", "Time", *self._keys, "Reward"]
        self.data = pd.DataFrame(columns=self._columns)
        self.last_exploration_time = 0.0
        self.current: np.ndarray[Any, Any] | None = None

    def _save_trial_state(self, state: Any, time: float, result: Mapping[str, Any], trial: Seat) -> float:
        score: float = super()._save_trial_state(state, time, result, trial)
        self._remember(str(trial), time, trial, score)
        return score

    def _remember(self, name: str, time: float, seat: Seat, score: float) -> None:
        import pandas as pd

        row = pd.DataFrame([[name, time, *self._places(seat.config), score]], columns=self._columns)
        self.data = row if self.data.empty else pd.concat([self.data, row]).reset_index(drop=True)

    def _places(self, point: Mapping[str, Any]) -> list[float]:
        return [unit_of(domain, point[key]) for key, domain in self._domains.items()]

    def _propose(self, donor: Seat, stream: str) -> Point:
        from ray.tune.schedulers.pb2 import _explore

        near = super()._propose(donor, stream)
        held = dict(zip(self._keys, self._places(donor.config), strict=True))
        if self.data["Time"].max() > self.last_exploration_time:
            self.current = None
        with _seeded(stream), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the process's hyperparameters at their bounds: nobody can act on it
            chosen, data = _explore(self.data, dict.fromkeys(self._keys, (0.0, 1.0)), self.current, donor, "new", held)
        if len(data) == len(self.data):
            return near
        point = {**donor.config, **{key: from_unit(self._domains[key], float(chosen[key])) for key in self._keys}}
        return point if fits(self._recipe, point) is None else near

    def _took_over(self, trial: Seat, donor: Seat) -> None:
        newest = self.data["Time"].max()
        chosen = np.array([self._places(trial.config)])
        if self.current is None or newest > self.last_exploration_time:
            self.last_exploration_time, self.current = newest, chosen
        else:
            self.current = np.concatenate((self.current, chosen))
        theirs = self._trial_state[donor]
        self._remember(str(trial), theirs.last_train_time, trial, theirs.last_score)


def _unused(config: Any) -> Any:
    """Tune asks for something to explore with; `perturb` does."""
    return config


def _require_model() -> None:
    missing = [name for name, module in (("scikit-learn", "sklearn"), ("pandas", "pandas")) if not _is_there(module)]
    if missing:
        raise RequestError(
            f"search.scheduler pb2 needs {' and '.join(missing)}",
            hint='install tlcore\'s extra: pip install "tlcore[pb2]", or use pbt',
        )


def _is_there(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


@contextmanager
def _seeded(stream: str) -> Iterator[None]:
    """Numpy's global random numbers, which Tune's optimizer draws from, follow from `stream` inside the block."""
    before = np.random.get_state()
    np.random.seed(random.Random(stream).getrandbits(32))
    try:
        yield
    finally:
        np.random.set_state(before)


__all__: Sequence[str] = ("Pb2", "Pbt", "interval_time")
