"""A trial's checkpoints and history on one rank: what is handed to the writer, what is kept, what is told.

Owns the writer of this session. Does not own when to save (`cadence.py`, `session.py`), the format (`checkpoint/`), nor the thread
that writes the history (`notes.py`). Called by `session.py`.

What `checkpoint.when_late` says is decided by the session for all ranks alike: ranks that each dropped saves of their own would
drop different ones, and a checkpoint needs all of them. So a writer waits where two saves are under way, and `has_room` says when.

A restart of a trial claims a number of its own in the store (`attempt`), before it looks for a checkpoint: its rank indexes then
never meet those of a killed predecessor at the same step, and a predecessor that is not dead after all commits nothing more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
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
from tlcore.errors import CheckpointError
from tlcore.recipe import Recipe
from tlcore.storage import ObjectStore
from tlcore.train.group import decide
from tlcore.train.notes import TrialNotes

CONNECTIONS_PER_HOST = 32
"""PUTs in flight from one host where the recipe says `auto`: where each connection is capped (S3: some 50 to 90 MB/s), a
host of 25 Gbit/s needs as many; a store on the same machine is as fast with 8."""
FEWEST_CONNECTIONS = 4


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
    """What one rank's saves took since this session began; `last_...` is of the last one that was stored, None
    before there is one."""

    saves: int = 0
    failed: int = 0
    stall_s: float = 0.0
    bytes_new: int = 0
    bytes_reused: int = 0
    upload_s: float = 0.0
    retries: int = 0
    last_stall_s: float | None = None
    last_bytes_per_s: float | None = None

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
            self.last_stall_s, self.last_bytes_per_s = report.stall_s, report.bytes_per_s

    @property
    def last(self) -> tuple[float | None, float | None]:
        """How long the last save kept training, in seconds, and how fast its new bytes went, in bytes/s."""
        return self.last_stall_s, self.last_bytes_per_s

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, for the sweep's journal."""
        return {name: value for name, value in asdict(self).items() if not name.startswith("last_")}


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
        retention = Retention(store, trial, keep.keep_last, keep.keep_best, search.metric, search.mode)
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
        self._failures = 0

    def prepare(self, model: ShardedModel) -> None:
        """Make the memory of snapshots ready behind the next steps; to be called once the optimizer has its state."""
        self._writer.prepare(model.pieces())

    def has_room(self) -> bool:
        """Whether a save on this rank would begin at once, fewer than two being under way."""
        return self._writer.has_room()

    def before_update(self) -> None:
        """Wait until no snapshot reads masters and moments any more; to be called right before each optimizer step."""
        self._writer.before_update()

    def save(self, model: ShardedModel, step: int, data: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Begin to save the state after `step` optimizer steps; returns when the snapshot is taken, or with
        `snapshot: lazy` when what the next forward pass changes is.

        Args:
            data: position and order of the data, for the manifest.
            metrics: of this step, where it was evaluated; retention ranks by them.
        """
        self.poll()
        if step == self._saved_step:
            return
        began = time.monotonic()
        common = self._common(model, step, data, metrics) if self._rank == 0 else None
        self._writer.save(step, model.pieces(), common, began)
        self._saved_step = step

    def poll(self) -> None:
        """Take note of saves that ended; raises CheckpointError once too many have failed, StorageError where the history
        cannot be written."""
        self._note(self._writer.poll())
        if self._notes is not None:
            self._notes.check()

    def wait(self) -> int | None:
        """Wait for every save under way, and for what is written down about them. Returns the newest committed step. Raises
        CheckpointError when one failed."""
        self._note(self._writer.wait())
        if self._notes is not None:
            self._notes.flush()
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

    def tell(self, record: Mapping[str, Any]) -> None:
        """Append one record to the trial's history, soon. On other ranks than 0 nothing happens."""
        if self._notes is not None:
            self._notes.tell(record)

    def _common(
        self, model: ShardedModel, step: int, data: Mapping[str, Any], metrics: Mapping[str, float]
    ) -> dict[str, Any]:
        return {
            "parameters": model.parameters,
            "scalars": {**model.scalars(), "step": step, **data},
            "zero_stage": model.stage,
            "precision": model.precision,
            "parent": self._parent.key if self._parent else None,
            "metrics": dict(metrics),
            **self._facts,
        }

    def _note(self, reports: list[SaveReport]) -> None:
        for report in reports:
            self.totals.add(report)
            self.tell({"kind": "save", **report.to_dict()})
            if report.outcome in ("committed", "uploaded"):
                self._failures = 0
            if report.committed:
                self.committed_step = max(self.committed_step or 0, report.step)
                if self._notes is not None:
                    self._notes.committed(report.step)
            elif report.outcome == "failed":
                self._count_failure(report)

    def _count_failure(self, report: SaveReport) -> None:
        self._failures += 1
        most = self._recipe.failures.max_storage
        if self._failures > most:
            raise CheckpointError(
                f"trial {self._trial}: {self._failures} saves in a row failed, the last at step {report.step}: {report.error}",
                hint=f"see that {self._store.url} can be written; failures.max_storage is {most}",
                trial=self._trial,
                step=report.step,
            )
