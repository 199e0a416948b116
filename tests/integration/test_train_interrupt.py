"""A trial that is interrupted stops on all ranks at one step, commits it, and goes on from there as if nothing had been.

Two gloo ranks with DeepSpeed, a directory as the store.
"""

from __future__ import annotations

import pytest
from rank_server import start

from tests.small_model import make_small_bert
from tlcore.train.session import PROGRESS_EVERY_STEPS

pytestmark = pytest.mark.integration

CASES = {
    "stage-1": {"stage": 1, "asked_at": 2, "by": 0, "slow_s": 1e9},
    "stage-3": {"stage": 3, "asked_at": 6, "by": 1, "slow_s": 1e9},
    "slow-steps": {"stage": 2, "asked_at": 2, "by": 1, "slow_s": 0.0},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Every case, in one launch."""
    directory = tmp_path_factory.mktemp("interrupt")
    model, storage = str(make_small_bert(directory / "model")), f"file://{directory}/store"
    cases = [
        {
            **case,
            "name": name,
            "model": model,
            "storage": storage,
            "settings": {"deepspeed": {"zero_stage": case["stage"]}},
        }
        for name, case in CASES.items()
    ]
    (found,) = start("ranks_interrupt", [{"world": 2, "cases": cases}], directory / "ranks")
    return {one["name"]: one for one in found}


@pytest.mark.parametrize("name", CASES)
def test_all_ranks_stop_at_the_same_step_and_it_is_committed(results, name):
    found = results[name]
    step = found["left"]["step"]
    assert found["lefts"] == [[step, True], [step, True]]
    asked = CASES[name]["asked_at"] + 1  # in this step, counted from 1
    at_the_next_look = -(-asked // PROGRESS_EVERY_STEPS) * PROGRESS_EVERY_STEPS
    assert step == (asked if name == "slow-steps" else at_the_next_look)
    assert (found["before"], found["committed"], found["left"]["checkpoint_step"]) == (step, [step], step)
    assert found["left"]["metrics"] == {}


@pytest.mark.parametrize("name", CASES)
def test_one_that_is_interrupted_before_its_first_step_stays_where_it_is(results, name):
    found = results[name]
    assert found["at_once"]["interrupted"]
    assert found["at_once"]["step"] == found["at_once"]["checkpoint_step"] == found["left"]["step"]


@pytest.mark.parametrize("name", CASES)
def test_the_losses_are_those_of_the_uninterrupted_trial(results, name):
    found = results[name]
    assert found["pieced"] == found["whole"]
    assert found["end"]["metrics"] == found["last"]["metrics"]
    assert not found["end"]["interrupted"]
