"""Splits a global batch over workers, forward passes and accumulation steps.

Owns the arithmetic. Called by `checks.py`, `train/` and `engine/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tlcore.errors import Fault, RecipeError
from tlcore.recipe.schema import Recipe

LARGEST_AUTO_MICRO_BATCH: Final = 32


@dataclass(frozen=True)
class BatchPlan:
    """global_batch_size = world_size * micro_batch_size * accumulation_steps, in samples, ranks, samples, steps."""

    global_batch_size: int
    world_size: int
    micro_batch_size: int
    accumulation_steps: int


def plan_batch(recipe: Recipe, world_size: int) -> BatchPlan:
    """The batch arithmetic of one trial.

    Args:
        recipe: gives the global batch and the micro-batch.
        world_size: ranks that share the global batch.

    Raises:
        RecipeError: it does not divide; says which numbers would do.
    """
    whole, asked = recipe.train.global_batch_size, recipe.train.micro_batch_size
    if whole % world_size:
        raise RecipeError([Fault("train.global_batch_size", _indivisible(whole, world_size))])
    share = whole // world_size
    if asked == "auto":
        micro = max(size for size in divisors(share) if size <= LARGEST_AUTO_MICRO_BATCH)
    elif share % asked:
        would_do = ", ".join(map(str, divisors(share)))
        text = f"{asked} does not divide a worker's share of {share} samples ({whole} over {world_size} workers)"
        raise RecipeError([Fault("train.micro_batch_size", f"{text}; give one of {would_do}, or auto")])
    else:
        micro = asked
    return BatchPlan(whole, world_size, micro, share // micro)


def _indivisible(whole: int, world_size: int) -> str:
    below = whole - whole % world_size
    batches = _either([str(size) for size in (below, below + world_size) if size])
    workers = [str(size) for size in divisors(whole) if size <= 2 * world_size]
    text = f"{whole} does not divide over {world_size} workers; give {batches}"
    return f"{text}, or set resources.workers to {_either(workers)}"


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def divisors(number: int) -> list[int]:
    """All divisors of a positive number, ascending."""
    small = [size for size in range(1, int(number**0.5) + 1) if number % size == 0]
    return sorted({*small, *(number // size for size in small)})
