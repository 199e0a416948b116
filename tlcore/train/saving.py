"""A trial's checkpoints and history on one rank: what is handed to the writer, what is kept, what is told.

Owns the writer of this session and the trial's history objects. Does not own when to save (`cadence.py`, `session.py`) nor the
format (`checkpoint/`). Called by `session.py`.

A restart of a trial takes a number of its own from the store (`attempt`): its rank indexes then never meet those of a killed
predecessor at the same step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tlcore.checkpoint import (
    CheckpointWriter,
    Manifest,
    SaveReport,
    WriterSettings,
    apply_retention,
    list_manifests,
    next_attempt,
    read_manifest,
)
from tlcore.engine.sharded import ShardedModel
from tlcore.errors import CheckpointError
from tlcore.recipe import Recipe
from tlcore.storage import ObjectStore, append_json
from tlcore.storage.keys import history_key
from tlcore.train.group import agree


class Saver:
    """Saves one trial's state.

    Args:
        store: rooted at the run.
        facts: what belongs in every manifest of the trial besides the state: the recipe and the label names.
        parent: the manifest this session was restored from.
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
    ) -> None:
        self._store, self._trial, self._recipe, self._facts = store, trial, recipe, dict(facts)
        self._rank = rank
        self._parent = parent
        self._history_n = 0
        if rank == 0:
            self.tell({"kind": "started", "world_size": world_size, "from_step": parent.step if parent else 0})
        attempt = agree(next_attempt(store, trial) if rank == 0 else 0)
        section = recipe.checkpoint
        settings = WriterSettings(
            when_late=section.when_late,
            memory_bytes=None if section.memory_bytes == "auto" else section.memory_bytes,
        )
        self._writer = CheckpointWriter(store, trial, rank, world_size, attempt, settings, parent)
        self.committed_step = parent.step if parent else None
        self.last_stall_s = 0.0
        self._saved_step = self.committed_step
        self._failures = 0

    def save(self, model: ShardedModel, step: int, data: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Begin to save the state after `step` optimizer steps; returns when the snapshot is taken.

        Args:
            data: position and order of the data, for the manifest.
            metrics: of this step, where it was evaluated; retention ranks by them.
        """
        self.poll()
        if step == self._saved_step:
            return
        self._writer.save(step, model.pieces(), self._common(model, step, data, metrics) if self._rank == 0 else None)
        self._saved_step = step

    def poll(self) -> None:
        """Take note of saves that ended; raises CheckpointError once too many have failed."""
        self._note(self._writer.poll())

    def wait(self) -> int | None:
        """Wait for every save under way. Returns the newest committed step. Raises CheckpointError when one failed."""
        self._note(self._writer.wait())
        return self.committed_step

    def close(self) -> None:
        """Complete what is under way and stop the writer's threads."""
        self._writer.close()
        self.poll()

    def abandon(self) -> None:
        """Stop the writer now; what was under way stays invisible."""
        self._writer.abandon()

    def tell(self, record: Mapping[str, Any]) -> int:
        """Append one record to the trial's history and return its number. Rank 0 alone calls it."""
        number = append_json(self._store, lambda n: history_key(self._trial, n), record, self._history_n)
        self._history_n = number + 1
        return number

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
            self.last_stall_s = report.stall_s
            if self._rank == 0:
                self.tell({"kind": "save", **report.to_dict()})
            if report.outcome in ("committed", "uploaded"):
                self._failures = 0
            if report.committed:
                self.committed_step = max(self.committed_step or 0, report.step)
                if self._rank == 0:
                    self._retain()
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

    def _retain(self) -> None:
        section, search = self._recipe.checkpoint, self._recipe.search
        steps = list_manifests(self._store, self._trial)
        if len(steps) <= section.keep_last:
            return
        manifests = [manifest for step in steps if (manifest := self._readable(step)) is not None]
        apply_retention(self._store, manifests, section.keep_last, section.keep_best, search.metric, search.mode)

    def _readable(self, step: int) -> Manifest | None:
        """A damaged manifest is for `tlcore checkpoints verify` to tell; it must not end the training that it is older than."""
        try:
            return read_manifest(self._store, self._trial, step)
        except CheckpointError:
            return None
