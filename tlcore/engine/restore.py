"""Putting stored state back into a fresh DeepSpeed engine.

Owns what DeepSpeed has no call for: giving the optimizer its state tensors before the first step and each group its own count of
steps, and refreshing the working weights from restored masters. Called by `sharded.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch

from tlcore.checkpoint import Peers, Piece, Row
from tlcore.engine.carry import StateSource
from tlcore.engine.state import BUFFER, FROZEN, MASTER, Interval, dtype_name, flat_partitions, host_bytes

_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def base_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer below DeepSpeed's ZeRO wrapper, if there is one."""
    optimizer = engine.optimizer
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def prime_optimizer(engine: Any, stage: int) -> None:
    """Give the optimizer its state tensors, empty, without changing anything: one step with zero gradients at rate 0 and without
    weight decay, which Adam, SGD and Adagrad would take for a gradient. Those that are all there stay as they are: the step is
    a pass over the whole state, and what is restored overwrites it."""
    inner = base_optimizer(engine)
    if all(inner.state.get(each) for each in _stepped(engine, stage, inner)):
        return
    held = {name: [group.get(name) for group in inner.param_groups] for name in ("lr", "weight_decay")}
    for group in inner.param_groups:
        group.update({name: 0.0 for name in held if name in group})
    try:
        _zero_gradient_step(engine, stage, inner)
    finally:
        for number, group in enumerate(inner.param_groups):
            group.update({name: values[number] for name, values in held.items() if name in group})


def _zero_gradient_step(engine: Any, stage: int, inner: torch.optim.Optimizer) -> None:
    if stage == 3:
        zero = engine.optimizer
        for index, flat in enumerate(zero.fp32_partitioned_groups_flat):
            with _zero_gradient(flat):
                zero._optimizer_step(index)
        return
    with _zero_gradient(*_stepped(engine, stage, inner)):
        inner.step()


def _stepped(engine: Any, stage: int, inner: torch.optim.Optimizer) -> list[torch.Tensor]:
    """What the optimizer keeps state for on this rank: parameters, or the partitions that stand for them."""
    if stage > 0:
        return flat_partitions(engine, stage)
    return [each for group in inner.param_groups for each in group["params"] if each.requires_grad]


class _zero_gradient:
    """Zero gradients on these tensors inside the block; what they had before (an offload's buffer, or none) after it."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self._before = [(tensor, tensor.grad) for tensor in tensors]

    def __enter__(self) -> None:
        for tensor, _ in self._before:
            tensor.grad = torch.zeros_like(tensor)

    def __exit__(self, *_: object) -> None:
        for tensor, gradient in self._before:
            tensor.grad = gradient


def _group_states(engine: Any, stage: int) -> Iterator[tuple[tuple[str, ...], list[dict[str, Any]]]]:
    """For each parameter group: the names of its parameters, and what the optimizer keeps for each tensor that stands for them.

    Several groups of the same names where stage 3 cuts one up.
    """
    inner, zero = base_optimizer(engine), engine.optimizer
    if stage == 0:
        held = [(number, group["params"]) for number, group in enumerate(inner.param_groups)]
    else:
        group_of = zero.sub_group_to_group_id if stage == 3 else range(len(inner.param_groups))
        held = [(group_of[number], [flat]) for number, flat in enumerate(flat_partitions(engine, stage))]
    for number, tensors in held:
        names = tuple(inner.param_groups[number].get("names", ()))
        yield names, [inner.state[each] for each in tensors if each in inner.state]


def optimizer_steps(engine: Any, stage: int) -> tuple[int, dict[str, int]]:
    """Steps the optimizer has really taken (an fp16 overflow skips one), and those of the parameters that joined later and have
    taken fewer, by name."""
    counted = [
        (names, max(int(state["step"]) for state in states))
        for names, states in _group_states(engine, stage)
        if states and "step" in states[0]
    ]
    most = max((steps for _, steps in counted), default=0)
    return most, {name: steps for names, steps in counted if steps < most for name in names}


def set_optimizer_steps(engine: Any, stage: int, steps_of: Callable[[tuple[str, ...]], int]) -> None:
    """Set the step count that Adam's bias correction reads, of each group by the names of its parameters.

    A group that begins with empty moments must count from 0: late in training, uncorrected first updates of Adam would be three
    times the learning rate.
    """
    for names, states in _group_states(engine, stage):
        steps = steps_of(names)
        for state in states:
            if torch.is_tensor(state.get("step")):
                state["step"].fill_(steps)
            elif "step" in state:
                state["step"] = steps


def stored_steps(facts: Mapping[str, Any], scalars: Mapping[str, Any]) -> Callable[[tuple[str, ...]], int]:
    """What `set_optimizer_steps` takes, for state whose parameters are described by `facts` (name -> with `.trained`): of a group,
    the most that any of its parameters has taken; 0 where all were frozen."""
    most, late = int(scalars["optimizer_steps"]), scalars.get("late_steps", {})
    return lambda names: max((late.get(name, most) if facts[name].trained else 0 for name in names), default=most)


def scaler_state(engine: Any) -> dict[str, float] | None:
    """The dynamic loss scaler's numbers under fp16, None elsewhere."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if scaler is None or not getattr(scaler, "dynamic", False):
        return None
    return {field: getattr(scaler, field) for field in _SCALER_FIELDS if hasattr(scaler, field)}


def set_scaler_state(engine: Any, state: dict[str, float] | None) -> None:
    """Put back what `scaler_state` gave, where this engine scales its loss: another number format does not."""
    if scaler_state(engine) is None:
        return
    for field, value in (state or {}).items():
        setattr(engine.optimizer.loss_scaler, field, value)


@dataclass(frozen=True)
class Stored:
    """Live memory, and what is stored for it: under another state's name and in another number format where it was frozen."""

    interval: Interval
    state: str
    dtype: torch.dtype


def as_stored(intervals: Iterable[Interval], table: Mapping[str, Any]) -> Iterator[Stored]:
    """What to read for each interval. `table` is the manifest's, name -> facts with `.trained` and `.dtype`.

    A parameter that was frozen has no optimizer state: what is live stays, fresh. One that is frozen now was a master.
    """
    for each in intervals:
        facts = table[each.parameter]
        if each.state == FROZEN and facts.trained:
            yield Stored(each, MASTER, torch.float32)
        elif each.state in (FROZEN, BUFFER):  # in the format that the writer trained in
            yield Stored(each, each.state, getattr(torch, facts.dtype))
        elif facts.trained:
            yield Stored(each, each.state, each.values.dtype)
        elif each.state == MASTER:
            yield Stored(each, FROZEN, getattr(torch, facts.dtype))


def states_of_masters(here: Mapping[str, Mapping[str, Any]], stored: Mapping[str, Any], stage: int) -> frozenset[str]:
    """Names of the stored states that must be there before working weights are refreshed; the same on every rank.

    Args:
        here: this model's table of parameters. stored: the manifest's.
    """
    newly = any(facts["trained"] and not stored[name].trained for name, facts in here.items())
    # Stage 3 gathers small parameters for good in the refresh, the frozen ones too.
    return frozenset({MASTER, FROZEN}) if newly or stage == 3 else frozenset({MASTER})


def read_intervals(
    source: StateSource,
    stored: Iterable[Stored],
    peers: Peers | None,
    first: AbstractSet[str],
    then: Callable[[], None],
) -> None:
    """Fill each interval's live memory from `source`, together with `peers`; device memory goes through one host copy.

    `then` is called once the states in `first` are in place, while the rest is still being read: the optimizer's state is twice
    what the masters are, and refreshing weights takes a tenth of a restore at stages 1 and 2.
    """
    staged: list[tuple[Stored, torch.Tensor]] = []
    pieces: list[Piece] = []
    for what in stored:
        each = what.interval
        same = each.values.dtype == what.dtype
        direct = same and each.values.device.type == "cpu" and each.values.is_contiguous()
        host = each.values if direct else torch.empty(each.values.shape, dtype=what.dtype)
        row = Row(each.parameter, what.state, each.start, each.start + host.numel(), dtype_name(host.dtype))
        pieces.append(Piece(row, host_bytes(host)))
        if not direct:
            staged.append((what, host))

    def put(*, early: bool) -> None:
        for what, host in staged:
            if (what.state in first) == early:
                what.interval.values.copy_(host)

    def masters_are_there() -> None:
        put(early=True)
        then()

    source.read_into(pieces, peers, first, masters_are_there)
    put(early=False)


def let_go_of_gathered(engine: Any, stage: int) -> None:
    """Forget stage 3's gathered copies of small parameters, so that their partitions are what is read into and gathered anew.

    They are there where this engine was restored before, from a checkpoint that turned out to be damaged.
    """
    if stage == 3 and engine.optimizer.persistent_parameters:
        engine.optimizer.persistent_parameters[0].partition(engine.optimizer.persistent_parameters)


def refresh_working_weights(engine: Any, stage: int) -> None:
    """Cast restored masters into the weights that the next forward pass uses.

    Stage 3 keeps a second copy in each parameter's own partition, and gathered copies of small parameters. DeepSpeed's setters
    leave both stale, and the first step after a restore would run on old weights without a word.
    """
    zero = engine.optimizer
    if stage == 3:
        for index in range(len(zero.fp32_partitioned_groups_flat)):
            zero._reassign_or_swap_out_partitioned_parameters(index)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
    elif stage > 0:
        zero.update_lp_params()
