"""Kills in the save path: ranks, rank 0, all of them, a stale writer beside its successor, a collection.

Owns which process dies when, and the trials that it happens to. Called by `__main__.py`; what dies is in `ranks.py`, what must be
left in `checks.py`.

A trial lives through `KILLS_PER_TRIAL` kills, each start continuing from the newest checkpoint at a new world size; trials of one
season share a run, so that their chunks are shared too, and are looked after until the season's store is thrown away.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import psutil

from jobs.bench.kill import state as kill_state
from jobs.bench.kill.checks import Ledger, Verdict, prove_content
from jobs.bench.kill.ranks import Doom, Life, run_clones, run_gc, run_rank
from jobs.bench.kill.server import Victim, hear, hear_until, listen, start
from jobs.bench.kill.shop import Shop
from tlcore.storage import open_store

KILLS_PER_TRIAL = 12
KILLS_PER_SEASON = 96
KINDS = {"rank": 28, "rank0": 38, "all": 12, "stale": 6, "frozen": 6, "gc": 6, "clone": 4}
"""What is killed, and how often of a hundred."""
WINDOW_S = {
    "claim": 0.01,
    "snapshot": 0.004,
    "hash": 0.02,
    "put": 0.03,
    "index": 0.01,
    "commit": 0.01,
    "delete": 0.02,
    "any": 0.6,
}
"""Stages aimed at, and how long after one's begin the kill may come: about as long as it lasts here."""
DOOMED = 0.5
"""Part of the kills of ranks that are a rank's own doing (`ranks.Doom`), for the stages that are over in a millisecond."""
_RANK0_ONLY = ("claim", "commit", "delete")
_STAGE_TIMEOUT_S = 5.0
_START_S = 60.0


@dataclass
class Record:
    """One kill as the log keeps it. `stages`: what the killed process was doing; `aimed`: what it was meant to be doing;
    `repeated`: steps of a training whose loss equals the one an earlier life had there."""

    lane: str
    index: int
    kind: str
    stages: list[str] = field(default_factory=list)
    aimed: str = ""
    trial: str = ""
    attempt: int = 0
    acknowledged: int = 0
    newest: int = 0
    proved: int = 0
    repeated: int = 0
    torn: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def take(self, verdict: Verdict) -> None:
        """What a check found."""
        self.torn += verdict.torn
        self.lost += verdict.lost
        self.proved += verdict.proved
        self.newest = verdict.newest

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}


@dataclass
class _Trial:
    """One trial, its record, and how its ranks behave."""

    name: str
    ledger: Ledger
    keep_last: int
    goes_back: bool
    kills: int = 0


class SaveKills:
    """The save path's lane."""

    def __init__(self, shop: Shop, seed: int) -> None:
        self._shop, self._seed = shop, seed
        self._trials: list[_Trial] = []
        self._season = -1
        self._lives = 0

    def kill(self, index: int) -> Record:
        """Kill number `index` of this lane; what it does follows from the seed and the number, when it strikes from the machine."""
        began = time.monotonic()
        draw = random.Random(f"{self._seed}/saves/{index}")
        self._lives = 10 * index
        trial = self._trial(index, draw)
        kind = draw.choices(list(KINDS), list(KINDS.values()))[0]
        if kind in ("gc", "clone") and not trial.ledger.visible():
            kind = "rank0"
        record = Record("saves", index, kind, trial=trial.name)
        if kind == "gc":
            self._kill_collection(record, draw)
        elif kind == "clone":
            self._kill_clones(record, trial, draw)
        elif kind == "stale":
            self._kill_stale(record, trial, draw)
        elif kind == "frozen":
            self._kill_frozen(record, trial, draw)
        else:
            self._kill_ranks(record, trial, draw)
        trial.kills += 1
        record.seconds = time.monotonic() - began
        return record

    def _trial(self, index: int, draw: random.Random) -> _Trial:
        if self._season != index // KILLS_PER_SEASON:
            self._season = index // KILLS_PER_SEASON
            self._shop.renew()
            self._trials.clear()
        if not self._trials or self._trials[-1].kills >= KILLS_PER_TRIAL:
            name = f"t{index:04d}"
            keep = draw.choice([0, 1, 2, 3])
            ledger = Ledger(
                open_store(self._shop.run_url),
                name,
                keep,
                lambda step: kill_state.score(name, step),
                prove_content,
            )
            self._trials.append(_Trial(name, ledger, keep, draw.random() < 0.4))
        return self._trials[-1]

    def _life(self, trial: _Trial, draw: random.Random, least_world: int, kind: str = "") -> Life:
        """A start of the trial's ranks as a restart makes it: from the newest checkpoint, with the next attempt number."""
        self._lives += 1
        world_size = max(least_world, draw.choice([1, 2, 2, 2, 3]))
        doom = (
            make_doom(kind, world_size, aims(kind, trial.keep_last), draw) if kind and draw.random() < DOOMED else None
        )
        return Life(
            url=self._shop.run_url,
            trial=trial.name,
            number=self._lives,
            world_size=world_size,
            snapshot=draw.choice(["eager", "lazy"]),
            keep_last=trial.keep_last,
            rendezvous=str(self._shop.scratch / f"gloo-{self._lives}"),
            goes_back=trial.goes_back and draw.random() < 0.4,
            doom=doom,
        )

    def _kill_ranks(self, record: Record, trial: _Trial, draw: random.Random) -> None:
        before = trial.ledger.visible()
        life = self._life(trial, draw, 2 if record.kind == "rank" else 1, record.kind)
        ranks = [start(run_rank, life, rank) for rank in range(life.world_size)]
        doomed = {"rank": [draw.choice(ranks[1:] or ranks)], "rank0": ranks[:1], "all": ranks}[record.kind]
        if life.doom is not None:
            await_doom(record, ranks, life.doom, doomed)
        else:
            strike(record, ranks, doomed, aims(record.kind, trial.keep_last), draw)
        if draw.random() < 0.5:  # survivors notice by themselves, as a training does; or their node goes too
            hear_until(ranks, lambda: all(each.deaf for each in ranks), draw.uniform(0.0, 1.0))
        bury(record, ranks)
        wanted = before[-min(1 + life.goes_back, len(before))] if before else 0
        for told in (told for each in ranks for told in each.told if told.word == "restored" and told.step != wanted):
            record.lost.append(f"{trial.name}: the ranks continued from step {told.step}, and step {wanted} was there")
        self._take_notes(record, trial, life, ranks)
        record.take(trial.ledger.check())

    def _kill_stale(self, record: Record, trial: _Trial, draw: random.Random) -> None:
        """A writer goes on while its successor starts, then one of the two is killed, then the other."""
        old_life = self._life(trial, draw, 1)
        old = [start(run_rank, old_life, rank) for rank in range(old_life.world_size)]
        hear_until(old, lambda: told_of(old[0], "committed") >= 2, _START_S)
        new_life = self._life(trial, draw, 1)
        new = [start(run_rank, new_life, rank) for rank in range(new_life.world_size)]
        doomed = draw.choice([old, new])
        strike(record, [*old, *new], doomed, aims(record.kind, trial.keep_last), draw)
        bury(record, doomed)
        rest = new if doomed is old else old
        for each, life in ((old, old_life), (new, new_life)):
            self._take_notes(record, trial, life, each if each is doomed else [])
        record.take(trial.ledger.check(settled=False))
        listen(rest, draw.uniform(0.0, 0.2))
        bury(record, rest)
        self._take_notes(record, trial, new_life if rest is new else old_life, rest)
        record.take(trial.ledger.check())

    def _kill_frozen(self, record: Record, trial: _Trial, draw: random.Random) -> None:
        """A writer is cut off in the middle of a commit, its successor commits, the writer goes on as if nothing had been; then
        both are killed."""
        stage = draw.choice(["look", "index", "commit", "commit", "delete"])
        nth = draw.randint(1, 4) * (5 if stage == "look" else 1)
        doom = Doom(0, stage, nth, draw.uniform(0.0, 0.003), signal=signal.SIGSTOP)
        old_life = replace(self._life(trial, draw, 1), doom=doom)
        old = [start(run_rank, old_life, rank) for rank in range(old_life.world_size)]
        frozen = psutil.Process(old[0].process.pid)
        deadline = time.monotonic() + _STAGE_TIMEOUT_S
        while not _stopped(frozen) and time.monotonic() < deadline:
            hear(old, 0.01)
        record.aimed, record.stages = stage, [f"frozen {each}" for each in old[0].stages]
        new_life = self._life(trial, draw, 1)
        new = [start(run_rank, new_life, rank) for rank in range(new_life.world_size)]
        enough = draw.randint(1, 3)
        hear_until(new, lambda: told_of(new[0], "committed") >= enough, _START_S)
        with suppress(psutil.NoSuchProcess):  # one that was not stopped in time has met its successor, and ended
            frozen.resume()
        listen([*old, *new], draw.uniform(0.05, 0.5))
        bury(record, [*old, *new])
        self._take_notes(record, trial, old_life, old)
        self._take_notes(record, trial, new_life, new)
        record.take(trial.ledger.check())

    def _kill_collection(self, record: Record, draw: random.Random) -> None:
        """Kill a collection of the whole run at a random request, check every trial, collect again to the end, check again."""
        victim = start(run_gc, self._shop.run_url)
        record.aimed = draw.choice(["look", "delete", "delete"])
        hear_until([victim], lambda: begun(victim, record.aimed) >= 1, _STAGE_TIMEOUT_S)
        listen([victim], draw.uniform(0.0, 0.05))
        bury(record, [victim])
        record.stages = [f"gc {stage}" for stage in victim.stages]
        self._check_all(record)
        whole = start(run_gc, self._shop.run_url)
        if whole.gone() != 0:
            record.errors.append("the collection after the kill failed")
        self._check_all(record)

    def _kill_clones(self, record: Record, trial: _Trial, draw: random.Random) -> None:
        """Kill a process that clones the trial's newest checkpoint; the clones it was told of must hold the donor's bytes."""
        prefix = f"c{record.index:04d}-"
        step = trial.ledger.visible()[-1]
        victim = start(run_clones, self._shop.run_url, trial.name, step, prefix)
        record.aimed = draw.choice(["look", "index", "commit"])
        nth = draw.randint(1, 6)
        hear_until([victim], lambda: begun(victim, record.aimed) >= nth, _STAGE_TIMEOUT_S)
        listen([victim], draw.uniform(0.0, WINDOW_S["commit"]))
        bury(record, [victim])
        record.stages = [f"clone {stage}" for stage in victim.stages]
        whole = Verdict()
        for number in range(told_of(victim, "committed") + 1):
            ledger = Ledger(trial.ledger.store, f"{prefix}{number}", 0, proof=prove_content)
            if number < told_of(victim, "committed"):
                record.acknowledged += 1
                ledger.committed(step, 0)
            whole.add(ledger.check())
            if number < 2:  # to be looked after, as collections come and the donor's trial goes on
                self._trials.insert(0, _Trial(ledger.trial, ledger, 0, False))
        record.take(whole)
        verdict = trial.ledger.check()
        record.take(verdict)

    def _check_all(self, record: Record) -> None:
        whole = Verdict()
        for trial in self._trials:
            verdict = trial.ledger.check(anew=True)
            whole.add(verdict)
            whole.newest = verdict.newest
        record.take(whole)

    def _take_notes(self, record: Record, trial: _Trial, life: Life, ranks: Sequence[Victim]) -> None:
        """Put down what the ranks were told before they died."""
        take_notes(record, trial.ledger, life, ranks)
        for each in ranks:
            for told in each.told:
                # A stale writer's ranks fail as they should, and may find their parent taken by the other's retention.
                if told.word in ("failed", "stale") and record.kind not in ("stale", "frozen"):
                    record.errors.append(f"{told.word} {told.subject}: {told.text}")


def _stopped(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


def take_notes(record: Record, ledger: Ledger, life: Life, ranks: Sequence[Victim]) -> None:
    """Acknowledged commits go into the ledger; a rank that restored wrong bytes has restored a torn checkpoint."""
    for each in ranks:
        for told in each.told:
            if told.word == "attempt":
                record.attempt = max(record.attempt, told.step)
            if told.word == "committed":
                ledger.committed(told.step, int(told.text))
                record.acknowledged += 1
            if told.word == "restored" and told.text:
                record.torn.append(f"restored from {told.subject} at world size {life.world_size}: {told.text}")


def told_of(victim: Victim, word: str) -> int:
    """How often it told this word."""
    return victim.times[word]


def begun(victim: Victim, stage: str) -> int:
    """How often it has come to this stage of a save."""
    if stage in ("snapshot", "hash"):
        return told_of(victim, "save" if stage == "snapshot" else "saved")
    return victim.times["begin", stage]


def strike(
    record: Record, everyone: Sequence[Victim], doomed: Sequence[Victim], stages: Sequence[str], draw: random.Random
) -> None:
    """Wait for the moment, kill the doomed, and put down which stage of a save the first of them was in."""
    watched = doomed[0]
    record.aimed = draw.choice(stages)
    if record.aimed == "any":
        from_the_start = draw.random() < 0.2
        hear_until(everyone, lambda: from_the_start or told_of(watched, "save") > 0, _START_S)
    else:
        nth = 1 if record.aimed == "claim" else draw.randint(1, 6)
        hear_until(everyone, lambda: begun(watched, record.aimed) >= nth, _STAGE_TIMEOUT_S)
    listen(everyone, draw.uniform(0.0, WINDOW_S[record.aimed]))
    for each in doomed:
        each.kill()
    for each in doomed:
        each.gone()
    record.stages = watched.stages


def aims(kind: str, keep_last: int) -> list[str]:
    """Stages at which a rank of this kind can be killed."""
    never = {*(_RANK0_ONLY if kind == "rank" else ()), *(() if keep_last else ("delete",))}
    return [stage for stage in WINDOW_S if stage not in never]


def make_doom(kind: str, world_size: int, stages: Sequence[str], draw: random.Random) -> Doom:
    """Which rank is to end itself, and when."""
    rank = draw.randrange(1, world_size) if kind == "rank" else 0
    stage = draw.choice([stage for stage in stages if stage != "any"])
    nth = 1 if stage == "claim" else draw.randint(1, 5)
    lag_s = 0.3 if stage in ("claim", "index", "commit") and draw.random() < 0.3 else 0.0
    return Doom(rank, stage, nth, draw.uniform(0.0, min(0.01, WINDOW_S[stage])) * draw.random(), lag_s)


def await_doom(record: Record, everyone: Sequence[Victim], doom: Doom, doomed: Sequence[Victim]) -> None:
    """Let the rank end itself, and the rest of the doomed with it; past the time, end it all the same."""
    record.aimed = doom.stage
    watched = everyone[doom.rank]
    hear_until(everyone, lambda: watched.deaf, 2 * _STAGE_TIMEOUT_S)
    for each in (watched, *doomed) if len(doomed) > 1 else (watched,):
        each.kill()
    watched.gone()
    record.stages = watched.stages


def bury(record: Record, victims: Sequence[Victim]) -> None:
    """Kill what still runs and hear the last of all; one that broke down by itself is an error of the bench's or the product's."""
    for each in victims:
        each.kill()
    for each in victims:
        status = each.gone()
        if status not in (0, -signal.SIGKILL):
            last = each.told[-1] if each.told else None
            record.errors.append(f"a process ended with status {status}; its last words: {last}")
