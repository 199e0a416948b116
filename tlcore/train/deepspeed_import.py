"""A DeepSpeed checkpoint as the beginning of a run here, which `tlcore train RECIPE --resume` goes on with.

Owns the fit of such a checkpoint to a recipe, and the run it becomes. Reading DeepSpeed's files is `deepspeed_files.py`'s. Called
by the command.

Masters, moments, step counts, frozen weights and buffers are taken bit for bit. What a DeepSpeed checkpoint does not hold in a form
that others can use comes from the recipe: the learning rate of each step and the order of samples, both functions of the step here.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch

from tlcore.checkpoint import CheckpointRef, CheckpointWriter, Piece, Row, WriterSettings, next_attempt
from tlcore.data import Order
from tlcore.engine.optimizer import build_optimizer
from tlcore.engine.state import BUFFER, FROZEN, dtype_name, host_bytes, parameter_table
from tlcore.errors import CheckpointIncompatible, RequestError
from tlcore.recipe import Recipe
from tlcore.storage import create_run
from tlcore.storage.journal import Journal
from tlcore.tasks import Task, build_task
from tlcore.train.deepspeed_files import DeepSpeedCheckpoint, read_directory
from tlcore.train.local import TRIAL
from tlcore.train.position import position
from tlcore.transfer import apply_strategy

_MEMORY_BYTES: Final = 512 << 20
_SCALER_FIELDS: Final = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class Imported:
    """The checkpoint that was made, and what it was made of."""

    ref: CheckpointRef
    source: DeepSpeedCheckpoint


def import_deepspeed(directory: Path, recipe: Recipe, tag: str | None = None) -> Imported:
    """Make a run of the recipe's name whose only trial stands where the DeepSpeed checkpoint stood.

    Args:
        directory: as `read_directory` takes it; of ZeRO stage 1, 2 or 3, or universal.
        recipe: what trained it: model, data and optimizer must be the same, stage and world size need not.

    Raises:
        RequestError, CheckpointError: see `read_directory`; or the recipe trains fewer steps than have been done.
        CheckpointIncompatible: it holds other parameters or other optimizer state than the recipe's model and optimizer have.
        DataError, ModelError, StorageError: what the recipe names cannot be used.
    """
    found = read_directory(directory, tag)
    task = build_task(recipe)
    task.load_data(("train",))
    lengths = task.lengths("train")
    order = Order(len(lengths), recipe.train.global_batch_size, recipe.train.seed, lengths)
    _check_steps(found, order.steps_per_epoch * recipe.train.epochs)
    _check_precision(found, recipe)
    table, buffers = _table(task, recipe, found)
    _check_optimizer(found, recipe)
    pieces = [*_trained_pieces(found), *_kept_pieces(found, table, buffers)]
    return Imported(_write(recipe, found, pieces, _common(recipe, task, found, order, table)), found)


def _check_steps(found: DeepSpeedCheckpoint, total_steps: int) -> None:
    if found.global_steps > total_steps:
        raise RequestError(
            f"{found.directory} stands at step {found.global_steps}, and the recipe trains {total_steps} in all",
            hint="raise train.epochs, or see that data and train.global_batch_size are those it was trained with",
        )


def _check_precision(found: DeepSpeedCheckpoint, recipe: Recipe) -> None:
    if recipe.train.precision not in ("auto", found.precision):
        raise RequestError(
            f"{found.directory} was trained in {found.precision}, and train.precision is {recipe.train.precision}",
            hint=f"set train.precision to {found.precision}",
        )


def _table(task: Task, recipe: Recipe, found: DeepSpeedCheckpoint) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """The recipe's table of parameters, with the checkpoint's formats of what is not trained, and the names of the buffers."""
    model = task.build_model(from_scratch=recipe.transfer.strategy == "scratch").float()
    apply_strategy(model, recipe)
    table = parameter_table(model)
    for name, facts in table.items():
        if facts["tied_to"] is not None or 0 in facts["shape"]:
            continue
        if facts["trained"]:
            there = found.shapes.get(name)
        else:
            held = found.kept.get(name)
            there = None if held is None else _shape_of(held, facts["shape"])
            facts["dtype"] = facts["dtype"] if held is None else dtype_name(held[0].dtype)
        _check_parameter(found, name, facts, there)
    unknown = sorted(set(found.shapes) - set(table))
    if unknown:
        raise CheckpointIncompatible(
            f"{found.directory} trains {unknown[0]}, which the recipe's model does not have",
            hint="model.source, the task or the labels are not those it was trained with",
            parameter=unknown[0],
        )
    return table, set(table) - {name for name, _ in model.named_parameters(remove_duplicate=False)}


def _shape_of(held: Any, wanted: list[int]) -> tuple[int, ...]:
    """Shape of what is kept; parts of a partitioned one have none of their own, only a number of elements."""
    if len(held) == 1 and held[0].ndim == len(wanted):
        return tuple(held[0].shape)
    elements = sum(part.numel() for part in held)
    return tuple(wanted) if elements == torch.Size(wanted).numel() else (elements,)


def _check_parameter(
    found: DeepSpeedCheckpoint, name: str, facts: Mapping[str, Any], there: tuple[int, ...] | None
) -> None:
    if there is None:
        here, was, other = (
            ("trained", "frozen", found.kept) if facts["trained"] else ("frozen", "trained", found.shapes)
        )
        what = f"is {here} by the recipe and was {was} there" if name in other else "is not there"
        hint = "transfer.strategy is not what it was trained with" if name in other else "the model is another one"
        raise CheckpointIncompatible(f"{found.directory}: parameter {name} {what}", hint=hint, parameter=name)
    if list(there) != list(facts["shape"]):
        raise CheckpointIncompatible(
            f"{found.directory}: parameter {name} has shape {list(there)}, in the recipe's model {facts['shape']}",
            hint="model.source or the number of labels is not what it was trained with",
            parameter=name,
        )


def _check_optimizer(found: DeepSpeedCheckpoint, recipe: Recipe) -> None:
    matrix, vector = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(2))
    groups = [{"params": [each], "weight_decay": 0.0, "muon": each is matrix} for each in (matrix, vector)]
    optimizer = build_optimizer(recipe, groups)
    for each in (matrix, vector):
        each.grad = torch.zeros_like(each)
    optimizer.step()
    states = (state for each in (matrix, vector) for state in optimizer.state[each].items())
    wanted = {name for name, value in states if torch.is_tensor(value) and value.ndim}
    if wanted != found.states:
        there, here = (", ".join(sorted(states)) or "nothing" for states in (found.states, wanted))
        raise CheckpointIncompatible(
            f"{found.directory} holds optimizer state {there}; train.optimizer {recipe.train.optimizer} keeps {here}",
            hint="set train.optimizer to what it was trained with",
        )


def _trained_pieces(found: DeepSpeedCheckpoint) -> Iterator[Piece]:
    """Every interval of masters and moments, on the mapped files themselves."""
    for each in found.fragments:
        if each.values.dtype != torch.float32:
            raise CheckpointIncompatible(
                f"{found.directory}: {each.state} of {each.parameter} is {dtype_name(each.values.dtype)}, not float32",
                hint="masters and moments in 16 bits are not taken over",
                parameter=each.parameter,
            )
        end = each.start + each.values.numel()
        yield Piece(
            Row(each.parameter, each.state, each.start, end, "float32"), host_bytes(each.values), immutable=True
        )


def _kept_pieces(
    found: DeepSpeedCheckpoint, table: Mapping[str, Mapping[str, Any]], buffers: set[str]
) -> Iterator[Piece]:
    """Frozen weights and buffers, likewise."""
    for name, facts in table.items():
        if facts["trained"] or facts["tied_to"] is not None or 0 in facts["shape"]:
            continue
        start = 0
        for part in found.kept[name]:
            values = part.reshape(-1)
            end = start + values.numel()
            kind = BUFFER if name in buffers else FROZEN
            yield Piece(Row(name, kind, start, end, dtype_name(values.dtype)), host_bytes(values), immutable=True)
            start = end


def _common(
    recipe: Recipe, task: Task, found: DeepSpeedCheckpoint, order: Order, table: Mapping[str, Any]
) -> dict[str, Any]:
    scaler = found.loss_scaler
    return {
        "parameters": table,
        "scalars": {
            "optimizer_steps": found.optimizer_steps,
            **({"late_steps": dict(found.late_steps)} if found.late_steps else {}),
            "loss_scaler": None
            if scaler is None
            else {field: scaler[field] for field in _SCALER_FIELDS if field in scaler},
            "step": found.global_steps,
            **position(recipe, order),
        },
        "zero_stage": None,
        "precision": found.precision,
        "parent": None,
        "metrics": {},
        "recipe": recipe.to_dict(),
        "task": task.facts(),
        "imported": {"kind": found.kind, "world_size": found.world_size},
    }


def _write(recipe: Recipe, found: DeepSpeedCheckpoint, pieces: list[Piece], common: dict[str, Any]) -> CheckpointRef:
    identity = {
        "recipe": recipe.to_dict(),
        "digest": recipe.digest(),
        "kind": "train",
        "imported": f"{found.kind} checkpoint of {found.world_size} ranks at step {found.global_steps}",
    }
    run = create_run(recipe.storage, recipe.name, identity, datetime.now(UTC), secrets.token_hex(8))
    store = run.open()
    settings = WriterSettings(memory_bytes=_MEMORY_BYTES)
    with CheckpointWriter(store, TRIAL, 0, 1, next_attempt(store, TRIAL), settings) as writer:
        writer.save(found.global_steps, pieces, common)
        writer.wait()
    # Only now is there a trial: a run whose import was broken off has none, and cannot be resumed from nothing.
    Journal(store, lambda: datetime.now(UTC)).append("suggested", TRIAL, point={})
    return CheckpointRef(run.url, TRIAL, found.global_steps)
