"""One optimizer step of one trial: which samples, which rank, which weight, which random numbers.

Owns the per-step loop. Holds no position: everything follows from the step, so a run restored at step n repeats exactly what an
uninterrupted one does from there. Called by `session.py` and by the step bench.

Random numbers are seeded anew at every step from (seed, step, rank) instead of being carried along, so a checkpoint needs no
generator state and a changed world size or device has nothing to convert. What a batch is made with (augmentation, masked words)
comes from a generator of that batch alone, since it is made while the model draws for the one before (`ahead.py`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from tlcore.data import Course, split_batch
from tlcore.engine.sharded import ShardedModel
from tlcore.recipe import BatchPlan
from tlcore.tasks import Batch, Task
from tlcore.train.ahead import Ahead

_MASK = 2**63 - 1


def step_seed(seed: int, step: int, rank: int, *micro_step: int) -> int:
    """A seed for this step on this rank, or for one of its micro-batches; well mixed, so that neighbours share nothing."""
    mixed = np.random.SeedSequence((seed, step, rank, *micro_step)).generate_state(1, np.uint64)[0]
    return int(mixed) & _MASK


def draws_of(seed: int, step: int, rank: int, micro_step: int) -> torch.Generator:
    """What a micro-batch's own random numbers come from."""
    return torch.Generator().manual_seed(step_seed(seed, step, rank, micro_step))


def seed_everything(seed: int) -> None:
    """Seed every generator that a model or a data transform may draw from: torch's on all devices, numpy's, Python's."""
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


@dataclass(frozen=True)
class _Place:
    """One micro-batch of this rank: where it is, and its samples."""

    step: int
    micro_step: int
    samples: npt.NDArray[np.int64] = field(compare=False)


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
        self._batches = Ahead(self._made, self._following, model.device)
        self._laid_out: tuple[int, list[_Place]] | None = None

    def run(self, step: int) -> tuple[torch.Tensor, int]:
        """Do global step `step`. Returns this rank's share of the mean loss (its mean over ranks is the loss), and the samples of
        the global batch."""
        indices = self.order.batch(step)
        seed_everything(step_seed(self._seed, step, self.rank))
        self.task.begin_step(self.model.module, step)
        place, whole = self.order.schedule(step)
        loss = self.model.train_step(place, whole, self._micro_batches(step), self.task.loss, self._before_update)
        return loss, len(indices)

    def _micro_batches(self, step: int) -> Iterator[tuple[Batch, float]]:
        plan = self.batch
        scale = plan.world_size * plan.accumulation_steps / (self._weight(self.order.batch(step)) or 1.0)
        for place in self._places(step):
            # Every rank must take part in every collective: an empty share is collated to a filler, and weighs 0.
            yield self._batches.take(place), self._weight(place.samples) * scale

    def _places(self, step: int) -> list[_Place]:
        if self._laid_out is None or self._laid_out[0] != step:
            plan = self.batch
            shares = split_batch(
                self.order.batch(step), plan.world_size, plan.micro_batch_size, plan.accumulation_steps
            )
            self._laid_out = step, [_Place(step, number, share) for number, share in enumerate(shares[self.rank])]
        return self._laid_out[1]

    def _following(self, place: _Place) -> _Place | None:
        if place.micro_step + 1 < self.batch.accumulation_steps:
            return self._places(place.step)[place.micro_step + 1]
        return self._places(place.step + 1)[0] if place.step + 1 < self.order.total_steps else None

    def _made(self, place: _Place) -> Batch:
        return self.task.collate("train", place.samples, draws_of(self._seed, place.step, self.rank, place.micro_step))

    def _weight(self, indices: npt.NDArray[np.int64]) -> float:
        """Of samples in the mean over the global batch."""
        return len(indices) if self._weights is None else float(self._weights[indices].sum())
