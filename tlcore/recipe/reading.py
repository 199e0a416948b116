"""Turns YAML text into plain data, by the YAML 1.2 core rules and without silent surprises.

Owns the parsing of recipe text and of `--set key=value`. Knows nothing of what a recipe holds. Called by `load.py`.

PyYAML follows YAML 1.1, where `5e-5` is a text, `no` and `off` are false, `1:30` is ninety and a repeated key
silently wins. Each of these has spoiled somebody's run: here numbers are numbers, words are words, and a repeated
key is a fault.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from tlcore.errors import Fault, RecipeError

Json = Any
"""What YAML and JSON can hold: null, true/false, numbers, texts, lists, and maps with text keys."""

DEEPEST = 24


class _CoreLoader(yaml.SafeLoader):
    """SafeLoader with the scalars of the YAML 1.2 core schema, refusing repeated keys."""

    # PyYAML's own class attribute: starting empty drops the scalars of YAML 1.1
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key_node.value in seen:
                text = f"key '{key_node.value}' is given twice, first on line {seen[key_node.value]}; keep one"
                raise yaml.constructor.ConstructorError(None, None, text, key_node.start_mark)
            seen[key_node.value] = line
        return super().construct_mapping(node, deep=deep)


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+0123456789."),
    ),
):
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _construct_int(loader: _CoreLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


_CoreLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_yaml(text: str, source: str, path: str = "") -> Json:
    """Parse one YAML document.

    Args:
        text: the document.
        source: what to call it in a fault, such as the file's name.
        path: dotted path that a fault names; empty for a whole file.

    Raises:
        RecipeError: not YAML, a repeated key, a key that is no text, or nested deeper than any recipe is.
    """
    try:
        data = yaml.load(text, Loader=_CoreLoader)
    except yaml.YAMLError as error:
        raise RecipeError([Fault(path, _yaml_fault(error))], source) from None
    except ValueError as error:
        raise RecipeError([Fault(path, f"not a value: {error}")], source) from None
    faults = list(_odd_parts(data, path, 0))
    if faults:
        raise RecipeError(faults, source)
    return data


def _yaml_fault(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return (
        f"{where}{problem}"
        if "given twice" in problem
        else f"{where}not YAML ({problem}); check indentation and quotes"
    )


def _odd_parts(data: Json, path: str, depth: int) -> list[Fault]:
    """Keys that are no texts, and nesting without end (an alias inside its own anchor)."""
    if depth > DEEPEST:
        return [Fault(path[:80], f"nested deeper than {DEEPEST} levels; an alias may contain itself")]
    if isinstance(data, dict):
        for key, value in data.items():
            if not isinstance(key, str):
                return [Fault(path, f"key {key!r} is not a text; put it in quotes")]
            if faults := _odd_parts(value, f"{path}.{key}" if path else key, depth + 1):
                return faults
    elif isinstance(data, list):
        for value in data:
            if faults := _odd_parts(value, path, depth + 1):
                return faults
    elif not isinstance(data, str | int | float | None):
        return [
            Fault(
                path,
                f"a {type(data).__name__} is not accepted; use texts, numbers, true, false, null, lists and sections",
            )
        ]
    return []
