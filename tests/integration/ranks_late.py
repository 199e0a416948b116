"""Run by rank_server.py for test_train_late.py: saves at every step into a store that is slow for one rank alone, and an error
that one rank alone meets."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import torch.distributed as dist
from ranks_restore import recipe_for
from typing_extensions import Buffer

from tlcore.checkpoint import list_manifests
from tlcore.errors import StorageDenied
from tlcore.storage import create_run, open_store
from tlcore.storage.local import LocalObjectStore
from tlcore.train.group import agree, decide
from tlcore.train.session import TrialSession

SLOW_PUT_S = 0.5


def make_slow() -> None:
    """Every chunk takes this process so long to put."""
    put = LocalObjectStore.put

    def slow(self: LocalObjectStore, key: str, data: Buffer) -> None:
        if key.startswith("cas/"):
            time.sleep(SLOW_PUT_S)
        put(self, key, data)

    LocalObjectStore.put = slow  # type: ignore[method-assign]


def run(case: dict[str, Any]) -> Any:
    """One case of the tests."""
    return refused_on_rank_0() if case["when_late"] is None else saves(case)


def refused_on_rank_0() -> list[Any]:
    """What each rank is told of an error that only rank 0 meets."""

    def refuse() -> None:
        raise StorageDenied("no such rights", hint="ask for them")

    told: Any = None
    try:
        decide(refuse)
    except StorageDenied as error:
        told = [error.message, error.hint]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, told)
    return everyone


def saves(case: dict[str, Any]) -> dict[str, Any]:
    """Train half of the trial; what became of the saves on each rank, and which steps are there."""
    if dist.get_rank() == 1:
        make_slow()
    section = {"every_steps": 1, "keep_last": 100, "when_late": case["when_late"]}
    recipe = recipe_for({"checkpoint": section, "train": {"epochs": 4}}, case["model"], case["storage"], 2)
    name = case["when_late"]
    url = agree(create_run(case["storage"], "late", {}, datetime.now(UTC), name).url if dist.get_rank() == 0 else "")
    session = TrialSession(recipe, url, "t000", resume_step=0)
    report = session.advance(0.5)
    at_report = session.save(wait=True)
    ended: list[Any] = [None, None]
    dist.all_gather_object(ended, session._saver.totals.to_dict())
    session.close()
    return {
        "steps": report.step,
        "at_report": None if at_report is None else at_report.step,
        "committed": list_manifests(open_store(url), "t000"),
        "ended": ended,
    }
