"""Tries a search space out before anything starts.

Owns the rules of `search.space` and `search.first`: each key names a setting that may be searched, each domain is
sound, each condition can be asked, and values of every domain are applied to the recipe. Called by `load.py`.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any, Final

from tlcore.errors import Fault, RecipeError
from tlcore.recipe.credentials import shown
from tlcore.recipe.domains import Scalar, contains, in_words, range_faults, trial_values
from tlcore.recipe.faults import wrong_value
from tlcore.recipe.fields import accepts, sections, settings, suggestion
from tlcore.recipe.pairs import pair_faults
from tlcore.recipe.schema import Recipe
from tlcore.recipe.space import Point, complete, fits, grid_points, in_one_line, in_order

NOT_SEARCHABLE: Final = {
    "name": "it names the whole sweep",
    "task": "trials of different tasks cannot be compared",
    "storage": "all trials of a sweep share one place",
    "search": "it is the search itself",
    "budget": "it belongs to the whole sweep",
    "failures": "it belongs to the whole sweep",
    "report": "it belongs to the whole sweep",
    "track": "it belongs to the whole sweep",
    "data.validation": "trials measured on different examples cannot be compared",
    "data.test": "the test examples are for the final figures alone",
    "data.mask_probability": "evaluations hide as much, so that trials would be measured on different tasks",
}
"""Setting or section -> why it cannot be searched."""
_MEASURED_ON_EVERY_TOKEN: Final = ("text-generation", "masked-language-modeling", "image-text-to-text")

MOST_COMBINATIONS: Final = 256
"""Combinations of domain values tried; where there are more, a fixed random choice of them."""
MOST_SHOWN: Final = 3
_DEPENDENT: Final = (
    ("train.global_batch_size", "train.micro_batch_size", "resources.workers"),
    ("deepspeed.zero_stage", "deepspeed.offload_optimizer", "deepspeed.offload_param", "train.precision"),
)
MOST_GRID_POINTS: Final = 10_000


def faults_in_search(recipe: Recipe, trials_given: bool) -> list[Fault]:
    """Every fault of the search section that needs the space.

    Args:
        recipe: sound in itself.
        trials_given: whether the recipe's author chose `search.trials`.
    """
    faults = [*_keys(recipe), *_domains(recipe), *_conditions(recipe), *_algorithm(recipe)]
    faults = faults or [*pair_faults(recipe)] or [*_values(recipe)] or [*_combinations(recipe)]
    return faults or [*_first(recipe), *_trials(recipe, trials_given)]


def planned_trials(recipe: Recipe) -> int:
    """Trials of a recipe that does not say how many: every point of a grid, 1 without a space, else the default."""
    if recipe.search.algorithm.grid is not None:
        return len(grid_points(recipe))
    return recipe.search.trials if recipe.search.space else 1


def _keys(recipe: Recipe) -> Iterator[Fault]:
    for key in recipe.search.space:
        path = f"search.space.{key}"
        root = key.partition(".")[0]
        if why := NOT_SEARCHABLE.get(key) or NOT_SEARCHABLE.get(root):
            yield Fault(path, f"cannot be searched, {why}; take it out")
        elif why := _incomparable(recipe, key):
            yield Fault(path, f"cannot be searched, {why}")
        elif key in sections():
            inside = next(setting for setting in settings() if setting.startswith(f"{key}."))
            yield Fault(path, f"names a section; name one of its settings, such as {inside}")
        elif key not in settings():
            yield Fault(path, f"names no setting of a recipe{_meant(key)}")


def _incomparable(recipe: Recipe, key: str) -> str | None:
    """Why trials that differ in this setting would be measured on different examples in this recipe."""
    if key == "data.train" and not isinstance(recipe.data.validation, str):
        text = f"data.validation={recipe.data.validation:g} of it is held out, so that trials are measured on different examples"
        return f"{text}: give data.validation a place of its own, or take it out"
    if key == "data.max_length" and recipe.task in _MEASURED_ON_EVERY_TOKEN:
        return "evaluated texts are cut by it too, so that trials are measured on different tokens; take it out"
    return None


def _meant(key: str) -> str:
    meant = suggestion(key)
    return f"; did you mean {meant}?" if meant else "; name one by its dotted path, such as train.learning_rate"


def _domains(recipe: Recipe) -> Iterator[Fault]:
    for key, domain in recipe.search.space.items():
        for text in range_faults(domain):
            yield Fault(f"search.space.{key}", text)


def _conditions(recipe: Recipe) -> Iterator[Fault]:
    space = recipe.search.space
    for key, domain in space.items():
        for other in domain.when:
            if text := _condition(recipe, key, other):
                yield Fault(f"search.space.{key}.when", text)
    ordered = in_order(space)
    if circle := [key for key in space if key not in ordered]:
        yield Fault("search.space", f"{' and '.join(circle)} wait for each other; take one of their conditions out")


def _condition(recipe: Recipe, key: str, other: str) -> str | None:
    """What is wrong with the condition on `other` in the domain of `key`."""
    domain, named = recipe.search.space[key], recipe.search.space.get(other)
    if other == key:
        return f"{other} is the searched setting itself; name another"
    if other not in settings():
        return f"{other} names no setting of a recipe{_meant(other)}"
    if named is None:
        impossible = [value for value in domain.allowed_by(other) if not accepts(other, value)]
        return f"{other}: {wrong_value(other, impossible[0], settings()[other])}" if impossible else None
    if len(named.kinds) != 1:
        return None
    if domain.grid is not None and named.grid is None:
        return f"{other} is no grid; a grid's condition needs a grid, or a setting that is not searched"
    if named.uniform is not None or named.loguniform is not None:
        return f"{other} is searched by {named.kind}, which never gives one exact value; name one with listed values"
    missed = [value for value in domain.allowed_by(other) if not contains(named, value)]
    if missed:
        return f"{other} is never {shown(missed[0])}; its {named.kind} is {shown(list(getattr(named, named.kind)))}"
    return None


def _algorithm(recipe: Recipe) -> Iterator[Fault]:
    search = recipe.search
    grids = [key for key, domain in search.space.items() if domain.grid is not None]
    if search.algorithm.grid is not None and not grids:
        yield Fault(
            "search.algorithm",
            "got grid, but no domain of search.space is a grid; write one as {grid: [...]}, or use random",
        )
    if search.algorithm.grid is None and grids:
        yield Fault(
            f"search.space.{grids[0]}",
            f"grid needs search.algorithm: grid, which is {search.algorithm.name}; use choice, or change it",
        )
    if search.algorithm.grid is not None and search.first:
        yield Fault("search.first", "a grid runs all its points in order; take search.first out, or use random")
    size = math.prod(len(search.space[key].grid or ()) for key in grids)
    if size > MOST_GRID_POINTS:
        yield Fault(
            "search.space",
            f"the grids cross to {size} points; give fewer values, {MOST_GRID_POINTS} points at most, or use random",
        )


def _values(recipe: Recipe) -> Iterator[Fault]:
    """Each domain's values, one domain varied at a time around the point of all first values."""
    for key, domain in recipe.search.space.items():
        problems = ((value, _wrong_itself(recipe, key, value)) for value in trial_values(domain))
        most = MOST_SHOWN if domain.listed is not None else 1
        for value, problem in itertools.islice(((value, text) for value, text in problems if text), most):
            yield Fault(f"search.space.{key}", f"can give {shown(value)}, which cannot be used: {problem}")


def _wrong_itself(recipe: Recipe, key: str, value: Scalar) -> str | None:
    """What a point with this value has against this very setting; faults elsewhere are left to the combinations."""
    if not accepts(key, value):
        return wrong_value(key, value, settings()[key])
    error = fits(recipe, _first_values(recipe, {key: value}))
    return next((fault.text for fault in error.faults if fault.path == key), None) if error else None


def _first_values(recipe: Recipe, given: Point) -> Point:
    """The point with the given values, their conditions met, every other setting at its domain's first value."""
    needed = dict(given)
    waiting = list(given)
    while waiting:
        domain = recipe.search.space.get(waiting.pop())
        for other in domain.when if domain else ():
            if other not in needed and other in recipe.search.space and domain is not None:
                needed[other] = domain.allowed_by(other)[0]
                waiting.append(other)
    return complete(recipe, needed, lambda _, domain: trial_values(domain)[0])


def _combinations(recipe: Recipe) -> Iterator[Fault]:
    """Values together; each thing wrong is told once, by the first point that has it."""
    told: set[Fault] = set()
    for point in _combined(recipe):
        error = fits(recipe, point)
        if error is not None and error.faults[0] not in told:
            told.add(error.faults[0])
            yield Fault("search.space", f"can give {in_one_line(point)}, which cannot be used: {error.faults[0]}")
            if len(told) == MOST_SHOWN:
                return


def _combined(recipe: Recipe) -> Iterator[Point]:
    """Points of the whole space; first those of settings that depend on each other, lest a large one hides a clash."""
    space = {key: trial_values(domain) for key, domain in recipe.search.space.items()}
    for group in (*_DEPENDENT, tuple(space)):
        keys = [key for key in group if key in space]
        for values in _some_of_product([space[key] for key in keys]):
            yield _first_values(recipe, dict(zip(keys, values, strict=True)))


def _some_of_product(lists: list[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    if math.prod(len(values) for values in lists) <= MOST_COMBINATIONS:
        yield from itertools.product(*lists)
        return
    rng = random.Random(0)
    for _ in range(MOST_COMBINATIONS):
        yield tuple(rng.choice(values) for values in lists)


def _first(recipe: Recipe) -> Iterator[Fault]:
    space = recipe.search.space
    for place, given in enumerate(recipe.search.first):
        path = f"search.first[{place}]"
        point = complete(recipe, given, lambda _, domain: trial_values(domain)[0])
        for key, value in given.items():
            if key not in space:
                yield Fault(path, f"{key} is not in search.space; give it a domain there, or take it out of the point")
            elif not contains(space[key], value):
                yield Fault(path, f"{key} cannot be {shown(value)}; its domain is {in_words(space[key])}")
            elif key not in point:
                needed = in_words(space[key]).partition(" when ")[2]
                yield Fault(path, f"{key} is searched only when {needed}; add that to the point, or take {key} out")
        sound = all(key in space and contains(space[key], value) for key, value in given.items())
        if sound and (error := fits(recipe, point)):
            yield Fault(path, f"cannot be used: {error.faults[0]}")


def _trials(recipe: Recipe, given: bool) -> Iterator[Fault]:
    search = recipe.search
    if not given:
        return
    if search.algorithm.grid is not None and search.trials != (points := len(grid_points(recipe))):
        yield Fault(
            "search.trials",
            f"got {search.trials}, but the grid has {points} points; take search.trials out, or give {points}",
        )
    elif not search.space and search.trials > 1:
        yield Fault(
            "search.trials", f"got {search.trials} without a search.space: all would be the same; give a space, or 1"
        )
    elif len(search.first) > search.trials:
        yield Fault(
            "search.trials",
            f"got {search.trials}, fewer than the {len(search.first)} points of search.first; give at least as many",
        )


def search_checked(recipe: Recipe, trials_given: bool, source: str) -> Recipe:
    """The recipe with its number of trials settled.

    Raises:
        RecipeError: with every fault of the search.
    """
    if faults := faults_in_search(recipe, trials_given):
        raise RecipeError(faults, source)
    if trials_given:
        return recipe
    search = recipe.search.model_copy(update={"trials": max(planned_trials(recipe), len(recipe.search.first))})
    return recipe.model_copy(update={"search": search})
