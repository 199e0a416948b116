"""A Tune scheduler's state, driven by events that the journal has: the only way it is ever driven.

Owns the seats. Tune's schedulers key their state by `Trial` objects, read those objects' status, and cannot be stored
(ray#30838). Here a scheduler never sees a Tune trial: it sees a `Seat` per trial, whose status follows from the events below
and from the scheduler's own decisions. So the same events give the same state, whether they come from Tune (`conductor.py`) or
from the journal of a sweep that died, and a resumed sweep goes on with the same rungs, brackets and population.

Events: add, start, report, end, requeue, resume. Does not own Tune's trials, the journal, or what a decision entails.
Called by `conductor.py` and by tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from tlcore.storage.journal import Entry

TIME: Final = "time"
"""Key of the results that schedulers see: a trial's place, in the unit of the scheduler."""


class Seat:
    """What a scheduler sees of a trial. `config` is its point; `committed` its newest report at a rung or interval, whose
    checkpoint was committed: what others may take over, which the trial's writer keeps (`checkpoint/retention.py`)."""

    def __init__(self, trial_id: str, point: Mapping[str, Any]) -> None:
        self.trial_id = trial_id
        self.config = dict(point)
        self.status = Trial.PENDING
        self.is_saving = False
        self.experiment_tag = trial_id
        self.committed: Mapping[str, Any] | None = None
        self.result: dict[str, Any] = {}
        self.takeovers = 0

    def is_finished(self) -> bool:
        """Nothing more will come of it."""
        return self.status in (Trial.TERMINATED, Trial.ERROR)

    def __str__(self) -> str:
        return self.trial_id

    __repr__ = __str__


@dataclass(frozen=True)
class TakeOver:
    """Decision: `trial` goes on from the checkpoint of `parent` at `step`, which reported `metrics` at `fraction` there."""

    trial: str
    parent: str
    step: int
    fraction: float
    point: Mapping[str, Any]
    changed: Mapping[str, Any]
    metrics: Mapping[str, float | None]


class Effects(Protocol):
    """What decisions about other trials than the reporting one entail."""

    def stop(self, trial: str) -> None:
        """End a waiting trial; `Seats.end` must have been called when this returns."""

    def take_over(self, seat: Seat, donor: Seat, propose: Callable[[], Mapping[str, Any]]) -> TakeOver | None:
        """Have the trial of `seat` go on from what `donor` has committed, at the point that `propose` gives. None: it cannot."""


class Seats:
    """A scheduler and the seats of its trials; to the scheduler, this is Tune's controller.

    Args:
        scheduler: Tune's, fresh.
        time_of: a fraction of a trial -> the scheduler's unit of time.
        effects: carries out what is decided about other trials.
    """

    search_alg = None

    def __init__(self, scheduler: TrialScheduler, time_of: Callable[[float], float], effects: Effects) -> None:
        self.scheduler = scheduler
        self.effects = effects
        self.seats: dict[str, Seat] = {}
        self.wanted = 0
        self._time_of = time_of

    def more_to_come(self) -> bool:
        """Whether trials are wanted that have no seat yet."""
        return len(self.seats) < self.wanted

    def add(self, trial: str, point: Mapping[str, Any], wanted: int) -> None:
        """A trial was suggested, one of `wanted` in all."""
        self.wanted = wanted
        seat = self.seats[trial] = Seat(trial, point)
        self.scheduler.on_trial_add(self, seat)

    def drop(self, trial: str, point: Mapping[str, Any], wanted: int) -> None:
        """A trial was suggested and will not run: whoever waits for more to come waits for one less."""
        self.add(trial, point, wanted)
        self.end(trial, failed=True)

    def start(self, trial: str) -> None:
        """A slot took it."""
        self.seats[trial].status = Trial.RUNNING

    def report(self, trial: str, facts: Mapping[str, Any]) -> str:
        """It reported before its end: facts are fraction, step, metrics, checkpoint_step. Returns the scheduler's decision."""
        seat = self._note(trial, facts)
        decision: str = self.scheduler.on_trial_result(self, seat, dict(seat.result))
        if decision == TrialScheduler.PAUSE:
            seat.status = Trial.PAUSED
        return decision

    def last_report(self, trial: str, facts: Mapping[str, Any]) -> None:
        """It reported at its end, which no scheduler decides about."""
        self._note(trial, facts)

    def _note(self, trial: str, facts: Mapping[str, Any]) -> Seat:
        seat = self.seats[trial]
        seat.result = {TIME: self._time_of(facts["fraction"]), **_numbers(facts["metrics"])}
        # Between two intervals a save may be committed by chance; the writer does not keep it for others.
        if facts.get("checkpoint_step") == facts["step"] and float(seat.result[TIME]).is_integer():
            seat.committed = {key: facts[key] for key in ("step", "fraction", "metrics", "checkpoint_step")}
        return seat

    def end(self, trial: str, failed: bool = False) -> None:
        """It will report no more. A second call changes nothing."""
        seat = self.seats[trial]
        if seat.is_finished():
            return
        waiting = seat.status == Trial.PAUSED
        if not failed and not waiting:
            self.scheduler.on_trial_complete(self, seat, dict(seat.result))
        seat.status = Trial.ERROR if failed else Trial.TERMINATED
        if failed:
            self.scheduler.on_trial_error(self, seat)
        elif waiting:
            self.scheduler.on_trial_remove(self, seat)

    def requeue(self, trial: str) -> None:
        """Its slot died; what ran waits for another one. No scheduler is told: Tune would add it to a second bracket."""
        if self.seats[trial].status == Trial.RUNNING:
            self.seats[trial].status = Trial.PENDING

    def resume(self, wanted: int) -> None:
        """A new driver: what ran waits for a slot."""
        self.wanted = wanted
        for seat in self.seats.values():
            if seat.status == Trial.RUNNING:
                seat.status = Trial.PENDING
        settle = getattr(self.scheduler, "settle", None)
        if settle is not None:
            settle(self)

    def take_over(self, seat: Seat, donor: Seat, propose: Callable[[], Mapping[str, Any]]) -> Seat | None:
        """Called by a population scheduler. Returns the seat whose state was taken over, None when it could not be."""
        done = self.effects.take_over(seat, donor, propose)
        if done is None:
            return None
        seat.config, seat.status = dict(done.point), Trial.PAUSED
        seat.committed = {
            "step": done.step,
            "fraction": done.fraction,
            "metrics": done.metrics,
            "checkpoint_step": done.step,
        }
        seat.takeovers += 1
        return self.seats[done.parent]

    def offered(self) -> set[tuple[str, int]]:
        """Trial and step of each checkpoint that a live trial has for others to take over. Safe to ask from other threads."""
        live = [seat for seat in list(self.seats.values()) if not seat.is_finished()]
        return {(seat.trial_id, seat.committed["step"]) for seat in live if seat.committed is not None}

    # What Tune's schedulers ask of Tune's controller.

    def get_trials(self) -> list[Seat]:
        """Every trial that was suggested."""
        return list(self.seats.values())

    def get_live_trials(self) -> set[Seat]:
        """Those that have not ended."""
        return {seat for seat in self.seats.values() if not seat.is_finished()}

    def stop_trial(self, seat: Seat) -> None:
        """End another trial than the reporting one."""
        self.effects.stop(seat.trial_id)

    def choose(self) -> Seat | None:
        """The trial that the scheduler wants to run next."""
        found: Seat | None = self.scheduler.choose_trial_to_run(self)
        return found

    def ready(self) -> list[Seat]:
        """The waiting trials that the scheduler wants to run, in its order; Tune's own schedulers name one at a time."""
        several = getattr(self.scheduler, "ready", None)
        if several is not None:
            return list(several(self))
        found = self.choose()
        return [] if found is None else [found]


def _numbers(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Metrics as they were reported: what was not finite stands as null in the journal."""
    return {name: math.nan if value is None else value for name, value in metrics.items()}


class Replay:
    """Brings fresh seats to where a journal ends; the effects of decisions are those that the journal has.

    `stopped` are trials whose stop was decided and not written, `pending` the takeovers that were decided after the last result
    and not written.

    Args:
        seats: fresh.
        entries: the journal from its beginning.
        can: whether a takeover that was not written can still be done; as in a live sweep, one that cannot is not decided.
    """

    def __init__(
        self, seats: Seats, entries: Iterable[Entry], can: Callable[[TakeOver], bool] = lambda decided: True
    ) -> None:
        self.stopped: set[str] = set()
        self.pending: list[TakeOver] = []
        self._seats, self._entries, self._can = seats, list(entries), can
        self._at = 0
        self._last_result, self._last_resumed = self._last("result"), self._last("resumed")
        self._used: set[int] = set()
        after, seats.effects = seats.effects, self
        try:
            for at, entry in enumerate(self._entries):
                self._at = at
                if isinstance(entry.get("trial"), str) or entry["kind"] == "resumed":
                    self._apply(entry)
        finally:
            seats.effects = after

    def _apply(self, entry: Entry) -> None:
        seats, trial, kind = self._seats, entry.get("trial"), entry["kind"]
        if kind == "resumed":
            seats.resume(entry.get("of", seats.wanted))
        elif kind == "suggested":
            seats.add(entry["trial"], entry["point"], entry.get("of", 0))
        elif kind == "dropped":
            seats.drop(entry["trial"], entry["point"], entry.get("of", 0))
        elif trial not in seats.seats:
            return
        elif kind == "started":
            seats.start(entry["trial"])
        elif kind == "result":
            self._report(entry)
        elif kind in {"completed", "stopped", "failed"}:
            seats.end(entry["trial"], failed=kind == "failed")
            self.stopped.discard(entry["trial"])
        elif kind == "lost" and "slot" in entry:
            seats.requeue(entry["trial"])

    def _report(self, entry: Entry) -> None:
        if entry["fraction"] >= 1.0:
            self._seats.last_report(entry["trial"], entry)
        elif self._seats.report(entry["trial"], entry) == TrialScheduler.STOP:
            self.stopped.add(entry["trial"])

    def stop(self, trial: str) -> None:
        """Another trial's stop: its entry follows, or is missing."""
        self._seats.end(trial)
        self.stopped.add(trial)

    def take_over(self, seat: Seat, donor: Seat, propose: Callable[[], Mapping[str, Any]]) -> TakeOver | None:
        """The takeover that was written after this result; one that was not, if the driver may have died before it could be."""
        for n in range(self._at + 1, len(self._entries)):
            entry = self._entries[n]
            if entry["kind"] == "result":
                break
            if entry["kind"] == "took_over" and entry["trial"] == seat.trial_id and n not in self._used:
                self._used.add(n)
                return from_entry(entry)
        if self._at < max(self._last_result, self._last_resumed):
            return None
        decided = decide(seat, donor, propose)
        if decided is None or not self._can(decided):
            return None
        self.pending.append(decided)
        return decided

    def _last(self, kind: str) -> int:
        return max((n for n, entry in enumerate(self._entries) if entry["kind"] == kind), default=-1)


def decide(seat: Seat, donor: Seat, propose: Callable[[], Mapping[str, Any]]) -> TakeOver | None:
    """A takeover of what `donor` committed last; None when it has committed nothing."""
    source = donor.committed
    if source is None:
        return None
    point = propose()
    changed = {key: [donor.config.get(key), value] for key, value in point.items() if donor.config.get(key) != value}
    return TakeOver(
        seat.trial_id, donor.trial_id, source["step"], source["fraction"], point, changed, dict(source["metrics"])
    )


def from_entry(entry: Entry) -> TakeOver:
    """A takeover as the journal has it."""
    facts = {key: entry[key] for key in ("trial", "parent", "step", "fraction", "point", "changed", "metrics")}
    return TakeOver(**facts)
