"""What each rank does in test_train_interrupt.py: a trial that one rank's interrupt stops, and the same trial taken up again.

Run by `rank_server.py`.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from ranks_restore import everywhere, new_run, recipe_for

from tlcore.checkpoint import list_manifests
from tlcore.recipe import Recipe
from tlcore.storage import open_store
from tlcore.train import session as session_module
from tlcore.train.group import sum_over_ranks
from tlcore.train.session import TrialSession


def train(
    recipe: Recipe, url: str, resume: int | None, asked_at: int | None, by: int
) -> tuple[list[str], dict[str, Any]]:
    """Train to the end, or until rank `by` is interrupted in step `asked_at`: every step's loss, bit by bit, and the report."""
    session = TrialSession(recipe, url, "t000", resume_step=resume)
    seen, run = [], session._stepper.run

    def recorded(step: int) -> Any:
        loss, samples = run(step)
        seen.append((sum_over_ranks(loss.clone()) / dist.get_world_size()).item().hex())
        if step == asked_at and dist.get_rank() == by:
            session.interrupt()
        return loss, samples

    session._stepper.run = recorded  # type: ignore[method-assign]
    report = session.advance(1.0)
    session.close()
    return seen, report.to_dict()


def run(case: dict[str, Any]) -> dict[str, Any]:
    """The trial whole; then interrupted, found interrupted again before its first step, and taken up."""
    session_module.SLOW_STEP_S = case["slow_s"]
    recipe = recipe_for(case["settings"], case["model"], case["storage"], dist.get_world_size())
    whole, last = train(recipe, new_run(case, f"{case['name']}-whole"), 0, None, 0)
    url = new_run(case, f"{case['name']}-pieced")
    before, left = train(recipe, url, 0, case["asked_at"], case["by"])
    lefts = everywhere((left["step"], left["interrupted"]))
    committed = list_manifests(open_store(url), "t000") if dist.get_rank() == 0 else []
    session = TrialSession(recipe, url, "t000")
    if dist.get_rank() == case["by"]:
        session.interrupt()
    at_once = session.advance(1.0).to_dict()
    session.close()
    after, end = train(recipe, url, None, None, 0)
    return {
        "name": case["name"],
        "whole": whole,
        "pieced": before + after,
        "before": len(before),
        "left": left,
        "lefts": lefts,
        "committed": committed,
        "at_once": at_once,
        "last": last,
        "end": end,
    }
