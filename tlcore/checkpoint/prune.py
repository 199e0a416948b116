"""A sweep's retention carried out: read what is committed, have `keeping.py` decide, take away, collect.

Owns the order of a pass, and that what was read is still so when it is acted on. Does not decide. Called by the sweep's
driver on its own run (`sweep/janitor.py`), and by `tlcore checkpoints gc` on a sweep that has ended.

A checkpoint goes only if its manifest is still the one that the decision was about: a clone or a later attempt may have put
another one there. An older checkpoint of a live trial goes only while the attempt that wrote its newest is the trial's newest
claim: a session that has just restarted may be about to write that step again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tlcore.checkpoint.fence import next_attempt
from tlcore.checkpoint.keeping import Decision, Doomed, KeepPolicy, Kept, Place, choose
from tlcore.checkpoint.manifest import IndexRef, Manifest, read_index, read_manifest
from tlcore.checkpoint.refs import CheckpointRef
from tlcore.checkpoint.retention import delete_checkpoint
from tlcore.errors import CheckpointError, ObjectMissing, RequestError, StorageError
from tlcore.storage import RunRef, list_runs
from tlcore.storage.base import ObjectStore
from tlcore.storage.journal import SweepState
from tlcore.storage.keys import TRIALS_PREFIX, parse_manifest_key
from tlcore.storage.urls import real_place


@dataclass
class Inventory:
    """What is committed in a run. Knows manifests that it has read, so that a pass reads only the new ones.

    Args:
        sizes: read chunk lists too, which a byte budget needs.
    """

    store: ObjectStore
    sizes: bool
    _known: dict[tuple[str, object], tuple[Kept, Manifest]] = field(default_factory=dict)

    def look(self) -> list[Kept]:
        """Every committed checkpoint whose manifest, and chunk lists where wanted, can be read; others are nobody's to judge
        here (`tlcore checkpoints verify` tells of them) and stay. Raises StorageError."""
        now: dict[tuple[str, object], tuple[Kept, Manifest]] = {}
        for info in self.store.list(TRIALS_PREFIX):
            place = parse_manifest_key(info.key)
            if place is None:
                continue
            # times in listings are whole seconds: the manifest is read again, its indexes by digest only once
            with suppress(CheckpointError, ObjectMissing):
                manifest = read_manifest(self.store, *place)
                at = (info.key, manifest.indexes)
                now[at] = self._known.get(at) or (self._kept(manifest), manifest)
        self._known = now
        return [kept for kept, _ in now.values()]

    def _kept(self, manifest: Manifest) -> Kept:
        chunks = dict(self._chunks(manifest.indexes)) if self.sizes else {}
        return Kept(manifest.trial, manifest.step, manifest.attempt, manifest.metrics, chunks)

    def _chunks(self, refs: Collection[IndexRef]) -> Iterator[tuple[str, int]]:
        for ref in refs:
            for chunk in read_index(self.store, ref).chunks:
                yield chunk.digest, chunk.size_bytes


class OtherRuns:
    """The other runs of a storage, as far as their recipes name checkpoints of this one. Reads each `run.json` once: it never
    changes, and a storage has hundreds."""

    def __init__(self, run: RunRef) -> None:
        self._run, self._place = run, real_place(run.url)
        self._known: dict[RunRef, frozenset[Place]] = {}

    def named(self) -> set[Place]:
        """Checkpoints of this run that the recipe of a run that is there now names, wherever in it. Raises StorageError."""
        found: set[Place] = set()
        for other in list_runs(self._run.storage):
            if other != self._run:
                with suppress(ObjectMissing):  # never started, or not yet
                    found |= self._named_by(other)
        return found

    def _named_by(self, other: RunRef) -> frozenset[Place]:
        known = self._known.get(other)
        if known is None:
            texts = _texts(other.identity().get("recipe"))
            refs = [CheckpointRef.parse(text) for text in texts if CheckpointRef.is_one(text)]
            mine = (ref for ref in refs if self._is_mine(ref.run_url))
            known = self._known[other] = frozenset((ref.trial, ref.step) for ref in mine)
        return known

    def _is_mine(self, url: str) -> bool:
        """Whether a recipe means this run by `url`, however it spells the place; rather once too often than once too seldom."""
        try:
            if real_place(url) == self._place:
                return True
        except (RequestError, StorageError):
            return False  # it only looks like a checkpoint
        if "://" in url or Path(url).expanduser().is_absolute():
            return False
        # Relative to where the other run was started, which is not known here: its end decides.
        end = tuple(part for part in Path(os.path.normpath(url)).parts if part != "..")[-2:]
        return end == () or (self._run.name, self._run.run_id)[-len(end) :] == end


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


@dataclass(frozen=True)
class Pruned:
    """What a pass decided, and what of it was done: some may have changed meanwhile and stay."""

    decision: Decision
    deleted: tuple[Doomed, ...]


def prune(
    inventory: Inventory,
    state: Callable[[], SweepState],
    policy: KeepPolicy,
    *,
    pinned: Callable[[], Collection[Place]] = tuple,
    lock: AbstractContextManager[object] | None = None,
    dry_run: bool = False,
) -> Pruned:
    """One pass of retention over a run: manifests only.

    Args:
        state: the sweep as its journal tells it now; asked after the inventory, so that it is never older than that.
        pinned: what must stay besides.
        lock: held while it is decided and deleted; whoever clones holds it to pin the donor.

    Raises StorageError.
    """
    kept = inventory.look()
    with lock or nullcontext():
        now = state()
        decision = choose(now, kept, policy, pinned())
        if dry_run:
            return Pruned(decision, decision.delete)
        by_place = {each.place: each for each in kept}
        deleted = [
            each for each in decision.delete if _delete(inventory.store, now, by_place[each.trial, each.step], kept)
        ]
    return Pruned(decision, tuple(deleted))


def _delete(store: ObjectStore, state: SweepState, doomed: Kept, every: Collection[Kept]) -> bool:
    try:
        if read_manifest(store, doomed.trial, doomed.step).attempt != doomed.attempt:
            return False
    except CheckpointError:
        return False  # gone, or damaged meanwhile
    if not state.trials[doomed.trial].ended:
        newest = max(each.attempt for each in every if each.trial == doomed.trial)
        if next_attempt(store, doomed.trial) != newest + 1:
            return False
    delete_checkpoint(store, doomed.trial, doomed.step)
    return True
