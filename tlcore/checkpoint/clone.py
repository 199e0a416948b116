"""A checkpoint of one trial as the beginning of another: one manifest, which names the donor's indexes and chunks.

Owns `clone_checkpoint`. Called by `sweep/` when a population-based scheduler lets a trial go on from a better one's state.
Both trials belong to one run. The clone is a checkpoint like any other, and the donor may be deleted as soon as this
returns: what a manifest names stays, in whosesoever directory it lies.

Why a collection beside it cannot hurt: the donor's manifest is seen to be there at a time d, and the clone's is put
within `COMMIT_WITHIN_S` of d. Until then every marking finds the donor's manifest, or its copy, which counts for longer
than that; from then on it finds the clone's. What a collection deletes because of an earlier marking its notice says, and
`Committer.publish` looks.
"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime

from tlcore.checkpoint.commit import Committer, Identity
from tlcore.checkpoint.fence import Claim, claim_attempt
from tlcore.checkpoint.manifest import Manifest, list_manifests, read_index
from tlcore.checkpoint.patience import Patience
from tlcore.checkpoint.retention import delete_checkpoint
from tlcore.errors import CheckpointError, RequestError
from tlcore.storage.base import ObjectStore
from tlcore.storage.keys import chunk_key

ATTEMPTS = 4
DEADLINE_S = 600.0


def clone_checkpoint(store: ObjectStore, source: Manifest, trial: str, claim: Claim | None = None) -> Manifest:
    """Make `source` the newest checkpoint of `trial`, at the same step; returns the manifest that was put.

    What the trial has at later steps belongs to a training that it gives up, and is deleted once the clone is there. A
    session of the trial that is asked to resume finds the clone; `common["parent"]` names the donor.

    Args:
        store: rooted at the run that both trials belong to.
        source: as read from this store.
        claim: the attempt at `trial` that the caller has claimed; None claims the next one.

    Raises:
        RequestError: `source` is the trial's own.
        CheckpointError: the donor was deleted meanwhile; the trial has what it had before.
        StaleWriter: another writer took the trial up meanwhile.
    """
    if source.trial == trial:
        raise RequestError(f"trial {trial} cannot be cloned from itself", hint="resume it from the step instead")
    claim = claim or claim_attempt(store, trial)
    patience = Patience(ATTEMPTS)
    identity = Identity(trial, 0, source.world_size, claim.attempt, claim.text)
    committer = Committer(store, identity, patience, DEADLINE_S)
    committer.fence()
    seen = time.monotonic()
    if not patience.ask(lambda: any(each.key == source.key for each in store.list(source.key))):
        raise CheckpointError(
            f"trial {trial} cannot begin from {source.key}: it was deleted meanwhile",
            hint="choose the donor's newest checkpoint",
            trial=trial,
            step=source.step,
        )
    manifest = replace(
        source,
        trial=trial,
        attempt=claim.attempt,
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        common={**source.common, "parent": source.key},
        totals=replace(source.totals, new_bytes=0),
    )
    committer.publish(manifest, lambda: _needed(store, source), seen)
    for step in patience.ask(lambda: list_manifests(store, trial)):
        if step > source.step:
            delete_checkpoint(store, trial, step)
    return manifest


def _needed(store: ObjectStore, source: Manifest) -> set[str]:
    """Keys of the indexes and chunks of a checkpoint."""
    chunks = {chunk.digest for ref in source.indexes for chunk in read_index(store, ref).chunks}
    return {ref.key for ref in source.indexes} | {chunk_key(digest) for digest in chunks}
