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
from ray.tune.schedulers import TrialScheduler
from ray.util import remove_placement_group

from tlcore.errors import SweepError, TlcoreError
from tlcore.recipe import Recipe
from tlcore.storage import RunRef
from tlcore.storage.journal import Journal, SweepState, read_journal
from tlcore.sweep.board import open_board
from tlcore.sweep.display import Display
from tlcore.sweep.recorder import Halt, JournalCallback, Recorder
from tlcore.sweep.resources import Cluster, Shape, has_room, shape_of
from tlcore.sweep.schedulers import make_scheduler, replay
from tlcore.sweep.search import TrialSource, trials_wanted
from tlcore.sweep.slot import Slot

DISPLAY_EVERY_S: Final = 0.5


class Driver:
    """Runs what is left of a run.

    Args:
        session: import path of the session class that the ranks drive.
        metric: what every report must have; None asks for nothing.
        halt: asked when the sweep must stop before its end.
    """

    def __init__(
        self, recipe: Recipe, run: RunRef, session: str, metric: str | None, display: Display | None, halt: Halt
    ) -> None:
        self._recipe, self._run, self._session, self._metric, self._halt = recipe, run, session, metric, halt
        store = run.open()
        self._entries = read_journal(store)
        journal = Journal(store, lambda: datetime.now(UTC), start=len(self._entries))
        self._recorder = Recorder(journal, SweepState.from_entries(self._entries), display)
        self._cluster = Cluster()

    @property
    def state(self) -> SweepState:
        """The run, as far as its journal tells."""
        return self._recorder.state

    def drive(self) -> bool:
        """Run what is left. True when it was interrupted."""
        scheduler = make_scheduler(self._recipe)
        decided = replay(scheduler, self._entries)
        if self._entries:
            self._recorder.record("resumed")
        self._settle(decided)
        known = len(self.state.trials)
        if self.state.unfinished() or known < trials_wanted(self._recipe):
            with _scratch() as scratch, self._board() as board, self._watching(board):
                self._fit(self._source(scratch, board), scheduler, scratch)
        if not self._halt.asked:
            best = self.state.best(self._recipe.search.metric, self._recipe.search.mode)
            self._recorder.record("finished", best=best.trial if best else None)
        return self._halt.interrupted

    def _settle(self, decided: set[str]) -> None:
        """Write what the last driver had seen and did not live to write."""
        for trial in self.state.unfinished():
            if trial.fraction >= 1.0:
                self._recorder.record("completed", trial.trial)
            elif trial.trial in decided:
                self._recorder.record("stopped", trial.trial, reason="scheduler")

    def _source(self, scratch: Path, board: str) -> TrialSource:
        gpus = self._cluster.has_gpus()
        facts = {
            "url": self._run.url,
            "recipe": self._recipe.to_dict(),
            "board": board,
            "scratch": str(scratch),
            "session": self._session,
            "metric": self._metric,
            "cluster_has_gpus": gpus,
        }
        return TrialSource(
            self._recipe,
            facts,
            self.state.unfinished(),
            len(self.state.trials),
            shape_of=lambda recipe: shape_of(recipe, gpus),
            room=self._room,
            record=self._recorder.record,
        )

    def _room(self, shape: Shape, live: Sequence[Shape]) -> bool:
        return has_room(shape, live, self._cluster.nodes(), self._cluster.available())

    def _fit(self, source: TrialSource, scheduler: TrialScheduler, scratch: Path) -> None:
        try:
            # not `Tuner`: it pickles itself with all its callbacks into a state file, which nobody here would read
            tune.run(
                Slot,
                name="tune",
                search_alg=source,
                scheduler=scheduler,
                reuse_actors=True,
                storage_path=str(scratch),
                stop=self._halt,
                callbacks=[JournalCallback(self._recorder, self._halt, self._free)],
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


@contextmanager
def _scratch() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="tlcore-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
