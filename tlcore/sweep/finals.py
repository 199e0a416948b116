"""What a finished sweep is for: the best trial's model in a directory, its figures on the test examples, a few answers.

Owns which checkpoint that is, and the end of a sweep in the command's process: figures and answers are in the journal by then,
measured by workers such as trained the model (`examination.py`, and `train/local.py` without Ray), and the export holds one shard
at a time. So a driver on a small head needs no room for the model. Called by the command and by `examination.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlcore.checkpoint import CheckpointRef, best_step, newest_step
from tlcore.recipe import Recipe
from tlcore.storage import RunRef
from tlcore.storage.journal import Entry, SweepState, TrialState
from tlcore.sweep.outcome import SweepOutcome


@dataclass(frozen=True)
class Finals:
    """`checkpoint` is the best of its trial, of `step`; that trial's newest is of `last_step`. `exported` is the directory written,
    None where none was asked for; `metrics` are of the test examples, empty where they were not measured or trials are left; each
    example has `input`, `expected` and the task's answer."""

    checkpoint: str
    step: int
    last_step: int
    exported: Path | None
    metrics: dict[str, float]
    examples: list[dict[str, Any]]


def finish_sweep(outcome: SweepOutcome, destination: Path | None) -> Finals | None:
    """Export the best trial's best checkpoint, and give its figures on the test examples and some answers.

    Its best is the one with the best value of the search's metric, of those still there (`checkpoint.keep_best` keeps it); the
    newest where the search has several metrics. While trials are left to run there are no figures.

    Args:
        destination: directory for the exported model; an earlier export there is replaced. None: no export.

    Returns:
        None when no trial has a metric or its checkpoints are gone.
    """
    if outcome.best is None:
        return None
    store = outcome.run.open()
    last_step = newest_step(store, outcome.best.trial)
    best = best_checkpoint(outcome.recipe, outcome.run, outcome.best)
    if best is None or last_step is None:
        return None
    exported = None
    if destination is not None:
        from tlcore.train.export import export_checkpoint

        exported = Path(export_checkpoint(str(best), str(destination)))
    is_tested = outcome.complete and outcome.recipe.data.test is not None
    final = (figures_of(outcome.state, best) if is_tested else None) or {}
    place = (str(best), best.step, max(best.step, last_step))
    return Finals(*place, exported, dict(final.get("metrics", {})), list(final.get("examples", ())))


def best_checkpoint(recipe: Recipe, run: RunRef, best: TrialState) -> CheckpointRef | None:
    """What of the best trial is exported and tested; None where nothing is left of it. Raises StorageError."""
    search = recipe.search
    step = best_step(run.open(), best.trial, search.metrics, search.modes)
    return None if step is None else CheckpointRef(run.url, best.trial, step)


def figures_of(state: SweepState, checkpoint: CheckpointRef) -> Entry | None:
    """The journal's entry of a checkpoint's test figures, by its place in the run: the run may have been moved since."""
    place = str(checkpoint).removeprefix(checkpoint.run_url)
    return next((entry for entry in reversed(state.finals) if str(entry.get("checkpoint")).endswith(place)), None)
