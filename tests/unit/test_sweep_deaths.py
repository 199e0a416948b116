"""A slot that dies, at work, as it is made or as it is handed over: one death to Tune, and one loss to its trial."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from tune_without_actors import TuneAlone

from tlcore.sweep.slots.deaths import deaths_are_survived

pytestmark = pytest.mark.unit


class Manager(RayActorManager):
    """One without resources, whose actors leave nothing behind."""

    def __init__(self):
        self._failed_actor_ids = set()

    def _cleanup_actor(self, tracked_actor):
        pass


@pytest.fixture
def heard():
    return []


@pytest.fixture
def task(heard):
    actor = SimpleNamespace(actor_id=7, _on_error=lambda actor, error: heard.append(error))
    return SimpleNamespace(_tracked_actor=actor, _on_error=None)


EVICTED = OutOfMemoryError("10 worker(s) were killed due to the node running low on memory.\nand much more")


def test_tune_alone_ends_the_sweep(task):
    with pytest.raises(RuntimeError, match="Caught unexpected exception"):
        Manager()._actor_task_failed(tracked_actor_task=task, exception=EVICTED)


def test_an_evicted_actor_is_a_dead_one(task, heard):
    manager = Manager()
    with deaths_are_survived():
        manager._actor_task_failed(tracked_actor_task=task, exception=EVICTED)
    (error,) = heard
    assert isinstance(error, RayActorError)
    assert str(error) == (
        "Ray killed the actor for want of memory: 10 worker(s) were killed due to the node running low on memory."
    )
    assert manager._failed_actor_ids == {7}


def test_other_errors_are_handed_on_as_they_are(task, heard):
    died = RayActorError()
    with deaths_are_survived():
        Manager()._actor_task_failed(tracked_actor_task=task, exception=died)
        with pytest.raises(RuntimeError, match="Caught unexpected"):
            Manager()._actor_task_failed(tracked_actor_task=task, exception=ValueError("what is this"))
    assert heard == [died]


def test_afterwards_ray_is_as_it_was():
    def methods():
        manager = RayActorManager._actor_start_failed, RayActorManager._actor_task_failed
        return manager, TuneController._actor_failed, TuneController._trial_task_failure

    before = methods()
    with deaths_are_survived():
        assert not set(before[0] + before[1:]) & set(methods()[0] + methods()[1:])
    assert methods() == before


DEATHS = [RayActorError(), EVICTED]


@pytest.fixture
def tune_alone(tmp_path):
    with deaths_are_survived():
        yield TuneAlone(tmp_path)


def kinds(world, trial):
    return [entry["kind"] for entry in world.told(trial)]


@pytest.mark.parametrize("error", DEATHS)
def test_a_slot_that_dies_as_it_is_made_is_followed_by_another_one(tune_alone, error):
    trial = tune_alone.add(0)
    tune_alone.turn()
    tune_alone.died(trial, error, starting=True)
    assert trial.status == Trial.PENDING
    assert kinds(tune_alone, "t000") == ["suggested", "lost"]
    lost = tune_alone.told("t000")[-1]
    assert (lost["slot"], lost["cause"]) == (None, "a slot's process died before it took the trial")
    tune_alone.turn()
    tune_alone.started(trial)
    assert trial.status == Trial.RUNNING
    assert kinds(tune_alone, "t000")[-1] == "started"
    assert len(tune_alone.room.made) == 2


def idle_slot(world):
    """t000 has ended, and its slot is kept for a trial to come."""
    trial = world.add(0)
    world.turn()
    world.started(trial)
    world.controller.stop_trial(trial)
    assert world.controller._actor_cache.num_cached_objects == 1


@pytest.mark.parametrize("error", DEATHS)
@pytest.mark.parametrize("ran_before", [False, True])
def test_a_warm_slot_that_died_idle_costs_the_next_trial_one_loss_and_no_more(tune_alone, error, ran_before):
    trial = tune_alone.trials[1]
    if ran_before:
        tune_alone.add(1)
        tune_alone.turn()
        tune_alone.started(trial)
        tune_alone.recorder.record("paused", "t001")
        tune_alone.controller.pause_trial(trial, should_checkpoint=False)
        tune_alone.controller._cleanup_cached_actors(force_all=True)
    idle_slot(tune_alone)
    if ran_before:
        tune_alone.controller._set_trial_status(trial, Trial.PENDING)
    else:
        tune_alone.add(1)
    tune_alone.turn()
    made = len(tune_alone.room.made)
    assert trial in tune_alone.controller._resetting_trials
    tune_alone.died(trial, error)
    assert (trial.status, trial.run_metadata.num_failures) == (Trial.PENDING, 1)
    lost = tune_alone.told("t001")[-1]
    assert (lost["kind"], lost["slot"]) == ("lost", None)
    tune_alone.turn()
    assert len(tune_alone.room.made) == made + 1
    tune_alone.started(trial)
    assert kinds(tune_alone, "t001")[-1] == "started"


def test_a_slot_that_dies_at_work_is_named_once_and_its_trial_goes_on(tune_alone):
    trial = tune_alone.add(0)
    tune_alone.turn()
    tune_alone.started(trial)
    slot = tune_alone.told("t000")[-1]["slot"]
    tune_alone.died(trial, RayActorError())
    assert (trial.status, trial.run_metadata.num_failures) == (Trial.PENDING, 1)
    assert [(entry["slot"], entry["cause"]) for entry in tune_alone.told("t000") if entry["kind"] == "lost"] == [
        (slot, "the slot's process died")
    ]


def test_slots_that_die_more_often_than_the_recipe_allows_fail_the_trial(tune_alone):
    trial = tune_alone.add(0)
    for _ in range(2):
        tune_alone.turn()
        tune_alone.died(trial, RayActorError(), starting=True)
    assert trial.status == Trial.ERROR
    assert kinds(tune_alone, "t000") == ["suggested", "lost", "failed"]
    assert "died more often than failures.max_lost_workers=1" in tune_alone.told("t000")[-1]["message"]
