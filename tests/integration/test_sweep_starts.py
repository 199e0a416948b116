"""Slots and ranks that die before a trial has begun in them, on real Ray: what is lost is a start, and no trial for it."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager, suppress

import pytest
import ray
from ray_fixtures import CPUS
from sweep_bench import Notes, kill_slot, leftovers, make_recipe, options, read_trace

from tlcore.sweep import run_sweep
from tlcore.sweep.slots.failures import StartFailed

pytestmark = pytest.mark.integration

RATES = [5e-4, 6e-4, 7e-4, 8e-4]


@pytest.mark.long
def test_a_warm_slot_that_dies_between_two_trials_costs_the_next_one_a_start(ray_session, tmp_path):
    def act(event):
        if (event["kind"], event["trial"]) == ("completed", "t000"):
            kill_slot()  # Tune keeps it for the next trial when this returns

    outcome = run_sweep(make_recipe(tmp_path, RATES[:2]), options(tmp_path, notes := Notes(act)))
    assert [trial.status for trial in outcome.trials] == ["completed", "completed"]
    (lost,) = notes.of("lost")
    assert (lost["trial"], lost["slot"]) == ("t001", None)
    assert lost["cause"] == "a slot's process died before it took the trial"
    assert leftovers(read_trace(tmp_path), CPUS) == []


@contextmanager
def ranks_killed_as_they_appear(most):
    """Inside the block, the first so many processes that Ray Train starts for ranks are killed before they have joined."""
    over, killed = threading.Event(), set()

    def kill():
        while len(killed) < most and not over.wait(0.05):
            for one in ray._private.state.actors().values():
                new = (one["ActorClassName"], one["State"]) == ("RayTrainWorker", "ALIVE") and one["Pid"] not in killed
                if new and len(killed) < most:
                    killed.add(one["Pid"])
                    with suppress(ProcessLookupError):
                        os.kill(one["Pid"], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.long
def test_a_rank_that_dies_as_its_group_is_connected_fails_no_trial(ray_session, tmp_path):
    with ranks_killed_as_they_appear(1):
        outcome = run_sweep(make_recipe(tmp_path, RATES[:1]), options(tmp_path, Notes()))
    assert [trial.status for trial in outcome.trials] == ["completed"]
    assert leftovers(read_trace(tmp_path), CPUS) == []


@pytest.mark.long
def test_ranks_that_never_start_stop_the_sweep_with_the_cause(ray_session, tmp_path):
    recipe = make_recipe(tmp_path, RATES, failures={"max_lost_workers": 0})
    with ranks_killed_as_they_appear(1000), pytest.raises(StartFailed, match="ActorDiedError") as end:
        run_sweep(recipe, options(tmp_path, notes := Notes()))
    assert (
        "more than failures.max_lost_workers=0; the last time: the workers did not start 3 times" in end.value.message
    )
    assert 2 <= len(notes.of("failed")) < len(RATES)
    assert leftovers(read_trace(tmp_path), CPUS) == []
