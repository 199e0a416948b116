"""What an earlier sweep measured, as a start for this one's searcher.

Owns which results fit: every searched setting of this sweep has, in the earlier trial, a value inside its domain (searched there or
fixed), and what only the earlier sweep searched has this recipe's value. The fitting ones go into this sweep's own journal, so that
a resume does not depend on the earlier run. Called by `runner.py` (finds) and `driver.py` (reads).
"""

from __future__ import annotations

from typing import Any

from tlcore.errors import ObjectMissing
from tlcore.recipe import Point, Recipe, recipe_from_dict
from tlcore.recipe.domains import contains, same_value
from tlcore.recipe.space import complete, flat
from tlcore.storage import RunRef, list_runs, newest_run
from tlcore.storage.journal import SweepState, TrialState, read_journal


def find_earlier(recipe: Recipe) -> RunRef | None:
    """The run that `search.from` names, before this sweep's own run exists; None where it names none. Raises ObjectMissing."""
    name, _, run_id = (recipe.search.from_ or "").partition("/")
    if not name:
        return None
    if not run_id:
        return newest_run(recipe.storage, name)
    for run in list_runs(recipe.storage, name):
        if run.run_id == run_id:
            return run
    raise ObjectMissing(
        f"search.from: no run {run_id!r} of {name!r} in {recipe.storage}", hint="`tlcore list` shows what there is"
    )


def earlier_results(recipe: Recipe, run: RunRef) -> dict[str, Any]:
    """The facts of a `warmed` entry: source, used (point, fraction, metrics each), unused (how many did not fit)."""
    stored = recipe_from_dict(run.identity()["recipe"], source=f"{run.url}/run.json")
    state = SweepState.from_entries(read_journal(run.open()))
    used: list[dict[str, Any]] = []
    unused = 0
    for trial in state.trials.values():
        found = _result(recipe, stored, trial)
        if found is not None:
            used.append(found)
        else:
            unused += 1
    return {"source": run.url, "used": used, "unused": unused}


def _result(recipe: Recipe, stored: Recipe, trial: TrialState) -> dict[str, Any] | None:
    if not trial.results or any(trial.final(metric) is None for metric in recipe.search.metrics):
        return None
    point = fitting_point(recipe, {**flat(stored), **trial.point}, set(trial.point))
    if point is None:
        return None
    last = trial.results[-1]
    return {"point": point, "fraction": last.fraction, "metrics": dict(last.metrics)}


def fitting_point(recipe: Recipe, values: dict[str, Any], searched: set[str]) -> Point | None:
    """The point of this recipe's space that an earlier trial is, None where it is none.

    Args:
        values: every setting of the earlier trial.
        searched: those that the earlier sweep searched.
    """
    space, here = recipe.search.space, flat(recipe)
    if any(not same_value(values[key], here.get(key)) for key in searched - set(space)):
        return None
    point = complete(recipe, {key: values.get(key) for key in space}, lambda key, domain: values.get(key))
    return point if all(contains(space[key], value) for key, value in point.items()) else None
