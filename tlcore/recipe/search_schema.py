"""What a recipe says of its search: the space, the algorithm that chooses points, the scheduler that stops trials.

Owns names, types, ranges and defaults of the section `search`, one docstring per setting, with its unit. Fractions are of
a trial's own `train.epochs`. Which algorithm goes with which scheduler is in `pairs.py`. Called by `schema.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tlcore.recipe.domains import Domain, Scalar
from tlcore.recipe.section import Fraction, OneOf, Positive, Section, Texts

Mode = Literal["max", "min"]
Sampler = Literal["tpe", "cmaes", "nsga2"]
Quantile = Annotated[float, Field(gt=0, le=0.5)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Asha(Section):
    """Asynchronous successive halving: at each rung only the best go on."""

    grace: Fraction = 0.25
    """First rung, as a fraction of the trial's own epochs."""
    reduction: Annotated[float, Field(ge=2)] = 2
    """Each rung lies this factor after the one before, and one in this many passes it."""
    workers: Annotated[tuple[Positive, ...], Field(strict=False)] | None = None
    """Workers on the way to each rung and, last, from there to the end: one number more than there are rungs, the first being
    `resources.workers`; null keeps that. A trial that passes a rung goes on re-sharded on so many."""


class HyperBand(Section):
    """Successive halving in brackets that start at different depths; a trial waits at a rung until its bracket is there."""

    brackets: Annotated[int, Field(ge=2, le=8)] = 3
    """Kinds of bracket; the deepest halves this many times less one, and its first rung is reduction ** -(brackets - 1)."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """Each rung lies this factor after the one before, and one in this many passes it."""


class Median(Section):
    """A trial stops whose best value is worse than the median of the others' running means."""

    grace: Fraction = 0.25
    """No trial stops before this fraction."""
    interval: Fraction = 0.25
    """Fraction of a trial between two reports."""
    min_trials: Positive = 3
    """Other trials that must have come as far before one is stopped."""


class Population(Section):
    """What both population schedulers have."""

    interval: Fraction = 0.1
    """Fraction of a trial between two looks at the population."""
    quantile: Quantile = 0.25
    """The worst such share of the population takes over the state of one of the best such share."""
    mutate: Texts | None = None
    """Settings of the space to change when a trial takes over; null is every one that can change in mid-trial."""
    synchronous: bool = False
    """Wait at each interval until the whole population is there."""


class Pbt(Population):
    """Population-based training: bad trials go on from good ones' state, with perturbed settings."""

    resample: Probability = 0.25
    """Probability with which a setting is drawn anew instead of perturbed."""
    factors: Annotated[tuple[float, float], Field(strict=False)] = (0.8, 1.2)
    """A number is multiplied by one of these; a listed value moves to a neighbour."""


class Pb2(Population):
    """Population-based bandits: like pbt, the new settings are chosen by a Gaussian process. Needs scikit-learn and pandas."""


class Scheduler(OneOf):
    """Which trials stop early: none, or exactly one of these."""

    asha: Asha | None = None
    """Asynchronous successive halving (Li et al. 2020)."""
    hyperband: HyperBand | None = None
    """HyperBand (Li et al. 2018)."""
    bohb: HyperBand | None = None
    """BOHB's HyperBand (Falkner et al. 2018), the deepest bracket first; needs `algorithm: bohb`."""
    median: Median | None = None
    """Median stopping (Golovin et al. 2017)."""
    pbt: Pbt | None = None
    """Population-based training (Jaderberg et al. 2017)."""
    pb2: Pb2 | None = None
    """Population-based bandits (Parker-Holder et al. 2020)."""

    @property
    def brackets(self) -> HyperBand | None:
        """The settings of HyperBand, BOHB's or the plain one."""
        return self.hyperband or self.bohb

    @property
    def population(self) -> Pbt | Pb2 | None:
        """The settings of a scheduler in which trials take over each other's state."""
        return self.pbt or self.pb2

    @property
    def pauses(self) -> bool:
        """Whether a trial may stop at a rung and go on later, itself or as a copy: it must be committed there."""
        resizes = self.asha is not None and self.asha.workers is not None
        return self.brackets is not None or self.population is not None or resizes


class NoSettings(Section):
    """An algorithm without settings."""


class Optuna(Section):
    """Optuna's samplers."""

    sampler: Sampler = "tpe"
    """tpe: tree-structured Parzen estimator; cmaes: covariance matrix adaptation, for ranges alone; nsga2: genetic, for several
    metrics."""
    startup: Positive | None = None
    """Random trials before the first modelled one; null is the sampler's own number."""


class BohbSearch(Section):
    """Kernel densities of good and bad points at the deepest rung that has enough of them (Falkner et al. 2018), in our code."""

    random_share: Probability = 1 / 3
    """Share of points drawn at random whatever the model says."""
    good_share: Quantile = 0.15
    """Share of results that count as good."""


class Algorithm(OneOf):
    """How points are chosen: exactly one of these."""

    random: NoSettings | None = None
    """Each domain's own distribution."""
    grid: NoSettings | None = None
    """Every combination of the grids."""
    optuna: Optuna | None = None
    """Optuna."""
    bohb: BohbSearch | None = None
    """BOHB's model."""

    @classmethod
    def nothing(cls) -> str:
        """Nothing said is random."""
        return "random"

    @property
    def sampler(self) -> str | None:
        """Optuna's sampler, None with another algorithm."""
        return self.optuna.sampler if self.optuna is not None else None


class SearchSection(Section):
    """What a sweep varies, how, and by what it judges."""

    space: dict[str, Domain] = Field(default_factory=dict)
    """Dotted setting -> domain. A trial is one point of it, applied to this recipe."""
    algorithm: Algorithm = Algorithm()
    """How points are chosen."""
    scheduler: Scheduler = Scheduler()
    """Which trials stop early."""
    trials: Positive = 8
    """Trials to run. Not given: 8, every point of a grid, or 1 without a space."""
    at_once: Positive | None = None
    """Trials at a time, at most; null: as many as the cluster holds. No scheduler needs more than one: trials that it compares wait
    for each other at their rungs."""
    metric_: str | Texts = Field(default="eval_accuracy", alias="metric")
    """What is compared, on the validation examples; not given: the task's main one. A list gives a Pareto table besides, and the
    first is the main one."""
    mode_: Mode | Annotated[tuple[Mode, ...], Field(strict=False)] = Field(default="max", alias="mode")
    """Whether more of the metric is better; not given: as the metric has it. A list with a list of metrics."""
    first: Annotated[tuple[dict[str, Scalar], ...], Field(strict=False)] = ()
    """Points to try first, in order; settings that a point leaves out are drawn."""
    from_: str | None = Field(default=None, alias="from")
    """Earlier sweep in the same storage whose results warm the searcher: its name (the newest run), or name/run-id."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric, the main one first."""
        return (self.metric_,) if isinstance(self.metric_, str) else self.metric_

    @property
    def modes(self) -> tuple[str, ...]:
        """The mode of each metric."""
        return (self.mode_,) if isinstance(self.mode_, str) else self.mode_

    @property
    def metric(self) -> str:
        """The main metric."""
        return self.metrics[0]

    @property
    def mode(self) -> str:
        """The main metric's mode."""
        return self.modes[0]
