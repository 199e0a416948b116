"""The driver's thread that keeps a run's checkpoints within what the recipe says, and gives their space back.

Owns when a pass is made, what the driver knows that a pass must respect (clones under way, what may be taken over, whose run it
is), and its entry in the journal. Does not decide (`checkpoint/keeping.py`) nor delete (`checkpoint/prune.py`,
`checkpoint/spent.py`). Made by `driver.py`.

A pass follows a trial's end, and under a byte budget any report too; at most a tenth of the time goes into passes, and there
is never less than `LEAST_GAP_S` between two. It stands in nobody's way: reports and decisions wait for it only where a donor
is to be pinned while manifests are being deleted, a few small requests. What fails in a pass is logged and tried again with
the next one; a sweep does not fail because there is too much in its store.

Where the recipe asks for nothing over all trials (`KeepPolicy.deletes`), a pass only gives back what the trials' own writers
deleted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Final

from tlcore.checkpoint.keeping import Decision, Place
from tlcore.checkpoint.prune import Inventory, OtherRuns, Pruned, prune
from tlcore.checkpoint.spent import collect_spent
from tlcore.errors import ObjectMissing, StaleWriter, TlcoreError
from tlcore.recipe import Recipe
from tlcore.storage import RunRef
from tlcore.storage.journal import Entry, SweepState
from tlcore.storage.keys import CHUNKS_PREFIX, journal_key
from tlcore.train.retention import keep_policy

LEAST_GAP_S: Final = 10.0
DUTY: Final = 0.1
READING_S: Final = 900.0
"""How long a deleted checkpoint can still be read by others; not at all where the run is over its byte budget."""
_log = logging.getLogger(__name__)


class Janitor:
    """Retention and collection of one driver's run.

    Args:
        snapshot: a copy of the folded state that nobody changes.
        record: writes a journal entry.
        next_entry: number of the next journal entry.
        clock: monotonic, seconds.
        offered: what trials may take over now, in a population.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: RunRef,
        snapshot: Callable[[], SweepState],
        record: Callable[..., Entry],
        next_entry: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        offered: Callable[[], Collection[Place]] = tuple,
    ) -> None:
        self._run, self._store = run, run.open()
        self._policy = keep_policy(recipe)
        self._snapshot, self._record, self._next_entry, self._clock = snapshot, record, next_entry, clock
        self._inventory = Inventory(self._store, sizes=self._policy.budget_bytes is not None)
        self._lock = threading.Lock()
        self._pins: Counter[Place] = Counter()
        self._due, self._over = threading.Event(), threading.Event()
        self._said_over = False
        self._others, self._offered = OtherRuns(run), offered
        self._named_by_others: set[Place] = set()

    def pin(self, trial: str, step: int) -> None:
        """Keep a checkpoint and all it needs until `unpin`; returns once no pass can be deleting it."""
        with self._lock:
            self._pins[trial, step] += 1

    def unpin(self, trial: str, step: int) -> None:
        """Let go of one pin, where there is one."""
        with self._lock:
            if self._pins[trial, step] > 1:
                self._pins[trial, step] -= 1
            else:
                del self._pins[trial, step]

    def on_entry(self, entry: Entry) -> None:
        """Note what makes a pass worth while."""
        if entry["kind"] in {"completed", "stopped", "failed"} or (
            self._policy.budget_bytes is not None and entry["kind"] == "result"
        ):
            self._due.set()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Make passes beside what is done inside; a pass under way at its end is waited for."""
        thread = threading.Thread(target=self._keep_house, name="janitor", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._due.set()
            thread.join()

    def run_once(self) -> Pruned | None:
        """One pass now; None when it failed, which is logged. Raises StaleWriter when the run is another driver's."""
        try:
            return self._pass()
        except StaleWriter:
            raise
        except TlcoreError as error:
            _log.warning("retention: %s; the next pass tries again", error.message)
            return None

    def _keep_house(self) -> None:
        while True:
            self._due.wait()
            if self._over.is_set():
                return
            self._due.clear()
            began = self._clock()
            try:
                self.run_once()
            except StaleWriter:
                return  # the driver's own next entry says so
            took = self._clock() - began
            if self._over.wait(max(LEAST_GAP_S, took / DUTY - took)):
                return

    def _pass(self) -> Pruned:
        self._check_mine()
        budget, done = self._policy.budget_bytes, Pruned(Decision((), 0), ())
        if self._policy.deletes:
            self._named_by_others = self._others.named()
            done = prune(self._inventory, self._snapshot, self._policy, pinned=self._pinned, lock=self._lock)
        held = 0 if budget is None else sum(each.size_bytes for each in self._store.list(CHUNKS_PREFIX))
        reading_s = 0.0 if budget is not None and held > budget else READING_S
        report = collect_spent(
            self._store, reading_s=reading_s, pinned=self._pinned_at_marking, still_mine=self._check_mine
        )
        over = done.decision.over_bytes
        if done.deleted or report.deleted or (over and not self._said_over):
            self._record(
                "pruned",
                None,
                checkpoints=[[each.trial, each.step, each.reason] for each in done.deleted],
                freed_bytes=report.deleted_bytes,
                kept_bytes=report.kept_bytes or held,
                over_bytes=over,
            )
        if over and not self._said_over:
            _log.warning(
                "budget.bytes is %d, and what must be kept is %d bytes more: newest checkpoints of live trials, those that others "
                "may take over, the best ones, and what other runs name",
                budget,
                over,
            )
        self._said_over = bool(over)
        return done

    def _pinned(self) -> set[Place]:
        """Asked with the lock held."""
        return {*self._pins, *self._offered(), *self._named_by_others}

    def _pinned_at_marking(self) -> set[Place]:
        with self._lock:
            return self._pinned()

    def _check_mine(self) -> None:
        """Raise StaleWriter when another driver has written the entry that would be this one's next."""
        number = self._next_entry()
        try:
            self._store.get(journal_key(number))
        except ObjectMissing:
            return
        if number == self._next_entry():
            raise StaleWriter(
                f"another driver wrote {journal_key(number)} in {self._store.url}: this sweep was resumed elsewhere",
                hint="let that driver go on; this one has stopped without changing anything more",
                key=journal_key(number),
            )
