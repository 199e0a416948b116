"""Blocks of the journal: a copy for reading, never the only one, and no way round the fence."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import pytest

from tlcore.errors import StaleWriter
from tlcore.storage import blocks, open_store
from tlcore.storage.documents import encode_json, get_json
from tlcore.storage.journal import Journal, read_journal
from tlcore.storage.keys import block_key, journal_key

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 10)


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "run"))


class Counting:
    """A store that counts what is read."""

    def __init__(self, store):
        self._store, self.url, self.read = store, store.url, Counter()

    def get(self, key):
        self.read["block" if "blocks" in key else "entry"] += 1
        return self._store.get(key)

    def __getattr__(self, name):
        return getattr(self._store, name)


def journal_of(store, start=0):
    return Journal(store, lambda: datetime(2026, 11, 26, tzinfo=UTC), start=start)


def write(journal, count):
    return [journal.append("suggested", f"t{n:03d}", point={"train.seed": n}) for n in range(count)]


def test_full_blocks_are_read_as_one_object_each_and_the_rest_by_themselves(store):
    written = write(journal_of(store), 34)
    counting = Counting(store)
    assert read_journal(counting) == written
    assert counting.read == {"block": 3, "entry": 4}
    assert get_json(store, block_key(1)) == written[10:20]


def test_a_driver_that_resumes_within_a_block_completes_it(store):
    written = write(journal_of(store), 17)
    written += write(journal_of(store, start=17), 6)
    assert get_json(store, block_key(1)) == written[10:20]
    counting = Counting(store)
    assert read_journal(counting) == written
    assert counting.read == {"block": 2, "entry": 3}


def test_a_block_that_was_never_copied_is_read_entry_by_entry(store):
    written = write(journal_of(store), 25)
    store.delete([block_key(0)])
    assert read_journal(store) == written


@pytest.mark.parametrize(
    "junk", [b"", b"[]", b"not json", encode_json([{"n": 3}] * 10), encode_json([1] * 10), encode_json({"n": 1})]
)
def test_a_block_that_is_none_is_passed_over(store, junk):
    written = write(journal_of(store), 25)
    store.put(block_key(1), junk)
    assert read_journal(store) == written


def test_the_driver_that_is_behind_is_refused_within_a_copied_block(store):
    old = journal_of(store)
    write(old, 5)
    write(journal_of(store, start=5), 7)
    with pytest.raises(StaleWriter, match="another driver wrote journal/00000005"):
        old.append("suggested", "t999", point={})


def test_two_drivers_may_copy_the_same_block(store):
    written = write(journal_of(store), 10)
    late = blocks.Blocks(store, lambda put: put())
    for entry in written:
        late.add(entry)
    assert read_journal(store) == written


def test_killed_between_the_last_entry_and_its_block_nothing_is_lost(store):
    class Killed(Exception):
        pass

    def dies_at_a_block(put):
        before = sum(1 for _ in store.list("journal/"))
        if before == 10:
            raise Killed
        return put()

    journal = Journal(store, lambda: datetime(2026, 11, 26, tzinfo=UTC), ask=dies_at_a_block)
    with pytest.raises(Killed):
        write(journal, 12)
    assert len(read_journal(store)) == 10
    again = write(journal_of(store, start=10), 11)
    assert read_journal(store)[10:] == again
    assert store.get(journal_key(9))
