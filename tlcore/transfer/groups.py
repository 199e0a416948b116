"""The optimizer's parameter groups.

Owns which trained parameters decay, and which of them Muon takes. Called by `train/`, after `apply_strategy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from tlcore.transfer.structure import read_structure

if TYPE_CHECKING:
    from tlcore.recipe import Recipe


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups for a torch or DeepSpeed optimizer: trained matrices with `train.weight_decay`, trained vectors without.

    Vectors (biases and the scales of norms) have one dimension in every family; decaying them pulls norms towards zero. Each group
    has `params`, `weight_decay`, `muon`, and `names`, the parameters' names in the same order. Empty groups are left out.

    `muon` is true, with that optimizer alone, for the matrices of the blocks: embeddings and the head are AdamW's, as Muon's
    authors advise.
    """
    decay = recipe.train.weight_decay
    hidden = (
        {name for block in read_structure(model).blocks for name in block}
        if recipe.train.optimizer == "muon"
        else set()
    )
    groups: dict[tuple[bool, float], dict[str, Any]] = {
        (muon, rate): {"params": [], "names": [], "weight_decay": rate, "muon": muon}
        for muon in (True, False)
        for rate in (decay, 0.0)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = groups[parameter.ndim == 2 and name in hidden, 0.0 if parameter.ndim < 2 else decay]
            group["params"].append(parameter)
            group["names"].append(name)
    return [group for group in groups.values() if group["params"]]
