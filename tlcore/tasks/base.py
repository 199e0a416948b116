"""The whole surface between the training loop and a task.

Owns the contract, not an implementation. Written for text, images and sound alike: a sample is an index into a split, a batch is a
dictionary of tensors that only the task looks into, and evaluation belongs to the task's own accumulator, since one family compares
logits, another generates text, a third matches boxes. Called by `train/`, `transfer/` and the command.

Shapes: B samples of a micro-batch, T tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Generator, Tensor, nn

    from tlcore.recipe import Recipe

    Batch: TypeAlias = dict[str, Tensor]
else:
    Batch = dict

Draws: TypeAlias = "Generator | None"
"""What random numbers come from; None: torch's global generator."""

IGNORED = -100
"""Label of a sample without weight, as in torch's cross entropy."""

SumOverRanks: TypeAlias = "Callable[[Tensor], Tensor]"
"""Takes a float64 CPU tensor of the same shape on every rank, returns the sum over ranks."""


class MetricAccumulator(Protocol):
    """Counts over batches, so that every sample weighs once however unevenly batches and ranks share them."""

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Run the model on one batch without gradients and count. The model is in evaluation mode already."""

    def merge(self, sum_over_ranks: SumOverRanks) -> None:
        """Add up over ranks. Every rank calls it once, at the end, also one that saw no sample."""

    def compute(self) -> dict[str, float]:
        """The metrics by name (`accuracy`, `f1`, `loss`). Raises DataError when no sample was counted."""


class Task(Protocol):
    """One kind of training. Splits are `train`, `validation` and `test`; a split is prepared when first used, then kept.

    A class is called as `Class(recipe, facts)`, as `build_task` says.
    """

    @staticmethod
    def assumed_facts(recipe: Recipe) -> dict[str, Any]:
        """What `facts` would give, as near as can be told without data: for estimates."""

    def check_data(self) -> None:
        """Find what faults the data have without preparing them: places, columns, empty cells, labels. Called by the driver, before
        any worker is started; loads no torch. Raises what `load_data` raises."""

    def load_data(self, splits: Sequence[str] = ("train", "validation")) -> dict[str, int]:
        """Read and prepare these splits and return how many samples each has, so that data faults show before training.

        Raises DataError (also for `test` where the recipe names none), StorageError, ModelError.
        """

    def lengths(self, split: str) -> npt.NDArray[np.int32]:
        """Size of each sample in the unit that padding costs (tokens, frames); its length is the number of samples."""

    def weights(self, split: str) -> npt.NDArray[np.float64] | None:
        """What each sample weighs in the mean loss over a global batch (tokens to be told, windows); None where all weigh alike.
        The mean then is over these units whatever the micro-batches and ranks, as `loss` is over a micro-batch's."""

    def build_model(self, from_scratch: bool) -> nn.Module:
        """A fresh model on the CPU in training mode, in the format that its source stores (fp32 from scratch), the same on every
        rank: weights that the source does not carry (all, from scratch) are drawn from `train.seed`. Raises ModelError."""

    def collate(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64], draws: Draws = None) -> Batch:
        """A micro-batch of these samples, on the CPU.

        Without indices, one filler sample that has no weight in loss and metrics: a rank with nothing left still takes part in the
        collectives of its model.

        Args:
            draws: what a training sample is made anew with (augmentation, hidden words). Called from a thread beside the one that
                trains, though never twice at once.
        """

    def begin_step(self, model: nn.Module, step: int) -> None:
        """Set what of the model or the loss follows a schedule of optimizer steps, by the step alone; 0 is a run's first. Called
        before each step's micro-batches. `model` may be an engine around the model."""

    def largest_batch(self, samples: int) -> Batch:
        """A micro-batch of the largest samples that the recipe allows, with arbitrary contents; reads no data. For estimates of
        memory."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss over the batch's samples, by their weight: an fp32 scalar with gradient; 0 for a filler batch. `model` may be
        an engine around the model."""

    def metrics(self) -> MetricAccumulator:
        """A fresh accumulator for one evaluation."""

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """One JSON-able answer per raw input (a text, a path of an image). The model is in evaluation mode already."""

    def examples(self, split: str, count: int) -> list[tuple[Any, Any]]:
        """(input as `predict` takes it, what was expected) of the first samples of a split, to show; none of a split that is held
        out of another. Raises what `load_data` raises."""

    def facts(self) -> dict[str, Any]:
        """JSON-able facts that the training data settled (class names), for checkpoints; `build_task` takes them back."""

    def export_extras(self, directory: Path) -> None:
        """Write all that a model directory needs beside the weights, so that plain transformers loads it: config, tokenizer."""
