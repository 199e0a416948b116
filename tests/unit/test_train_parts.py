"""The pure parts of training: cadence, learning rate, step seeds, precision, DeepSpeed's configuration, what fits a checkpoint."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from tlcore.engine.config import deepspeed_config, merge
from tlcore.engine.optimizer import build_optimizer, learning_rate
from tlcore.engine.precision import choose_precision
from tlcore.errors import CheckpointIncompatible, RequestError
from tlcore.recipe import plan_batch, recipe_from_dict
from tlcore.train.cadence import Cadence
from tlcore.train.stepper import seed_everything, step_seed

CPU = torch.device("cpu")


def recipe(**sections: Any) -> Any:
    base: dict[str, Any] = {
        "name": "unit",
        "task": "text-classification",
        "model": {"source": "some/where"},
        "data": {"train": "x.csv"},
        "storage": "runs",
    }
    return recipe_from_dict(base | sections)


@pytest.mark.parametrize(
    ("cadence", "due"),
    [
        (Cadence(None, None, None), []),
        (Cadence(4, None, None), [4, 8, 12, 16, 20]),
        (Cadence(None, 2, None), [10, 20]),
        (Cadence(7, 1, None), [5, 7, 10, 14, 15, 20]),
    ],
)
def test_saves_fall_due_by_steps_and_epochs(cadence: Cadence, due: list[int]) -> None:
    assert [step for step in range(1, 21) if cadence.due_by_step(step, steps_per_epoch=5)] == due


def test_saves_fall_due_by_time() -> None:
    assert not Cadence(None, None, 2.0).due_by_time(119.9)
    assert Cadence(None, None, 2.0).due_by_time(120.0)
    assert not Cadence(3, None, None).due_by_time(1e9)


def test_linear_rate_warms_up_then_falls_to_nothing() -> None:
    given = recipe(train={"learning_rate": 1.0, "warmup_ratio": 0.2})
    rates = [learning_rate(given, step, 10) for step in range(10)]
    assert rates[:2] == pytest.approx([1 / 3, 2 / 3])
    assert rates[2:] == pytest.approx([1 - k / 8 for k in range(8)])


def test_cosine_and_constant_rates() -> None:
    cosine = recipe(train={"learning_rate": 2.0, "warmup_ratio": 0.0, "lr_schedule": "cosine"})
    assert learning_rate(cosine, 5, 10) == pytest.approx(1.0)
    assert learning_rate(cosine, 0, 10) == pytest.approx(2.0)
    constant = recipe(train={"learning_rate": 2.0, "warmup_ratio": 0.0, "lr_schedule": "constant"})
    assert {learning_rate(constant, step, 10) for step in range(10)} == {2.0}


def test_rates_are_never_negative_nor_above_the_peak() -> None:
    for schedule in ("linear", "cosine", "constant"):
        given = recipe(train={"learning_rate": 0.5, "warmup_ratio": 0.9, "lr_schedule": schedule})
        for total in (1, 2, 3, 17):
            assert all(0 <= learning_rate(given, step, total) <= 0.5 for step in range(total))


def test_step_seeds_differ_by_step_rank_and_seed() -> None:
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(4)}
    assert len(seeds) == 600
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_precision_follows_the_device() -> None:
    assert choose_precision(recipe(), CPU) == "fp32"
    assert choose_precision(recipe(train={"precision": "bf16"}), CPU) == "bf16"


def test_a_precision_that_the_device_has_not_is_refused() -> None:
    with pytest.raises(RequestError, match="fp16 has no loss-scaled training on CPU"):
        choose_precision(recipe(train={"precision": "fp16"}), CPU)


def test_deepspeed_gets_the_recipes_batch_and_stage() -> None:
    given = recipe(
        train={"global_batch_size": 24, "micro_batch_size": 3, "gradient_clip": 0.5},
        deepspeed={"zero_stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"},
        resources={"workers": 2},
    )
    config = deepspeed_config(given, plan_batch(given, 2), "fp32", "cpu", trained_elements=1000)
    assert (config["train_batch_size"], config["gradient_accumulation_steps"]) == (24, 4)
    assert config["gradient_clipping"] == 0.5
    zero = config["zero_optimization"]
    assert (zero["stage"], zero["offload_optimizer"]["device"], zero["offload_param"]["device"]) == (3, "cpu", "cpu")
    assert zero["reduce_bucket_size"] == 1000
    assert config["timers"]["throughput"]["enabled"] is False, "it waits for the device at every forward"
    odd = deepspeed_config(given, plan_batch(given, 2), "fp32", "cpu", trained_elements=999)
    assert odd["zero_optimization"]["allgather_bucket_size"] == 1000, "DeepSpeed refuses an odd one"


def test_extra_configuration_is_laid_over_section_by_section() -> None:
    given = recipe(deepspeed={"extra": {"zero_optimization": {"reduce_bucket_size": 7}, "wall_clock_breakdown": True}})
    config = deepspeed_config(given, plan_batch(given, 1), "fp32", "cpu", trained_elements=1000)
    assert config["zero_optimization"]["reduce_bucket_size"] == 7
    assert config["zero_optimization"]["stage"] == 2
    assert config["wall_clock_breakdown"] is True
    assert merge({"a": {"b": 1}}, {"a": 2}) == {"a": 2}


OPTIMIZERS = ["adamw", "adam", "sgd", "lion", "adagrad", "muon"]


def optimizer_over(name: str, *parameters: torch.nn.Parameter, **settings: Any) -> torch.optim.Optimizer:
    given = recipe(train={"optimizer": name, "learning_rate": 0.1}, deepspeed={"zero_stage": 0})
    groups = [{"params": [each], "muon": each.ndim == 2, **settings} for each in parameters]
    return build_optimizer(given, groups)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_named_optimizer_steps_downhill(name: str) -> None:
    vector, matrix = torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.eye(3) + 1)
    optimizer = optimizer_over(name, vector, matrix, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        (vector.square().sum() + matrix.square().sum()).backward()
        optimizer.step()
    assert (vector < 1).all()
    assert matrix.square().sum() < (torch.eye(3) + 1).square().sum()


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_decay_alone_shrinks_by_rate_times_decay(name: str) -> None:
    vector, matrix = torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.ones(3, 3))
    optimizer = optimizer_over(name, vector, matrix, weight_decay=0.5)
    for each in (vector, matrix):
        each.grad = torch.zeros_like(each)
    optimizer.step()
    for each in (vector, matrix):
        torch.testing.assert_close(each.detach(), torch.full_like(each, 1 - 0.1 * 0.5))


def test_lion_does_what_the_paper_says() -> None:
    """Three steps of program 1 of arXiv:2302.06675, written out."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = optimizer_over("lion", weight, weight_decay=0.2)
    expected, momentum = weight.detach().clone(), torch.zeros(3)
    for step in range(3):
        gradient = torch.tensor([0.3, -1.0, 0.5]) * (-1) ** step
        weight.grad = gradient.clone()
        optimizer.step()
        update = torch.sign(0.9 * momentum + 0.1 * gradient)
        expected = expected - 0.1 * (update + 0.2 * expected)
        momentum = 0.99 * momentum + 0.01 * gradient
        torch.testing.assert_close(weight.detach(), expected)
    torch.testing.assert_close(optimizer.state[weight]["exp_avg"], momentum)


def test_adagrad_equals_torchs_and_decays_by_group() -> None:
    ours = [torch.nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2)]
    theirs = [torch.nn.Parameter(each.detach().clone()) for each in ours]
    groups = [{"params": [each], "weight_decay": decay} for each, decay in zip(theirs, (0.3, 0.0), strict=True)]
    reference = torch.optim.Adagrad(groups, lr=0.1)
    given = recipe(train={"optimizer": "adagrad", "learning_rate": 0.1})
    groups = [{"params": [each], "weight_decay": decay} for each, decay in zip(ours, (0.3, 0.0), strict=True)]
    optimizer = build_optimizer(given, groups)
    assert not optimizer.state, "state made before ZeRO has its partitions would be whole, and never used"
    for step in range(4):
        for each in (*ours, *theirs):
            each.grad = torch.tensor([0.5, -0.25]) * (step + 1)
        optimizer.step()
        reference.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.equal(ours[0], ours[1])


def test_all_random_numbers_follow_from_the_step() -> None:
    def drawn(seed: int) -> tuple[float, float, float]:
        seed_everything(seed)
        return torch.rand(1).item(), float(np.random.rand()), random.random()

    one, other = step_seed(3, 100, 0), step_seed(3, 100, 1)
    first = drawn(one)
    different = drawn(other)
    assert first == drawn(one)
    assert all(a != b for a, b in zip(first, different, strict=True))


def test_a_changed_model_is_refused_by_name_with_both_shapes() -> None:
    from tlcore.checkpoint.intervals import ParameterFacts
    from tlcore.engine.state import check_fits, parameter_table

    table = parameter_table(torch.nn.Linear(3, 2))
    stored = {
        "weight": ParameterFacts((2, 3), "float32", True, None),
        "bias": ParameterFacts((2,), "float32", True, None),
    }
    check_fits(table, stored)
    for change, words in [
        ({"weight": ParameterFacts((5, 3), "float32", True, None)}, r"weight has shape \[2, 3\] here and \[5, 3\]"),
        ({"bias": ParameterFacts((2,), "float32", False, None)}, "bias is trained here and was frozen"),
        ({"more": ParameterFacts((1,), "float32", True, None)}, "holds parameter more"),
    ]:
        with pytest.raises(CheckpointIncompatible, match=words):
            check_fits(table, stored | change)
    with pytest.raises(CheckpointIncompatible, match=r"bias .* is not in the checkpoint"):
        check_fits(table, {"weight": stored["weight"]})


def test_tied_parameters_are_told_once() -> None:
    from tlcore.engine.state import parameter_table

    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(2, 2, bias=False)
            self.second = torch.nn.Linear(2, 2, bias=False)
            self.second.weight = self.first.weight

    table = parameter_table(Tied())
    assert table["first.weight"]["tied_to"] is None
    assert table["second.weight"]["tied_to"] == "first.weight"
