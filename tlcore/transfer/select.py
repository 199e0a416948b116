"""Which pre-trained model to start from: candidates ranked on the target data by one pass of features each.

Owns the pass and the ranking. The scores are `scores.py`'s; sizes in memory are the fit check's. Called by `tlcore select`.

Features are what a model's backbone gives for a sample before any head: the mean over its tokens or places, of padded ones over
those that are its own. A pooler is left out, since many sources never trained theirs. The pass is the task's own, by which it takes
the loss in training: what goes into a model beside a batch, the task alone knows (positions for pictures of another size).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.data import permutation
from tlcore.errors import DataError, RequestError, TlcoreError
from tlcore.transfer.scores import h_score, linear_probe, logme, similarity

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.recipe import Recipe
    from tlcore.tasks import Batch, Task

_BATCH: Final = 32


@dataclass(frozen=True)
class Candidate:
    """One source. `rank` is 1 for the best, by the mean of its places under the three scores; `error` says why there are none."""

    source: str
    parameters: int = 0
    features: int = 0
    logme: float | None = None
    h_score: float | None = None
    probe: float | None = None
    similarity: float | None = None
    rank: int | None = None
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As `tlcore select --json` gives it."""
        return asdict(self)


def rank_sources(
    recipe: Recipe, variants: Sequence[Recipe], samples: int, told: Callable[[str], None] = lambda source: None
) -> list[Candidate]:
    """Rank the model sources of `variants` on `samples` of the training samples, the best first; failed ones last.

    Args:
        variants: the recipe with each source in turn.
        samples: how many, drawn by `train.seed`: the same for every source.
        told: called with each source before its pass.

    Raises:
        RequestError: the task does not give each sample one class. DataError: the data cannot be used, whatever the source, or
            the samples drawn are of one class.
    """
    other = next((f" with data.{key}" for key in ("multi_label", "regression") if getattr(recipe.data, key)), "")
    if "label" not in _task_columns(recipe) or recipe.task == "token-classification" or other:
        raise RequestError(
            f"sources are ranked for tasks with one class per sample, and this is {recipe.task}{other}",
            hint="make model.source a choice of the search instead",
        )
    found = []
    for variant in variants:
        told(variant.model.source)
        try:
            found.append(_scored(variant, samples))
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever a model's own code ends with: the others are still to be ranked)
            found.append(Candidate(variant.model.source, error=_reason(error)))
    return _ranked(found)


def _reason(error: Exception) -> str:
    said = (str(error).splitlines() or [""])[0]
    return said if isinstance(error, TlcoreError) else f"{type(error).__name__}: {said}"


def _task_columns(recipe: Recipe) -> tuple[str, ...]:
    from tlcore.recipe.task_table import TASK_TABLE

    return TASK_TABLE[recipe.task].columns


def _scored(recipe: Recipe, samples: int) -> Candidate:
    from tlcore.recipe import apply_point
    from tlcore.tasks import build_task

    # Pictures as they are: the same for every source, and twice the same.
    task = build_task(apply_point(recipe, {"data.augment": False}))
    rows = drawn(task.load_data(("train",))["train"], samples, recipe.train.seed)
    model = task.build_model(from_scratch=recipe.transfer.strategy == "scratch").float().eval()
    batches = (task.collate("train", rows[start : start + _BATCH]) for start in range(0, len(rows), _BATCH))
    features, classes = (
        np.concatenate(each) for each in zip(*(_features(task, model, each) for each in batches), strict=True)
    )
    kinds, present = np.unique(classes, return_inverse=True)
    present = present.astype(np.int64)
    if len(kinds) < 2:
        raise DataError(
            f"the {len(rows)} samples drawn from {recipe.data.train} are all of one class, by which no source can be judged",
            hint="look at more of them with --samples, or give data of two classes at least",
        )
    return Candidate(
        recipe.model.source,
        sum(each.numel() for each in model.parameters()),
        features.shape[1],
        logme(features, present),
        h_score(features, present),
        linear_probe(features, present),
        similarity(features, present),
    )


def drawn(total: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    """`count` of `total` samples at random, ascending for reading: the first ones of sorted data are of one class."""
    return np.sort(permutation(total, seed, total)[:count])


def _features(task: Task, model: nn.Module, batch: Batch) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """[B, D] of one batch, and its classes."""
    import torch

    backbone = getattr(model, getattr(model, "base_model_prefix", ""), None)
    if not isinstance(backbone, torch.nn.Module):
        raise RequestError(f"{type(model).__name__} has no backbone apart from its head", hint="leave this source out")
    held: list[Any] = []
    handle = backbone.register_forward_hook(lambda _module, _inputs, output: held.append(output))
    try:
        with torch.no_grad():
            task.loss(model, batch)
    finally:
        handle.remove()
    return _pooled(model, held[0], batch).double().numpy(), batch["labels"].numpy()


def _pooled(model: nn.Module, output: Any, batch: Batch) -> Tensor:
    """The mean over tokens or steps [B, T, D] that count, or over places [B, D, H, W]."""
    hidden: Tensor = output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]
    if hidden.ndim == 4:
        return hidden.mean(dim=(2, 3))
    if hidden.ndim == 3 and (mask := _own_steps(model, batch, hidden.shape[1])) is not None:
        weights = mask[..., None].to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)
    return hidden.mean(dim=1) if hidden.ndim == 3 else hidden


def _own_steps(model: nn.Module, batch: Batch, steps: int) -> Tensor | None:
    """Which of the backbone's steps are no padding [B, steps]; None where all count."""
    import torch

    from tlcore.tasks.sound_inputs import LENGTHS, output_lengths

    # A model of waveforms makes one step of hundreds of samples: their mask says nothing of its output by itself.
    if LENGTHS in batch and hasattr(model, "_get_feat_extract_output_lengths"):
        return torch.arange(steps) < output_lengths(model, batch)[:, None]
    mask = batch.get("attention_mask")
    return mask if mask is not None and mask.shape[1] == steps else None


def _ranked(found: Sequence[Candidate]) -> list[Candidate]:
    from dataclasses import replace

    scored = [each for each in found if not each.error]
    places = {id(each): 0.0 for each in scored}
    for name in ("logme", "h_score", "probe"):
        values = [getattr(each, name) for each in scored]
        for each in scored:
            own = getattr(each, name)
            # Equal scores share their places.
            places[id(each)] += sum(value > own for value in values) + 0.5 * (sum(value == own for value in values) - 1)
    best_first = sorted(scored, key=lambda each: places[id(each)])
    return [
        *(replace(each, rank=at) for at, each in enumerate(best_first, start=1)),
        *(each for each in found if each.error),
    ]
