"""Making another trial's checkpoint a trial's own, by pointer.

Owns when that is done: the decision is in the journal before, and what a killed driver left half done is done again by the next
one. The clone itself, a small manifest over chunks that are in the store already, is `checkpoint/`'s. Called by `driver.py`.
"""

from __future__ import annotations

from tlcore.checkpoint import Manifest, clone_checkpoint, newest_step, read_manifest
from tlcore.errors import CheckpointError
from tlcore.storage import ObjectStore
from tlcore.sweep.schedule.seats import TakeOver


def can_clone(store: ObjectStore, decided: TakeOver) -> bool:
    """Whether the donor's checkpoint is still there and can be read. Its own writer keeps it (`retention.on_offer`)."""
    return _readable(store, decided.parent, decided.step) is not None


def make_own(store: ObjectStore, decided: TakeOver) -> None:
    """Make the donor's checkpoint at that step the trial's newest. Does nothing where that is done.

    Raises:
        CheckpointError: the donor's checkpoint is gone, or cannot be read.
        StaleWriter: another writer took the trial up meanwhile.
        StorageError: the store cannot be written.
    """
    mine = _readable(store, decided.trial, decided.step)
    if mine is None or not _is_clone(mine, decided) or newest_step(store, decided.trial) != decided.step:
        clone_checkpoint(store, read_manifest(store, decided.parent, decided.step), decided.trial)


def _is_clone(manifest: Manifest, decided: TakeOver) -> bool:
    return manifest.parent is not None and f"/{decided.parent}/" in manifest.parent


def _readable(store: ObjectStore, trial: str, step: int) -> Manifest | None:
    try:
        return read_manifest(store, trial, step)
    except CheckpointError:
        return None
