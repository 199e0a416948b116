"""The sweep's journal: what was suggested, reported, decided and lost, in order, one JSON object per entry.

Owns the entries' form, the single-writer rule and the pure fold of entries into `SweepState`. An entry has `n`, `time`
(UTC, ISO), `kind`, `trial` (or null) and the kind's own facts:

    warmed     source, used, unused                    results of an earlier sweep that the searcher starts from: the fitting
                                                       ones (point, fraction, metrics each) and how many did not fit
    suggested  point, of                               a trial's place in the search space; how many trials are wanted in all
    started    slot                                    the trial runs (again) in this slot
    result     step, total_steps, fraction, metrics, checkpoint_step, loss, samples_per_s
    paused     -                                       the scheduler has it wait at its last report
    took_over  parent, step, fraction, point, changed, metrics
                                                       it goes on from another trial's checkpoint at `step`, with a new point
                                                       (`changed`: setting -> [the parent's value, its own]); `metrics` are the
                                                       parent's there
    lost       rank, cause, step, slot                 a worker died; the trial went on from its checkpoint at `step`; `slot`
                                                       only where the slot itself died
    fell_back  step, instead, reason                   it was restored at `step`; the checkpoint at `instead` is damaged
    stopped    reason                                  ended early on purpose ("scheduler")
    completed  -                                       ran to the end of its own epochs
    failed     error, message, hint, rank              ended by an error
    resumed    of                                      a new driver took the sweep over
    pruned     checkpoints, freed_bytes, kept_bytes, over_bytes
                                                       retention deleted these ([trial, step, why] each) and what they alone needed;
                                                       `kept_bytes` of chunks are left, `over_bytes` more than budget.bytes
    finished   best                                    nothing is left to run
    final      metrics                                 test figures of the best trial

The writer is the sweep's driver alone. Its numbers leave no gap, so whoever finds the next number taken knows that
another driver owns the run. Called by `sweep/` (writes, resumes) and by readers that want the state and not the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Literal

from tlcore.errors import StaleWriter, StorageError
from tlcore.storage.base import ObjectStore
from tlcore.storage.documents import encode_json, get_json
from tlcore.storage.keys import JOURNAL_PREFIX, journal_key, parse_journal_key

Entry = dict[str, Any]
TrialStatus = Literal["waiting", "running", "completed", "stopped", "failed"]

KINDS: Final = frozenset(
    {
        "warmed",
        "suggested",
        "started",
        "result",
        "paused",
        "took_over",
        "lost",
        "fell_back",
        "stopped",
        "completed",
        "failed",
        "resumed",
        "pruned",
        "finished",
        "final",
    }
)
_READERS = 16


class Journal:
    """The one writer of a run's journal.

    Args:
        store: rooted at the run.
        clock: current time, timezone-aware.
        start: number of the next entry: how many there are.
    """

    def __init__(self, store: ObjectStore, clock: Callable[[], datetime], start: int = 0) -> None:
        self._store = store
        self._clock = clock
        self._next = start

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
        key = journal_key(self._next)
        if not self._store.put_if_absent(key, encode_json(entry)):
            raise StaleWriter(
                f"another driver wrote {key} in {self._store.url}: this sweep was resumed elsewhere",
                hint="let that driver go on; this one has stopped without changing anything more",
                key=key,
            )
        self._next += 1
        return entry


def read_journal(store: ObjectStore) -> list[Entry]:
    """Every entry of the run at the root of `store`, in order. Raises StorageError if one is missing or malformed."""
    numbers = [number for info in store.list(JOURNAL_PREFIX) if (number := parse_journal_key(info.key)) is not None]
    if numbers != list(range(len(numbers))):
        gap = next(expected for expected, number in enumerate(numbers) if number != expected)
        raise StorageError(
            f"journal of {store.url} has no entry {gap}", hint="the run was changed by hand; start a new one"
        )
    with ThreadPoolExecutor(_READERS) as pool:
        entries = list(pool.map(lambda n: get_json(store, journal_key(n)), numbers))
    for n, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
            raise StorageError(f"{journal_key(n)} in {store.url} is no journal entry", hint="start a new run")
    return entries


@dataclass(frozen=True)
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
    took over from another trial stands among them as the parent reported it. `lineage` is in order, mostly empty."""

    trial: str
    point: dict[str, Any]
    status: TrialStatus = "waiting"
    results: list[TrialResult] = field(default_factory=list)
    lineage: list[Takeover] = field(default_factory=list)
    life_began: int = 0
    reason: str = ""
    lost_workers: int = 0
    failure: Entry | None = None

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
        """The takeover after which nothing was reported yet."""
        return self.lineage[-1] if self.lineage and len(self.results) == self.life_began + 1 else None

    def final(self, metric: str) -> float | None:
        """The metric at the last report; None before the first, and where it was not finite."""
        return self.results[-1].metrics.get(metric) if self.results else None


@dataclass
class SweepState:
    """A whole sweep, folded from its journal; trials are in the order in which they were suggested."""

    trials: dict[str, TrialState] = field(default_factory=dict)
    entries: int = 0
    resumes: int = 0
    finished: bool = False

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
        kind, trial = entry["kind"], entry.get("trial")
        if kind == "suggested":
            self.trials[entry["trial"]] = TrialState(entry["trial"], dict(entry["point"]))
        elif kind == "resumed":
            self._resume()
        elif kind == "finished":
            self.finished = True
        elif trial in self.trials:
            _apply_to_trial(self.trials[trial], entry)

    def copy(self) -> SweepState:
        """The same, apart from what is folded into either of them later."""
        trials = {
            name: replace(trial, results=list(trial.results), lineage=list(trial.lineage))
            for name, trial in self.trials.items()
        }
        return replace(self, trials=trials)

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
        self.finished = False
        for trial in self.unfinished():
            trial.status = "waiting"


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(here >= there for here, there in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def _apply_to_trial(trial: TrialState, entry: Entry) -> None:
    kind = entry["kind"]
    if kind == "started":
        trial.status = "running"
    elif kind == "result":
        trial.results.append(
            TrialResult(entry["step"], entry["fraction"], entry["metrics"], entry.get("checkpoint_step"))
        )
    elif kind == "paused":
        trial.status = "waiting"
    elif kind == "took_over":
        _take_over(trial, entry)
    elif kind == "lost":
        trial.lost_workers += 1
    elif kind == "completed":
        trial.status = "completed"
    elif kind == "stopped":
        trial.status, trial.reason = "stopped", str(entry.get("reason", ""))
    elif kind == "failed":
        trial.status, trial.reason, trial.failure = "failed", str(entry.get("message", "")), entry


def _take_over(trial: TrialState, entry: Entry) -> None:
    trial.status, trial.point = "waiting", dict(entry["point"])
    trial.lineage.append(Takeover(entry["parent"], entry["step"], entry["fraction"], dict(entry["changed"])))
    trial.life_began = len(trial.results)
    trial.results.append(TrialResult(entry["step"], entry["fraction"], entry["metrics"], entry["step"]))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
