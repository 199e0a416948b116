"""A slot that Ray kills for want of memory: Tune's actor manager ends the sweep over it, unless it is told of a death."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError

from tlcore.sweep.slots.evicted import evictions_are_deaths

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
    with evictions_are_deaths():
        manager._actor_task_failed(tracked_actor_task=task, exception=EVICTED)
    (error,) = heard
    assert isinstance(error, RayActorError)
    assert str(error) == (
        "Ray killed the actor for want of memory: 10 worker(s) were killed due to the node running low on memory."
    )
    assert manager._failed_actor_ids == {7}


def test_other_errors_are_handed_on_as_they_are(task, heard):
    died = RayActorError()
    with evictions_are_deaths():
        Manager()._actor_task_failed(tracked_actor_task=task, exception=died)
        with pytest.raises(RuntimeError, match="Caught unexpected"):
            Manager()._actor_task_failed(tracked_actor_task=task, exception=ValueError("what is this"))
    assert heard == [died]


def test_afterwards_ray_is_as_it_was():
    before = RayActorManager._actor_task_failed
    with evictions_are_deaths():
        assert RayActorManager._actor_task_failed is not before
    assert RayActorManager._actor_task_failed is before
