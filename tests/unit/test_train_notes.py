"""A trial's history and retention in their thread: where the history goes on, and what a store that is away does to them."""

from __future__ import annotations

import json
import logging

import pytest
from checkpoint_state import State, saved
from memory_store import MemoryStore

from tlcore.checkpoint import Retention, list_manifests
from tlcore.errors import CheckpointError, StorageDenied, StorageUnreachable
from tlcore.storage.keys import history_key
from tlcore.train.notes import ATTEMPTS, TrialNotes

pytestmark = pytest.mark.unit


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr("tlcore.checkpoint.patience.FIRST_PAUSE_S", 0.0)


def notes_of(store, keep_last=1):
    return TrialNotes(store, "t000", lambda: Retention(store, "t000", keep_last, 0, None, "max"))


def history(store):
    return [json.loads(store.objects[key][0]) for key in store.keys("trials/t000/history/")]


def away(times, kinds, part, error=None):
    left = [error or StorageUnreachable("away")] * times

    def hook(kind, key):
        if left and kind in kinds and part in key:
            raise left.pop()

    return hook


def test_a_restarted_trial_goes_on_after_its_last_record_without_asking_for_all_of_them(store):
    """A thousand reports and a restart used to be a thousand refused requests, before the first save could be waited for."""
    for n in range(50):
        store.put(history_key("t000", n), b"{}")
    store.put(history_key("t0001", 99), b"{}")
    store.requests.clear()
    notes = notes_of(store)
    for n in range(3):
        notes.tell({"n": n})
    notes.close()
    assert [key for kind, key in store.requests if kind == "put_if_absent"] == [
        history_key("t000", n) for n in (50, 51, 52)
    ]
    assert [kind for kind, _ in store.requests].count("list") == 1


def test_equal_records_of_two_lives_are_two_records(store):
    for _ in range(2):
        notes = notes_of(store)
        notes.tell({"kind": "started", "from_step": 0})
        notes.close()
    assert history(store) == [{"kind": "started", "from_step": 0}] * 2


@pytest.mark.parametrize("kind", ["list", "put_if_absent"])
def test_a_store_that_is_away_for_a_while_costs_no_record(store, kind):
    store.before = away(ATTEMPTS - 1, (kind,), "history/")
    notes = notes_of(store)
    for n in range(3):
        notes.tell({"n": n})
    notes.flush()
    notes.close()
    assert history(store) == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_a_record_that_cannot_be_written_is_raised_and_the_rest_is_not_waited_for(store):
    store.before = away(10_000, ("put_if_absent",), "history/")
    notes = notes_of(store)
    for n in range(5):
        notes.tell({"n": n})
    with pytest.raises(StorageUnreachable, match="away"):
        notes.flush()
    with pytest.raises(CheckpointError, match="abandoned"):
        notes.flush()
    assert len([kind for kind, _ in store.requests if kind == "put_if_absent"]) == ATTEMPTS


@pytest.mark.parametrize(
    ("kinds", "part"), [(("delete",), "MANIFEST"), (("get",), "step-00000002/MANIFEST"), (("put",), "RETIRED")]
)
def test_a_failed_retention_is_a_warning_and_the_next_commit_takes_all_away(store, caplog, kinds, part):
    """It used to fail the trial, whose checkpoints were all there."""
    notes = notes_of(store)
    for step in (1, 2):
        saved(store, State(), step=step)
    store.before = away(1, kinds, part, StorageDenied("no right to delete"))
    with caplog.at_level(logging.WARNING):
        notes.committed(2)
        notes.flush()
    assert "trial t000: what is not to be kept after step 2 could not be taken away" in caplog.text
    assert list_manifests(store, "t000") == [1, 2]
    saved(store, State(), step=3)
    notes.committed(3)
    notes.close()
    assert list_manifests(store, "t000") == [3]


def test_a_missing_right_to_delete_is_said_once_and_tried_once_a_commit(store, caplog):
    store.before = away(10_000, ("delete",), "MANIFEST", StorageDenied("no right to delete"))
    notes = notes_of(store)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3, 4):
            saved(store, State(), step=step)
            notes.committed(step)
        notes.close()
    assert [kind for kind, _ in store.requests].count("delete") == 3
    assert [record.message.count("no right to delete") for record in caplog.records] == [1]
    assert list_manifests(store, "t000") == [1, 2, 3, 4]


def test_notes_that_are_abandoned_end_at_once(store, monkeypatch):
    monkeypatch.setattr("tlcore.checkpoint.patience.FIRST_PAUSE_S", 60.0)
    monkeypatch.setattr("tlcore.checkpoint.patience.LONGEST_PAUSE_S", 60.0)
    store.before = away(10_000, ("put_if_absent",), "history/")
    notes = notes_of(store)
    notes.tell({"n": 0})
    notes.abandon()
    with pytest.raises((StorageUnreachable, CheckpointError)):
        notes.check()
