"""A slot that Ray's memory monitor killed is a slot that died.

Owns one thing that Tune leaves broken: where a node runs low on memory, Ray kills actors and says so by `OutOfMemoryError`, which
is no `RayActorError`; Tune's actor manager takes that for an exception that cannot be and ends the whole sweep (Ray 2.60). Here it
is handed on as the actor's death, after which the trial goes on in a new slot from its last checkpoint, on the budget of lost
workers. Ranks that are killed so are `group.py`'s business. Called by `driver.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError


@contextmanager
def evictions_are_deaths() -> Iterator[None]:
    """Inside the block, Tune learns of an evicted actor as of any other dead one."""
    failed = RayActorManager._actor_task_failed

    def told(manager: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            reason = str(exception).partition("\n")[0]
            exception = RayActorError(error_msg=f"Ray killed the actor for want of memory: {reason}")
        failed(manager, tracked_actor_task=tracked_actor_task, exception=exception)

    RayActorManager._actor_task_failed = told
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = failed
