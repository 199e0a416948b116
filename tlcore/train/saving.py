"""A trial's checkpoints and history on one rank: what is handed to the writer, what is kept, what is told.

Owns the writer of this session. Does not own when to save (`cadence.py`, `session.py`), the format (`checkpoint/`), nor the thread
that writes the history (`notes.py`). Called by `session.py`.

What `checkpoint.when_late` says is decided by the session for all ranks alike: ranks that each dropped saves of their own would
drop different ones, and a checkpoint needs all of them. So a writer waits where two saves are under way, and `has_room` says when.

A restart of a trial claims a number of its own in the store (`attempt`), before it looks for a checkpoint: its rank indexes then
never meet those of a killed predecessor at the same step, and a predecessor that is not dead after all commits nothing more.
A save that is waited for and has failed is begun again, as the next attempt for the same reason. Whether it is a checkpoint, and
whether it is begun again, is rank 0's word on every rank: it alone commits, and no rank tries again alone.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tlcore.checkpoint import (
    CheckpointWriter,
    Claim,
    Manifest,
    Retention,
    SaveReport,
    WriterSettings,
    claim_attempt,
)
from tlcore.checkpoint.device import Device
from tlcore.engine.sharded import ShardedModel
from tlcore.errors import CheckpointError, StaleWriter, StorageError
from tlcore.recipe import Recipe
from tlcore.storage import ObjectStore
from tlcore.train.group import agree, decide
from tlcore.train.notes import TrialNotes

CONNECTIONS_PER_HOST = 32
"""PUTs in flight from one host where the recipe says `auto`: where each connection is capped (S3: some 50 to 90 MB/s), a
host of 25 Gbit/s needs as many; a store on the same machine is as fast with 8."""
FEWEST_CONNECTIONS = 4
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 20.0
"""Before a failed save is begun again. Ten tries are two minutes then, besides what each of them waits for the store."""


def writer_settings(recipe: Recipe, ranks_on_host: int) -> WriterSettings:
    """What a recipe's `checkpoint` section means for one of `ranks_on_host` writers: they share the host's connections."""
    section = recipe.checkpoint
    shared = max(FEWEST_CONNECTIONS, CONNECTIONS_PER_HOST // max(1, ranks_on_host))
    return WriterSettings(
        snapshot=section.snapshot,
        memory_bytes=None if section.memory_bytes == "auto" else section.memory_bytes,
        connections=shared if section.connections == "auto" else section.connections,
    )


@dataclass
class SaveTotals:
    """What one rank's saves took since this session began; `last` is the last one that was stored, None before there is one."""

    saves: int = 0
    failed: int = 0
    stall_s: float = 0.0
    bytes_new: int = 0
    bytes_reused: int = 0
    upload_s: float = 0.0
    retries: int = 0
    last: SaveReport | None = None

    def add(self, report: SaveReport) -> None:
        """Count one save that ended."""
        self.saves += report.outcome in ("committed", "uploaded")
        self.failed += report.outcome == "failed"
        self.stall_s += report.stall_s
        self.bytes_new += report.bytes_new
        self.bytes_reused += report.bytes_reused
        self.upload_s += report.upload_s
        self.retries += report.retries + report.repeated
        if report.outcome in ("committed", "uploaded"):
            self.last = report

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, for the sweep's journal."""
        return {name: value for name, value in asdict(self).items() if name != "last"}

    def last_to_dict(self) -> dict[str, Any]:
        """What the last save took, by the names that `Progress` and `Report` have for it; empty before there is one."""
        last = self.last
        if last is None:
            return {}
        return {
            "stall_s": last.stall_s,
            "save_bytes_per_s": last.bytes_per_s,
            "save_bytes_new": last.bytes_new,
            "save_bytes_reused": last.bytes_reused,
            "save_retries": last.retries + last.repeated,
        }


@dataclass(frozen=True)
class FailedSave:
    """The newest save, where it is no checkpoint: the error, what it says without its step, and how many failed in a row then."""

    error: CheckpointError
    why: str
    times: int


class Saver:
    """Saves one trial's state.

    Args:
        store: rooted at the run.
        facts: what belongs in every manifest of the trial besides the state: the recipe and the label names.
        parent: the manifest this session was restored from.
        device: where the state lies that is not in host memory.
        claim: the attempt that rank 0 has claimed, known to every rank; None claims one now.
    """

    def __init__(
        self,
        store: ObjectStore,
        trial: str,
        recipe: Recipe,
        facts: Mapping[str, Any],
        rank: int,
        world_size: int,
        parent: Manifest | None,
        device: Device | None = None,
        claim: Claim | None = None,
    ) -> None:
        self._store, self._trial, self._recipe, self._facts = store, trial, recipe, dict(facts)
        self._rank = rank
        self._parent = parent
        keep, search = recipe.checkpoint, recipe.search

        # The best of all trials may all be this one's; what turns out not to be goes once the trial has ended (`keeping.py`).
        best = max(keep.keep_best, keep.keep_best_overall)

        def retention() -> Retention:
            return Retention(store, trial, keep.keep_last, best, search.metric, search.mode)

        self._notes = TrialNotes(store, trial, retention) if rank == 0 else None
        self.tell({"kind": "started", "world_size": world_size, "from_step": parent.step if parent else 0})
        if claim is None:
            claim = decide(lambda: claim_attempt(store, trial))
        settings = writer_settings(recipe, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        self._writer = CheckpointWriter(
            store, trial, rank, world_size, claim.attempt, settings, parent, device, claim.text
        )
        self.committed_step = parent.step if parent else None
        self.totals = SaveTotals()
        self._saved_step = self.committed_step
        # one that was left at a report's own step has no metrics, and is saved again with them: else it is never the best
        self._is_judged = parent is not None and bool(parent.metrics)
        self._failures = 0
        self._failed: FailedSave | None = None

    def prepare(self, model: ShardedModel) -> None:
        """Make the memory of snapshots ready behind the next steps; to be called once the optimizer has its state."""
        self._writer.prepare(model.pieces())

    def has_room(self) -> bool:
        """Whether a save on this rank would begin at once, fewer than two being under way."""
        return self._writer.has_room()

    def before_update(self) -> None:
        """Wait until no snapshot reads masters and moments any more; to be called right before each optimizer step."""
        self._writer.before_update()

    def save(
        self,
        model: ShardedModel,
        step: int,
        data: Mapping[str, Any],
        metrics: Mapping[str, float],
        offered: bool = False,
    ) -> None:
        """Begin to save the state after `step` optimizer steps; returns when the snapshot is taken, or with
        `snapshot: lazy` when what the next forward pass changes is.

        Args:
            data: position and order of the data, for the manifest.
            metrics: of this step, where it was evaluated; retention ranks by them.
            offered: other trials may take this state over; it stays until the next such one is committed and reported.
        """
        self.poll()
        if step == self._saved_step and (self._is_judged or not metrics):
            return
        began = time.monotonic()
        common = self._common(model, step, data, metrics, offered) if self._rank == 0 else None
        self._writer.save(step, model.pieces(), common, began)
        self._saved_step, self._is_judged, self._failed = step, bool(metrics), None

    def poll(self) -> None:
        """Take note of saves that ended; raises CheckpointError once too many have failed, StorageError where the history
        cannot be written."""
        reports = self._writer.poll()
        self._note(reports)
        failed = [report for report in reports if report.outcome == "failed"]
        if failed and self._failures > self._recipe.failures.max_storage:
            raise self._too_many(self._failures, failed[-1].step, failed[-1].error)
        if self._notes is not None:
            self._notes.check()

    def wait(self, again: Callable[[], None] | None = None) -> int | None:
        """Wait for every save under way, and for what is written down about them. Returns the newest committed step, the same on
        all ranks.

        Args:
            again: begins the newest save again, its state being still what is in memory. It is called, after a pause, where that
                save failed, as long as no more fail in a row than the recipe allows; without it there is no second try.

        Raises, on all ranks, CheckpointError when the newest save failed for good, StaleWriter when another writer owns the trial,
        StorageError where the history cannot be written.
        """
        while (failed := self._newest_failed()) is not None:
            if again is None or isinstance(failed.error, StaleWriter):
                raise failed.error
            if failed.times > self._recipe.failures.max_storage:
                raise self._too_many(failed.times, self._saved_step, failed.why) from failed.error
            if self._take_up_next(failed):
                again()
        decide(self._flush)
        return self.committed_step

    def close(self) -> None:
        """Complete what is under way and stop the writer's threads."""
        self._writer.close()
        self.poll()
        if self._notes is not None:
            self._notes.close()

    def abandon(self) -> None:
        """Stop the writer now; what was under way stays invisible."""
        self._writer.abandon()
        if self._notes is not None:
            self._notes.abandon()

    def tell(self, record: Mapping[str, Any]) -> None:
        """Append one record to the trial's history, soon. On other ranks than 0 nothing happens."""
        if self._notes is not None:
            self._notes.tell(record)

    def _common(
        self, model: ShardedModel, step: int, data: Mapping[str, Any], metrics: Mapping[str, float], offered: bool
    ) -> dict[str, Any]:
        return {
            "parameters": model.parameters,
            "scalars": {**model.scalars(), "step": step, **data},
            "zero_stage": model.stage,
            "precision": model.precision,
            "parent": self._parent.key if self._parent else None,
            "metrics": dict(metrics),
            **({"offered": True} if offered else {}),
            **self._facts,
        }

    def _note(self, reports: list[SaveReport]) -> None:
        for report in reports:
            self.totals.add(report)
            self.tell({"kind": "save", **report.to_dict(), "bytes_per_s": report.bytes_per_s})
            if report.outcome == "failed":
                self._failures += 1
                if report.step == self._saved_step:
                    self._failed = FailedSave(self._writer.failure(report.step), report.error, self._failures)
                continue
            self._failures = 0
            if report.committed:
                self.committed_step = max(self.committed_step or 0, report.step)
                if self._notes is not None:
                    self._notes.committed(report.step)

    def _newest_failed(self) -> FailedSave | None:
        """Wait until every save has ended. Returns None where the newest is a checkpoint; the same on all ranks."""
        self._note(self._writer.settle())
        self._failed = agree(self._failed)
        if self._failed is None and self._saved_step is not None:
            # also on a rank whose own part was stored without its knowing: rank 0 has found it
            self.committed_step, self._failures = self._saved_step, 0
        return self._failed

    def _take_up_next(self, failed: FailedSave) -> bool:
        """Become the trial's next attempt, after a pause; False where that fails, which counts as a save that did."""
        step = self._saved_step or 0
        if self._rank == 0:
            logging.getLogger(__name__).warning(
                "trial %s: the save of step %s failed and is begun again: %s", self._trial, step, failed.why
            )

        def claim_later() -> Claim:
            time.sleep(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failed.times - 1, 10)))
            return self._writer.claim_next(step)

        try:
            claim = decide(claim_later)
        except StorageError as refused:
            self._failures += 1
            why = f"it could not be begun again: {refused.message}"
            self._failed = FailedSave(CheckpointError(why, hint=refused.hint, step=step), why, self._failures)
            return False
        # Where nothing of this session is stored yet, what it was restored from is the newest, and kept.
        self._writer.renew(claim, None if self.totals.saves else self._parent)
        self._saved_step = self._failed = None
        return True

    def _flush(self) -> None:
        if self._notes is not None:
            self._notes.flush()

    def _too_many(self, times: int, step: int | None, why: str) -> CheckpointError:
        return CheckpointError(
            f"trial {self._trial}: {times} saves in a row failed, the last at step {step}: {why}",
            hint=f"see that {self._store.url} can be written; failures.max_storage is {self._recipe.failures.max_storage}",
            trial=self._trial,
            step=step,
        )
