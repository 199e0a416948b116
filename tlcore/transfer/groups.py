"""The optimizer's parameter groups.

Owns which trained parameters decay. Called by `train/`, after `apply_strategy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from tlcore.recipe import Recipe


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups for a torch or DeepSpeed optimizer: trained matrices with `train.weight_decay`, trained vectors without.

    Vectors (biases and the scales of norms) have one dimension in every family; decaying them pulls norms towards zero. Each group
    has `params`, `weight_decay`, and `names`, the parameters' names in the same order. Empty groups are left out.
    """
    decay = recipe.train.weight_decay
    groups: list[dict[str, Any]] = [
        {"params": [], "names": [], "weight_decay": decay},
        {"params": [], "names": [], "weight_decay": 0.0},
    ]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = groups[int(parameter.ndim < 2 or decay == 0)]
            group["params"].append(parameter)
            group["names"].append(name)
    return [group for group in groups if group["params"]]
