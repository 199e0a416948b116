"""The recipe's schema as a map from dotted paths to settings.

Owns the walk over the models: which paths exist, what a setting accepts in plain words, which known path a wrong
one is close to. Does not look at any recipe's values. Called by `faults.py`, `unbuilt.py`, `space.py` and
`space_checks.py`.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from tlcore.recipe.domains import Domain
from tlcore.recipe.schema import Recipe

_PLURAL: Final = {str: "texts", int: "whole numbers", float: "numbers", Domain: "domains"}
_ALSO_CALLED: Final = {
    "lr": "train.learning_rate",
    "batch_size": "train.global_batch_size",
    "wd": "train.weight_decay",
    "max_grad_norm": "train.gradient_clip",
    "num_workers": "resources.workers",
    "gpus": "resources.gpus_per_worker",
    "cpus": "resources.cpus_per_worker",
    "stage": "deepspeed.zero_stage",
    "num_samples": "search.trials",
    "max_concurrent_trials": "search.at_once",
}
"""What other tools call a setting."""


@cache
def _annotations(model: type[BaseModel]) -> dict[str, Any]:
    """Key as written in YAML -> annotation with its bounds."""
    hints = typing.get_type_hints(model, include_extras=True)
    return {field.alias or name: hints[name] for name, field in model.model_fields.items()}


def bare(annotation: Any) -> Any:
    """The type inside Annotated."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _members(annotation: Any) -> tuple[Any, ...]:
    """The parts of a union, each with its bounds; the annotation itself when it is none."""
    inner = bare(annotation)
    return get_args(inner) if get_origin(inner) in (Union, types.UnionType) else (annotation,)


def _section(annotation: Any) -> type[BaseModel] | None:
    for member in _members(annotation):
        if isinstance(bare(member), type) and issubclass(bare(member), BaseModel):
            return typing.cast("type[BaseModel]", bare(member))
    return None


def keys_of(model: type[BaseModel]) -> tuple[str, ...]:
    """The keys of a section, as written in YAML."""
    return tuple(_annotations(model))


@cache
def settings() -> dict[str, Any]:
    """Dotted path -> annotation of every setting (no section), in the schema's order."""
    return dict(_walk(Recipe, ""))


@cache
def sections() -> dict[str, type[BaseModel]]:
    """Dotted path -> model of every section; the recipe itself is the empty path."""
    found: dict[str, type[BaseModel]] = {"": Recipe}
    waiting: list[tuple[str, type[BaseModel]]] = [("", Recipe)]
    while waiting:
        prefix, model = waiting.pop()
        for key, annotation in _annotations(model).items():
            if inner := _section(annotation):
                found[prefix + key] = inner
                waiting.append((f"{prefix}{key}.", inner))
    return found


def _walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, annotation in _annotations(model).items():
        inner = _section(annotation)
        if inner is None:
            yield prefix + key, annotation
        else:
            yield from _walk(inner, f"{prefix}{key}.")


def literal_values(path: str) -> tuple[str, ...]:
    """The words that the setting accepts, in the schema's order; empty when it takes none."""
    members = [bare(member) for member in _members(settings().get(path))]
    return tuple(word for member in members if get_origin(member) is Literal for word in get_args(member))


def accepts(path: str, value: Any) -> bool:
    """Whether a setting takes this value, by its own type and range."""
    try:
        TypeAdapter(settings()[path], config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)
    except ValidationError:
        return False
    return True


def owner_of(location: Sequence[str | int]) -> tuple[str, Any, bool]:
    """Where a pydantic error belongs.

    Args:
        location: pydantic's `loc`: keys and list positions, and names of union members after the setting.

    Returns:
        Dotted path of the setting or section; its annotation, or the enclosing model when the key is unknown; whether
        it is known.
    """
    model: type[BaseModel] = Recipe
    annotation: Any = Recipe
    path: list[str] = []
    for place, part in enumerate(location):
        if str(part) not in _annotations(model):
            return ".".join([*path, str(part)]), model, False
        path.append(str(part))
        annotation = _annotations(model)[str(part)]
        inner = _section(annotation)
        if inner is None:
            if (entry := _entry_model(annotation)) is None or place + 1 >= len(location):
                break
            below, annotation, known = _entry_owner(entry, location[place + 1 :])
            return ".".join([*path, below]), annotation, known
        model = inner
    return ".".join(path), annotation, True


def _entry_model(annotation: Any) -> type[BaseModel] | None:
    """The model of the values of a map such as `search.space`."""
    return _section(get_args(bare(annotation))[1]) if get_origin(bare(annotation)) is dict else None


def _entry_owner(entry: type[BaseModel], location: Sequence[str | int]) -> tuple[str, Any, bool]:
    name = str(location[0])
    if len(location) == 1:
        return name, entry, True
    key = str(location[1])
    if key not in _annotations(entry):
        return f"{name}.{key}", entry, False
    return f"{name}.{key}", _annotations(entry)[key], True


def accepted(annotation: Any) -> str:
    """What an annotation takes, in plain words: `a whole number of at least 1, or null`.

    Args:
        annotation: as `settings()` gives it.
    """
    members = _members(annotation)
    if {bare(member) for member in members} == {int, float}:
        return "a number"
    words = [_accepted_one(member) for member in members if bare(member) is not type(None)]
    if len(words) != len(members):
        words.append("null")
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _accepted_one(annotation: Any) -> str:
    inner = bare(annotation)
    origin = get_origin(inner)
    if origin is Literal:
        words = [str(word) for word in get_args(inner)]
        return words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    if origin is tuple:
        return _accepted_list(annotation)
    if origin is dict:
        return f"a section of keys and {_PLURAL.get(bare(get_args(inner)[1]), 'values')}"
    if isinstance(inner, type) and issubclass(inner, BaseModel):
        return f"a section with keys {', '.join(keys_of(inner))}"
    names = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
    return names[inner] + _bounds(annotation)


def _accepted_list(annotation: Any) -> str:
    items = get_args(bare(annotation))
    if items[-1] is Ellipsis:
        not_empty = any(hasattr(rule, "min_length") for rule in _rules(annotation))
        return f"a list of {'one or more ' if not_empty else ''}{_PLURAL.get(bare(items[0]), 'values')}"
    return f"a list of {len(items)} {'whole numbers' if bare(items[0]) is int else 'numbers'}"


def _rules(annotation: Any) -> list[Any]:
    """The bounds in Annotated."""
    extras = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return [rule for info in extras if isinstance(info, FieldInfo) for rule in info.metadata]


def _bounds(annotation: Any) -> str:
    """` of at least 0 and below 1`."""
    rules = _rules(annotation)
    words = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    said = [f"{word} {getattr(rule, name)}" for name, word in words.items() for rule in rules if hasattr(rule, name)]
    return f" {' and '.join(said)}" if said else ""


def close_to(word: str, known: Sequence[str]) -> str | None:
    """The known word that a wrong one most likely meant."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return found[0] if found else None


@cache
def _paths_by_leaf() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for path in (*settings(), *sections()):
        leaf = path.rpartition(".")[2]
        found[leaf] = (*found.get(leaf, ()), path)
    return found


def suggestion(path: str) -> str | None:
    """The setting that an unknown dotted path most likely meant: a sibling first, then the same word elsewhere."""
    parent, _, leaf = path.rpartition(".")
    if leaf.lower() in _ALSO_CALLED:
        return _ALSO_CALLED[leaf.lower()]
    if parent in sections() and (sibling := close_to(leaf, keys_of(sections()[parent]))):
        return f"{parent}.{sibling}" if parent else sibling
    if same := _paths_by_leaf().get(leaf):
        return same[0]
    elsewhere = close_to(leaf, tuple(_paths_by_leaf()))
    return _paths_by_leaf()[elsewhere][0] if elsewhere else None
