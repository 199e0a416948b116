"""The next milder settings: what to change, in which order, so that a trial takes less memory and stays the same trial.

Owns the order and nothing else: smaller micro-batches first (accumulation grows, so the global batch and with it the course of
training stay), then recomputed activations, then more sharding, then state moved to the host. Each costs more time than the one
before. A pure function of the recipe: whoever estimates memory (`tlcore plan`, the check before a sweep) walks it until one fits,
and whoever meets a worker that ran out of memory takes the first step of it. Called by `sweep/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tlcore.recipe.batch import divisors, plan_batch
from tlcore.recipe.build import build
from tlcore.recipe.schema import Recipe
from tlcore.recipe.space import Point, set_at


def milder(recipe: Recipe) -> Iterator[Point]:
    """Settings to lay over the recipe, each time all of them together; every one takes less memory than the one before.

    Nothing is yielded where nothing is left to change.
    """
    changes: Point = {}
    for more in _steps(recipe):
        changes = {**changes, **more}
        yield changes


def with_settings(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with these dotted settings changed, its search as it was. Raises RecipeError where they do not go together."""
    data = recipe.to_dict()
    for path, value in changes.items():
        set_at(data, path, value)
    return build(data, recipe.name)


def _steps(recipe: Recipe) -> Iterator[Point]:
    yield from ({"train.micro_batch_size": size} for size in _smaller(recipe))
    if not recipe.train.activation_checkpointing:
        yield {"train.activation_checkpointing": True}
    yield from ({"deepspeed.zero_stage": stage} for stage in range(recipe.deepspeed.zero_stage + 1, 4))
    if recipe.deepspeed.offload_optimizer == "none":
        yield {"deepspeed.offload_optimizer": "cpu"}
    if recipe.deepspeed.offload_param == "none":
        yield {"deepspeed.offload_param": "cpu"}


def _smaller(recipe: Recipe) -> Iterator[int]:
    """Micro-batches at most half as large as the one before, down to 1, that divide a worker's share."""
    plan = plan_batch(recipe, recipe.resources.workers)
    size = plan.micro_batch_size
    sizes = divisors(plan.global_batch_size // plan.world_size)
    while size > 1:
        size = max(smaller for smaller in sizes if smaller <= size // 2)
        yield size
