"""When what is killed, and waiting for each kill to be over.

Owns the plan, which follows from the seed alone, the choice of the victim among what runs at that moment, and the notes of each
kill. The parts are `ground.py`'s, what counts as over is `figures.py`'s. Called by `__main__.py`.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from jobs.bench.recovery.figures import ENDS, KINDS, Kill, Kind, ends, recovered_s
from jobs.bench.recovery.ground import BenchFailed, Ground
from jobs.bench.recovery.steps import StepLog
from tlcore.errors import ObjectMissing, StorageError
from tlcore.storage import ObjectStore, get_json, newest_run
from tlcore.storage.journal import Entry
from tlcore.storage.keys import journal_key
from tlcore.sweep.slots.slot import slot_name

T = TypeVar("T")
POLL_S = 0.2
MOST_LAG_S = 1.5
STORE_AWAY_S = (0.5, 6.0)
RECOVER_S = 300.0
SWEEP_S = 1800.0


@dataclass(frozen=True)
class Planned:
    """A kill to be made `lag_s` after the sweep has done `steps` different steps, or as soon as the one before is over."""

    kind: Kind
    steps: int
    lag_s: float


def plan(seed: int, per_kind: int, steps: int) -> list[Planned]:
    """`per_kind` kills of each kind in a random order, at random places of the first `steps` steps of a sweep."""
    draw = random.Random(f"recovery/{seed}")
    kinds = [kind for kind in KINDS for _ in range(per_kind)]
    draw.shuffle(kinds)
    places = sorted(draw.uniform(0.02, 1.0) for _ in kinds)
    return [
        Planned(kind, int(place * steps), draw.uniform(0.0, MOST_LAG_S))
        for kind, place in zip(kinds, places, strict=True)
    ]


class Campaign:
    """Drives one sweep through a plan.

    Args:
        storage, name: where the sweep's journal is.
    """

    def __init__(self, ground: Ground, storage: str, name: str, seed: int) -> None:
        self._ground, self._storage, self._name = ground, storage, name
        self._draw = random.Random(f"victims/{seed}")
        self.log = StepLog(ground.steps)
        self.kills: list[Kill] = []
        self._run: ObjectStore | None = None
        self._entries: list[Entry] = []

    def run(self, planned: Sequence[Planned]) -> None:
        """Start the sweep, make the kills, see it to its end. A sweep that ends early leaves kills out. Raises BenchFailed."""
        self._ground.drive()
        for each in planned:
            if not self._await(partial(self._is_at, each.steps), SWEEP_S):
                return
            time.sleep(each.lag_s)
            self._make(each.kind)
        self._await(lambda: None, SWEEP_S)

    def _is_at(self, steps: int) -> bool | None:
        return True if len(self.log.distinct) > steps else None

    def journal(self) -> list[Entry]:
        """The sweep's, as it is now; entries never change, so only what is new is read."""
        if self._run is None:
            self._run = newest_run(self._storage, self._name).open()
        with suppress(ObjectMissing):
            while True:
                self._entries.append(get_json(self._run, journal_key(len(self._entries))))
        return self._entries

    def _await(self, look: Callable[[], T | None], patience_s: float) -> T | None:
        """What `look` finds; None when the sweep is over before that. Raises BenchFailed after `patience_s`."""
        deadline = time.monotonic() + patience_s
        while True:
            self.log.refresh()
            found = look()
            if found is not None or not self._ground.is_driving():
                return found
            if time.monotonic() > deadline:
                raise BenchFailed(f"no end in {patience_s:g} s; the driver says:\n{self._ground.said()}")
            time.sleep(POLL_S)

    def _make(self, kind: Kind) -> None:
        strikes: dict[Kind, Callable[[], Kill | None]] = {
            "worker": self._worker,
            "slot": self._slot,
            "driver": self._driver,
            "raylet": self._raylet,
            "store": self._store,
        }
        kill = self._await(strikes[kind], RECOVER_S)
        if kill is None:
            return
        self.kills.append(kill)
        took_s = self._await(lambda: recovered_s(kill, self.log.lines, self._ended()), RECOVER_S)
        told = "the sweep ended" if took_s is None else f"over after {took_s:.1f} s"
        print(f"killed {kind}: {', '.join(kill.hits)} hit, {told}", file=sys.stderr, flush=True)

    def _ended(self) -> dict[str, float]:
        try:
            return ends(self.journal())
        except StorageError:  # the one that was killed is still on its way
            return {}

    # Victims, each among what runs now; None where there is none yet.

    def _running(self) -> dict[str, str]:
        """Trials that run -> the slot they run in."""
        slots: dict[str, str] = {}
        for entry in self.journal():
            if entry["kind"] == "started":
                slots[entry["trial"]] = entry["slot"]
            elif entry["kind"] in ENDS:
                slots.pop(entry["trial"], None)
            elif entry["kind"] == "resumed":
                slots.clear()
        return slots

    def _ranks(self) -> dict[str, list[dict[str, Any]]]:
        """Trials that run -> Ray's word on their ranks, as far as these have done a step."""
        by_pid = {actor["Pid"]: actor for actor in self._ground.actors("RayTrainWorker")}
        trial_of = {line.pid: line.trial for line in self.log.lines}
        running = self._running()
        found: dict[str, list[dict[str, Any]]] = {}
        for pid, actor in sorted(by_pid.items()):
            if trial_of.get(pid) in running:
                found.setdefault(trial_of[pid], []).append(actor)
        return found

    def _worker(self) -> Kill | None:
        choice = [(trial, rank) for trial, ranks in self._ranks().items() for rank in ranks]
        if not choice:
            return None
        trial, rank = self._draw.choice(choice)
        at_s = self._ground.kill_process(rank["Pid"])
        return Kill("worker", at_s, (trial,), at_s)

    def _slot(self) -> Kill | None:
        trial_in = {slot: trial for trial, slot in self._running().items()}
        slots = [actor for actor in self._ground.actors("Slot") if slot_name(actor["ActorID"]) in trial_in]
        if not slots:
            return None
        slot = self._draw.choice(sorted(slots, key=lambda actor: str(actor["ActorID"])))
        at_s = self._ground.kill_process(slot["Pid"])
        return Kill("slot", at_s, (trial_in[slot_name(slot["ActorID"])],), at_s)

    def _driver(self) -> Kill | None:
        hits = tuple(sorted(self._running()))
        if not hits:
            return None
        return Kill("driver", self._ground.kill_driver(), hits, time.time())

    def _raylet(self) -> Kill | None:
        by_node: dict[str, set[str]] = {}
        for trial, ranks in self._ranks().items():
            for rank in ranks:
                by_node.setdefault(rank["Address"]["NodeID"], set()).add(trial)
        if not by_node:
            return None
        node = self._draw.choice(sorted(by_node))
        return Kill("raylet", self._ground.kill_raylet(node), tuple(sorted(by_node[node])), time.time())

    def _store(self) -> Kill | None:
        hits = tuple(sorted(self._running()))
        if not hits:
            return None
        return Kill("store", self._ground.kill_store(self._draw.uniform(*STORE_AWAY_S)), hits, time.time())
