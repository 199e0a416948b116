"""One arm under one seed: the sweep, the steps that it took, and what its best trial makes of the test examples.

Owns the running and the counting of steps. Called by `__main__.py`, with Ray up.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jobs.bench.search.arms import Arm, Size, arm_recipe
from tlcore.checkpoint import CheckpointRef
from tlcore.storage.journal import Entry, read_journal
from tlcore.sweep import SweepOptions, SweepOutcome, run_sweep


def run_arm(arm: Arm, size: Size, seed: int, data: Path) -> dict[str, Any]:
    """Run the arm's sweep, then judge its best trial on the test examples, which no search has seen.

    Returns:
        part, arm, seed, steps (worker-steps trained in all trials), trials, failed, takeovers, best (trial, point, its validation
        metrics), test (metrics), wall_s (of the sweep).

    Raises:
        RuntimeError: the sweep did not end, or no trial has a metric.
    """
    scratch = Path(tempfile.mkdtemp(prefix="tlcore-bench-search-"))
    try:
        recipe = arm_recipe(arm, size, seed, data, scratch / "store")
        began = time.perf_counter()
        outcome = run_sweep(recipe, SweepOptions(logs=scratch / "logs"))
        wall_s = time.perf_counter() - began
        if not outcome.complete or outcome.best is None:
            raise RuntimeError(f"{recipe.name} did not end: {outcome.errors or 'interrupted'}")
        return {"part": arm.part, "arm": arm.name, "seed": seed, **_facts(outcome), "wall_s": round(wall_s, 1)}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _facts(outcome: SweepOutcome) -> dict[str, Any]:
    entries, best = read_journal(outcome.run.open()), outcome.best
    assert best is not None
    return {
        "steps": worker_steps(entries),
        "trials": len(outcome.trials),
        "failed": len(outcome.errors),
        "takeovers": sum(entry["kind"] == "took_over" for entry in entries),
        "best": {
            "trial": best.trial,
            "point": best.point,
            "metrics": dict(best.results[-1].metrics),
            "rates": rates(entries, best.trial),
        },
        "test": _test(outcome),
    }


def _test(outcome: SweepOutcome) -> dict[str, float]:
    from tlcore.engine.process import prepare_process

    prepare_process(os.cpu_count() or 1)
    from tlcore.train.offline import TrainedModel  # after the process's threads are set

    best = outcome.best
    assert best is not None and best.checkpoint_step is not None, "the best trial has no checkpoint"
    return TrainedModel(str(CheckpointRef(outcome.run.url, best.trial, best.checkpoint_step))).evaluate("test")


def worker_steps(entries: Iterable[Entry]) -> int:
    """Optimizer steps times workers that a sweep trained, by its journal; steps that a loss made trials repeat count again.

    A trial that takes over another one's state goes on at that one's step, which it has not trained itself.
    """
    total = 0
    at: dict[str, int] = {}
    workers: dict[str, int] = {}
    for entry in entries:
        trial = entry.get("trial")
        if not isinstance(trial, str):
            continue
        if entry["kind"] == "started":
            workers[trial] = entry["workers"]
        elif entry["kind"] == "result":
            total += (entry["step"] - at.get(trial, 0)) * workers[trial]
            at[trial] = entry["step"]
        elif entry["kind"] == "took_over":
            at[trial] = entry["step"]
        elif entry["kind"] == "lost":
            at[trial] = entry["step"] or 0
    return total


def rates(entries: Iterable[Entry], trial: str) -> list[tuple[float, float]]:
    """The learning rates under which a trial's final state was trained, through all that it was taken over from.

    Returns:
        (fraction from which on, train.learning_rate) of each stretch; empty where the rate is not searched.
    """
    courses: dict[str, list[tuple[float, float]]] = {}
    for entry in entries:
        if entry["kind"] not in {"suggested", "took_over"}:
            continue
        rate: Mapping[str, Any] = entry["point"]
        if "train.learning_rate" not in rate:
            return []
        begun, before = (entry["fraction"], courses[entry["parent"]]) if entry["kind"] == "took_over" else (0.0, [])
        earlier = [stretch for stretch in before if stretch[0] < begun]
        courses[entry["trial"]] = [*earlier, (begun, rate["train.learning_rate"])]
    return courses[trial]
