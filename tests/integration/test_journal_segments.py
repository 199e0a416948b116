"""Rolling up on real stores: a writer killed at any point of it loses nothing, and a driver that is behind stays fenced off."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tlcore.errors import StaleWriter
from tlcore.storage import ObjectStore, open_store
from tlcore.storage.documents import encode_json
from tlcore.storage.journal import Journal, read_journal
from tlcore.storage.keys import SEGMENT_ENTRIES, journal_key, segment_key

pytestmark = pytest.mark.integration
WRITER = Path(__file__).parent / "journal_writer.py"
LAST = SEGMENT_ENTRIES - 1


def clock() -> datetime:
    return datetime(2026, 11, 26, tzinfo=UTC)


@pytest.fixture
def store(store: ObjectStore) -> ObjectStore:
    """A run whose journal lacks one entry to a full block."""
    run = open_store(f"{store.url}/run")

    def put(n: int) -> None:
        run.put(journal_key(n), encode_json({"n": n, "time": clock().isoformat(), "kind": "alive", "trial": None}))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(put, range(LAST)))
    return run


def kill_writer(store: ObjectStore, when: str) -> None:
    done = subprocess.run(
        [sys.executable, str(WRITER), store.url, str(LAST), when], capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == -9, done.stderr


def test_a_writer_killed_at_any_point_of_rolling_up_loses_nothing(store):
    for when in ("before", "during", "after"):
        kill_writer(store, when)
        entries = read_journal(store)
        assert [entry["n"] for entry in entries] == list(range(SEGMENT_ENTRIES)), when
        resumed = Journal(store, clock, start=len(entries))
        resumed.catch_up(entries)
        assert read_journal(store) == entries, when
        assert [info.key for info in store.list("journal/segments/")] == [segment_key(0)], when
        for behind in (0, LAST):
            with pytest.raises(StaleWriter):
                Journal(store, clock, start=behind).append("alive", mine=True)
        resumed.append("resumed")
        assert read_journal(store)[LAST + 1]["kind"] == "resumed", when
        store.delete([segment_key(0), journal_key(LAST), journal_key(LAST + 1)])
