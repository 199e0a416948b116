"""Which writer owns a trial: attempts, claims, and what an older writer finds out.

Owns the claims `trials/<trial>/writers/<attempt>`. Does not own commits (`commit.py`). Called by `commit.py`, `clone.py`
and `train/`, whose rank 0 claims an attempt before it looks for a checkpoint to restore.

A writer may be cut off, suspended or thought dead, and still come back. Whoever takes the trial up claims the next
attempt first, so the older one finds the newer claim: before it puts a manifest, and once more after it has put one. In
the second case it takes its manifest back where the store stamped the claim earlier than the manifest; where it did not,
the newer writer began after the commit and has seen it.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

from tlcore.errors import ObjectMissing, StaleWriter
from tlcore.storage.base import ObjectInfo, ObjectStore
from tlcore.storage.keys import claim_key, parse_claim_key, writers_prefix

_SHOWN = ("host", "pid", "since")
_LONGEST_SHOWN = 80


@dataclass(frozen=True)
class Claim:
    """An attempt at a trial, and the text that proves who claimed it."""

    attempt: int
    text: str


def new_claim(attempt: int) -> Claim:
    """A claim that no other process can make by accident; says who made it, for people."""
    facts = {"host": socket.gethostname(), "pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    return Claim(attempt, json.dumps({**facts, "token": uuid.uuid4().hex}))


def next_attempt(store: ObjectStore, trial: str) -> int:
    """One above every claimed attempt of a trial, 1 for the first. Claims nothing."""
    return 1 + max((attempt for attempt, _ in claims(store, trial)), default=0)


def claim_attempt(store: ObjectStore, trial: str) -> Claim:
    """Claim a trial's next attempt; from now on no older writer commits.

    Asked once per (re)start, by rank 0, before it looks for a checkpoint to restore. Raises StorageError.
    """
    claim = new_claim(next_attempt(store, trial))
    while not store.put_if_absent(claim_key(trial, claim.attempt), claim.text.encode()):
        claim = Claim(claim.attempt + 1, claim.text)
    return claim


def claims(store: ObjectStore, trial: str) -> list[tuple[int, ObjectInfo]]:
    """Every attempt that was claimed, with its claim."""
    listed = ((parse_claim_key(each.key), each) for each in store.list(writers_prefix(trial)))
    return [(parsed.attempt, each) for parsed, each in listed if parsed is not None]


def newer_claim(store: ObjectStore, trial: str, attempt: int) -> tuple[int, ObjectInfo] | None:
    """The newest claim above `attempt`, None when there is none."""
    return max((each for each in claims(store, trial) if each[0] > attempt), key=lambda each: each[0], default=None)


def stale(store: ObjectStore, trial: str, step: int, attempt: int, newer: int) -> StaleWriter:
    """The error for a writer of `attempt` that has met the writer of attempt `newer`."""
    return StaleWriter(
        f"trial {trial} step {step}: attempt {newer} owns the trial, not attempt {attempt}{_who(store, trial, newer)}",
        hint="another process trains the same trial; this one, being the older, must stop",
        trial=trial,
        step=step,
    )


def _who(store: ObjectStore, trial: str, attempt: int) -> str:
    """Who claimed an attempt, as far as the claim says so."""
    try:
        facts = json.loads(store.get(claim_key(trial, attempt)))
    except (ObjectMissing, ValueError, RecursionError):
        return ""
    if not isinstance(facts, dict) or not all(name in facts for name in _SHOWN):
        return ""
    host, pid, since = (str(facts[name])[:_LONGEST_SHOWN] for name in _SHOWN)
    return f" (process {pid} on {host}, since {since})"
