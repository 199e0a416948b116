"""What must be in the store after a kill, from the killer's own records, and whether it is.

Owns `Ledger`: which checkpoints of one trial were committed (acknowledged to a rank, or seen by an earlier check), which of them
retention may have taken since, and the verdicts `torn` and `lost`. Called by `saves.py` and `groups.py`.

torn: a visible manifest that does not verify, byte for byte, or whose bytes are not the ones that its life saved at its step.
lost: a committed checkpoint that is gone or no longer restores, though retention keeps it: the `keep_last` newest that were ever
committed, and the best. The rule is worked out here again, from the records alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jobs.bench.kill import state as kill_state
from tlcore.checkpoint import CheckpointReader, Manifest, Piece, newest_intact, read_manifest, verify
from tlcore.errors import CheckpointError
from tlcore.storage import ObjectStore

_MANIFEST = re.compile(r"step-(\d{8})/MANIFEST\.json$")

PROVED_ANEW = 3
"""Newest checkpoints of a trial that every check reads in full, whether or not an earlier one has."""
MOST_ANEW = 6

Proof = Callable[[ObjectStore, Manifest], list[str]]


@dataclass
class Verdict:
    """One look at a trial. `newest`: the newest visible step, 0 for none; `proved`: checkpoints proved in full."""

    torn: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    newest: int = 0
    proved: int = 0

    def add(self, other: Verdict) -> None:
        """Take in the verdict on another trial; `newest` stays."""
        self.torn += other.torn
        self.lost += other.lost
        self.proved += other.proved


class Ledger:
    """The killer's own record of one trial.

    Args:
        keep_last: what the trial's retention keeps; 0: it deletes nothing.
        scores: the metric by step, for the one best checkpoint that retention keeps; None: no metric.
        proof: what is wrong with a checkpoint's content, beyond what `verify` finds.
    """

    def __init__(
        self,
        store: ObjectStore,
        trial: str,
        keep_last: int,
        scores: Callable[[int], float] | None = None,
        proof: Proof | None = None,
    ) -> None:
        self.store, self.trial = store, trial
        self._keep_last, self._scores = keep_last, scores
        self._proof = proof or (lambda store, manifest: [])
        self._committed: dict[int, int] = {}
        self._proved: set[int] = set()
        self._reported: set[int] = set()

    def committed(self, step: int, attempt: int) -> None:
        """This attempt was told that `step` is committed."""
        self._committed[step] = max(attempt, self._committed.get(step, 0))

    def required(self) -> set[int]:
        """Steps that must be there."""
        if not self._keep_last:
            return self._committed.keys() - self._reported
        # What is torn or lost has been told, and counts among the newest all the same.
        known = self._committed.keys() | self._reported
        must = set(self._in_order(known)[-self._keep_last :])
        if self._scores and known:
            must.add(max(known, key=self._scores))
        return must - self._reported

    def visible(self) -> list[int]:
        """Steps whose manifest object is there, the newest last; asked of the store, not of the code under test."""
        found = (_MANIFEST.search(each.key) for each in self.store.list(f"trials/{self.trial}/step-"))
        return self._in_order(int(match[1]) for match in found if match)

    def _in_order(self, steps: Iterable[int]) -> list[int]:
        """The newest last: the later attempt, then the higher step, since a training that went back gives up what was ahead."""
        return sorted(steps, key=lambda step: (self._committed.get(step, 0), step))

    def check(self, settled: bool = True, anew: bool = False) -> Verdict:
        """Prove every visible checkpoint that was not proved before, and the `PROVED_ANEW` newest again; miss none.

        Args:
            settled: no process of the trial runs any more. Otherwise what vanishes while it is read may be retention's doing, and
                what is seen is not put down: a stale writer may yet take its manifest back.
            anew: prove the `MOST_ANEW` oldest and newest again.
        """
        verdict = Verdict()
        visible = self.visible()
        again = {*visible[-PROVED_ANEW:], *(visible[:MOST_ANEW] + visible[-MOST_ANEW:] if anew else ())}
        for step in visible:
            if step in self._proved and step not in again:
                continue
            faults = self._faults(step, settled)
            if faults and not settled and step not in self.visible():
                continue
            if faults:
                self._condemn(step, faults, verdict)
                continue
            verdict.proved += 1
        verdict.newest = (self.visible() or [0])[-1]
        if settled:
            # Only now, when the records hold what has just been seen: retention reckons with commits that nobody was told of.
            gone = sorted(self.required() - set(self.visible()))
            verdict.lost += [f"{self.trial} step {step} was committed and is gone" for step in gone]
            self._reported.update(gone)
            self._check_fallback(verdict)
        return verdict

    def _condemn(self, step: int, faults: list[str], verdict: Verdict) -> None:
        """Count a torn checkpoint, once however often it is seen again."""
        if step in self._reported:
            return
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        verdict.torn.append(f"{self.trial} step {step}: {faults[0]}{more}")
        if self._committed.pop(step, None) is not None:
            verdict.lost.append(f"{self.trial} step {step} was committed and does not restore")
        self._reported.add(step)

    def _faults(self, step: int, note: bool) -> list[str]:
        try:
            manifest = read_manifest(self.store, self.trial, step)
            faults = [problem.text for problem in verify(self.store, manifest, every_byte=True)]
            faults = faults or self._proof(self.store, manifest)
        except CheckpointError as error:
            return [error.message]
        if not faults and manifest.attempt < self._committed.get(step, 0):
            return [f"attempt {manifest.attempt} stands where attempt {self._committed[step]} had committed"]
        if not faults and note:
            self.committed(step, manifest.attempt)
            self._proved.add(step)
        return faults

    def _check_fallback(self, verdict: Verdict) -> None:
        """Whoever resumes must be given the newest checkpoint, without anything to complain of."""
        found = newest_intact(self.store, self.trial)
        step = found.manifest.step if found.manifest else 0
        if step != verdict.newest and not self._reported:
            verdict.lost.append(f"{self.trial}: step {verdict.newest} is whole, and step {step} is restored instead")


def prove_content(store: ObjectStore, manifest: Manifest) -> list[str]:
    """Restore the whole state on one rank and compare every byte with what it must be."""
    pieces = [Piece(row, np.zeros(row.size_bytes, np.uint8)) for row in kill_state.all_rows()]
    CheckpointReader(store, manifest).read_into(pieces)
    trial, life, step = (manifest.scalars.get(name) for name in ("trial", "life", "step"))
    if not isinstance(trial, str) or not isinstance(life, int) or step != manifest.step:
        return [f"its scalars are {dict(manifest.scalars)}"]
    # A clone's bytes are the donor's: the trial is the one that trained, not the one that the manifest stands in.
    faults = (kill_state.wrong_bytes(each.row, each.data, trial, life, step) for each in pieces)
    return [fault for fault in faults if fault]


def stages(records: list[dict[str, Any]]) -> dict[str, int]:
    """How many kills hit each stage."""
    found: dict[str, int] = {}
    for record in records:
        for stage in record["stages"]:
            found[stage] = found.get(stage, 0) + 1
    return dict(sorted(found.items(), key=lambda item: -item[1]))
