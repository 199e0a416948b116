"""What a display is told, as the curves of a board: one run per trial, with its settings, its loss while it trains, its reports.

Owns which figures become points, and each step's only once where a trial comes by it again after a loss. A resume goes on with what
the board has; of trials it has not, it is given what was reported before. Called by `displays.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Any, Final, Protocol

from tlcore.report.view import SweepView
from tlcore.storage.journal import Entry

_LIVE: Final = ("loss", "samples_per_s")
_ENDS: Final = ("completed", "stopped", "failed")


class BoardLost(Exception):
    """A board takes nothing more; the text says why."""


class Shown(Protocol):
    """What a driver tells a display."""

    def on_event(self, event: Entry) -> None:
        """Take one journal entry."""

    def on_progress(self, snapshot: dict[str, dict[str, Any]]) -> None:
        """Take the newest progress of running trials."""

    def close(self) -> None:
        """Nothing more comes."""


class Board(Protocol):
    """Where the curves of one sweep are kept. Any call may raise BoardLost."""

    def open(self, began: str, trials: Sequence[str]) -> AbstractSet[str]:
        """Go on with the sweep of this board's name that began then (as 20260102-030405); which of `trials` it has already."""

    def begin(self, trial: str, settings: Mapping[str, Any]) -> None:
        """A trial of which this process has written nothing yet; `settings` by dotted path."""

    def write(self, trial: str, step: int, values: Mapping[str, float]) -> None:
        """Points of its curves at a step."""

    def end(self, trial: str, kind: str, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
        """It has completed, stopped or failed; `results` are its last figures."""

    def close(self) -> None:
        """Nothing more comes; trials that have not ended may go on later."""


class Curves:
    """A display that draws on `board`.

    Args:
        view: of the same sweep, as far as it is: what a resume begins with.
    """

    def __init__(self, board: Board, view: SweepView) -> None:
        self._board, self._view = board, view
        self._before = [
            (trial.trial, list(trial.results), trial.status) for trial in view.state.trials.values() if trial.results
        ]
        self._is_open = False
        self._begun: set[str] = set()
        self._told: dict[str, int] = {}

    def on_event(self, event: Entry) -> None:
        """Take one journal entry."""
        if not self._is_open:
            self._open(self._view.began or event["time"])
        if event["kind"] == "result":
            self._write(event["trial"], event["step"], {**event["metrics"], **_figures(event)})
        elif event["kind"] in _ENDS:
            self._end(event["trial"], event["kind"])

    def on_progress(self, snapshot: dict[str, dict[str, Any]]) -> None:
        """Take the newest progress; a step is written once, also where a trial comes by it again after a loss, and none after the
        trial's end."""
        if not self._is_open:
            return
        for trial, facts in snapshot.items():
            if self._has_ended(trial):
                continue
            if facts.get("step") is not None and facts["step"] > self._told.get(trial, -1):
                self._told[trial] = facts["step"]
                self._write(trial, facts["step"], _figures(facts))

    def close(self) -> None:
        """Close the board."""
        self._board.close()

    def _open(self, time: str) -> None:
        self._is_open = True
        reported = [trial for trial, _, _ in self._before]
        known = self._board.open(f"{datetime.fromisoformat(time):%Y%m%d-%H%M%S}", reported)
        for trial, results, kind in self._before:
            if trial in known:
                continue
            for result in results:
                self._write(trial, result.step, result.metrics)
            if kind in _ENDS:
                self._end(trial, kind)

    def _write(self, trial: str, step: int, values: Mapping[str, float | None]) -> None:
        if points := dict(_finite(values.items())):
            self._begin(trial)
            self._board.write(trial, step, points)

    def _begin(self, trial: str) -> None:
        if trial not in self._begun:
            self._begun.add(trial)
            self._board.begin(trial, self._settings(trial))

    def _end(self, trial: str, kind: str) -> None:
        self._begin(trial)
        state = self._view.state.trials.get(trial)
        last = state.results[-1].metrics if state is not None and state.results else {}
        self._board.end(trial, kind, self._settings(trial), dict(_finite(last.items())))

    def _has_ended(self, trial: str) -> bool:
        state = self._view.state.trials.get(trial)
        return state is not None and state.ended

    def _settings(self, trial: str) -> Mapping[str, Any]:
        state = self._view.state.trials.get(trial)
        return {} if state is None else dict(state.point)


def _figures(facts: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: facts.get(name) for name in _LIVE}


def _finite(values: Iterable[tuple[str, float | None]]) -> Iterable[tuple[str, float]]:
    return ((name, value) for name, value in values if value is not None and math.isfinite(value))
