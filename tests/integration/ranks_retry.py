"""Run by rank_server.py for test_train_retry.py: whole trials into a store that refuses a rank some of its requests at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import torch.distributed as dist
from ranks_restore import recipe_for
from typing_extensions import Buffer

from tlcore.checkpoint import newest_intact, read_manifest
from tlcore.errors import CheckpointError, StorageFull
from tlcore.storage import create_run, open_store
from tlcore.storage.local import LocalObjectStore
from tlcore.train import saving
from tlcore.train.group import agree
from tlcore.train.session import TrialSession


@contextmanager
def refusals(part: str, times: int) -> Iterator[list[str]]:
    """In this process the store refuses to write so many objects whose keys contain `part`; which ones."""
    refused: list[str] = []
    originals = {name: getattr(LocalObjectStore, name) for name in ("put", "put_if_absent")}

    def refusing(name: str) -> Any:
        def write(self: LocalObjectStore, key: str, data: Buffer) -> Any:
            if part in key and not key.endswith(".failed") and len(refused) < times:
                refused.append(key)
                raise StorageFull("no space left")
            return originals[name](self, key, data)

        return write

    for name in originals:
        setattr(LocalObjectStore, name, refusing(name))
    try:
        yield refused
    finally:
        for name, original in originals.items():
            setattr(LocalObjectStore, name, original)


def run(case: dict[str, Any]) -> dict[str, Any]:
    """Train to the end. What each rank knows of the checkpoint, or was told; what a restore takes."""
    saving.FIRST_PAUSE_S = 0.01
    changes = {"train": {"epochs": 1}, "failures": {"max_storage": case["max_storage"]}}
    recipe = recipe_for(changes, case["model"], case["storage"], 2)
    run = create_run(case["storage"], "retry", {}, datetime.now(UTC), case["name"]).url if dist.get_rank() == 0 else ""
    url = agree(run)
    session = TrialSession(recipe, url, "t000", resume_step=0)
    known: Any = None
    with refusals(case["part"], case["times"] if dist.get_rank() == case["rank"] else 0) as refused:
        try:
            known = session.advance(1.0).checkpoint_step
        except CheckpointError as error:
            known = error.message
    told: list[Any] = [None, None]
    dist.all_gather_object(told, (known, len(refused)))
    session.close()
    store = open_store(url)
    found = newest_intact(store, "t000").manifest
    return {
        "last": session.step,
        "known": [each for each, _ in told],
        "refused": [times for _, times in told],
        "intact": None if found is None else found.step,
        "attempt": None if found is None else read_manifest(store, "t000", found.step).attempt,
    }
