"""A new point near a good one: what a trial changes when it takes over another one's state.

Owns the perturbation: Tune's rule (a factor, a neighbour, or drawn anew), within the setting's own domain and conditions, and
only points that the recipe accepts. Pure functions of their random stream, so that a sweep decides alike on every machine.
Called by `population.py`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from tlcore.recipe import Domain, Point, Recipe
from tlcore.recipe.domains import draw, nearest
from tlcore.recipe.space import complete, fits

_ATTEMPTS = 20


def perturb(
    recipe: Recipe,
    point: Mapping[str, Any],
    keys: Sequence[str],
    resample: float,
    factors: Sequence[float],
    stream: str,
) -> Point:
    """A point that differs from a good one in some of `keys`; the good one itself when no other was found that the recipe accepts.

    Args:
        recipe: the whole sweep's.
        resample: probability with which a setting is drawn anew.
        factors: of which one multiplies a number.
        stream: names the random numbers.
    """
    rng = random.Random(stream)
    for _ in range(_ATTEMPTS):
        changed = dict(point)
        for key in keys:
            if key in point:
                changed[key] = _moved(recipe.search.space[key], point[key], resample, factors, rng)
        changed = settled(recipe, changed, rng)
        if fits(recipe, changed) is None:
            return changed
    return dict(point)


def settled(recipe: Recipe, point: Mapping[str, Any], rng: random.Random) -> Point:
    """The point with its conditions met: settings that no longer apply left out, those that now do drawn."""
    return complete(recipe, point, lambda _, domain: draw(domain, rng))


def _moved(domain: Domain, value: Any, resample: float, factors: Sequence[float], rng: random.Random) -> Any:
    if rng.random() < resample:
        return draw(domain, rng)
    listed = domain.choice
    if listed is not None:
        place = min(max(listed.index(value) + rng.choice((-1, 1)), 0), len(listed) - 1)
        return listed[place]
    moved = value * rng.choice(tuple(factors))
    if isinstance(value, int):
        moved = math.ceil(moved) if moved > value else math.floor(moved)
    return nearest(domain, moved)
