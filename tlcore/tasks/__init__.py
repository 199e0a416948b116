"""What is trained for: one file per task, behind one protocol.

`base.py` is the protocol, `text_classification.py` the first task. Called by `train/`, `transfer/`, and by the command's export,
evaluate and predict. Tasks are imported when asked for, since each brings its family's libraries.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from tlcore.errors import Fault, RecipeError
from tlcore.tasks.base import Batch, MetricAccumulator, Task

if TYPE_CHECKING:
    from tlcore.recipe import Recipe

TASKS = {"text-classification": "tlcore.tasks.text_classification:TextClassification"}
"""Task id -> where its class is."""


def build_task(recipe: Recipe, facts: Mapping[str, Any] | None = None) -> Task:
    """The recipe's task. Reads neither data nor weights yet, but brings the model source onto this machine.

    Args:
        facts: what an earlier `Task.facts()` gave, as a checkpoint keeps it: then no training data is needed to know the classes.

    Raises:
        RecipeError: a task that is not built yet.
        ModelError: the model source cannot be had.
    """
    place = TASKS.get(recipe.task)
    if place is None:
        raise RecipeError([Fault("task", f"{recipe.task!r} is not built yet; what is: {', '.join(TASKS)}")])
    module, _, name = place.partition(":")
    task_class = getattr(importlib.import_module(module), name)
    return cast(Task, task_class(recipe, facts))


__all__ = ["TASKS", "Batch", "MetricAccumulator", "Task", "build_task"]
