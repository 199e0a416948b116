"""A committed checkpoint used without DeepSpeed: as a plain model, to export, to evaluate, to predict.

Owns reading whole weights out of a checkpoint of any stage and world size; runs in one process, on a GPU if there is one. Called by
the command and, for a sweep's final figures, by `sweep/finals.py`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from tlcore.checkpoint import CheckpointReader, CheckpointRef, Piece, Row
from tlcore.data import read_split
from tlcore.engine.state import BUFFER, FROZEN, MASTER, dtype_name, host_bytes, persistent_buffers
from tlcore.errors import CheckpointIncompatible, RequestError
from tlcore.models import quiet
from tlcore.recipe import Recipe, recipe_from_dict
from tlcore.tasks import Task, build_task
from tlcore.train.evaluation import evaluate
from tlcore.train.group import process_group, rank_device


class TrainedModel:
    """The task and the model of one checkpoint, weights read whole from the store in fp32.

    Args:
        ref: `<run>/trials/<trial>/step-<n>`.

    Raises:
        RequestError: no such URL. CheckpointError: no such checkpoint, or damaged. ModelError: the source is not there any more.
    """

    def __init__(self, ref: str) -> None:
        self.ref = CheckpointRef.parse(ref)
        store, manifest = self.ref.open()
        self.recipe: Recipe = recipe_from_dict(manifest.common["recipe"], source=f"recipe in {ref}")
        self.task: Task = build_task(self.recipe, facts=manifest.common["task"])
        self.model = self.task.build_model(from_scratch=True)
        _read_weights(self.model, CheckpointReader(store, manifest))
        self.model.eval()

    def export(self, destination: Path) -> Path:
        """Write a directory that `from_pretrained` loads. It appears whole or not at all.

        Raises:
            RequestError: `destination` exists and is not an earlier export.
        """
        if destination.exists() and not (destination / "config.json").exists():
            raise RequestError(
                f"{destination} exists and is no exported model", hint="name a directory that does not exist"
            )
        destination.parent.mkdir(parents=True, exist_ok=True)
        fresh = destination.with_name(f".{destination.name}.partial")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        with quiet():
            cast(Any, self.model).save_pretrained(fresh)
        self.task.export_extras(fresh)
        shutil.rmtree(destination, ignore_errors=True)
        fresh.rename(destination)
        return destination

    def evaluate(self, split: str = "test") -> dict[str, float]:
        """The task's metrics on one split, named `<split>_<metric>`."""
        self.task.load_data((split,))
        device = rank_device()
        with process_group():
            found = evaluate(self.task, self.model.to(device=device), split, device)
        return {f"{split}_{name}": value for name, value in found.items()}

    def examples(self, split: str, count: int) -> list[dict[str, Any]]:
        """The first `count` samples of a split of its own place, as people wrote them, with what the model says of each."""
        data = self.recipe.data
        place = {"train": data.train, "validation": data.validation, "test": data.test}[split]
        if not isinstance(place, str):
            return []
        rows = read_split(place, [data.text, data.label], texts=[data.text], split=split).select(range(count))
        answers = self.predict(rows[data.text])
        given = zip(rows[data.text], rows[data.label], answers, strict=True)
        return [{"input": text, "expected": label, **answer} for text, label, answer in given]

    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """The task's prediction for each input."""
        predictions: list[dict[str, Any]] = self.task.predict(self.model.to(rank_device()), list(inputs))
        return predictions


def _read_weights(model: torch.nn.Module, reader: CheckpointReader) -> None:
    stored = reader.manifest.parameters
    pieces: list[Piece] = []
    for name, parameter in model.named_parameters():
        facts = stored.get(name)
        if facts is None or list(facts.shape) != list(parameter.shape):
            there = "absent" if facts is None else f"of shape {list(facts.shape)}"
            raise CheckpointIncompatible(
                f"parameter {name} has shape {list(parameter.shape)} in the model and is {there} in the checkpoint"
            )
        if facts.tied_to is None:
            parameter.data = parameter.data.to(getattr(torch, facts.dtype)).contiguous()
            pieces.append(_whole(name, MASTER if facts.trained else FROZEN, parameter.data))
    pieces += [_whole(name, BUFFER, buffer) for name, buffer in persistent_buffers(model) if buffer.numel()]
    reader.read_into(pieces)
    model.float()


def _whole(name: str, state: str, values: torch.Tensor) -> Piece:
    flat = values.view(-1)
    return Piece(Row(name, state, 0, flat.numel(), dtype_name(flat.dtype)), host_bytes(flat))
