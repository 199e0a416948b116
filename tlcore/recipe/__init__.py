"""The recipe: one YAML file describing a sweep, as frozen models that passed every check before anything starts.

Read in this order: `schema.py` (what there is), `load.py` (how it gets in), `build.py` and `checks.py` (what is
refused), `space.py` (points of a search). Loads without torch, ray, deepspeed and transformers.
"""

from tlcore.recipe.batch import BatchPlan, plan_batch
from tlcore.recipe.domains import Domain
from tlcore.recipe.load import load_recipe, recipe_from_dict, trial_recipe_from_dict
from tlcore.recipe.plan import PlanRow, resolved_plan
from tlcore.recipe.rungs import (
    report_fractions,
    resizing_rungs,
    scheduler_fractions,
    with_workers,
    workers_at,
    world_sizes,
)
from tlcore.recipe.schema import Recipe
from tlcore.recipe.space import Point, apply_point, difference, grid_points, sample_point, trial_point, trial_points

__all__ = [
    "BatchPlan",
    "Domain",
    "PlanRow",
    "Point",
    "Recipe",
    "apply_point",
    "difference",
    "grid_points",
    "load_recipe",
    "plan_batch",
    "recipe_from_dict",
    "report_fractions",
    "resizing_rungs",
    "resolved_plan",
    "sample_point",
    "scheduler_fractions",
    "trial_point",
    "trial_points",
    "trial_recipe_from_dict",
    "with_workers",
    "workers_at",
    "world_sizes",
]
