"""Parts of a model by the names that a recipe gives them in `transfer.freeze` and `transfer.train`.

Owns what such a name means: `embeddings` (all that feeds the blocks), `encoder` (all blocks; those of a model that is a decoder
alone too), `encoder.3` and `encoder.0-5` (blocks by number from the input, both ends included), `decoder`, `decoder.3` and
`decoder.0-5` (of a model that has both, where `encoder` is its encoder), `head` (all that follows the last block), or a pattern
over parameter names, in which `*` stands for anything; a module's name stands for all its parameters. Called by `strategies.py`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from tlcore.errors import Fault, RecipeError
from tlcore.transfer.structure import Structure

_GROUP = re.compile(r"embeddings|head|(encoder|decoder)(?:\.(\d+)(?:-(\d+))?)?")
_SHOWN = 5


def named_parameters(model: nn.Module, structure: Structure, names: Sequence[str], path: str) -> set[str]:
    """Parameters of `model` that any of these names means.

    Args:
        path: the setting that gives the names, for what is said of them.

    Raises:
        RecipeError: every name that means nothing in this model, each with what is like it.
    """
    found: set[str] = set()
    faults: list[Fault] = []
    for name in names:
        group = _GROUP.fullmatch(name)
        matched = _group(structure, name, group) if group else _matching(model, name)
        if not matched:
            faults.append(Fault(path, f"{name!r} {_why_not(model, structure, name, group)}"))
        found |= matched
    if faults:
        raise RecipeError(faults)
    return found


def _group(structure: Structure, name: str, found: re.Match[str]) -> set[str]:
    if name == "embeddings":
        return set(structure.before)
    if name == "head":
        return {*structure.after, *structure.head}
    blocks = _blocks_of(structure, found[1])
    if found[2] is None:
        first, last = 0, len(blocks) - 1
    else:
        first, last = int(found[2]), int(found[3] or found[2])
    if last >= len(blocks):
        return set()
    return {parameter for block in blocks[first : last + 1] for parameter in block}


def _blocks_of(structure: Structure, part: str) -> tuple[tuple[str, ...], ...]:
    return structure.blocks[: structure.encoders] if part == "encoder" else structure.blocks[structure.encoders :]


def _matching(model: nn.Module, pattern: str) -> set[str]:
    return {
        name for name, _ in model.named_parameters() if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
    }


def _why_not(model: nn.Module, structure: Structure, name: str, group: re.Match[str] | None) -> str:
    kind = type(model).__name__
    if group and group[1]:
        parts = [(part, len(_blocks_of(structure, part))) for part in ("encoder", "decoder")]
        there = ", ".join(f"{part}.0-{count - 1}" for part, count in parts if count)
        return f"is not in {kind}, which has " + (
            f"{len(structure.blocks)} blocks: {there}" if there else "no list of like blocks; give a pattern"
        )
    if group:
        return f"is empty in {kind}; give a pattern over its parameters' names"
    like = _like(model, structure, name)
    return f"matches no parameter of {kind}; " + (f"close are {', '.join(like)}" if like else "see its names")


def _like(model: nn.Module, structure: Structure, name: str) -> list[str]:
    """Names close to a wrong one: groups, modules and parameters, whole or by their ends."""
    known = ["embeddings", "encoder", "head"] + ([f"encoder.0-{structure.encoders - 1}"] if structure.blocks else [])
    parts = [part for part, module in model.named_modules() if part and next(module.parameters(), None) is not None]
    full = [*known, *parts, *(each for each, _ in model.named_parameters())]
    plain = name.strip("*.") or name
    ends: dict[str, str] = {}
    for each in full:
        for depth in range(each.count(".") + 1):
            ends.setdefault(each.split(".", depth)[-1], each)
    found = [*difflib.get_close_matches(name, full, n=_SHOWN, cutoff=0.7)]
    found += [ends[end] for end in difflib.get_close_matches(plain, ends, n=_SHOWN, cutoff=0.6)]
    return list(dict.fromkeys(found or known))[:_SHOWN]
