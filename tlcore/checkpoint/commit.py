"""From durable parts to one visible checkpoint, or to none: everything that ranks say to each other, said through the
store.

Owns: waiting for every rank's index, the check that they cover the state, the manifest put last and only if absent, and
the marker that says "no checkpoint at this step". Does not own: chunks (`upload.py`), when to save (`writer.py`), who
may commit (`fence.py`). Called by `writer.py`, in its background thread, and by `clone.py`; the training process group
takes no part.

A rank that fails a save puts `<rank index key>.failed`, so that nobody waits for it in vain. A
manifest of an older attempt at the same step (training went back to before it) is replaced; any other one means two
writers. Between the last index and the manifest stand two looks: at the claims of newer writers, and at the notices of
garbage collections (`gc.py` says why that is enough).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tlcore.checkpoint.digest import sha256_hex
from tlcore.checkpoint.fence import new_claim, newer_claim, stale
from tlcore.checkpoint.intervals import cover_faults
from tlcore.checkpoint.manifest import (
    IndexRef,
    Manifest,
    RankIndex,
    Totals,
    parse_index,
    parse_manifest,
    parse_parameters,
)
from tlcore.checkpoint.notices import Noticeboard
from tlcore.checkpoint.patience import Patience
from tlcore.checkpoint.retention import delete_checkpoint, keep_copy
from tlcore.errors import CheckpointCorrupt, CheckpointError, ObjectMissing, StaleWriter
from tlcore.storage.base import ObjectStore
from tlcore.storage.keys import checkpoint_prefix, chunk_key, claim_key, manifest_key, rank_index_key

GIVEN_UP = ".failed"
COMMIT_WITHIN_S = 3600.0
"""Most time between rank 0's index and its manifest; less than any grace period of a garbage collection."""


@dataclass(frozen=True)
class Identity:
    """Which writer this is: the same on all ranks of an attempt but for `rank`.

    A restarted trial has a higher `attempt`; `claim` is the text with which rank 0 has claimed it already, empty where it
    has not.
    """

    trial: str
    rank: int
    world_size: int
    attempt: int
    claim: str = ""

    def index_key(self, step: int, rank: int | None = None) -> str:
        """Key of this rank's index, or of another rank's."""
        return rank_index_key(self.trial, step, self.rank if rank is None else rank, self.attempt)


class Committer:
    """The protocol of one writer. Blocking; every wait ends at `deadline_s` or when `patience` is abandoned."""

    def __init__(self, store: ObjectStore, identity: Identity, patience: Patience, deadline_s: float) -> None:
        self._store = store
        self._identity = identity
        self._patience = patience
        self._deadline_s = deadline_s
        self._fenced = False
        self._claim = (identity.claim or new_claim(identity.attempt).text).encode()
        self._board = Noticeboard(store)

    def collected(self) -> AbstractSet[str] | None:
        """Digests that a garbage collection has told of since the last call; None: it may be any.

        What they name must be sent again.
        """
        return self._patience.ask(self._board.fresh)

    def fence(self) -> None:
        """Claim this attempt, once; older ones see it and stop. Raises StaleWriter when another writer has claimed it.

        Two writers that use one attempt would overwrite each other's indexes, and commit a mixture.
        """
        if self._identity.rank != 0 or self._fenced:
            return
        key = claim_key(self._identity.trial, self._identity.attempt)
        if not self._patience.ask(lambda: self._store.put_if_absent(key, self._claim)):
            raise StaleWriter(
                f"{key}: attempt {self._identity.attempt} of trial {self._identity.trial} has been used by another writer",
                hint="a restarted trial needs the next attempt number",
            )
        self._fenced = True

    def give_up(self, step: int, reason: str) -> None:
        """Tell the other ranks that there will be no checkpoint of `step`.

        One try, also when abandoned. Raises StorageError.
        """
        self._store.put(self._identity.index_key(step) + GIVEN_UP, reason.encode())

    def commit(self, step: int, own: bytes, common: Mapping[str, Any]) -> RankIndexes:
        """Rank 0: wait for all ranks, check, put the manifest.

        Raises CheckpointError when a rank failed, is late past the deadline, or the rows do not cover the parameters;
        StaleWriter when a newer attempt, or another writer of this one, owns the trial.
        """
        began = time.monotonic()
        indexes = self._gather(step, own)
        manifest = self._manifest(step, common, indexes)
        faults = cover_faults((at.row for each in indexes.parsed for at in each.rows), manifest.parameters)
        if faults:
            more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
            raise CheckpointError(
                f"step {step}: the ranks' rows are not the whole state once: {'; '.join(faults[:3])}{more}"
            )
        self.publish(manifest, indexes.keys, began)
        return indexes

    def publish(self, manifest: Manifest, needed: Callable[[], AbstractSet[str]], began: float) -> None:
        """Put a manifest whose indexes and chunks are in the store, unless somebody else's word is against it.

        Args:
            needed: keys of these indexes and chunks.
            began: monotonic time at which a collection would have found them needed: rank 0's index was put just before.

        Raises CheckpointError when that is too long ago, or a collection took a chunk; StaleWriter as `commit` does.
        """
        identity, what = self._identity, f"trial {manifest.trial} step {manifest.step}"
        newer = self._patience.ask(lambda: newer_claim(self._store, identity.trial, identity.attempt))
        if newer is not None:
            raise self._stale(manifest.step, newer[0])
        self._patience.ask(lambda: self._board.check(needed, self._patience.polls(self._deadline_s), what))
        if time.monotonic() - began > COMMIT_WITHIN_S:
            raise CheckpointError(f"{what}: not complete within {COMMIT_WITHIN_S:g} s of rank 0's part")
        self._put_manifest(manifest)
        self._withdraw_if_stale(manifest)

    def observe(self, step: int) -> None:
        """Other ranks: return once rank 0's manifest of `step` is there; raises as `commit` does."""
        key = manifest_key(self._identity.trial, step)
        for _ in self._patience.polls(self._deadline_s):
            present = self._present(step)
            attempt = self._attempt_of(step) if key in present else None
            if attempt == self._identity.attempt:
                return
            if attempt is not None and attempt > self._identity.attempt:
                raise self._stale(step, attempt)
            self._raise_if_given_up(step, present, ranks=[0])
        raise CheckpointError(f"trial {self._identity.trial} step {step}: no manifest after {self._deadline_s:g} s")

    def was_committed(self, step: int) -> bool:
        """Whether this attempt's manifest of `step` is there now."""
        return self._attempt_of(step) == self._identity.attempt

    def _attempt_of(self, step: int) -> int | None:
        """Attempt that committed `step`; None when there is no manifest, or one that rank 0 is about to replace."""
        key = manifest_key(self._identity.trial, step)
        try:
            return parse_manifest(self._get(key), key).attempt
        except (ObjectMissing, CheckpointCorrupt):
            return None

    def _gather(self, step: int, own: bytes) -> RankIndexes:
        """All ranks' indexes, as soon as the last one is there."""
        identity = self._identity
        found: dict[int, bytes] = {identity.rank: own}
        if identity.world_size == 1:
            return self._parse(step, found)
        for _ in self._patience.polls(self._deadline_s):
            present = self._present(step)
            for rank in range(identity.world_size):
                key = identity.index_key(step, rank)
                if rank not in found and key in present:
                    found[rank] = self._get(key)
            missing = [rank for rank in range(identity.world_size) if rank not in found]
            if not missing:
                return self._parse(step, found)
            self._raise_if_given_up(step, present, missing)
        late = ", ".join(str(rank) for rank in range(identity.world_size) if rank not in found)
        raise CheckpointError(
            f"trial {identity.trial} step {step}: no index of rank {late} after {self._deadline_s:g} s",
            hint="a rank died or is too slow; training goes on from the last committed checkpoint",
        )

    def _parse(self, step: int, found: Mapping[int, bytes]) -> RankIndexes:
        refs, parsed = [], []
        identity = self._identity
        for rank in sorted(found):
            key = identity.index_key(step, rank)
            index = parse_index(found[rank], key)
            if (index.trial, index.step, index.rank, index.world_size, index.attempt) != (
                identity.trial, step, rank, identity.world_size, identity.attempt,
            ):  # fmt: skip
                raise CheckpointCorrupt(f"{key}: holds the index of another save or rank", key=key)
            refs.append(IndexRef(rank, key, sha256_hex(found[rank]), len(found[rank])))
            parsed.append(index)
        return RankIndexes(tuple(refs), tuple(parsed))

    def _manifest(self, step: int, common: Mapping[str, Any], indexes: RankIndexes) -> Manifest:
        identity = self._identity
        return Manifest(
            trial=identity.trial,
            step=step,
            world_size=identity.world_size,
            attempt=identity.attempt,
            written=datetime.now(UTC).isoformat(timespec="seconds"),
            indexes=indexes.refs,
            common=common,
            parameters=parse_parameters(common, manifest_key(identity.trial, step)),
            totals=Totals(
                state_bytes=sum(at.row.size_bytes for each in indexes.parsed for at in each.rows),
                new_bytes=sum(each.bytes_new for each in indexes.parsed),
                chunks=len({chunk.digest for each in indexes.parsed for chunk in each.chunks}),
            ),
        )

    def _put_manifest(self, manifest: Manifest) -> None:
        """Put it where none is, or over an older attempt's; in the latter case there is one at every moment."""
        data = manifest.to_bytes()
        if self._patience.ask(lambda: self._store.put_if_absent(manifest.key, data)):
            return
        attempt = self._attempt_of(manifest.step)
        if attempt is not None and attempt >= self._identity.attempt:
            raise self._stale(manifest.step, attempt)
        self._patience.ask(lambda: keep_copy(self._store, manifest.trial, manifest.step))
        self._patience.ask(lambda: self._store.put(manifest.key, data))

    def _withdraw_if_stale(self, manifest: Manifest) -> None:
        """Take the manifest back if a newer attempt was claimed before it was put: its writer must not meet it.

        Raises StaleWriter then.
        """
        newer = self._patience.ask(lambda: newer_claim(self._store, manifest.trial, self._identity.attempt))
        if newer is None:
            return
        # Where it has put its own over this one meanwhile, that one stays.
        if self._attempt_of(manifest.step) == self._identity.attempt:
            mine = self._patience.ask(lambda: [each.modified for each in self._store.list(manifest.key)])
            if not mine or newer[1].modified >= mine[0]:
                return
            self._patience.ask(lambda: delete_checkpoint(self._store, manifest.trial, manifest.step))
        raise self._stale(manifest.step, newer[0])

    def _raise_if_given_up(self, step: int, present: set[str], ranks: Sequence[int]) -> None:
        for rank in ranks:
            key = self._identity.index_key(step, rank) + GIVEN_UP
            if key in present:
                reason = self._get(key).decode(errors="replace")
                raise CheckpointError(f"trial {self._identity.trial} step {step}: given up by rank {rank}: {reason}")

    def _get(self, key: str) -> bytes:
        return self._patience.ask(lambda: self._store.get(key))

    def _present(self, step: int) -> set[str]:
        prefix = checkpoint_prefix(self._identity.trial, step)
        return self._patience.ask(lambda: {each.key for each in self._store.list(prefix)})

    def _stale(self, step: int, newer: int) -> StaleWriter:
        identity = self._identity
        return self._patience.ask(lambda: stale(self._store, identity.trial, step, identity.attempt, newer))


@dataclass(frozen=True)
class RankIndexes:
    """All ranks' indexes of one step, as the manifest names them and as they read."""

    refs: tuple[IndexRef, ...]
    parsed: tuple[RankIndex, ...]

    def keys(self) -> set[str]:
        """Of the indexes and of all chunks that they name."""
        chunks = {chunk.digest for each in self.parsed for chunk in each.chunks}
        return {ref.key for ref in self.refs} | {chunk_key(digest) for digest in chunks}
