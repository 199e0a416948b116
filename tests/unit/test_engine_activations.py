"""Counted passes: the same over fake tensors as over real ones, and smaller where activations are made again."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from tiny_text_model import tiny_recipe
from torch import nn

from tlcore.engine.activations import checkpoint_activations, count_pass, nothing_allocated
from tlcore.errors import RequestError
from tlcore.tasks import build_task
from tlcore.train.estimate import Estimator


def counted(fake: bool, samples: int = 4, frozen: bool = False, dtype: torch.dtype = torch.float32):
    with nothing_allocated() if fake else nullcontext():
        model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16), nn.Dropout(0.1), nn.Linear(16, 2)).to(
            dtype
        )
        if frozen:
            model[0].requires_grad_(False)
            model[2].requires_grad_(False)
        inputs = torch.zeros(samples, 16, dtype=dtype)
        return count_pass(model, lambda: model(inputs).sum())


@pytest.mark.parametrize("frozen", [False, True])
def test_fake_tensors_count_as_real_ones_do(frozen):
    assert counted(True, frozen=frozen) == counted(False, frozen=frozen)


def test_gradients_arrive_from_the_last_layer_to_the_first():
    names = [arrival.name.partition(".")[0] for arrival in counted(True).arrivals]
    assert names == sorted(names, reverse=True)


def test_what_is_frozen_saves_nothing_and_gives_no_gradient():
    whole, frozen = counted(True), counted(True, frozen=True)
    assert {arrival.name for arrival in frozen.arrivals} == {"4.bias", "4.weight"}
    assert frozen.forward_bytes < whole.forward_bytes


def test_half_the_bytes_in_16_bits():
    assert counted(True, dtype=torch.bfloat16).forward_bytes == pytest.approx(counted(True).forward_bytes / 2, rel=0.1)


def test_nothing_is_allocated_and_torch_is_left_as_it_was():
    before = nn.Module._apply
    with nothing_allocated():
        held = nn.Linear(1_000_000, 1_000_000)  # 4 TB
    assert held.weight.shape == (1_000_000, 1_000_000)
    assert nn.Module._apply is before


def test_a_whole_model_recomputes(tmp_path):
    plain = tiny_recipe(tmp_path, train__micro_batch_size=8)
    again = plain.model_copy(update={"train": plain.train.model_copy(update={"activation_checkpointing": True})})
    estimator = Estimator()
    sizes = [estimator.estimate(recipe, on_gpu=True)["device_bytes"] for recipe in (plain, again)]
    assert sizes[1] < sizes[0]


@pytest.mark.filterwarnings("error::FutureWarning")
def test_recomputing_is_turned_on_by_the_name_that_transformers_wants(tmp_path):
    model = build_task(tiny_recipe(tmp_path)).build_model(from_scratch=True)
    checkpoint_activations(model)
    assert all(layer.gradient_checkpointing for layer in model.bert.encoder.layer)


def test_a_model_that_cannot_recompute_is_refused():
    with pytest.raises(RequestError, match="Linear does not offer it"):
        checkpoint_activations(nn.Linear(2, 2))


STRATEGIES = ["full", "head", "gradual", "layerwise", "lora", "dora", "qlora", "bitfit", "scratch"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_is_counted(tmp_path, strategy):
    found = Estimator().estimate(tiny_recipe(tmp_path, transfer__strategy=strategy), on_gpu=False)
    assert found["device_bytes"] == 0
    assert found["host_bytes"] > 0


def test_what_is_frozen_by_name_takes_no_state(tmp_path):
    estimator = Estimator()
    plain, frozen = (
        estimator.estimate(tiny_recipe(tmp_path, **more), on_gpu=False)["host_bytes"]
        for more in ({}, {"transfer__freeze": "encoder"})
    )
    assert frozen < plain


def test_a_schedule_is_counted_at_its_end_and_with_the_state_that_is_handed_over(tmp_path):
    estimator = Estimator()
    full, all_of_it, one_block = (
        estimator.estimate(tiny_recipe(tmp_path, **more), on_gpu=False)["host_bytes"]
        for more in (
            {},
            {"transfer__strategy": "gradual"},
            {"transfer__strategy": "gradual", "transfer__schedule": [0.5]},
        )
    )
    assert one_block < full < all_of_it
