"""Builds a recipe from plain data, or says everything that is wrong with it.

Owns the order of the checks: secrets, things not built yet, types, combinations. The search space is checked by
`space_checks.py`, which itself builds a recipe for every value it tries. Called by `load.py` and `space.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from tlcore.errors import Fault, RecipeError
from tlcore.recipe.checks import faults_between
from tlcore.recipe.credentials import credential_faults, shown
from tlcore.recipe.faults import from_pydantic
from tlcore.recipe.fields import sections
from tlcore.recipe.schema import Recipe
from tlcore.recipe.task_table import with_main_metric, with_target
from tlcore.recipe.unbuilt import unbuilt_faults


def build(data: Any, source: str) -> Recipe:
    """A recipe whose settings fit together; its search space is typed but not tried out.

    Args:
        data: what the YAML held.
        source: what to call it in the error.

    Raises:
        RecipeError: with every fault found.
    """
    if not isinstance(data, dict):
        raise RecipeError(
            [Fault("", f"got {shown(data)}; a recipe is a YAML file of sections: {', '.join(Recipe.model_fields)}")],
            source,
        )
    given = {key: value for key, value in data.items() if value is not None or key not in sections()}
    faults = [*credential_faults(given), *unbuilt_faults(given)]
    try:
        recipe = Recipe.model_validate(with_main_metric(with_target(given)))
    except ValidationError as error:
        raise RecipeError(_first_of_each([*faults, *from_pydantic(error, given)]), source) from None
    if faults := _first_of_each([*faults, *faults_between(recipe)]):
        raise RecipeError(faults, source)
    return recipe


def _first_of_each(faults: Iterable[Fault]) -> list[Fault]:
    """Without what follows from an earlier fault: a second one at the same path, above it, or inside it."""
    kept: list[Fault] = []
    for fault in faults:
        if not any(_related(fault.path, earlier.path) for earlier in kept):
            kept.append(fault)
    return kept


def _related(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")
