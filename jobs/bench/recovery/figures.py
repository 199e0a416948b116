"""What kills cost, from the steps that were really done and the sweep's journal.

Owns the arithmetic, pure. A kill *hits* the trials that ran on what was killed; for the driver and the store, all that ran. It is
over when each of them trains again, or has come to its end:

    worker, slot, driver, raylet    the first step of a life that began after the kill
    store                           the first step that knows of a checkpoint newer than those from before the kill

A step is *repeated* as often as one rank of one trial did it again. It is put down to the newest kill before the first step of the
life that did it again; where ranks differ the one with the most counts. A trial goes on from its newest committed checkpoint: the
bound is one checkpoint interval where the one that was due is committed. Where it is not yet, because what commits it was killed
before, the bound is one interval and what was trained since: `over_bound` counts such trials and is no fault. It is one when a life
begins *behind* a checkpoint that a rank knew to be committed before, whatever the number of steps. A trial is *lost* unless it was
completed, or stopped by the scheduler. A step that was never done and has a later one after it is *skipped*: a trial went on from a
state it never had.
Called by `campaign.py`, which waits for kills to be over, and by `__main__.py`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any, Final, Literal

from jobs.bench.recovery.steps import StepDone

Kind = Literal["worker", "slot", "driver", "raylet", "store"]
KINDS: Final[tuple[Kind, ...]] = ("worker", "slot", "driver", "raylet", "store")
ENDS: Final = frozenset({"completed", "stopped", "failed", "dropped"})
"""Journal entries after which a trial does nothing more."""
ENDED_WELL: Final = frozenset({"completed", "stopped"})


@dataclass(frozen=True)
class Kill:
    """One kill -9: when (seconds since 1970) and which trials ran on what was killed. `back_s`: when the bench had put back what
    does not come back by itself (the store, a driver, a node); equal to `at_s` where nothing was to be put back."""

    kind: Kind
    at_s: float
    hits: tuple[str, ...]
    back_s: float


def ends(journal: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """When each trial ended, seconds since 1970."""
    return {
        entry["trial"]: datetime.fromisoformat(entry["time"]).timestamp()
        for entry in journal
        if entry["kind"] in ENDS and entry["trial"] is not None
    }


def recovered_s(kill: Kill, lines: Sequence[StepDone], ended: Mapping[str, float]) -> float | None:
    """Seconds from a kill until it is over; None while it is not."""
    times = [_trial_recovered(kill, trial, lines, ended) for trial in kill.hits]
    if any(time is None for time in times):
        return None
    return max((time - kill.at_s for time in times if time is not None), default=0.0)


def _trial_recovered(kill: Kill, trial: str, lines: Sequence[StepDone], ended: Mapping[str, float]) -> float | None:
    mine = [line for line in lines if line.trial == trial]
    before = [line for line in mine if line.at_s <= kill.at_s]
    lives = {line.life for line in before}
    known = max((line.committed or 0 for line in before), default=0)
    if kill.kind == "store":
        news = [line.at_s for line in mine if line.at_s > kill.back_s and (line.committed or 0) > known]
    else:
        news = [line.at_s for line in mine if line.at_s > kill.at_s and line.life not in lives]
    over = [ended[trial]] if ended.get(trial, 0.0) > kill.at_s else []
    return min(news + over, default=None)


def repeated(kills: Sequence[Kill], lines: Iterable[StepDone]) -> list[dict[str, int]]:
    """For each kill, in order of time: trial -> steps done again because of it. Also of trials that were not hit, which must have
    none: such are there with their count."""
    counts: list[Counter[tuple[str, int]]] = [Counter() for _ in kills]
    done: set[tuple[str, int, int]] = set()
    began: dict[str, float] = {}
    for line in sorted(lines, key=lambda one: one.at_s):
        began.setdefault(line.life, line.at_s)
        place = line.trial, line.rank, line.step
        if place in done:
            cause = sum(kill.at_s < began[line.life] for kill in kills) - 1
            if cause < 0:
                raise ValueError(f"trial {line.trial} did step {line.step} again before anything was killed")
            counts[cause][line.trial, line.rank] += 1
        done.add(place)
    found: list[dict[str, int]] = []
    for kill, count in zip(kills, counts, strict=True):
        most = dict.fromkeys(kill.hits, 0)
        for (trial, _), steps in count.items():
            most[trial] = max(most.get(trial, 0), steps)
        found.append(most)
    return found


def skipped(lines: Iterable[StepDone]) -> list[str]:
    """Steps that a trial passed over, a sentence each."""
    steps: dict[str, set[int]] = defaultdict(set)
    for line in lines:
        steps[line.trial].add(line.step)
    return [
        f"trial {trial} did step {max(done)} and never {', '.join(map(str, missing))}"
        for trial, done in sorted(steps.items())
        if (missing := sorted(set(range(1, max(done))) - done))
    ]


def behind(lines: Iterable[StepDone]) -> list[str]:
    """Lives that began before a checkpoint that was known to be committed when they did, a sentence each."""
    known: dict[str, int] = {}
    lives: set[str] = set()
    found: list[str] = []
    for line in sorted(lines, key=lambda one: one.at_s):
        committed = known.get(line.trial, 0)
        if line.life not in lives and line.step <= committed:
            text = f"trial {line.trial} went back to step {line.step - 1}, and its checkpoint of step {committed} was committed"
            found.append(f"{text} (rank {line.rank})")
        lives.add(line.life)
        known[line.trial] = max(committed, line.committed or 0)
    return found


def lost(journal: Sequence[Mapping[str, Any]], trials: int) -> list[str]:
    """What became of the trials that did not end well, a sentence each; `trials` were wanted."""
    last = {entry["trial"]: entry for entry in journal if entry["trial"] is not None and entry["kind"] in ENDS}
    begun = [entry["trial"] for entry in journal if entry["kind"] == "suggested"]
    found = [f"{trials - len(begun)} trials were never suggested"] * (len(begun) != trials)
    for trial in begun:
        entry = last.get(trial)
        if entry is None:
            found.append(f"trial {trial} has no end")
        elif entry["kind"] not in ENDED_WELL:
            found.append(f"trial {trial} {entry['kind']}: {entry.get('message')}")
    return found


def summarize(
    kills: Sequence[Kill],
    lines: Sequence[StepDone],
    journal: Sequence[Mapping[str, Any]],
    trials: int,
    interval: int,
    seed: int,
) -> dict[str, Any]:
    """The bench's figures.

    Args:
        journal: the sweep's, whole.
        trials: how many were wanted.
        interval: steps between two checkpoints, and the bound of repeated steps where the one that is due is committed.
        seed: of the kills.
    """
    ended = ends(journal)
    again = repeated(kills, lines)
    spans = [recovered_s(kill, lines, ended) for kill in kills]
    by_kind = {kind: [n for n, kill in enumerate(kills) if kill.kind == kind] for kind in KINDS}
    missing, passed_over, gone_back = lost(journal, trials), skipped(lines), behind(lines)
    # what the bench is for comes first
    return {
        "lost_trials": len(missing),
        "skipped_steps": len(passed_over),
        "behind_commit": len(gone_back),
        "not_recovered": sum(span is None for span in spans),
        "faults": missing + passed_over + gone_back,
        "kills": {kind: len(found) for kind, found in by_kind.items()},
        "repeated_steps": {
            kind: _steps([steps for n in found for steps in again[n].values()], interval)
            for kind, found in by_kind.items()
            if found
        },
        "recovery_s": {kind: _seconds([spans[n] for n in found]) for kind, found in by_kind.items() if found},
        "trials": trials,
        "steps": len({(line.trial, line.step) for line in lines}),
        "losses_journalled": dict(Counter(entry.get("loss", "slot") for entry in journal if entry["kind"] == "lost")),
        "seed": seed,
        "each": [
            {"kind": kill.kind, "at_s": round(kill.at_s, 2), "repeated": steps, "recovery_s": span and round(span, 1)}
            for kill, steps, span in zip(kills, again, spans, strict=True)
        ],
    }


def _steps(counts: Sequence[int], interval: int) -> dict[str, Any]:
    """Repeated steps of each trial that was hit."""
    return {
        "median": median(counts) if counts else None,
        "most": max(counts, default=0),
        "trials_hit": len(counts),
        "bound": interval,
        "over_bound": sum(count > interval for count in counts),
    }


def _seconds(spans: Sequence[float | None]) -> dict[str, Any]:
    known = [span for span in spans if span is not None]
    if not known:
        return {"median": None, "least": None, "most": None}
    return {"median": round(median(known), 1), "least": round(min(known), 1), "most": round(max(known), 1)}
