"""A committed checkpoint used without DeepSpeed: as a plain model in memory, to evaluate and to predict.

Owns that use; runs in one process, on a GPU if there is one. Reading the weights is `models/stored.py`'s. Called by the command; a
run's own figures are measured by ranks as it was trained (`session.py`), since not every model fits one process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from tlcore.checkpoint import CheckpointRef
from tlcore.errors import DataError
from tlcore.models.stored import StoredWeights, transposed_layers, weights_of
from tlcore.recipe import Recipe, plan_batch, trial_recipe_from_dict
from tlcore.tasks import Task, build_task
from tlcore.train.evaluation import evaluate
from tlcore.train.group import process_group, rank_device
from tlcore.train.inputs import BATCH, Asked


class TrainedModel:
    """The task and the model of one checkpoint, weights read whole from the store in fp32.

    Args:
        ref: `<run>/trials/<trial>/step-<n>`.
        test: a place to take for the test split in place of the recipe's, with the columns that the recipe names.

    Raises:
        RequestError: no such URL. CheckpointError: no such checkpoint, or damaged. ModelError: the source is not there any more.
    """

    def __init__(self, ref: str, test: str | None = None) -> None:
        self.ref = CheckpointRef.parse(ref)
        store, manifest = self.ref.open()
        self.recipe: Recipe = trial_recipe_from_dict(manifest.common["recipe"], source=f"recipe in {ref}")
        if test is not None:
            data = self.recipe.data.model_copy(update={"test": test})
            self.recipe = self.recipe.model_copy(update={"data": data})
        self.task: Task = build_task(self.recipe, facts=manifest.common["task"])
        self.model = self.task.build_model(from_scratch=True)
        StoredWeights(store, manifest, transposed_layers(self.model)).read_into(weights_of(self.model))
        self.model.eval()

    def evaluate(self, split: str = "test") -> dict[str, float]:
        """The task's metrics on one split, named `<split>_<metric>`."""
        self.task.load_data((split,))
        device = rank_device()
        micro = plan_batch(self.recipe, self.recipe.resources.workers).micro_batch_size
        with process_group(alone=True):
            found = evaluate(self.task, self.model.to(device=device), split, device, micro)
        return {f"{split}_{name}": value for name, value in found.items()}

    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """The task's prediction for each input."""
        predictions: list[dict[str, Any]] = self.task.predict(self.model.to(rank_device()), list(inputs))
        return predictions

    def predict_rows(self, rows: Iterable[Asked], place: str) -> Iterator[dict[str, Any]]:
        """The prediction for each row as soon as its batch is through: its number, its own columns, the task's answer. A column
        named like a part of the answer is `input_<name>`. No more than one batch is held.

        Raises DataError for a row that cannot be used, naming the batch; what is before it was given out.
        """
        left = iter(rows)
        while batch := list(islice(left, BATCH)):
            try:
                answers = self.predict([asked.given for asked in batch])
            except DataError as error:
                where = f"{place}, rows {batch[0].row} to {batch[-1].row}, of which the first is input 0"
                raise DataError(f"{where}: {error.message}", hint=error.hint) from error
            for asked, answer in zip(batch, answers, strict=True):
                own = {f"input_{name}" if name in answer else name: value for name, value in asked.columns.items()}
                yield {"row": asked.row, **own, **answer}
