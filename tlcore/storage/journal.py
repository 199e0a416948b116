"""The sweep's journal: what was suggested, reported, decided and lost, in order, one JSON object per entry.

Owns the entries' form, the single-writer rule and the pure fold of entries into `SweepState`. An entry has `n`, `time`
(UTC, ISO), `kind`, `trial` (or null) and the kind's own facts:

    warmed     source, used, unused                    results of an earlier sweep that the searcher starts from: the fitting
                                                       ones (point, fraction, metrics each) and how many did not fit
    unknown    reasons                                 what the check before the sweep could not find out
    suggested  point, of, repaired                     a trial's place in the search space; how many trials are wanted in all;
                                                       `repaired`, if any: setting -> [suggested, what it runs with]
    dropped    point, of, error, message, hint         suggested, and not run: it cannot fit (`failures.on_infeasible`)
    started    slot, workers, price                    the trial runs (again) in this slot, with so many workers; what one of
                                                       them costs an hour, where the recipe says so
    queued     -                                       its workers wait for room: others have it, or it is still to be made
    placed     -                                       they have it, and are started
    result     step, total_steps, fraction, metrics, checkpoint_step, loss, samples_per_s
    paused     -                                       the scheduler has it wait at its last report
    took_over  parent, step, fraction, point, changed, metrics
                                                       it goes on from another trial's checkpoint at `step`, with a new point
                                                       (`changed`: setting -> [the parent's value, its own]); `metrics` are the
                                                       parent's there
    lost       rank, cause, step, loss, node, slot     a command was lost; the trial goes on from its checkpoint at `step`; `loss`
                                                       is worker, node, hang or storage; `slot` only where the slot itself died;
                                                       `nodes`, several, where it is not known which of them is to blame
    adapted    changed, reason, rank, step, asked_bytes
                                                       memory ran out; the trial goes on from its checkpoint at `step` with less
                                                       (`changed`: setting -> [before, now]; its point stays)
    avoided    node, losses, trials                    this node of the cluster lost these trials' workers; it gets no more
    fell_back  step, instead, reason                   it was restored at `step`; the checkpoint at `instead` is damaged, or
                                                       was deleted before the trial could take it over
    left       step                                    its state at `step` (null: none) is committed and its workers are gone,
                                                       because the sweep is stopping; a resume goes on from there
    stopped    reason                                  ended early on purpose ("scheduler")
    completed  -                                       ran to the end of its own epochs
    failed     error, message, hint, rank, step, nodes ended by an error; `nodes` only where workers did not start on these
    warned     error, message, rank                    its session did not close as it should; the trial is over, or goes on from
                                                       what it has committed
    resumed    of                                      a new driver took the sweep over
    stopping   reason                                  no trial starts any more and those that run commit their step, because of
                                                       an interrupt or the budget ("interrupt", "budget")
    interrupted -                                      the driver was asked to stop and did, with trials left
    alive      -                                       the driver lives and has had nothing else to say for minutes
    pruned     checkpoints, freed_bytes, kept_bytes, over_bytes
                                                       retention deleted these ([trial, step, why] each) and what they alone needed;
                                                       `kept_bytes` of chunks are left, `over_bytes` more than budget.bytes
    testing    step, workers, price                    so many workers measure the best trial's checkpoint at `step` on data.test
    final      metrics, checkpoint, examples           test figures of the best trial, of which checkpoint; some answers of it
    finished   best, reason, limit                     nothing is left to run, or (reason "budget") may be run: `limit` is used up

The writer is the sweep's driver alone. Its numbers leave no gap, so whoever finds the next number taken knows that
another driver owns the run. Every full thousand is rolled up (`segments.py`), which changes nothing of that. Called by
`sweep/` (writes, resumes) and by readers that want the state and not the rows.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Literal

from tlcore.errors import StaleWriter, StorageError
from tlcore.storage.account import Account
from tlcore.storage.base import ObjectStore
from tlcore.storage.documents import encode_json
from tlcore.storage.keys import SEGMENT_ENTRIES, journal_key
from tlcore.storage.segments import read_block, read_entries, roll_up, rolled_up

Entry = dict[str, Any]
TrialStatus = Literal["waiting", "running", "completed", "stopped", "failed"]

KINDS: Final = frozenset({
    "warmed", "suggested", "dropped", "unknown", "started", "queued", "placed", "result", "paused", "took_over", "lost", "adapted",
    "avoided", "fell_back", "left", "stopped", "completed", "failed", "resumed", "stopping", "interrupted", "alive", "pruned",
    "testing", "final", "finished", "warned",
})  # fmt: skip
_log = logging.getLogger(__name__)


class Journal:
    """The one writer of a run's journal.

    Args:
        store: rooted at the run.
        clock: current time, timezone-aware.
        start: number of the next entry: how many there are.
        ask: performs one put and returns what it returned; the place for trying again where the store is away for longer than its
            own client has patience. It gets the same bytes each time, so an answer that was lost does no harm.
    """

    def __init__(
        self,
        store: ObjectStore,
        clock: Callable[[], datetime],
        start: int = 0,
        ask: Callable[[Callable[[], bool]], bool] = lambda put: put(),
    ) -> None:
        self._store, self._ask = store, ask
        self._clock = clock
        self._next = start
        self._block: list[bytes] = []
        """What was appended to the block that is not full; without what an earlier driver wrote of it."""

    @property
    def next_number(self) -> int:
        """Number of the next entry."""
        return self._next

    def append(self, kind: str, trial: str | None = None, **facts: Any) -> Entry:
        """Write one entry and return it as it will be read; it is durable when this returns.

        NaN and infinities, which JSON has not, become null. Raises StaleWriter when another driver wrote this number.
        """
        if kind not in KINDS:
            raise ValueError(f"journal kind {kind!r} is none of {sorted(KINDS)}")
        entry: Entry = {
            "n": self._next,
            "time": self._clock().isoformat(),
            "kind": kind,
            "trial": trial,
            **_finite(facts),
        }
        key, data = journal_key(self._next), encode_json(entry)
        if not self._ask(lambda: self._store.put_if_absent(key, data)):
            raise StaleWriter(
                f"another driver wrote {key} in {self._store.url}: this sweep was resumed elsewhere",
                hint="let that driver go on; this one has stopped without changing anything more",
                key=key,
            )
        self._next += 1
        self._block.append(data)
        if self._next % SEGMENT_ENTRIES == 0:
            block, self._block = self._block, []
            self._roll_up(self._next - SEGMENT_ENTRIES, block)
        return entry

    def catch_up(self, entries: Sequence[Entry]) -> None:
        """Roll up what drivers before this one wrote and did not live to roll up, or did not know how to.

        Args:
            entries: the journal from its beginning.
        """
        there = rolled_up(self._store)
        for first in range(0, len(entries) - SEGMENT_ENTRIES + 1, SEGMENT_ENTRIES):
            if first not in there:
                self._roll_up(first, [encode_json(entry) for entry in entries[first : first + SEGMENT_ENTRIES]])

    def _roll_up(self, first: int, block: Sequence[bytes]) -> None:
        try:
            whole = block if len(block) == SEGMENT_ENTRIES else read_block(self._store, first)
            roll_up(self._store, first, whole)
        except StorageError as error:  # a segment saves time, no more; a store that stays away fails the next entry
            _log.warning("the journal's entries from %d on are not rolled up yet: %s", first, error.message)


def read_journal(store: ObjectStore) -> list[Entry]:
    """Every entry of the run at the root of `store`, in order. Raises StorageError if one is missing or malformed."""
    entries = read_entries(store)
    for n, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
            raise StorageError(f"{journal_key(n)} in {store.url} is no journal entry", hint="start a new run")
    return entries


@dataclass(frozen=True, slots=True)
class TrialResult:
    """One report: where the trial was, and what it measured there."""

    step: int
    fraction: float
    metrics: Mapping[str, float | None]
    checkpoint_step: int | None


@dataclass(frozen=True)
class Takeover:
    """A trial went on from the checkpoint of `parent` at `step`; `changed` is setting -> [the parent's value, its own]."""

    parent: str
    step: int
    fraction: float
    changed: Mapping[str, Any]


@dataclass
class TrialState:
    """One trial as the journal tells it. `results` is in order of arrival; a resumed trial may repeat a fraction, and what it
    took over from another trial stands among them as the parent reported it. `lineage` is in order, mostly empty; a life begins
    with each takeover, `life_began` counts the results before it, and `life_started` says whether a slot took the trial since.
    `losses` counts by kind; `adapted` is what the trial runs with, besides its point, since memory ran out."""

    trial: str
    point: dict[str, Any]
    status: TrialStatus = "waiting"
    results: list[TrialResult] = field(default_factory=list)
    lineage: list[Takeover] = field(default_factory=list)
    life_began: int = 0
    life_started: bool = False
    reason: str = ""
    losses: dict[str, int] = field(default_factory=dict)
    adapted: dict[str, Any] = field(default_factory=dict)
    workers: int | None = None
    failure: Entry | None = None
    repaired: dict[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Nothing more will come of it."""
        return self.status in {"completed", "stopped", "failed"}

    @property
    def fraction(self) -> float:
        """Deepest fraction of its own epochs at which it, or the trial that it took over from, reported."""
        return max((result.fraction for result in self.results[self.life_began :]), default=0.0)

    @property
    def checkpoint_step(self) -> int | None:
        """Step of the newest committed checkpoint that a result named."""
        steps = (result.checkpoint_step for result in self.results[self.life_began :])
        return max((step for step in steps if step is not None), default=None)

    @property
    def just_took_over(self) -> Takeover | None:
        """The takeover after which nothing was begun yet: its checkpoint may not be the trial's own. A trial that was started has
        it, and what it committed since is its own as well."""
        fresh = not self.life_started and len(self.results) == self.life_began + 1
        return self.lineage[-1] if self.lineage and fresh else None

    def final(self, metric: str) -> float | None:
        """The metric at the last report; None before the first, and where it was not finite."""
        return self.results[-1].metrics.get(metric) if self.results else None


@dataclass
class SweepState:
    """A whole sweep, folded from its journal; trials are in the order in which they were suggested.

    `ended_by` is "budget" where that ended it with something left to run, `stopping` why it is being stopped, empty once that is
    over. `testing` is the trial and step that are on data.test now, `finals` the entries of test figures. `avoided` are the nodes
    that the present driver's slots keep away from: who resumes may have mended them."""

    trials: dict[str, TrialState] = field(default_factory=dict)
    entries: int = 0
    resumes: int = 0
    finished: bool = False
    avoided: list[str] = field(default_factory=list)
    ended_by: str = ""
    stopping: str = ""
    testing: tuple[str, int] | None = None
    finals: list[Entry] = field(default_factory=list)
    account: Account = field(default_factory=Account)

    @classmethod
    def from_entries(cls, entries: Iterable[Entry]) -> SweepState:
        """Fold a journal from its beginning."""
        state = cls()
        for entry in entries:
            state.apply(entry)
        return state

    def apply(self, entry: Entry) -> None:
        """Fold one more entry. Unknown kinds count and change nothing, so an older reader accepts a newer journal."""
        self.entries += 1
        self.account.apply(entry)
        kind, trial = entry["kind"], entry.get("trial")
        if kind == "suggested":
            self.trials[entry["trial"]] = TrialState(
                entry["trial"], dict(entry["point"]), repaired=dict(entry.get("repaired") or {})
            )
        elif kind == "dropped":
            reason = str(entry["message"])
            self.trials[entry["trial"]] = TrialState(
                entry["trial"], dict(entry["point"]), "failed", reason=reason, failure=entry
            )
        elif kind == "resumed":
            self._resume()
        elif kind == "stopping":
            self.stopping = str(entry.get("reason") or "")
        elif kind in {"testing", "final"}:
            self.testing = (entry["trial"], entry["step"]) if kind == "testing" else None
            self.finals += [entry] if kind == "final" else []
        elif kind in {"interrupted", "finished"}:
            self.stopping, self.testing = "", None
            if kind == "finished":
                self.finished, self.ended_by = True, str(entry.get("reason") or "")
        elif kind == "avoided":
            self.avoided.append(entry["node"])
        elif trial in self.trials:
            _apply_to_trial(self.trials[trial], entry)

    def copy(self) -> SweepState:
        """The same, apart from what is folded into either of them later."""
        trials = {
            name: replace(
                trial,
                results=list(trial.results),
                lineage=list(trial.lineage),
                losses=dict(trial.losses),
                adapted=dict(trial.adapted),
            )
            for name, trial in self.trials.items()
        }
        return replace(self, trials=trials, avoided=list(self.avoided), account=deepcopy(self.account))

    def unfinished(self) -> list[TrialState]:
        """Trials that were suggested and have not ended."""
        return [trial for trial in self.trials.values() if not trial.ended]

    def best(self, metric: str, mode: str) -> TrialState | None:
        """The trial with the best last metric; on a tie the deeper, then the earlier one. None without any metric."""
        sign = 1.0 if mode == "max" else -1.0
        scored = [(value, trial) for trial in self.trials.values() if (value := trial.final(metric)) is not None]
        return max(scored, key=lambda item: (sign * item[0], item[1].fraction))[1] if scored else None

    def front(self, metrics: Sequence[str], modes: Sequence[str]) -> list[TrialState]:
        """Trials whose last metrics no other trial's beat: as good in all and better in one. Best of the first metric first."""
        signs = [1.0 if mode == "max" else -1.0 for mode in modes]
        scored: list[tuple[tuple[float, ...], TrialState]] = []
        for trial in self.trials.values():
            values = [trial.final(metric) for metric in metrics]
            if all(value is not None for value in values):
                scored.append((tuple(sign * (value or 0.0) for sign, value in zip(signs, values, strict=True)), trial))
        best = [item for item in scored if not any(_beats(other[0], item[0]) for other in scored)]
        return [trial for _, trial in sorted(best, key=lambda item: item[0], reverse=True)]

    def _resume(self) -> None:
        self.resumes += 1
        self.finished, self.ended_by, self.stopping, self.testing = False, "", "", None
        self.avoided = []
        for trial in self.unfinished():
            trial.status = "waiting"


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(here >= there for here, there in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def _apply_to_trial(trial: TrialState, entry: Entry) -> None:
    kind = entry["kind"]
    if kind == "started":
        trial.status, trial.workers, trial.life_started = "running", entry.get("workers"), True
    elif kind == "result":
        trial.results.append(
            TrialResult(entry["step"], entry["fraction"], entry["metrics"], entry.get("checkpoint_step"))
        )
    elif kind in {"paused", "left"}:
        trial.status = "waiting"
    elif kind == "took_over":
        _take_over(trial, entry)
    elif kind == "lost":
        loss = "slot" if "slot" in entry else entry.get("loss", "worker")
        trial.losses[loss] = trial.losses.get(loss, 0) + 1
    elif kind == "adapted":
        trial.adapted.update({key: now for key, (_, now) in entry["changed"].items()})
    elif kind == "completed":
        trial.status = "completed"
    elif kind == "stopped":
        trial.status, trial.reason = "stopped", str(entry.get("reason", ""))
    elif kind == "failed":
        trial.status, trial.reason, trial.failure = "failed", str(entry.get("message", "")), entry


def _take_over(trial: TrialState, entry: Entry) -> None:
    trial.status, trial.point = "waiting", dict(entry["point"])
    trial.lineage.append(Takeover(entry["parent"], entry["step"], entry["fraction"], dict(entry["changed"])))
    trial.life_began, trial.life_started = len(trial.results), False
    trial.results.append(TrialResult(entry["step"], entry["fraction"], entry["metrics"], entry["step"]))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        # one name for all: a driver keeps every report, whose names would take more memory than its figures
        return {sys.intern(str(key)): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
