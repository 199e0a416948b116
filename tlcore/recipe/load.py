"""From a YAML file to a recipe that has passed every check.

Owns reading the file and laying `--set key=value` over it. Called by `cli.py`, `jobs/`, and wherever a stored
recipe is read back.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from tlcore.errors import Fault, RecipeError
from tlcore.recipe.build import build
from tlcore.recipe.credentials import shown
from tlcore.recipe.fields import settings, suggestion
from tlcore.recipe.reading import parse_yaml
from tlcore.recipe.schema import Recipe
from tlcore.recipe.space import set_at
from tlcore.recipe.space_checks import search_checked

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
_SPACE: Final = "search.space."


def load_recipe(path: str | Path, overrides: Mapping[str, str] = _NOTHING) -> Recipe:
    """Read and check a recipe.

    Args:
        path: the YAML file.
        overrides: dotted setting -> value as YAML text, laid over the file (`--set train.epochs=3`).

    Raises:
        RecipeError: with every fault found; nothing was started.
    """
    data = parse_yaml(_text_of(Path(path)), str(path))
    if overrides and isinstance(data, dict):
        _lay_over(data, overrides, str(path))
    return recipe_from_dict(data, str(path))


def recipe_from_dict(data: Any, source: str = "recipe") -> Recipe:
    """Check plain data, such as `Recipe.to_dict` gives, as a recipe.

    Args:
        data: sections as the YAML has them.
        source: what to call it in the error.

    Raises:
        RecipeError: with every fault found.
    """
    recipe = build(data, source)
    return search_checked(recipe, "trials" in recipe.search.model_fields_set, source)


def trial_recipe_from_dict(data: Any, source: str = "recipe") -> Recipe:
    """Check plain data as the recipe of one trial, which its checkpoints carry.

    It names the scheduler of its sweep and has nothing left to search: no rule of the search holds for it. As a whole recipe, those
    of pbt, pb2 and bohb trials would be refused.

    Raises:
        RecipeError: with every fault found.
    """
    return build(data, source)


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        near = sorted(one.name for one in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f"; {path.parent} has {', '.join(near[:8])}" if near else "; check the path"
        raise RecipeError([Fault("", f"no such file{hint}")], str(path)) from None
    except UnicodeDecodeError as error:
        raise RecipeError([Fault("", f"not UTF-8 text at byte {error.start}; save it as UTF-8")], str(path)) from None
    except OSError as error:
        raise RecipeError([Fault("", f"cannot be read: {error.strerror}; give a YAML file")], str(path)) from None


def _lay_over(data: dict[str, Any], overrides: Mapping[str, str], source: str) -> None:
    faults: list[Fault] = []
    for path, text in overrides.items():
        value = parse_yaml(text, f"--set {path}", path)
        if path.startswith(_SPACE):
            # a key of the space holds dots itself
            set_at(data, "search.space", {**_space_of(data), path.removeprefix(_SPACE): value})
        elif blocked := _blocked(data, path):
            faults.append(blocked)
        else:
            set_at(data, path, value)
    if faults:
        raise RecipeError(faults, source)


def _space_of(data: dict[str, Any]) -> dict[str, Any]:
    search = data.get("search")
    space = search.get("space") if isinstance(search, dict) else None
    return space if isinstance(space, dict) else {}


def _blocked(data: dict[str, Any], path: str) -> Fault | None:
    """A path that no setting has, or that goes through a value which is no section."""
    parts = path.split(".")
    if not all(parts):
        return Fault(path, "is not a dotted path; write --set train.epochs=3")
    if parts[0] not in Recipe.model_fields:
        meant = suggestion(path)
        return Fault(
            path, f"names no setting of a recipe; did you mean {meant}?" if meant else "names no setting of a recipe"
        )
    value: Any = data
    for depth, key in enumerate(parts[:-1]):
        value = value.get(key) if isinstance(value, dict) else None
        above = ".".join(parts[: depth + 1])
        if above in settings() and value is not None and not isinstance(value, dict):
            return Fault(path, f"{above} is {shown(value)}, which has no settings inside; give --set {above}=... whole")
    return None
