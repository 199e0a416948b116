"""Was it worth it: the best trial's settings once more, and with other transfer strategies, over several seeds at equal budget.

Owns the recipe of that comparison. It is a sweep of its own, named `<name>-baselines`, with fixed points and no scheduler: the same
data, epochs and settings, each point told by its strategy and its seed. So it has its own journal, is resumed as any other, and
`tlcore show` reads it. A comparison within the sweep itself would be of the best of many against one, and at whatever rung a trial
was stopped. The test examples are left alone: they are the best trial's, touched once. Called by `cli.py`, after the sweep.
"""

from __future__ import annotations

from typing import Any, Final

from tlcore.errors import ObjectMissing, RequestError
from tlcore.recipe import Recipe, apply_point, recipe_from_dict
from tlcore.storage.journal import TrialState
from tlcore.sweep.runner import run_to_resume

STRATEGY: Final = "transfer.strategy"
SEED: Final = "train.seed"


def baseline_recipe(recipe: Recipe, best: TrialState) -> Recipe:
    """The comparison that `report.baselines` of a finished sweep's recipe asks for.

    Raises:
        RecipeError: the best trial's settings do not go with a baseline's strategy.
    """
    settings = apply_point(recipe, {**best.point, **best.adapted}).to_dict()
    transfer = settings["transfer"]
    own = transfer["strategy"]
    others = [each for each in recipe.report.baselines if each != own]
    defaults = type(recipe.transfer)().model_dump(mode="json")
    # what belongs to the best one's strategy alone; the others would refuse it
    extra = {
        f"transfer.{key}": value for key, value in transfer.items() if key != "strategy" and value != defaults[key]
    }
    seeds = [recipe.train.seed + index for index in range(recipe.report.baseline_seeds)]
    points = [
        {STRATEGY: strategy, SEED: seed, **(extra if strategy == own else {})}
        for seed in seeds
        for strategy in (own, *others)
    ]
    space: dict[str, Any] = {STRATEGY: {"choice": [own, *others]}, SEED: {"choice": seeds}}
    space |= {path: {"choice": [value], "when": {STRATEGY: own}} for path, value in extra.items()}
    settings["name"] = baseline_name(recipe.name)
    settings["transfer"] = {}
    settings["data"]["test"] = None
    settings["report"] = {}
    settings["search"] = {
        "metric": recipe.search.metrics[0],
        "mode": recipe.search.modes[0],
        "space": space,
        "first": points,
        "trials": len(points),
    }
    return recipe_from_dict(settings, source="report.baselines")


def baseline_name(name: str) -> str:
    """Of a sweep's comparison; names have 63 letters at most."""
    return f"{name[:53]}-baselines"


def was_begun(recipe: Recipe) -> bool:
    """Whether the newest run of this comparison can be gone on with, by the rule of every resume."""
    try:
        run_to_resume(recipe)
    except (ObjectMissing, RequestError):
        return False
    return True
