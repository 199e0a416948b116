"""Outputs of a frozen part, computed once per run instead of once per epoch: `transfer.cache_features`.

Owns where they are kept and how they get into a batch. Under strategy `head` all below the head is a fixed function of the sample
(`set_training_mode`), so its output is the same in every epoch and in every trial of the sweep. One pass over the training and
validation samples computes it, the ranks share the work, and each writes its share into the run:

    features/<digest>/<split>-<rank>-of-<world>.safetensors      index of each sample, its number of rows, all rows
    features/<digest>/DONE.json                                  which of these there are; last

The digest is of the source's weights, the seed that what a source lacks is drawn from, the data (of the hub, its commit), how
samples are made, and the number format. Every worker then holds all of it in memory. Samples of tokens keep the rows of their own
tokens, whatever they were padded to.

Whether what follows the blocks needs nothing else of them is tried on a batch before training; a model that does is refused, and so
is a task that makes its samples anew each time (masked words). Does not own the cut itself (`transfer/cut.py`). Called by
`session.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import nn

from tlcore.data import content_stamp
from tlcore.engine.sharded import ShardedModel
from tlcore.errors import Fault, ObjectMissing, RecipeError
from tlcore.models import resolve_source
from tlcore.recipe import Recipe
from tlcore.storage import ObjectStore
from tlcore.storage.documents import get_json, put_json
from tlcore.storage.keys import features_key
from tlcore.tasks import Batch, MetricAccumulator, Task
from tlcore.tasks.base import SumOverRanks
from tlcore.train.ahead import to_device
from tlcore.train.evaluation import evaluation_mode
from tlcore.train.group import decide, sum_over_ranks
from tlcore.transfer.cut import BlocksCut

SPLITS = ("train", "validation")
LARGEST_BYTES = 4 << 30
"""Most that the features of a run may take in each worker's memory."""
_BATCH = 64
_MASK = "attention_mask"
_FEATURES = "features"
"""In a batch: what the last block would give for it."""
_CLOSE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""How far the loss of a batch may be off, times 1 + itself: features were computed with other padding, and rounded so."""


def with_features(task: Task, model: ShardedModel, store: ObjectStore, recipe: Recipe, inherits: bool = False) -> Task:
    """The task, its batches of training and validation samples coming with the frozen part's outputs if the recipe asks for that.
    Never where the trial `inherits` another's state: that one may have trained what is frozen here. All ranks together.

    Args:
        store: rooted at the run.

    Raises:
        RecipeError: features that this model or task does not allow, or that take too much memory.
        StorageError: they can neither be read nor written.
    """
    if inherits or not recipe.transfer.cache_features:
        return task
    cached = _CachedTask(task, model, BlocksCut(cast(nn.Module, model.module.module)))
    cached.prepare(store, decide(lambda: _digest(recipe, model)))
    return cast(Task, cached)


class _CachedTask:
    """A task whose batches bring their features along, and lay them ready for the model; all else is the task's own."""

    def __init__(self, task: Task, model: ShardedModel, cut: BlocksCut) -> None:
        self._task, self._model, self._cut = task, model, cut
        self._kept: dict[str, _Rows] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def collate(
        self, split: str, indices: Sequence[int] | npt.NDArray[np.int64], draws: torch.Generator | None = None
    ) -> Batch:
        """The task's batch, with its features where there are any."""
        batch = self._task.collate(split, indices, draws)
        kept = self._kept.get(split)
        return batch if kept is None else {**batch, _FEATURES: kept.placed(batch, indices)}

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The task's, of a forward pass that is given the batch's features."""
        return self._task.loss(model, self.lay_ready(batch))

    def metrics(self) -> MetricAccumulator:
        """The task's, of forward passes that are given each batch's features."""
        return _CachedMetrics(self._task.metrics(), self)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """The task's, of whole forward passes: what was laid ready last is of other samples."""
        self._cut.given = None
        return self._task.predict(model, inputs)

    def lay_ready(self, batch: Batch) -> Batch:
        """The task's own part of a batch; the forward passes of it get the features that came with it."""
        self._cut.given = batch.get(_FEATURES)
        return {name: tensor for name, tensor in batch.items() if name != _FEATURES}

    def prepare(self, store: ObjectStore, digest: str) -> None:
        """Read the features, or compute and write them; then try them."""
        self._check_samples()
        rank, world = dist.get_rank(), dist.get_world_size()
        done = features_key(digest, "DONE.json")
        parts = decide(lambda: _listed(store, done))
        if parts is None:
            names = [f"{split}-{{}}-of-{world}.safetensors" for split in SPLITS]
            for split, name in zip(SPLITS, names, strict=True):
                store.put(features_key(digest, name.format(rank)), save(self._computed(split)))
            dist.barrier()
            parts = [name.format(each) for name in names for each in range(world)]
            if rank == 0:
                put_json(store, done, {"parts": parts})
        for split in SPLITS:
            own = [load(store.get(features_key(digest, part))) for part in parts if part.startswith(f"{split}-")]
            self._kept[split] = _Rows.joined(own)
        self._try()

    def _check_samples(self) -> None:
        """A sample must be the same whenever it is made."""
        made = []
        for seed in (1, 2):
            draws = torch.Generator().manual_seed(seed)
            made.append(self._task.collate("train", range(min(8, len(self._task.lengths("train")))), draws))
        if any(not torch.equal(tensor, made[1][name]) for name, tensor in made[0].items()):
            raise _refused("but this task makes its samples anew each time")

    def _computed(self, split: str) -> dict[str, torch.Tensor]:
        """This rank's share, longest samples first."""
        rank, world = dist.get_rank(), dist.get_world_size()
        lengths = np.asarray(self._task.lengths(split))
        order = np.argsort(-lengths, kind="stable")
        held: list[tuple[int, torch.Tensor]] = []
        for start in range(0, len(order), _BATCH * world):
            own = order[start : start + _BATCH * world][rank::world]
            batch = self._task.collate(split, own)
            hidden = self._hidden(batch)
            if start == 0:
                _check_size(hidden, batch, lengths)
            rows = _rows_of(hidden, batch)
            held += zip(own.tolist(), rows, strict=False)  # a filler has rows and no sample
        # A rank without a sample gives no rows, of the shape that the filler's have.
        shapes = {each.shape[1:] for _, each in held} | {rows[0].shape[1:]}
        if sum_over_ranks(torch.tensor([len(shapes) - 1.0], device=self._model.device)).item():
            raise _refused(
                "but samples have features of different shapes, and no attention mask to tell which are their own"
            )
        return {
            "index": torch.tensor([index for index, _ in held], dtype=torch.int64),
            "count": torch.tensor([len(each) for _, each in held], dtype=torch.int64),
            "rows": torch.cat([rows[0][:0], *(each for _, each in held)]),
        }

    def _hidden(self, batch: Batch) -> torch.Tensor:
        with self._cut.watched() as newest, _frozen(self._model.module):
            self._task.loss(self._model.module, to_device(batch, self._model.device))
            return newest().cpu()

    def _try(self) -> None:
        """The loss with given features must be that of a whole pass."""
        samples = np.arange(min(_BATCH, len(self._task.lengths("train"))))
        batch = self.collate("train", samples)
        with _frozen(self._model.module):
            moved = to_device(batch, self._model.device)
            own = self.lay_ready(moved)
            with self._cut.watched():
                whole = self._task.loss(self._model.module, own)
            try:
                given = self._task.loss(self._model.module, own)
            except RuntimeError:  # shapes that do not go together, for which torch has no class of its own
                given = torch.full_like(whole, torch.nan)
        close = _CLOSE[self._kept["train"].rows.dtype] * (1 + whole.abs())
        wrong = torch.tensor([float(not (whole - given).abs() <= close)], device=whole.device)
        if sum_over_ranks(wrong).item():
            found = "does not take such" if given.isnan() else f"with features {given:.4g}"
            raise _refused(f"but its head reads more than the last block's output: the loss is {whole:.4g}, {found}")


class _CachedMetrics:
    """A task's MetricAccumulator, each batch's features laid ready before it is counted."""

    def __init__(self, metrics: MetricAccumulator, task: _CachedTask) -> None:
        self._metrics, self._task = metrics, task

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Count one batch."""
        self._metrics.update(model, self._task.lay_ready(batch))

    def merge(self, sum_over_ranks: SumOverRanks) -> None:
        """As the task's."""
        self._metrics.merge(sum_over_ranks)

    def compute(self) -> dict[str, float]:
        """As the task's."""
        return self._metrics.compute()


class _Rows:
    """The features of a split: of sample i the rows `[starts[i], starts[i + 1])`, each of any shape."""

    def __init__(self, starts: npt.NDArray[np.int64], rows: torch.Tensor) -> None:
        self.starts, self.rows = starts, rows

    @classmethod
    def joined(cls, parts: Sequence[dict[str, torch.Tensor]]) -> _Rows:
        """All samples in order, of parts that each have some."""
        index = torch.cat([part["index"] for part in parts]).numpy()
        counts = torch.cat([part["count"] for part in parts]).numpy()
        rows = torch.cat([part["rows"] for part in parts])
        order = np.argsort(index)
        ends = np.cumsum(counts)
        places = [np.arange(ends[each] - counts[each], ends[each]) for each in order]
        starts = np.concatenate([[0], np.cumsum(counts[order])])
        return cls(starts, rows[torch.from_numpy(np.concatenate(places))])

    def placed(self, batch: Batch, indices: Sequence[int] | npt.NDArray[np.int64]) -> torch.Tensor:
        """What the last block would give for this batch: [B, T, ...] with zeros where there is padding, or [B, ...]."""
        picked = [self.rows[self.starts[each] : self.starts[each + 1]] for each in indices]
        mask = batch.get(_MASK)
        if mask is None:
            return torch.cat(picked) if picked else self.rows.new_zeros(1, *self.rows.shape[1:])
        hidden = self.rows.new_zeros(*mask.shape, *self.rows.shape[1:])
        if picked:
            hidden[mask.bool()] = torch.cat(picked)
        return hidden


def _rows_of(hidden: torch.Tensor, batch: Batch) -> list[torch.Tensor]:
    """By sample: the rows of its own tokens, or all of it as one row."""
    mask = batch.get(_MASK)
    if mask is None:
        return list(hidden.unsqueeze(1))
    if mask.shape != hidden.shape[:2]:
        raise _refused(f"but the blocks give {list(hidden.shape)} for samples of {list(mask.shape)}")
    return [each[own] for each, own in zip(hidden, mask.bool(), strict=True)]


def _check_size(hidden: torch.Tensor, batch: Batch, lengths: npt.NDArray[np.int32]) -> None:
    by_token = _MASK in batch
    per_row = hidden[0].numel() // (hidden.shape[1] if by_token else 1) * hidden.element_size()
    size = per_row * (int(lengths.sum()) if by_token else len(lengths))
    if size > LARGEST_BYTES:
        raise _refused(
            f"but the features take {size / 1e9:.1f} GB in each worker, and at most {LARGEST_BYTES / 1e9:.1f} may"
        )


def _refused(why: str) -> RecipeError:
    return RecipeError([Fault("transfer.cache_features", f"is true, {why}; take it out")])


def _listed(store: ObjectStore, done: str) -> list[str] | None:
    try:
        parts: list[str] = get_json(store, done)["parts"]
    except ObjectMissing:
        return None
    return parts


def _digest(recipe: Recipe, model: ShardedModel) -> str:
    """Of all that decides the features."""
    data = recipe.data
    source = resolve_source(recipe.model.source, recipe.model.revision, recipe.model.trust_remote_code)
    places = [place for place in (data.train, data.validation) if isinstance(place, str)]
    facts = [
        recipe.task,
        recipe.model.model_dump(mode="json"),
        data.model_dump(mode="json"),
        source.digest,
        recipe.train.seed,
        [content_stamp(place) for place in places],
        model.precision,
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside."""
    with evaluation_mode(module), torch.no_grad():
        yield
