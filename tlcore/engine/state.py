"""A DeepSpeed engine's state as intervals of flattened parameters, for every ZeRO stage.

Owns the only code that knows where DeepSpeed keeps masters and optimizer state. Does not own the format (`checkpoint/`) nor when
to save (`train/`). Called by `sharded.py`.

What was read in DeepSpeed 0.19: stages 1 and 2 cut the concatenation of each parameter group into one partition per rank;
`param._hp_mapping` says which elements of a parameter lie in this rank's and where. Stage 3 cuts every parameter by itself: rank r
owns `[r*s, (r+1)*s)` of it padded to a multiple of the world size, and `grad_position` says where that slice lies in the flat
masters. Stage 0 keeps whole parameters in the optimizer on every rank, so ranks share the writing out. All of them are
`(parameter, state, start, end)`, so restoring at another stage or world size is interval intersection.

16-bit weights of trained parameters are a cast of the fp32 master and are not stored. Frozen parameters are stored whole. So are
buffers, and those of rank 0 alone: the statistics of a batch norm differ from rank to rank, and are rank 0's, as under torch's DDP.
Tied parameters appear once, under the first name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from tlcore.checkpoint import Piece, Row, frozen_shares
from tlcore.checkpoint.device import StatePiece
from tlcore.engine.device import TensorPiece, TorchDevice
from tlcore.errors import CheckpointIncompatible

MASTER = "fp32"
FROZEN = "frozen"
BUFFER = "buffer"


@dataclass(frozen=True)
class Interval:
    """Elements `[start, start + values.numel())` of one state of one parameter; `values` is a 1-D view on live memory."""

    parameter: str
    state: str
    start: int
    values: torch.Tensor


def dtype_name(dtype: torch.dtype) -> str:
    """torch's own name without `torch.`."""
    return str(dtype).removeprefix("torch.")


def parameter_table(module: torch.nn.Module) -> dict[str, dict[str, Any]]:
    """Shape, dtype, whether trained and what it is tied to, for every parameter and persistent buffer (JSON-able)."""
    first: dict[int, str] = {}
    table: dict[str, dict[str, Any]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        owner = first.setdefault(id(parameter), name)
        # Stage 3 leaves an empty tensor in the module and the true shape in ds_shape.
        shape = list(getattr(parameter, "ds_shape", parameter.shape))
        trained = parameter.requires_grad
        dtype = torch.float32 if trained else parameter.dtype
        table[name] = {
            "shape": shape,
            "dtype": dtype_name(dtype),
            "trained": trained,
            "tied_to": None if owner == name else owner,
        }
    for name, buffer in persistent_buffers(module):
        table[name] = {
            "shape": list(buffer.shape),
            "dtype": dtype_name(buffer.dtype),
            "trained": False,
            "tied_to": None,
        }
    return table


def persistent_buffers(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Buffers that belong to the state (not those a module rebuilds by itself)."""
    for prefix, child in module.named_modules():
        for name, buffer in child.named_buffers(recurse=False):
            if name not in child._non_persistent_buffers_set:
                yield (f"{prefix}.{name}" if prefix else name), buffer


@dataclass(frozen=True)
class Place:
    """Where this rank keeps its part of a parameter: elements from `start` on are `count` of `flat`, from `offset` on."""

    start: int
    flat: torch.Tensor
    offset: int
    count: int


def trained_intervals(engine: Any, stage: int) -> Iterator[Interval]:
    """Masters and optimizer state that live on this rank. At stage 0 every rank has all of them."""
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if stage == 0:
            yield from _replicated(engine.optimizer, name, parameter)
        elif (place := place_of(engine, stage, parameter)) is not None:
            yield from _partitioned(engine.optimizer.optimizer, name, place)


def place_of(engine: Any, stage: int, parameter: Any) -> Place | None:
    """Where this rank's part of a trained parameter is, from stage 1 on; None where it has none."""
    return _stage3(engine.optimizer, parameter) if stage == 3 else _stage12(engine.optimizer, parameter)


def flat_partitions(engine: Any, stage: int) -> list[torch.Tensor]:
    """This rank's masters, from stage 1 on: as many on every rank, in one order."""
    zero = engine.optimizer
    return list(zero.fp32_partitioned_groups_flat if stage == 3 else zero.single_partition_of_fp32_groups)


def _partitioned(optimizer: torch.optim.Optimizer, name: str, place: Place) -> Iterator[Interval]:
    yield Interval(name, MASTER, place.start, place.flat.data.narrow(0, place.offset, place.count))
    # Not `_hp_mapping.optim_fragment`: DeepSpeed links it after the first group's first step, when later groups have no state yet,
    # and never again; weights without decay would be saved without their moments.
    for state, values in _states_of(optimizer, place.flat):
        yield Interval(name, state, place.start, values.narrow(0, place.offset, place.count))


def _stage12(optimizer: Any, parameter: Any) -> Place | None:
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    here = mapping.hp_fragment_address
    flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
    return Place(mapping.lp_fragment_address.start, flat, here.start, here.numel)


def _stage3(optimizer: Any, parameter: Any) -> Place | None:
    group, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
    share = -(-parameter.ds_numel // dist.get_world_size())
    start = dist.get_rank() * share
    count = min(parameter.ds_numel, start + share) - start
    return Place(start, optimizer.fp32_partitioned_groups_flat[group], offset, count) if count > 0 else None


def _replicated(optimizer: torch.optim.Optimizer, name: str, parameter: torch.Tensor) -> Iterator[Interval]:
    yield Interval(name, MASTER, 0, parameter.data.view(-1))
    for state, values in _states_of(optimizer, parameter):
        yield Interval(name, state, 0, values.view(-1))


def _states_of(optimizer: torch.optim.Optimizer, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """What the optimizer keeps for each element of a tensor. By its shape alone, the count of steps would be such a state of a
    parameter without dimensions, at stage 0 and nowhere else."""
    for state, values in sorted(optimizer.state[tensor].items()):
        if state != "step" and torch.is_tensor(values) and values.shape == tensor.shape:
            yield state, values.data


def frozen_tensors(module: torch.nn.Module) -> dict[str, tuple[str, torch.Tensor]]:
    """Name -> (state, whole 1-D tensor) of frozen parameters and buffers that every rank holds whole (stages 0 to 2)."""
    held = {
        name: (FROZEN, _flat(parameter)) for name, parameter in module.named_parameters() if not parameter.requires_grad
    }
    held.update({name: (BUFFER, _flat(buffer)) for name, buffer in persistent_buffers(module)})
    return held


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """A 1-D view. Strided memory (channels last) is laid out anew first: a flattened copy of it would be restored in vain."""
    if not tensor.is_contiguous():
        tensor.data = tensor.data.contiguous()
    return tensor.data.view(-1)


def frozen_intervals(module: torch.nn.Module, stage: int) -> Iterator[Interval]:
    """This rank's share of frozen parameters for a save, each stored by one rank, and on rank 0 the buffers."""
    rank, world = dist.get_rank(), dist.get_world_size()
    whole = frozen_tensors(module)
    for name in [name for name, (kind, _) in whole.items() if kind == BUFFER]:
        buffer = whole.pop(name)[1]
        if rank == 0 and buffer.numel():
            yield Interval(name, BUFFER, 0, buffer)
    if stage == 3:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                del whole[name]
                yield from _stage3_frozen(name, parameter, rank, world)
    rows = [
        Row(name, state, 0, values.numel(), dtype_name(values.dtype))
        for name, (state, values) in whole.items()
        if values.numel()
    ]
    for row in frozen_shares(rows, world)[rank] if rows else ():
        yield Interval(row.parameter, row.state, row.start, whole[row.parameter][1][row.start : row.end])


def _stage3_frozen(name: str, parameter: Any, rank: int, world: int) -> Iterator[Interval]:
    share = -(-parameter.ds_numel // world)
    count = min(parameter.ds_numel, (rank + 1) * share) - rank * share
    if getattr(parameter, "ds_persist", False) and parameter.data.numel() == parameter.ds_numel:
        values = parameter.data.reshape(-1)[rank * share :]
    else:
        values = parameter.ds_tensor.data.reshape(-1)
    if count > 0:
        yield Interval(name, FROZEN, rank * share, values[:count])


def whole_or_partitioned(module: torch.nn.Module, stage: int) -> Iterator[Interval]:
    """What this rank must read back of frozen parameters and buffers: all of each, or its partition under stage 3."""
    for name, (kind, values) in frozen_tensors(module).items():
        if stage == 3 and kind == FROZEN:
            yield from _stage3_frozen(name, module.get_parameter(name), dist.get_rank(), dist.get_world_size())
        elif values.numel():
            yield Interval(name, kind, 0, values)


def share_out(intervals: Iterator[Interval]) -> Iterator[Interval]:
    """This rank's part of intervals that every rank holds whole: element ranges of about equal size (stage 0)."""
    rank, world = dist.get_rank(), dist.get_world_size()
    for each in intervals:
        share = -(-each.values.numel() // world)
        part = each.values[rank * share : (rank + 1) * share]
        if part.numel():
            yield Interval(each.parameter, each.state, each.start + rank * share, part)


def to_piece(interval: Interval, memory: TorchDevice | None = None, *, immutable: bool = False) -> StatePiece:
    """The piece `checkpoint/` takes: a view on the interval's memory, the host's or that of the device `memory`."""
    values = interval.values.detach()
    row = Row(
        interval.parameter, interval.state, interval.start, interval.start + values.numel(), dtype_name(values.dtype)
    )
    if memory is None or values.device.type == "cpu":
        return Piece(row, host_bytes(values), immutable)
    return TensorPiece(row, values.contiguous().view(torch.uint8), memory, immutable)


def host_bytes(values: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Bytes of a 1-D tensor as a numpy view; a device tensor is copied to the host first."""
    host = values.detach().contiguous()
    return host.cpu().view(torch.uint8).numpy()


def check_fits(
    table: Mapping[str, Mapping[str, Any]], stored: Mapping[str, Any], *, allow_refreeze: bool = False
) -> None:
    """Refuse a checkpoint whose parameters are not this model's.

    Args:
        table: this model's `parameter_table`.
        stored: the manifest's table, name -> facts with `.shape` and `.trained`.
        allow_refreeze: whether others may be trained here than there.

    Raises:
        CheckpointIncompatible: names the first parameter that differs and both shapes.
    """
    for name, facts in table.items():
        there = stored.get(name)
        if there is None:
            raise CheckpointIncompatible(
                f"parameter {name} (shape {facts['shape']}) is not in the checkpoint",
                hint="the model or the task changed since it was written: start a new run",
            )
        if list(there.shape) != list(facts["shape"]):
            raise CheckpointIncompatible(
                f"parameter {name} has shape {facts['shape']} here and {list(there.shape)} in the checkpoint",
                hint="the model or the number of labels changed since it was written: start a new run",
            )
        if there.trained != facts["trained"] and not allow_refreeze:
            here, was = ("trained", "frozen") if facts["trained"] else ("frozen", "trained")
            raise CheckpointIncompatible(
                f"parameter {name} is {here} here and was {was} in the checkpoint",
                hint="transfer.strategy or transfer.n changed since it was written: start a new run",
            )
    gone = sorted(set(stored) - set(table))
    if gone:
        raise CheckpointIncompatible(
            f"the checkpoint holds parameter {gone[0]}, which this model does not have",
            hint="the model or the task changed since it was written: start a new run",
        )
