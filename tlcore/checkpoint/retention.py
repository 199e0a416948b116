"""Which checkpoints of a trial to keep, and deleting the others.

Owns: the decision (a pure function) and the order of deletion. Does not own chunks: `gc.py` collects those nobody
names any more. Called by `train/` on rank 0 after a commit, and by `sweep/`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tlcore.checkpoint.manifest import Manifest
from tlcore.storage.base import ObjectStore
from tlcore.storage.keys import checkpoint_prefix, manifest_key


def steps_to_delete(
    manifests: Sequence[Manifest], keep_last: int, keep_best: int, metric: str | None = None, mode: str = "max"
) -> list[int]:
    """Steps of one trial's checkpoints to delete, ascending; the newest always stays, since writers reuse its
    chunks.

    Keeps the `keep_last` newest and the `keep_best` best by `metric`; checkpoints without it, or with NaN, are
    never best. Of equals the newer is better.
    """
    newest_first = sorted(manifests, key=lambda each: each.step, reverse=True)
    kept = {each.step for each in newest_first[: max(1, keep_last)]}
    if metric is not None:
        sign = -1.0 if mode == "max" else 1.0
        known = [each for each in newest_first if not math.isnan(each.metrics.get(metric, math.nan))]
        kept.update(each.step for each in sorted(known, key=lambda each: sign * each.metrics[metric])[:keep_best])
    return sorted(each.step for each in manifests if each.step not in kept)


def delete_checkpoint(store: ObjectStore, trial: str, step: int) -> None:
    """Delete one checkpoint: manifest first, so that it never looks whole when it is not; then the rest under its
    prefix.
    """
    store.delete([manifest_key(trial, step)])
    store.delete([each.key for each in store.list(checkpoint_prefix(trial, step))])


def apply_retention(
    store: ObjectStore, manifests: Sequence[Manifest], keep_last: int, keep_best: int, metric: str | None, mode: str
) -> list[int]:
    """Delete what `steps_to_delete` names; returns the steps deleted."""
    doomed = steps_to_delete(manifests, keep_last, keep_best, metric, mode)
    for step in doomed:
        delete_checkpoint(store, manifests[0].trial, step)
    return doomed
