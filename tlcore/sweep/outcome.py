"""What a sweep came to, for the command that shows it and exits by it.

Owns plain data made from the folded journal. Called by `runner.py` (makes it) and `cli.py`, `report/` by way of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlcore.errors import TlcoreError
from tlcore.recipe import Recipe
from tlcore.storage import RunRef
from tlcore.storage.journal import SweepState, TrialState
from tlcore.train.budget import Exhausted


@dataclass(frozen=True)
class SweepOutcome:
    """A sweep that ended, or was interrupted: at least one trial took a step, or there was nothing left to do.

    `exhausted` is the budget that ended it with trials left; they are unfinished, and a resume with a higher one goes on with them.
    `best` is the trial with the best last metric, None where no trial has any; `errors` says by trial what failed it. `logs` has
    the driver's log and a link to Ray's. `untested` is why there are no figures on the test examples, where they were to be taken.
    """

    run: RunRef
    recipe: Recipe
    state: SweepState
    best: TrialState | None
    logs: Path
    interrupted: bool
    exhausted: Exhausted | None = None
    untested: TlcoreError | None = None

    @property
    def trials(self) -> list[TrialState]:
        """Every trial, in the order in which they were suggested."""
        return list(self.state.trials.values())

    @property
    def metrics(self) -> dict[str, Mapping[str, float | None]]:
        """What each trial measured last."""
        return {trial.trial: trial.results[-1].metrics for trial in self.trials if trial.results}

    @property
    def errors(self) -> dict[str, dict[str, Any]]:
        """By failed trial: error (its class), message, hint, rank."""
        return {trial.trial: trial.failure for trial in self.trials if trial.failure is not None}

    @property
    def complete(self) -> bool:
        """Whether nothing is left to run."""
        return self.state.finished and not self.state.ended_by
