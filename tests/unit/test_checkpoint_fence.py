"""Who may commit: claims of attempts, and writers that come back after another took their trial up."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from checkpoint_state import SETTINGS, State, close, restored, same, save, saved, wait, writers
from memory_store import MemoryStore

from tlcore.checkpoint import (
    CheckpointWriter,
    claim_attempt,
    list_manifests,
    newest_intact,
    next_attempt,
    read_manifest,
    verify,
)
from tlcore.errors import StaleWriter

pytestmark = pytest.mark.unit


def test_attempts_are_claimed_one_by_one_whoever_asks_at_once():
    store = MemoryStore()
    with ThreadPoolExecutor(8) as threads:
        claims = list(threads.map(lambda _: claim_attempt(store, "t000"), range(24)))
    assert sorted(claim.attempt for claim in claims) == list(range(1, 25))
    assert next_attempt(store, "t000") == 25
    assert next_attempt(store, "t00") == 1


def test_a_claim_made_before_is_the_writers_own_and_nobody_elses():
    store = MemoryStore()
    claim = claim_attempt(store, "t000")
    mine = CheckpointWriter(store, "t000", 0, 1, claim.attempt, SETTINGS, claim=claim.text)
    save([mine], State(), 1)
    assert wait([mine])[0].committed
    [other] = writers(store, 1, attempt=claim.attempt)
    save([other], State(), 2)
    with pytest.raises(StaleWriter, match="has been used by another writer"):
        wait([other])
    close([mine, other])


def test_a_restarted_trial_fences_the_older_writer_before_it_has_saved_anything():
    store = MemoryStore()
    [old] = writers(store, 1)
    save([old], State(), 1)
    wait([old])
    newer = claim_attempt(store, "t000")
    who = json.loads(newer.text)
    save([old], State(seed=1), 2)
    with pytest.raises(StaleWriter) as caught:
        wait([old])
    assert f"attempt 2 owns the trial, not attempt 1 (process {who['pid']} on {who['host']}, since" in str(caught.value)
    close([old])
    assert list_manifests(store, "t000") == [1]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_writer_suspended_right_before_its_manifest_takes_it_back(world_size):
    """It has looked at the claims, found none that is newer, and wakes up after another one has restored."""
    store = MemoryStore()
    saved(store, State(), step=1, world_size=world_size)
    old = writers(store, world_size)

    def meanwhile(kind, key):
        if kind == "put_if_absent" and key.endswith("step-00000002/MANIFEST.json"):
            store.later(5)
            claim_attempt(store, "t000")
            store.later(5)

    store.before = meanwhile
    save(old, State(seed=2), 2)
    with pytest.raises(StaleWriter, match="attempt 3 owns the trial, not attempt 2"):
        wait(old, 2)
    close(old)
    assert list_manifests(store, "t000") == [1]


def test_a_manifest_put_before_the_claim_stays():
    store = MemoryStore()
    [old] = writers(store, 1)

    def meanwhile(kind, key):
        if kind == "list" and key.endswith("/writers/") and store.keys("trials/t000/step-00000002/MANIFEST"):
            store.before = lambda kind, key: None
            store.later(5)
            claim_attempt(store, "t000")

    store.before = meanwhile
    save([old], State(seed=2), 2)
    assert wait([old])[0].committed
    close([old])
    assert verify(store, read_manifest(store, "t000", 2)) == []


def test_while_an_older_manifest_is_replaced_there_is_one_at_every_moment():
    store = MemoryStore()
    saved(store, State(seed=1), step=2)
    gone = []
    store.before = lambda kind, key: gone.append(key) if not store.keys("trials/t000/step-00000002/MAN") else None
    saved(store, State(seed=2), step=2)
    assert gone == []
    assert read_manifest(store, "t000", 2).attempt == 2
    assert same(restored(store, State(), step=2)[0], State(seed=2))


def test_what_lies_ahead_of_a_training_that_went_back_is_not_its_newest():
    store = MemoryStore()
    ranks = writers(store, 1)
    for step in (1, 2, 3):
        save(ranks, State(seed=step), step)
        wait(ranks)
    close(ranks)
    saved(store, State(seed=9), step=2, attempt=2)
    assert newest_intact(store, "t000").manifest.step == 2
    assert newest_intact(store, "t000", excluding=[2]).manifest.step == 3
    assert newest_intact(store, "t000", before_step=2).manifest.step == 1
