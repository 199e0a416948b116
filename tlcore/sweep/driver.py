"""One driver's time with a run: take the journal up, let Tune run what is left, have the best tested, end with nothing left behind.

Owns what lives exactly as long as the driver: the scratch directory that Tune and Train insist on (removed, never read back), the
board, the thread that feeds the display and carries an interrupt to the slots. Called by `runner.py`, with Ray up.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.error import TuneError
from ray.tune.experiment import Trial

from tlcore.checkpoint import newest_step
from tlcore.checkpoint.patience import Patience
from tlcore.errors import CheckpointError, StaleWriter, SweepError, TlcoreError
from tlcore.recipe import Recipe
from tlcore.storage import RunRef
from tlcore.storage.journal import Entry, Journal, SweepState, Takeover, TrialState, read_journal
from tlcore.sweep.cluster.fit import Admit, admit_all
from tlcore.sweep.cluster.growth import Demand, Growth, read_growth
from tlcore.sweep.cluster.resources import Cluster, Shape, can_avoid, has_room, shape_of
from tlcore.sweep.conductor import Conductor
from tlcore.sweep.display import Display
from tlcore.sweep.examination import SESSION, examine
from tlcore.sweep.halt import Halt
from tlcore.sweep.janitor import Janitor
from tlcore.sweep.recorder import JournalCallback, Recorder
from tlcore.sweep.schedule.schedulers import make_seats
from tlcore.sweep.schedule.seats import Replay, TakeOver
from tlcore.sweep.schedule.takeover import can_clone, make_own
from tlcore.sweep.search.searchers import make_searcher
from tlcore.sweep.search.source import TrialSource, Waiting, trials_wanted
from tlcore.sweep.search.warm import earlier_results
from tlcore.sweep.slots.board import open_board
from tlcore.sweep.slots.deaths import deaths_are_survived
from tlcore.sweep.slots.places import free_orphans
from tlcore.sweep.slots.slot import Slot
from tlcore.sweep.watching import watching
from tlcore.train.budget import exhausted

DISPLAY_EVERY_S: Final = 0.5
ORPHANS_EVERY_S: Final = 5.0
JOURNAL_ATTEMPTS: Final = 5
"""Each is a minute of the store's own client; a store that is away for five of them ends the driver, and a resume goes on."""
POINTERS_KEPT: Final = 20
"""Of each trial, in the scratch directory. Tune asks a slot for its pointer when it pauses the trial. It is not asked for one after
every report, since a trial's config says from the journal how far it is, also for the slot after one that died; that halves
what a report costs. Tune pickles its whole state, all trials, whenever a trial has so many new ones: not less than 20."""
_log = logging.getLogger(__name__)


class Driver:
    """Runs what is left of a run. `untested` says why it ended without figures on the test examples, where these were wanted.

    Args:
        session: import path of the session class that the ranks drive.
        metrics: what every report must have.
        halt: asked when the sweep must stop before its end.
        clock: current time, timezone-aware.
        earlier: run whose results warm the searcher of a new sweep.
        admit: what becomes of a suggested point, by whether it fits.
        unknown: what the check before the sweep could not find out; written down.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: RunRef,
        session: str,
        metrics: Sequence[str],
        display: Display | None,
        halt: Halt,
        clock: Callable[[], datetime],
        earlier: RunRef | None = None,
        admit: Admit = admit_all,
        unknown: Sequence[str] = (),
    ) -> None:
        self._admit, self._unknown = admit, list(unknown)
        self._recipe, self._run, self._session, self._metrics, self._halt = recipe, run, session, list(metrics), halt
        self._earlier, self._clock = earlier, clock
        self._store = run.open()
        self._entries = read_journal(self._store)
        patience = Patience(JOURNAL_ATTEMPTS)
        journal = Journal(self._store, clock, start=len(self._entries), ask=patience.ask)
        self._recorder = Recorder(journal, SweepState.from_entries(self._entries), display)
        self._cluster = Cluster()
        self._conductor = Conductor(self._recorder, self._clone)
        self._seats = make_seats(recipe, self._conductor)
        self._conductor.seats = self._seats
        self._searcher = make_searcher(recipe)
        self._wanted = trials_wanted(recipe)
        self._demand, self._growth = Demand(), Growth()
        self.untested: TlcoreError | None = None
        recorder, population = self._recorder, recipe.search.scheduler.population
        offered = tuple if population is None else self._seats.offered
        self._janitor = Janitor(recipe, run, recorder.snapshot, recorder.record, recorder.next_number, offered=offered)

    @property
    def state(self) -> SweepState:
        """The run, as far as its journal tells."""
        return self._recorder.state

    def drive(self) -> bool:
        """Run what is left, as far as the budget goes. True when it was interrupted."""
        wanted = trials_wanted(self._recipe)
        self._take_up(wanted)
        if self._is_left(wanted) and not self._spent():
            with _scratch() as scratch, self._board() as board, self._watching(board), self._janitor.at_work():
                self._fit(self._source(scratch, board), scratch)
        if self._session == SESSION and not self._is_left(wanted):
            self.untested = examine(self._recipe, self._run, self._admit, self._recorder, self._halt)
        if self._recorder.error is not None:
            raise self._recorder.error
        self._end(wanted)
        return self._halt.interrupted

    def _is_left(self, wanted: int) -> bool:
        return bool(self.state.unfinished()) or len(self.state.trials) < wanted

    def _spent(self) -> bool:
        limit = exhausted(self._recipe, self._recorder.used(self._clock()))
        if limit is not None:
            self._halt.exhaust(limit)
        return limit is not None

    def _end(self, wanted: int) -> None:
        """Write how it ended, and what was left where it stood when time ran out."""
        if not self._halt.asked:
            self._janitor.run_once()
        for trial in self.state.unfinished():
            if trial.status == "running":
                self._recorder.record("left", trial.trial, step=self._newest_step(trial.trial))
        best = self.state.best(self._recipe.search.metric, self._recipe.search.mode)
        facts: dict[str, Any] = {"best": best.trial if best else None}
        if self._halt.interrupted:
            self._recorder.record("interrupted")
        elif self._halt.exhausted is not None and self._is_left(wanted):
            self._recorder.record("finished", **facts, reason="budget", limit=self._halt.exhausted.setting)
        elif self._halt.error is None:
            self._recorder.record("finished", **facts)

    def _take_up(self, wanted: int) -> None:
        """Bring scheduler and searcher to where the journal ends, and do what the last driver decided and did not live to do."""
        # the state has what is needed of them; they are the bulk of a driver's memory
        entries, self._entries = self._entries, []
        for entry in entries:
            self._searcher.observe(entry)
        replayed = Replay(self._seats, entries, lambda decided: self._clone(decided, check=True))
        self._recorder.listeners += [self._searcher.observe, self._seat, self._janitor.on_entry]
        if self._unknown:
            self._recorder.record("unknown", reasons=self._unknown)
        if not entries:
            if self._earlier is not None:
                self._recorder.record("warmed", **earlier_results(self._recipe, self._earlier))
            return
        self._recorder.record("resumed", of=wanted)
        self._recorder.journal.catch_up(entries)
        self._seats.resume(wanted)
        self._settle(replayed.stopped)
        for decided in replayed.pending:
            self._conductor.carry_out(decided)
        for trial in self.state.unfinished():
            if (last := trial.just_took_over) is not None:
                self._make_own(_again(trial, last))

    def _seat(self, entry: Entry) -> None:
        if entry["kind"] == "suggested":
            self._seats.add(entry["trial"], entry["point"], entry["of"])
        elif entry["kind"] == "dropped":
            self._seats.drop(entry["trial"], entry["point"], entry["of"])

    def _clone(self, decided: TakeOver, check: bool) -> bool:
        if check:
            self._janitor.pin(decided.parent, decided.step)  # until it is cloned
            if can := can_clone(self._store, decided):
                return can
            words = "trial %s does not take over trial %s at step %d: that checkpoint is gone"
            _log.warning(words, decided.trial, decided.parent, decided.step)
        else:
            self._make_own(decided)
        self._janitor.unpin(decided.parent, decided.step)
        return not check

    def _make_own(self, decided: TakeOver) -> None:
        """Clone what a takeover in the journal names. The donor's own writer may have deleted it since that was decided: then the
        trial goes on from what it has, at its new point, and the journal says so."""
        try:
            make_own(self._store, decided)
        except StaleWriter:
            raise
        except CheckpointError as error:
            there = self._newest_step(decided.trial)
            self._recorder.record("fell_back", decided.trial, step=there, instead=decided.step, reason=error.message)

    def _settle(self, decided: set[str]) -> None:
        """Write what the last driver had seen and did not live to write."""
        for trial in self.state.unfinished():
            if trial.fraction >= 1.0:
                self._recorder.record("completed", trial.trial)
            elif trial.trial in decided:
                self._recorder.record("stopped", trial.trial, reason="scheduler")
            else:
                continue
            self._seats.end(trial.trial)

    def _source(self, scratch: Path, board: str) -> TrialSource:
        nodes = self._cluster.nodes()
        self._growth = read_growth(nodes)
        gpus = self._growth.gpus(nodes)
        facts = {
            "url": self._run.url,
            "recipe": self._recipe.to_dict(),
            "board": board,
            "scratch": str(scratch),
            "session": self._session,
            "metrics": self._metrics,
            "cluster_has_gpus": gpus,
        }
        scheduler = self._recipe.search.scheduler
        waiting = Waiting(
            is_paused=lambda trial: self._seats.seats[trial].status == Trial.PAUSED,
            has_ready=self._conductor.has_ready,
            population=scheduler.population is not None,
            pauses=scheduler.pauses,
            idle=self._conductor.idle,
        )
        source = TrialSource(
            self._recipe,
            facts,
            self.state,
            self._searcher,
            waiting,
            shape_of=lambda recipe: shape_of(recipe, gpus),
            room=self._room,
            record=self._recorder.record,
            admit=self._admit,
        )
        self._conductor.hands = source
        self._recorder.listeners.append(source.heed)
        self._halt.take_no_more = source.set_finished
        self._halt.is_busy = lambda: any(trial.status == "running" for trial in self.state.unfinished())
        return source

    def _room(self, shape: Shape, live: Sequence[Shape], idle: Sequence[Shape]) -> bool:
        nodes, avoid = self._cluster.nodes(), self.state.avoided
        avoided = self._cluster.free_on(avoid) if avoid and can_avoid(nodes, avoid, shape) else {}
        fits = has_room(shape, live, nodes, self._cluster.available(), idle, avoided)
        if not fits and self._growth.exists:
            self._demand.ask(shape, self._waiting_trials())
        return fits

    def _waiting_trials(self) -> int:
        """Trials that would run now if there were room."""
        trials = list(self.state.trials.values())  # the driver's thread may add one meanwhile
        waiting = self._wanted - len(trials) + sum(trial.status == "waiting" for trial in trials)
        most = self._recipe.search.at_once
        if most is not None:
            waiting = min(waiting, most - sum(trial.status == "running" for trial in trials))
        return max(0, waiting)

    def _fit(self, source: TrialSource, scratch: Path) -> None:
        try:
            # not `Tuner`: it pickles itself with all its callbacks into a state file, which nobody here would read
            with deaths_are_survived():
                tune.run(
                    Slot,
                    name="tune",
                    search_alg=source,
                    scheduler=self._conductor,
                    reuse_actors=True,
                    storage_path=str(scratch),
                    stop=self._halt,
                    callbacks=[self._callback(source)],
                    checkpoint_config=tune.CheckpointConfig(num_to_keep=POINTERS_KEPT),
                    raise_on_failed_trial=False,
                    verbose=0,
                )
        except (TuneError, RayError, TlcoreError) as error:
            if self._recorder.error is not None:
                raise self._recorder.error from error
            if isinstance(error, TlcoreError):
                raise
            raise SweepError(f"Ray Tune gave up: {error}", hint="see driver.log in the log directory") from error

    def _callback(self, source: TrialSource) -> JournalCallback:
        price = self._recipe.budget.price_per_worker_hour
        priced = {} if price is None else {"price": price}
        return JournalCallback(
            self._recorder,
            self._halt,
            self._seats,
            terms=lambda trial: {"workers": source.workers(trial), **priced},
            committed=self._newest_step,
        )

    def _newest_step(self, trial: str) -> int | None:
        return newest_step(self._store, trial)

    @contextmanager
    def _board(self) -> Iterator[str]:
        name = f"board-{self._run.run_id}-{secrets.token_hex(4)}"
        self._board_actor = open_board(name)
        try:
            ray.get(self._board_actor.snapshot.remote())
            self._recorder.notes = lambda: list(ray.get(self._board_actor.notes.remote()))
            yield name
        finally:
            self._recorder.notes = list
            ray.kill(self._board_actor)

    @contextmanager
    def _watching(self, board: str) -> Iterator[None]:
        try:
            with watching(self._watch, board):
                yield
        finally:
            self._demand.settle(0)
            # the cluster may be gone, and with it what was held; a slot that dies later is for the next sweep of this job to see
            with suppress(RayError):
                _free_orphans()

    def _watch(self, over: threading.Event) -> None:
        """Watch the budget and feed the display; when the sweep is to stop, tell the slots, which wait for their ranks and hear
        nobody else."""
        told: set[str] = set()
        look_again = 0.0
        while not over.wait(DISPLAY_EVERY_S):
            self._spent()
            with suppress(TlcoreError):  # the recorder keeps it, for the driver's own thread
                self._recorder.sign_of_life()
            if self._recorder.error is not None:
                self._halt.fail(self._recorder.error)
            if self._halt.asked and "leave" not in told:
                self._board_actor.leave.remote()
                told.add("leave")
                if self._halt.error is None:
                    with suppress(TlcoreError):
                        self._recorder.record("stopping", reason=self._halt.reason)
            if self._halt.at_once and "stop" not in told:
                self._board_actor.stop.remote()
                told.add("stop")
            # too slow once, or the cluster is going: the driver's own thread will say so
            with suppress(RayError, TlcoreError, OSError):
                if time.monotonic() >= look_again:
                    look_again = time.monotonic() + ORPHANS_EVERY_S
                    _free_orphans()
                self._recorder.take_notes()
                self._demand.settle(self._waiting_trials())
                snapshot = ray.get(self._board_actor.snapshot.remote(), timeout=5.0)
                running = {trial.trial for trial in list(self.state.trials.values()) if trial.status == "running"}
                self._recorder.progress({name: facts for name, facts in snapshot.items() if name in running})


def _free_orphans() -> None:
    """Let other trials have the room of slots that died."""
    if freed := free_orphans():
        _log.warning("freed the room of %d worker groups whose slot died", freed)


def _again(trial: TrialState, last: Takeover) -> TakeOver:
    return TakeOver(trial.trial, last.parent, last.step, last.fraction, trial.point, last.changed, {})


@contextmanager
def _scratch() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="tlcore-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
