"""Rules of a recipe's `transfer` section: which strategy takes which setting, and what its values must say.

Owns every such rule that needs no model; what a model has no part for is said by `transfer/`. Called by `checks.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from tlcore.errors import Fault
from tlcore.recipe.credentials import shown
from tlcore.recipe.schema import Recipe, TransferSection

_UPDATES: Final = ("lora", "dora", "qlora")
_NAMED: Final = ("full", "layerwise")
_TAKEN_BY: Final = {
    "n": ("last_n",),
    "decay": ("layerwise", "gradual"),
    "schedule": ("gradual",),
    "freeze": _NAMED,
    "train": _NAMED,
    "cache_features": ("head",),
    "rank": _UPDATES,
    "alpha": _UPDATES,
    "dropout": _UPDATES,
    "target_modules": _UPDATES,
}
"""Setting of `transfer` -> the strategies that take it."""
_BLOCKS: Final = re.compile(r"encoder\.(\d+)-(\d+)")


def transfer_faults(recipe: Recipe) -> Iterator[Fault]:
    """Every fault that the section has in itself."""
    transfer = recipe.transfer
    if transfer.strategy == "last_n" and transfer.n is None:
        yield Fault("transfer.n", "missing with strategy last_n; give the number of last blocks to train, such as 2")
    yield from _misplaced(transfer)
    if isinstance(transfer.target_modules, tuple) and not all(
        name.strip() for name in transfer.target_modules or ("",)
    ):
        yield Fault(
            "transfer.target_modules",
            f"got {shown(list(transfer.target_modules))}; give names of linear layers, such as query and value, or auto",
        )
    if transfer.cache_features and recipe.train.compile:
        text = "got true with train.compile, which builds the model's calls in; set one of them to false"
        yield Fault("transfer.cache_features", text)
    yield from _schedule(transfer)
    yield from _names(transfer)


def _misplaced(transfer: TransferSection) -> Iterator[Fault]:
    """Settings that the strategy does not take."""
    for key, owners in _TAKEN_BY.items():
        value = getattr(transfer, key)
        if transfer.strategy in owners or value in (None, "auto", (), False):
            continue
        *others, last = owners
        named, one = f"{', '.join(others)} and {last}" if others else last, not others
        when = owners[0] if one else f"[{', '.join(owners)}]"
        searched = f" (in a search: give transfer.{key} a domain with when: {{transfer.strategy: {when}}})"
        takes = f"only {named} {'takes' if one else 'take'} it, so take it out{searched}"
        value = list(value) if isinstance(value, tuple) else value
        yield Fault(f"transfer.{key}", f"got {shown(value)} with strategy {transfer.strategy}; {takes}")


def _schedule(transfer: TransferSection) -> Iterator[Fault]:
    fractions = transfer.schedule
    if not isinstance(fractions, tuple):
        return
    path, got = "transfer.schedule", shown(list(fractions))
    if not fractions:
        yield Fault(path, f"got {got}; give a fraction of the trial for each next block, one number for all, or auto")
    elif outside := [each for each in fractions if not 0 < each < 1]:
        yield Fault(
            path, f"got {got}; {shown(outside[0])} is no fraction of the trial: give numbers above 0 and below 1"
        )
    elif any(later < earlier for earlier, later in pairwise(fractions)):
        yield Fault(path, f"got {got}, which goes back; give the fractions in rising order")


def _names(transfer: TransferSection) -> Iterator[Fault]:
    """Names of parts that cannot be meant, whatever the model is."""
    for key in ("freeze", "train"):
        path = f"transfer.{key}"
        for name in transfer.named(key):
            if not name.strip():
                yield Fault(path, f"got {shown(name)}; give a part, such as embeddings or encoder.0-5, or a pattern")
            elif (found := _BLOCKS.fullmatch(name)) and int(found[1]) > int(found[2]):
                yield Fault(path, f"got {shown(name)}, which counts down; give encoder.{found[2]}-{found[1]}")
    if both := [name for name in transfer.named("train") if name in transfer.named("freeze")]:
        yield Fault("transfer.freeze", f"names {shown(both[0])}, and so does transfer.train; name it in one of them")
