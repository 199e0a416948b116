"""Where a trial stands in its data, and with which optimizer, as a checkpoint has it: what a restore compares, and goes on from.

Owns these few facts and their comparison. Called by `session.py`, which writes and reads them, and by `deepspeed_import.py`,
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
        CheckpointIncompatible: the checkpoint is of other data, another order or another optimizer.
    """
    _check_optimizer(manifest, trial, recipe)
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


def _check_optimizer(manifest: Manifest, trial: str, recipe: Recipe) -> None:
    """By the recipe that every trial's checkpoints hold. Names of states do not tell: Lion's momentum is called exp_avg, as Adam's
    first moment is, and AdamW has the states of Adam, so that one would go on with what the other meant otherwise."""
    there = manifest.common.get("recipe", {}).get("train", {}).get("optimizer")
    here = recipe.train.optimizer
    if there not in (None, here):
        raise CheckpointIncompatible(
            f"trial {trial}, step {manifest.step}: the checkpoint was written with train.optimizer {there}, here it is {here}, "
            "which cannot go on from another one's state",
            hint=f"set train.optimizer to {there}; or start a new run from its weights, with model.source: "
            f"<the run's URL>/{manifest.key.removesuffix('/MANIFEST.json')}",
        )


def _legs_from(manifest: Manifest, global_batch_size: int) -> list[tuple[int, int]]:
    first = (0, manifest.scalars["global_batch_size"])
    legs = [(int(start), int(size)) for start, size in manifest.scalars.get("legs", [first])]
    return legs if legs[-1][1] == global_batch_size else [*legs, (manifest.step, global_batch_size)]
