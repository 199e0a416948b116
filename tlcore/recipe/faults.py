"""Turns what pydantic found into faults in plain words.

Owns the wording of unknown keys, missing keys and wrong values: dotted path, the value given, what to give instead.
Called by `build.py`.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from tlcore.errors import Fault
from tlcore.recipe.credentials import shown
from tlcore.recipe.fields import accepted, bare, close_to, keys_of, literal_values, owner_of, sections, suggestion
from tlcore.recipe.section import OneOf


def from_pydantic(error: ValidationError, data: dict[str, Any]) -> list[Fault]:
    """One fault per setting, however many reasons pydantic gives for it.

    Args:
        error: what validating `data` raised.
        data: the raw recipe, from which the values in the messages come.
    """
    faults: dict[str, Fault] = {}
    for reason in error.errors(include_url=False, include_context=False, include_input=False):
        path, annotation, known = owner_of(reason["loc"])
        if path in faults:
            continue
        value, present = _value_at(data, path)
        if not known:
            faults[path] = Fault(path, _unknown(path, value, annotation))
        elif not present:
            faults[path] = Fault(path, _missing(path, annotation))
        else:
            faults[path] = Fault(path, wrong_value(path, value, annotation))
    return list(faults.values())


def wrong_value(path: str, value: Any, annotation: Any) -> str:
    """What to say of a value that its setting does not accept."""
    takes = accepted(annotation)
    if path.startswith("search.space."):
        # a kind that a domain does not use is left out, not null
        takes = takes.removesuffix(" or null")
    text = f"got {shown(value)}; give {takes}"
    meant = close_to(value, literal_values(path)) if isinstance(value, str) else None
    return f"{text}; did you mean '{meant}'?" if meant else text


def _unknown(path: str, value: Any, section: type[BaseModel]) -> str:
    where = path.rpartition(".")[0]
    meant = suggestion(path) if where in sections() else close_to(path.rpartition(".")[2], keys_of(section))
    if issubclass(section, OneOf):
        words = dict.fromkeys((section.nothing(), *keys_of(section)))
        return f"unknown {where.rpartition('.')[2]}; give one of {', '.join(words)}{_did_you_mean(meant)}"
    known = f"; {where or 'a recipe'} has {', '.join(keys_of(section))}"
    return f"unknown key (got {shown(value)}){_did_you_mean(meant) or known}"


def _did_you_mean(meant: str | None) -> str:
    return f"; did you mean {meant}?" if meant else ""


def _missing(path: str, annotation: Any) -> str:
    if path in sections():
        required = [key for key, info in sections()[path].model_fields.items() if info.is_required()]
        return f"missing; give a section with at least {', '.join(required)}"
    section = sections().get(path.rpartition(".")[0])
    info = section.model_fields.get(path.rpartition(".")[2]) if section else None
    example = f", such as {info.examples[0]}" if info is not None and info.examples else ""
    wanted = "one of " + ", ".join(literal_values(path)) if literal_values(path) else accepted(bare(annotation))
    return f"missing; give {wanted}{example}"


def _value_at(data: Any, path: str) -> tuple[Any, bool]:
    """The raw value at a dotted path, where a key may itself hold dots (`search.space.train.learning_rate`)."""
    if not path:
        return data, True
    if isinstance(data, dict):
        parts = path.split(".")
        for end in range(len(parts), 0, -1):
            if (key := ".".join(parts[:end])) in data:
                return _value_at(data[key], ".".join(parts[end:]))
    return None, False
