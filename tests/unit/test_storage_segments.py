"""Segments: what a writer rolls up, what a reader makes of it, and that they change nothing of who may write."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from memory_store import MemoryStore

from tlcore.checkpoint.gc import LEAST_GRACE_S, gc
from tlcore.errors import StaleWriter, StorageError, StorageUnreachable
from tlcore.report.runs import all_runs, read_run
from tlcore.storage import create_run
from tlcore.storage.documents import encode_json
from tlcore.storage.journal import Journal, read_journal
from tlcore.storage.keys import SEGMENT_ENTRIES, entries_prefix, journal_key, parse_segment_key, segment_key
from tlcore.storage.segments import roll_up

pytestmark = pytest.mark.unit
NOW = datetime(2026, 11, 26, tzinfo=UTC)


@pytest.fixture
def store():
    return MemoryStore()


def write(store, count, start=0, **facts):
    """A driver's life: so many entries."""
    journal = Journal(store, lambda: NOW, start=start)
    return [journal.append("alive", **facts) for _ in range(count)]


def read_keys(store, part):
    return [key for kind, key in store.requests if kind == "get" and part in key]


@pytest.mark.parametrize(("count", "segments"), [(999, []), (1000, [0]), (1001, [0]), (2500, [0, 1000])])
def test_full_thousands_are_rolled_up_and_the_entries_stay(store, count, segments):
    written = write(store, count)
    assert store.keys("journal/segments/") == [segment_key(first) for first in segments]
    assert len([key for key in store.keys("journal/") if parse_segment_key(key) is None]) == count
    store.requests.clear()
    assert read_journal(store) == written
    assert len(read_keys(store, "segments/")) == len(segments)
    assert len(read_keys(store, "journal/0")) == count % SEGMENT_ENTRIES


@pytest.mark.parametrize("rolled", [[], [0], [1000], [0, 1000]])
def test_a_journal_reads_the_same_whichever_segments_there_are(store, rolled):
    written = write(store, 2100)
    store.delete([segment_key(first) for first in (0, 1000) if first not in rolled])
    assert read_journal(store) == written


def test_a_block_that_two_drivers_wrote_is_rolled_up_by_the_second(store):
    first = write(store, 700)
    second = write(store, 301, start=700)
    assert store.keys("journal/segments/") == [segment_key(0)]
    assert read_journal(store) == first + second


def test_what_a_driver_did_not_live_to_roll_up_the_next_one_does(store):
    written = write(store, 3100)
    store.delete([segment_key(0), segment_key(2000)])
    Journal(store, lambda: NOW, start=3100).catch_up(read_journal(store))
    assert store.keys("journal/segments/") == [segment_key(first) for first in (0, 1000, 2000)]
    store.requests.clear()
    assert read_journal(store) == written
    assert len(read_keys(store, "journal/0")) == 100


@pytest.mark.parametrize("behind", [0, 500, 999, 1000, 1499])
def test_a_driver_that_is_behind_is_refused_whatever_was_rolled_up(store, behind):
    written = write(store, 1500)
    late = Journal(store, lambda: NOW, start=behind)
    with pytest.raises(StaleWriter, match="another driver"):
        late.append("alive", mine=True)
    assert read_journal(store) == written


def test_two_drivers_roll_up_the_same_bytes(store):
    write(store, 1000)
    first = store.get(segment_key(0))
    store.delete([segment_key(0)])
    Journal(store, lambda: NOW, start=1000).catch_up(read_journal(store))
    assert store.get(segment_key(0)) == first


def test_a_segment_that_cannot_be_put_is_no_failure(store, caplog):
    def refuse(kind, key):
        if kind == "put_if_absent" and "segments/" in key:
            raise StorageUnreachable("the store is away")

    store.before = refuse
    written = write(store, 1001)
    assert store.keys("journal/segments/") == []
    assert "entries from 0 on are not rolled up yet: the store is away" in caplog.text
    assert read_journal(store) == written


@pytest.mark.parametrize("missing", [3, 998, 999, 1000, 1400])
def test_a_gap_is_named_where_no_segment_covers_it(store, missing):
    write(store, 1500)
    store.delete([segment_key(0), journal_key(missing)])
    with pytest.raises(StorageError, match=f"no entry {missing}"):
        read_journal(store)


def test_a_segment_beyond_the_last_entry_is_a_gap(store):
    write(store, 2000)
    store.delete([segment_key(0), *(journal_key(n) for n in range(500, 1000))])
    with pytest.raises(StorageError, match="no entry 500"):
        read_journal(store)


@pytest.mark.parametrize("damage", [b"[]", b"{}", b'[{"n":0}]', b"[" + b",".join([b'{"n":7}'] * 1000) + b"]"])
def test_a_malformed_segment_is_named_and_can_be_deleted(store, damage):
    written = write(store, 1001)
    store.put(segment_key(0), damage)
    with pytest.raises(StorageError, match=r"segments/00000000\.json .* does not hold") as caught:
        read_journal(store)
    assert "delete that object" in str(caught.value.hint)
    store.delete([segment_key(0)])
    assert read_journal(store) == written


def test_entries_that_come_while_a_journal_is_read_are_no_gap(store):
    """The block looked short when it was listed, and the next one has an entry by the time that is."""
    journal = Journal(store, lambda: NOW)
    for _ in range(999):
        journal.append("alive")
    coming = iter([lambda: None, lambda: None, lambda: [journal.append("alive") for _ in range(2)]])

    def meanwhile(kind, key):
        if kind == "list":
            next(coming, lambda: None)()

    store.before = meanwhile
    assert [entry["n"] for entry in read_journal(store)] == list(range(1001))


def test_only_whole_blocks_can_be_rolled_up(store):
    for first, count in ((0, 999), (1, 1000), (500, 1000)):
        with pytest.raises(ValueError, match="no whole segment"):
            roll_up(store, first, [b"{}"] * count)


def test_the_keys_of_a_block_begin_alike():
    assert entries_prefix(99_000) == "journal/00099"
    assert all(journal_key(n).startswith(entries_prefix(99_000)) for n in (99_000, 99_500, 99_999))
    assert not journal_key(100_000).startswith(entries_prefix(99_000))
    assert parse_segment_key(segment_key(99_000)) == 99_000


def test_garbage_collection_leaves_the_journal_alone(store):
    written = write(store, 1001)
    before = store.keys()
    store.later(30 * 24 * 3600.0)
    gc(store, grace_s=LEAST_GRACE_S, now=NOW + timedelta(days=30))
    assert store.keys("journal/") == [key for key in before if key.startswith("journal/")]
    assert read_journal(store) == written


def test_show_and_list_read_segments(tmp_path):
    """Of entries that are gone, so that it is the segment that is read; a real run has both."""
    run = create_run(str(tmp_path), "long", {"recipe": {"search": {"metric": "eval_loss"}}}, NOW, "x")
    told = [{"kind": "suggested", "trial": "t000", "point": {"train.seed": 1}}, {"kind": "started", "trial": "t000"}]
    told += [{"kind": "alive", "trial": None}] * 997 + [{"kind": "completed", "trial": "t000"}]
    bodies = [encode_json({"n": n, "time": NOW.isoformat(), **entry}) for n, entry in enumerate(told)]
    roll_up(run.open(), 0, bodies)
    assert Path(tmp_path, "long", run.run_id, segment_key(0)).is_file()
    assert [row.state for row in read_run(run).view.rows()] == ["completed"]
    assert [each.ref for each in all_runs(str(tmp_path))] == [run]
