"""What each rank does in test_train_own_families.py: the families of `tlcore/models/families` under DeepSpeed, and in plain torch.

Run by `rank_server.py`. Each rank takes its half of the batch; plain torch takes the mean of both halves' losses, since batch norm
and padding are a rank's own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from tests.tiny_families import FAMILIES
from tlcore.engine.optimizer import build_optimizer, learning_rate
from tlcore.engine.sharded import ShardedModel
from tlcore.recipe import Recipe, plan_batch, recipe_from_dict
from tlcore.train.group import sum_over_ranks
from tlcore.transfer import parameter_groups

STEPS = 4
NORMALIZED: dict[str, dict[str, Any]] = {
    "efficientnet_lite": {"optimizer": "sgd", "learning_rate": 1e-3},
    "yolox": {"optimizer": "sgd", "learning_rate": 1e-3},
}
"""Deep networks with batch norms learn by SGD: a norm leaves weights before it with gradients of rounding alone, which Adam's first
steps scale up to whole ones, other ones with each processor's kernels."""


def recipe_for(family: str, stage: int, recompute: bool = False) -> Recipe:
    return recipe_from_dict(
        {
            "name": "families",
            "task": "text-classification",
            "model": {"source": "some/where"},
            "data": {"train": "x.csv"},
            "train": {
                "global_batch_size": 4,
                "precision": "fp32",
                "learning_rate": 3e-3,
                "warmup_ratio": 0.0,
                "activation_checkpointing": recompute,
                **NORMALIZED.get(family, {}),
            },
            "deepspeed": {"zero_stage": stage},
            "resources": {"workers": 2},
            "storage": "runs",
        }
    )


def halves(batch: dict[str, Any]) -> list[dict[str, Any]]:
    return [{name: each[part] for name, each in batch.items()} for part in (slice(0, 2), slice(2, 4))]


def loss_of(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    loss: torch.Tensor = model(**batch)["loss"]
    return loss


def plain(family: str, recipe: Recipe) -> list[float]:
    """Losses of the steps in torch alone."""
    torch.manual_seed(0)
    model, batch = FAMILIES[family]()
    model.train()
    optimizer = build_optimizer(recipe, parameter_groups(model, recipe))
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step, STEPS)
        optimizer.zero_grad()
        loss = sum(loss_of(model, half) for half in halves(batch)) / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.train.gradient_clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


def sharded(family: str, recipe: Recipe) -> list[float]:
    torch.manual_seed(0)
    module, batch = FAMILIES[family]()
    model = ShardedModel(
        recipe, module.train(), parameter_groups(module, recipe), plan_batch(recipe, 2), torch.device("cpu")
    )
    own = halves(batch)[dist.get_rank()]
    losses = []
    for step in range(STEPS):
        loss = model.train_step(step, STEPS, [(own, 1.0)], loss_of)
        losses.append((sum_over_ranks(loss.clone()) / 2).item())
    model.close()
    return losses


def run(case: dict[str, Any]) -> dict[str, list[float]]:
    """One family: its losses in plain torch and under each stage."""
    family = case["family"]
    stages = {f"stage {stage}": recipe_for(family, stage) for stage in (1, 2, 3)}
    stages["stage 3, recomputed"] = recipe_for(family, 3, recompute=True)
    found = {name: sharded(family, recipe) for name, recipe in stages.items()}
    return found | {"plain": plain(family, recipe_for(family, 0))}
