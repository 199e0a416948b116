"""A sweep as TensorBoard event files: one run per trial, with its settings, its loss while it trains, and what it reports.

Owns the files, and the joining of two displays. Written where the command runs, in `runs/<name>/tensorboard/<when it began>`: no
rank and no trial waits for them, and whatever is lost can be had again, since the journal in the store has every report. A resume
goes on in the same directory; on a machine that has none, it begins with what was reported before. Called by `cli.py`.

tensorboardX writes them: Ray Tune brings it, and it loads no torch, which the driver does without.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from tlcore.recipe import Recipe
from tlcore.report.view import SweepView
from tlcore.storage.journal import Entry

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

_LIVE: Final = ("loss", "samples_per_s")
_ENDS: Final = ("completed", "stopped", "failed")


class Shown(Protocol):
    """What a driver tells a display."""

    def on_event(self, event: Entry) -> None:
        """Take one journal entry."""

    def on_progress(self, snapshot: dict[str, dict[str, Any]]) -> None:
        """Take the newest progress of running trials."""

    def close(self) -> None:
        """Nothing more comes."""


class Both:
    """Two displays as one."""

    def __init__(self, first: Shown, second: Shown) -> None:
        self._first, self._second = first, second

    def on_event(self, event: Entry) -> None:
        """Take one journal entry."""
        self._first.on_event(event)
        self._second.on_event(event)

    def on_progress(self, snapshot: dict[str, dict[str, Any]]) -> None:
        """Take the newest progress of running trials."""
        self._first.on_progress(snapshot)
        self._second.on_progress(snapshot)

    def close(self) -> None:
        """Close both."""
        self._first.close()
        self._second.close()


@contextmanager
def tracked(recipe: Recipe, view: SweepView, display: Shown) -> Iterator[Shown]:
    """`display`, which its opener closes, and beside it what the recipe's `track` asks for."""
    if not recipe.track.tensorboard:
        yield display
        return
    board = TensorBoard(Path("runs") / recipe.name / "tensorboard", view)
    try:
        yield Both(display, board)
    finally:
        board.close()


class TensorBoard:
    """Writes what a display is told.

    Args:
        directory: for all sweeps of the recipe's name.
        view: of the same sweep, as far as it is: what a resume begins with.
    """

    def __init__(self, directory: Path, view: SweepView) -> None:
        self._directory, self._view = directory, view
        self._home: Path | None = None
        self._writers: dict[str, SummaryWriter] = {}
        self._told: dict[str, int] = {}

    def on_event(self, event: Entry) -> None:
        """Take one journal entry."""
        if self._home is None:
            self._begin(self._view.began or event["time"])
        if event["kind"] == "result":
            self._write(event["trial"], event["step"], {**event["metrics"], **_figures(event)})
        elif event["kind"] in _ENDS:
            self._end(event["trial"])

    def on_progress(self, snapshot: dict[str, dict[str, Any]]) -> None:
        """Take the newest progress; a step is written once, also where a trial comes by it again after a loss."""
        if self._home is None:
            return
        for trial, facts in snapshot.items():
            if facts.get("step") is not None and facts["step"] > self._told.get(trial, -1):
                self._told[trial] = facts["step"]
                self._write(trial, facts["step"], _figures(facts))

    def close(self) -> None:
        """Close the files of every trial."""
        for trial in list(self._writers):
            self._writers.pop(trial).close()

    def _begin(self, time: str) -> None:
        self._home = self._directory / f"{datetime.fromisoformat(time):%Y%m%d-%H%M%S}"
        for trial in list(self._view.state.trials.values()):
            if trial.results and not (self._home / trial.trial).exists():
                for result in trial.results:
                    self._write(trial.trial, result.step, result.metrics)
                if trial.ended:
                    self._end(trial.trial)

    def _write(self, trial: str, step: int, values: Mapping[str, float | None]) -> None:
        for name, value in _finite(values.items()):
            self._writer(trial).add_scalar(name, value, step)

    def _end(self, trial: str) -> None:
        """Settings and last figures side by side, for TensorBoard's own table of them."""
        from tensorboardX.summary import hparams

        state = self._view.state.trials.get(trial)
        if state is not None:
            results = state.results[-1].metrics if state.results else {}
            settings = {
                key: value if isinstance(value, bool | int | float) else str(value)
                for key, value in state.point.items()
            }
            for summary in hparams(settings, dict(_finite(results.items()))):
                self._writer(trial).file_writer.add_summary(summary)
        if trial in self._writers:
            self._writers.pop(trial).close()

    def _writer(self, trial: str) -> SummaryWriter:
        from tensorboardX import SummaryWriter

        assert self._home is not None
        if trial not in self._writers:
            # files are named by the second, read in the order of names, and a quick resume would overwrite one
            suffix = f".{time.time_ns()}"
            self._writers[trial] = SummaryWriter(str(self._home / trial), flush_secs=10, filename_suffix=suffix)
        return self._writers[trial]


def _figures(facts: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: facts.get(name) for name in _LIVE}


def _finite(values: Iterable[tuple[str, float | None]]) -> Iterable[tuple[str, float]]:
    return ((name, value) for name, value in values if value is not None and math.isfinite(value))
