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

from tlcore.checkpoint import CheckpointRef, best_step, newest_step
from tlcore.engine.process import prepare_process
from tlcore.storage import ObjectStore
from tlcore.storage.journal import Journal, read_journal
from tlcore.sweep.outcome import SweepOutcome

EXAMPLES = 2


@dataclass(frozen=True)
class Finals:
    """`checkpoint` is the best of its trial, of `step`; that trial's newest is of `last_step`. `exported` is the directory written,
    None where none was asked for; `metrics` are of the test examples, empty where there are none or trials are left; each example
    has `input`, `expected` and the task's answer."""

    checkpoint: str
    step: int
    last_step: int
    exported: Path | None
    metrics: dict[str, float]
    examples: list[dict[str, Any]]


def finish_sweep(outcome: SweepOutcome, destination: Path | None) -> Finals | None:
    """Export the best trial's best checkpoint, evaluate it on the test examples, and answer two of them.

    Its best is the one with the best value of the search's metric, of those still there (`checkpoint.keep_best` keeps it); the
    newest where the search has several metrics. The test examples are left alone while trials are left to run. Figures that an
    earlier driver journalled of this checkpoint are kept.

    Args:
        destination: directory for the exported model; an earlier export there is replaced. None: no export.

    Returns:
        None when no trial has a metric or its checkpoints are gone.
    """
    if outcome.best is None:
        return None
    store = outcome.run.open()
    last_step = newest_step(store, outcome.best.trial)
    search = outcome.recipe.search
    step = best_step(store, outcome.best.trial, search.metrics, search.modes)
    if step is None or last_step is None:
        return None
    checkpoint = str(CheckpointRef(outcome.run.url, outcome.best.trial, step))
    place = (checkpoint, step, max(step, last_step))
    is_tested = outcome.complete and outcome.recipe.data.test is not None
    if destination is None and not is_tested:
        return Finals(*place, None, {}, [])
    prepare_process(os.cpu_count() or 1)
    from tlcore.train.offline import TrainedModel

    trained = TrainedModel(checkpoint)
    exported = None if destination is None else trained.export(destination)
    if not is_tested:
        return Finals(*place, exported, {}, [])
    metrics = _journalled(store, checkpoint.removeprefix(outcome.run.url))
    if metrics is None:
        metrics = trained.evaluate("test")
        journal = Journal(store, lambda: datetime.now(UTC), start=outcome.state.entries)
        outcome.state.apply(journal.append("final", outcome.best.trial, metrics=metrics, checkpoint=checkpoint))
    return Finals(*place, exported, metrics, trained.examples("test", EXAMPLES))


def _journalled(store: ObjectStore, checkpoint: str) -> dict[str, float] | None:
    """The test figures of a checkpoint of this run, given by its place in it: the run may have been moved since."""
    taken = (entry for entry in reversed(read_journal(store)) if entry["kind"] == "final")
    found = next((entry for entry in taken if str(entry.get("checkpoint")).endswith(checkpoint)), None)
    return None if found is None else dict(found["metrics"])
