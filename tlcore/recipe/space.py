"""Points of a search space: drawing them, applying them to a recipe, and telling two recipes apart.

Owns the stateless sampling (the same seed and index give the same point in any process, whatever was drawn before),
the cross product of grids, and conditions. Whether a space makes sense is checked in `space_checks.py`; which
points become trials, and when, is the sweep's business. Called by `sweep/`, `report/` and `space_checks.py`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

from tlcore.errors import RecipeError
from tlcore.recipe.build import build
from tlcore.recipe.credentials import shown
from tlcore.recipe.domains import Domain, Scalar, draw, same_value
from tlcore.recipe.fields import settings
from tlcore.recipe.schema import Recipe

Point = dict[str, Any]
"""Dotted setting -> value: what one trial changes in the recipe."""
Pick = Callable[[str, Domain], Scalar]


def flat(recipe: Recipe) -> dict[str, Any]:
    """Dotted path -> value of every setting, in the schema's order."""
    return _flat(recipe.to_dict())


def _flat(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in settings():
        value: Any = data
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        found[path] = value
    return found


def in_order(space: Mapping[str, Domain]) -> list[str]:
    """Settings of the space, each after those that its `when` names; what waits in a circle is left out."""
    placed: list[str] = []
    waiting = list(space)
    while ready := next((key for key in waiting if not any(other in waiting for other in space[key].when)), None):
        placed.append(ready)
        waiting.remove(ready)
    return placed


def complete(recipe: Recipe, given: Mapping[str, Any], pick: Pick) -> Point:
    """A whole point: what is given, and a picked value for every other setting whose conditions hold.

    Args:
        recipe: its space, and the values of settings that are not searched.
        given: values that stand; one whose conditions do not hold is left out.
        pick: chooses the value of a setting from its domain.
    """
    return _complete(recipe, _unsearched(recipe), given, pick)


def _unsearched(recipe: Recipe) -> dict[str, Any]:
    """What conditions find of settings that are not searched: nothing where there are none, since it takes its time."""
    return flat(recipe) if any(domain.when for domain in recipe.search.space.values()) else {}


def _complete(recipe: Recipe, base: Mapping[str, Any], given: Mapping[str, Any], pick: Pick) -> Point:
    point: Point = {}
    for key in in_order(recipe.search.space):
        domain = recipe.search.space[key]
        if all(_holds(point.get(other, base.get(other)), domain.allowed_by(other)) for other in domain.when):
            point[key] = given[key] if key in given else pick(key, domain)
    return point


def _holds(value: Any, allowed: tuple[Scalar, ...]) -> bool:
    return any(same_value(value, one) for one in allowed)


def sample_point(recipe: Recipe, seed: int, index: int) -> Point:
    """The point number `index` under `seed`, from nothing but these three; each setting has its own random stream.

    With `algorithm: grid` it is the grid's point of that number, for which the whole grid is made; its other domains are drawn.
    """
    if recipe.search.algorithm.grid is not None:
        return _grid(recipe, seed)[index]
    return complete(recipe, {}, _drawing(seed, index))


def _drawing(seed: int, index: int) -> Pick:
    return lambda key, domain: draw(domain, random.Random(f"{seed}/{index}/{key}"))


def grid_points(recipe: Recipe) -> list[Point]:
    """The cross product of all grids, the last one running fastest; other domains are drawn under `train.seed`."""
    return _grid(recipe, recipe.train.seed)


def _grid(recipe: Recipe, seed: int) -> list[Point]:
    space = recipe.search.space
    grids = {key: space[key].grid or () for key in in_order(space) if space[key].grid is not None}
    base = _unsearched(recipe)
    points: list[Point] = []
    seen: set[str] = set()
    for values in itertools.product(*grids.values()):
        point = _complete(recipe, base, dict(zip(grids, values, strict=True)), _drawing(seed, len(points)))
        # a grid whose condition does not hold has no values to cross: its combinations are one point
        crossed = repr([(key, point[key]) for key in grids if key in point])
        if crossed not in seen:
            seen.add(crossed)
            points.append(point)
    return points


def trial_point(recipe: Recipe, seed: int, index: int) -> Point:
    """The point of the sweep's trial number `index`: `search.first` in order, completed; then samples or grid."""
    first = recipe.search.first
    if index < len(first):
        return complete(recipe, first[index], _drawing(seed, index))
    return sample_point(recipe, seed, index)


def trial_points(recipe: Recipe, count: int) -> list[Point]:
    """The points of the sweep's first `count` trials under `train.seed`, as `trial_point` has each; a grid is made once for all."""
    if recipe.search.algorithm.grid is not None:  # it has no `search.first`
        return grid_points(recipe)[:count]
    return [trial_point(recipe, recipe.train.seed, index) for index in range(count)]


def apply_point(recipe: Recipe, point: Mapping[str, Any]) -> Recipe:
    """One trial's recipe: these settings changed, checked as a whole, nothing left to search.

    Scheduler, metric and mode stay.

    Raises:
        RecipeError: names the point, and each setting that does not fit with its value.
    """
    data = recipe.to_dict()
    for path, value in point.items():
        set_at(data, path, value)
    data["search"].update(_NOTHING_SEARCHED)
    return build(data, f"search point {in_one_line(point)}")


_NOTHING_SEARCHED: Final = {"space": {}, "first": [], "algorithm": "random", "trials": 1}


def in_one_line(point: Mapping[str, Any]) -> str:
    """`{train.learning_rate: 0.001, transfer.strategy: 'head'}`"""
    return "{" + ", ".join(f"{path}: {shown(value)}" for path, value in point.items()) + "}"


def set_at(data: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted path in nested maps, making sections on the way; a value in the way is replaced by a section."""
    *parents, leaf = path.split(".")
    for key in parents:
        below = data.get(key)
        if not isinstance(below, dict):
            below = data[key] = {}
        data = below
    data[leaf] = value


def difference(recipe: Recipe, base: Recipe) -> dict[str, tuple[Any, Any]]:
    """Settings, the search's aside, in which a recipe differs: dotted path -> (the base's value, the recipe's)."""
    mine, theirs = flat(recipe), flat(base)
    return {
        path: (theirs[path], mine[path])
        for path in mine
        if mine[path] != theirs[path] and not path.startswith("search.")
    }


def fits(recipe: Recipe, point: Mapping[str, Any]) -> RecipeError | None:
    """Why a point cannot be applied, or None."""
    try:
        apply_point(recipe, point)
    except RecipeError as error:
        return error
    return None
