"""Checkpoints in a second place: clones within a run, and fetched copies of it elsewhere."""

from __future__ import annotations

import pytest
from checkpoint_state import State, close, restored, same, save, saved, wait, writers
from memory_store import MemoryStore

from tlcore.checkpoint import (
    CheckpointReader,
    claim_attempt,
    clone_checkpoint,
    delete_checkpoint,
    fetch_checkpoint,
    gc,
    list_manifests,
    newest_intact,
    newest_step,
    read_manifest,
    verify,
)
from tlcore.errors import CheckpointCorrupt, CheckpointError, RequestError, StaleWriter, StorageError

pytestmark = pytest.mark.unit
DAY = 24 * 3600


class Elsewhere(MemoryStore):
    @property
    def url(self):
        return "memory://elsewhere"


@pytest.fixture
def store():
    store = MemoryStore()
    saved(store, State(), step=200)
    return store


def donor(store):
    return read_manifest(store, "t000", 200)


# -- clones -----------------------------------------------------------------------------------------------------------


def test_a_clone_is_one_manifest_and_restores_at_any_world_size(store):
    before = set(store.keys())
    manifest = clone_checkpoint(store, donor(store), "t001")
    assert sorted(set(store.keys()) - before) == ["trials/t001/step-00000200/MANIFEST.json", "trials/t001/writers/0001"]
    assert manifest == read_manifest(store, "t001", 200)
    assert (manifest.parent, manifest.totals.new_bytes) == ("trials/t000/step-00000200/MANIFEST.json", 0)
    assert verify(store, manifest) == []
    for world_size, layout in ((1, "flat"), (3, "each")):
        assert same(restored(store, State(), trial="t001", world_size=world_size, layout=layout)[0], State())


def test_a_clone_is_the_newest_of_its_trial_whatever_lay_ahead(store):
    for step in (100, 300):
        ranks = writers(store, 2, trial="t001")
        save(ranks, State(seed=step), step)
        wait(ranks)
        close(ranks)
    clone_checkpoint(store, donor(store), "t001")
    assert list_manifests(store, "t001") == [100, 200]
    assert newest_step(store, "t001") == 200
    assert newest_intact(store, "t001").manifest.parent == donor(store).key


def test_killed_before_it_gave_up_what_lay_ahead_a_clone_is_the_newest_all_the_same(store):
    ranks = writers(store, 1, trial="t001")
    save(ranks, State(seed=3), 300)
    wait(ranks)
    close(ranks)

    def killed(kind, key):
        if kind == "put" and "RETIRED" in key:
            raise StorageError("killed here")

    store.before = killed
    with pytest.raises(StorageError):
        clone_checkpoint(store, donor(store), "t001")
    store.before = lambda kind, key: None
    assert list_manifests(store, "t001") == [200, 300]
    assert newest_intact(store, "t001").manifest.step == 200


def test_a_trial_goes_on_from_its_clone_and_sends_only_what_changed(store):
    manifest = clone_checkpoint(store, donor(store), "t001")
    claim = claim_attempt(store, "t001")
    state, _ = restored(store, State(), trial="t001")
    ranks = writers(store, 2, attempt=claim.attempt + 1, trial="t001", parent=manifest)
    save(ranks, state, 200)
    assert [report.bytes_new for report in wait(ranks)] == [0, 0]
    close(ranks)


def test_a_clone_can_be_made_again_and_again(store):
    first = clone_checkpoint(store, donor(store), "t001")
    again = clone_checkpoint(store, donor(store), "t001")
    assert (first.attempt, again.attempt) == (1, 2)
    assert verify(store, again) == []


def test_no_trial_is_cloned_from_itself(store):
    with pytest.raises(RequestError, match="cannot be cloned from itself"):
        clone_checkpoint(store, donor(store), "t000")


def test_a_donor_that_is_gone_is_said_and_the_trial_keeps_what_it_has(store):
    manifest = donor(store)
    ranks = writers(store, 1, trial="t001")
    save(ranks, State(seed=3), 300)
    wait(ranks)
    close(ranks)
    delete_checkpoint(store, "t000", 200)
    with pytest.raises(CheckpointError, match=r"t001 cannot begin from trials/t000/step-00000200/.* deleted meanwhile"):
        clone_checkpoint(store, manifest, "t001")
    assert list_manifests(store, "t001") == [300]


@pytest.mark.parametrize("request_at", [("list", "t001/writers/"), ("list", "gc/")])
def test_a_donor_deleted_and_collected_while_a_clone_is_made_leaves_none(store, request_at):
    """The clone stands still for two days, so that nothing but the notice protects it."""
    source, done = donor(store), []

    def take_away(kind, key):
        if kind == request_at[0] and request_at[1] in key and not done:
            done.append(key)
            delete_checkpoint(store, "t000", 200)
            store.later(2 * DAY)
            gc(store, now=store.now)

    store.before = take_away
    with pytest.raises(CheckpointError):
        clone_checkpoint(store, source, "t001")
    assert done
    assert list_manifests(store, "t001") == []


def test_a_session_that_took_the_trial_up_meanwhile_stops_the_clone(store):
    claim = claim_attempt(store, "t001")
    claim_attempt(store, "t001")
    with pytest.raises(StaleWriter, match="attempt 2 owns the trial, not attempt 1"):
        clone_checkpoint(store, donor(store), "t001", claim)
    assert list_manifests(store, "t001") == []


# -- fetched copies ---------------------------------------------------------------------------------------------------


def test_a_fetched_checkpoint_is_a_run_with_one_checkpoint(store):
    store.put("run.json", b'{"name": "x"}')
    saved(store, State(seed=4), step=300)
    there, seen = Elsewhere(), []
    report = fetch_checkpoint(store, donor(store), there, lambda done, total: seen.append((done, total)))
    assert there.keys("run.json") == ["run.json"]
    assert list_manifests(there, "t000") == [200]
    assert len(there.keys("cas/")) == report.chunks < len(store.keys("cas/"))
    assert report.bytes_copied == report.bytes_total == seen[-1][0] == seen[-1][1]
    assert verify(there, read_manifest(there, "t000", 200)) == []
    assert same(restored(there, State())[0], State())


def test_an_interrupted_fetch_goes_on_and_nothing_is_visible_before_it_is_whole(store):
    there, puts = Elsewhere(), []

    def break_off(kind, key):
        if kind == "put" and key.startswith("cas/"):
            puts.append(key)
            if len(puts) == 4:
                raise StorageError("the disk is full")

    there.before = break_off
    with pytest.raises(StorageError, match="the disk is full"):
        fetch_checkpoint(store, donor(store), there)
    assert list_manifests(there, "t000") == []
    held = set(there.keys("cas/"))
    assert held
    there.before = lambda kind, key: None
    there.requests.clear()
    report = fetch_checkpoint(store, donor(store), there)
    again = {key for kind, key in there.requests if kind == "put"}
    assert not held & again
    assert 0 < report.bytes_copied < report.bytes_total
    assert verify(there, read_manifest(there, "t000", 200)) == []
    assert fetch_checkpoint(store, donor(store), there).bytes_copied == 0


@pytest.mark.parametrize("damage", [MemoryStore.truncate, MemoryStore.flip])
@pytest.mark.parametrize("committed", [False, True])
def test_a_damaged_chunk_at_the_destination_is_copied_again(store, damage, committed):
    """A crash may leave a file of the right size and other bytes; it was taken for the chunk."""
    there = Elsewhere()
    fetch_checkpoint(store, donor(store), there)
    if not committed:
        there.delete(["trials/t000/step-00000200/MANIFEST.json"])
    key = there.keys("cas/")[0]
    damage(there, key, 3)
    report = fetch_checkpoint(store, donor(store), there)
    assert report.bytes_copied == len(store.objects[key][0])
    assert verify(there, read_manifest(there, "t000", 200)) == []


@pytest.mark.parametrize("part", ["cas/", "rank-0001"])
def test_damage_is_found_while_copying_and_leaves_no_checkpoint(store, part):
    key = next(key for key in sorted(store.objects) if part in key)
    store.flip(key, 100)
    there = Elsewhere()
    with pytest.raises(CheckpointCorrupt, match=key):
        fetch_checkpoint(store, donor(store), there)
    assert list_manifests(there, "t000") == []


def test_another_checkpoint_in_the_way_is_not_overwritten(store):
    there = Elsewhere()
    saved(there, State(seed=8), step=200)
    with pytest.raises(RequestError, match="is another checkpoint of the same trial and step"):
        fetch_checkpoint(store, donor(store), there)
    assert same(restored(there, State())[0], State(seed=8))
    with pytest.raises(RequestError, match="the same place"):
        fetch_checkpoint(store, donor(store), store)


def test_a_fetched_clone_is_whole_without_its_donor(store):
    manifest = clone_checkpoint(store, donor(store), "t001")
    there = Elsewhere()
    fetch_checkpoint(store, manifest, there)
    assert verify(there, read_manifest(there, "t001", 200)) == []
    assert CheckpointReader(there, read_manifest(there, "t001", 200)).rows()
