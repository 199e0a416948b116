"""Who may commit: attempts, fences, two writers of one trial."""

from __future__ import annotations

import pytest
from checkpoint_state import State, close, restored, same, save, saved, wait, writers
from memory_store import Gate, MemoryStore

from tlcore.checkpoint import (
    claim_attempt,
    list_manifests,
    next_attempt,
    read_manifest,
)
from tlcore.errors import StaleWriter, StorageUnreachable

pytestmark = pytest.mark.unit


@pytest.fixture
def store():
    return MemoryStore()


def test_an_attempt_has_one_writer(store):
    first, second = writers(store, 1, attempt=1), writers(store, 1, attempt=1)
    save(first, State(seed=1), 200)
    wait(first)
    for step in (200, 300):
        save(second, State(seed=2), step)
        with pytest.raises(StaleWriter, match="attempt 1 of trial t000 has been used by another writer"):
            wait(second, step)
    close([*first, *second])
    assert list_manifests(store, "t000") == [200]
    assert same(restored(store, State())[0], State(seed=1))


@pytest.mark.parametrize("world_size", [1, 2])
def test_of_two_writers_of_one_step_one_wins_and_the_other_is_told(store, world_size):
    """Both pass the fence, the older is the slower: its own manifest must not replace the newer one's."""
    gate = Gate("MANIFEST", kinds=("put_if_absent",))
    store.before = gate
    old, new = writers(store, world_size, attempt=1), writers(store, world_size, attempt=2)
    save(old, State(seed=1), 200)
    assert gate.reached.wait(30)
    store.before = lambda kind, key: None
    save(new, State(seed=2), 200)
    wait(new)
    gate.open()
    for writer in old:
        with pytest.raises(StaleWriter, match="attempt 2 owns the trial, not attempt 1"):
            writer.wait()
    close([*old, *new])
    assert same(restored(store, State())[0], State(seed=2))


def test_attempts_are_numbered_upwards(store):
    assert next_attempt(store, "t000") == 1
    saved(store, State(), step=1, attempt=7)
    assert next_attempt(store, "t000") == 8
    assert next_attempt(store, "t00") == 1


def test_an_older_attempt_cannot_commit_once_a_newer_one_has_begun(store):
    old, new = writers(store, 1, attempt=1), writers(store, 1, attempt=2)
    save(new, State(), 100)
    wait(new)
    save(old, State(), 300)
    with pytest.raises(StaleWriter, match="attempt 2 owns the trial"):
        wait(old)
    close([*old, *new])
    assert list_manifests(store, "t000") == [100]


def test_a_newer_attempt_replaces_the_manifest_of_a_step_it_trained_again(store):
    saved(store, State(seed=1), step=200, attempt=1, metrics={"who": 1})
    saved(store, State(seed=2), step=200, attempt=2, metrics={"who": 2})
    assert read_manifest(store, "t000", 200).metrics == {"who": 2}
    assert same(restored(store, State())[0], State(seed=2))


def test_a_writer_that_was_held_up_leaves_what_its_successor_committed_over_it(store):
    """It finds the newer claim only after its put; by then the manifest at that step is no longer its own."""
    claims: list = []

    def hold_up(kind, key):
        if kind == "put_if_absent" and "MANIFEST" in key and not claims:
            claims.append(claim_attempt(store, "t000"))
            store.later(5)
        elif (
            kind == "list"
            and "/writers/" in key
            and len(claims) == 1
            and store.keys("trials/t000/step-00000200/MANIFEST")
        ):
            claims.append(None)
            successors = writers(store, 1, attempt=2, claim=claims[0].text)
            save(successors, State(seed=2), 200)
            assert wait(successors)[0].committed
            close(successors)

    old = writers(store, 1, attempt=1)
    store.before = hold_up
    save(old, State(seed=1), 200)
    with pytest.raises(StaleWriter, match="attempt 2 owns the trial"):
        wait(old)
    close(old)
    assert same(restored(store, State())[0], State(seed=2))


def test_ranks_of_an_attempt_whose_rank_0_was_killed_are_not_mixed_with_the_next_ones(store):
    """Rank 1 had put its part; the next life has another attempt from the start, since rank 0 claims before it tells anybody."""
    claim = claim_attempt(store, "t000")
    [_, rank1] = writers(store, 2, attempt=claim.attempt, claim=claim.text)
    rank1.save(200, State(seed=1).pieces(1, 2))
    rank1.poll()
    rank1.close()
    assert store.keys("trials/t000/step-00000200/rank-0001")
    after = claim_attempt(store, "t000")
    assert after.attempt > claim.attempt
    ranks = writers(store, 2, attempt=after.attempt, claim=after.text)
    save(ranks, State(seed=2), 200)
    wait(ranks)
    close(ranks)
    assert same(restored(store, State())[0], State(seed=2))


def test_a_corrupt_manifest_in_the_way_is_replaced(store):
    saved(store, State())
    store.flip("trials/t000/step-00000200/MANIFEST.json", 300)
    saved(store, State(seed=2))
    assert same(restored(store, State())[0], State(seed=2))


def test_a_repeated_conditional_put_meets_its_own_first_attempt(store):
    lost = []

    def lose_the_answer(kind, key):
        if kind == "put_if_absent" and "MANIFEST" in key and not lost:
            lost.append(key)
            raise StorageUnreachable("the connection broke")

    store.before = lose_the_answer
    reports = saved(store, State(), world_size=1)
    assert reports[0].committed
    assert reports[0].retries == 1
