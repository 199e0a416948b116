"""A trial's engine on one rank: built for the step where training stands, and anew where a schedule lets more parts train.

Owns the way from the task's model to a `ShardedModel`, and the change at a step's boundary: the state of what trained before goes
over, masters and moments bit for bit; what joins begins from its frozen weights with empty moments and a step count of 0. Does not
own positions and saves (`session.py`), nor the schedule itself (`transfer/schedule.py`). Called by `session.py`.

DeepSpeed cuts its partitions once, so the engine is made again: the old one is closed first, and while the new one is made its
state lies in host memory, a rank's part of it (`engine/carry.py`). Between two boundaries, memory is that of an engine that never
trains more than now.
"""

from __future__ import annotations

import torch

from tlcore.checkpoint import CheckpointRef
from tlcore.data import Course
from tlcore.engine.device import TorchDevice
from tlcore.engine.process import give_memory_back
from tlcore.engine.sharded import ShardedModel
from tlcore.models import check_device, new_backbone_line, new_head_line
from tlcore.recipe import BatchPlan, Recipe
from tlcore.tasks import Task
from tlcore.tasks.telling import tell_once
from tlcore.train.group import rank_device
from tlcore.transfer import apply_strategy, joining, parameter_groups


class EngineMaker:
    """Makes the engines of one trial. `joins`: fractions of the trial at which parts join, known once a model was built."""

    def __init__(self, task: Task, recipe: Recipe, batch: BatchPlan) -> None:
        self._task, self._recipe, self._batch = task, recipe, batch
        self._model: ShardedModel | None = None
        self._joined = 0
        self._device = rank_device()
        self._memory = TorchDevice(self._device)
        self.joins: tuple[float, ...] = ()

    def model_for(self, order: Course, step: int) -> ShardedModel:
        """An engine in which trains what does at `step`; the present one if that is so there, else a fresh one in its place.

        Raises:
            RecipeError, ModelError: the recipe's model cannot be built, or not trained so.
        """
        if self._model is not None:
            if not self.is_due(order, step):
                return self._model
            self._model.close()
        self._model = self._built(order, step)
        return self._model

    def is_due(self, order: Course, step: int) -> bool:
        """Whether at `step` other parts train than in the present engine."""
        return self._joined_at(order, step) != self._joined

    def move_on(self, order: Course, step: int) -> ShardedModel:
        """An engine for `step`, with the state of the present one, which is closed. All ranks together; nothing may be reading the
        present one's memory."""
        assert self._model is not None  # is_due was asked, and it asks the present engine
        carried = self._model.carry()
        self._model.close()
        self._model = None
        give_memory_back()
        self._model = self._built(order, step)
        self._model.adopt(carried)
        return self._model

    def _joined_at(self, order: Course, step: int) -> int:
        return sum(order.step_at(fraction) <= step for fraction in self.joins)

    def _built(self, order: Course, step: int) -> ShardedModel:
        recipe = self._recipe
        check_device(recipe.model.attention, self._device.type)
        model = self._task.build_model(from_scratch=recipe.transfer.strategy == "scratch")
        if not self.joins:
            say_what_is_new(model, recipe)
        self.joins = joining(model, recipe)
        self._joined = self._joined_at(order, step)
        apply_strategy(model, recipe, self._joined)
        groups = parameter_groups(model, recipe)
        return ShardedModel(recipe, model, groups, self._batch, self._device, self._memory)


def say_what_is_new(model: torch.nn.Module, recipe: Recipe) -> None:
    """One line where weights were taken and some were not there; of a pre-trained source not the head, which is always new."""
    if recipe.transfer.strategy == "scratch":
        return
    source = recipe.model.source
    if line := (new_head_line if CheckpointRef.is_one(source) else new_backbone_line)(model, source):
        tell_once(line)
