"""What a finished sweep is for: the best trial's figures on the test examples, its model in a directory, a few answers.

Owns the end of a sweep, after the last trial. The test examples are read here and nowhere else. Runs in the driver's process, on
its GPU if it has one: the model is read from the store once and used for all three. Called by the command.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tlcore.checkpoint import CheckpointRef, newest_step
from tlcore.engine.process import prepare_process
from tlcore.storage.journal import Journal
from tlcore.sweep.outcome import SweepOutcome

EXAMPLES = 2


@dataclass(frozen=True)
class Finals:
    """`exported` is the directory written; `metrics` are of the test examples, empty where the recipe names none; each example
    has `input`, `expected` and the task's answer."""

    checkpoint: str
    exported: Path
    metrics: dict[str, float]
    examples: list[dict[str, Any]]


def finish_sweep(outcome: SweepOutcome, destination: Path) -> Finals | None:
    """Evaluate the best trial's newest checkpoint on the test examples, export it, and answer two of them.

    A sweep that was finished before (a resume of one with nothing left to do) keeps its journalled figures and is exported again.

    Args:
        destination: directory for the exported model; an earlier export there is replaced.

    Returns:
        None when no trial has a metric or its checkpoints are gone.
    """
    if outcome.best is None:
        return None
    store = outcome.run.open()
    step = newest_step(store, outcome.best.trial)
    if step is None:
        return None
    prepare_process(os.cpu_count() or 1)
    from tlcore.train.offline import TrainedModel

    checkpoint = str(CheckpointRef(outcome.run.url, outcome.best.trial, step))
    trained = TrainedModel(checkpoint)
    exported = trained.export(destination)
    if outcome.recipe.data.test is None:
        return Finals(checkpoint, exported, {}, [])
    metrics = trained.evaluate("test")
    journal = Journal(store, lambda: datetime.now(UTC), start=outcome.state.entries)
    outcome.state.apply(journal.append("final", outcome.best.trial, metrics=metrics, checkpoint=checkpoint))
    return Finals(checkpoint, exported, metrics, trained.examples("test", EXAMPLES))
