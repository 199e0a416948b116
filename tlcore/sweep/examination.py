"""The best trial's figures on the test examples: measured when the last trial has ended, by workers such as trained it.

Owns the one worker group that a sweep starts after its trials: of the best one's own shape, since a model that was sharded because
it fits no single device fits the driver's machine even less. The driver holds it, outside Tune, where nobody wants its room any
more. What befalls it is told, and mended as in a slot (`recovery.py`), on budgets of its own. The recipe's budget is not asked: all
of it was spent for these figures. An interrupt ends it at once, as there is nothing to commit; a resume begins again.

An error ends it and not the sweep, which has its trials: the outcome carries it. Called by `driver.py`, with Ray up; without Ray,
`train/local.py` has its ranks do the same. The test examples are read in these two places and nowhere else.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ray.exceptions import RayError

from tlcore.checkpoint import CheckpointRef
from tlcore.errors import SweepError, TlcoreError
from tlcore.recipe import Recipe, apply_point, with_workers
from tlcore.storage import RunRef
from tlcore.storage.journal import TrialState
from tlcore.sweep.cluster.fit import Admit, workers_setting
from tlcore.sweep.cluster.growth import check_can_come, read_growth
from tlcore.sweep.cluster.resources import Cluster, can_avoid, shape_of
from tlcore.sweep.finals import best_checkpoint, figures_of
from tlcore.sweep.halt import Halt
from tlcore.sweep.recorder import Recorder
from tlcore.sweep.slots.group import Cancelled, GroupSettings, WorkerGroup
from tlcore.sweep.slots.recovery import MENDABLE, Recovery
from tlcore.sweep.watching import watching

SESSION: Final = "tlcore.train.session:TrialSession"
"""What a sweep's ranks drive, unless told otherwise; another class need not know of test examples."""
LOOK_EVERY_S: Final = 0.5


def examine(recipe: Recipe, run: RunRef, admit: Admit, recorder: Recorder, halt: Halt) -> TlcoreError | None:
    """Have the best trial's best checkpoint measured on the test examples, and write that down, unless it is written already.

    Args:
        admit: what becomes of the trial's point, as it did when it ran.

    Returns:
        Why there are no figures, where an error is to blame; what the journal has against an entry is the recorder's to keep.
    """
    best = recorder.state.best(recipe.search.metric, recipe.search.mode)
    if recipe.data.test is None or best is None or _stops(recorder, halt):
        return None
    try:
        checkpoint = best_checkpoint(recipe, run, best)
        if checkpoint is None or figures_of(recorder.state, checkpoint) is not None:
            return None
        with tempfile.TemporaryDirectory(prefix="tlcore-", ignore_cleanup_errors=True) as scratch:
            own = _Examination(recipe, admit(best.point).point, best, checkpoint, recorder, halt)
            found = own.run(Path(scratch))
    except Cancelled:
        return None
    except RayError as error:
        text = f"the test examples were not measured: {' '.join(str(error).split())}"
        return SweepError(text, hint="see driver.log in the log directory; a resume tries again")
    except TlcoreError as error:
        return error
    recorder.record("final", best.trial, checkpoint=str(checkpoint), **found)
    return None


def _stops(recorder: Recorder, halt: Halt) -> bool:
    return halt.interrupted or halt.error is not None or recorder.error is not None


class _Examination:
    """Of one checkpoint.

    Args:
        point: the trial's, as it ran.
    """

    def __init__(
        self,
        recipe: Recipe,
        point: Mapping[str, Any],
        best: TrialState,
        checkpoint: CheckpointRef,
        recorder: Recorder,
        halt: Halt,
    ) -> None:
        self._point, self._best, self._checkpoint = dict(point), best, checkpoint
        self._recorder, self._halt = recorder, halt
        self._workers = best.workers or recipe.resources.workers
        self._base = with_workers(recipe, self._workers)
        own = with_workers(apply_point(recipe, self._point), self._workers)
        self._recovery = Recovery(best.trial, own, {}, best.adapted, self._tell)
        self._setting = workers_setting(recipe)
        self._group: WorkerGroup | None = None
        self._groups = 0
        self._stopped = threading.Event()

    def run(self, scratch: Path) -> dict[str, Any]:
        """`metrics` and `examples`. Raises Cancelled when the sweep is being stopped, and what ends a trial in a slot."""
        price = self._base.budget.price_per_worker_hour
        terms = {"workers": self._workers} | ({} if price is None else {"price": price})
        self._tell("testing", step=self._checkpoint.step, **terms)
        healthy = False
        with watching(self._watch, "examination"):
            try:
                found = self._measured(scratch)
                healthy = True
            finally:
                self._close(healthy)
        return found

    def _measured(self, scratch: Path) -> dict[str, Any]:
        step = self._checkpoint.step
        while not self._stopped.is_set():
            try:
                group = self._ready(scratch)
                group.run(self._start())
                self._recovery.started()
                found: dict[str, Any] = group.run({"op": "test", "step": step})
                return found
            except MENDABLE as error:
                again = self._recovery.mend(error, step)
                if again.anew:
                    self._close(healthy=False)
                self._stopped.wait(again.pause_s)
        raise Cancelled("the sweep is being stopped")

    def _start(self) -> dict[str, Any]:
        return {
            "op": "start",
            "recipe": self._base.to_dict(),
            "point": {**self._point, **self._recovery.adapted},
            "trial": self._best.trial,
            "run_url": self._checkpoint.run_url,
            "resume_step": self._checkpoint.step,
            "inherits": bool(self._best.lineage),
        }

    def _ready(self, scratch: Path) -> WorkerGroup:
        if self._group is None:
            self._groups += 1
            self._group = WorkerGroup(self._settings(scratch))
            self._group.launch()
        self._group.await_ranks(self._recovery.room)
        return self._group

    def _settings(self, scratch: Path) -> GroupSettings:
        recipe, nodes = self._recovery.recipe, Cluster().nodes()
        growth = read_growth(nodes)
        shape = shape_of(recipe, growth.gpus(nodes))
        check_can_come(shape, nodes, growth, self._setting)  # it may be another cluster than the one it was trained on
        avoid = tuple(self._recorder.state.avoided)
        if not can_avoid(nodes, avoid, shape):
            avoid = ()
        hang_s = recipe.failures.hang_minutes * 60
        return GroupSettings(shape, SESSION, None, scratch, f"test-{self._groups}", hang_s, avoid)

    def _tell(self, kind: str, **facts: Any) -> None:
        self._recorder.record(kind, self._best.trial, **facts)

    def _close(self, healthy: bool) -> None:
        group, self._group = self._group, None
        if group is not None:
            group.close(healthy)

    def _watch(self, over: threading.Event) -> None:
        """Say that the driver lives; when the sweep is being stopped, wake the driver's thread, which waits for the ranks."""
        while not over.wait(LOOK_EVERY_S):
            with suppress(TlcoreError):  # the recorder keeps it
                self._recorder.sign_of_life()
            if not _stops(self._recorder, self._halt):
                continue
            self._stopped.set()
            group = self._group
            if group is not None:
                with suppress(RayError):
                    group.mailbox.cancel.remote()
