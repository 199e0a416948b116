"""What of an engine's state is stored, and the few numbers that go with it: on torch's own optimizers, without an engine."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler

from tlcore.engine.restore import optimizer_steps, prime_optimizer, scaler_state, set_optimizer_steps, set_scaler_state
from tlcore.engine.state import trained_intervals

pytestmark = pytest.mark.unit


class Scored(torch.nn.Module):
    """A trained parameter without dimensions, as the temperature of a contrastive loss is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2, 3))
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.0))


def stepped(optimizer: type[torch.optim.Optimizer], steps: int = 3, **more: Any) -> Any:
    """As an engine of stage 0 holds it, after some steps."""
    module = Scored()
    groups = [{"params": [parameter], "names": [name]} for name, parameter in module.named_parameters()]
    made = optimizer(groups, lr=0.1, **more)  # type: ignore[arg-type]
    for _ in range(steps):
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        made.step()
    return SimpleNamespace(module=module, optimizer=made)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.Adagrad])
def test_the_count_of_steps_is_no_state_of_a_parameter_without_dimensions(
    optimizer: type[torch.optim.Optimizer],
) -> None:
    """It has the parameter's shape there; stages 1 to 3, whose partitions are flat, neither wrote nor read one."""
    held: dict[str, set[str]] = {}
    for each in trained_intervals(stepped(optimizer), 0):
        held.setdefault(each.parameter, set()).add(each.state)
        assert each.values.ndim == 1
    assert held["logit_scale"] == held["weight"]
    assert "step" not in held["weight"] and len(held["weight"]) > 1


def test_each_groups_steps_are_read_and_set() -> None:
    engine = stepped(torch.optim.AdamW)
    assert optimizer_steps(engine, 0) == (3, {})
    set_optimizer_steps(engine, 0, lambda names: 1 if names == ("logit_scale",) else 4)
    assert optimizer_steps(engine, 0) == (4, {"logit_scale": 1})
    assert optimizer_steps(stepped(torch.optim.SGD, momentum=0.9), 0) == (0, {})


@pytest.mark.parametrize("steps", [0, 2])
def test_state_is_made_where_there_is_none_and_left_where_it_is(steps: int) -> None:
    """A restore onto an engine that has trained stepped over the whole state, only to overwrite it."""
    engine = stepped(torch.optim.AdamW, steps)
    before = {name: parameter.detach().clone() for name, parameter in engine.module.named_parameters()}
    taken: list[int] = []
    engine.optimizer.register_step_post_hook(lambda *_: taken.append(1))
    prime_optimizer(engine, 0)
    assert len(taken) == (steps == 0)
    assert all(engine.optimizer.state[each]["exp_avg"].any() == (steps > 0) for each in engine.module.parameters())
    assert all(torch.equal(parameter, before[name]) for name, parameter in engine.module.named_parameters())
    assert {group["lr"] for group in engine.optimizer.param_groups} == {0.1}


def scaled_by(scaler: Any) -> Any:
    return SimpleNamespace(optimizer=SimpleNamespace(loss_scaler=scaler))


def dynamic(scale: float = 2.0**16) -> DynamicLossScaler:
    """Doubles after 3 good steps; of overflows only the second one in a row halves."""
    return DynamicLossScaler(scale, 3, 1, 2, False)


def scales(scaler: DynamicLossScaler, overflows: str) -> list[float]:
    """The scale after each step; x overflows."""
    seen = []
    for each in overflows:
        scaler.update_scale(each == "x")
        seen.append(scaler.loss_scale)
    return seen


@pytest.mark.parametrize("before", ["", ".", "x", "..x", "xx..", "....x", "xx.x...x"])
def test_a_restored_scaler_goes_on_as_the_saved_one(monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    monkeypatch.setattr("deepspeed.comm.get_rank", lambda: 0)  # which it asks before it writes a line
    saved, fresh = dynamic(), dynamic(8.0)
    scales(saved, before)
    stored = json.loads(json.dumps(scaler_state(scaled_by(saved))))
    set_scaler_state(scaled_by(fresh), stored)
    after = "....x.xx......"
    assert scales(fresh, after) == scales(saved, after)
    assert vars(fresh) == vars(saved)


def test_where_nothing_is_scaled_nothing_is_stored_or_set() -> None:
    static = LossScaler(1.0)
    for engine in (scaled_by(static), SimpleNamespace(optimizer=torch.optim.SGD([torch.ones(1)], lr=1.0))):
        assert scaler_state(engine) is None
        set_scaler_state(engine, {"cur_scale": 8.0})
    assert static.loss_scale == 1.0
    fresh = dynamic()
    set_scaler_state(scaled_by(fresh), None)  # of a checkpoint that was trained in another format
    assert vars(fresh) == vars(dynamic())
