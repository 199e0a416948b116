"""Where a trial stands in its data, as a checkpoint has it: what a restore compares, and goes on from.

Owns these few scalars and their comparison. Called by `session.py`, which writes and reads them, and by `deepspeed_import.py`,
which writes them.
"""

from __future__ import annotations

from typing import Any

from tlcore.checkpoint import Manifest
from tlcore.data import Order
from tlcore.errors import CheckpointIncompatible
from tlcore.recipe import Recipe


def position(recipe: Recipe, order: Order) -> dict[str, Any]:
    """What the order of data depends on; a restore refuses other data, since its samples would be others."""
    return {"seed": recipe.train.seed, "samples": order.samples, "global_batch_size": order.global_batch_size}


def legs_from(
    manifest: Manifest, trial: str, recipe: Recipe, order: Order, inherits: bool
) -> list[tuple[int, int]] | None:
    """The legs of a trial that goes on from a checkpoint, which may have another global batch where the trial `inherits` another's
    state; None where its order stays.

    Raises:
        CheckpointIncompatible: the checkpoint is of other data or another order.
    """
    legs = None
    for key, here in position(recipe, order).items():
        there = manifest.scalars.get(key)
        if key == "global_batch_size" and inherits:
            legs = _legs_from(manifest, here)
        elif there != here:
            raise CheckpointIncompatible(
                f"trial {trial}, step {manifest.step}: the checkpoint was written with {key} {there}, here it is {here}",
                hint="data or recipe changed since it was written: start a new run",
            )
    return legs


def _legs_from(manifest: Manifest, global_batch_size: int) -> list[tuple[int, int]]:
    first = (0, manifest.scalars["global_batch_size"])
    legs = [(int(start), int(size)) for start, size in manifest.scalars.get("legs", [first])]
    return legs if legs[-1][1] == global_batch_size else [*legs, (manifest.step, global_batch_size)]
