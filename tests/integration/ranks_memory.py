"""What each rank does in test_fit_memory.py: some steps of a trial, and the memory it had at most. Run by `rank_server.py`."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tlcore.engine.process import prepare_process

prepare_process()

import torch.distributed as dist  # noqa: E402 (the process must be settled first)

from tlcore.recipe import recipe_from_dict  # noqa: E402
from tlcore.storage import create_run  # noqa: E402
from tlcore.train.group import agree  # noqa: E402
from tlcore.train.session import TrialSession  # noqa: E402


def status_bytes(field: str) -> int:
    """A size of this process as the kernel gives it: VmRSS, VmHWM (the highest resident set so far)."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def train(settings: dict[str, Any], steps: int) -> None:
    recipe = recipe_from_dict(settings)
    now = datetime.now(UTC)
    url = agree(create_run(recipe.storage, recipe.name, {}, now, "r").url if dist.get_rank() == 0 else "")
    session = TrialSession(recipe, url, "t000", resume_step=0)
    for _ in range(steps):
        session.train_step()
    session.close()


def run(case: dict[str, Any]) -> list[int]:
    """Peak resident set of every rank during `recipe`, less that before it, bytes. A trial of `warm` before it has imported what
    a trial imports. One case to a group: the peak is the process's."""
    train(case["warm"], 2)
    before = status_bytes("VmRSS")
    train(case["recipe"], case["steps"])
    grown: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(grown, status_bytes("VmHWM") - before)
    return grown
