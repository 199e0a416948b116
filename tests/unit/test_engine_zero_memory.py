"""What DeepSpeed holds, as allocations: known sums, and that each setting moves them the way it should."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tlcore.engine.activations import Arrival, PassMemory
from tlcore.engine.zero_memory import Setup, Weight, rank_memory

MILLION = 1_000_000
WEIGHTS = [
    Weight("embedding", 40 * MILLION, True),
    Weight("layer", 40 * MILLION, True),
    Weight("bias", 1000, True, 1),
]
PASSES = PassMemory(0, tuple(Arrival(weight.name, 0) for weight in reversed(WEIGHTS)))
PLAIN = Setup(0, 2, 4, True, 80_001_000, "adamw", False, False, False)


def device(setup, weights=WEIGHTS, passes=PASSES):
    return rank_memory(setup, weights, 0, passes).device_bytes / 1e6


def test_stage_0_holds_weights_gradients_moments_and_one_flat_copy_of_all_gradients():
    assert device(PLAIN) == pytest.approx(80 * (4 + 4 + 8 + 4), rel=0.001)


@pytest.mark.parametrize(("optimizer", "states"), [("adamw", 2), ("adam", 2), ("sgd", 1)])
def test_moments_of_an_optimizer(optimizer, states):
    with_it = device(replace(PLAIN, optimizer=optimizer))
    assert with_it == pytest.approx(80 * (4 + 4 + 4 + 4 * states), rel=0.001)


def test_lions_step_copies_its_largest_group_while_the_flat_gradients_are_gone():
    assert device(replace(PLAIN, optimizer="lion")) == pytest.approx(80 * (4 + 4 + 4 + 4), rel=0.001)


def test_16_bits_keep_masters_at_stage_1_alone_a_partition_of_them():
    one, eight = (device(replace(PLAIN, stage=1, item_bytes=2, world_size=size)) for size in (1, 8))
    assert one - eight > 80 * 12 * 0.8 * 7 / 8


def test_frozen_weights_have_no_gradient_nor_moments():
    frozen = [replace(weight, trained=weight.name != "embedding") for weight in WEIGHTS]
    passes = PassMemory(0, PASSES.arrivals[:-1])
    assert device(PLAIN, frozen, passes) == pytest.approx(40 * 4 + 40 * 20, rel=0.001)


def test_activations_stand_beside_the_gradients_that_are_there_when_they_are():
    early = PassMemory(900 * MILLION, PASSES.arrivals)
    assert device(PLAIN, passes=early) == pytest.approx(80 * 12 + 900, rel=0.001)  # no gradient is there yet
    accumulating = replace(PLAIN, accumulates=True)
    assert device(accumulating, passes=early) == pytest.approx(80 * 16 + 900, rel=0.001)  # the first micro-batch's are


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloaded_optimizer_state_is_in_host_memory(stage):
    setup = replace(PLAIN, stage=stage, item_bytes=2)
    kept = rank_memory(setup, WEIGHTS, 0, PASSES)
    moved = rank_memory(replace(setup, offload_optimizer=True), WEIGHTS, 0, PASSES)
    assert moved.device_bytes < kept.device_bytes
    assert moved.host_bytes >= kept.host_bytes + 80 * MILLION * 12 / 2


def test_offloaded_parameters_leave_the_device():
    setup = replace(PLAIN, stage=3, item_bytes=2, offload_optimizer=True)
    kept = rank_memory(setup, WEIGHTS, 0, PASSES)
    moved = rank_memory(replace(setup, offload_param=True), WEIGHTS, 0, PASSES)
    assert moved.device_bytes < kept.device_bytes
    assert moved.host_bytes > kept.host_bytes


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_more_workers_take_less_each(stage):
    sizes = [device(replace(PLAIN, stage=stage, world_size=size)) for size in (2, 4, 8)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_at_stage_3_only_a_net_from_scratch_is_ever_whole_in_a_ranks_memory():
    setup = replace(PLAIN, stage=3, item_bytes=2, world_size=64)
    mapped = rank_memory(setup, WEIGHTS, 0, PASSES)
    drawn = rank_memory(replace(setup, from_scratch=True), WEIGHTS, 0, PASSES)
    assert mapped.host_bytes == 0
    assert drawn == replace(mapped, host_bytes=pytest.approx(80 * MILLION * 4, rel=0.001))


def test_a_cpu_has_one_memory():
    found = rank_memory(replace(PLAIN, on_gpu=False), WEIGHTS, 0, PASSES)
    assert found.device_bytes == 0
    assert found.host_bytes == pytest.approx(80 * MILLION * 20, rel=0.001)
