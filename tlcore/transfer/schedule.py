"""When parts of a model join the training, under `transfer.strategy: gradual`.

Gradual unfreezing (Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification", arXiv:1801.06146): first
what follows the last block trains, then one more block at a time from the top, last what feeds the blocks. There a block joins
after each epoch; here at fractions of the trial.

Owns the parts and their fractions. Does not own freezing (`strategies.py`) nor the change while training goes on (`train/`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from tlcore.errors import Fault, RecipeError
from tlcore.transfer.structure import Structure, read_structure

if TYPE_CHECKING:
    from tlcore.recipe import Recipe


def parts_below(structure: Structure) -> list[tuple[str, ...]]:
    """Parameter names of each part below the head, from the top: the blocks, then what feeds them."""
    return [part for part in (*reversed(structure.blocks), structure.before) if part]


def joining(model: nn.Module, recipe: Recipe) -> tuple[float, ...]:
    """Fraction of the trial at which each part below the head joins, from the top; a part without one never does. Empty for every
    other strategy, of which nothing ever changes.

    Raises:
        RecipeError: a model without blocks, or with fewer parts than the schedule has.
    """
    if recipe.transfer.strategy != "gradual":
        return ()
    structure = read_structure(model)
    parts = parts_below(structure)
    if not structure.blocks:
        text = f"is 'gradual', but {type(model).__name__} has no list of like blocks; use full or head"
        raise RecipeError([Fault("transfer.strategy", text)])
    given = recipe.transfer.unfreezing
    if isinstance(given, float):
        return tuple(given * (number + 1) / len(parts) for number in range(len(parts)))
    if len(given) > len(parts):
        text = f"has {len(given)} fractions, but {type(model).__name__} has {len(parts)} parts below its head"
        raise RecipeError(
            [Fault("transfer.schedule", f"{text} ({len(structure.blocks)} blocks); give as many at most")]
        )
    return given
