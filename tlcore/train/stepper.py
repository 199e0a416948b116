"""One optimizer step of one trial: which samples, which rank, which weight, which random numbers.

Owns the per-step loop. Holds no position: everything follows from the step, so a run restored at step n repeats exactly what an
uninterrupted one does from there. Called by `session.py` and by the step bench.

Random numbers (dropout, augmentation) are seeded anew at every step from (seed, step, rank) instead of being carried along, so a
checkpoint needs no generator state and a changed world size or device has nothing to convert.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed as dist

from tlcore.data import Course, split_batch
from tlcore.engine.sharded import ShardedModel
from tlcore.recipe import BatchPlan
from tlcore.tasks import Batch, Task

_MASK = 2**63 - 1


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for this step on this rank; well mixed, so that neighbours share nothing."""
    mixed = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0]
    return int(mixed) & _MASK


def seed_everything(seed: int) -> None:
    """Seed every generator that a model or a data transform may draw from: torch's on all devices, numpy's, Python's."""
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


class Stepper:
    """Feeds a sharded model with a task's batches, one optimizer step at a time.

    Args:
        before_update: called in every step right before the optimizer changes the state (`ShardedModel.train_step`).
    """

    def __init__(
        self,
        task: Task,
        model: ShardedModel,
        order: Course,
        batch: BatchPlan,
        before_update: Callable[[], object] = lambda: None,
    ) -> None:
        self.task = task
        self.model = model
        self.order = order
        self.batch = batch
        self.rank = dist.get_rank()
        self._before_update = before_update
        self._seed = model.recipe.train.seed
        self._weights = task.weights("train")

    def run(self, step: int) -> tuple[torch.Tensor, int]:
        """Do global step `step`. Returns this rank's share of the mean loss (its mean over ranks is the loss), and the samples of
        the global batch."""
        indices = self.order.batch(step)
        seed_everything(step_seed(self._seed, step, self.rank))
        place, whole = self.order.schedule(step)
        loss = self.model.train_step(place, whole, self._micro_batches(indices), self.task.loss, self._before_update)
        return loss, len(indices)

    def _micro_batches(self, indices: np.ndarray) -> Iterator[tuple[Batch, float]]:
        plan = self.batch
        shares = split_batch(indices, plan.world_size, plan.micro_batch_size, plan.accumulation_steps)[self.rank]
        scale = plan.world_size * plan.accumulation_steps / (self._weight(indices) or 1.0)
        for share in shares:
            # Every rank must take part in every collective: an empty share is collated to a filler, and weighs 0.
            yield to_device(self.task.collate("train", share), self.model.device), self._weight(share) * scale

    def _weight(self, indices: np.ndarray) -> float:
        """Of samples in the mean over the global batch."""
        return len(indices) if self._weights is None else float(self._weights[indices].sum())


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device its model is on."""
    if device.type == "cpu":
        return batch
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}
