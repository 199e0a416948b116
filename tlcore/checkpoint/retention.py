"""Which checkpoints of a trial to keep, and taking the others away.

Owns the decision (a pure function) and the order of deletion. Does not own chunks: `gc.py` collects those nobody names
any more. Called by `train/` on rank 0 after a commit, by `commit.py` and `clone.py` when they replace a checkpoint, and
by `sweep/`.

A checkpoint is retired: its manifest is put beside itself under another name, and then goes, so that it is no checkpoint
any more. What it names stays for the grace period of the next collection: a restore, an export or a clone that has read
the manifest goes on undisturbed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from tlcore.checkpoint.manifest import Manifest, list_manifests, parse_manifest, read_manifest
from tlcore.errors import CheckpointError, ObjectMissing
from tlcore.storage.base import ObjectStore
from tlcore.storage.keys import manifest_key, retired_key


class Ranked(Protocol):
    """What of a checkpoint decides whether it stays: a manifest has it, and `keeping.Kept`."""

    @property
    def step(self) -> int: ...

    @property
    def attempt(self) -> int: ...

    @property
    def metrics(self) -> Mapping[str, float]: ...


def steps_to_delete(
    manifests: Sequence[Ranked],
    keep_last: int,
    keep_best: int,
    metric: str | None = None,
    mode: str = "max",
    protected: Collection[int] = (),
) -> list[int]:
    """Steps of one trial's checkpoints to delete, ascending.

    Keeps the `keep_last` newest (at least one) and the `keep_best` best by `metric`; checkpoints without it, or with NaN,
    are never best. Of equals the newer is better. Newer is the later attempt, then the higher step: what lies ahead of a
    training that went back belongs to a line that was given up. `protected` steps stay whatever their rank: what a running writer
    committed last, or was restored from, since it reuses the chunks; after a fallback that need not be the newest; and what
    another trial may take over (`on_offer`).
    """
    newest_first = sorted(manifests, key=_newness, reverse=True)
    kept = {each.step for each in newest_first[: max(1, keep_last)]} | set(protected)
    if metric is not None:
        sign = -1.0 if mode == "max" else 1.0
        known = [each for each in newest_first if not math.isnan(each.metrics.get(metric, math.nan))]
        kept.update(each.step for each in sorted(known, key=lambda each: sign * each.metrics[metric])[:keep_best])
    return sorted(each.step for each in manifests if each.step not in kept)


def on_offer(manifests: Iterable[Manifest], committed: int) -> list[int]:
    """Step of the newest checkpoint before `committed` that other trials may take over; none where there is no such.

    A population compares its trials where their intervals end, and takes over the state of then, however much the donor has
    saved since. The one before the newest stays too as long as the newest is what was committed last: its report is still on
    its way to the driver. What is committed after that was trained after the driver had the report.
    """
    known = list(manifests)
    last = next((_newness(each) for each in known if each.step == committed), (math.inf, 0))
    before = [each for each in known if each.common.get("offered") is True and _newness(each) < last]
    return [max(before, key=_newness).step] if before else []


def _newness(each: Ranked) -> tuple[int, int]:
    return each.attempt, each.step


def delete_checkpoint(store: ObjectStore, trial: str, step: int) -> None:
    """Take one checkpoint away, if it is there; whoever has read its manifest can go on reading it for a while.

    The copy comes first: a collection that no longer finds the manifest must find the copy. Raises StorageError.
    """
    if keep_copy(store, trial, step):
        store.delete([manifest_key(trial, step)])


def keep_copy(store: ObjectStore, trial: str, step: int) -> bool:
    """Put a manifest that is about to be deleted or replaced beside itself; False when there is none."""
    key = manifest_key(trial, step)
    try:
        data = store.get(key)
    except ObjectMissing:
        return False
    try:
        attempt = parse_manifest(data, key).attempt
    except CheckpointError:
        attempt = 0  # unreadable: the copy is kept as it is, and names nothing
    store.put(retired_key(trial, step, attempt), data)
    return True


class Retention:
    """What one writer keeps of its trial. Lists the trial once and then knows what it committed; not for several threads."""

    def __init__(
        self, store: ObjectStore, trial: str, keep_last: int, keep_best: int, metric: str | None, mode: str
    ) -> None:
        self._store, self._trial = store, trial
        self._keep_last, self._keep_best, self._metric, self._mode = keep_last, keep_best, metric, mode
        self._known: dict[int, Manifest] | None = None

    def after_commit(self, step: int) -> list[int]:
        """Delete what is not to be kept, now that this writer has committed `step`; returns the steps deleted.

        Checkpoints whose manifest cannot be read stay: `tlcore checkpoints verify` tells of them. Raises StorageError.
        """
        wanted = list_manifests(self._store, self._trial) if self._known is None else [step]
        known = self._known = self._known or {}
        for each in wanted:
            with suppress(CheckpointError):
                known[each] = read_manifest(self._store, self._trial, each)
        there = list(known.values())
        needed = [step, *on_offer(there, step)]
        doomed = steps_to_delete(there, self._keep_last, self._keep_best, self._metric, self._mode, needed)
        for each in doomed:
            delete_checkpoint(self._store, self._trial, each)
            del known[each]
        return doomed
