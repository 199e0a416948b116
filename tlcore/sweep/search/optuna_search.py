"""Optuna's samplers as a searcher, without Optuna's storage.

Owns the translation of a recipe's space, points and results. Each suggestion comes from a fresh study and a sampler seeded by
(`train.seed`, index), filled with what the journal has told; so a suggestion follows from the journal alone, on any machine, and
nothing of Optuna's is stored. Conditions need no translation: a setting is asked for only where it is searched.

A trial that the scheduler stopped is told as pruned, at the depth that it reached: TPE ranks it below those that went deeper,
CMA-ES takes its last value. Running trials are told too, so that TPE keeps away from them. A repaired trial is told as it was
suggested: a repair leaves the course of training as it was, and may lie outside the space. Called by `searchers.py`.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from tlcore.recipe import Domain, Point, Recipe, trial_point
from tlcore.recipe.domains import Scalar, contains, multiple_of, same_value, steps_of
from tlcore.recipe.space import complete
from tlcore.storage.journal import Entry

_DIRECTIONS: Final = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
_DEPTHS: Final = 10_000
"""Optuna counts depth in whole steps: so many to a trial."""
_FEWEST_SOURCES: Final = 10
"""CMA-ES begins around the best tenth of its sources, and asserts that this is one at least."""
_GENERATION: Final = NSGAIISampler._get_generation_key()
"""Where NSGA-II looks for the generation that a trial is of; without it a trial is nobody's parent."""


@dataclass
class _Told:
    """One trial as the journal has told it."""

    params: dict[str, Any]
    marks: dict[str, Any]
    """What the sampler noted about it for itself."""
    depth: float = 0.0
    values: tuple[float | None, ...] = ()
    state: TrialState = TrialState.RUNNING
    deepest: dict[int, float] = field(default_factory=dict)
    """Its deepest report, all that the samplers look at of a trial's reports: step -> value. Optuna copies it at every
    suggestion."""


class OptunaSearcher:
    """TPE, CMA-ES or NSGA-II over a recipe's space."""

    def __init__(self, recipe: Recipe) -> None:
        search = recipe.search
        assert search.algorithm.optuna is not None
        self._recipe, self._settings = recipe, search.algorithm.optuna
        self._metrics = search.metrics
        self._directions = [_DIRECTIONS[mode] for mode in search.modes]
        self._distributions = {key: _distribution(domain) for key, domain in search.space.items()}
        self._told: dict[str, _Told] = {}
        self._warmed: list[_Told] = []
        self._asked: tuple[int, int, Point, dict[str, Any]] | None = None
        self._observed = 0

    def suggest(self, index: int) -> Point:
        """A fixed first point, or the sampler's."""
        if index < len(self._recipe.search.first):
            return trial_point(self._recipe, self._recipe.train.seed, index)
        if self._asked is None or self._asked[:2] != (index, self._observed):
            self._asked = (index, self._observed, *self._ask(index))
        return dict(self._asked[2])

    def observe(self, entry: Entry) -> None:
        """Suggestions, results and ends; the rest is not for samplers."""
        kind, trial = entry["kind"], entry.get("trial")
        if kind == "warmed":
            for number, used in enumerate(entry["used"]):
                self._warm(f"{entry['source']}#{number}", used)
        elif kind in {"suggested", "dropped"}:
            self._suggested(entry)
            if kind == "dropped":
                self._told[entry["trial"]].state = TrialState.FAIL
        elif kind in {"result", "completed", "stopped", "failed"} and trial in self._told:
            _update(self._told[trial], entry, self._metrics)
        self._observed += kind in {"warmed", "suggested", "dropped", "result", "completed", "stopped", "failed"}

    def _suggested(self, entry: Entry) -> None:
        index = len(self._told)
        asked = {key: before for key, (before, _) in entry.get("repaired", {}).items()}
        params = self._params({**entry["point"], **asked})
        self._told[entry["trial"]] = _Told(params, self._marks(int(entry["trial"].removeprefix("t"))))
        assert len(self._told) == index + 1, f"trial {entry['trial']} was suggested twice"

    def _marks(self, number: int) -> dict[str, Any]:
        """Of trial `number`, whose suggestion follows from what was told: its generation, and with CMA-ES what the ones before it
        taught."""
        if self._settings.sampler == "tpe":
            return {}
        if number < len(self._recipe.search.first):
            return self._marks_of_given()
        self.suggest(number)
        assert self._asked is not None
        return self._asked[3]

    def _marks_of_given(self) -> dict[str, Any]:
        """Of a point that the sampler did not choose: NSGA-II's first generation is as good as any."""
        return {_GENERATION: 0} if self._settings.sampler == "nsga2" else {}

    def _warm(self, name: str, used: Mapping[str, Any]) -> None:
        told = self._told[name] = _Told(self._params(used["point"]), self._marks_of_given())
        self._warmed.append(told)
        _update(told, {"kind": "result", "fraction": used["fraction"], "metrics": used["metrics"]}, self._metrics)
        _update(told, {"kind": "completed" if used["fraction"] >= 1.0 else "stopped"}, self._metrics)

    def _ask(self, index: int) -> tuple[Point, dict[str, Any]]:
        """A suggestion, and what the sampler notes about it for itself."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = self._study(index)
            trial = study.ask()
            point = complete(self._recipe, {}, lambda key, domain: self._pick(trial, key, domain))
        asked = study.get_trials(deepcopy=False)[trial.number]
        return point, dict(asked.system_attrs)

    def _pick(self, trial: optuna.Trial, key: str, domain: Domain) -> Scalar:
        return _decoded(domain, trial._suggest(key, self._distributions[key]))

    def _study(self, index: int) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        seed = random.Random(f"{self._recipe.train.seed}/{index}/optuna").getrandbits(31)
        study = optuna.create_study(directions=self._directions, sampler=self._sampler(seed))
        study.add_trials([self._frozen(told) for told in self._told.values()])
        return study

    def _sampler(self, seed: int) -> BaseSampler:
        startup = self._settings.startup
        match self._settings.sampler:
            case "tpe":
                return TPESampler(seed=seed, n_startup_trials=startup or 10, constant_liar=True)
            case "cmaes":
                return CmaEsSampler(
                    seed=seed,
                    n_startup_trials=startup or 1,
                    consider_pruned_trials=True,
                    warn_independent_sampling=False,
                    source_trials=self._sources() or None,
                )
            case "nsga2":
                return NSGAIISampler(seed=seed, population_size=startup or 10)

    def _sources(self) -> list[FrozenTrial]:
        """What CMA-ES begins with in place of the middle of the space: earlier results, in the settings that have room to move."""
        moving = {key: domain for key, domain in self._distributions.items() if not domain.single()}
        found = [
            create_trial(value=told.values[0], params={key: told.params[key] for key in moving}, distributions=moving)
            for told in self._warmed
            if told.values[0] is not None and moving.keys() <= told.params.keys()
        ]
        # fewer are given several times, all of them, so that the best tenth is the best one
        return found * math.ceil(_FEWEST_SOURCES / len(found)) if found else []

    def _frozen(self, told: _Told) -> FrozenTrial:
        values = [value for value in told.values if value is not None]
        whole = len(values) == len(self._metrics)
        state = told.state
        if state == TrialState.COMPLETE and not whole:
            state = TrialState.FAIL  # it measured nothing that could be compared
        if state == TrialState.PRUNED and len(self._metrics) > 1:
            state = TrialState.FAIL
        return create_trial(
            state=state,
            values=values if state == TrialState.COMPLETE else None,
            params=told.params,
            distributions={key: self._distributions[key] for key in told.params},
            system_attrs=told.marks,
            intermediate_values=told.deepest if len(self._metrics) == 1 else None,
        )

    def _params(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """A point as Optuna has it; settings outside their domain (an edited recipe) are left out."""
        space = self._recipe.search.space
        known = {key: value for key, value in point.items() if key in space and contains(space[key], value)}
        return {key: _encoded(space[key], value) for key, value in known.items()}


def _update(told: _Told, entry: Mapping[str, Any], metrics: tuple[str, ...]) -> None:
    kind = entry["kind"]
    if kind == "result":
        told.depth = entry["fraction"]
        told.values = tuple(entry["metrics"].get(metric) for metric in metrics)
        step = round(told.depth * _DEPTHS)
        if told.values[0] is not None and step >= max(told.deepest, default=0):
            told.deepest = {step: told.values[0]}
    elif kind == "completed":
        told.state = TrialState.COMPLETE
    elif kind == "stopped":
        told.state = TrialState.PRUNED
    else:
        told.state = TrialState.FAIL


def _distribution(domain: Domain) -> BaseDistribution:
    if domain.uniform is not None:
        return FloatDistribution(float(domain.uniform[0]), float(domain.uniform[1]))
    if domain.loguniform is not None:
        return FloatDistribution(float(domain.loguniform[0]), float(domain.loguniform[1]), log=True)
    if domain.randint is not None:
        return IntDistribution(*domain.randint)
    if (steps := steps_of(domain)) is not None:
        return IntDistribution(*steps)
    return CategoricalDistribution(tuple(range(len(domain.choice or domain.grid or ()))))


def _encoded(domain: Domain, value: Any) -> Any:
    """Multiples by their number and listed values by their place: exact, and true is not 1."""
    if domain.quniform is not None:
        return round(value / domain.quniform[2])
    if (listed := domain.choice or domain.grid) is not None:
        return next(place for place, one in enumerate(listed) if same_value(one, value))
    return value


def _decoded(domain: Domain, param: Any) -> Scalar:
    if domain.quniform is not None:
        return multiple_of(domain, int(param))
    if (listed := domain.choice or domain.grid) is not None:
        return listed[int(param)]
    return int(param) if domain.randint is not None else float(param)
