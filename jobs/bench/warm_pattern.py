"""tlcore's side of the turnaround bench: a sweep on warm slots, with stamps around what the ranks do.

Owns the stamping only: the session inside is the one of any sweep. Called by `turnaround.py`; the session class is named by its
import path and made in the ranks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.bench.stamps import stamp
from tlcore.recipe import Recipe
from tlcore.sweep import SweepOptions, run_sweep
from tlcore.train.progress import Progress, Report


class StampedSession:
    """A trial's session that notes, on rank 0, its first step and its end; in all else `TrialSession`. The sweep is the recipe's
    name."""

    def __init__(
        self,
        recipe: Recipe,
        run_url: str,
        trial: str,
        on_progress: Any = None,
        resume_step: int | None = None,
        inherits: bool = False,
    ) -> None:
        from tlcore.train.session import TrialSession  # here: the driver names this class too, and needs no torch

        self._sweep, self._trial, self._on_progress = recipe.name, trial, on_progress
        self._inner = TrialSession(recipe, run_url, trial, self._progress, resume_step, inherits)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def advance(self, fraction: float, commit: bool = False) -> Report:
        """Train and evaluate; the last report of a trial returns when its checkpoint is committed."""
        report = self._inner.advance(fraction, commit)
        if fraction >= 1.0 and self._inner.rank == 0:
            stamp(self._sweep, "end", self._trial)
        return report

    def _progress(self, progress: Progress) -> None:
        if progress.step == 1:
            stamp(self._sweep, "first_step", self._trial)
        if self._on_progress is not None:
            self._on_progress(progress)


def run_warm(recipe: Recipe, logs: Path) -> None:
    """Run the recipe's sweep in the Ray that is up. Raises what a sweep raises, and the first trial's failure."""
    stamp(recipe.name, "asked")
    outcome = run_sweep(recipe, SweepOptions(logs=logs, session="jobs.bench.warm_pattern:StampedSession"))
    if outcome.errors:
        raise RuntimeError(f"trials failed: {outcome.errors}")
