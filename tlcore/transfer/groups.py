"""The optimizer's parameter groups.

Owns which trained parameters decay, which of them Muon takes, and which share of the learning rate each part gets. Called by
`train/`, after `apply_strategy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from tlcore.errors import Fault, RecipeError
from tlcore.transfer.schedule import parts_below
from tlcore.transfer.structure import Structure, read_structure

if TYPE_CHECKING:
    from tlcore.recipe import Recipe

BY_PART = ("layerwise", "gradual")
"""Strategies whose groups are cut by part: their rates differ, or their optimizer state begins at different steps."""


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups for a torch or DeepSpeed optimizer: trained matrices with `train.weight_decay`, trained vectors without.

    Vectors (biases and the scales of norms) have one dimension in every family; decaying them pulls norms towards zero. Each group
    has `params`, `weight_decay`, `muon`, `rate` (its share of the learning rate), and `names`, the parameters' names in the same
    order. Empty groups are left out.

    `muon` is true, with that optimizer alone, for the matrices of the blocks: embeddings and the head are AdamW's, as Muon's
    authors advise.

    Layer-wise rates (discriminative fine-tuning: Howard and Ruder 2018, arXiv:1801.06146; as one decay: Clark et al. 2020,
    arXiv:2003.10555) give the head and what follows the blocks the full rate, the last block `transfer.decay` of it, each block
    below that much of the one above, and what feeds the blocks least.

    Raises:
        RecipeError: rates by block for a model without blocks.
    """
    structure = read_structure(model)
    parts = _parts(model, recipe, structure)
    hidden = {name for block in structure.blocks for name in block} if recipe.train.optimizer == "muon" else set()
    decay = recipe.train.weight_decay
    groups: dict[tuple[int, bool, float], dict[str, Any]] = {
        (part, muon, rate): {
            "params": [],
            "names": [],
            "weight_decay": rate,
            "muon": muon,
            "rate": recipe.transfer.layer_decay**part,
        }
        for part in sorted({0, *parts.values()})
        for muon in (True, False)
        for rate in (decay, 0.0)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            muon = parameter.ndim == 2 and name in hidden
            group = groups[parts.get(name, 0), muon, 0.0 if parameter.ndim < 2 else decay]
            group["params"].append(parameter)
            group["names"].append(name)
    return [group for group in groups.values() if group["params"]]


def _parts(model: nn.Module, recipe: Recipe, structure: Structure) -> dict[str, int]:
    """Parameter -> how many parts it stands below the head, where groups are cut by part."""
    if recipe.transfer.strategy not in BY_PART:
        return {}
    if not structure.blocks:
        text = (
            f"is {recipe.transfer.strategy!r}, but {type(model).__name__} has no list of like blocks; use full or head"
        )
        raise RecipeError([Fault("transfer.strategy", text)])
    return {name: depth for depth, part in enumerate(parts_below(structure), start=1) for name in part}
