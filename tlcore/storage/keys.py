"""Names of everything a run keeps, relative to the run's root; pure functions and their parsers.

Owns the layout. Does not touch a store. Called by `runs.py` and by every room that keeps something in a run.

    run.json                                          identity
    journal/00000000.json                             the sweep's events, in order
    journal/segments/00001000.json                    a copy of a thousand of them, from that number on
    trials/t000/history/00000000.json                 metrics by report
    trials/t000/step-00000200/rank-0001-0000.json     what one rank wrote, by attempt
    trials/t000/step-00000200/MANIFEST.json           the commit
    trials/t000/step-00000200/RETIRED-0001.json       a manifest that was deleted; what it names stays for a while
    trials/t000/writers/0001                          who claimed this attempt
    cas/ab/ab12...                                    chunks by digest
    features/ab12.../train-0-of-2.safetensors         outputs of a frozen part, by what they depend on
    gc/20261121T044500-ab12.json                      what a garbage collection is about to delete, or has deleted

Numbers have eight digits, so that key order is number order.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from typing import NamedTuple

RUN_JSON = "run.json"
JOURNAL_PREFIX = "journal/"
SEGMENTS_PREFIX = "journal/segments/"
SEGMENT_ENTRIES = 1000
"""A power of ten: the keys of one segment's entries have all but their last digits in common, so one short listing finds them."""
TRIALS_PREFIX = "trials/"
CHUNKS_PREFIX = "cas/"
NOTICES_PREFIX = "gc/"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_NUMBER = 10**8 - 1

_RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")
_NUMBER = r"(\d{8})"
_TRIAL = rf"({_NAME.pattern})"
_JOURNAL_KEY = re.compile(rf"journal/{_NUMBER}\.json")
_SEGMENT_KEY = re.compile(rf"journal/segments/{_NUMBER}\.json")
_HISTORY_KEY = re.compile(rf"trials/{_TRIAL}/history/{_NUMBER}\.json")
_MANIFEST_KEY = re.compile(rf"trials/{_TRIAL}/step-{_NUMBER}/MANIFEST\.json")
_RANK_KEY = re.compile(rf"trials/{_TRIAL}/step-{_NUMBER}/rank-(\d{{4}})-(\d{{4}})\.json")
_STEP_KEY = re.compile(rf"trials/{_TRIAL}/step-{_NUMBER}/(.+)")
_CLAIM_KEY = re.compile(rf"trials/{_TRIAL}/writers/(\d+)")
_RETIRED_KEY = re.compile(rf"trials/{_TRIAL}/step-{_NUMBER}/RETIRED-(\d{{4}})\.json")
_CHUNK_KEY = re.compile(r"cas/([0-9a-f]{2})/([0-9a-f]{64})")


class HistoryKey(NamedTuple):
    trial: str
    n: int


class ManifestKey(NamedTuple):
    trial: str
    step: int


class RankIndexKey(NamedTuple):
    trial: str
    step: int
    rank: int
    attempt: int


class StepKey(NamedTuple):
    trial: str
    step: int
    name: str


class ClaimKey(NamedTuple):
    trial: str
    attempt: int


def check_name(name: str) -> str:
    """Return a run's or trial's name when it can stand in a key; ValueError else."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"name {name!r} must be letters, digits, '_', '.' and '-', and start with a letter or digit")
    return name


def journal_key(n: int) -> str:
    return f"{JOURNAL_PREFIX}{_number(n)}.json"


def segment_key(first: int) -> str:
    """Where the entries from number `first` on, a multiple of SEGMENT_ENTRIES, lie together."""
    return f"{SEGMENTS_PREFIX}{_number(first)}.json"


def entries_prefix(first: int) -> str:
    """What the keys of the entries of one segment have in common."""
    return f"{JOURNAL_PREFIX}{_number(first)[: -len(str(SEGMENT_ENTRIES - 1))]}"


def history_prefix(trial: str) -> str:
    return f"{trial_prefix(trial)}history/"


def history_key(trial: str, n: int) -> str:
    return f"{history_prefix(trial)}{_number(n)}.json"


def trial_prefix(trial: str) -> str:
    return f"{TRIALS_PREFIX}{check_name(trial)}/"


def checkpoint_prefix(trial: str, step: int) -> str:
    """Everything of one checkpoint except its chunks; ends with a slash."""
    return f"{trial_prefix(trial)}step-{_number(step)}/"


def manifest_key(trial: str, step: int) -> str:
    return f"{checkpoint_prefix(trial, step)}MANIFEST.json"


def rank_index_key(trial: str, step: int, rank: int, attempt: int) -> str:
    return f"{checkpoint_prefix(trial, step)}rank-{_number(rank, 4)}-{_number(attempt, 4)}.json"


def retired_key(trial: str, step: int, attempt: int) -> str:
    """Where a deleted manifest lies, of this attempt, until a garbage collection takes it."""
    return f"{checkpoint_prefix(trial, step)}RETIRED-{_number(attempt, 4)}.json"


def writers_prefix(trial: str) -> str:
    """Where the attempts of a trial are claimed."""
    return f"{trial_prefix(trial)}writers/"


def claim_key(trial: str, attempt: int) -> str:
    return f"{writers_prefix(trial)}{_number(attempt, 4)}"


def features_key(digest: str, name: str) -> str:
    """Key of one object of the features that depend on what has this SHA-256."""
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"{digest!r} is no SHA-256 in lower-case hex")
    return f"features/{digest}/{check_name(name)}"


def chunk_key(digest: str) -> str:
    """Key of the chunk with this digest (64 hex digits)."""
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"{digest!r} is no digest of 64 lower-case hex digits")
    return f"{CHUNKS_PREFIX}{digest[:2]}/{digest}"


def parse_journal_key(key: str) -> int | None:
    match = _JOURNAL_KEY.fullmatch(key)
    return int(match[1]) if match else None


def parse_segment_key(key: str) -> int | None:
    """Number of the segment's first entry."""
    match = _SEGMENT_KEY.fullmatch(key)
    return int(match[1]) if match else None


def parse_history_key(key: str) -> HistoryKey | None:
    match = _HISTORY_KEY.fullmatch(key)
    return HistoryKey(match[1], int(match[2])) if match else None


def parse_manifest_key(key: str) -> ManifestKey | None:
    match = _MANIFEST_KEY.fullmatch(key)
    return ManifestKey(match[1], int(match[2])) if match else None


def parse_rank_index_key(key: str) -> RankIndexKey | None:
    match = _RANK_KEY.fullmatch(key)
    return RankIndexKey(match[1], int(match[2]), int(match[3]), int(match[4])) if match else None


def parse_step_key(key: str) -> StepKey | None:
    """Any object of one checkpoint, committed or not."""
    match = _STEP_KEY.fullmatch(key)
    return StepKey(match[1], int(match[2]), match[3]) if match else None


def parse_retired_key(key: str) -> ManifestKey | None:
    """Trial and step of a manifest that was deleted."""
    match = _RETIRED_KEY.fullmatch(key)
    return ManifestKey(match[1], int(match[2])) if match else None


def parse_claim_key(key: str) -> ClaimKey | None:
    match = _CLAIM_KEY.fullmatch(key)
    return ClaimKey(match[1], int(match[2])) if match else None


def parse_chunk_key(key: str) -> str | None:
    """The digest, when the key is a chunk's and its directory agrees with it."""
    match = _CHUNK_KEY.fullmatch(key)
    return match[2] if match and match[2].startswith(match[1]) else None


def new_run_id(now: datetime, entropy: str) -> str:
    """A run id that sorts by time, such as `20261121-044500-ab12`.

    Args:
        now: timezone-aware.
        entropy: what tells apart two runs of the same second; any text.
    """
    suffix = hashlib.sha256(entropy.encode()).hexdigest()[:4]
    return f"{now.astimezone(UTC):%Y%m%d-%H%M%S}-{suffix}"


def is_run_id(text: str) -> bool:
    """Whether `text` has the form that `new_run_id` gives."""
    return _RUN_ID.fullmatch(text) is not None


def _number(value: int, digits: int = 8) -> str:
    if not 0 <= value <= min(_MAX_NUMBER, 10**digits - 1):
        raise ValueError(f"{value} does not fit a key of {digits} digits")
    return f"{value:0{digits}d}"
