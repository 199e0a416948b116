"""What the JSON files of a source ask for that cannot be had: weights in a quantised form, and code that nobody has pinned.

Owns these refusals, made from the files alone so that the driver meets them before a worker starts, and knows the one quantised
form that is taken: mxfp4 (gpt-oss), whose weights become the numbers that they stand for. Called by `source.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tlcore.errors import ModelError

_DEQUANTIZED = "mxfp4"
_ELSEWHERE = "--"
"""Between a repository and its module in an `auto_map`: `owner/name--modeling.Model`."""


def check_quantized(source: str, directory: Path) -> None:
    """Raise ModelError for weights in another quantised form than mxfp4: they have scales that training would not see, and loaders
    that a worker need not have."""
    config = _read(directory / "config.json")
    for where, part in (("", config), *((f"{name}.", each) for name, each in config.items() if isinstance(each, dict))):
        method = _method(part)
        if method is not None and (where or method != _DEQUANTIZED):
            raise ModelError(
                f"model source {source!r} is quantised: {where}quantization_config in its config.json says {method}, "
                "which cannot be trained",
                hint="name the model that it was made of, in bf16 or fp32; transfer.strategy: qlora has its own four bits",
            )


def is_mxfp4(directory: Path) -> bool:
    """Whether its weights are in the one quantised form that is taken."""
    return _method(_read(directory / "config.json")) == _DEQUANTIZED


def check_code(source: str, directory: Path, is_hub_id: bool) -> None:
    """Raise ModelError where transformers would run code of another repository, and so whatever stands on its main branch."""
    for name, reference in _references(directory):
        owner, found, module = reference.partition(_ELSEWHERE)
        if found and not (is_hub_id and owner == source):
            raise ModelError(
                f"model source {source!r}: auto_map in its {name} names {reference!r}, code of another repository, "
                "which nothing pins to a revision",
                hint=f"in a directory with the model and {owner}'s code that you have read, write {module!r} there, "
                "and name that directory",
            )


def asks_hub(directory: Path) -> bool:
    """Whether an `auto_map` gives a repository before a module, so that transformers asks the hub for the code again."""
    return any(_ELSEWHERE in reference for _, reference in _references(directory))


def without_hub(reference: Any) -> Any:
    """A class as an `auto_map` names it (some are named in pairs), without the repository before it."""
    if isinstance(reference, str):
        return reference.rpartition(_ELSEWHERE)[2]
    return [each and without_hub(each) for each in reference]


def _method(config: dict[str, Any]) -> str | None:
    given = config.get("quantization_config")
    return str(given.get("quant_method", "no quant_method")) if isinstance(given, dict) and given else None


def _references(directory: Path) -> Iterator[tuple[str, str]]:
    """Of each `auto_map`, at any depth: the file's name and a class that it names."""
    for path in sorted(directory.glob("*config*.json")):
        for found in _maps(_read(path)):
            yield from ((path.name, text) for text in _texts(found))


def _maps(part: Any) -> Iterator[Any]:
    for key, value in part.items() if isinstance(part, dict) else ():
        yield from [value] if key == "auto_map" else _maps(value)


def _texts(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, (dict, list)):
        for each in part.values() if isinstance(part, dict) else part:
            yield from _texts(each)


def _read(path: Path) -> dict[str, Any]:
    """Of a JSON file; nothing where it is none, which transformers will say."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
