"""The fractions of a trial at which it is evaluated, reported and may be stopped, and the workers it has between them.

Owns the arithmetic of rungs. Which trial passes a rung is the scheduler's business (`sweep/`). Called by `checks.py`,
`train/`, `sweep/` and `report/`.
"""

from __future__ import annotations

from tlcore.recipe.schema import Recipe

_DIGITS = 12
"""0.1 * 3 and 0.3 are one rung: fractions are compared to so many decimals."""
_EPSILON = 1e-9


def scheduler_fractions(recipe: Recipe) -> tuple[float, ...]:
    """Rungs of the scheduler below the end: ascending fractions of the trial's own `train.epochs`; may be none."""
    scheduler = recipe.search.scheduler
    if scheduler.asha is not None:
        return _growing(scheduler.asha.grace, scheduler.asha.reduction)
    if (brackets := scheduler.brackets) is not None:
        return _growing(brackets.reduction ** -(brackets.brackets - 1), brackets.reduction)
    if scheduler.median is not None:
        return _regular(scheduler.median.interval)
    if (population := scheduler.population) is not None:
        return _regular(population.interval)
    return ()


def _growing(first: float, factor: float) -> tuple[float, ...]:
    rungs: list[float] = []
    rung = first
    while round(rung, _DIGITS) < 1:
        rungs.append(round(rung, _DIGITS))
        rung *= factor
    return tuple(rungs)


def _regular(interval: float) -> tuple[float, ...]:
    rungs: list[float] = []
    while round(rung := (len(rungs) + 1) * interval, _DIGITS) < 1:
        rungs.append(round(rung, _DIGITS))
    return tuple(rungs)


def report_fractions(recipe: Recipe) -> tuple[float, ...]:
    """Every fraction at which the trial reports: its rungs and each epoch's end, ascending, the last one 1.0."""
    epochs = recipe.train.epochs
    ends = (round(epoch / epochs, _DIGITS) for epoch in range(1, epochs))
    return (*sorted({*scheduler_fractions(recipe), *ends}), 1.0)


def workers_at(recipe: Recipe, fraction: float) -> int:
    """Workers of a trial that goes on from `fraction` of its epochs: on a rung, those of the way to the next one."""
    asha = recipe.search.scheduler.asha
    if asha is None or asha.workers is None:
        return recipe.resources.workers
    return asha.workers[sum(rung <= fraction + _EPSILON for rung in scheduler_fractions(recipe))]


def resizing_rungs(recipe: Recipe) -> tuple[float, ...]:
    """Rungs after which a trial has another number of workers than before; none where all have the same."""
    rungs = scheduler_fractions(recipe)
    return tuple(rung for rung in rungs if workers_at(recipe, rung) != workers_at(recipe, rung - 2 * _EPSILON))


def with_workers(recipe: Recipe, workers: int) -> Recipe:
    """The recipe of a trial that has so many workers now; nothing in it is about others that it had or will have."""
    resources = recipe.resources.model_copy(update={"workers": workers})
    search, asha = recipe.search, recipe.search.scheduler.asha
    if asha is not None and asha.workers is not None:
        alone = asha.model_copy(update={"workers": None})
        search = search.model_copy(update={"scheduler": search.scheduler.model_copy(update={"asha": alone})})
    return recipe.model_copy(update={"resources": resources, "search": search})


def world_sizes(recipe: Recipe) -> tuple[int, ...]:
    """Every number of workers that a trial has on its way, in order, each once."""
    asha = recipe.search.scheduler.asha
    return tuple(dict.fromkeys((asha.workers if asha is not None else None) or (recipe.resources.workers,)))
