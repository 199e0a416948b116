"""One driver's time with a run: take the journal up, let Tune run what is left, end with nothing left behind.

Owns what lives exactly as long as the driver: the scratch directory that Tune and Train insist on (removed, never read back), the
board, the thread that feeds the display and carries an interrupt to the slots. Called by `runner.py`, with Ray up.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.error import TuneError
from ray.tune.experiment import Trial
from ray.util import remove_placement_group

from tlcore.errors import SweepError, TlcoreError
from tlcore.recipe import Recipe
from tlcore.storage import RunRef
from tlcore.storage.journal import Entry, Journal, SweepState, Takeover, TrialState, read_journal
from tlcore.sweep.board import open_board
from tlcore.sweep.conductor import Conductor
from tlcore.sweep.display import Display
from tlcore.sweep.janitor import Janitor
from tlcore.sweep.recorder import Halt, JournalCallback, Recorder
from tlcore.sweep.resources import Cluster, Shape, has_room, shape_of
from tlcore.sweep.schedulers import make_seats
from tlcore.sweep.search import TrialSource, Waiting, trials_wanted
from tlcore.sweep.searchers import make_searcher
from tlcore.sweep.seats import Replay, TakeOver
from tlcore.sweep.slot import Slot
from tlcore.sweep.takeover import can_clone, make_own
from tlcore.sweep.warm import earlier_results

DISPLAY_EVERY_S: Final = 0.5


class Driver:
    """Runs what is left of a run.

    Args:
        session: import path of the session class that the ranks drive.
        metrics: what every report must have.
        halt: asked when the sweep must stop before its end.
        earlier: run whose results warm the searcher of a new sweep.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: RunRef,
        session: str,
        metrics: Sequence[str],
        display: Display | None,
        halt: Halt,
        earlier: RunRef | None = None,
    ) -> None:
        self._recipe, self._run, self._session, self._metrics, self._halt = recipe, run, session, list(metrics), halt
        self._earlier = earlier
        self._store = run.open()
        self._entries = read_journal(self._store)
        journal = Journal(self._store, lambda: datetime.now(UTC), start=len(self._entries))
        self._recorder = Recorder(journal, SweepState.from_entries(self._entries), display)
        self._cluster = Cluster()
        self._conductor = Conductor(self._recorder, self._clone)
        self._seats = make_seats(recipe, self._conductor)
        self._conductor.seats = self._seats
        self._searcher = make_searcher(recipe)
        self._janitor = Janitor(recipe, run, self._recorder.snapshot, self._recorder.record, self._recorder.next_number)

    @property
    def state(self) -> SweepState:
        """The run, as far as its journal tells."""
        return self._recorder.state

    def drive(self) -> bool:
        """Run what is left. True when it was interrupted."""
        wanted = trials_wanted(self._recipe)
        self._take_up(wanted)
        if self.state.unfinished() or len(self.state.trials) < wanted:
            with _scratch() as scratch, self._board() as board, self._watching(board), self._janitor.at_work():
                self._fit(self._source(scratch, board), scratch)
        if not self._halt.asked:
            self._janitor.run_once()
            best = self.state.best(self._recipe.search.metric, self._recipe.search.mode)
            self._recorder.record("finished", best=best.trial if best else None)
        return self._halt.interrupted

    def _take_up(self, wanted: int) -> None:
        """Bring scheduler and searcher to where the journal ends, and do what the last driver decided and did not live to do."""
        for entry in self._entries:
            self._searcher.observe(entry)
        replayed = Replay(self._seats, self._entries)
        self._recorder.listeners += [self._searcher.observe, self._seat, self._janitor.on_entry]
        if not self._entries:
            if self._earlier is not None:
                self._recorder.record("warmed", **earlier_results(self._recipe, self._earlier))
            return
        self._recorder.record("resumed", of=wanted)
        self._seats.resume(wanted)
        self._settle(replayed.stopped)
        for decided in replayed.pending:
            self._conductor.carry_out(decided)
        for trial in self.state.unfinished():
            if (last := trial.just_took_over) is not None:
                make_own(self._store, _again(trial, last))

    def _seat(self, entry: Entry) -> None:
        if entry["kind"] == "suggested":
            self._seats.add(entry["trial"], entry["point"], entry["of"])

    def _clone(self, decided: TakeOver, check: bool) -> bool:
        if check:
            self._janitor.pin(decided.parent, decided.step)  # until it is cloned
            if can := can_clone(self._store, decided):
                return can
        else:
            make_own(self._store, decided)
        self._janitor.unpin(decided.parent, decided.step)
        return not check

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
        gpus = self._cluster.has_gpus()
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
        )
        self._conductor.hands = source
        return source

    def _room(self, shape: Shape, live: Sequence[Shape]) -> bool:
        return has_room(shape, live, self._cluster.nodes(), self._cluster.available())

    def _fit(self, source: TrialSource, scratch: Path) -> None:
        try:
            # not `Tuner`: it pickles itself with all its callbacks into a state file, which nobody here would read
            tune.run(
                Slot,
                name="tune",
                search_alg=source,
                scheduler=self._conductor,
                reuse_actors=True,
                storage_path=str(scratch),
                stop=self._halt,
                callbacks=[JournalCallback(self._recorder, self._halt, self._seats, self._free)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, num_to_keep=2),
                raise_on_failed_trial=False,
                verbose=0,
            )
        except (TuneError, RayError, TlcoreError) as error:
            if self._recorder.error is not None:
                raise self._recorder.error from error
            if isinstance(error, TlcoreError):
                raise
            raise SweepError(f"Ray Tune gave up: {error}", hint="see driver.log in the log directory") from error

    def _free(self, slot: str) -> None:
        """Free the workers of a slot that was killed; Ray keeps a placement group as long as its job lives."""
        place = ray.get(self._board_actor.let_go.remote(slot))
        if place is not None:
            remove_placement_group(place)

    @contextmanager
    def _board(self) -> Iterator[str]:
        name = f"board-{self._run.run_id}-{secrets.token_hex(4)}"
        self._board_actor = open_board(name)
        try:
            ray.get(self._board_actor.snapshot.remote())
            yield name
        finally:
            ray.kill(self._board_actor)

    @contextmanager
    def _watching(self, board: str) -> Iterator[None]:
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(over,), name=board, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    def _watch(self, over: threading.Event) -> None:
        """Feed the display; when the sweep is to stop, tell the slots, which wait for their ranks and hear nobody else."""
        told = False
        while not over.wait(DISPLAY_EVERY_S):
            if self._halt.asked and not told:
                self._board_actor.stop.remote()
                told = True
            with suppress(RayError):  # too slow once, or the cluster is going: the driver's own thread will say so
                snapshot = ray.get(self._board_actor.snapshot.remote(), timeout=5.0)
                running = {trial.trial for trial in self.state.trials.values() if trial.status == "running"}
                self._recorder.progress({name: facts for name, facts in snapshot.items() if name in running})


def _again(trial: TrialState, last: Takeover) -> TakeOver:
    return TakeOver(trial.trial, last.parent, last.step, last.fraction, trial.point, last.changed, {})


@contextmanager
def _scratch() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="tlcore-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
