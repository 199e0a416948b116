"""A slot that died is one death to Tune, whoever killed it and whatever it was about to do.

Owns three things that Tune leaves broken (Ray 2.60). Where a node runs low on memory, Ray kills actors and says so by
`OutOfMemoryError`, which is no `RayActorError`; Tune's actor manager takes that for an exception that cannot be and ends the whole
sweep, or fails for good the trial whose slot was starting. A slot that dies while it is handed to its next trial is told twice: the
trial, queued again after the first time, fails by the second. And Tune goes on to believe that this slot is being made ready, so
that it would never give the trial another one. Here each is handed on as one death of an actor, after which the trial goes on in a
new slot from its last checkpoint, on the budget of lost workers. Ranks that die are `group.py`'s business. Called by `driver.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution.tune_controller import TuneController


@contextmanager
def deaths_are_survived() -> Iterator[None]:
    """Inside the block, Tune learns of every slot that died as of one dead actor, once."""
    start_failed, task_failed = RayActorManager._actor_start_failed, RayActorManager._actor_task_failed
    actor_failed, trial_failed = TuneController._actor_failed, TuneController._trial_task_failure

    def on_start(manager: RayActorManager, tracked_actor: Any, exception: Exception) -> None:
        start_failed(manager, tracked_actor=tracked_actor, exception=_as_death(exception))

    def on_task(manager: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        task_failed(manager, tracked_actor_task=tracked_actor_task, exception=_as_death(exception))

    def on_death(controller: TuneController, tracked_actor: Any, exception: Exception) -> None:
        controller._resetting_trials.discard(controller._actor_to_trial[tracked_actor])
        actor_failed(controller, tracked_actor, exception)

    def on_failure(controller: TuneController, trial: Any, exception: Exception) -> None:
        # the actor's callback comes first, with the same exception as the task's, and has queued a waiting trial again
        if trial.failure is not exception:
            trial_failed(controller, trial, exception)

    RayActorManager._actor_start_failed, RayActorManager._actor_task_failed = on_start, on_task
    TuneController._actor_failed, TuneController._trial_task_failure = on_death, on_failure
    try:
        yield
    finally:
        RayActorManager._actor_start_failed, RayActorManager._actor_task_failed = start_failed, task_failed
        TuneController._actor_failed, TuneController._trial_task_failure = actor_failed, trial_failed


def _as_death(exception: Exception) -> Exception:
    if not isinstance(exception, OutOfMemoryError):
        return exception
    reason = str(exception).partition("\n")[0]
    death: Exception = RayActorError(error_msg=f"Ray killed the actor for want of memory: {reason}")
    return death
