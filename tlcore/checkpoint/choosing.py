"""Which of a trial's committed checkpoints is the one to use once training is over.

Owns that choice, which export, the test figures, `tlcore show` and whatever takes a run's name have in common. Reads manifests
alone. What a restore goes on from is another matter: that is the newest one that is whole (`verify.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from tlcore.checkpoint.manifest import Manifest, list_manifests, read_manifest
from tlcore.errors import CheckpointError
from tlcore.storage.base import ObjectStore

_THREADS: Final = 8


def best_step(
    store: ObjectStore, trial: str, metrics: Sequence[str], modes: Sequence[str], steps: Sequence[int] | None = None
) -> int | None:
    """Step of the trial's committed checkpoint with the best metric, of equals the newest.

    The newest, too, where none was evaluated, and where there are several metrics: no one of them decides then. Manifests that
    cannot be read, or were deleted meanwhile, are passed over.

    Args:
        metrics, modes: what the search judges by, "max" or "min" each.
        steps: of the trial's committed checkpoints, where they were listed already.

    Returns:
        None for a trial without any. Raises StorageError.
    """
    there = list_manifests(store, trial) if steps is None else steps
    newest = max(there, default=None)
    if len(metrics) != 1 or len(there) < 2:
        return newest

    def read(step: int) -> Manifest | None:
        try:
            return read_manifest(store, trial, step)
        except CheckpointError:
            return None

    with ThreadPoolExecutor(_THREADS) as pool:
        found = [each for each in pool.map(read, there) if each is not None]
    sign = 1.0 if modes[0] == "max" else -1.0
    scored = [
        (sign * value, each.attempt, each.step)
        for each in found
        if math.isfinite(value := each.metrics.get(metrics[0], math.nan))
    ]
    return max(scored)[2] if scored else newest
