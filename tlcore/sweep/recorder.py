"""From what Tune tells to the journal and the display: the only place where a sweep's history is written.

Owns the form of the entries, and that each is durable when it is told to anybody; the order of a report and its decisions is the
conductor's. Has the whole sweep stopped where `failures.py` says that every trial would fail alike (a missing column is missing in
every trial). Called by Tune's controller, in the driver's thread, and by the driver, which has what the slots tell written at once.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.tune import Callback
from ray.tune.experiment import Trial

from tlcore.errors import TlcoreError, WorkerLost
from tlcore.storage.account import ALIVE_EVERY_S, Usage
from tlcore.storage.journal import Entry, Journal, SweepState, TrialState
from tlcore.sweep.cluster.resources import Cluster, Node, can_avoid
from tlcore.sweep.display import Display
from tlcore.sweep.halt import Halt
from tlcore.sweep.schedule.seats import Seats
from tlcore.sweep.search.source import SlotTrial
from tlcore.sweep.slots.failures import Failed, is_hopeless
from tlcore.sweep.slots.slot import REPORT, slot_name

_log = logging.getLogger(__name__)
_RESULT_KEYS = (
    "step",
    "total_steps",
    "fraction",
    "metrics",
    "checkpoint_step",
    "loss",
    "samples_per_s",
    "group",
    "group_replaced",
    "saves",
    "stall_s",
    "save_bytes_per_s",
    "save_bytes_new",
    "save_bytes_reused",
    "save_retries",
)


class Recorder:
    """Writes entries, keeps the folded state, tells the display. Safe to call from the driver's threads.

    Args:
        clock: monotonic seconds.
    """

    def __init__(
        self,
        journal: Journal,
        state: SweepState,
        display: Display | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.journal, self.state, self.display = journal, state, display
        self.error: TlcoreError | None = None
        self.listeners: list[Callable[[Entry], None]] = []
        self.notes: Callable[[], list[dict[str, Any]]] = list
        """Fetches what the slots told; each is `kind`, `trial` and facts."""
        self._told: list[dict[str, Any]] = []
        self._lock, self._taking = threading.Lock(), threading.Lock()
        self._reported: str | None = None
        self.furthest = 0
        """The newest step that a trial was seen at by this driver."""
        self._clock, self._wrote_s = clock, clock()

    def record(self, kind: str, trial: str | None = None, **facts: Any) -> Entry:
        """Write one entry, fold it, show it."""
        with self._lock:
            try:
                entry = self.journal.append(kind, trial, **facts)
            except TlcoreError as error:
                self.error = error  # Tune wraps what a callback raises; the driver raises this instead
                raise
            self._wrote_s = self._clock()
            self.state.apply(entry)
            self._show(lambda display: display.on_event(entry))
        for listener in self.listeners:
            listener(entry)
        return entry

    def result(self, trial: str, report: Mapping[str, Any]) -> None:
        """Write a trial's report, after what befell it since the one before. Called before anything is decided about it."""
        # Where nothing was told, the board has nothing of this trial, and asking it costs as much as the report.
        if report.get("told", True):
            self.take_notes()
        for passed_over in report.get("fell_back", ()):
            self.record("fell_back", trial, **passed_over)
        self.record("result", trial, **{key: report[key] for key in _RESULT_KEYS if key in report})
        self._reported = trial

    def take_notes(self) -> None:
        """Write what the slots have told since the last time."""
        with self._taking:
            self._told += self.notes()
            while self._told:
                note = dict(self._told[0])
                self.record(note.pop("kind"), note.pop("trial"), **note)
                self._told.pop(0)

    def was_written(self, trial: str) -> bool:
        """Whether the report that Tune tells of now was written; asked once for each."""
        written, self._reported = self._reported == trial, None
        return written

    def used(self, now: datetime) -> Usage:
        """What the run has used up to now."""
        with self._lock:
            return self.state.account.used(now)

    def sign_of_life(self) -> None:
        """Write that the driver lives, if nothing was written for long; safe in any thread, since it changes no decision."""
        if self._clock() - self._wrote_s >= ALIVE_EVERY_S:
            self.record("alive")

    def snapshot(self) -> SweepState:
        """A copy of the state that nobody changes, for other threads."""
        with self._lock:
            return self.state.copy()

    def next_number(self) -> int:
        """Number of the journal's next entry; none is being written."""
        with self._lock:
            return self.journal.next_number

    def progress(self, snapshot: dict[str, dict[str, Any]]) -> None:
        """Show the newest progress."""
        self.furthest = max([self.furthest, *(facts.get("step") or 0 for facts in snapshot.values())])
        with self._lock:
            self._show(lambda display: display.on_progress(snapshot))

    def _show(self, tell: Callable[[Display], None]) -> None:
        """Whoever reads along may leave (`| head`) or have a full disk: the sweep goes on, and its journal has it all."""
        if self.display is None:
            return
        try:
            tell(self.display)
        except OSError as error:
            self.display = None
            _log.warning("the sweep can be shown no more, and goes on: %s", error)


class JournalCallback(Callback):
    """Tune's events as journal entries.

    Args:
        terms: what a trial that starts holds, for the account: workers, and their price where there is one.
        committed: the step of a trial's newest checkpoint, None without one.
        nodes: of the cluster, now.
    """

    def __init__(
        self,
        recorder: Recorder,
        halt: Halt,
        seats: Seats,
        terms: Callable[[Trial], Mapping[str, Any]],
        committed: Callable[[str], int | None],
        nodes: Callable[[], Sequence[Node]] = lambda: Cluster().nodes(),
    ) -> None:
        self._recorder, self._halt, self._seats = recorder, halt, seats
        self._terms, self._committed, self._nodes = terms, committed, nodes
        self._slots: dict[str, str] = {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A slot took the trial."""
        slot = slot_name(trial.temporary_state.ray_actor._actor_id.hex())
        self._slots[trial.trial_id] = slot
        self._recorder.record("started", trial.trial_id, slot=slot, **self._terms(trial))
        self._seats.start(trial.trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """The trial reported: at its end, or the conductor has written it."""
        if not self._recorder.was_written(trial.trial_id):
            report = json.loads(result[REPORT])
            self._recorder.result(trial.trial_id, report)
            self._recorder.was_written(trial.trial_id)
            self._seats.last_report(trial.trial_id, report)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial ended on purpose: at its own end, or by the scheduler's word."""
        if self._recorder.state.trials[trial.trial_id].fraction >= 1.0:
            self._recorder.record("completed", trial.trial_id)
        else:
            self._recorder.record("stopped", trial.trial_id, reason="scheduler")

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial's slot died and another one will take it up."""
        self._recorder.take_notes()
        state = self._recorder.state.trials[trial.trial_id]
        # none when it died as it was made or handed over: the trial never ran there, whatever it ran in before
        slot = self._slots.pop(trial.trial_id, None) if state.status == "running" else None
        cause = "the slot's process died" if slot else "a slot's process died before it took the trial"
        self._recorder.record("lost", trial.trial_id, rank=None, cause=cause, step=None, slot=slot)
        trial.set_config({**trial.config, "reached": state.fraction})

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial ended by an error."""
        if self._halt.asked:
            # torn down with the sweep: it is not the trial's failure, and a resume takes it up
            self._recorder.record("left", trial.trial_id, step=self._committed(trial.trial_id))
            return
        error = cause_of(trial)
        self._recorder.take_notes()
        if self._is_hopeless(error, self._recorder.state.trials, trial.trial_id):
            self._halt.fail(error)
        self._recorder.record("failed", trial.trial_id, **failure_facts(error))

    def _is_hopeless(self, error: TlcoreError, trials: Mapping[str, TrialState], trial: str) -> bool:
        if any(state.results for state in trials.values()):
            return False
        failed = [(state.point, state.failure) for state in trials.values() if state.failure is not None]
        earlier = [Failed(point, each["error"], each["message"], each.get("step")) for point, each in failed]
        tried = {node for facts in [error.fields, *(each for _, each in failed)] for node in facts.get("nodes", ())}
        shape = error.fields.get("shape")
        elsewhere = bool(tried) and shape is not None and can_avoid(self._nodes(), tried, shape)
        return is_hopeless(error, trials[trial].point, earlier, self._recorder.furthest, elsewhere)


def cause_of(trial: SlotTrial) -> TlcoreError:
    """What ended a trial, as an error of ours."""
    failure = trial.failure
    if isinstance(failure, RayTaskError) and isinstance(failure.cause, TlcoreError):
        return failure.cause
    if isinstance(failure, RayActorError):
        return WorkerLost(
            f"the slot of trial {trial.trial_id} died more often than failures.max_lost_workers={trial.max_failures}",
            hint="see the head node's memory and system log",
        )
    return TlcoreError(f"the slot failed: {failure}", hint="see the slot's log in the log directory")


def failure_facts(error: TlcoreError) -> dict[str, Any]:
    """An error as a journal entry keeps it."""
    facts = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    return facts | {key: error.fields[key] for key in ("rank", "step", "nodes") if key in error.fields}
