"""A sweep as runs of a Weights & Biases project: one per trial, all of a sweep in one group.

Owns the runs' ids, which follow from sweep and trial, so that a resume goes on with them. Credentials and server are wandb's own
(`wandb login`, `WANDB_API_KEY`, `WANDB_BASE_URL`); with `WANDB_MODE=offline` runs are kept in `runs/<name>/wandb` for `wandb sync`.
Called by `displays.py`, in a thread.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tlcore.report.tracking.curves import BoardLost

_EXIT_CODES: Final = {"completed": 0, "stopped": 0, "failed": 1}


class WeightsAndBiases:
    """Runs of `project` for sweeps of the recipe's `name`; wandb's files go below `place`.

    Raises BoardLost where there is no API key to write with.
    """

    def __init__(self, project: str, name: str, place: Path) -> None:
        import wandb

        self._project, self._name, self._place = project, name, place
        self._group = name
        self._runs: dict[str, Any] = {}
        self._last: dict[str, int] = {}
        self._settings = wandb.Settings(
            silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True
        )
        with _lost():
            if not self._offline and not wandb.login(prompt=False):
                raise BoardLost("no API key; run wandb login, set WANDB_API_KEY, or WANDB_MODE=offline")

    @property
    def _offline(self) -> bool:
        return os.environ.get("WANDB_MODE", "online") != "online"

    def open(self, began: str, trials: Sequence[str]) -> AbstractSet[str]:
        """Find the trials whose runs an earlier process wrote, on the server or, offline, in this directory."""
        self._group = f"{self._name}/{began}"
        if self._offline:
            ids = {each.name.rpartition("-")[2] for each in self._place.glob("wandb/*-run-*")}
            return {trial for trial in trials if _run_id(self._group, trial) in ids}
        import wandb

        with _lost():
            try:
                return {run.name for run in wandb.Api().runs(self._project, {"group": self._group})}
            except ValueError:  # what it says of a project that is not there yet
                return set()

    def begin(self, trial: str, settings: Mapping[str, Any]) -> None:
        """Make the trial's run, or take it up again."""
        import wandb

        self._place.mkdir(parents=True, exist_ok=True)
        with _lost():
            run = wandb.init(
                project=self._project,
                group=self._group,
                name=trial,
                id=_run_id(self._group, trial),
                resume="allow",
                reinit="create_new",
                dir=self._place.resolve(),  # wandb's process may stand elsewhere
                config=dict(settings),
                settings=self._settings,
            )
        self._runs[trial], self._last[trial] = run, run.step

    def write(self, trial: str, step: int, values: Mapping[str, float]) -> None:
        """Add points; wandb takes steps in their order only, so what a trial repeats after a loss is left out."""
        if step >= self._last[trial]:
            self._last[trial] = step
            with _lost():
                self._runs[trial].log(dict(values), step=step)

    def end(self, trial: str, kind: str, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
        """Finish the run."""
        with _lost():
            self._runs.pop(trial).finish(exit_code=_EXIT_CODES[kind])

    def close(self) -> None:
        """Finish what has not ended, as interrupted; a resume takes it up again."""
        for trial in list(self._runs):
            with _lost():
                self._runs.pop(trial).finish(exit_code=255)


def _run_id(group: str, trial: str) -> str:
    return hashlib.sha256(f"{group}/{trial}".encode()).hexdigest()[:16]


@contextmanager
def _lost() -> Iterator[None]:
    import wandb

    try:
        yield
    except wandb.errors.Error as error:
        raise BoardLost(f"wandb does not take it ({type(error).__name__})") from error
