"""Between Tune and a scheduler's seats: what Tune sees as the scheduler.

Owns the order of one report: the result is durable before the scheduler sees it, and each decision is durable before Tune acts on
it. So a sweep that dies in between decides the same again from its journal. Owns also what decisions entail in Tune: a trial
that waits is started again only when the scheduler chooses it and there is room, a stopped one is stopped, and one that takes over
another's state is put aside with its new point, its checkpoint cloned by pointer.

Does not own any rule of a scheduler (`seats.py` and behind it). Called by Tune's controller, in the driver's thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ray.exceptions import RayTaskError
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from tlcore.sweep.schedule.seats import Seat, Seats, TakeOver, decide
from tlcore.sweep.slots.group import Cancelled
from tlcore.sweep.slots.slot import REPORT


class History(Protocol):
    """Writes journal entries (`recorder.py`)."""

    def record(self, kind: str, trial: str | None = None, **facts: Any) -> Any:
        """Write one entry; durable when this returns."""

    def result(self, trial: str, report: Mapping[str, Any]) -> None:
        """Write a trial's report, and what it lost since the one before."""


class Hands(Protocol):
    """What the conductor needs done with trials (`search.py`)."""

    def trial(self, name: str) -> Trial | None:
        """Tune's trial of that name, once it was handed to Tune."""

    def start(self, trials: Sequence[Trial]) -> Trial | None:
        """The first of these waiting trials that there is room for, its place taken; None where none fits."""

    def move(self, trial: Trial | None, name: str) -> None:
        """Give a trial the config of the state that the journal now has for it."""


class Conductor(TrialScheduler):
    """A Tune scheduler without a state of its own. Give it `seats`, and `hands` before Tune runs.

    Args:
        history: the journal.
        clone: makes the checkpoint of a takeover the trial's own, before the trial starts; raises when it cannot. Its argument
            with `check` True asks only whether it could.
    """

    _supports_buffered_results = False

    def __init__(self, history: History, clone: Callable[[TakeOver, bool], bool]) -> None:
        super().__init__()
        self._history, self._clone = history, clone
        self.seats: Seats
        self.hands: Hands | None = None
        self._controller: Any = None

    # Tune's events.

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A trial came, or came back after its slot died; its seat is known since it was suggested."""
        self._controller = tune_controller
        if self.seats.seats[trial.trial_id].status == Trial.PAUSED and trial.status == Trial.PENDING:
            tune_controller._tune_controller._set_trial_status(trial, Trial.PAUSED)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Write the report down, then decide."""
        self._controller = tune_controller
        report = json.loads(result[REPORT])
        self._history.result(trial.trial_id, report)
        decision = self.seats.report(trial.trial_id, report)
        if decision == TrialScheduler.PAUSE:
            self._history.record("paused", trial.trial_id)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """A trial ended by itself, or by the scheduler's word."""
        self.seats.end(trial.trial_id)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """A waiting trial was stopped."""
        self.seats.end(trial.trial_id)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """A trial failed for good, or (Tune has marked it so already) is to be started again in another slot, or it left because
        the sweep is being stopped, which no scheduler may take for a failure: what it then decides would outlive this driver."""
        if trial.status == Trial.ERROR or _has_left(trial):
            self.seats.requeue(trial.trial_id)
        else:
            self.seats.end(trial.trial_id, failed=True)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The waiting trial to start now, if there is room. Tune starts by itself what never waited."""
        self._controller = tune_controller
        found = self._ready()
        return self.hands.start(found) if found and self.hands is not None else None

    def debug_string(self) -> str:
        """One line for Tune's own log."""
        return str(self.seats.scheduler.debug_string())

    def _trial(self, name: str) -> Trial | None:
        return self.hands.trial(name) if self.hands is not None else None

    # What else the driver asks.

    def has_ready(self) -> bool:
        """Whether a trial waits only for room; it comes before new ones."""
        return bool(self._ready())

    def _ready(self) -> list[Trial]:
        trials = [self._trial(seat.trial_id) for seat in self.seats.ready()]
        return [trial for trial in trials if trial is not None and trial.status == Trial.PAUSED]

    def idle(self) -> list[Any]:
        """The resource requests of slots that Tune keeps warm for trials to come."""
        if self._controller is None:
            return []
        # Tune tells nobody which slots it keeps; it throws them away as soon as one of another request is wanted
        kept = self._controller._tune_controller._actor_cache._cached_objects
        return [request for request, slots in kept.items() for _ in slots]

    # Effects of decisions about other trials.

    def stop(self, trial: str) -> None:
        """End a waiting trial."""
        found = self._trial(trial)
        if found is not None and self._controller is not None:
            self._controller.stop_trial(found)
        else:
            self.seats.end(trial)
            self._history.record("stopped", trial, reason="scheduler")

    def take_over(self, seat: Seat, donor: Seat, propose: Callable[[], Mapping[str, Any]]) -> TakeOver | None:
        """Write a takeover down, make the checkpoint the trial's own, put the trial aside with its new point."""
        decided = decide(seat, donor, propose)
        if decided is None or not self._clone(decided, True):
            return None
        self.carry_out(decided)
        return decided

    def carry_out(self, decided: TakeOver) -> None:
        """Do what was decided; also called for what a driver that died had decided and not written."""
        trial = self._trial(decided.trial)
        # one that saves on its way to being paused will be, with its new config
        if trial is not None and trial.status == Trial.RUNNING and not trial.is_saving:
            self._controller.pause_trial(trial, should_checkpoint=False)
        facts = {key: getattr(decided, key) for key in ("parent", "step", "fraction", "point", "changed", "metrics")}
        self._history.record("took_over", decided.trial, **facts)
        self._clone(decided, False)
        if self.hands is not None:
            self.hands.move(trial, decided.trial)


def _has_left(trial: Any) -> bool:
    failure = getattr(trial, "failure", None)
    return isinstance(failure, RayTaskError) and isinstance(failure.cause, Cancelled)
