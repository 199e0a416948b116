"""A sweep as its tables need it: the journal's state and the latest progress, joined into rows.

Owns the joining; the fold of journal entries is `storage/journal.py`. Called by the displays as entries happen, and by
`runs.py` over a stored journal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from tlcore.report.rows import TrialRow, best_of
from tlcore.storage.account import Usage
from tlcore.storage.journal import Entry, SweepState, TrialState

_SAVE_FACTS = ("stall_s", "save_bytes_per_s", "save_bytes_new", "save_bytes_reused", "save_retries")
_LIVE_FACTS = (
    "step",
    "total_steps",
    "fraction",
    "loss",
    "samples_per_s",
    "checkpoint_step",
    "saves",
    *_SAVE_FACTS,
)


class SweepView:
    """All trials suggested so far, in that order. `state` is the journal's, for whoever needs more than rows; `began` is the time
    of its first entry; `expected_trials` follows the journal, where a resume may have asked for more."""

    def __init__(self, title: str, metric: str, mode: str, expected_trials: int, entries: Iterable[Entry] = ()) -> None:
        self.title = title
        self.metric = metric
        self.mode = mode
        self.expected_trials = expected_trials
        self.state = SweepState()
        self.began: str | None = None
        self._facts: dict[str, dict[str, Any]] = {}
        self._rows: dict[str, TrialRow] = {}
        """Those that nothing has happened to since: of thousands of trials a few run."""
        for entry in entries:
            self.apply(entry)

    def apply(self, entry: Entry) -> None:
        """Take one more journal entry."""
        self.state.apply(entry)
        self.began = self.began or entry.get("time")
        self.expected_trials = entry.get("of") or self.expected_trials
        if (trial := entry.get("trial")) is None:
            self._rows.clear()  # a resume changes every trial
        else:
            self._rows.pop(trial, None)
        if entry["kind"] == "result":
            self._take(entry["trial"], entry)

    def progress(self, snapshot: Mapping[str, Mapping[str, Any]]) -> None:
        """Take the latest progress by trial; a trial that ended keeps its last figures, an unknown one is left out."""
        for trial, facts in snapshot.items():
            if trial in self.state.trials and not self.state.trials[trial].ended:
                self._take(trial, facts)

    def rows(self) -> list[TrialRow]:
        """One row per trial."""
        return [self._row(trial) for trial in self.state.trials.values()]

    def row(self, trial: str | None) -> TrialRow | None:
        """The row of one trial; None for one that was never suggested."""
        found = self.state.trials.get(trial or "")
        return None if found is None else self._row(found)

    def used(self, now: datetime | None = None) -> Usage:
        """What the run has used: up to its last entry, or with `now` up to now."""
        return self.state.account.used(now)

    def best(self) -> TrialRow | None:
        """The best trial by its last report."""
        return best_of(self.rows(), self.mode)

    def _take(self, trial: str, facts: Mapping[str, Any]) -> None:
        known = {name: facts[name] for name in _LIVE_FACTS if facts.get(name) is not None}
        held = self._facts.setdefault(trial, {})
        if known.get("checkpoint_step") not in (None, held.get("checkpoint_step")):
            # What the save before it cost says nothing of this one; a trial that went on elsewhere never tells.
            for cost in _SAVE_FACTS:
                held.pop(cost, None)
        held.update(known)
        self._rows.pop(trial, None)

    def _row(self, trial: TrialState) -> TrialRow:
        row = self._rows.get(trial.trial)
        if row is None:
            row = self._rows[trial.trial] = self._made(trial)
        return row

    def _made(self, trial: TrialState) -> TrialRow:
        facts = self._facts.get(trial.trial, {})
        measured = ((result.fraction, result.metrics.get(self.metric)) for result in trial.results)
        return TrialRow(
            trial=trial.trial,
            state=trial.status,
            point=trial.point,
            fraction=facts.get("fraction", 0.0),
            rung=trial.fraction or None,
            step=facts.get("step"),
            total_steps=facts.get("total_steps"),
            loss=facts.get("loss"),
            metric=trial.final(self.metric),
            samples_per_s=facts.get("samples_per_s"),
            checkpoint_step=facts.get("checkpoint_step"),
            **{name: facts.get(name) for name in _SAVE_FACTS},
            saves=facts.get("saves") or {},
            reason=_reason(trial),
            workers=trial.workers,
            by_rung={fraction: value for fraction, value in measured if value is not None},
            adapted=dict(trial.adapted),
            losses=dict(trial.losses),
        )


def _reason(trial: TrialState) -> str:
    if trial.failure is None or trial.status != "failed":
        return trial.reason if trial.ended else ""
    said = ": ".join(str(trial.failure[key]) for key in ("error", "message") if trial.failure.get(key))
    return "\n".join(" ".join(text.split()) for text in (said, str(trial.failure.get("hint") or "")) if text)
